"""What the tests share: the real data, small phantoms, and the two programs run in this process."""

import importlib.util
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import main as training_program
from utils.phantom import write_phantoms

REPOSITORY = Path(__file__).parent.parent
SHARED_DATA = REPOSITORY.parent / "shared" / "data"

# a network and a grid small enough to train in seconds; appended to a command line, they replace what it said
TINY = [
    *("--space_x=12", "--space_y=12", "--space_z=14", "--roi_x=16", "--roi_y=16", "--roi_z=16"),
    *("--hidden_size=12", "--mlp_dim=12", "--num_heads=2", "--feature_size=2"),
]

Run = Callable[..., None]
FileSizeLimit = Callable[[int], AbstractContextManager[None]]


def load_test_program() -> Run:
    """``test.py`` by its path: the standard library has a module of that name."""
    spec = importlib.util.spec_from_file_location("unetr_test_program", REPOSITORY / "test.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    run: Run = module.run
    return run


# tests of a minute or more, which come first, so that no process is left alone with one at the end
LONGEST = ("test_tutorials.py", "test_reliability.py", "test_two_machines.py", "test_blocks.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest tests first; all else keeps its order."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def run_main() -> Run:
    return training_program.run


@pytest.fixture(scope="session")
def run_test() -> Run:
    return load_test_program()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny tensors are slower on many threads, and the tests run side by side."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the programs that they launch


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Let torch compute with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of seven small phantoms in BTCV's layout: four train, two validate, one is kept aside."""
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, {"training": 4, "validation": 2, "test": 1}, seed=0, spacing=(10.0, 10.0, 12.0))
    return folder


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as the working directory, so that ``runs/`` comes to lie there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def real_data() -> Path:
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the real scans of {SHARED_DATA}, which are not part of this repository")
    return SHARED_DATA


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def file_size_limit() -> FileSizeLimit:
    """A context in which no file of this process may grow beyond some bytes; writing then fails as on a full disk."""

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited

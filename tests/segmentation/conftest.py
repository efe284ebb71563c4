"""A trained network to segment with, and the program's results."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from tests.conftest import Run
from tests.io.series import write_series
from tests.training.test_training import train
from utils.segmentation import steps
from utils.system.errors import WriteError


@pytest.fixture(scope="session")
def trained(run_main: Run, phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose network finds some organs."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        flags = ("--max_epochs=40", "--val_every=40", "--optim_lr=3e-2", "--warmup_epochs=1", "--noamp")
        more = ("--feature_size=4", "--norm_name=batch", "--RandFlipd_prob=0", "--RandRotate90d_prob=0")
        train(run_main, phantoms, "run", *flags, *more)
    return folder / "runs" / "run"


@pytest.fixture
def segment(run_test: Run, trained: Path, in_tmp: Path) -> Any:
    """Segments with the trained network into ``out``."""

    def run(*flags: str) -> Path:
        run_test([f"--pretrained_dir={trained}", "--pretrained_model_name=model.pt", "--output_dir=out", *flags])
        return Path("out")

    return run


def scan_of(phantoms: Path, number: int = 7) -> Path:
    return phantoms / "imagesTr" / f"img{number:04d}.nii.gz"


def series(folder: Path, phantoms: Path, **changes: Any) -> tuple[np.ndarray, np.ndarray]:
    """Write :func:`scan_of` as a DICOM series, and give its voxels and affine.

    Args:
        changes: those of ``write_series``.
    """
    values = voxels(scan_of(phantoms)).astype(np.int16)
    affine = np.diag([-10.0, -10.0, 12.0, 1.0])  # DICOM's own way: columns run to the Left, rows to Posterior
    affine[:3, 3] = (120, 90, -300)
    write_series(folder, values, affine, **changes)
    return values, affine


def load(path: Path | str) -> Any:
    return nib.load(path)


def voxels(path: Path) -> np.ndarray:
    return np.asarray(load(path).dataobj)


def failure(run: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> str:
    """What a program that ends with status 1 prints as its error."""
    with pytest.raises(SystemExit) as stop:
        run()
    assert stop.value.code == 1
    return capsys.readouterr().err


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch, function: str) -> Iterator[None]:
    """Let a function of :mod:`utils.segmentation.steps` fail, as on a full disk, without writing its file."""

    def full(*_: object) -> None:
        raise WriteError("out: can't be written (No space left on device)")

    with monkeypatch.context() as patch:
        patch.setattr(steps, function, full)
        yield

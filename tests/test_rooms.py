"""Where things lie and what may import what (docs/architecture.md)."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

# from the bottom to the top; a room imports those below it
ROOMS = ["system", "networks", "optimizers", "io", "distributed", "data", "checkpoints", "inference", "evaluation",
         "training", "segmentation", "planning", "config"]  # fmt: skip
LIBRARY = [*REPOSITORY.glob("networks/**/*.py"), *REPOSITORY.glob("optimizers/*.py"),
           *[path for path in REPOSITORY.glob("utils/*/*.py") if path.parent.name != "config"]]  # fmt: skip
COMMANDS = [path for path in REPOSITORY.glob("utils/*.py") if path.name != "__init__.py"]


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(module: str) -> str | None:
    """The room of a module of ours; ``utils.crossval`` lies in none."""
    parts = module.split(".")
    if parts[0] not in ("utils", "networks", "optimizers"):  # Python has an io as well
        return None
    name = parts[1] if parts[0] == "utils" and len(parts) > 1 else parts[0]
    return name if name in ROOMS else None


def ids(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@pytest.mark.parametrize("path", sorted({*REPOSITORY.glob("utils/*/*.py"), *LIBRARY}), ids=ids)
def test_imports_run_downward(path: Path) -> None:
    here = ROOMS.index(str(room_of(".".join(path.relative_to(REPOSITORY).with_suffix("").parts))))
    for module in imported(path):
        room = room_of(module)
        assert room is None or ROOMS.index(room) <= here, f"{module} lies above {path.parent.name}"
        if path.parent.name == "distributed":
            assert room not in ("io", "optimizers"), f"{module}: processes know nothing of scans"
        if module.split(".")[0] in ("main", "test", "trainer", "tests", "benchmarks"):
            raise AssertionError(f"{module} is no part of the library")
        command = re.fullmatch(r"utils\.(\w+)(\.\w+)?", module)
        assert command is None or f"{command[1]}.py" not in {one.name for one in COMMANDS}, f"{module} is a command"


@pytest.mark.parametrize("path", LIBRARY, ids=ids)
def test_the_library_knows_neither_argparse_nor_flags(path: Path) -> None:
    assert not {"argparse", "argparse.Namespace"} & set(imported(path))
    tree = ast.parse(path.read_text())
    quoted_commands = ("torchrun", "python ", "pip ")
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            names_a_flag = re.search(r"(^|[\s(\"'`])--[a-zA-Z]", node.value)
            assert not names_a_flag or any(one in node.value for one in quoted_commands), node.value


@pytest.mark.parametrize("path", COMMANDS, ids=ids)
def test_a_file_directly_in_utils_is_a_command(path: Path) -> None:
    assert 'if __name__ == "__main__":' in path.read_text()


def test_every_room_says_what_is_in_it() -> None:
    for folder in (path.parent for path in LIBRARY if path.parent.parent.name == "utils"):
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))

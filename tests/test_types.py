"""Types by mypy: of the repository, and in a user's file. As a test it runs beside the others on another core."""

import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY

USER = """
import numpy as np
from utils.segmentation import Segmented, Segmenter

segmenter = Segmenter("model.pt", device="cpu")
found: Segmented = segmenter("scan.nii.gz")
array: np.ndarray = found.array
names: dict[int, str] = segmenter.labels
wrong: int = found.remarks
"""


def errors(*files: str) -> list[str]:
    """What mypy finds in the whole repository, or in some files."""
    command = [sys.executable, "-m", "mypy", *files]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert done.returncode == bool(found), done.stdout + done.stderr
    return found


def test_the_repository_is_typed_and_a_users_file_sees_it(tmp_path: Path) -> None:
    assert errors() == []
    (tmp_path / "user.py").write_text(USER)
    (error,) = errors(str(tmp_path / "user.py"))
    assert "user.py:9: error: Incompatible types in assignment" in error

"""Hypothesis changes the bytes of files of each format: a volume comes out, or one line that names the file."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.io.series import write_series
from tests.io.volumes import AFFINE, VOXELS, save_with_simpleitk
from utils.io.find_scans import find_scans
from utils.io.reader import read_scan
from utils.io.scan import Volume
from utils.system.errors import InputError

HEADERS = {".nii": 352, ".nii.gz": 352, ".nrrd": 500, ".mha": 400, ".dcm": 1400}  # bytes that are changed, at most
# numbers that headers shouldn't have, as they lie in a file
EXTREMES = [np.array(value, kind).tobytes() for kind in ("<i2", "<i4", "<f4", "<f8") for value in (0, -1, 2**15 - 1)]
EXTREMES += [np.array(value, kind).tobytes() for kind in ("<f4", "<f8") for value in (np.nan, np.inf, 1e30, -1e-30)]
TEXTS = [b"%s%n", b"/etc/passwd", b"\n", b"\0", b"-1", b"999999999999", b"nan", b"\xff", b"LIST", b" ", b"1e999"]

change = st.tuples(st.floats(0, 1), st.sampled_from([*EXTREMES, *TEXTS]) | st.binary(min_size=1, max_size=8))
changes = st.lists(change, min_size=1, max_size=4)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The content of a sound file of each format, unpacked."""
    folder = tmp_path_factory.mktemp("sound")
    nib.save(nib.Nifti1Image(VOXELS, AFFINE), folder / "scan.nii")
    files = {".nii": folder / "scan.nii", ".nii.gz": folder / "scan.nii"}
    files |= {ending: save_with_simpleitk(folder / f"scan{ending}") for ending in (".nrrd", ".mha")}
    write_series(folder / "series", VOXELS[..., :1], AFFINE)
    files[".dcm"] = next((folder / "series").iterdir())
    return {ending: path.read_bytes() for ending, path in files.items()}


def read(folder: Path) -> Volume | None:
    """The volume of the only scan in a folder, or None if it is refused in one line."""
    found = find_scans([str(folder)], 1)
    for fault in found.faults.values():
        assert str(folder) in fault
        assert "\n" not in fault
    for scan in found.scans:
        try:
            return read_scan(scan, 1)
        except InputError as error:
            fault = str(error)
        assert str(folder) in fault
        assert len(fault.splitlines()) == 1
    return None


@pytest.mark.parametrize("ending", HEADERS)
@settings(
    max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(changes=changes, cut=st.none() | st.floats(0, 1), insert=st.booleans())
def test_a_changed_file_is_read_or_refused(
    ending: str,
    sound: dict[str, bytes],
    tmp_path: Path,
    changes: list[tuple[float, bytes]],
    cut: float | None,
    insert: bool,
) -> None:
    content = bytearray(sound[ending])
    for place, new in changes:
        at = int(place * min(HEADERS[ending], len(content)))
        content[at : at + (0 if insert else len(new))] = new
    if cut is not None:
        del content[int(cut * len(content)) :]
    path = tmp_path / f"scan{ending}"
    path.write_bytes(gzip.compress(bytes(content)) if ending == ".nii.gz" else bytes(content))
    volume = read(tmp_path)
    if volume is not None:
        assert np.isfinite([volume.voxels.min(), volume.voxels.max()]).all()
        assert np.isfinite(volume.affine).all()
        assert abs(np.linalg.det(volume.affine[:3, :3])) > 0
        assert volume.voxels.ndim == 4


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=600), start=st.sampled_from([b"", b"NRRD0004\n", b"NDims = 3\n", bytes(128) + b"DICM"]))
def test_any_bytes_at_all(tmp_path: Path, data: bytes, start: bytes) -> None:
    for ending in (".nii", ".nrrd", ".mha", ""):
        path = tmp_path / f"scan{ending}"
        path.write_bytes(start + data)
        read(tmp_path)
        path.unlink()

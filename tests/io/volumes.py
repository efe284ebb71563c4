"""A small oblique volume in files of many kinds, and how to spoil them."""

import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from tests.io.series import phantom
from utils.io.reader import read_scan
from utils.io.scan import Scan, Volume
from utils.system.errors import InputError

# a rotation whose columns (2, 2, -1) / 3, (-1, 2, 2) / 3 and (2, -1, 2) / 3 are times 0.9, 1.2 and 3 mm
SPACING = (0.9, 1.2, 3.0)
ROTATION = np.array([[2, -1, 2], [2, 2, -1], [-1, 2, 2]]) / 3
ORIGIN = (-10.0, 20.0, 5.0)
AFFINE = np.array([[0.6, -0.4, 2, -10], [0.6, 0.8, -1, 20], [-0.3, 0.8, 2, 5], [0, 0, 0, 1]])
VOXELS = phantom((6, 5, 4))
NO_VOLUME = "is no volume: neither NIfTI, DICOM, nor another file that SimpleITK reads."
CUT = "is cut off or damaged"


def read(*paths: Path, in_channels: int = 1) -> Volume:
    return read_scan(Scan("scan", paths, None), in_channels)


def fault(*paths: Path, in_channels: int = 1) -> str:
    """What is said of files that can't be read; one line, which names one of them."""
    with pytest.raises(InputError) as error:
        read(*paths, in_channels=in_channels)
    return one_line(str(error.value), *paths)


def one_line(message: str, *paths: Path) -> str:
    assert message.splitlines() == [message]
    assert any(message.startswith(f"{path}: ") for path in paths)
    return message


def save(path: Path, voxels: np.ndarray = VOXELS, affine: np.ndarray | None = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def image(voxels: np.ndarray = VOXELS, is_vector: bool = False) -> sitk.Image:
    """The same volume for SimpleITK, whose x and y run the other way."""
    made = sitk.GetImageFromArray(np.moveaxis(voxels, (0, 2), (2, 0)), isVector=is_vector)
    made.SetSpacing(SPACING)
    made.SetDirection((np.diag([-1, -1, 1]) @ ROTATION).ravel().tolist())
    made.SetOrigin((10.0, -20.0, 5.0))
    return made


def save_with_simpleitk(path: Path, packed: bool = False) -> Path:
    sitk.WriteImage(image(), str(path), useCompression=packed)
    return path


def patch(path: Path, place: int, kind: str, *values: float) -> Path:
    """Write values into a file by hand."""
    content = bytearray(path.read_bytes())
    struct.pack_into(f"<{len(values)}{kind}", content, place, *values)
    path.write_bytes(content)
    return path


def replace(path: Path, old: bytes, new: bytes) -> Path:
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))
    return path


def cut(path: Path, size: int) -> Path:
    """Keep some bytes of a file, or lose some for a negative number."""
    path.write_bytes(path.read_bytes()[:size])
    return path


def text(folder: Path, name: str = "scan.nii.gz", content: bytes = b"hello") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def assert_is_the_phantom(volume: Volume) -> None:
    np.testing.assert_array_equal(volume.voxels, VOXELS[None])
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)
    assert volume.shape == (6, 5, 4)
    np.testing.assert_allclose(volume.spacing, SPACING, rtol=1e-6)
    assert volume.voxels.dtype == np.int16
    assert (list(volume.datasets), volume.remarks) == ([], [])


def assert_fault(path: Path, words: str) -> None:
    """Check that a file can't be read, and that the message has some words and isn't an error about an error."""
    message = fault(path)
    assert words in message
    assert message.count(str(path)) == 1 or "bytes from" in message

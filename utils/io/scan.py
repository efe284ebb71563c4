"""One scan: its files, and its voxels on their own grid."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from utils.system.errors import InputError, size_text
from utils.system.files import open_regular
from utils.system.hardware import available_memory
from utils.system.text import printable

BEST_DEFLATE = 1032  # a packed file holds at most this many times its own bytes
IGNORED = -1  # what a label map that was read has where nobody judged the voxel
ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".hdr.gz", ".hdr", ".img.gz", ".img", ".dcm")
# of volumes and archives that aren't read
OTHER_ENDINGS = dict.fromkeys((".mgz", ".mgh"), "Convert it to NIfTI.") | dict.fromkeys(
    (".nii.bz2", ".nii.zst", ".nii.xz", ".zip", ".tar", ".tar.gz", ".tgz"), "Unpack it."
)


@dataclass(frozen=True)
class Scan:
    """One entry of a data list, its paths absolute.

    Attributes:
        name: what tables and results call it, such as ``img0035``. It is made :func:`printable`.
        image: its file, or one file for each channel, or the files of a DICOM series. In the folder of a series there
            may also be files that are no slices, such as a DICOMDIR.
        label: the file of its label map, where it has one.
        is_series: whether it is a DICOM series.
        not_annotated: classes that nobody drew in it. Its label has background where they are.
        ignore: the value of its label's voxels that nobody judged, where there may be some.
        structures: for a label that is a DICOM file, the names that each class may have there; none for value 0.
    """

    name: str
    image: tuple[Path, ...]
    label: Path | None
    is_series: bool = False
    not_annotated: tuple[int, ...] = ()
    ignore: int | None = None
    structures: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", printable(self.name))

    @property
    def path(self) -> Path:
        """What messages and records call the image: its first file, or the folder of a series."""
        return self.image[0].parent if self.is_series else self.image[0]


@dataclass(frozen=True)
class Volume:
    """A scan on its own grid.

    Attributes:
        voxels: (C, X, Y, Z), with the values and the type of the file.
        affine: (4, 4), from voxel indices to mm; x runs to the Right, y to Anterior, z to Superior.
        file_shape: (X, Y, Z) and the further dimensions that the file has.
        header: of the NIfTI file, whose codes and units a mask repeats; None for other formats.
        datasets: headers of the DICOM slices, in the order of z; empty for other formats.
        remarks: what was left out or corrected when it was read, a sentence each.
    """

    voxels: np.ndarray
    affine: np.ndarray
    file_shape: tuple[int, ...]
    header: nib.Nifti1Header | None = None
    datasets: Sequence[Any] = ()
    remarks: list[str] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(X, Y, Z)."""
        x, y, z = self.voxels.shape[1:]
        return x, y, z

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along each axis of the array."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def voxel_ml(self) -> float:
        """The volume of a voxel in ml."""
        return abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000


def is_dicom(path: Path) -> bool:
    """Whether a file's content is DICOM, whatever its name."""
    with open_regular(path) as file:
        return file.read(132)[128:] == b"DICM"


def remedy(path: Path) -> str:
    """What makes a scan of a file whose ending is known but not read; empty for other files."""
    return next((todo for ending, todo in OTHER_ENDINGS.items() if path.name.lower().endswith(ending)), "")


def volume_from_array(
    path: Path, voxels: np.ndarray, affine: np.ndarray, header: nib.Nifti1Header | None = None
) -> Volume:
    """The volume of a file's array.

    Args:
        voxels: (X, Y, Z), or (X, Y, Z, C), or either with further dimensions of length one behind.

    Raises:
        InputError: if its shape or type is another.
    """
    shape = voxels.shape
    if voxels.dtype.kind not in "iufb":
        raise InputError(
            f"{path}: has colours or other compound voxels ({voxels.dtype}). Convert it to one number each."
        )
    if len(shape) < 3 or max(shape[4:], default=1) > 1 or min(shape) < 1:
        raise InputError(f"{path}: has the shape {size_text(shape)}; a scan is 3D, or 4D with its channels last.")
    voxels = voxels.astype(voxels.dtype.newbyteorder("="), copy=False)  # torch takes the machine's byte order alone
    channels = voxels.reshape(*shape[:3], -1)  # (X, Y, Z, C)
    return Volume(np.moveaxis(channels, -1, 0), np.asarray(affine, float), shape, header)


def memory_error(path: Path, size: int) -> InputError:
    """The error about a file whose voxels, by its header, take more memory than there is.

    Args:
        size: bytes of the voxels.
    """
    free = available_memory()
    return InputError(
        f"{path}: says that its voxels take {size / 1e9:.3g} GB, and this machine has {free / 1e9:.3g} GB free. Mend "
        "its header if it is wrong, or take a larger machine."
    )


def stream_error(path: Path, found: int, needed: int) -> InputError:
    """The error about a packed file that holds more or less than its header says.

    Args:
        found: bytes that it holds; of one that holds more, where counting stopped.
        needed: bytes that its header says.
    """
    if found < needed:
        return InputError(
            f"{path}: is cut off or damaged ({found} of {needed} bytes of its voxels are there). Copy it again."
        )
    return InputError(f"{path}: holds more than the {needed} bytes of voxels that its header says. Convert it again.")


def without_endings(name: str) -> str:
    """A volume's name without ``.nii.gz`` and the like, in small letters or capitals."""
    ending = next((ending for ending in ENDINGS if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)] if ending != name.lower() else name

"""One scan: its files, and its voxels on their own grid."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np


@dataclass(frozen=True)
class Volume:
    """A scan on its own grid.

    Attributes:
        voxels: (C, X, Y, Z), as they were stored.
        affine: (4, 4), from voxel indices to mm; x runs to the Right, y to Anterior, z to Superior.
        file_shape: (X, Y, Z) and the dimensions of length one behind them that the file has.
        header: of the NIfTI file, whose codes and units a mask repeats; None for other kinds.
        datasets: of the DICOM slices, in the order of z; empty for other kinds.
        remarks: what was left out or mended when it was read.
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


ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".hdr.gz", ".hdr", ".img.gz", ".img", ".dcm")


@dataclass(frozen=True)
class Scan:
    """One entry of a data list, its paths absolute.

    Attributes:
        name: what tables call it, such as ``img0035``.
        image: its file, or one file for each channel, or the slices of a DICOM series.
        label: the file of its label map, where it has one.
        is_series: whether it is a DICOM series.
    """

    name: str
    image: tuple[Path, ...]
    label: Path | None
    is_series: bool = False


def without_endings(name: str) -> str:
    """A volume's name without ``.nii.gz`` and the like."""
    ending = next((ending for ending in ENDINGS if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)] if ending != name.lower() else name

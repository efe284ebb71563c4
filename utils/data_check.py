"""Reads every scan before training starts, so that a fault in the data shows now and not after a night."""

import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, SpatialImage

from utils.data_list import Scan
from utils.distributed import Process
from utils.errors import InputError, brief, size_text
from utils.preprocessing import Preprocessing, window_fault

GRID_TOLERANCE_MM = 1e-2


def check_scans(
    scans: Sequence[Scan], in_channels: int, out_channels: int, settings: Preprocessing, workers: int, process: Process
) -> None:
    """Check each scan's files.

    They have to open, to lie on one 3D grid, to have finite voxels, of which some are inside the intensity window, and
    labels 0 … out_channels - 1.

    Raises:
        InputError: listing every fault of every file.
    """
    unique = list(dict.fromkeys(scans))
    check = partial(scan_faults, in_channels=in_channels, out_channels=out_channels, settings=settings)
    results = process.stop.map_in_threads(check, unique, workers)
    faults = [fault for scan in process.bar(results, "checking scans", len(unique)) for fault in scan]
    if faults:
        raise InputError(
            f"{len(faults)} fault{'s' * (len(faults) > 1)} in the data; nothing was started.\n       "
            + "\n       ".join(faults)
        )


def scan_faults(scan: Scan, in_channels: int, out_channels: int, settings: Preprocessing) -> list[str]:
    """What is wrong with a scan, each fault in a sentence that names its file; none if it is sound."""
    faults: list[str] = []
    opened = [(path, image) for path in scan.image if (image := open_volume(path, faults)) is not None]
    channels = 0
    extremes: list[float] = []
    for path, image in opened:
        shape = image.shape
        if len(shape) not in (3, 4):
            faults.append(f"{path}: has {len(shape)} dimensions; a scan has 3, or 4 with its channels last.")
            continue
        channels += shape[3] if len(shape) == 4 else 1
        faults += affine_faults(path, image.affine)
        unit = unit_of(image.header)
        if unit in ("meter", "micron"):
            faults.append(f"{path}: its header measures in {unit}s; training takes mm. Convert it.")
        voxels = read_voxels(path, image, faults)
        if voxels is None:
            continue
        low, high = voxels.min(), voxels.max()  # NaN of any NaN
        if not np.isfinite([low, high]).all():
            faults.append(f"{path}: has NaN or infinite voxels. Replace them before training.")
        elif low == high:
            faults.append(f"{path}: every voxel is {low:g}; there is nothing to see in it.")
        else:
            extremes += [low, high]
    if len(extremes) == 2 * len(scan.image):
        fault = window_fault(scan.image[0], min(extremes), max(extremes), settings)
        faults += [fault] if fault is not None else []
    if not faults and channels != in_channels:
        shapes = ", ".join(size_text(image.shape) for _, image in opened)
        faults.append(
            f"{scan.image[0]}: channels: {channels} (shape {shapes}), but --in_channels is {in_channels}. "
            f"Give --in_channels {channels}, or a scan that has {in_channels}."
        )
    if any(len(image.shape) < 3 for _, image in opened):
        return faults
    for path, image in opened[1:]:
        faults += _faults_between(path, image, *opened[0])
    if scan.label is not None and (label := open_volume(scan.label, faults)) is not None:
        if len(label.shape) != 3 and label.shape[3:] != (1,):
            return [
                *faults,
                f"{scan.label}: has shape {size_text(label.shape)}; a label is 3D, one value for each voxel.",
            ]
        if opened:
            faults += _faults_between(scan.label, label, *opened[0])
        if (values := read_voxels(scan.label, label, faults)) is not None:
            faults += _label_faults(scan.label, values, out_channels)
    return faults


def open_volume(path: Path, faults: list[str]) -> SpatialImage | None:
    """The volume of a file, or None and one more entry in ``faults``."""
    if not path.is_file():
        faults.append(f"{path}: no such file. Mend the data list or --data_dir.")
        return None
    try:
        image = nib.load(path)
    except (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, zlib.error) as error:
        faults.append(f"{path}: can't be opened as NIfTI ({brief(error)}). Copy or convert it again.")
        return None
    if not isinstance(image, SpatialImage):
        faults.append(f"{path}: holds no volume.")
        return None
    return image


def read_voxels(path: Path, image: SpatialImage, faults: list[str]) -> np.ndarray | None:
    """All voxels of an opened volume, or None and one more entry in ``faults``."""
    try:
        voxels = np.asanyarray(image.dataobj)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        faults.append(f"{path}: is cut off or damaged ({brief(error)}). Copy it again.")
        return None
    if voxels.dtype.kind not in "iufb":
        faults.append(f"{path}: has voxels of type {voxels.dtype}, not one number each. Convert it to a scalar volume.")
        return None
    if voxels.size == 0:
        faults.append(f"{path}: has no voxels (shape {size_text(voxels.shape)}).")
        return None
    return voxels


def unit_of(header: Any) -> str:
    """The unit of length of a NIfTI header; of one that names none that there is, ``unknown``."""
    try:
        return str(header.get_xyzt_units()[0])
    except (AttributeError, KeyError):  # of Analyze, and of a number that stands for no unit
        return "unknown"


def affine_faults(path: Path, affine: np.ndarray | None) -> list[str]:
    """What is wrong with the affine (4, 4) of a file, in a sentence; none if it can place voxels in space."""
    if affine is None or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        return [f"{path}: its affine can't place voxels in space: a voxel size is 0 or missing. Mend its header."]
    return []


def grid_faults(
    path: Path,
    shape: Sequence[int],
    affine: np.ndarray,
    other_path: Path,
    other_shape: Sequence[int],
    other_affine: np.ndarray,
) -> list[str]:
    """How the grid (X, Y, Z) of a file differs from that of another, in a sentence; none if it doesn't."""
    if tuple(shape) != tuple(other_shape):
        return [
            f"{path}: has shape {size_text(shape)}, but {other_path.name} has "
            f"{size_text(other_shape)}. Both must lie on one grid; resample one to the other."
        ]
    corners = np.array([[x, y, z, 1] for x in (0, shape[0]) for y in (0, shape[1]) for z in (0, shape[2])])
    distance = np.abs(corners @ (affine - other_affine).T).max()
    if not distance <= GRID_TOLERANCE_MM:
        return [
            f"{path}: lies up to {distance:.3g} mm away from {other_path.name} (their affines differ). "
            "Both must lie on one grid; resample one to the other."
        ]
    return []


def _faults_between(path: Path, image: SpatialImage, other_path: Path, other: SpatialImage) -> list[str]:
    if image.affine is None or other.affine is None:
        return []  # its own fault is named already
    return grid_faults(path, image.shape[:3], image.affine, other_path, other.shape[:3], other.affine)


def _label_faults(path: Path, values: np.ndarray, out_channels: int) -> list[str]:
    if not np.isfinite(values).all():
        return [f"{path}: has NaN or infinite values; labels are 0 … {out_channels - 1}."]
    lowest, highest = values.min(), values.max()
    whole = values.dtype.kind in "iub" or bool((values == np.round(values)).all())
    if whole and lowest >= 0 and highest < out_channels:
        return []
    found = np.unique(values)
    shown = ", ".join(f"{value:g}" for value in found[:20]) + (", …" if len(found) > 20 else "")
    advice = f"Give --out_channels {int(highest) + 1}, or remap" if whole and lowest >= 0 else "Remap"
    return [
        f"{path}: has the values {shown}, but --out_channels {out_channels} allows 0 … {out_channels - 1}. "
        f"{advice} the labels."
    ]

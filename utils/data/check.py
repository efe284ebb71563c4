"""Reads every scan before training starts, so that a fault in the data shows now and not after a night."""

import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, SpatialImage

from utils.data.preprocessing import Preprocessing, window_fault
from utils.distributed.process import Process
from utils.io.geometry import affine_faults, grid_faults, unit_of
from utils.io.scan import Scan
from utils.system.errors import InputError, brief, size_text


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

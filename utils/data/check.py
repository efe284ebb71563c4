"""Read every scan before training starts, so that a fault in the data shows now and not after a night."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from utils.data.preprocessing import Preprocessing, intensity_remarks, size_fault, window_fault
from utils.distributed.process import Process
from utils.io.geometry import grid_faults
from utils.io.reader import Part, alignment_faults, channel_fault, content_faults, label_faults, read_file, read_parts
from utils.io.scan import Scan, Volume
from utils.system.errors import InputError
from utils.system.text import one_line


@dataclass
class Findings:
    """What a check found in a scan, a sentence each that names the file.

    Attributes:
        faults: what training can't do with.
        remarks: what a person should know, such as a header that contradicts itself.
    """

    faults: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def check_scans(
    scans: Sequence[Scan], in_channels: int, out_channels: int, settings: Preprocessing, workers: int, process: Process
) -> None:
    """Read each scan as training does, and print a note for each kind of remark.

    Files have to be readable, to lie on one 3D grid, to have finite voxels, of which some are inside the intensity
    window, and labels 0 … out_channels - 1.

    Raises:
        InputError: listing every fault of every file.
    """
    unique = list(dict.fromkeys(scans))
    check = partial(check_scan, in_channels=in_channels, out_channels=out_channels, settings=settings)
    results = process.stop.map_in_threads(check, unique, workers)
    findings = list(process.bar(results, "checking scans", len(unique)))
    require_no_faults(findings)
    for note in summary(remark for found in findings for remark in found.remarks):
        process.say(f"note: {one_line(note)}")


def require_no_faults(findings: Iterable[Findings]) -> None:
    """Check that nothing is wrong with any scan.

    Raises:
        InputError: listing every fault of every file.
    """
    faults = [one_line(fault) for found in findings for fault in found.faults]
    if faults:
        raise InputError(
            f"{len(faults)} fault{'s' * (len(faults) > 1)} in the data; nothing was started.\n       "
            + "\n       ".join(faults)
        )


def check_scan(scan: Scan, in_channels: int, out_channels: int, settings: Preprocessing) -> Findings:
    """What is wrong with the files of a scan, and what is remarkable."""
    found = Findings()
    parts = read_parts(scan, found.faults)
    complete = not found.faults
    found.remarks += [remark for _, volume in parts for remark in volume.remarks]
    _check_intensities(parts, settings if complete else None, found)
    if not found.faults:
        path, first = parts[0]
        volumes = sum(len(volume.voxels) for _, volume in parts) + 1  # and the label
        fault = size_fault(path, first.shape, first.affine, settings, volumes)
        found.faults += [fault] if fault is not None else []
        found.remarks += [text for path, volume in parts for text in intensity_remarks(path, volume.voxels, settings)]
    if not found.faults and (fault := channel_fault(parts, in_channels)) is not None:
        channels = sum(len(volume.voxels) for _, volume in parts)
        found.faults.append(f"{fault} Give `in_channels` {channels}, or a scan that has {in_channels}.")
    found.faults += alignment_faults(parts)
    if scan.label is not None:
        _check_label(scan, parts, out_channels, found)
    return found


def _check_intensities(parts: Sequence[Part], settings: Preprocessing | None, found: Findings) -> None:
    """Check the voxels of each channel, and with ``settings`` that the window shows some of them."""
    extremes = check_voxels(parts, found)
    if settings is not None and len(extremes) == 2 * len(parts):
        fault = window_fault(parts[0][0], min(extremes), max(extremes), settings)
        found.faults += [fault] if fault is not None else []


def check_voxels(parts: Sequence[Part], found: Findings) -> list[float]:
    """Check the place and the voxels of each file.

    Returns:
        The lowest and the highest voxel of each that has sound ones.
    """
    extremes: list[float] = []
    for path, volume in parts:
        found.faults += content_faults(path, volume)
        low, high = volume.voxels.min(), volume.voxels.max()
        if not np.isfinite([low, high]).all():
            continue
        if low == high:
            found.faults.append(f"{path}: every voxel is {low:g}; there is nothing to see in it.")
        else:
            extremes += [low, high]
    return extremes


def _check_label(scan: Scan, parts: Sequence[Part], out_channels: int, found: Findings) -> None:
    assert scan.label is not None
    label = read_checked_label(scan.label, parts, found)
    if label is None:
        return
    for fault in label_faults(scan.label, label, out_channels):
        if not label_faults(scan.label, label) and label.voxels.min() >= 0:  # whole numbers, but more of them
            fault = f"{fault.removesuffix('.')}, or give `out_channels` {round(float(label.voxels.max())) + 1}."
        found.faults.append(fault)


def read_checked_label(file: Path, parts: Sequence[Part], found: Findings) -> Volume | None:
    """The volume of a label's file, compared with the image's files; None if it can't be read.

    Its values may be any.
    """
    try:
        label = read_file(file)
    except InputError as error:
        found.faults.append(str(error))
        return None
    found.remarks += label.remarks
    if parts:
        path, image = parts[0]
        found.faults += grid_faults(file, label.shape, label.affine, path, image.shape, image.affine)
    if any(_same_voxels(channel, label) for _, volume in parts for channel in volume.voxels):
        found.remarks.append(f"{file}: has the voxels of its image: nothing to learn. Is it the label map?")
    return label


def _same_voxels(channel: np.ndarray, label: Volume) -> bool:
    """Whether a channel (X, Y, Z) is a label, compared slice by slice: the first ones mostly tell."""
    same_shape = label.voxels.shape == (1, *channel.shape)
    return same_shape and all(map(np.array_equal, channel.T, label.voxels[0].T))


def summary(remarks: Iterable[str]) -> list[str]:
    """The remarks, those of one text about several files as one."""
    paths: dict[str, list[str]] = {}
    for remark in remarks:
        path, _, text = remark.partition(": ")
        paths.setdefault(text, []).append(path)
    return [
        f"{files[0]}{f' and {len(files) - 1} more' if len(files) > 1 else ''}: {text}" for text, files in paths.items()
    ]

"""Read every scan before training starts, so that a fault in the data shows now and not after a night."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from utils.data.checked_scans import Checked, CheckedScans
from utils.data.preprocessing import Preprocessing, scan_remarks, size_fault, window_fault
from utils.distributed.process import Process
from utils.io.geometry import grid_faults
from utils.io.reader import (
    Part,
    alignment_faults,
    channel_fault,
    content_faults,
    has_value,
    label_faults,
    read_file,
    read_label_file,
    read_parts,
)
from utils.io.scan import Scan, Volume
from utils.system.errors import InputError
from utils.system.text import one_line

SAMPLE = 4096  # labelled voxels of a scan that are kept
OUTLIERS = 0.005  # share of voxels at each end that a range of values leaves out
MOST_CLIPPED = 0.5


@dataclass(frozen=True)
class LabelledVoxels:
    """The labelled voxels of a scan, in all its channels.

    Attributes:
        count: how many there are.
        clipped: how many of them lie outside the CT window.
        sample: the values of at most :data:`SAMPLE` of them.
    """

    count: int
    clipped: int
    sample: np.ndarray


@dataclass
class Findings:
    """What a check found in a scan, a sentence each that names the file.

    Attributes:
        faults: what training can't do with.
        remarks: what a person should know, such as a header that contradicts itself.
        labelled: its labelled voxels, if it is sound and a CT window clips it.
    """

    faults: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    labelled: LabelledVoxels | None = None


def check_scans(
    scans: Sequence[Scan],
    in_channels: int,
    out_channels: int,
    settings: Preprocessing,
    workers: int,
    process: Process,
    *,
    labels_in: Path | None = None,
    remembered_in: Path | None = None,
) -> None:
    """Read each scan as training does, and print a note for each kind of remark.

    Files have to be readable, to lie on one 3D grid, to have finite voxels, of which some are inside the intensity
    window, and labels 0 … out_channels - 1. A CT window that clips most of what is labelled is noted.

    Args:
        labels_in: the data list that names the classes, if one does.
        remembered_in: a folder that keeps what was found in sound scans; those whose files are as they were aren't read
            again.

    Raises:
        InputError: listing every fault of every file.
        WriteError: if the folder can't be written.
    """
    unique = list(dict.fromkeys(scans))
    check = partial(
        check_scan, in_channels=in_channels, out_channels=out_channels, settings=settings, labels_in=labels_in
    )

    def read(some: Sequence[Scan]) -> list[Findings]:
        found = list(process.bar(process.stop.map_in_threads(check, some, workers), "checking scans", len(some)))
        require_no_faults(found)
        return found

    if remembered_in is None:
        findings = read(unique)
    else:
        about = {"channels": in_channels, "classes": out_channels, **asdict(settings)}
        findings = _remembered_or_read(unique, CheckedScans(remembered_in, about), read)
    notes = summary(remark for found in findings for remark in found.remarks)
    notes += _window_notes(findings, settings)
    for note in notes:
        process.say(f"note: {one_line(note)}")


def _remembered_or_read(
    scans: Sequence[Scan], checked: CheckedScans, read: Callable[[Sequence[Scan]], list[Findings]]
) -> list[Findings]:
    """What was found in each scan, by an earlier check or now."""
    keys = [checked.key(scan) for scan in scans]  # before they are read, should they change meanwhile
    known = checked.read()
    unread = {key: scan for key, scan in zip(keys, scans, strict=True) if key not in known}
    fresh = dict(zip(unread, read(list(unread.values())), strict=True))
    for key, found in fresh.items():
        count, clipped = (0, 0) if found.labelled is None else (found.labelled.count, found.labelled.clipped)
        known[key] = {"remarks": found.remarks, "labelled": count, "clipped": clipped}
    if fresh:
        checked.write(known)
    findings = [fresh[key] if key in fresh else _remembered(known[key]) for key in keys]
    # a note about the window tells of the voxels' values, which aren't remembered
    return read(scans) if len(fresh) < len(scans) and _clips_most(findings) else findings


def _remembered(one: Checked) -> Findings:
    return Findings([], one["remarks"], LabelledVoxels(one["labelled"], one["clipped"], np.empty(0)))


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


def check_scan(
    scan: Scan, in_channels: int, out_channels: int, settings: Preprocessing, labels_in: Path | None = None
) -> Findings:
    """What is wrong with the files of a scan, and what is remarkable.

    Args:
        labels_in: the data list that names the classes, if one does.
    """
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
        for path, volume in parts:
            found.remarks += scan_remarks(path, volume.voxels, volume.affine, settings)
    if not found.faults and (fault := channel_fault(parts, in_channels)) is not None:
        channels = sum(len(volume.voxels) for _, volume in parts)
        found.faults.append(f"{fault} Give `in_channels` {channels}, or a scan that has {in_channels}.")
    found.faults += alignment_faults(parts)
    if scan.label is not None:
        label = _check_label(scan, parts, out_channels, labels_in, found)
        if label is not None and not found.faults and settings.intensity == "ct":
            found.labelled = _labelled_voxels(parts, label, scan.ignore, settings)
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


def _check_label(
    scan: Scan, parts: Sequence[Part], out_channels: int, labels_in: Path | None, found: Findings
) -> Volume | None:
    """Check the label of a scan, and return it if it can be read."""
    assert scan.label is not None
    label = read_checked_label(scan, parts, found)
    if label is None:
        return None
    for fault in label_faults(scan.label, label, out_channels, scan.ignore):
        if not label_faults(scan.label, label) and label.voxels.min() >= 0:  # whole numbers, but more of them
            classes = round(float(label.voxels.max(where=label.voxels != scan.ignore, initial=0))) + 1
            named = f'name all {classes}, the background included, under "labels" in {labels_in}'
            other = f"give `out_channels` {classes}" if labels_in is None else named
            fault = f"{fault.removesuffix('.')}, or {other}."
        found.faults.append(fault)
    found.faults += unjudged_faults(scan, label)
    found.faults += _drawn_though_not_annotated(scan, label)
    return label


def unjudged_faults(scan: Scan, label: Volume) -> list[str]:
    """That a label has no voxel but those that nobody judged, in a sentence; none if it has others."""
    if scan.ignore is None or not has_value(label.voxels, scan.ignore).all():
        return []
    return [
        f"{scan.label}: every voxel is {scan.ignore}, which the data list calls ignored; there is nothing to learn. "
        "Leave the scan out."
    ]


def _drawn_though_not_annotated(scan: Scan, label: Volume) -> list[str]:
    """That a label has voxels of structures that the data list calls not annotated, in a sentence for each."""
    counts = {value: int(has_value(label.voxels, value).sum()) for value in scan.not_annotated}
    return [
        f"{scan.label}: has {count} voxels of {value}, which the data list calls not annotated there. Take it out of "
        'the entry\'s "not_annotated", or remove the voxels.'
        for value, count in counts.items()
        if count
    ]


def _labelled_voxels(
    parts: Sequence[Part], label: Volume, ignore: int | None, settings: Preprocessing
) -> LabelledVoxels:
    """What the CT window does to the voxels with a label above 0. Image and label have to be of one shape.

    Args:
        ignore: the value of voxels that nobody judged, which have no label.
    """
    least = 1 if label.voxels.dtype.kind in "iub" else 0.5  # fractions lie near whole numbers
    where = least <= label.voxels[0].T  # transposed, as most files have voxels in memory: x fastest
    if ignore is not None:
        where &= ~has_value(label.voxels[0].T, ignore)
    values = np.concatenate([channel.T[where] for _, volume in parts for channel in volume.voxels])
    clipped = int(np.count_nonzero((values < settings.a_min) | (values > settings.a_max)))
    sample = values
    if len(values) > SAMPLE:  # drawn: every n-th would be one column of a box that is n voxels wide
        sample = values[np.random.default_rng(0).integers(len(values), size=SAMPLE)]
    return LabelledVoxels(len(values), clipped, sample.astype(np.float64))


def _clips_most(findings: Sequence[Findings]) -> bool:
    """Whether the CT window clips most of what is labelled in all scans together."""
    labelled = [found.labelled for found in findings if found.labelled is not None]
    return sum(scan.clipped for scan in labelled) > MOST_CLIPPED * sum(scan.count for scan in labelled)


def _window_notes(findings: Sequence[Findings], settings: Preprocessing) -> list[str]:
    """A note if the CT window clips most of what is labelled in all scans together."""
    if not _clips_most(findings):
        return []
    scans = [found.labelled for found in findings if found.labelled is not None]
    count, clipped = sum(scan.count for scan in scans), sum(scan.clipped for scan in scans)
    values = np.concatenate([scan.sample for scan in scans])
    weights = np.concatenate([np.full(len(scan.sample), scan.count / max(len(scan.sample), 1)) for scan in scans])
    low, high = np.quantile(values, [OUTLIERS, 1 - OUTLIERS], weights=weights, method="inverted_cdf")
    return [
        f"the window of `a_min` {settings.a_min:g} to `a_max` {settings.a_max:g} clips {clipped / count:.0%} of the "
        f"labelled voxels, whose values are {low:g} to {high:g} ({100 * OUTLIERS:g} to {100 - 100 * OUTLIERS:g} "
        "percentile). Give `intensity` zscore for MR, or an `a_min` and `a_max` that show them; python -m utils.plan "
        "chooses them"
    ]


def read_checked_label(scan: Scan, parts: Sequence[Part], found: Findings) -> Volume | None:
    """The volume of a scan's label, compared with the image's files; None if it can't be read.

    Its values may be any.
    """
    file = scan.label
    assert file is not None
    try:
        if parts:
            label = read_label_file(file, *parts[0], scan.structures, scan.not_annotated)
        elif scan.structures:
            return None  # a DICOM label is drawn on its image
        else:
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

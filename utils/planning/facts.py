"""The facts about one scan, measured on its own grid."""

from collections.abc import Iterable, Sequence

import numpy as np
from nibabel.orientations import aff2axcodes, io_orientation
from scipy import ndimage

from utils.data.check import Findings, check_voxels, read_checked_label, require_no_faults, unjudged_faults
from utils.data.preprocessing import Preprocessing, length_fault, size_fault
from utils.io.reader import LABELS, Part, alignment_faults, label_faults, read_parts
from utils.io.scan import IGNORED, Scan
from utils.planning.fingerprint import AIR, QUANTILES, ScanFacts, StructureFacts
from utils.system.text import one_line

DIGITS = 6  # significant ones, so that the last bit of a sum shows nowhere
SAMPLE = 1_000_000  # voxels that quantiles are taken of; a larger scan's are drawn at random, always the same ones
LARGEST_GRID = 1_000_000  # points on which a thickness is measured, a quarter of a second's work
MOST_LABELS = 1000  # the finest atlases of the brain have some 200

Numbers = tuple[float, float, float]


def examine(scan: Scan) -> tuple[ScanFacts | None, Findings]:
    """The facts about a labelled scan, None if its files have faults, and what its files are remarkable for."""
    assert scan.label is not None
    found = Findings()
    parts = read_parts(scan, found.faults)
    found.remarks += [remark for _, volume in parts for remark in volume.remarks]
    check_voxels(parts, found)
    found.faults += alignment_faults(parts)
    if parts and not found.faults:
        path, first = parts[0]
        fault = length_fault(path, first.shape, first.affine)
        found.faults += [fault] if fault is not None else []
    label = read_checked_label(scan, parts, found)
    if label is not None:
        found.faults += label_faults(scan.label, label, LABELS.max + 1, scan.ignore)
        found.faults += unjudged_faults(scan, label)
    if found.faults or label is None:
        return None, found
    values = label.voxels[0]
    values = (np.rint(values) if values.dtype.kind == "f" else values).astype(np.int16)
    if scan.ignore is not None:
        values[values == scan.ignore] = IGNORED
    boxes = _boxes(values)
    if len(boxes) > MOST_LABELS:
        found.faults.append(f"{scan.label}: has {len(boxes)} different labels. Is it an image? Give the label map.")
        return None, found
    return _measure(scan, parts, values, boxes, found.remarks), found


def require_sizes(scans: Iterable[Scan], facts: Iterable[ScanFacts], settings: Preprocessing) -> None:
    """Check that scans with these facts, which belong together by name, can be resampled as ``main.py`` will.

    Raises:
        InputError: as there, listing those that can't.
    """
    known = {one.name: one for one in facts}
    found = []
    for scan in scans:
        one = known[scan.name]
        fault = size_fault(scan.path, one.shape, np.diag([*one.spacing, 1]), settings, one.channels + 1)
        found.append(Findings(faults=[] if fault is None else [fault]))
    require_no_faults(found)


class _Axes:
    """Turns numbers along the axes of a file's array to x, y, z.

    Only results are turned, and no voxels, since a turned array is slower to go through.
    """

    def __init__(self, affine: np.ndarray) -> None:
        to, direction = io_orientation(affine).T
        self.order = np.argsort(to)  # the array's axis that runs along x, y and z
        self.mirrored = direction[self.order] < 0

    def turn(self, numbers: Sequence[float] | np.ndarray) -> Numbers:
        x, y, z = (rounded(number) for number in np.asarray(numbers, float)[self.order])
        return x, y, z

    def turn_place(self, place: np.ndarray) -> Numbers:
        """Of a place from 0 to 1 along each axis."""
        turned = place[self.order]
        x, y, z = (rounded(number) for number in np.where(self.mirrored, 1 - turned, turned))
        return x, y, z


def _measure(
    scan: Scan, parts: Sequence[Part], label: np.ndarray, boxes: dict[int, tuple[slice, ...]], remarks: Sequence[str]
) -> ScanFacts:
    volume = parts[0][1]
    channels = [channel for _, part in parts for channel in part.voxels]
    axes = _Axes(volume.affine)
    spacing = np.array(volume.spacing)
    shape = np.array(volume.shape)[axes.order]
    labelled = label > 0
    return ScanFacts(
        name=scan.name,
        shape=(int(shape[0]), int(shape[1]), int(shape[2])),
        spacing=axes.turn(spacing),
        orientation="".join(aff2axcodes(volume.affine)),
        body_mm=axes.turn(_body_shape(channels) * spacing),
        quantiles=tuple(_quantiles(channel.ravel(order="K")) for channel in channels),
        # both arrays transposed: a file's x runs fastest in memory, and numpy goes through the last axis fastest
        labelled_quantiles=tuple(_quantiles(channel.T[labelled.T]) for channel in channels) if boxes else (),
        structures={
            value: _structure(label[box] == value, box, label.shape, spacing, volume.voxel_ml, axes)
            for value, box in boxes.items()
        },
        remarks=tuple(_without_folders(scan, remark) for remark in remarks),
        ignore=scan.ignore,
    )


def _boxes(label: np.ndarray) -> dict[int, tuple[slice, ...]]:
    """The box around each label of a label map (X, Y, Z), by value."""
    boxes = ndimage.find_objects(label.T)
    return {value: box[::-1] for value, box in enumerate(boxes, start=1) if box is not None}


def _body_shape(channels: Sequence[np.ndarray]) -> np.ndarray:
    """Voxels along each axis of the box around the body: voxels above the lowest value, and of a CT above air.

    Preprocessing crops a scan to such a box; for a CT it takes the lower end of the window, which isn't chosen yet.
    """
    lowest = min(channel.min() for channel in channels)
    if max(channel.max() for channel in channels) > AIR:
        lowest = max(lowest, AIR)
    shape = []
    for axis, size in enumerate(channels[0].shape):
        slices = [np.moveaxis(channel, axis, 0) for channel in channels]
        # from both ends, since most scans have something in their first slices already
        first, last = (
            next(place for place in places if any((channel[place] > lowest).any() for channel in slices))
            for places in (range(size), reversed(range(size)))
        )
        shape.append(last - first + 1)
    return np.array(shape)


def _quantiles(values: np.ndarray) -> tuple[float, ...]:
    """QUANTILES + 1 quantiles of some values (N,); the lowest and the highest are exact."""
    drawn = values
    if len(values) > SAMPLE:
        drawn = values[np.random.default_rng(0).integers(0, len(values), SAMPLE)]
    quantiles = np.quantile(drawn.astype(np.float64), np.linspace(0, 1, QUANTILES + 1))
    quantiles[[0, -1]] = values.min(), values.max()
    return tuple(map(rounded, quantiles))


def _structure(
    inside: np.ndarray, box: Sequence[slice], shape: Sequence[int], spacing: np.ndarray, voxel_ml: float, axes: _Axes
) -> StructureFacts:
    """Measure a label.

    Args:
        inside: which voxels of its box it has.
        box: where that lies in a scan of this shape.
    """
    voxels = int(np.count_nonzero(inside))
    starts = np.array([side.start for side in box])
    centre = [
        np.arange(inside.shape[axis]) @ inside.sum(axis=tuple({0, 1, 2} - {axis}), dtype=np.int64) / voxels
        for axis in range(3)
    ]
    return StructureFacts(
        voxels=voxels,
        volume_ml=rounded(voxels * voxel_ml),
        extent_mm=axes.turn(inside.shape * spacing),
        thickness_mm=rounded(_thickness(inside, spacing)),
        # an index is a voxel's centre, half a voxel behind its beginning
        centre=axes.turn_place((starts + centre + 0.5) / shape),
    )


def _thickness(inside: np.ndarray, spacing: np.ndarray) -> float:
    """The diameter in mm of the largest ball inside a structure, which ends where its box (X, Y, Z) ends.

    It is measured on a grid of voxels' centres and corners, so that a plate of n slices is n slices thick, be n odd or
    even. Of a large box only every so many voxels are looked at, those along the finest axis first: the measure is then
    right to about that step.
    """
    steps = np.ones(3, int)
    while np.prod(2 * np.ceil(inside.shape / steps) + 1) > LARGEST_GRID:
        steps[np.argmin(steps * spacing)] += 1
    x, y, z = (slice(step // 2, None, step) if step // 2 < size else slice(None, None, step)
               for step, size in zip(steps, inside.shape, strict=True))  # fmt: skip
    grid = inside[x, y, z]
    for axis in range(3):
        grid = _with_borders(grid, axis)
    distance = ndimage.distance_transform_edt(grid, sampling=steps * spacing / 2)
    # no voxel may be left of a scattered structure, and each is at least as thick as its shortest edge
    return max(2 * float(distance.max()), float(spacing.min()))


def _with_borders(grid: np.ndarray, axis: int) -> np.ndarray:
    """Put a point between any two along an axis, and one at each end; it is inside if both its neighbours are."""
    lines = np.moveaxis(grid, axis, 0)
    result = np.zeros((2 * len(lines) + 1, *lines.shape[1:]), bool)
    result[1::2] = lines
    result[2:-1:2] = lines[:-1] & lines[1:]
    return np.moveaxis(result, 0, axis)


def rounded(number: float) -> float:
    """The number to DIGITS significant digits."""
    return float(f"{number:.{DIGITS}g}")


def _without_folders(scan: Scan, remark: str) -> str:
    """A remark with the names of the scan's files instead of their paths, which differ from machine to machine."""
    for path in (scan.path, *scan.image, scan.label):
        remark = remark.replace(str(path), str(path and path.name))
    return one_line(remark)

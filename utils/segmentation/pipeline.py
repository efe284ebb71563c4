"""Scan after scan: read, predict, write and measure, the three for neighbouring scans at the same time."""

import signal
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation, io_orientation
from scipy import ndimage
from torch import Tensor
from tqdm import tqdm

from utils.data.preprocessing import OnNetworkGrid, to_network_grid, window_fault
from utils.distributed.process import Process
from utils.evaluation.measurements import agreement, measure, number
from utils.evaluation.metrics import dice_per_label
from utils.evaluation.pictures import orthogonal, pixels, save_picture
from utils.inference.scan_grid import class_on_scan_grid, to_scan_grid
from utils.inference.sliding_window import Ensemble, Predictor
from utils.io.dicom_seg import write_segmentation
from utils.io.find_scans import Found
from utils.io.reader import read_label, read_scan
from utils.io.scan import Scan, Volume
from utils.segmentation.job import Order
from utils.segmentation.masks import write_mask, write_probabilities
from utils.segmentation.records import CHANGED, _forget, _made_with, _require_ours, _source, _was_changed, finished
from utils.system.errors import InputError, Stopped, WriteError, brief, lacks_memory
from utils.system.files import fingerprint, make_folder, write_json
from utils.system.signals import StopRequest
from utils.system.threads import SuccessiveThreads


@dataclass(frozen=True)
class Prepared:
    """A scan that was read, and what the network sees of it.

    Attributes:
        made_with: what the record of its results says they were made with and from.
    """

    scan: Scan
    made_with: dict[str, Any]
    volume: Volume
    label: np.ndarray | None
    seen: OnNetworkGrid


@dataclass(frozen=True)
class Segmented:
    """A scan with its mask.

    Attributes:
        mask: (X, Y, Z), on the scan's own grid.
        dice: of each label on the network's grid, where the scan has labels.
        seconds: what predicting took.
    """

    prepared: Prepared
    mask: np.ndarray
    dice: np.ndarray | None
    seconds: float


@dataclass
class Outcome:
    """What came of the scans of one process.

    Attributes:
        records: of those that are finished, by name.
        faults: by scan, why it isn't.
        earlier: how many had been finished before.
    """

    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    earlier: int = 0


def segment_scans(
    scans: Sequence[Scan],
    order: Order,
    ensemble: Ensemble,
    predictor: Predictor,
    process: Process,
    *,
    overwrite: bool,
    read_ahead: bool,
) -> Outcome:
    """Segment scans. One that fails is told and passed over.

    Args:
        overwrite: whether those that were finished before are done again.
        read_ahead: whether a scan is read while the network works on the one before, so that two are in memory.
    """
    outcome = Outcome()
    todo = []
    for scan in scans:
        earlier = None if overwrite else finished(scan, order)
        with _passed_over(outcome, scan):
            if earlier is not None:
                outcome.records[scan.name] = earlier
                if _was_changed(order.mask(scan.name), earlier):
                    tqdm.write(f"note: {order.mask(scan.name)}: {CHANGED}; tables and report tell of what was written")
                continue
            if not overwrite:
                _require_ours(scan, order)
            todo.append(scan)
    outcome.earlier = len(outcome.records)

    def finish(scan: Scan, work: Future[dict[str, Any]]) -> None:
        with _passed_over(outcome, scan):
            record = outcome.records[scan.name] = work.result()
            for remark in record["remarks"]:
                tqdm.write(f"note: {remark}")

    with (
        _kept_at_signals(process.stop),
        process.bar((), "scans", total=len(todo)) as bar,
        SuccessiveThreads() as writer,
    ):
        writing: tuple[Scan, Future[dict[str, Any]]] | None = None
        for scan, reading in _read(todo, order, read_ahead):
            process.stop.raise_if_asked()
            segmented = None
            with _passed_over(outcome, scan):
                segmented = _segmented(reading, order, ensemble, predictor, process)
            bar.update()
            if segmented is None:
                continue
            if writing is not None:
                finish(*writing)  # no more than one scan waits with its voxels
            writing = scan, writer.submit(write_scan, segmented, order)
            del segmented, reading
        if writing is not None:
            finish(*writing)
    return outcome


def _segmented(
    reading: Future[Prepared], order: Order, ensemble: Ensemble, predictor: Predictor, process: Process
) -> Segmented:
    prepared = reading.result()
    start = time.perf_counter()
    probabilities = _predict(prepared, ensemble, predictor, process)
    return segment(prepared, probabilities, time.perf_counter() - start, order)


@contextmanager
def _passed_over(outcome: Outcome, scan: Scan) -> Iterator[None]:
    """Tell what is wrong with a scan, and let the others go on."""
    try:
        yield
    except (InputError, WriteError) as error:
        _note(outcome, scan, str(error))
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        _note(
            outcome, scan, f"{scan.image[0]}: this machine has no memory for it. Free some, or take a larger machine."
        )


@contextmanager
def _kept_at_signals(stop: StopRequest) -> Iterator[None]:
    """Let a signal end the work where it asks for one, with a line that says how to go on."""
    try:
        with stop.deferred():
            yield
        stop.raise_if_asked()
    except Stopped as stopped:
        name = signal.Signals(stopped.number).name
        text = f"stopped by {name}; finished scans are kept, and the same command goes on with the rest"
        raise Stopped(stopped.number, text) from None


def gather(outcome: Outcome, found: Found, process: Process) -> Outcome:
    """What came of all processes' scans, in the order in which they were found."""
    parts = process.gather([outcome])
    records = {name: record for part in parts for name, record in part.records.items()}
    faults = {name: fault for part in parts for name, fault in part.faults.items()}
    names = [scan.name for scan in found.scans]
    return Outcome(
        records={name: records[name] for name in names if name in records},
        faults=found.faults | {name: faults[name] for name in names if name in faults},
        earlier=sum(part.earlier for part in parts),
    )


def prepare(scan: Scan, order: Order) -> Prepared:
    """Read a scan and bring it to the network's grid.

    Raises:
        InputError: if it, or its label, isn't sound.
    """
    made_with = _made_with(scan, order)  # before it is read, so that a change from now on shows at the next launch
    volume = read_scan(scan, order.in_channels)
    classes = len(order.labels)
    label = None if scan.label is None else read_label(scan.label, scan.image[0], volume, classes)
    low, high = volume.voxels.min(), volume.voxels.max()
    if low == high:
        raise InputError(f"{scan.image[0]}: every voxel is {low:g}; there is nothing to see in it.")
    if (fault := window_fault(scan.image[0], low, high, order.preprocessing)) is not None:
        raise InputError(fault)
    try:
        seen = to_network_grid(volume.voxels, volume.affine, label, order.preprocessing)
    except (RuntimeError, ValueError) as error:  # MONAI names its transform, and behind it the cause
        cause = error.__cause__ or error
        raise InputError(f"{scan.image[0]}: can't be preprocessed ({brief(cause)}).") from error
    if seen.image.numel() == 0:
        raise InputError(f"{scan.image[0]}: every voxel is the same on the network's grid; there is nothing to see.")
    return Prepared(scan, made_with, volume, label, seen)


def segment(prepared: Prepared, probabilities: Tensor, seconds: float, order: Order) -> Segmented:
    """Take a scan's probabilities to its own grid, after which they aren't needed any more.

    Args:
        probabilities: (classes, D, H, W), on the network's grid and the CPU.
        seconds: what predicting took.

    Raises:
        WriteError: if they are to be written and can't be.
    """
    scan, volume, seen = prepared.scan, prepared.volume, prepared.seen
    _forget(scan, order)
    mask = to_scan_grid(probabilities, seen.affine, volume.affine, volume.shape)
    for label in order.connected:
        mask[_lesser_components(mask == label)] = 0
    for label in range(1, len(order.labels)):
        if label not in order.organs:
            mask[mask == label] = 0
    if order.probabilities:
        names = dict(enumerate(order.labels))
        on_grid = partial(_probability, probabilities, prepared)
        write_probabilities(order.probability_file(scan.name), volume, names, on_grid)
    dice = None
    if seen.label is not None:
        dice = dice_per_label(probabilities.argmax(0), seen.label, len(order.labels)).numpy()
    return Segmented(prepared, mask, dice, seconds)


def write_scan(segmented: Segmented, order: Order) -> dict[str, Any]:
    """Write a scan's mask and measure it; its record.

    Raises:
        WriteError: if something can't be written.
    """
    prepared, mask = segmented.prepared, segmented.mask
    scan, volume = prepared.scan, prepared.volume
    write_mask(order.mask(scan.name), mask, volume, order.organs)
    remarks = list(volume.remarks)
    modality = volume.datasets[0].get("Modality") if volume.datasets else None
    if modality not in (None, "CT") and order.preprocessing.intensity == "ct":
        remarks.append(f"{_source(scan)}: is {modality}, but the network knows the intensities of CT.")
    if volume.datasets:
        try:
            write_segmentation(order.dicom_file(scan.name), mask, order.organs, volume.datasets)
        except InputError as error:
            remarks.append(str(error))  # of headers that allow none; all else is there
    if order.separate:
        for label, name in order.organs.items():
            path = order.organ_file(scan.name, name)
            make_folder(path.parent)
            write_mask(path, (mask == label).astype(np.uint8), volume, {1: name})

    organs = measure(mask, volume, order.organs)
    if prepared.label is not None and segmented.dice is not None:
        on_scan = agreement(mask, prepared.label, volume.spacing, order.organs, len(order.labels), order.nsd_mm)
        for label, name in order.organs.items():
            organs[name] |= on_scan[name] | {"dice_network_grid": number(segmented.dice[label - 1])}
    record = {
        "scan": scan.name,
        "source": _source(scan),
        "shape": list(volume.shape),
        "spacing_mm": [round(size, 4) for size in volume.spacing],
        "labelled": prepared.label is not None,
        "seconds": round(segmented.seconds, 2),
        "remarks": remarks,
        "organs": organs,
        "made_with": prepared.made_with,
        "mask": fingerprint(order.mask(scan.name)),
    }
    save_picture(pixels(_picture(prepared, mask, order)), order.picture(scan.name))
    write_json(order.record(scan.name), record)
    return record


def _read(scans: Iterable[Scan], order: Order, ahead: bool) -> Iterator[tuple[Scan, Future[Prepared]]]:
    """Each scan with the reading of it, of which one, or with ``ahead`` two, go on at a time."""
    waiting: deque[tuple[Scan, Future[Prepared]]] = deque()
    with SuccessiveThreads() as reader:
        for scan in scans:
            waiting.append((scan, reader.submit(prepare, scan, order)))
            if len(waiting) > ahead:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()


def _predict(prepared: Prepared, ensemble: Ensemble, predictor: Predictor, process: Process) -> Tensor:
    """The class probabilities (classes, D, H, W).

    Raises:
        InputError: if they aren't finite, or a GPU has no room.
    """
    image = prepared.seen.image[None]  # (C, D, H, W) -> (1, C, D, H, W)
    total = len(predictor.windows(image.shape[2:])) * len(ensemble.passes)
    with process.bar((), prepared.scan.name, total=total) as bar:

        def progress(windows: int) -> None:
            bar.update(windows)
            process.stop.raise_if_asked()

        # what follows is the CPU's work, while a GPU has the next scan
        probabilities = predictor(ensemble, image, progress).cpu()
    if probabilities[0].isnan().any():  # of one class that is NaN or +inf the softmax makes NaN of all
        raise InputError(
            f"{prepared.scan.image[0]}: the network's output isn't finite. Give --noamp, or weights that are sound."
        )
    return probabilities


def _note(outcome: Outcome, scan: Scan, fault: str) -> None:
    outcome.faults[scan.name] = fault
    tqdm.write(f"failed, and passed over: {fault}")


def _probability(probabilities: Tensor, prepared: Prepared, label: int) -> np.ndarray:
    outside = 1.0 if label == 0 else 0.0
    volume = prepared.volume
    return class_on_scan_grid(probabilities[label], prepared.seen.affine, volume.affine, volume.shape, outside)


def _lesser_components(organ: np.ndarray) -> np.ndarray:
    """The voxels outside the largest component, voxels that share a corner counting as neighbours."""
    components, count = ndimage.label(organ, np.ones((3, 3, 3)))
    if count < 2:
        return np.zeros_like(organ)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    return organ & (components != sizes.argmax())


def _picture(prepared: Prepared, mask: np.ndarray, order: Order) -> Any:
    """Image, mask and label in three directions, on the scan's voxels turned to Right, Anterior and Superior."""
    volume, settings = prepared.volume, order.preprocessing
    turns = io_orientation(volume.affine)
    image = apply_orientation(volume.voxels[0], turns)
    label = None if prepared.label is None else apply_orientation(prepared.label, turns)
    window = (settings.a_min, settings.a_max)
    if settings.intensity != "ct":
        low, high = np.percentile(image[:: max(1, image.shape[0] // 64)], (1, 99))
        window = (float(low), float(high))
    x, y, z = (volume.spacing[axis] for axis in np.argsort(turns[:, 0]))
    return orthogonal(image, apply_orientation(mask, turns), label, order.labels, (x, y, z), window, prepared.scan.name)

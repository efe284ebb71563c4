"""Scan after scan: read, predict, write and measure, the three for neighbouring scans at the same time."""

import argparse
import json
import os
import signal
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation, io_orientation
from scipy import ndimage
from torch import Tensor
from tqdm import tqdm

from utils.checkpoint import Description
from utils.data_list import Scan
from utils.dicom import write_segmentation
from utils.distributed import Process
from utils.errors import InputError, Stopped, WriteError, brief, lacks_memory
from utils.files import fingerprint, make_folder, remove, write_json
from utils.inference import Ensemble, Predictor, class_on_scan_grid, to_scan_grid
from utils.mask_files import write_mask, write_probabilities
from utils.measurements import agreement, measure, number
from utils.metrics import dice_per_label
from utils.pictures import orthogonal, pixels, save_picture
from utils.preprocessing import OnNetworkGrid, Preprocessing, to_network_grid, window_fault
from utils.scan_files import Found, folder_around
from utils.stop_request import StopRequest
from utils.threads import SuccessiveThreads
from utils.volume import Volume, read_label, read_scan, voxel_files

RECORDS = "records"
BEGUN = "begun"  # in the record of a scan that isn't finished: the files that may be there
CHANGED = "was changed after it was written"
FileState = list[str | int]


@dataclass(frozen=True)
class Order:
    """What is wanted of each scan.

    Attributes:
        folder: where all files go.
        labels: names of the classes, the background first.
        organs: those that the mask has, by label.
        connected: labels of which only the largest component stays.
        separate: whether each organ also gets a file of its own.
        probabilities: whether class probabilities are written.
        nsd_mm: tolerance of the surface Dice.
        in_channels: what the network takes.
        preprocessing: the way to the network's grid.
        made_with: weights and flags, as JSON holds them; a scan that was finished with others is done again.
    """

    folder: Path
    labels: tuple[str, ...]
    organs: Mapping[int, str]
    connected: tuple[int, ...]
    separate: bool
    probabilities: bool
    nsd_mm: float
    in_channels: int
    preprocessing: Preprocessing
    made_with: Mapping[str, Any]

    def mask(self, name: str) -> Path:
        """The mask's file of a scan."""
        return self.folder / f"{_stem(name)}.nii.gz"

    def record(self, name: str) -> Path:
        """What is known of a scan: at first which files are begun, and last, when all else is there, what it holds."""
        return self.folder / RECORDS / f"{_stem(name)}.json"

    def picture(self, name: str) -> Path:
        """The picture of a scan for the report."""
        return self.folder / RECORDS / f"{_stem(name)}.png"

    def probability_file(self, name: str) -> Path:
        """The class probabilities of a scan."""
        return self.folder / f"{_stem(name)}_probabilities.nii.gz"

    def dicom_file(self, name: str) -> Path:
        """The DICOM segmentation of a series."""
        return self.folder / f"{_stem(name)}.dcm"

    def organ_folder(self, name: str) -> Path:
        """Where the masks of a scan's single organs are."""
        return self.folder / _stem(name)

    def organ_file(self, name: str, organ: str) -> Path:
        """The mask of one organ of a scan."""
        return self.organ_folder(name) / f"{organ.replace(' ', '_').replace('/', '_')}.nii.gz"

    def results(self, scan: Scan) -> list[Path]:
        """The files that may come of a scan, beside what is in :data:`RECORDS`."""
        paths = [self.mask(scan.name)]
        if scan.is_series:
            paths.append(self.dicom_file(scan.name))
        if self.probabilities:
            paths.append(self.probability_file(scan.name))
        if self.separate:
            paths += [self.organ_file(scan.name, organ) for organ in self.organs.values()]
        return paths

    def require_no_scan_replaced(self, scans: Sequence[Scan], searched: Sequence[str] = ()) -> None:
        """Check that no result takes the place of a scan, a label or another result, or comes to lie among scans.

        Args:
            searched: files and folders in which scans were looked for.

        Raises:
            InputError: naming the first that would.
        """
        folders = [path for path in searched if os.path.isdir(path)]
        results: dict[str, str] = {}
        for scan in scans:
            for path in self.results(scan):
                place = os.path.realpath(path)
                if folder_around(path, folders) is not None:
                    raise InputError(
                        f"--output_dir {self.folder}: {path} would lie in --input, and be taken for a scan the next "
                        "time. Give another folder."
                    )
                if place in results:
                    raise InputError(
                        f"{path}: would be written for {results[place]} and for {scan.name}. Rename one of them, or "
                        "one of two organs."
                    )
                results[place] = scan.name
        for scan in scans:
            for path in (*scan.image, *([scan.label] if scan.label is not None else [])):
                if os.path.realpath(path) in results:
                    raise InputError(
                        f"--output_dir {self.folder}: {path} would be replaced by a mask. Give another folder."
                    )


def _stem(name: str) -> str:
    """What a scan's files are called; scans that share a file name are named by their path."""
    return "_".join(part for part in Path(name).parts if part != "..")


def file_state(file: Path) -> FileState:
    """What differs when a file has changed; of one that is gone its name alone, which reading then tells."""
    try:
        state = file.stat()
    except OSError:
        return [str(file)]
    return [str(file), state.st_mtime_ns, state.st_size]


def wanted(args: argparse.Namespace, weights: Sequence[FileState], description: Description) -> Order:
    """What the flags want of each scan, by weights whose files had these states before they were read."""
    labels = description.labels
    flags = ("infer_overlap", "tta", "noamp", "engine", "organs", "largest_component", "nsd_mm")
    more = ("one_file_per_organ", "save_probabilities")
    return Order(
        folder=Path(args.output_dir) if args.output_dir is not None else Path(args.pretrained_dir) / "scores",
        labels=labels,
        organs={label: labels[label] for label in _labels_of("--organs", args.organs or ("all",), labels)},
        connected=_labels_of("--largest_component", args.largest_component or (), labels),
        separate=args.one_file_per_organ,
        probabilities=args.save_probabilities,
        nsd_mm=args.nsd_mm,
        in_channels=description.options["in_channels"],
        preprocessing=description.preprocessing,
        made_with={
            "weights": list(weights),
            **{name: getattr(args, name) for name in (*flags, *more)},
            # weights that describe nothing have these from flags and a data list
            "labels": list(labels),
            "network": [description.network, description.options],
            "preprocessing": asdict(description.preprocessing),
        },
    )


def _labels_of(flag: str, names: Sequence[str], labels: Sequence[str]) -> tuple[int, ...]:
    """The labels of some organs; of all of them for ``all``.

    Raises:
        InputError: if there is no such organ.
    """
    if tuple(names) == ("all",):
        return tuple(range(1, len(labels)))
    known = {name.lower(): label for label, name in enumerate(labels) if label > 0}
    unknown = [name for name in names if name.lower() not in known]
    if unknown:
        raise InputError(f"{flag} {','.join(unknown)}: not among the network's organs: {', '.join(labels[1:])}.")
    return tuple(known[name.lower()] for name in names)


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


def finished(scan: Scan, order: Order) -> dict[str, Any] | None:
    """The record of a scan that is finished as ordered, else None."""
    needed = {*order.results(scan), order.picture(scan.name)} - {order.dicom_file(scan.name)}  # which may be impossible
    if not all(path.exists() for path in needed):
        return None
    record = _read_record(order.record(scan.name))
    if record is None or record["source"] != _source(scan) or record["made_with"] != _made_with(scan, order):
        return None
    return record


def _require_ours(scan: Scan, order: Order) -> None:
    """Check that a scan's mask takes the place of nothing but an earlier mask of the same scan, as it was written.

    Raises:
        InputError: if something else is there.
    """
    mask = order.mask(scan.name)
    if not mask.exists():
        return
    record = _read_record(order.record(scan.name))
    if record is not None and record["source"] != _source(scan):
        what = f"is the mask of {record['source']}, and would be replaced by that of {_source(scan)}"
    elif record is not None and _was_changed(mask, record):
        what = f"{CHANGED}, and would be replaced"
    elif not order.record(scan.name).exists():
        what = "isn't from test.py, and would be replaced"
    else:
        return
    raise InputError(f"{mask}: {what}. Give another --output_dir, or --overwrite.")


def _was_changed(mask: Path, record: Mapping[str, Any]) -> bool:
    """Whether a mask is another than the one that was written; older records don't tell."""
    return "mask" in record and record["mask"] != fingerprint(mask)


def _read_record(path: Path) -> dict[str, Any] | None:
    """What a file tells of a finished scan; None if it isn't there, damaged, or of one that was only begun."""
    record = _content(path)
    return record if {"source", "made_with", "organs"} <= record.keys() else None


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _source(scan: Scan) -> str:
    return os.path.realpath(scan.image[0].parent if scan.is_series else scan.image[0])


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


def _forget(scan: Scan, order: Order) -> None:
    """Remove what another command left of a scan, its record first, so that nothing is mixed.

    What no record tells of is somebody else's. From here on one tells what is begun.
    """
    path = order.record(scan.name)
    earlier = {order.folder / name for name in _content(path).get(BEGUN, [])}
    if (record := _read_record(path)) is not None:
        finished_order = replace(
            order,
            organs=dict(enumerate(record["organs"], start=1)),
            separate=record["made_with"].get("one_file_per_organ", False),
            probabilities=record["made_with"].get("save_probabilities", False),
        )
        earlier = {*finished_order.results(scan), order.dicom_file(scan.name)}
    to_come = {result for result in order.results(scan) if not result.exists()}
    begun = {str(result.relative_to(order.folder)) for result in earlier | to_come}
    write_json(path, {"scan": scan.name, BEGUN: sorted(begun)})
    for result in earlier - {order.mask(scan.name)}:
        remove(result)
    folder = order.organ_folder(scan.name)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


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


def _made_with(scan: Scan, order: Order) -> dict[str, Any]:
    """The weights, flags and files of a scan's results, as they come back from a JSON file."""
    named = [*scan.image, *([scan.label] if scan.label is not None else [])]
    files = [file for path in named for file in (path, *voxel_files(path))]
    content = {**order.made_with, "files": [file_state(file) for file in files]}
    as_json: dict[str, Any] = json.loads(json.dumps(content))
    return as_json


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

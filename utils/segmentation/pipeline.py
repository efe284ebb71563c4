"""Segment scan after scan: while one is predicted, the next is read and the one before is written."""

import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from utils.distributed.process import Process
from utils.inference.sliding_window import Ensemble, Predictor
from utils.io.find_scans import FoundScans
from utils.io.scan import Scan
from utils.segmentation.job import SegmentationJob
from utils.segmentation.records import CHANGED, finished, require_replaceable, was_changed
from utils.segmentation.steps import PreparedScan, SegmentedScan, add_view, predict, prepare, segment, write_scan
from utils.system.errors import (
    InputError,
    LostError,
    ReportedElsewhereError,
    Stopped,
    WriteError,
    first_line,
    is_out_of_memory,
    no_memory,
)
from utils.system.signals import StopRequest
from utils.system.text import one_line, shortened
from utils.system.threads import SuccessiveThreads

LONGEST_FAULT = 2000  # characters


@dataclass
class Outcome:
    """What came of some scans.

    Attributes:
        records: of the finished scans, by name.
        faults: why a scan failed, by name.
        earlier: how many scans an earlier launch had finished.
    """

    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    earlier: int = 0


def segment_scans(
    scans: Sequence[Scan],
    job: SegmentationJob,
    ensemble: Ensemble,
    predictor: Predictor,
    process: Process,
    *,
    overwrite: bool,
    read_ahead: bool,
) -> Outcome:
    """Segment scans. If one fails, report it and go on with the others.

    Args:
        overwrite: whether to do finished scans again.
        read_ahead: whether to read the next scan while one is predicted, so that two are in memory.

    Raises:
        Stopped: if a signal asks the process to end; finished scans are kept.
    """
    outcome = Outcome()
    todo = []
    for scan in scans:
        with _faults_noted(outcome, scan, job, process):
            earlier = None if overwrite else finished(scan, job)
            if earlier is not None:
                outcome.records[scan.name] = earlier
                mask = job.mask_file(scan.name)
                if was_changed(mask, earlier):
                    process.write(f"note: {mask}: {CHANGED}; tables and report describe the mask as it was written")
                elif not job.view_file(scan.name).is_file():
                    add_view(scan, job)
                continue
            if not overwrite:
                require_replaceable(scan, job)
            todo.append(scan)
    outcome.earlier = len(outcome.records)

    def finish(scan: Scan, writing: Future[dict[str, Any]]) -> None:
        with _faults_noted(outcome, scan, job, process):
            record = outcome.records[scan.name] = writing.result()
            for remark in record["remarks"]:
                process.write(f"note: {one_line(remark)}")

    with (
        _finished_kept(process.stop),
        process.bar((), "scans", total=len(todo)) as bar,
        SuccessiveThreads() as writer,
    ):
        previous: tuple[Scan, Future[dict[str, Any]]] | None = None
        for scan, reading in _prepared(todo, job, ensemble, read_ahead):
            process.stop.raise_if_requested()
            segmented = None
            with _faults_noted(outcome, scan, job, process):
                segmented = _segmented(reading, job, ensemble, predictor, process)
            bar.update()
            if segmented is None:
                continue
            if previous is not None:
                finish(*previous)  # so that only one scan at a time waits to be written
            previous = scan, writer.submit(write_scan, segmented, job)
            del segmented, reading  # their voxels are large
        if previous is not None:
            finish(*previous)
    return outcome


def _segmented(
    reading: Future[PreparedScan], job: SegmentationJob, ensemble: Ensemble, predictor: Predictor, process: Process
) -> SegmentedScan:
    prepared = reading.result()
    start = time.perf_counter()
    probabilities, certainty = predict(prepared, ensemble, predictor, job, process)
    return segment(prepared, probabilities, certainty, time.perf_counter() - start, job)


def gather_outcomes(outcome: Outcome, found: FoundScans, process: Process) -> Outcome:
    """Join the outcomes of all processes, in the order in which the scans were found."""
    parts = process.gather_shards([outcome])
    records = {name: record for part in parts for name, record in part.records.items()}
    faults = {name: fault for part in parts for name, fault in part.faults.items()}
    names = [scan.name for scan in found.scans]
    return Outcome(
        records={name: records[name] for name in names if name in records},
        faults=found.faults | {name: faults[name] for name in names if name in faults},
        earlier=sum(part.earlier for part in parts),
    )


def _prepared(
    scans: Iterable[Scan], job: SegmentationJob, ensemble: Ensemble, ahead: bool
) -> Iterator[tuple[Scan, Future[PreparedScan]]]:
    """Each scan with its :func:`prepare`, which runs in a thread; ``ahead``: the next one has begun by then."""
    waiting: deque[tuple[Scan, Future[PreparedScan]]] = deque()
    with SuccessiveThreads() as reader:
        for scan in scans:
            waiting.append((scan, reader.submit(prepare, scan, job, ensemble)))
            if len(waiting) > ahead:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()


@contextmanager
def _faults_noted(outcome: Outcome, scan: Scan, job: SegmentationJob, process: Process) -> Iterator[None]:
    """Note, log and print what is wrong with a scan, instead of ending the program, whatever it is."""
    try:
        yield
    except (LostError, ReportedElsewhereError):
        raise  # of another process
    except Exception as error:
        fault = _fault(scan, error)
        try:
            _log(job.error_log, scan, error)
        except OSError as log_error:
            fault += f" ({job.error_log}: can't be written: {log_error.strerror})"
        outcome.faults[scan.name] = fault
        process.write(f"failed, and passed over: {fault}")


def _fault(scan: Scan, error: Exception) -> str:
    """What is wrong with a scan, in one line."""
    if isinstance(error, InputError | WriteError):
        text = str(error)
    elif is_out_of_memory(error):
        text = no_memory(scan.path)
    else:
        text = f"{scan.path}: failed ({type(error).__name__}: {first_line(error)}). See the log for where."
    return shortened(one_line(text), LONGEST_FAULT)


def _log(path: Path, scan: Scan, error: Exception) -> None:
    """Add the traceback of a scan's error to a log, which several processes may write."""
    lines = "".join(traceback.format_exception(error))
    # never through a link, nor into a pipe
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    with open(os.open(path, flags, 0o666), "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(f"{datetime.now().astimezone().isoformat(sep=' ', timespec='seconds')} {scan.name}\n{lines}\n")


@contextmanager
def _finished_kept(stop: StopRequest) -> Iterator[None]:
    """Hold signals back until the work asks for them; end then with a line that says how to go on."""
    try:
        with stop.deferred():
            yield
        stop.raise_if_requested()
    except Stopped as stopped:
        name = signal.Signals(stopped.number).name
        text = f"stopped by {name}; finished scans are kept, and the same command goes on with the rest"
        raise Stopped(stopped.number, text) from None

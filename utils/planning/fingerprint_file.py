"""``fingerprint.json`` of a data folder: a summary for people, and what is known of each scan, to be read once."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Gt
from pydantic import TypeAdapter, ValidationError
from pydantic.types import AllowInfNan
from typing_extensions import TypedDict

from utils.data.check import Findings, require_no_faults
from utils.data.data_list import DataList, numbered_labels
from utils.distributed.process import Process
from utils.io.reader import scan_files
from utils.io.scan import Scan
from utils.planning.facts import examine, rounded
from utils.planning.fingerprint import Fingerprint, ScanFacts, check_fingerprint
from utils.planning.oddities import oddities
from utils.system.errors import InputError, WriteError
from utils.system.files import FileState, file_state, open_regular, text_hash, write_text
from utils.system.typed import schema_faults

FILE = "fingerprint.json"
FORMAT: Literal[2] = 2  # another one whenever facts are measured in another way
PERCENTILES = (0.5, 50.0, 99.5)
LIST_OF_NUMBERS = re.compile(r"\[\n\s*(-?\d[^\[\]{}\"]*?)\n\s*\]")

Seconds = Annotated[float, Gt(0), AllowInfNan(False)]


class _Known(TypedDict):
    seal: str
    facts: ScanFacts


class _Content(TypedDict):  # further keys are for people
    format: Literal[2]
    scans: list[_Known]
    timings: dict[str, Seconds]
    recipe: str | None


CONTENT = TypeAdapter(_Content)


class FingerprintFile:
    """What is known of a folder's scans from earlier calls.

    A scan is known until one of its files changes. A file that was damaged or edited counts as none: each scan's facts
    are sealed by a hash, with the state of the scan's files.

    Attributes:
        path: the file.
        timings: seconds by whatever key; :meth:`save` keeps them.
        recipe: the hash of the recipe that was written last, or None.
        note: why a file that is there isn't used, a sentence, or None.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self.note: str | None = None
        content = self._read()
        self.timings: dict[str, float] = content["timings"]
        self.recipe: str | None = content["recipe"]
        self._known = {known["facts"].name: known for known in content["scans"]}

    def gather(self, scans: Sequence[Scan], workers: int, process: Process) -> tuple[ScanFacts, ...]:
        """The facts about labelled scans, in the order of their names; those that aren't known are read, with a bar.

        What was read is saved even if other scans have faults, or a signal ends the program.

        Raises:
            InputError: listing every fault of every file.
            WriteError: if what was read can't be saved.
            Stopped: after a signal.
        """
        unique = list(dict.fromkeys(scans))
        states = [self._states(scan) for scan in unique]  # before they are read, should they change meanwhile
        known = [self._known_facts(scan, state) for scan, state in zip(unique, states, strict=True)]
        unknown = [index for index, facts in enumerate(known) if facts is None]
        findings: list[Findings] = []
        self._known = {facts.name: _sealed(facts, state) for facts, state in zip(known, states, strict=True) if facts}
        try:
            results = process.stop.map_in_threads(lambda index: examine(unique[index]), unknown, workers)
            for index, (facts, found) in zip(unknown, process.bar(results, "reading scans", len(unknown)), strict=True):
                findings.append(found)
                if facts is not None:
                    known[index] = facts
                    self._known[facts.name] = _sealed(facts, states[index])
            require_no_faults(findings)
            if unknown:  # whatever comes after
                self._write({})
        except BaseException:
            with suppress(WriteError):  # what ends the program is what counts
                self._write({})
            raise
        return tuple(sorted((facts for facts in known if facts is not None), key=lambda facts: facts.name))

    def fingerprint(self, data: DataList, workers: int, process: Process, source: str | Path) -> Fingerprint:
        """What the scans of a data list are that train and validate; see :meth:`gather`.

        Args:
            source: where messages say that the scans come from.

        Raises:
            InputError: if a scan can't be read, or no network can learn from all of them.
            WriteError, Stopped: as in :meth:`gather`.
        """
        scans = self.gather(data.training + data.validation, workers, process)
        numbered = numbered_labels(1 + max((value for scan in scans for value in scan.structures), default=1))
        fingerprint = Fingerprint(
            scans=scans,
            labels=numbered if data.labels is None else data.labels,
            labels_are_named=data.labels not in (None, numbered),
            modalities=data.modalities,
            training=len(data.training),
            validation=len(data.validation),
            not_annotated={scan.name: scan.not_annotated for scan in data.training + data.validation},
            output=data.output,
        )
        try:
            check_fingerprint(fingerprint)
        except InputError as error:
            raise InputError(f"{source}: {error}") from error
        return fingerprint

    def save(self, fingerprint: Fingerprint) -> None:
        """Write the file, with a summary of these scans.

        Raises:
            WriteError: if it can't be written.
        """
        self._write(summary(fingerprint))

    def _read(self) -> _Content:
        empty: _Content = {"format": FORMAT, "scans": [], "timings": {}, "recipe": None}
        try:
            with open_regular(self.path) as file:
                return CONTENT.validate_json(file.read().decode("utf-8-sig"), strict=True)
        except FileNotFoundError:
            return empty
        except ValidationError as error:
            reason = schema_faults(error)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error).removeprefix(f"{self.path}: ").removesuffix(".")
        self.note = f"{self.path}: is damaged or of another version ({reason}); all scans are read anew."
        return empty

    def _write(self, about: dict[str, Any]) -> None:
        known = [self._known[name] for name in sorted(self._known)]
        scans = [{"seal": one["seal"], "facts": asdict(one["facts"])} for one in known]
        content = {**about, "timings": self.timings, "recipe": self.recipe, "format": FORMAT, "scans": scans}
        text = json.dumps(content, indent=2)
        write_text(self.path, LIST_OF_NUMBERS.sub(lambda match: f"[{' '.join(match[1].split())}]", text) + "\n")

    def _states(self, scan: Scan) -> list[FileState]:
        """The states of a scan's files, whose names are relative, so that the folder can be moved."""
        folder = self.path.parent
        states: list[FileState] = [[os.path.relpath(file, folder), *file_state(file)[1:]] for file in scan_files(scan)]
        # what a DICOM label says depends on the names that are looked for
        return (
            [*states, ["names in DICOM labels", text_hash(json.dumps(scan.structures)), 0]]
            if scan.structures
            else states
        )

    def _known_facts(self, scan: Scan, states: list[FileState]) -> ScanFacts | None:
        known = self._known.get(scan.name)
        if known is None or _sealed(known["facts"], states) != known or known["facts"].ignore != scan.ignore:
            return None
        return known["facts"]


def _sealed(facts: ScanFacts, states: list[FileState]) -> _Known:
    return {"seal": text_hash(json.dumps([FORMAT, states, asdict(facts)])), "facts": facts}


def summary(fingerprint: Fingerprint) -> dict[str, Any]:
    """All scans in a few numbers, for people."""
    scans = fingerprint.scans
    return {
        "number_of_scans": len(scans),
        "training": fingerprint.training,
        "validation": fingerprint.validation,
        "channels": fingerprint.channels,
        "modalities": fingerprint.modalities,
        "shape": _spread(scans, lambda scan: scan.shape),
        "spacing_mm": _spread(scans, lambda scan: scan.spacing),
        "size_mm": _spread(scans, lambda scan: np.multiply(scan.shape, scan.spacing).tolist()),
        "body_mm": _spread(scans, lambda scan: scan.body_mm),
        "orientations": dict(sorted(Counter(scan.orientation for scan in scans).items())),
        "labelled_intensities": [
            {f"{percent:g} %": rounded(fingerprint.percentile(channel, percent)) for percent in PERCENTILES}
            for channel in range(fingerprint.channels)
        ],
        "labels_are_named": fingerprint.labels_are_named,
        "labels": [_label_summary(fingerprint, value) for value in range(1, len(fingerprint.labels))],
        "odd": oddities(fingerprint),
    }


def _label_summary(fingerprint: Fingerprint, value: int) -> dict[str, Any]:
    scans = fingerprint.scans_with(value)
    return {
        "value": value,
        "name": fingerprint.labels[value],
        "scans": len(scans),
        "volume_ml": _spread(scans, lambda scan: scan.structures[value].volume_ml),
        "thickness_mm": _spread(scans, lambda scan: scan.structures[value].thickness_mm),
        "extent_mm": _spread(scans, lambda scan: scan.structures[value].extent_mm),
    }


def _spread(
    scans: Sequence[ScanFacts], of: Callable[[ScanFacts], float | Sequence[float]]
) -> dict[str, float | list[float]] | None:
    """The lowest, the median and the highest of a number of scans, or of each of several; None without scans."""
    if not scans:
        return None
    values = np.array([of(scan) for scan in scans], float)
    spread = {"lowest": values.min(0), "median": np.median(values, axis=0), "highest": values.max(0)}
    return {
        name: [rounded(number) for number in numbers] if np.ndim(numbers) else rounded(numbers)
        for name, numbers in spread.items()
    }

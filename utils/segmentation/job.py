"""What to do with each scan, and the names of the files that it gets."""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from utils.checkpoints.description import Description
from utils.data.preprocessing import Preprocessing
from utils.io.find_scans import folder_around
from utils.io.scan import Scan
from utils.system.errors import InputError

RECORDS = "records"


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

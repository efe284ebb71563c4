"""Data lists in the decathlon's format: which scans train, which validate, and what their labels mean."""

import errno
import json
import os
import re
import reprlib
import shlex
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from networks.registry import MOST_CHANNELS
from utils.data.channels import CLASSES, Channels, Region, RegionChannels
from utils.data.regions import IGNORE, read_regions, regions_as_json, without_regions
from utils.io.reader import LABELS, count_channels
from utils.io.scan import Scan, is_dicom, without_endings
from utils.io.structures import names_by_class
from utils.system.errors import InputError
from utils.system.files import read_json, text_hash, walk_files
from utils.system.text import few_names, one_line

SHOWN_FAULTS = 50  # of a list
SCANS_ASKED = 3  # for their number of channels: one that is unlike the others is outvoted
PARTS = ("training", "validation", "test", "unlabelled")
WITH_LABELS = PARTS[:2]
NOT_ANNOTATED = "not_annotated"  # of an entry: the structures that nobody drew in the scan
ALSO_CALLED = "also_called"  # of a list: further names that structures have in DICOM labels


class LabelMeaning(NamedTuple):
    """What label values mean.

    Attributes:
        labels: names of the values 0, 1, …, or None if nothing names them.
        ignore: the value of voxels that nobody judged, if there is one.
        regions: unions of labels.
        output: what the channels of a network's output are.
        also_called: further names that structures have in DICOM labels.
    """

    labels: tuple[str, ...] | None = None
    ignore: int | None = None
    regions: tuple[Region, ...] = ()
    output: Channels = CLASSES
    also_called: Mapping[str, tuple[str, ...]] = {}


@dataclass(frozen=True)
class DataList:
    """A data list after ``fold`` has been applied.

    Attributes:
        path: the JSON file.
        folder: the absolute folder that its paths are relative to.
        training, validation, test: its scans.
        labels: names of the values 0, 1, …, or None if the list doesn't name them.
        ignore: the value of voxels that nobody judged, if the list names one.
        folds: the folds that its entries name.
        modalities: what the list says of each channel of an image, such as CT; None if it says nothing.
        regions: unions of labels, which are scored too.
        output: what the channels of a network's output are: the labels, or the regions if the list says so.
        unlabelled: further scans for pre-training.
        also_called: further names that structures have in DICOM labels.
    """

    path: Path
    folder: Path
    training: list[Scan]
    validation: list[Scan]
    test: list[Scan]
    labels: tuple[str, ...] | None
    folds: frozenset[int] = frozenset()
    modalities: tuple[str, ...] | None = None
    ignore: int | None = None
    regions: tuple[Region, ...] = ()
    output: Channels = CLASSES
    unlabelled: Sequence[Scan] = ()
    also_called: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def ignores(self, fold: int) -> bool:
        """Whether ``fold`` changed nothing: no entry names a fold, and the list's file name doesn't name this one."""
        return fold > 0 and not self.folds and str(fold) not in re.findall(r"\d+", self.path.stem)

    def require(self, *parts: str) -> None:
        """Check that these parts of the list have scans.

        Raises:
            InputError: naming each that has none.
        """
        empty = [f'"{part}"' for part in parts if not getattr(self, part)]
        if empty:
            folds = "" if parts == ("test",) else ', or give entries of "training" a "fold"'
            raise InputError(f"{self.path}: lists no scans under {' and '.join(empty)}. Add some{folds}.")

    def files(self) -> dict[str, list[list[str]]]:
        """The paths of the scans that train and validate, relative to the folder, in the list's order."""
        parts = {"training": self.training, "validation": self.validation}
        return {part: [self.paths(scan) for scan in scans] for part, scans in parts.items()}

    def paths(self, scan: Scan) -> list[str]:
        """The paths of a scan's image, or the folder of its series, and of its label, relative to the folder."""
        image = [scan.path] if scan.is_series else scan.image
        return [os.path.relpath(path, self.folder) for path in (*image, scan.label) if path]

    def recorded(self) -> dict[str, Any]:
        """What checkpoints of a run keep: the scans that train and validate, and what nobody annotated in them."""
        parts = {"training": self.training, "validation": self.validation}
        not_annotated = {part: [list(scan.not_annotated) for scan in scans] for part, scans in parts.items()}
        return {"scans": self.files(), "annotation": {"ignore": self.ignore, "not_annotated": not_annotated}}

    def content_hash(self) -> str:
        """The :func:`text_hash` of its scans, their order, their labels' names, regions and what isn't annotated."""
        scans = self.training + self.validation
        unknown = {scan.name: scan.not_annotated for scan in scans if scan.not_annotated}
        more: list[Any] = [] if self.ignore is None and not unknown else [self.ignore, unknown]
        more += [regions_as_json(self.regions, self.output)] if self.regions else []
        more += sorted({scan.structures for scan in scans if scan.structures})
        return text_hash(json.dumps([self.files(), self.labels, *more]))

    def classes(self) -> int | None:
        """How many channels a network's output has: classes, the background included, or regions; None without names.

        Raises:
            InputError: if the background is all.
        """
        if self.labels is None:
            return None
        if len(self.labels) < 2:
            raise InputError(f'{self.path}: names no label but the background. Mend the list\'s "labels".')
        return len(self.output.names(self.labels))

    def channels(self) -> int | None:
        """How many channels a scan has: what the list says, or else most of the first training scans.

        The list says it by the files of an entry, or by naming several modalities. One modality says nothing about a
        file that may hold several volumes.

        Returns:
            None if no training scan can be read, or they have more than a network takes. The data check tells.
        """
        one_file = all(scan.is_series or len(scan.image) == 1 for scan in self.training)
        if one_file and self.modalities is not None and len(self.modalities) > 1:
            return len(self.modalities)
        counts: list[int] = []
        for scan in self.training:
            with suppress(InputError):  # which the data check repeats, beside all other faults
                counts.append(_channels(scan))
            if len(counts) == SCANS_ASKED:
                break
        possible = sorted(count for count in counts if 1 <= count <= MOST_CHANNELS)
        return statistics.mode(possible) if possible else None

    def label_names(self, out_channels: int) -> tuple[str, ...]:
        """Names of the labels of a network with so many channels.

        Raises:
            InputError: if the list names another number of classes, or of regions that are trained, or there is but
                the background.
        """
        if self.labels is None:
            if out_channels < 2:
                raise InputError(
                    f"`out_channels` {out_channels}: must be at least 2, for the background and one label."
                )
            return numbered_labels(out_channels)
        names = self.output.names(self.labels)
        if not self.output.exclusive and len(names) != out_channels:
            raise InputError(
                f"{self.path}: trains {len(names)} regions ({few_names(names)}), but `out_channels` is {out_channels}. "
                f'Give `out_channels` {len(names)}, or mend the list\'s "regions".'
            )
        if self.output.exclusive and len(names) != out_channels:
            raise InputError(
                f"{self.path}: names {len(self.labels)} labels (the background included), but `out_channels` is "
                f'{out_channels}. Give `out_channels` {len(self.labels)}, or mend the list\'s "labels".'
            )
        return self.labels


def _channels(scan: Scan) -> int:
    """How many channels a scan has.

    Raises:
        InputError: if its file can't be read.
    """
    if scan.is_series:
        return 1
    return len(scan.image) if len(scan.image) > 1 else count_channels(scan.path)


def numbered_labels(classes: int) -> tuple[str, ...]:
    """Names for labels without names: background, label 1, label 2, …"""
    return ("background", *(f"label {value}" for value in range(1, classes)))


def clean_labels(names: Sequence[str]) -> tuple[str, ...]:
    """Labels' names as tables can show them, each in one line.

    Raises:
        ValueError: if one is empty, or there twice.
    """
    cleaned = tuple(one_line(name) for name in names)
    if not all(cleaned):
        raise ValueError("has an empty name")
    if len(set(cleaned)) < len(cleaned):
        raise ValueError("has a name twice")
    return cleaned


def find_data_list(data_dir: str, json_list: str | None, fold: int) -> Path:
    """The file of ``json_list``, relative to ``data_dir`` or else to the working directory; or dataset_FOLD.json.

    Raises:
        InputError: if the folder or the file isn't there.
    """
    folder = existing_folder(data_dir)
    name = json_list if json_list is not None else f"dataset_{fold}.json"
    for is_there in (os.path.isfile, os.path.exists):  # what is no file is named when it is read
        for path in (folder / name, Path(name)):
            if is_there(path):
                return path
    others = [] if json_list is not None else [number for number in numbered_lists(folder) if number != fold]
    if others:
        raise InputError(f"{folder / name}: no such data list. `fold` can be one of {', '.join(map(str, others))}.")
    raise InputError(
        f"{folder / name}: no such data list. Give `json_list`, or write one with "
        f"`python -m utils.make_data_list --data_dir {shlex.quote(str(data_dir))}`."
    )


def find_folds(data_dir: str, json_list: str | None) -> list[int]:
    """The folds that the entries of ``json_list`` name, or else those of ``dataset_0.json``, … below ``data_dir``.

    Raises:
        InputError: if there are fewer than two.
    """
    if json_list is not None:
        path = find_data_list(data_dir, json_list, 0)
        entries = _read_content(path).get("training", [])
        try:
            folds = {_read_fold(entry) for entry in _entries(entries, "training") if isinstance(entry, dict)}
        except ValueError as error:
            raise InputError(f"{path}: {error}. Mend the list.") from error
        found = sorted(fold for fold in folds if fold is not None)
        where = f'{path}: its "training" entries name'
    else:
        found = numbered_lists(existing_folder(data_dir))
        where = f"`data_dir` {data_dir}: dataset_0.json, dataset_1.json, … there give"
    if len(found) < 2:
        raise InputError(
            f"{where} {len(found)} folds, and there have to be two or more. Write lists with `python -m "
            f"utils.make_data_list --data_dir {shlex.quote(str(data_dir))}`, or give `json_list` for one list whose "
            "entries name folds."
        )
    return found


def numbered_lists(folder: Path) -> list[int]:
    """The numbers N of the files dataset_N.json in a folder."""
    matches = [re.fullmatch(r"dataset_(\d+)\.json", file.name) for file in folder.glob("dataset_*.json")]
    return sorted(int(match[1]) for match in matches if match is not None and str(int(match[1])) == match[1])


def existing_folder(data_dir: str) -> Path:
    """The folder of the scans.

    Raises:
        InputError: if it isn't there.
    """
    folder = Path(data_dir)
    if not os.path.isdir(folder):
        raise InputError(f"`data_dir` {data_dir}: no such folder. Give the folder that holds the scans.")
    return folder


def unlisted(json_list: str | None) -> DataList:
    """An empty data list, for scans that none names, with the labels and regions of ``json_list`` if that is given.

    Raises:
        InputError: if there is no such file, or it names no labels.
    """
    if json_list is None:
        return DataList(Path("`input`"), Path("."), [], [], [], None)
    path = Path(json_list)
    content = load_json(path)
    try:
        meaning = read_meaning(content) if isinstance(content, dict) else LabelMeaning()
    except ValueError as error:
        raise InputError(f"`json_list` {path}: {error}. Mend the list.") from error
    if meaning.labels is None:
        raise InputError(f'`json_list` {path}: names no labels. Give one with "labels", or none.')
    return DataList(path, path.parent, [], [], [], meaning.labels, regions=meaning.regions, output=meaning.output)


def labels_in(path: Path) -> LabelMeaning:
    """What label values mean, by a JSON file with ``"labels"``, such as nnU-Net's ``dataset.json``.

    Raises:
        InputError: if it can't be read, or these name no values.
    """
    content = load_json(path)
    try:
        return read_meaning(content) if isinstance(content, dict) else LabelMeaning()
    except ValueError as error:
        raise InputError(f"{path}: {error}. Mend the file.") from error


def read_data_list(data_dir: str, json_list: str | None, fold: int) -> DataList:
    """Read a data list and split it by ``fold``.

    Entries of ``training`` with a ``"fold"`` are split by it: those of ``fold`` validate, the rest train. A list
    without folds is used with its own ``training`` and ``validation``. An ``"image"`` may be a folder: then it is the
    DICOM series among all files below it.

    Raises:
        InputError: if the list is missing or isn't one; every faulty entry is named.
    """
    path = find_data_list(data_dir, json_list, fold)
    content = _read_content(path)
    folder = Path(data_dir).absolute()
    parts: dict[str, list[Scan]] = {part: [] for part in PARTS}
    folds: set[int] = set()
    faults = []
    meaning = LabelMeaning()
    modalities: tuple[str, ...] | None = None
    try:
        meaning = read_meaning(content)
        modalities = read_modalities(content.get("modality", content.get("channel_names")))
    except ValueError as error:
        faults.append(str(error))
    for part in PARTS:
        try:
            entries = _entries(content.get(part, []), part)
        except ValueError as error:
            faults.append(str(error))
            continue
        for number, entry in enumerate(entries):
            try:
                scan, entry_fold = _read_entry(entry, folder, meaning, needs_label=part in WITH_LABELS)
            except ValueError as error:
                faults.append(f'"{part}" entry {number}: {error}')
                continue
            scan = replace(scan, ignore=meaning.ignore)
            if part == "training" and entry_fold is not None:
                folds.add(entry_fold)
                parts["validation" if entry_fold == fold else "training"].append(scan)
            else:
                parts[part].append(scan)
    if folds and fold not in folds:
        faults.append(f'no entry has "fold": {fold}; `fold` can be one of {", ".join(map(str, sorted(folds)))}')
    if faults:
        more = [f"and {len(faults) - SHOWN_FAULTS} more"] if len(faults) > SHOWN_FAULTS else []
        raise InputError(f"{path}: " + "; ".join([*faults[:SHOWN_FAULTS], *more]))
    named = _distinct_names(parts, folder)
    split = (named["training"], named["validation"], named["test"])
    return DataList(
        path, folder, *split, meaning.labels, frozenset(folds), modalities,
        meaning.ignore, meaning.regions, meaning.output, named["unlabelled"], meaning.also_called,
    )  # fmt: skip


def _read_content(path: Path) -> dict[str, Any]:
    content = load_json(path)
    if not isinstance(content, dict) or not any(part in content for part in PARTS):
        raise InputError(f'{path}: not a data list: it needs "training" and "validation" lists of scans.')
    return content


def load_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        InputError: if it can't be read, or holds something else.
    """
    try:
        return read_json(path)
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: isn't text in UTF-8. Save it as UTF-8, or write it anew.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: not readable as JSON ({reason}). Mend it or write it anew.") from error


def _entries(entries: Any, part: str) -> list[Any]:
    if not isinstance(entries, list):
        raise ValueError(f'"{part}" must be a list')
    return entries


def _distinct_names(parts: dict[str, list[Scan]], folder: Path) -> dict[str, list[Scan]]:
    """Name each scan by its file, or if files in several folders share a name, by its path below ``folder``."""
    files: dict[str, set[Path]] = {}
    for scan in (scan for scans in parts.values() for scan in scans):
        files.setdefault(scan.name, set()).add(scan.path)

    def name(scan: Scan) -> str:
        return scan.name if len(files[scan.name]) == 1 else without_endings(os.path.relpath(scan.path, folder))

    return {part: [replace(scan, name=name(scan)) for scan in scans] for part, scans in parts.items()}


def _read_entry(entry: Any, folder: Path, meaning: LabelMeaning, needs_label: bool) -> tuple[Scan, int | None]:
    if isinstance(entry, str):  # the decathlon's test parts list bare file names
        entry = {"image": entry}
    if not isinstance(entry, dict) or "image" not in entry:
        raise ValueError('needs an "image"')
    images = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
    label = "" if entry.get("label") is None else entry["label"]
    if needs_label and label == "":
        raise ValueError('needs a "label"')
    if not images or not all(isinstance(name, str) for name in [*images, label]) or "" in images:
        raise ValueError('"image" and "label" must be file names')
    fold = _read_fold(entry)
    paths = tuple(_path(folder, name) for name in images)
    label_path = _path(folder, label) if label else None
    files: tuple[Path, ...] = ()
    if os.path.isdir(paths[0]):
        if Path(os.path.realpath(paths[0])) in Path(os.path.realpath(folder)).parents:
            raise ValueError(f'"image" {images[0]!r} is a folder around all data. Give the folder of one DICOM series')
        files = files_below(paths[0])
    if files and len(paths) > 1:
        raise ValueError('"image" must be one folder of a DICOM series, or files')
    not_annotated = _read_not_annotated(entry, meaning)
    name = without_endings(paths[0].name)
    structures = _structures(label_path, meaning)
    scan = Scan(name, files or paths, label_path, bool(files), not_annotated, structures=structures)
    return scan, fold


def _structures(label: Path | None, meaning: LabelMeaning) -> tuple[tuple[str, ...], ...]:
    """The names to look for in a label that is a DICOM file; none for another."""
    with suppress(OSError, InputError):  # reading it will tell
        if label is not None and is_dicom(label):
            if meaning.labels is None:
                raise ValueError('"label" is a DICOM file, so the list has to name the structures under "labels"')
            return names_by_class(meaning.labels, meaning.also_called)
    return ()


def _read_not_annotated(entry: Mapping[str, Any], meaning: LabelMeaning) -> tuple[int, ...]:
    """The classes that an entry calls not annotated, in their order."""
    names, labels = entry.get(NOT_ANNOTATED), meaning.labels
    if names is None or names == []:
        return ()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f'"{NOT_ANNOTATED}" must be a list of labels\' names, not {reprlib.repr(names)}')
    if labels is None:
        raise ValueError(f'"{NOT_ANNOTATED}" needs a list that names its "labels"')
    cleaned = {one_line(name) for name in names}
    if unknown := sorted(cleaned - set(labels[1:])):
        raise ValueError(
            f'"{NOT_ANNOTATED}" has {", ".join(map(repr, unknown))}, and the structures are {", ".join(labels[1:])}'
        )
    if cleaned == set(labels[1:]):
        raise ValueError(f'"{NOT_ANNOTATED}" has every structure, so that there is nothing to learn from the scan')
    values = tuple(value for value, name in enumerate(labels) if name in cleaned)
    if isinstance(meaning.output, RegionChannels) and not meaning.output.known(values):
        raise ValueError(
            f'"{NOT_ANNOTATED}" has a label of every region, so that there is nothing to learn of the scan'
        )
    return values


def _path(folder: Path, name: str) -> Path:
    """The path of a file, which needn't be there.

    Raises:
        ValueError: if no file can have that name.
    """
    path = folder / name
    shown = reprlib.repr(name)
    try:
        os.stat(path)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ValueError(f"{shown} is too long for a file's name") from error
    except ValueError as error:  # NUL, or half of a surrogate pair
        raise ValueError(f"{shown} can't be a file's name") from error
    return path


def files_below(folder: Path) -> tuple[Path, ...]:
    """All files below a folder but hidden ones, in order of their paths."""
    return tuple(sorted(path for path in walk_files(folder) if os.path.isfile(path)))


def _read_fold(entry: Mapping[str, Any]) -> int | None:
    fold = entry.get("fold")
    if fold is not None and (not isinstance(fold, int) or isinstance(fold, bool) or fold < 0):
        raise ValueError(f'"fold" must be a whole number, not {reprlib.repr(fold)}')
    return fold


def read_meaning(content: Mapping[str, Any]) -> LabelMeaning:
    """What label values mean, by the content of a data list or of nnU-Net's ``dataset.json``.

    Raises:
        ValueError: if labels, regions or further names can't be.
    """
    labels, ignore = read_labels(content.get("labels"))
    regions, output = read_regions(content, labels)
    return LabelMeaning(labels, ignore, regions, output, read_also_called(content.get(ALSO_CALLED), labels))


def read_labels(labels: Any) -> tuple[tuple[str, ...] | None, int | None]:
    """Names by value, from the decathlon's ``{"1": "spleen"}``, nnU-Net v2's ``{"spleen": 1}`` or a list.

    Returns:
        The names of the values 0, 1, …, None without any; and the value that is called ``ignore``, None without one.

    Raises:
        ValueError: if they don't name the values 0, 1, 2, …
    """
    if labels is None or labels in ({}, []):
        return None, None
    problem = '"labels" must name the values 0, 1, 2, … one by one, as in {"0": "background", "1": "spleen"}'
    if isinstance(labels, list):
        labels = {str(value): name for value, name in enumerate(labels)}
    if not isinstance(labels, dict):
        raise ValueError(problem)
    labels = without_regions(labels)
    by_name = all(isinstance(value, int) for value in labels.values())
    pairs = [(value, name) for name, value in labels.items()] if by_name else list(labels.items())
    if any(isinstance(value, bool) or not isinstance(name, str) for value, name in pairs):
        raise ValueError(problem)
    try:
        named = [(int(value), name) for value, name in pairs]
    except ValueError as error:
        raise ValueError(problem) from error
    ignored = [value for value, name in named if one_line(name) == IGNORE]
    if len(ignored) > 1 or ignored == [0]:
        raise ValueError(f'"labels" must call one value "{IGNORE}", and not the background')
    names = {0: "background", **dict(named)}
    if len(dict(named)) == len(named):
        names = {value: name for value, name in names.items() if value not in ignored}
        named = [pair for pair in named if pair[0] not in ignored]
    if len(dict(named)) < len(named) or sorted(names) != list(range(len(names))):
        raise ValueError(problem)
    if ignored and not len(names) <= ignored[0] <= LABELS.max:
        raise ValueError(f'"labels" calls {ignored[0]} "{IGNORE}", and that has to be {len(names)} … {LABELS.max}')
    try:
        return clean_labels([names[value] for value in range(len(names))]), next(iter(ignored), None)
    except ValueError as error:
        raise ValueError(f'"labels" {error}') from error


def read_also_called(table: Any, labels: Sequence[str] | None) -> dict[str, tuple[str, ...]]:
    """Further names of structures in DICOM labels, from ``{"parotid right": ["Parotid_R"]}``.

    Args:
        labels: the names that it may give others for; None if any may be there.

    Raises:
        ValueError: if it is no such table, or names a structure that isn't one of the labels.
    """
    table = {} if table is None else table
    lists = {name: [of] if isinstance(of, str) else of for name, of in table.items()} if isinstance(table, dict) else {}
    if not isinstance(table, dict) or not all(
        isinstance(of, list) and all(isinstance(one, str) for one in of) for of in lists.values()
    ):
        raise ValueError(f'"{ALSO_CALLED}" must give names for labels, as in {{"parotid right": ["Parotid_R"]}}')
    cleaned = {one_line(name): tuple(map(one_line, of)) for name, of in lists.items()}
    unknown = [name for name in cleaned if labels is not None and name not in labels[1:]]
    if unknown:
        structures = ", ".join((labels or ())[1:])
        raise ValueError(f'"{ALSO_CALLED}" has {", ".join(map(repr, unknown))}, and the structures are {structures}')
    return cleaned


def read_modalities(modalities: Any) -> tuple[str, ...] | None:
    """Names of the channels, from the decathlon's ``{"0": "CT"}``; nnU-Net v2 has the same as "channel_names".

    Raises:
        ValueError: if they don't name the channels 0, 1, 2, …
    """
    if modalities is None or modalities in ({}, [], ""):
        return None
    if isinstance(modalities, str):
        modalities = {"0": modalities}
    if isinstance(modalities, list):
        modalities = {str(number): name for number, name in enumerate(modalities)}
    numbers = [str(number) for number in range(len(modalities))] if isinstance(modalities, dict) else []
    if not numbers or set(modalities) != set(numbers) or not all(isinstance(one, str) for one in modalities.values()):
        raise ValueError('"modality" or "channel_names" must name the channels, as in {"0": "T1", "1": "FLAIR"}')
    return tuple(one_line(modalities[number]) for number in numbers)

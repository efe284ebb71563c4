"""Data lists in the decathlon's format: which scans train, which validate, and what their labels mean."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from utils.io.scan import Scan, without_endings
from utils.system.errors import InputError
from utils.system.files import text_hash

PARTS = ("training", "validation", "test")


@dataclass(frozen=True)
class DataList:
    """A data list after ``fold`` has been applied.

    Attributes:
        path: the JSON file.
        folder: the absolute folder that its paths are relative to.
        training, validation, test: its scans.
        labels: names of the values 0, 1, …, or None if the list doesn't name them.
        folds: the folds that its entries name.
    """

    path: Path
    folder: Path
    training: list[Scan]
    validation: list[Scan]
    test: list[Scan]
    labels: tuple[str, ...] | None
    folds: frozenset[int] = frozenset()

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

        def paths(scan: Scan) -> list[str]:
            image = [scan.path] if scan.is_series else scan.image
            return [os.path.relpath(path, self.folder) for path in (*image, scan.label) if path]

        parts = {"training": self.training, "validation": self.validation}
        return {part: [paths(scan) for scan in scans] for part, scans in parts.items()}

    def content_hash(self) -> str:
        """The :func:`text_hash` of its scans, their order and their labels' names."""
        return text_hash(json.dumps([self.files(), self.labels]))

    def label_names(self, out_channels: int) -> tuple[str, ...]:
        """Names of the ``out_channels`` classes.

        Raises:
            InputError: if the list names another number of them.
        """
        if self.labels is None:
            return numbered_labels(out_channels)
        if len(self.labels) != out_channels:
            raise InputError(
                f"{self.path}: names {len(self.labels)} labels (the background included), but `out_channels` is "
                f'{out_channels}. Give `out_channels` {len(self.labels)}, or mend the list\'s "labels".'
            )
        return self.labels


def numbered_labels(classes: int) -> tuple[str, ...]:
    """Names for labels without names: background, label 1, label 2, …"""
    return ("background", *(f"label {value}" for value in range(1, classes)))


def find_data_list(data_dir: str, json_list: str | None, fold: int) -> Path:
    """The file of ``json_list``, relative to ``data_dir`` or else to the working directory; or dataset_FOLD.json.

    Raises:
        InputError: if the folder or the file isn't there.
    """
    folder = _existing_folder(data_dir)
    name = json_list if json_list is not None else f"dataset_{fold}.json"
    for path in (folder / name, Path(name)):
        if path.is_file():
            return path
    others = _numbered_lists(folder) if json_list is None else []
    if others:
        raise InputError(f"{folder / name}: no such data list. `fold` can be one of {', '.join(map(str, others))}.")
    raise InputError(
        f"{folder / name}: no such data list. Give `json_list`, or write one with "
        f"`python -m utils.make_data_list --data_dir {data_dir}`."
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
            folds = {_read_fold(entry) for entry in entries if isinstance(entry, dict)}
        except ValueError as error:
            raise InputError(f"{path}: {error}. Mend the list.") from error
        found = sorted(fold for fold in folds if fold is not None)
        where = f'{path}: its "training" entries name'
    else:
        found = _numbered_lists(_existing_folder(data_dir))
        where = f"`data_dir` {data_dir}: dataset_0.json, dataset_1.json, … there give"
    if len(found) < 2:
        raise InputError(
            f"{where} {len(found)} folds, and there have to be two or more. Write lists with `python -m "
            f"utils.make_data_list --data_dir {data_dir}`, or give `json_list` for one list whose entries name folds."
        )
    return found


def _numbered_lists(folder: Path) -> list[int]:
    """The numbers N of the files dataset_N.json in a folder."""
    matches = [re.fullmatch(r"dataset_(\d+)\.json", file.name) for file in folder.glob("dataset_*.json")]
    return sorted(int(match[1]) for match in matches if match is not None and str(int(match[1])) == match[1])


def _existing_folder(data_dir: str) -> Path:
    folder = Path(data_dir)
    if not folder.is_dir():
        raise InputError(f"`data_dir` {data_dir}: no such folder. Give the folder that holds the scans.")
    return folder


def unlisted(json_list: str | None) -> DataList:
    """An empty data list, for scans that none names, with the label names of ``json_list`` if that is given.

    Raises:
        InputError: if there is no such file, or it names no labels.
    """
    if json_list is None:
        return DataList(Path("`input`"), Path("."), [], [], [], None)
    path = Path(json_list)
    try:
        labels = _read_labels(json.loads(path.read_text(encoding="utf-8")).get("labels"))
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"`json_list` {path}: can't be read as a data list ({error}).") from error
    if labels is None:
        raise InputError(f'`json_list` {path}: names no labels. Give one with "labels", or none.')
    return DataList(path, path.parent, [], [], [], labels)


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
    for part in PARTS:
        entries = content.get(part, [])
        if not isinstance(entries, list):
            faults.append(f'"{part}" must be a list')
            continue
        for number, entry in enumerate(entries):
            try:
                scan, entry_fold = _read_entry(entry, folder, needs_label=part != "test")
            except ValueError as error:
                faults.append(f'"{part}" entry {number}: {error}')
                continue
            if part == "training" and entry_fold is not None:
                folds.add(entry_fold)
                parts["validation" if entry_fold == fold else "training"].append(scan)
            else:
                parts[part].append(scan)
    labels: tuple[str, ...] | None = None
    try:
        labels = _read_labels(content.get("labels"))
    except ValueError as error:
        faults.append(str(error))
    if folds and fold not in folds:
        faults.append(f'no entry has "fold": {fold}; `fold` can be one of {", ".join(map(str, sorted(folds)))}')
    if faults:
        raise InputError(f"{path}: " + "; ".join(faults))
    named = _distinct_names(parts, folder)
    return DataList(path, folder, named["training"], named["validation"], named["test"], labels, frozenset(folds))


def _read_content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}). Mend it or write it anew.") from error
    if not isinstance(content, dict) or not any(part in content for part in PARTS):
        raise InputError(f'{path}: not a data list: it needs "training" and "validation" lists of scans.')
    return content


def _distinct_names(parts: dict[str, list[Scan]], folder: Path) -> dict[str, list[Scan]]:
    """Name each scan by its file, or if files in several folders share a name, by its path below ``folder``."""
    files: dict[str, set[Path]] = {}
    for scan in (scan for scans in parts.values() for scan in scans):
        files.setdefault(scan.name, set()).add(scan.path)

    def name(scan: Scan) -> str:
        return scan.name if len(files[scan.name]) == 1 else without_endings(os.path.relpath(scan.path, folder))

    return {part: [replace(scan, name=name(scan)) for scan in scans] for part, scans in parts.items()}


def _read_entry(entry: Any, folder: Path, needs_label: bool) -> tuple[Scan, int | None]:
    if isinstance(entry, str):  # the decathlon's test parts list bare file names
        entry = {"image": entry}
    if not isinstance(entry, dict) or "image" not in entry:
        raise ValueError('needs an "image"')
    images = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
    label = entry.get("label")
    if needs_label and not label:
        raise ValueError('needs a "label"')
    if not images or not all(isinstance(name, str) for name in [*images, label or ""]):
        raise ValueError('"image" and "label" must be file names')
    fold = _read_fold(entry)
    paths = tuple(folder / name for name in images)
    files = files_below(paths[0]) if paths[0].is_dir() else ()
    if files and len(paths) > 1:
        raise ValueError('"image" must be one folder of a DICOM series, or files')
    name = without_endings(paths[0].name)
    return Scan(name, files or paths, folder / label if label else None, is_series=bool(files)), fold


def files_below(folder: Path) -> tuple[Path, ...]:
    """All files below a folder but hidden ones, in order of their paths."""
    below = (path for path in folder.rglob("*") if path.is_file())
    return tuple(sorted(path for path in below if not any(p.startswith(".") for p in path.relative_to(folder).parts)))


def _read_fold(entry: Mapping[str, Any]) -> int | None:
    fold = entry.get("fold")
    if fold is not None and (not isinstance(fold, int) or isinstance(fold, bool)):
        raise ValueError(f'"fold" must be a whole number, not {fold!r}')
    return fold


def _read_labels(labels: Any) -> tuple[str, ...] | None:
    """Names by value, from the decathlon's ``{"1": "spleen"}`` or nnU-Net v2's ``{"spleen": 1}``."""
    if not labels:
        return None
    if isinstance(labels, Sequence) and not isinstance(labels, str):
        return tuple(str(name) for name in labels)
    problem = '"labels" must name the values 0, 1, 2, … one by one, as in {"0": "background", "1": "spleen"}'
    if not isinstance(labels, Mapping):
        raise ValueError(problem)
    by_name = all(isinstance(value, int) for value in labels.values())
    pairs = [(value, name) for name, value in labels.items()] if by_name else list(labels.items())
    try:
        names = {int(value): str(name) for value, name in pairs}
    except ValueError as error:
        raise ValueError(problem) from error
    names.setdefault(0, "background")
    if sorted(names) != list(range(len(names))):
        raise ValueError(problem)
    if len(set(names.values())) < len(names):
        raise ValueError('"labels" has a name twice')
    return tuple(names[value] for value in range(len(names)))

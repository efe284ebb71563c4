"""What the labels of a folder hold: values in label maps, structures with names in DICOM's RTSTRUCT and SEG."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from utils.data.data_list import NOT_ANNOTATED
from utils.data.folders import Entry, Folder, label_values
from utils.io.dicom_labels import open_dicom_label
from utils.io.scan import is_dicom
from utils.io.structures import Structure, match_structures, name_key, names_by_class
from utils.system.errors import InputError
from utils.system.text import few_names

MOST_SHOWN = 20  # names in a note


def read_values(data_dir: Path, folder: Folder, notes: list[str]) -> tuple[Folder, dict[str, frozenset[int]]]:
    """The values in each label file, and the folder with what the names in DICOM labels tell.

    A structure that a DICOM label lacks becomes not annotated in its scan. Without names of labels, those of all
    structures that the files have become them, in the order of the alphabet.

    Args:
        notes: gets a sentence for what is left out and why.

    Raises:
        InputError: listing all files that can't be read, are no labels, or have no structure of a label's name.
    """
    files = [entry["label"] for entry in folder.training]
    dicom = [file for file in files if _is_dicom(data_dir / file)]
    values = label_values(data_dir, (file for file in files if file not in dicom), folder.ignore)
    if not dicom:
        return folder, values
    if folder.labels is None and values:
        raise InputError(
            f"`labels`: some of the labels in {data_dir} are DICOM files ({few_names(dicom)}) and some aren't "
            f"({few_names(list(values))}). Name the values, so that structures of these names are taken."
        )
    structures = _read_structures(data_dir, dicom)
    labels = folder.labels or ("background", *_found_names(structures, folder.also_called))
    try:
        names = names_by_class(labels, folder.also_called)
    except ValueError as error:
        raise InputError(f"`labels`: {error} in DICOM labels. Give them different names.") from error
    drawn: dict[str, set[int]] = {}
    left_out: Counter[str] = Counter()
    for file, of_file in structures.items():
        found, others = match_structures(of_file, names)
        drawn[file] = {value for value, those in found.items() if any(one.is_drawn for one in those)}
        left_out.update(one.name for one in others)
        notes += [
            f"{file}: {one.name} has nothing that encloses voxels ({one.left_out}), and counts as not annotated."
            for those in found.values()
            for one in those
            if one.left_out and not one.is_drawn
        ]
    if left_out:
        shown = [f"{name} ({count} files)" for name, count in left_out.most_common(MOST_SHOWN)]
        more = f" and {len(left_out) - MOST_SHOWN} more" if len(left_out) > MOST_SHOWN else ""
        notes.append(f"{data_dir}: structures that no label has the name of, left out: {', '.join(shown)}{more}")
    if nothing := [
        f"{file} ({few_names([one.name for one in structures[file]])})" for file in dicom if not drawn[file]
    ]:
        raise InputError(
            f"`data_dir` {data_dir}: {len(nothing)} labels have none of {few_names(labels[1:])}: {few_names(nothing)}. "
            'Give their names under "also_called" in dataset.json, or move the scans elsewhere.'
        )
    training = [_annotated(entry, labels, drawn.get(entry["label"])) for entry in folder.training]
    for value, name in enumerate(labels):
        lacking = [file for file in dicom if value > 0 and value not in drawn[file]]
        if lacking:
            notes.append(f"{data_dir}: {name} is not annotated in {len(lacking)} scans: {few_names(lacking)}")
    values |= {file: frozenset({0, *of_file}) for file, of_file in drawn.items()}
    return replace(folder, training=training, labels=labels), values


def _is_dicom(path: Path) -> bool:
    try:
        return is_dicom(path)
    except (OSError, InputError):
        return False  # reading it will tell


def _read_structures(data_dir: Path, files: Sequence[str]) -> dict[str, list[Structure]]:
    """The structures of each DICOM label.

    Raises:
        InputError: listing all that can't be read.
    """
    found: dict[str, list[Structure]] = {}
    faults: list[str] = []
    for file in tqdm(files, desc="labels", leave=False, disable=None):
        try:
            found[file] = open_dicom_label(data_dir / file).structures
        except InputError as error:
            faults.append(str(error))
    if faults:
        raise InputError("; ".join(faults))
    return found


def _found_names(
    structures: Mapping[str, Sequence[Structure]], also_called: Mapping[str, Sequence[str]]
) -> tuple[str, ...]:
    """The names of all structures that are drawn, each in its most common spelling, or as ``also_called`` has it."""
    spellings: dict[str, Counter[str]] = defaultdict(Counter)
    known = {name_key(name): label for label, others in also_called.items() for name in (label, *others)}
    for of_file in structures.values():
        for one in of_file:
            name = known.get(name_key(one.name), one.name)
            if one.is_drawn and name_key(name) != "background":
                spellings[name_key(name)][name] += 1
    names = [min(found, key=lambda name: (-found[name], name)) for found in spellings.values()]
    return tuple(sorted(names, key=str.casefold))


def _annotated(entry: Entry, labels: Sequence[str], drawn: set[int] | None) -> Entry:
    """The entry, with the structures that its DICOM label lacks as not annotated; another as it is."""
    lacking = [] if drawn is None else [name for value, name in enumerate(labels) if value > 0 and value not in drawn]
    return {**entry, NOT_ANNOTATED: lacking} if lacking else entry

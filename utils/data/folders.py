"""Folders of scans as people have them: which files are a scan, what labels and channels mean, and data lists for them.

An image is a file of any format that is read, one file for each channel, or a folder with a DICOM series. A label
belongs to the image of its own name, or, where names differ as in ``img0001`` and ``label0001``, of its own number.
nnU-Net's and the decathlon's ``dataset.json`` names labels and channels. Where there is no such layout, the folder may
hold DICOM series of patients, each with an RTSTRUCT or a SEG (:mod:`utils.data.patients`).
"""

import os
import re
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from utils.data.channels import CLASSES, Channels, Region
from utils.data.data_list import (
    ALSO_CALLED,
    PARTS,
    existing_folder,
    files_below,
    load_json,
    numbered_labels,
    numbered_lists,
    read_also_called,
    read_labels,
    read_modalities,
)
from utils.data.patients import find_patients, patients_of
from utils.data.regions import IGNORE, read_regions, regions_as_json
from utils.io.dicom_labels import is_dicom_label
from utils.io.find_scans import CHANNEL, is_volume
from utils.io.reader import header_file, label_faults, read_file
from utils.io.scan import is_dicom, without_endings
from utils.system.errors import InputError, WriteError
from utils.system.files import write_json_together
from utils.system.text import SHOWN, few_names, one_line

# (images, labels, images without labels)
LAYOUTS = (
    ("imagesTr", "labelsTr", "imagesTs"),
    ("RawData/Training/img", "RawData/Training/label", "RawData/Testing/img"),
    ("Training/img", "Training/label", "Testing/img"),
    ("images", "labels", "imagesTs"),
)
DESCRIPTION = "dataset.json"
OTHER_ENDING = re.compile(r"(?<=.)\.[a-z]{3,4}(\.gz)?\Z", re.IGNORECASE)  # of a file whose content is a volume
MOST_CLASSES = np.iinfo(np.int16).max + 1  # labels are read as int16
FIRST_CHANNEL = "0000"  # also of a file whose name gives none
DEALT = re.compile(r"fold \d+ of \d+, dealt with seed \d+")  # the description of a list that was written here
SUBJECT = re.compile(r"sub-[^_]+(?=_)")  # how names of BIDS begin
Files = TypeVar("Files")
Entry = dict[str, Any]  # of a data list


@dataclass(frozen=True)
class Folder:
    """The scans of a folder.

    Attributes:
        training: entries of a data list for the labelled scans, in order of their names.
        unlabelled: the same for the others.
        labels: names of the values 0, 1, …; None if nobody gave them.
        modalities: what each channel is, such as CT; None if nobody said it.
        ignore: the value of voxels that nobody judged, if ``dataset.json`` names one.
        regions: unions of labels that it names.
        output: what the channels of a network's output are: the labels, or the regions if it says so.
        also_called: further names of labels in DICOM files, if ``dataset.json`` gives some.
        patients: of labelled scans, by their first image, as far as headers, folders or names tell.
    """

    training: list[Entry]
    unlabelled: list[Entry]
    labels: tuple[str, ...] | None
    modalities: tuple[str, ...] | None
    ignore: int | None = None
    regions: tuple[Region, ...] = ()
    output: Channels = CLASSES
    also_called: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    patients: Mapping[str, str] = field(default_factory=dict)

    def by_patient(self) -> list[list[Entry]]:
        """The labelled scans, those of one patient together. A scan whose patient isn't known is by itself."""
        groups: dict[str, list[Entry]] = {}
        for entry in self.training:
            image = _images(entry)[0]
            groups.setdefault(self.patients.get(image, image), []).append(entry)
        return list(groups.values())

    def label_names(self, values_by_file: Mapping[str, Collection[int]]) -> tuple[str, ...]:
        """The labels' names; numbered ones if the folder gives none, with one at least beside the background."""
        return self.labels or numbered_labels(max(1, *map(max, values_by_file.values())) + 1)


def read_folder(
    data_dir: Path,
    notes: list[str],
    labels: tuple[str, ...] | None = None,
    modalities: tuple[str, ...] | None = None,
) -> Folder:
    """Find the scans of a folder, and the names of labels, regions and channels in its ``dataset.json``.

    Args:
        notes: gets a sentence for what is left out and why; hidden files go without.
        labels: names of the values, of which one may be ``ignore``. By default, and only then, those in
            ``dataset.json``.
        modalities: the same for the channels. A single name is that of all.

    Raises:
        InputError: if no layout fits, images and labels don't pair off, scans have unlike channels, or ``dataset.json``
            can't be understood or names another number of channels.
    """
    training, unlabelled = find_scans(data_dir, notes)
    source = data_dir / DESCRIPTION
    content = _read_description(source, notes)
    notes += _list_notes(source, content, training, unlabelled)
    named_in = str(source) if modalities is None else "`modality`"
    ignore: int | None = None
    given = labels
    try:
        labels, ignore = read_labels(content.get("labels") if labels is None else list(labels))
    except ValueError as error:
        mend = "Mend the file" if given is None else f"The value that is called {IGNORE} has to be the last one"
        raise InputError(f"{source if given is None else '`labels`'}: {error}. {mend}.") from error
    try:
        regions, output = read_regions(content, labels)
        also_called = read_also_called(content.get(ALSO_CALLED), labels if given is None else None)
        if modalities is None:
            modalities = read_modalities(content.get("modality", content.get("channel_names")))
        elif len(modalities) == 1:
            modalities *= len(_images(training[0]))
    except ValueError as error:
        raise InputError(f"{source}: {error}. Mend the file.") from error
    if modalities is not None:
        _require_named_channels(named_in, modalities, training[0])
    also_called = {name: of for name, of in also_called.items() if labels is None or name in labels}
    patients = patients_of(data_dir, training) if _layout(data_dir) is None else _subjects(training)
    return Folder(training, unlabelled, labels, modalities, ignore, regions, output, also_called, patients)


def find_scans(data_dir: Path, notes: list[str]) -> tuple[list[Entry], list[Entry]]:
    """The labelled and the unlabelled scans of a folder, as entries of a data list, in order of their names.

    Args:
        notes: gets a sentence for what is left out and why; hidden files go without.

    Raises:
        InputError: if no layout fits, images and labels don't pair off, or scans have unlike channels.
    """
    existing_folder(str(data_dir))
    layout = _layout(data_dir)
    if layout is None:
        patients = find_patients(data_dir, notes)
        if patients[0]:
            return patients
        known = ", ".join(f"{images} with {labels}" for images, labels, _ in LAYOUTS)
        raise InputError(
            f"`data_dir` {data_dir}: holds none of the known layouts ({known}; DICOM series with RTSTRUCT or SEG). "
            "Give the folder that holds these, or arrange the scans so."
        )
    images, labels, unlabelled = layout
    label_files = _volumes(data_dir, labels, notes, may_be_series=False)
    image_files = _volumes(data_dir, images, notes)
    other_files = _volumes(data_dir, unlabelled, notes)
    label_of = {stem: files[0] for stem, files in _by_stem(label_files, data_dir).items()}
    image_of = _by_stem(image_files, data_dir)
    if set(image_of) != set(label_of):
        merged = _by_stem(image_files, data_dir, channels=True)
        alike = merged.keys() & label_of.keys() or _digits(merged) & _digits(label_of)
        if set(merged) == set(label_of) or (alike and not image_of.keys() & label_of.keys()):
            image_of = merged
    if set(image_of) != set(label_of):
        paired = set(image_of) & set(label_of)
        image_of = _by_number(image_of, paired, images, data_dir)
        label_of = _by_number(label_of, paired, labels, data_dir)
    alone = [image_of[key][0] for key in sorted(set(image_of) - set(label_of))]
    alone += [label_of[key] for key in sorted(set(label_of) - set(image_of))]
    if alone:
        raise InputError(
            f"`data_dir` {data_dir}: {len(alone)} files have no partner: {few_names(alone)}. Rename or remove them."
        )
    if not image_of:
        raise InputError(f"`data_dir` {data_dir}: no scans in {images}: no NIfTI, NRRD or MetaImage, no DICOM folders.")
    training = [{"image": _one_or_many(image_of[key]), "label": label_of[key]} for key in sorted(image_of)]
    has_channels = any(len(files) > 1 for files in image_of.values())
    by_stem = _by_stem(other_files, data_dir, has_channels)
    others = [{"image": _one_or_many(files)} for _, files in sorted(by_stem.items())]
    if has_channels:
        channels = _require_like_channels(data_dir, training)
        left_out = [Path(file).name for entry in others if _channels(entry) != channels for file in _images(entry)]
        others = [entry for entry in others if _channels(entry) == channels]
        _note_left_out(notes, unlabelled, "of a scan without the channels of the labelled ones", left_out)
    return training, others


def _layout(data_dir: Path) -> tuple[str, str, str] | None:
    return next((names for names in LAYOUTS if all(os.path.isdir(data_dir / name) for name in names[:2])), None)


def unlisted_scans(data_dir: Path, lists: Iterable[Path]) -> list[str]:
    """The images of labelled scans in a folder that none of its data lists names, wherever these have them from.

    Where the folder has no known layout, or something can't be read, none are known.
    """
    try:
        training, _ = find_scans(data_dir, [])
        contents = [load_json(path) for path in lists]
    except InputError:
        return []
    parts = [content.get(part) for content in contents if isinstance(content, dict) for part in PARTS]
    listed = set[str]().union(*map(_listed, parts))
    if _layout(data_dir) is None:  # patients' folders, below which names are alike
        entries = [entry for part in parts if isinstance(part, list) for entry in part if isinstance(entry, dict)]
        paths = [entry.get("image") for entry in entries]
        return [entry["image"] for entry in training if entry["image"] not in paths]
    return [_images(entry)[0] for entry in training if not _stems(entry) & listed]


def split_folds(groups: Sequence[Sequence[Entry]], folds: int, seed: int) -> list[list[Entry]]:
    """Deal groups of entries, shuffled by ``seed``, into ``folds`` parts of sizes as alike as can be.

    The largest groups are dealt first, each to the smallest part. Single entries make parts whose sizes differ by one
    at most.
    """
    order = np.random.default_rng(seed).permutation(len(groups)).tolist()
    parts: list[list[int]] = [[] for _ in range(folds)]
    sizes = [0] * folds
    for index in sorted(order, key=lambda index: -len(groups[index])):
        smallest = sizes.index(min(sizes))
        parts[smallest].append(index)
        sizes[smallest] += len(groups[index])
    return [[entry for index in sorted(part) for entry in groups[index]] for part in parts]


def list_paths(data_dir: Path, folder: Folder, folds: int, overwrite: bool = False) -> list[Path]:
    """The files of the lists for ``folds`` folds, after a check that they may be written.

    Raises:
        InputError: if there are too few labelled scans or patients, or something is in the way.
    """
    scans = len(folder.training)
    if scans < 2:
        raise InputError(
            f"`data_dir` {data_dir}: has {scans} labelled scan, and there have to be two or more: one to validate, the "
            "others to train. Add scans."
        )
    if scans < folds:
        raise InputError(
            f"`folds` {folds}: there are only {scans} labelled scans in {data_dir}. Give `folds` {scans}, or add scans."
        )
    patients = len(folder.by_patient())
    if patients < folds:
        number, remedy = "one patient", "Add"
        if patients > 1:
            number, remedy = f"{patients} patients", f"Give `folds` {patients}, or add"
        raise InputError(
            f"`folds` {folds}: the {scans} labelled scans in {data_dir} are of {number} (PatientID or the first "
            f"folder; sub-LABEL in names of files), and all scans of one patient belong in one fold. {remedy} scans of "
            "others."
        )
    paths = [data_dir / f"dataset_{fold}.json" for fold in range(folds)]
    existing = [str(path) for path in paths if os.path.lexists(path)]
    if existing and not overwrite:
        raise InputError(f"{', '.join(existing)}: there already. Give `overwrite` to replace them.")
    if folders := [str(path) for path in paths if path.is_dir()]:
        raise InputError(f"{', '.join(folders)}: a folder, where a list is to be written. Remove it.")
    return paths


def outdated_lists(data_dir: Path, folds: int) -> list[Path]:
    """The lists of an earlier deal into more than ``folds`` folds, as far as :func:`write_data_lists` wrote them."""
    found = []
    for path in (data_dir / f"dataset_{number}.json" for number in numbered_lists(data_dir) if number >= folds):
        with suppress(InputError):
            content = load_json(path)
            if isinstance(content, dict) and DEALT.fullmatch(str(content.get("description"))):
                found.append(path)
    return found


def write_data_lists(
    data_dir: Path, folder: Folder, folds: int, seed: int, labels: tuple[str, ...] | None, overwrite: bool = False
) -> list[Path]:
    """Write ``dataset_0.json``, ``dataset_1.json``, …, one for each fold, all or none.

    Args:
        folds: at least two.
        labels: names of the values 0, 1, …; with None the lists name none.

    Returns:
        The files of the lists.

    Raises:
        InputError: if :func:`list_paths` finds that they may not be written.
        WriteError: if they can't be written.
    """
    paths = list_paths(data_dir, folder, folds, overwrite)
    parts = split_folds(folder.by_patient(), folds, seed)
    named = {"modality": folder.modalities, "labels": labels}
    names = {
        key: {str(number): name for number, name in enumerate(texts)}
        for key, texts in named.items()
        if texts is not None
    }
    table = {ALSO_CALLED: folder.also_called} if folder.also_called else {}
    if folder.ignore is not None:
        names["labels"][str(folder.ignore)] = IGNORE
    contents = {
        path: {
            "description": f"fold {fold} of {folds}, dealt with seed {seed}",
            **names,
            **regions_as_json(folder.regions, folder.output),
            **table,
            "training": [entry for other, part in enumerate(parts) if other != fold for entry in part],
            "validation": parts[fold],
            "test": folder.unlabelled,
        }
        for fold, path in enumerate(paths)
    }
    try:
        write_json_together(contents)
    except WriteError as error:
        raise WriteError(f"{error}. No list was written, and those of before are as they were.") from error
    return paths


def label_values(data_dir: Path, files: Iterable[str], ignore: int | None = None) -> dict[str, frozenset[int]]:
    """The values in each of the label files, but ``ignore``.

    Raises:
        InputError: listing all that can't be read, or are no label maps.
    """
    faults: list[str] = []

    def values_in(name: str) -> frozenset[int]:
        path = data_dir / name
        try:
            label = read_file(path)
        except InputError as error:
            faults.append(str(error))
            return frozenset()
        if wrong := label_faults(path, label, MOST_CLASSES):
            faults.extend(wrong)
            return frozenset()
        found = np.zeros(MOST_CLASSES, bool)
        for plane in label.voxels[0]:
            found[np.rint(plane).astype(np.int16)] = True
        if ignore is not None:
            found[ignore] = False
        return frozenset(np.flatnonzero(found).tolist())

    names = list(files)
    with ThreadPoolExecutor() as pool:
        values = list(tqdm(pool.map(values_in, names), total=len(names), desc="labels", leave=False, disable=None))
    if faults:
        raise InputError("; ".join(faults))
    return dict(zip(names, values, strict=True))


def label_value_faults(
    labels: Sequence[str], values_by_file: Mapping[str, Collection[int]], ignore: int | None = None
) -> list[str]:
    """How names and values of the labels disagree, each in words that belong behind the place of the names.

    Args:
        labels: names of the values 0, 1, …
        values_by_file: the values in each label file.
        ignore: the value that the place of its name gave to ``ignore``, if it did.
    """
    return unnamed_values(labels, values_by_file, ignore) + absent_classes(labels, values_by_file)


def unnamed_values(
    labels: Sequence[str], values_by_file: Mapping[str, Collection[int]], ignore: int | None = None
) -> list[str]:
    """That label files have values without a name: what to say behind the place of the names, or nothing."""
    beyond = {file: max(values) for file, values in values_by_file.items() if max(values, default=0) >= len(labels)}
    if not beyond:
        return []
    highest = max(beyond.values())
    file = next(file for file, value in beyond.items() if value == highest)
    more = f", and {len(beyond) - 1} more files go beyond the names" if len(beyond) > 1 else ""
    unnamed = {value for values in values_by_file.values() for value in values if value >= len(labels)}
    hint = ""
    if ignore is not None and len(unnamed) == 1:
        hint = f' "{IGNORE}" is the value {ignore} here; {DESCRIPTION} can give it another, as {highest}.'
    return [
        f"names {len(labels)} labels, but the files have the values 0 … {highest} ({one_line(file)} has {highest}"
        f"{more}). Name each value, the background included, or remap the files.{hint}"
    ]


def absent_classes(labels: Sequence[str], values_by_file: Mapping[str, Collection[int]]) -> list[str]:
    """Which structures no label file has: a sentence, or none."""
    found = {value for values in values_by_file.values() for value in values}
    absent = [f"the value {value} ({name})" for value, name in enumerate(labels) if value > 0 and value not in found]
    if not absent:
        return []
    return [
        f"none of the {len(values_by_file)} label files has {few_names(absent)}. Add a scan that has it, or remap the "
        "files' values to 0, 1, 2, … and name those alone."
    ]


def _read_description(path: Path, notes: list[str]) -> dict[str, Any]:
    """What ``dataset.json`` says; nothing if there is none, or it describes no data set."""
    if not os.path.lexists(path):
        return {}
    content = load_json(path)
    if not isinstance(content, dict):
        raise InputError(f'{path}: describes no data set: it needs "labels" and "channel_names". Mend or remove it.')
    if not {"labels", "modality", "channel_names", ALSO_CALLED} & content.keys():
        notes.append(f"{path}: left alone; it names neither labels nor channels.")
        return {}
    return content


def _list_notes(path: Path, content: Mapping[str, Any], training: list[Entry], unlabelled: list[Entry]) -> list[str]:
    """How the lists in ``dataset.json`` differ from what is in the folders, a sentence each."""
    listed = {part: _listed(content.get(part)) for part in ("training", "test")}
    there = {stem for entry in (*training, *unlabelled) for stem in _stems(entry)}
    notes = []
    if missing := sorted((listed["training"] | listed["test"]) - there):
        notes.append(
            f"{path}: lists {len(missing)} scans that aren't there ({few_names(missing)}). Those in the folders are "
            "taken."
        )
    others = [_images(entry)[0] for entry in training if not _stems(entry) & listed["training"]]
    if listed["training"] and others:
        notes.append(f"{path}: doesn't list {len(others)} scans ({few_names(others)}). They are taken, too.")
    return notes


def _listed(entries: Any) -> set[str]:
    """The stems of the images in a list of ``dataset.json`` or in a part of a data list, as far as it is one."""
    if not isinstance(entries, list):
        return set()
    images = (entry.get("image") if isinstance(entry, dict) else entry for entry in entries)
    files = (file for image in images for file in (image if isinstance(image, list) else [image]))
    return {_stem(Path(file).name) for file in files if isinstance(file, str)}


def _stems(entry: Entry) -> set[str]:
    """What a list may call a scan: nnU-Net's first version lists ``case.nii.gz`` for ``case_0000.nii.gz``."""
    stems = {_stem(Path(file).name) for file in _images(entry)}
    return stems | {_channel(stem)[0] for stem in stems}


def _require_named_channels(named_in: str, modalities: tuple[str, ...], entry: Entry) -> None:
    """Check that there is a name for each file of a scan; a single one may hold several channels."""
    files = _images(entry)
    has_numbers = len(files) > 1 or _stem(Path(files[0]).name) == f"{_stem(Path(entry['label']).name)}_{FIRST_CHANNEL}"
    if has_numbers and len(files) != len(modalities):
        raise InputError(
            f"{named_in}: names {len(modalities)} channels ({few_names(modalities)}), but each scan has {len(files)} "
            f"({few_names(files)}). Name each channel, or add the files that are missing."
        )


def _require_like_channels(data_dir: Path, entries: Iterable[Entry]) -> tuple[str, ...]:
    """The channels' numbers, which have to be the same in all scans."""
    by_channels: dict[tuple[str, ...], list[Entry]] = {}
    for entry in entries:
        by_channels.setdefault(_channels(entry), []).append(entry)
    (channels, _), *others = ranked = sorted(by_channels.items(), key=lambda item: -len(item[1]))
    if others:
        kinds = "; ".join(f"{len(group)} like {few_names(_images(group[0]))}" for _, group in ranked[:SHOWN])
        raise InputError(
            f"`data_dir` {data_dir}: scans have unlike channels: {kinds}. Add the files that are missing, or move the "
            "scans that lack them and their labels elsewhere."
        )
    return channels


def _channels(entry: Entry) -> tuple[str, ...]:
    return tuple(_channel(_stem(Path(file).name))[1] for file in _images(entry))


def _channel(stem: str) -> tuple[str, str]:
    """The name of a scan and the number of the channel."""
    match = CHANNEL.fullmatch(stem)
    return (match["scan"], match["channel"]) if match else (stem, FIRST_CHANNEL)


def _subjects(training: Iterable[Entry]) -> dict[str, str]:
    """The subject of each scan whose name begins with one as in BIDS, by its first image."""
    first = [_images(entry)[0] for entry in training]
    return {image: found[0] for image in first if (found := SUBJECT.match(Path(image).name))}


def _images(entry: Entry) -> list[str]:
    return entry["image"] if isinstance(entry["image"], list) else [entry["image"]]


def _volumes(data_dir: Path, folder: str, notes: list[str], may_be_series: bool = True) -> list[str]:
    """The volumes in a folder, and below it the folders of DICOM series, as paths from ``data_dir``."""
    if not os.path.isdir(data_dir / folder):
        return []
    found: list[str] = []
    left_out: dict[str, list[str]] = {}  # names by reason
    try:
        for path in sorted((data_dir / folder).iterdir()):
            if path.name.startswith(".") or header_file(path) != path:  # the header of a pair stands for both
                continue
            if (reason := _why_left_out(path, may_be_series)) is None:
                found.append(f"{folder}/{path.name}")
            else:
                left_out.setdefault(reason, []).append(path.name)
    except OSError as error:
        raise InputError(f"`data_dir` {data_dir}: {folder} can't be read ({error.strerror}).") from error
    for reason, names in left_out.items():
        _note_left_out(notes, folder, reason, names)
    return found


def _note_left_out(notes: list[str], folder: str, reason: str, names: Sequence[str]) -> None:
    if len(names) == 1:
        notes.append(f"{folder}/{one_line(names[0])}: left out ({reason}).")
    elif names:
        notes.append(f"{folder}: {len(names)} left out ({reason}): {few_names(names)}")


def _why_left_out(path: Path, may_be_series: bool) -> str | None:
    """Why something in a folder of scans is none; None if it is one."""
    if path.is_dir():
        if not may_be_series:
            return "a folder; a label is one file"
        return None if _holds_dicom(path) else "a folder without DICOM slices that can be read"
    if not path.exists():
        return "a link that leads nowhere"
    if not path.is_file():
        return "a pipe, a socket or a device"
    try:
        if not may_be_series and is_dicom(path) and is_dicom_label(path):
            return None
        if is_dicom(path) or path.suffix.lower() == ".dcm":
            return (
                "a single DICOM file; a series needs a folder of its own"
                if may_be_series
                else "a DICOM file, and neither RTSTRUCT nor SEG"
            )
        return None if is_volume(path) else "no volume: neither NIfTI, NRRD, MetaImage nor another format that is read"
    except InputError as error:
        return str(error).removeprefix(f"{path}: ").removesuffix(".")
    except (OSError, EOFError, zlib.error) as error:
        return f"can't be read: {getattr(error, 'strerror', None) or 'it is cut off or damaged'}"


def _holds_dicom(folder: Path) -> bool:
    def is_slice(file: Path) -> bool:
        try:
            return is_dicom(file)
        except OSError:
            return False  # if all are like this, the folder is left out; else the data check names it

    return any(map(is_slice, files_below(folder)))


def _by_stem(files: Iterable[str], data_dir: Path, channels: bool = False) -> dict[str, list[str]]:
    """Volumes by the stem of their names; with ``channels``, ``scan_0000``, ``scan_0001``, … make one scan."""
    found: dict[str, dict[str, str]] = {}  # by stem and channel
    for file in files:
        stem = _stem(Path(file).name)
        scan, channel = _channel(stem) if channels else (stem, FIRST_CHANNEL)
        other = found.setdefault(scan, {}).setdefault(channel, file)
        if other != file:
            names = f"{one_line(other)} and {one_line(file)}"
            raise InputError(f"`data_dir` {data_dir}: {names} are one scan twice. Remove one.")
    return {scan: [file for _, file in sorted(of_channel.items())] for scan, of_channel in found.items()}


def _stem(name: str) -> str:
    stem = without_endings(name)
    return OTHER_ENDING.sub("", name) if stem == name else stem


def _by_number(files: Mapping[str, Files], paired: Collection[str], folder: str, data_dir: Path) -> dict[str, Files]:
    """The same by the numbers in their stems.

    Args:
        paired: stems with a partner of their own name, which need no number.
    """
    stems: dict[str, str] = {}
    for stem in files:
        (digits,) = _digits([stem])
        if not digits and stem not in paired:
            raise InputError(
                f"`data_dir` {data_dir}: {folder}/{one_line(stem)} has neither a partner of its name nor a number to "
                "find one by. Rename or remove it."
            )
        other = stems.setdefault(digits or stem, stem)
        if other != stem:
            raise InputError(
                f"`data_dir` {data_dir}: {folder}/{one_line(other)} and {one_line(stem)} have the same number, and not "
                "all images and labels have names that are alike. Rename them."
            )
    return {number: files[stem] for number, stem in stems.items()}


def _digits(stems: Iterable[str]) -> set[str]:
    return {"-".join(re.findall(r"\d+", stem)) for stem in stems}


def _one_or_many(files: list[str]) -> str | list[str]:
    return files if len(files) > 1 else files[0]

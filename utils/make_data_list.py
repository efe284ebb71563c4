"""Write ``dataset_0.json``, ``dataset_1.json``, … for a folder: ``python -m utils.make_data_list --data_dir DIR``.

Two layouts are known: ``imagesTr`` and ``labelsTr`` (and ``imagesTs`` without labels), as the decathlon, nnU-Net and
our phantoms have them, and BTCV's original download, ``RawData/Training/img`` and ``RawData/Training/label``. An image
is a file of any format that is read, one file for each channel, or a folder with a DICOM series. A label belongs to the
image of its own name, or, where names differ as in ``img0001`` and ``label0001``, of its own number. What is left out
is named.
"""

import argparse
import os
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from utils.config.messages import name_flags
from utils.config.parser import Parser, count, whole
from utils.data.data_list import clean_labels, files_below, numbered_labels
from utils.io.dicom_series import is_dicom
from utils.io.find_scans import CHANNEL, is_volume
from utils.io.reader import header_file, label_faults, read_file
from utils.io.scan import without_endings
from utils.system.errors import InputError, WriteError, one_line_errors
from utils.system.files import write_json_together
from utils.system.text import one_line

# (images, labels, images without labels)
LAYOUTS = (
    ("imagesTr", "labelsTr", "imagesTs"),
    ("RawData/Training/img", "RawData/Training/label", "RawData/Testing/img"),
    ("Training/img", "Training/label", "Testing/img"),
)
OTHER_ENDING = re.compile(r"(?<=.)\.[a-z]{3,4}(\.gz)?\Z", re.IGNORECASE)  # of a file whose content is a volume
MOST_CLASSES = np.iinfo(np.int16).max + 1  # labels are read as int16
SHOWN_NAMES = 10  # in a note about many files
Files = TypeVar("Files")


def find_scans(data_dir: Path, notes: list[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The labelled and the unlabelled scans of a folder, as entries of a data list, in order of their names.

    Args:
        notes: gets a sentence for what is left out and why; hidden files go without.

    Raises:
        InputError: if no layout fits, or images and labels don't pair off.
    """
    layout = next((names for names in LAYOUTS if all((data_dir / name).is_dir() for name in names[:2])), None)
    if layout is None:
        known = ", ".join(f"{images} with {labels}" for images, labels, _ in LAYOUTS)
        raise InputError(f"--data_dir {data_dir}: holds none of the known layouts ({known}).")
    images, labels, unlabelled = layout
    label_files = _volumes(data_dir, labels, notes, may_be_series=False)
    image_files = _volumes(data_dir, images, notes)
    other_files = _volumes(data_dir, unlabelled, notes)
    label_of = {stem: files[0] for stem, files in _by_stem(label_files, data_dir).items()}
    image_of = _by_stem(image_files, data_dir)
    merged = _by_stem(image_files, data_dir, channels=True)
    if not image_of.keys() & label_of.keys() and (
        merged.keys() & label_of.keys() or _digits(merged) & _digits(label_of)
    ):
        image_of = merged
    if set(image_of) != set(label_of):
        image_of = _by_number(image_of, images, data_dir)
        label_of = _by_number(label_of, labels, data_dir)
    alone = [image_of[key][0] for key in sorted(set(image_of) - set(label_of))]
    alone += [label_of[key] for key in sorted(set(label_of) - set(image_of))]
    if alone:
        raise InputError(
            f"--data_dir {data_dir}: {len(alone)} files have no partner: {', '.join(map(one_line, alone))}. Rename or "
            "remove them."
        )
    if not image_of:
        raise InputError(f"--data_dir {data_dir}: no scans in {images}: no NIfTI, NRRD or MetaImage, no DICOM folders.")
    training = [{"image": _one_or_many(image_of[key]), "label": label_of[key]} for key in sorted(image_of)]
    has_channels = any(len(files) > 1 for files in image_of.values())
    others = _by_stem(other_files, data_dir, channels=has_channels)
    return training, [{"image": _one_or_many(files)} for _, files in sorted(others.items())]


def split_folds(entries: Sequence[dict[str, Any]], folds: int, seed: int) -> list[list[dict[str, Any]]]:
    """Deal the entries, shuffled by ``seed``, into ``folds`` parts whose sizes differ by one at most."""
    order = np.random.default_rng(seed).permutation(len(entries))
    return [[entries[index] for index in sorted(order[fold::folds])] for fold in range(folds)]


def highest_label(data_dir: Path, files: Iterable[str]) -> int:
    """The highest value in any of the label files.

    Raises:
        InputError: listing all that can't be read, or are no label maps.
    """
    faults: list[str] = []

    def highest(name: str) -> int:
        path = data_dir / name
        try:
            label = read_file(path)
        except InputError as error:
            faults.append(str(error))
            return 0
        if wrong := label_faults(path, label, MOST_CLASSES):
            faults.extend(wrong)
            return 0
        return round(float(label.voxels.max()))

    names = list(files)
    with ThreadPoolExecutor() as pool:
        values = list(tqdm(pool.map(highest, names), total=len(names), desc="labels", leave=False, disable=None))
    if faults:
        raise InputError("; ".join(faults))
    return max(values)


def _volumes(data_dir: Path, folder: str, notes: list[str], may_be_series: bool = True) -> list[str]:
    """The volumes in a folder, and below it the folders of DICOM series, as paths from ``data_dir``."""
    if not (data_dir / folder).is_dir():
        return []
    try:
        paths = sorted((data_dir / folder).iterdir())
    except OSError as error:
        raise InputError(f"--data_dir {data_dir}: {folder} can't be read ({error.strerror}).") from error
    found: list[str] = []
    left_out: dict[str, list[str]] = {}  # names by reason
    for path in paths:
        if path.name.startswith(".") or header_file(path) != path:  # the header of a pair stands for both
            continue
        if (reason := _why_left_out(path, may_be_series)) is None:
            found.append(f"{folder}/{path.name}")
        else:
            left_out.setdefault(reason, []).append(one_line(path.name))
    for reason, names in left_out.items():
        if len(names) == 1:
            notes.append(f"{folder}/{names[0]}: left out ({reason}).")
        else:
            shown = ", ".join(names[:SHOWN_NAMES]) + (", …" if len(names) > SHOWN_NAMES else "")
            notes.append(f"{folder}: {len(names)} left out ({reason}): {shown}")
    return found


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
        if is_dicom(path) or path.suffix.lower() == ".dcm":
            return "a single DICOM file; a series needs a folder of its own" if may_be_series else "a DICOM file"
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
    found: dict[str, list[str]] = {}
    for file in files:
        stem = _stem(Path(file).name)
        if channels and (channel := CHANNEL.fullmatch(stem)):
            stem = channel["scan"]
        elif stem in found:
            names = f"{one_line(found[stem][0])} and {one_line(file)}"
            raise InputError(f"--data_dir {data_dir}: {names} are one scan twice. Remove one.")
        found.setdefault(stem, []).append(file)
    return found


def _stem(name: str) -> str:
    stem = without_endings(name)
    return OTHER_ENDING.sub("", name) if stem == name else stem


def _by_number(files: Mapping[str, Files], folder: str, data_dir: Path) -> dict[str, Files]:
    """The same by the numbers in their stems."""
    stems: dict[str, str] = {}
    for stem in files:
        other = stems.setdefault(_number(stem, folder, data_dir), stem)
        if other != stem:
            raise InputError(
                f"--data_dir {data_dir}: {folder}/{other} and {stem} have the same number, and not all images and "
                "labels have names that are alike. Rename them."
            )
    return {number: files[stem] for number, stem in stems.items()}


def _digits(stems: Iterable[str]) -> set[str]:
    return {"-".join(re.findall(r"\d+", stem)) for stem in stems}


def _number(stem: str, folder: str, data_dir: Path) -> str:
    (digits,) = _digits([stem])
    if not digits:
        raise InputError(
            f"--data_dir {data_dir}: {folder}/{stem} has neither a partner of its name nor a number to find one by."
        )
    return digits


def _one_or_many(files: list[str]) -> str | list[str]:
    return files if len(files) > 1 else files[0]


def _parse() -> argparse.Namespace:
    parser = Parser(prog="python -m utils.make_data_list", description="Write one data list for each fold.")
    parser.add_argument("--data_dir", required=True, help="folder of the scans; the lists are written there")
    parser.add_argument("--folds", type=count, default=5, help="number of folds, at least 2")
    parser.add_argument("--seed", type=whole, default=0, help="another seed deals the scans otherwise")
    parser.add_argument("--labels", help="names of the labels 0, 1, …, with commas between: background,spleen,…")
    parser.add_argument("--modality", default="CT", help="what the images are")
    parser.add_argument("--overwrite", action="store_true", help="replace lists that are there already")
    args = parser.parse_args()
    if args.folds < 2:
        parser.error("--folds must be at least 2: one to validate, the others to train")
    return args


def main(args: argparse.Namespace) -> None:
    """Write the lists that the flags ask for."""
    data_dir = Path(args.data_dir)
    notes: list[str] = []
    try:
        training, unlabelled = find_scans(data_dir, notes)
    finally:  # what was left out may be what is missing
        for note in notes:
            print(f"note: {note}")
    if len(training) < args.folds:
        raise InputError(f"--folds {args.folds}: there are only {len(training)} labelled scans in {data_dir}.")
    paths = [data_dir / f"dataset_{fold}.json" for fold in range(args.folds)]
    existing = [str(path) for path in paths if os.path.lexists(path)]
    if existing and not args.overwrite:
        raise InputError(f"{', '.join(existing)}: there already. Give --overwrite to replace them.")
    if folders := [str(path) for path in paths if path.is_dir()]:
        raise InputError(f"{', '.join(folders)}: a folder, where a list is to be written. Remove it.")

    classes = highest_label(data_dir, (entry["label"] for entry in training)) + 1
    names = _label_names(args.labels) if args.labels is not None else numbered_labels(classes)
    if len(names) < classes:
        raise InputError(f"--labels: names {len(names)} labels, but the files have the values 0 … {classes - 1}.")
    parts = split_folds(training, args.folds, args.seed)
    contents = {
        path: {
            "description": f"fold {fold} of {args.folds}, dealt with seed {args.seed}",
            "modality": {"0": args.modality},
            "labels": {str(value): name for value, name in enumerate(names)},
            "training": [entry for other, part in enumerate(parts) if other != fold for entry in part],
            "validation": parts[fold],
            "test": unlabelled,
        }
        for fold, path in enumerate(paths)
    }
    try:
        write_json_together(contents)
    except WriteError as error:
        raise WriteError(f"{error}. No list was written, and those of before are as they were.") from error
    print(f"{len(training)} labelled scans in {args.folds} folds: {paths[0]} … {paths[-1].name}")
    print(f"train with --data_dir {data_dir} --fold 0 --out_channels {len(names)}")


def _label_names(text: str) -> tuple[str, ...]:
    try:
        return clean_labels(text.split(","))
    except ValueError as error:
        raise InputError(f"--labels: {error}. Give a name for each value: background,spleen,…") from error


if __name__ == "__main__":
    with one_line_errors(name_flags):
        main(_parse())

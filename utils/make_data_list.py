"""Write ``dataset_0.json``, ``dataset_1.json``, … for a folder: ``python -m utils.make_data_list --data_dir DIR``.

Which folders it understands, :mod:`utils.data.folders` tells. Names of labels and channels are those of the flags, or
else of the folder's ``dataset.json``.
"""

import argparse
import shlex
from pathlib import Path

from utils.config.messages import name_flags
from utils.config.parser import Parser, count, file_path, whole
from utils.data.data_list import clean_labels
from utils.data.folders import (
    DESCRIPTION,
    absent_classes,
    list_paths,
    outdated_lists,
    read_folder,
    unnamed_values,
    write_data_lists,
)
from utils.data.label_names import read_values
from utils.system.errors import InputError, one_line_errors
from utils.system.files import remove, writable_folder
from utils.system.text import few_names, one_line


def _parse() -> argparse.Namespace:
    parser = Parser(prog="python -m utils.make_data_list", description="Write one data list for each fold.")
    parser.add_argument(
        "--data_dir", type=file_path, required=True, help="folder of the scans; the lists are written there"
    )
    parser.add_argument("--folds", type=count, default=5, help="number of folds, at least 2")
    parser.add_argument("--seed", type=whole, default=0, help="another seed deals the scans otherwise")
    parser.add_argument("--labels", help="names of the labels 0, 1, …, with commas between: background,spleen,…")
    parser.add_argument("--modality", help="what the images are: CT, or for several channels T1,FLAIR,…")
    parser.add_argument("--overwrite", action="store_true", help="replace lists that are there already")
    args = parser.parse_args()
    if args.folds < 2:
        parser.error("--folds must be at least 2: one to validate, the others to train")
    return args


def main(args: argparse.Namespace) -> None:
    """Write the lists that the flags ask for."""
    data_dir = Path(args.data_dir)
    labels = _label_names(args.labels) if args.labels is not None else None
    modalities = _channel_names(args.modality) if args.modality is not None else None
    notes: list[str] = []
    try:
        folder = read_folder(data_dir, notes, labels, modalities)
    finally:  # what was left out may be what is missing
        for note in notes:
            print(f"note: {note}")
    list_paths(data_dir, folder, args.folds, args.overwrite)  # else found out after all labels have been read
    writable_folder(data_dir, "`data_dir`")

    notes.clear()
    try:
        folder, values = read_values(data_dir, folder, notes)
    finally:
        for note in notes:
            print(f"note: {note}")
    names = folder.label_names(values)
    described = data_dir / DESCRIPTION if folder.labels is not None else data_dir
    source = "--labels" if labels is not None else str(described)
    if faults := unnamed_values(names, values, None if labels is None else folder.ignore):
        raise InputError(f"{source}: {'; '.join(faults)}")
    paths = write_data_lists(data_dir, folder, args.folds, args.seed, names, args.overwrite)
    if args.overwrite and (outdated := outdated_lists(data_dir, args.folds)):
        for path in outdated:
            remove(path)
        print(f"removed, as lists of an earlier deal: {few_names([path.name for path in outdated])}")
    for fault in absent_classes(names, values):
        print(f"note: {source}: {fault}")
    patients = len(folder.by_patient())
    of_patients = f" of {patients} patients" if patients < len(folder.training) else ""
    print(f"{len(folder.training)} labelled scans{of_patients} in {args.folds} folds: {paths[0]} … {paths[-1].name}")
    print(
        f"train with --data_dir {shlex.quote(str(data_dir))} --fold 0, or let python -m utils.plan choose its settings"
    )


def _label_names(text: str) -> tuple[str, ...]:
    try:
        return clean_labels(text.split(","))
    except ValueError as error:
        raise InputError(f"--labels: {error}. Give a name for each value: background,spleen,…") from error


def _channel_names(text: str) -> tuple[str, ...]:
    names = tuple(map(one_line, text.split(",")))
    if not all(names):
        raise InputError("--modality: has an empty name. Give a name for each channel: CT, or T1,FLAIR,…")
    return names


if __name__ == "__main__":
    with one_line_errors(name_flags):
        main(_parse())

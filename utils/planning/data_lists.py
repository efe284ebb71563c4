"""Data lists of a folder of scans, written where there are none, and compared with it where there are."""

import shlex
from pathlib import Path

from utils.data.data_list import DataList, numbered_lists
from utils.data.folders import (
    DESCRIPTION,
    label_value_faults,
    list_paths,
    read_folder,
    unlisted_scans,
    write_data_lists,
)
from utils.data.label_names import read_values
from utils.data.regions import IGNORE
from utils.distributed.process import Process
from utils.system.errors import InputError
from utils.system.text import few_names

MOST_FOLDS = 5


def write_missing_lists(data_dir: Path, fold: int, labels: tuple[str, ...] | None, process: Process) -> list[Path]:
    """Write data lists for a folder that has none, unless the labels' names and values disagree.

    Args:
        fold: one that there has to be.
        labels: names of the values; by default those that the folder gives.

    Returns:
        Those that were written, one for each fold.

    Raises:
        InputError: if they disagree, the folder holds no pairs of images and labels, or a label can't be read.
    """
    if numbered_lists(data_dir):
        return []
    notes: list[str] = []
    try:
        folder = read_folder(data_dir, notes, labels)
    finally:  # what was left out may be what is missing
        for note in notes:
            process.say(f"note: {note}")
    folds = min(MOST_FOLDS, max(2, len(folder.by_patient())))
    list_paths(data_dir, folder, folds)  # before all labels are read
    if fold >= folds:
        raise InputError(f"`fold` {fold}: {len(folder.training)} scans make {folds} folds. Give a lower one.")
    notes.clear()
    try:
        folder, values = read_values(data_dir, folder, notes)
    finally:
        for note in notes:
            process.say(f"note: {note}")
    names = folder.label_names(values)
    if faults := label_value_faults(names, values, None if labels is None else folder.ignore):
        named_in = data_dir / DESCRIPTION if folder.labels is not None else data_dir
        raise InputError(f"{named_in if labels is None else '`labels`'}: {' '.join(faults)}")
    return write_data_lists(data_dir, folder, folds, 0, names)


def say_unlisted(data_dir: Path, process: Process) -> None:
    """Say which labelled scans of a folder are in none of its data lists, as those that came later."""
    lists = [data_dir / f"dataset_{fold}.json" for fold in numbered_lists(data_dir)]
    if scans := unlisted_scans(data_dir, lists):
        process.say(
            f"note: labelled scans that no data list of {data_dir} has: {len(scans)} ({few_names(scans)}). To take "
            "them in, remove all its lists and plan again, or write them anew with `python -m utils.make_data_list "
            f"--overwrite --data_dir {shlex.quote(str(data_dir))}`. Give the labels' names again if no {DESCRIPTION} "
            "has them."
        )


def require_labels(data: DataList, labels: tuple[str, ...] | None) -> None:
    """Check that a data list names the labels as they were given, if they were: training takes its names alone.

    Raises:
        InputError: if it doesn't.
    """
    if labels is not None and tuple(name for name in labels if name != IGNORE) != data.labels:
        found = "no labels" if data.labels is None else f"the labels otherwise ({few_names(data.labels)})"
        raise InputError(
            f"`labels`: {data.path} is there already and names {found}, and training takes the names from there. "
            'Remove these lists to have them written anew, or change "labels" in each of them.'
        )

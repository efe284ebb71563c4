"""Folders of patients: DICOM series, and the RTSTRUCT and SEG files that were drawn on them."""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.data.data_list import files_below
from utils.io.dicom_labels import is_dicom_label, open_dicom_label
from utils.io.dicom_series import Series, common_folder, find_series, quiet_pydicom, read_dicom
from utils.io.scan import is_dicom
from utils.system.errors import InputError
from utils.system.text import few_names

Entry = dict[str, Any]  # of a data list


@dataclass(frozen=True)
class _Source:
    """A series with its folder, as a path from the data's, and its identifiers."""

    series: Series
    folder: str
    uid: str
    frame: str


def find_patients(data_dir: Path, notes: list[str]) -> tuple[list[Entry], list[Entry]]:
    """The DICOM series below a folder that have a label, and the others, as entries of a data list.

    A label belongs to the series that it names, wherever its file lies, or else to the only series in its frame of
    reference.

    Args:
        notes: gets a sentence for what is left out and why.

    Returns:
        Both are empty if there is no RTSTRUCT and no SEG.

    Raises:
        InputError: listing each label that can't be read or has no series, series with two labels, and folders that
            hold a series with a label and another one.
    """
    files = [path for path in files_below(data_dir) if _is_dicom(path)]
    label_files = [path for path in files if is_dicom_label(path)]
    if not label_files:
        return [], []
    series, remarks = find_series([path for path in files if path not in set(label_files)])
    notes += remarks
    sources = [_source(one, data_dir) for one in series]
    faults: list[str] = []
    labels: dict[str, list[Path]] = defaultdict(list)  # by the folder of their series
    for path in label_files:
        try:
            source, in_frame = _series_of(path, sources)
        except InputError as error:
            faults.append(str(error))
            continue
        labels[source.folder].append(path)
        if in_frame:
            notes.append(
                f"{path}: its series isn't there; taken for {source.folder}, the only one in its frame of reference."
            )
    faults += [
        f"{data_dir / folder}: has {len(paths)} labels "
        f"({few_names([os.path.relpath(one, data_dir) for one in paths])}). Keep one of them."
        for folder, paths in labels.items()
        if len(paths) > 1
    ]
    training, unlabelled = [], []
    for source in sorted(sources, key=lambda one: one.folder):
        others = [one for one in sources if one is not source and _is_within(one.folder, source.folder)]
        if source.folder in labels and others:
            faults.append(
                f"{data_dir / source.folder}: holds {len(others) + 1} DICOM series, and a data list names a series by "
                "its folder. Give each a folder of its own."
            )
        elif source.folder in labels:
            label = os.path.relpath(labels[source.folder][0], data_dir)
            training.append({"image": source.folder, "label": label})
        elif others:
            notes.append(f"{data_dir / source.folder}: left out, as the folder holds {len(others) + 1} DICOM series.")
        else:
            unlabelled.append({"image": source.folder})
    if faults:
        raise InputError("; ".join(dict.fromkeys(faults)))
    return training, unlabelled


@quiet_pydicom()
def patients_of(data_dir: Path, training: Sequence[Entry]) -> dict[str, str]:
    """The patient of each series in :func:`find_patients`'s entries, by the folder that the entry names.

    That is the header's PatientID, or where it is empty the first folder of the path. An identifier that all series
    have tells no patients apart: programs that take names away may write one for all.
    """
    identifiers = {entry["image"]: _patient_id(data_dir / entry["image"]) for entry in training}
    known = identifiers if len(set(identifiers.values())) > 1 else {}
    return {folder: known.get(folder) or Path(folder).parts[0] for folder in identifiers if folder != "."}


def _patient_id(folder: Path) -> str:
    try:
        file = next(path for path in files_below(folder) if _is_dicom(path) and not is_dicom_label(path))
        return str(
            read_dicom(file, stop_before_pixels=True, specific_tags=["PatientID"]).get("PatientID") or ""
        ).strip()
    except Exception:  # damaged bytes raise whatever they happen to break in pydicom; the data check tells
        return ""


def _is_dicom(path: Path) -> bool:
    try:
        return is_dicom(path)
    except (OSError, InputError):
        return False


@quiet_pydicom()
def _source(series: Series, data_dir: Path) -> _Source:
    folder = os.path.relpath(common_folder(series.files), data_dir.absolute())
    try:
        tags: list[Any] = ["SeriesInstanceUID", "FrameOfReferenceUID"]
        header = read_dicom(series.files[0], stop_before_pixels=True, specific_tags=tags)
        identifiers = [str(header.get(tag) or "") for tag in tags]
    except Exception:  # damaged bytes raise whatever they happen to break in pydicom; the data check tells
        identifiers = ["", ""]
    return _Source(series, folder, *identifiers)


def _series_of(path: Path, sources: Sequence[_Source]) -> tuple[_Source, bool]:
    """The series of a label, and whether the frame of reference alone tells it.

    Raises:
        InputError: if there is none, or the label can't be read.
    """
    label = open_dicom_label(path)
    named = [one for one in sources if one.uid in label.series - {""}]
    if len(named) == 1:
        return named[0], False
    in_frame = [one for one in sources if one.frame in label.frames - {""}]
    if len(named) > 1 or len(in_frame) > 1:
        raise InputError(
            f"{path}: may be of any of the series {few_names([one.folder for one in named or in_frame])}. Keep its own."
        )
    if not in_frame:
        raise InputError(f"{path}: its DICOM series isn't there. Add the series, or move the file elsewhere.")
    return in_frame[0], True


def _is_within(folder: str, other: str) -> bool:
    return other == "." or Path(folder).is_relative_to(other)

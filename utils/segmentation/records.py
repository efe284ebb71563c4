"""The record of each scan in the output folder.

It is written twice: before the first result, listing the files in progress, and after the last, with the measurements
and everything the results were made with.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from networks.registry import OF_THE_WINDOW
from utils.io.reader import scan_files
from utils.io.scan import Scan
from utils.segmentation.job import SegmentationJob
from utils.system.errors import InputError
from utils.system.files import content_hash, file_state, remove, write_json

IN_PROGRESS = "begun"  # the key, in the record of an unfinished scan, of the files that may exist
CHANGED = "was changed after it was written"


def finished(scan: Scan, job: SegmentationJob) -> dict[str, Any] | None:
    """The record of a scan whose results are complete and made by this very job, else None."""
    # the DICOM segmentation can be impossible, so its absence means nothing
    needed = {*job.result_files(scan), job.picture_file(scan.name)} - {job.dicom_file(scan.name)}
    if not all(path.exists() for path in needed):
        return None
    record = read_record(job.record_file(scan.name))
    if record is None or record["source"] != source_of(scan):
        return None
    same = _comparable(record["made_with"]) == _comparable(provenance(scan, job))
    return record if same else None


def _comparable(made_with: Mapping[str, Any]) -> dict[str, Any]:
    """What results were made with, less what older records leave out of the network: preprocessing says it too."""
    name, options = made_with["network"]
    return {**made_with, "network": [name, {key: options[key] for key in options if key not in OF_THE_WINDOW}]}


def require_replaceable(scan: Scan, job: SegmentationJob) -> None:
    """Check that a scan's mask replaces nothing but an earlier mask of the same scan that nobody has changed.

    Raises:
        InputError: if it would replace anything else.
    """
    mask = job.mask_file(scan.name)
    if not mask.exists():
        return
    record = read_record(job.record_file(scan.name))
    if record is not None and record["source"] != source_of(scan):
        what = f"is the mask of {record['source']}, and would be replaced by that of {source_of(scan)}"
    elif record is not None and was_changed(mask, record):
        what = f"{CHANGED}, and would be replaced"
    elif not job.record_file(scan.name).exists():
        what = "isn't from test.py, and would be replaced"
    else:
        return
    raise InputError(f"{mask}: {what}. Give another `output_dir`, or `overwrite`.")


def was_changed(mask: Path, record: Mapping[str, Any]) -> bool:
    """Whether a mask isn't the one that was written. Older records don't know, and count as no."""
    return "mask" in record and record["mask"] != content_hash(mask)


def read_record(path: Path) -> dict[str, Any] | None:
    """The record of a finished scan; None if the file is missing, damaged or of an unfinished scan."""
    record = _read_json(path)
    return record if {"source", "made_with", "organs"} <= record.keys() else None


def source_of(scan: Scan) -> str:
    """Where a scan comes from: its first file, or the folder of its series."""
    return os.path.realpath(scan.path)


def start_record(scan: Scan, job: SegmentationJob) -> None:
    """Record which files are in progress, and remove the results of earlier commands.

    Leave files alone that no record lists.

    Raises:
        WriteError: if the record can't be written, or a file can't be removed.
    """
    path = job.record_file(scan.name)
    earlier = {job.folder / name for name in _read_json(path).get(IN_PROGRESS, [])}
    if (record := read_record(path)) is not None:
        earlier_job = replace(
            job,
            organs=dict(enumerate(record["organs"], start=1)),
            one_file_per_organ=record["made_with"].get("one_file_per_organ", False),
            save_probabilities=record["made_with"].get("save_probabilities", False),
        )
        earlier = {*earlier_job.result_files(scan), job.dicom_file(scan.name)}
    to_come = {result for result in job.result_files(scan) if not result.exists()}
    in_progress = sorted(str(result.relative_to(job.folder)) for result in earlier | to_come)
    write_json(path, {"scan": scan.name, IN_PROGRESS: in_progress})
    for result in earlier - {job.mask_file(scan.name)}:
        remove(result)
    folder = job.organ_folder(scan.name)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def provenance(scan: Scan, job: SegmentationJob) -> dict[str, Any]:
    """Weights, settings and input files of a scan's results, in the form in which JSON gives them back."""
    content = {**job.made_with, "files": [file_state(file) for file in scan_files(scan)]}
    as_json: dict[str, Any] = json.loads(json.dumps(content))  # tuples become lists
    return as_json


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty if the file is missing or holds no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}

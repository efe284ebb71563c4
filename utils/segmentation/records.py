"""What an output folder knows of each scan, finished or begun."""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from utils.io.reader import voxel_files
from utils.io.scan import Scan
from utils.segmentation.job import Order, file_state
from utils.system.errors import InputError
from utils.system.files import fingerprint, remove, write_json

BEGUN = "begun"  # in the record of a scan that isn't finished: the files that may be there


CHANGED = "was changed after it was written"


def finished(scan: Scan, order: Order) -> dict[str, Any] | None:
    """The record of a scan that is finished as ordered, else None."""
    needed = {*order.results(scan), order.picture(scan.name)} - {order.dicom_file(scan.name)}  # which may be impossible
    if not all(path.exists() for path in needed):
        return None
    record = _read_record(order.record(scan.name))
    if record is None or record["source"] != _source(scan) or record["made_with"] != _made_with(scan, order):
        return None
    return record


def _require_ours(scan: Scan, order: Order) -> None:
    """Check that a scan's mask takes the place of nothing but an earlier mask of the same scan, as it was written.

    Raises:
        InputError: if something else is there.
    """
    mask = order.mask(scan.name)
    if not mask.exists():
        return
    record = _read_record(order.record(scan.name))
    if record is not None and record["source"] != _source(scan):
        what = f"is the mask of {record['source']}, and would be replaced by that of {_source(scan)}"
    elif record is not None and _was_changed(mask, record):
        what = f"{CHANGED}, and would be replaced"
    elif not order.record(scan.name).exists():
        what = "isn't from test.py, and would be replaced"
    else:
        return
    raise InputError(f"{mask}: {what}. Give another --output_dir, or --overwrite.")


def _was_changed(mask: Path, record: Mapping[str, Any]) -> bool:
    """Whether a mask is another than the one that was written; older records don't tell."""
    return "mask" in record and record["mask"] != fingerprint(mask)


def _read_record(path: Path) -> dict[str, Any] | None:
    """What a file tells of a finished scan; None if it isn't there, damaged, or of one that was only begun."""
    record = _content(path)
    return record if {"source", "made_with", "organs"} <= record.keys() else None


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _source(scan: Scan) -> str:
    return os.path.realpath(scan.image[0].parent if scan.is_series else scan.image[0])


def _forget(scan: Scan, order: Order) -> None:
    """Remove what another command left of a scan, its record first, so that nothing is mixed.

    What no record tells of is somebody else's. From here on one tells what is begun.
    """
    path = order.record(scan.name)
    earlier = {order.folder / name for name in _content(path).get(BEGUN, [])}
    if (record := _read_record(path)) is not None:
        finished_order = replace(
            order,
            organs=dict(enumerate(record["organs"], start=1)),
            separate=record["made_with"].get("one_file_per_organ", False),
            probabilities=record["made_with"].get("save_probabilities", False),
        )
        earlier = {*finished_order.results(scan), order.dicom_file(scan.name)}
    to_come = {result for result in order.results(scan) if not result.exists()}
    begun = {str(result.relative_to(order.folder)) for result in earlier | to_come}
    write_json(path, {"scan": scan.name, BEGUN: sorted(begun)})
    for result in earlier - {order.mask(scan.name)}:
        remove(result)
    folder = order.organ_folder(scan.name)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _made_with(scan: Scan, order: Order) -> dict[str, Any]:
    """The weights, flags and files of a scan's results, as they come back from a JSON file."""
    named = [*scan.image, *([scan.label] if scan.label is not None else [])]
    files = [file for path in named for file in (path, *voxel_files(path))]
    content = {**order.made_with, "files": [file_state(file) for file in files]}
    as_json: dict[str, Any] = json.loads(json.dumps(content))
    return as_json

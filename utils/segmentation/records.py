"""The record of each scan in the output folder.

It is written twice: before the first result, listing the files in progress, and after the last, with the measurements
and everything the results were made with.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NotRequired

from annotated_types import Len
from pydantic import TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from networks.registry import OF_THE_WINDOW
from utils.io.reader import scan_files
from utils.io.scan import Scan
from utils.segmentation.job import RECORDS, SegmentationJob
from utils.system.errors import InputError
from utils.system.files import LONGEST_NAME, content_hash, file_state, read_json, remove, write_json
from utils.system.typed import STRICT

IN_PROGRESS = "begun"  # the key, in the record of an unfinished scan, of the files that may exist
CHANGED = "was changed after it was written"

# further keys are for people, or of other versions
Numbers = Annotated[list[float], Len(3, 3)]


@with_config(STRICT)
class _Organ(TypedDict):
    volume_ml: float
    mean: float | None
    std: float | None
    bounding_box_mm: Annotated[list[Numbers], Len(2, 2)] | None
    touches_edge: bool
    dice: NotRequired[float | None]
    hd95_mm: NotRequired[float | None]
    nsd: NotRequired[float | None]
    dice_network_grid: NotRequired[float | None]
    annotated: NotRequired[bool]
    soft_dice: NotRequired[float | None]
    agreement: NotRequired[float | None]
    predicted_dice: NotRequired[float | None]
    labels: NotRequired[list[int]]


@with_config(STRICT)
class _MadeWith(TypedDict):
    network: Annotated[list[Any], Len(2, 2)]
    files: NotRequired[list[Annotated[list[Any], Len(1, 3)]]]
    one_file_per_organ: NotRequired[bool]
    save_probabilities: NotRequired[bool]
    rtstruct: NotRequired[bool]


@with_config(STRICT)
class _Record(TypedDict):
    scan: str
    source: str
    shape: Annotated[list[int], Len(3, 3)]
    spacing_mm: Numbers
    labelled: bool
    seconds: float
    remarks: list[str]
    organs: dict[str, _Organ]
    made_with: _MadeWith
    mask: NotRequired[str | None]
    results: NotRequired[dict[str, str | None]]


RECORD = TypeAdapter(_Record)


def finished(scan: Scan, job: SegmentationJob) -> dict[str, Any] | None:
    """The record of a scan whose results are complete and made by this very job, else None."""
    # DICOM's own files can be impossible; if they weren't, the record lists them
    of_dicom = {job.dicom_file(scan.name), job.rtstruct_file(scan.name)}
    needed = {*job.result_files(scan), job.picture_file(scan.name)} - of_dicom
    if not all(path.is_file() and not path.is_symlink() for path in needed):
        return None
    record = read_record(job.record_file(scan.name))
    if record is None or not _is_of(record, scan) or record["scan"] != scan.name:
        return None
    if list(record["organs"]) != list(job.structures) or not _has_scores(record, job):
        return None
    if not all(path.is_file() for path in _results_in(record, scan, job)):
        return None
    same = _comparable(record["made_with"]) == _comparable(provenance(scan, job))
    return record if same else None


def _has_scores(record: Mapping[str, Any], job: SegmentationJob) -> bool:
    scores = {"dice", "hd95_mm", "nsd", "dice_network_grid", "soft_dice"} if record["labelled"] else set()
    scores |= {"predicted_dice"} if job.dice_models else set()
    return all(scores <= organ.keys() for organ in record["organs"].values())


def _comparable(made_with: Mapping[str, Any]) -> dict[str, Any]:
    """What results were made with, less what older records leave out of the network: preprocessing says it too."""
    name, options = made_with["network"]
    options = options if isinstance(options, dict) else {}
    return {**made_with, "network": [name, {key: options[key] for key in options if key not in OF_THE_WINDOW}]}


def require_replaceable(
    scan: Scan, job: SegmentationJob, remedy: str = "Give another `output_dir`, or `overwrite`."
) -> None:
    """Check that a scan's results replace and remove nothing but its earlier ones, which nobody has changed.

    Args:
        remedy: what to do if it would.

    Raises:
        InputError: naming the first other file in the way.
    """
    mask, path = job.mask_file(scan.name), job.record_file(scan.name)
    record = read_record(path)
    if record is not None and _is_of(record, scan):
        known = _results_in(record, scan, job) | {mask: record.get("mask")}
    else:  # of an unfinished scan
        known = dict.fromkeys(_begun(scan, job)) | ({mask: None} if record is None and path.exists() else {})
    for result in dict.fromkeys([*job.result_files(scan), *known]):
        if not result.exists():
            continue
        if record is not None and not _is_of(record, scan):
            other = source_of(scan) if record["source"] != source_of(scan) else "another series in it"
            what = f"is the mask of {record['source']}, and would be replaced by that of {other}"
        elif result not in known:
            what = "wasn't written for this scan by test.py, and would be replaced"
        elif known[result] is not None and known[result] != content_hash(result):
            what = f"{CHANGED}, and would be replaced"
        else:
            continue
        raise InputError(f"{result}: {what}. {remedy}")


def was_changed(mask: Path, record: Mapping[str, Any]) -> bool:
    """Whether a mask isn't the one that was written. Older records don't know, and count as no."""
    return "mask" in record and record["mask"] != content_hash(mask)


def read_record(path: Path) -> dict[str, Any] | None:
    """The record of a finished scan; None if the file is missing, damaged or of an unfinished scan."""
    record = _read_json(path)
    try:
        RECORD.validate_python(record)
    except ValidationError:
        return None
    return record


def source_of(scan: Scan) -> str:
    """Where a scan comes from: its first file, or the folder of its series."""
    return os.path.realpath(scan.path)


def named_as_before(scans: Sequence[Scan], job: SegmentationJob) -> list[Scan]:
    """The scans under the names that they have in the output folder already; a new one gets none of these.

    A scan's name depends on what else is in its folder, and so may become another one when scans are added.
    """
    known: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((job.folder / RECORDS).glob("*.json")):
        record = read_record(path)
        if record is not None and job.record_file(record["scan"]) == path:
            known.setdefault(record["source"], []).append(record)
    names: dict[Scan, str] = {}
    for scan in scans:
        of_it = next((record["scan"] for record in known.get(source_of(scan), ()) if _is_of(record, scan)), None)
        if of_it is not None and of_it not in names.values():
            names[scan] = of_it
    taken = set(names.values())
    for scan in scans:
        name, number = names.get(scan, scan.name), 1
        while scan not in names and name in taken:
            number += 1
            name = f"{scan.name}_{number}"
        taken.add(name)
        names[scan] = name
    return [replace(scan, name=names[scan]) for scan in scans]


def _is_of(record: Mapping[str, Any], scan: Scan) -> bool:
    """Whether a record is that of a scan. Several series may lie in one folder, and have different files there."""
    if record["source"] != source_of(scan):
        return False
    recorded = {os.path.basename(name) for name, *_ in record["made_with"].get("files", [])}
    return not scan.is_series or not recorded or bool(recorded & {file.name for file in scan_files(scan)})


def start_record(scan: Scan, job: SegmentationJob) -> None:
    """Record which files are in progress, and remove the results of earlier commands.

    Leave files alone that no record lists.

    Raises:
        InputError: if the folder for its organs is a link.
        WriteError: if the record can't be written, or a file can't be removed.
    """
    path = job.record_file(scan.name)
    folder = job.organ_folder(scan.name)
    if job.one_file_per_organ and folder.is_symlink():
        raise InputError(f"{folder}: is a link, and masks are written below `output_dir` alone. Remove it.")
    record = read_record(path)
    earlier = set(_begun(scan, job) if record is None else _results_in(record, scan, job))
    if folder.is_symlink():
        earlier = {result for result in earlier if result.parent != folder}
    to_come = {result for result in job.result_files(scan) if not result.exists()}
    in_progress = sorted(str(result.relative_to(job.folder)) for result in earlier | to_come)
    write_json(path, {"scan": scan.name, IN_PROGRESS: in_progress})
    for result in earlier - {job.mask_file(scan.name)}:
        remove(result)
    if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
        folder.rmdir()


def _results_in(record: Mapping[str, Any], scan: Scan, job: SegmentationJob) -> dict[Path, str | None]:
    """The files that the record of a finished scan lists, beside its mask, with their hashes.

    Older records list none. Theirs are those that such a job makes, and nobody knows the hashes.
    """
    if "results" in record:
        return {path: record["results"][name] for name, path in _own_results(record["results"], scan, job).items()}
    single = [name for name, values in record["organs"].items() if "labels" not in values]  # a region has no files
    earlier_job = replace(
        job,
        organs=dict(enumerate(single, start=1)),
        one_file_per_organ=record["made_with"].get("one_file_per_organ", False),
        save_probabilities=record["made_with"].get("save_probabilities", False),
        rtstruct=record["made_with"].get("rtstruct", False),
    )
    results = earlier_job.result_files(replace(scan, is_series=True))  # it may have been one
    return {path: None for path in results if path.exists()}


def _begun(scan: Scan, job: SegmentationJob) -> list[Path]:
    """The files that the record of an unfinished scan lists."""
    names = _read_json(job.record_file(scan.name)).get(IN_PROGRESS)
    return list(_own_results(names if isinstance(names, list) else [], scan, job).values())


def _own_results(names: Iterable[object], scan: Scan, job: SegmentationJob) -> dict[str, Path]:
    """The paths of a scan's results, by the names in its record, as far as this program can have made them."""
    files = (job.mask_file, job.dicom_file, job.rtstruct_file, job.probability_file)
    own = {file(scan.name) for file in files}
    folder = job.organ_folder(scan.name)
    found = {}
    for name in names:
        if not isinstance(name, str) or "\0" in name:
            continue
        path = job.folder / name
        # organs of other weights have other names
        is_organ = path.parent == folder and path.name.endswith(".nii.gz") and ".." not in path.parts
        if path in own or (is_organ and len(os.fsencode(path.name)) <= LONGEST_NAME):
            found[name] = path
    return found


def hashes_of_results(scan: Scan, job: SegmentationJob) -> dict[str, str | None]:
    """The hash of each file that was written for a scan beside its mask, by its path in the output folder."""
    results = [path for path in job.result_files(scan) if path != job.mask_file(scan.name) and path.is_file()]
    return {str(path.relative_to(job.folder)): content_hash(path) for path in results}


def provenance(scan: Scan, job: SegmentationJob) -> dict[str, Any]:
    """Weights, settings and input files of a scan's results, in the form in which JSON gives them back."""
    content = {**job.made_with, "files": [file_state(file) for file in scan_files(scan)]}
    if scan.not_annotated or scan.ignore is not None:
        content |= {"not_annotated": scan.not_annotated, "ignore": scan.ignore}
    if scan.structures:
        content["structures"] = scan.structures
    if job.writes_rtstruct(scan):
        content["rtstruct"] = True
    as_json: dict[str, Any] = json.loads(json.dumps(content))  # tuples become lists
    return as_json


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty if the file is missing or damaged."""
    try:
        content = read_json(path)
    except (OSError, ValueError):  # not there, or no record of ours: the scan counts as not done
        return {}
    return content if isinstance(content, dict) else {}

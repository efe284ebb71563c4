"""Find the scans in files and folders: volumes and DICOM series."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from utils.io.dicom_series import find_series, lacks_preamble
from utils.io.reader import header_file, is_image, voxel_files
from utils.io.scan import ENDINGS, Scan, is_dicom, remedy, without_endings
from utils.system.errors import InputError
from utils.system.files import PipeError, walk_files
from utils.system.text import one_line

CHANNEL = re.compile(r"(?P<scan>.+)_(?P<channel>\d{4})")
NO_SCAN = "holds no scan: no NIfTI, no DICOM slices, nothing SimpleITK reads. Give another place."
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")  # SimpleITK reads them, and they are no scans


@dataclass
class FoundScans:
    """What a search for scans gave.

    Attributes:
        scans: each with a different name.
        faults: by path, what keeps it from being a scan.
        remarks: what was left out, a sentence each.
    """

    scans: list[Scan] = field(default_factory=list)
    faults: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def find_scans(paths: Sequence[str], in_channels: int) -> FoundScans:
    """The scans in files and folders.

    Args:
        in_channels: if more than one, files whose names differ by ``_0000``, ``_0001``, … make one scan.
    """
    found = FoundScans()
    slices: dict[str, Path] = {}  # by absolute path, as a file may be given twice
    volumes: dict[str, Path] = {}
    bare: dict[Path, list[Path]] = {}  # DICOM without preamble, by folder
    for text in paths:
        path = Path(text)
        given = header_file(path) if os.path.exists(path) and not os.path.isdir(path) else None
        before, empty = len(found.faults), True
        unread: list[Path] = []
        for file in _files_below(path, found) if given is None else [given]:
            try:
                if is_dicom(file):
                    kind = slices
                elif file != given and lacks_preamble(file):
                    bare.setdefault(file.parent, []).append(file)
                    empty = False
                    continue
                elif file == given or is_volume(file):
                    kind = volumes
                else:
                    unread += [file] if remedy(file) else []
                    continue
            except PipeError as error:
                if given is None:
                    found.remarks.append(f"{file}: left out, a pipe, a socket or a device.")
                else:
                    found.faults[str(file)] = str(error)
                continue
            except InputError as error:
                found.faults[str(file)] = str(error)
                continue
            except Exception as error:  # of the system, or whatever damaged bytes break in a library
                reason = getattr(error, "strerror", None) or "it is cut off or damaged"
                found.faults[str(file)] = f"{file}: can't be read ({reason}). Copy it again, or mend its permissions."
                continue
            kind.setdefault(os.path.abspath(file), file)
            empty = False
        if unread:
            more = f" and {len(unread) - 1} more" if len(unread) > 1 else ""
            found.remarks.append(f"{unread[0]}{more}: left out, not read as they are. Convert to NIfTI, or unpack.")
        if empty and len(found.faults) == before:
            found.faults[text] = found.remarks.pop() if unread else f"`input` {path}: {NO_SCAN}"
    beside = {os.path.realpath(voxels) for file in volumes.values() for voxels in voxel_files(file)}
    bare = {folder: [file for file in files if os.path.realpath(file) not in beside] for folder, files in bare.items()}
    for folder, slices_of_it in bare.items():
        if not slices_of_it:
            continue
        found.faults[str(folder)] = (
            f"{folder}: has {len(slices_of_it)} files, {slices_of_it[0].name} first, that are DICOM without the "
            "preamble that its files begin with. Export the series again."
        )
    volumes = {name: file for name, file in volumes.items() if os.path.realpath(file) not in beside}
    series, remarks = find_series(list(slices.values()))
    found.remarks += remarks
    found.scans = [Scan(one.name, one.files, None, is_series=True) for one in series]
    for name, files in _by_scan(volumes.values(), in_channels):
        found.scans.append(Scan(name, files, None))
    if not found.scans and not found.faults:
        found.faults[paths[0]] = f"`input` {', '.join(paths)}: {NO_SCAN}"  # localizers alone
    found.scans = _with_distinct_names(found.scans)
    # names of files, and what their headers say, may have line breaks and the like
    found.remarks = [one_line(remark) for remark in found.remarks]
    found.faults = {path: one_line(fault) for path, fault in found.faults.items()}
    return found


def require_elsewhere(output: Path, paths: Sequence[str]) -> None:
    """Check that a folder for masks isn't in one that is searched for scans.

    Raises:
        InputError: if it is: the next search would take the masks for scans.
    """
    around = folder_around(output, paths)
    if around is not None:
        raise InputError(
            f"`output_dir` {output}: lies in `input` {around}, so that masks would be taken for scans the next time. "
            "Give a folder elsewhere."
        )


def folder_around(place: Path, paths: Sequence[str]) -> str | None:
    """The first of some folders in which a place lies, links followed; files among them are skipped."""
    real = Path(os.path.realpath(place))
    return next((path for path in paths if os.path.isdir(path) and real.is_relative_to(os.path.realpath(path))), None)


def _files_below(path: Path, found: FoundScans) -> Iterable[Path]:
    """All files below a folder but hidden ones; a folder that can't be listed becomes a fault."""

    def note(error: OSError) -> None:
        found.faults[str(error.filename)] = f"{error.filename}: can't be read ({error.strerror}). Mend `input`."

    return walk_files(path, note)


def is_volume(path: Path) -> bool:
    """Whether a file is a volume by its name, or else by its content; the voxels beside a header are none.

    Raises:
        InputError: if SimpleITK crashes on it, or it is no regular file.
        OSError, EOFError, zlib.error: if its bytes can't be read or unpacked.
    """
    name = path.name.lower()
    if header_file(path) != path:
        return False  # the header of a pair stands for both
    # a file with a volume's name that holds none becomes a fault when it is read; other files are left out
    return name.endswith(ENDINGS) or (not name.endswith(PICTURES) and is_image(path))


def _by_scan(files: Iterable[Path], in_channels: int) -> list[tuple[str, tuple[Path, ...]]]:
    """Names of scans with their files, one for each channel if all of them are there.

    Other names that end in four digits, such as ``patient_2023`` and ``patient_2024``, are different scans.
    """
    grouped: dict[Path, list[tuple[int, Path]]] = {}
    for file in files:
        channel = CHANNEL.fullmatch(without_endings(file.name)) if in_channels > 1 else None
        scan, number = (file.with_name(channel["scan"]), int(channel["channel"])) if channel else (file, -1)
        grouped.setdefault(scan, []).append((number, file))
    scans: list[tuple[str, tuple[Path, ...]]] = []
    for scan, group in grouped.items():
        numbers, group_files = zip(*sorted(group), strict=True)
        if numbers == tuple(range(in_channels)):
            scans.append((scan.name, group_files))
        else:
            scans += [(without_endings(file.name), (file,)) for file in group_files]
    return scans


def _with_distinct_names(scans: Sequence[Scan]) -> list[Scan]:
    """Scans that share a name get their folder's before it, and if that isn't enough a number behind it."""
    names = [scan.name for scan in scans]
    longer = [f"{scan.image[0].absolute().parent.name}_{scan.name}" for scan in scans]
    names = [long if names.count(name) > 1 else name for name, long in zip(names, longer, strict=True)]
    taken: set[str] = set()
    for index, name in enumerate(names):
        number = 1
        while names[index] in taken:
            number += 1
            names[index] = f"{name}_{number}"
        taken.add(names[index])
    return [replace(scan, name=name) for scan, name in zip(scans, names, strict=True)]

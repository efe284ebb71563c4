"""DICOM series: which there are among files, and their volumes.

A series is read by what its headers say about space, never by its files' names, and only if its slices make up one
regular grid; otherwise the error names the file that breaks it. DICOM's own frame is LPS (mm to the patient's Left,
Posterior, Superior); affines here are RAS+ as in nibabel, so x and y change sign.
"""

import os
import re
import warnings
import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.pixels import get_decoder, pixel_array
from pydicom.pixels.utils import get_expected_length
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from utils.io.geometry import LPS_TO_RAS
from utils.io.reader_process import ask_dicom_pixels, start_ahead
from utils.io.scan import Volume, memory_error
from utils.system.errors import InputError, first_line
from utils.system.files import open_regular
from utils.system.hardware import available_memory
from utils.system.text import one_line

VOLUME_CLASSES = frozenset({
    "1.2.840.10008.5.1.4.1.1.2",  # CT
    "1.2.840.10008.5.1.4.1.1.2.1",  # enhanced CT
    "1.2.840.10008.5.1.4.1.1.2.2",  # legacy converted enhanced CT
    "1.2.840.10008.5.1.4.1.1.4",  # MR
    "1.2.840.10008.5.1.4.1.1.4.1",  # enhanced MR
    "1.2.840.10008.5.1.4.1.1.4.4",  # legacy converted enhanced MR
    "1.2.840.10008.5.1.4.1.1.128",  # PET
    "1.2.840.10008.5.1.4.1.1.128.1",  # legacy converted enhanced PET
    "1.2.840.10008.5.1.4.1.1.130",  # enhanced PET
})  # fmt: skip

# where a multi-frame file keeps what a file of one slice has at the top level
FUNCTIONAL_GROUPS = (
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
)

SAME_PLACE_MM = 0.01
SAME_DIRECTION = 1e-4  # between direction cosines; headers give six digits
# A slice may lie this far from the regular grid. Scanners that write positions in 0.1 mm are off by as much.
OFF_GRID_MM, OFF_GRID_SHARE = 0.1, 0.02
MISSING_SLICE = 1.5  # a gap of this many usual ones misses a slice

EXPORT_AGAIN = "Export the series again from its source."
# ways to store pixels that pydicom decodes in Python
DECODED_HERE = {
    ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless,
}  # fmt: skip
# what the slices of a scan have in common: where they can't differ, the words for it
ONE_SOURCE = {
    "SOPClassUID": "another kind of image",
    "PatientID": "of another patient",
    "FrameOfReferenceUID": None,
    "EchoTime": None,
}
LARGE_FILE = 1 << 26  # bytes of pixels, up to which the memory isn't asked for
GREYS = ("MONOCHROME1", "MONOCHROME2")
IDENTIFIER = re.compile(r"[0-9.]{1,64}")  # also with leading zeros, which the standard forbids and programs write
SHOWN_FOLDERS = 3  # from which files were left out for one reason
# that a data set can begin with: the length of its group, the character set, or what kind of image it is
FIRST_ELEMENTS = {(b"\2\0", 0), (b"\2\0", 1)} | {
    (b"\10\0", element) for element in (0, 1, 5, 8, 0x12, 0x14, 0x16, 0x18)
}
SHORT_ELEMENT = 256  # bytes; the first elements, which give a length or an identifier, are shorter
# where Siemens and UIH keep the number of slices that are tiles of one picture: the owner's name, and the element
MOSAICS = {"SIEMENS MR": (0x0019, 0x100A), "Image Private Header": (0x0065, 0x1050)}


@dataclass(frozen=True)
class Series:
    """The files of one scan, in any order.

    Args:
        name: its folder's name, with the series' number where the folder holds several; nothing about the patient.
    """

    name: str
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Plane:
    """One slice as its header places it; lengths in mm, in LPS.

    Attributes:
        frame: its number in a multi-frame file.
        size: rows and columns.
        spacing: (2,), from row to row and from column to column.
        directions: (2, 3), of a growing column index and of a growing row index.
        position: (3,), of the first pixel's centre.
    """

    file: Path
    frame: int | None
    size: tuple[int, int]
    spacing: np.ndarray
    directions: np.ndarray
    position: np.ndarray
    thickness: float | None
    slope: float
    intercept: float

    def __str__(self) -> str:
        return str(self.file.parent / self.short)

    @property
    def short(self) -> str:
        """What messages call it, without the folder."""
        return self.file.name if self.frame is None else f"{self.file.name}, frame {self.frame + 1}"

    @property
    def normal(self) -> np.ndarray:
        """(3,) unit vector along which slices are stacked."""
        normal = np.cross(*self.directions)
        return normal / np.linalg.norm(normal)


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Ignore pydicom's warnings about each value that breaks the standard; what matters here is checked here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"(pydicom|highdicom)\.")
        yield


def lacks_preamble(path: Path) -> bool:
    """Whether a file begins with DICOM's first elements, without the preamble that is before them in a file."""
    with open_regular(path) as file:
        head = file.read(8)
    if len(head) < 8 or (head[:2], int.from_bytes(head[2:4], "little")) not in FIRST_ELEMENTS:
        return False
    has_type = head[4:6].isalpha() and head[4:6].isupper()
    return has_type or int.from_bytes(head[4:8], "little") in range(0, SHORT_ELEMENT, 2)


@quiet_pydicom()
def find_series(files: Sequence[Path]) -> tuple[list[Series], list[str]]:
    """Group DICOM files by the series that their headers name.

    A damaged file stays with its series, so that reading that series tells of it. A file that doesn't say which series
    it is of stays with each one that has files in its folder.

    Returns:
        The series by name, no name twice; and remarks, a sentence for what was left out of each folder and why:
        localizers, files without pixels (a DICOMDIR, a report), files of other kinds than CT, MR and PET images.
    """
    grouped: dict[str, list[Path]] = defaultdict(list)
    numbers: dict[str, int | None] = {}
    left_out: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    astray: list[tuple[Path, str]] = []
    frames: dict[Path, int] = {}
    tags = ["SOPClassUID", "SeriesInstanceUID", "SeriesNumber", "ImageType", "Rows", "Columns", "NumberOfFrames"]
    for path in sorted(set(files)):
        try:
            header = read_dicom(path, stop_before_pixels=True, specific_tags=list(tags))
            is_damaged, reason = _is_cut_off(path, header), _why_no_slice(header)
            uid = str(header.get("SeriesInstanceUID") or "")
            uid = uid if IDENTIFIER.fullmatch(uid) else ""
            frames[path] = _whole_number(header, "NumberOfFrames") or 1
            number = _whole_number(header, "SeriesNumber")
        except InvalidDicomError as error:
            is_damaged, uid, number, reason = False, "", None, f"its header can't be read ({first_line(error)})"
        except Exception:  # damaged bytes raise whatever they happen to break in pydicom; reading it will tell
            is_damaged, uid, number = True, "", None
        if is_damaged or (not uid and not reason):
            astray.append((path, uid))
        elif reason:
            left_out[path.parent, reason].append(path)
        else:
            grouped[uid].append(path)
            numbers.setdefault(uid, number)
    folders = {uid: {path.parent for path in paths} for uid, paths in grouped.items()}
    for path, uid in astray:  # a damaged file's identifier may be cut off as well
        beside = [uid] if uid in folders else [other for other in folders if path.parent in folders[other]]
        for other in beside or [str(path.parent)]:
            grouped[other].append(path)
            numbers.setdefault(other, None)
    names = _series_names({uid: common_folder(paths) for uid, paths in grouped.items()}, numbers)
    remarks = _remarks(left_out)
    with_larger_series = {paths[0].parent for paths in grouped.values() if len(paths) > 1}
    for paths in grouped.values():
        if len(paths) == 1 and paths[0].parent in with_larger_series and frames.get(paths[0]) == 1:
            remarks.append(
                f"{paths[0]}: is a series of its own by its SeriesInstanceUID, and taken as a scan of a slice."
            )
    series = [Series(names[uid], tuple(paths)) for uid, paths in grouped.items()]
    return sorted(series, key=lambda one: one.name), remarks


def _remarks(left_out: Mapping[tuple[Path, str], Sequence[Path]]) -> list[str]:
    """A sentence for what was left out of each folder and why; one for all folders if they are many."""
    by_reason: dict[str, dict[Path, Sequence[Path]]] = defaultdict(dict)
    for (folder, reason), paths in left_out.items():
        by_reason[reason][folder] = paths
    remarks = []
    for reason, folders in by_reason.items():
        if len(folders) > SHOWN_FOLDERS:
            files = [path for paths in folders.values() for path in paths]
            where = f"{common_folder(files)}: {len(files)} files in {len(folders)} folders"
            remarks.append(f"{where} left out, {reason}.")
            continue
        for folder, paths in folders.items():
            where = f"{paths[0]}:" if len(paths) == 1 else f"{folder}: {len(paths)} files"
            remarks.append(f"{where} left out, {reason}.")
    return remarks


def read_dicom(path: Path, **options: Any) -> Dataset:
    """A file's data set. A deflated one is unpacked as far as there is memory for it.

    Args:
        options: of ``pydicom.dcmread``.

    Raises:
        InputError: if it is no regular file, or takes more memory than there is.
        Exception: whatever pydicom raises for a damaged file.
    """
    with open_regular(path) as file:
        may_be_deflated = DeflatedExplicitVRLittleEndian.encode() in file.read(1 << 10)
    if may_be_deflated:
        meta = read_file_meta_info(path)
        if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            _require_room_for_deflated(path, meta)
    return dcmread(path, **options)


def _require_room_for_deflated(path: Path, meta: Dataset) -> None:
    """Check that what follows the first group of elements isn't more than there is memory for when unpacked."""
    with open_regular(path) as file:
        file.seek(132 + 12 + int(meta.FileMetaInformationGroupLength))  # preamble, the length, and what it counts
        room, size, unpacker = available_memory() // 4, 0, zlib.decompressobj(-zlib.MAX_WBITS)
        while packed := file.read(1 << 16):
            while packed and size <= room:
                size += len(unpacker.decompress(packed, 1 << 20))
                packed = unpacker.unconsumed_tail
    if size > room:
        raise memory_error(path, size)


def _is_cut_off(path: Path, header: Dataset) -> bool:
    """Whether the header of an image ends before its size, or that of any file before it says what it is."""
    kind = _kind(header)
    if kind in VOLUME_CLASSES:
        return not header.get("Rows") or not header.get("Columns")
    # behind the preamble a group of elements says what the file is, and itself how long it is
    length = header.file_meta.get("FileMetaInformationGroupLength")
    return (not kind and not header.get("Rows")) or (
        length is not None and path.stat().st_size < 132 + 12 + int(length)
    )


def _kind(header: Dataset) -> UID:
    return UID(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or "")


def _why_no_slice(header: Dataset) -> str | None:
    """Why a file is no part of a volume, if it isn't."""
    kind = _kind(header)
    if not header.get("Rows") or not header.get("Columns"):
        return f"no pixels in it ({kind.name or 'of no stated kind'})"
    if kind not in VOLUME_CLASSES:
        return f"not a CT, MR or PET image ({kind.name or 'of no stated kind'})"
    if {"LOCALIZER", "SCOUT"} & _image_types(header):
        return "a localizer"
    return None


def _image_types(header: Dataset) -> set[str]:
    return {str(value).strip().upper() for value in np.atleast_1d(header.get("ImageType") or ())}


def common_folder(paths: Sequence[Path]) -> Path:
    """The folder around the files of a series."""
    return Path(os.path.commonpath([os.path.abspath(path.parent) for path in paths]))


def _series_names(folders: Mapping[str, Path], numbers: Mapping[str, int | None]) -> dict[str, str]:
    """A name for each series from its folder, as short as tells them apart."""
    parts = dict.fromkeys(folders.values(), 1)
    while True:
        short = {folder: "_".join(folder.parts[1:][-count:]) or "series" for folder, count in parts.items()}
        shared = {name for name, count in Counter(short.values()).items() if count > 1}
        longer = [folder for folder in parts if short[folder] in shared and parts[folder] < len(folder.parts) - 1]
        if not longer:
            break
        for folder in longer:
            parts[folder] += 1
    in_folder = Counter(folders.values())
    names: dict[str, str] = {}
    for uid, folder in folders.items():
        number = numbers[uid]
        several = in_folder[folder] > 1 and number is not None
        stem = f"{short[folder]}_{number}" if several else short[folder]
        name, count = stem, 1
        while name in names.values():
            count += 1
            name = f"{stem}_{count}"
        names[uid] = name
    return names


@quiet_pydicom()
def read_series(series: Series) -> Volume:
    """Read a scan: either files of one slice each, or one multi-frame file.

    Slices are ordered along the normal of their plane. A slice that is there twice is read once, with a remark. One
    that lies up to 0.1 mm + 2 % of the slice distance beside the regular grid is taken as lying on it.

    Returns:
        Voxels (1, X, Y, Z) = (1, columns, rows, slices), rescaled slice by slice: int16 where every slice has slope 1
        and a whole intercept and the values fit, otherwise float32. ``datasets`` are the headers in the order of the
        slices, or the one header of a multi-frame file.

    Raises:
        InputError: if a file is damaged or doesn't say where its pixels lie, or if the slices don't make up one
            regular grid.
    """
    headers = {path: _header(path) for path in series.files[:1]}
    if any(_is_decoded_elsewhere(header) for header in headers.values()):
        start_ahead()
    headers |= {path: _header(path) for path in series.files[1:]}
    planes = [plane for path, header in headers.items() for plane in planes_of(path, header)]
    if len(headers) > 1 and any(plane.frame is not None for plane in planes):
        raise InputError(
            f"{series.name}: has {len(headers)} files, of which at least one is multi-frame; a scan is one multi-frame "
            "file, or files of one slice each. Give a folder with one of them, or convert it to NIfTI."
        )
    _require_same_geometry(planes)
    mixed = _require_same_source(series.name, headers)
    stack = stack_planes(planes)
    slices = [twins[0] for twins in stack]
    _require_regular_grid(series.name, slices)
    voxels, remarks = _read_slices(series.name, stack, headers)
    remarks += mixed + _tilt_remarks(series.name, slices)
    if len(planes) == 1 and planes[0].frame is None:
        remarks.append(
            f"{planes[0]}: is one slice, and taken as a whole scan. If its series has more, give their folder."
        )
    files = dict.fromkeys(plane.file for plane in slices)
    return Volume(voxels[None], _affine(slices), voxels.shape, None, [headers[path] for path in files], remarks)


def _header(path: Path) -> Dataset:
    try:
        header = read_dicom(path, stop_before_pixels=True)
        is_cut_off = _is_cut_off(path, header)
    except InputError:
        raise
    except Exception as error:  # damaged bytes raise whatever they happen to break in pydicom
        raise InputError(f"{path}: its header can't be read ({first_line(error)}). Copy the file again.") from error
    if is_cut_off:
        raise InputError(f"{path}: is cut off or damaged: it ends before its header does. Copy it again.")
    return header


def planes_of(path: Path, header: Dataset, kinds: Collection[str] = GREYS) -> list[Plane]:
    """The slices of a file: its only one, or one for each frame.

    Args:
        kinds: what its pixels may be, as DICOM calls it.

    Raises:
        InputError: if the header doesn't say where they lie.
    """
    try:
        return _split_into_planes(path, header, kinds)
    except InputError:
        raise
    except Exception as error:  # pydicom converts an element at its first use, and raises what damaged bytes break
        raise InputError(f"{path}: its header can't be read ({first_line(error)}). Copy the file again.") from error


def _split_into_planes(path: Path, header: Dataset, kinds: Collection[str]) -> list[Plane]:
    colours, kind = header.get("SamplesPerPixel", 1), header.get("PhotometricInterpretation", "MONOCHROME2")
    if colours != 1 or kind not in kinds:
        raise InputError(f"{path}: has colour pixels ({kind}), not one number each. Give a scan in shades of grey.")
    if _has_tiles(header) or "MOSAIC" in _image_types(header):
        raise InputError(
            f"{path}: is a mosaic, with many slices as tiles of one picture. Convert it to NIfTI with dcm2niix."
        )
    if header.get("ModalityLUTSequence"):
        raise InputError(f"{path}: tells its values by a table (Modality LUT), which isn't read. Convert it to NIfTI.")
    stored, highest = (_whole_number(header, keyword) for keyword in ("BitsStored", "HighBit"))
    if stored is not None and highest is not None and highest != stored - 1:
        raise InputError(f"{path}: has HighBit {highest} for {stored} bits, which isn't read. Convert it to NIfTI.")
    if "PerFrameFunctionalGroupsSequence" not in header:
        if (_whole_number(header, "NumberOfFrames") or 1) > 1:
            raise InputError(
                f"{path}: has {header.NumberOfFrames} frames, but doesn't say where each lies. Convert it to NIfTI."
            )
        return [_plane(path, None, header, header)]
    parts = _whole_number(header, "InConcatenationTotalNumber") or 1
    if parts > 1:
        raise InputError(
            f"{path}: is one of {parts} files that make up one volume (a concatenation), which aren't put together. "
            "Export it again as one file."
        )
    frames = _whole_number(header, "NumberOfFrames")
    if frames != len(header.PerFrameFunctionalGroupsSequence):
        raise InputError(
            f"{path}: has {frames} frames, but places {len(header.PerFrameFunctionalGroupsSequence)}. {EXPORT_AGAIN}"
        )
    shared = header.get("SharedFunctionalGroupsSequence") or [Dataset()]
    planes = []
    for index, own in enumerate(header.PerFrameFunctionalGroupsSequence):
        frame = Dataset()
        for group in FUNCTIONAL_GROUPS:
            for item in (*(shared[0].get(group) or ()), *(own.get(group) or ())):
                frame.update(item)
        planes.append(_plane(path, index, header, frame))
    return planes


def _has_tiles(header: Dataset) -> bool:
    """Whether a maker's own elements say that the picture has several slices as its tiles."""
    return any(
        str(header[group, 0x0010].value).startswith(owner) and _tiles(header[group, element].value) > 1
        for owner, (group, element) in MOSAICS.items()
        if (group, 0x0010) in header and (group, element) in header
    )


def _tiles(number: Any) -> float:
    """The number of tiles that an element tells; 0 if it is none."""
    if isinstance(number, bytes):  # a file with implicit types doesn't tell that it is a number, or one in words
        return int(number) if number.strip().isdigit() else int.from_bytes(number[:2], "little")
    return number if isinstance(number, int | float) else 0


def _plane(path: Path, frame: int | None, header: Dataset, place: Dataset) -> Plane:
    name = str(path) if frame is None else f"{path}, frame {frame + 1}"

    def required(keyword: str, count: int) -> np.ndarray:
        numbers = _numbers(place, keyword)
        if numbers is None or len(numbers) != count:
            raise InputError(f"{name}: has no usable {keyword}, so its place is unknown. {EXPORT_AGAIN}")
        return numbers

    def rescale(keyword: str, default: float) -> np.ndarray | None:
        # frames of converted files may have it in common, outside the functional groups
        source = next((one for one in (place, header) if one.get(keyword) is not None), None)
        return np.array([default]) if source is None else _numbers(source, keyword)

    spacing, position = required("PixelSpacing", 2), required("ImagePositionPatient", 3)
    if spacing.min() <= 0:
        raise InputError(f"{name}: has PixelSpacing {spacing[0]:g} × {spacing[1]:g} mm. {EXPORT_AGAIN}")
    directions = required("ImageOrientationPatient", 6).reshape(2, 3)
    if np.abs(directions @ directions.T - np.eye(2)).max() > 0.01:
        raise InputError(f"{name}: the axes in ImageOrientationPatient aren't perpendicular unit ones. {EXPORT_AGAIN}")
    thickness = [_numbers(place, keyword) for keyword in ("SliceThickness", "SpacingBetweenSlices")]
    slope, intercept = rescale("RescaleSlope", 1.0), rescale("RescaleIntercept", 0.0)
    if slope is None or intercept is None or slope[0] == 0:
        raise InputError(f"{name}: has no usable RescaleSlope and RescaleIntercept. {EXPORT_AGAIN}")
    rows, columns = (_whole_number(header, keyword) for keyword in ("Rows", "Columns"))
    if not rows or not columns:
        raise InputError(f"{name}: holds no pixels. Take it out of the folder.")
    return Plane(
        file=path,
        frame=frame,
        size=(rows, columns),
        spacing=spacing,
        directions=directions,
        position=position,
        thickness=next((float(value[0]) for value in thickness if value is not None and value[0] > 0), None),
        slope=float(slope[0]),
        intercept=float(intercept[0]),
    )


def _numbers(dataset: Dataset, keyword: str) -> np.ndarray | None:
    """The finite numbers of an element, or None where it is missing, empty or holds something else."""
    try:
        numbers = np.atleast_1d(np.asarray(dataset.get(keyword), dtype=float))
    except (ValueError, TypeError, OverflowError, NotImplementedError):  # pydicom converts it at its first use
        return None
    return numbers if numbers.size and np.isfinite(numbers).all() else None


def _whole_number(dataset: Dataset, keyword: str) -> int | None:
    numbers = _numbers(dataset, keyword)
    return None if numbers is None else int(numbers[0])


def _require_same_geometry(planes: Sequence[Plane]) -> None:
    """Raise InputError unless all slices have one size, spacing and orientation."""
    first = planes[0]
    for plane in planes[1:]:
        if plane.size != first.size:
            raise _mixed_error(first, plane, "size", *(f"{p.size[1]} × {p.size[0]} pixels" for p in (first, plane)))
        if not np.allclose(plane.spacing, first.spacing, rtol=1e-3, atol=0):
            raise _mixed_error(first, plane, "PixelSpacing", *(f"{_number_text(p.spacing)} mm" for p in (first, plane)))
        if not np.allclose(plane.directions, first.directions, rtol=0, atol=SAME_DIRECTION):
            raise _mixed_error(
                first, plane, "orientation", *(_number_text(p.directions.ravel()) for p in (first, plane))
            )


def _require_same_source(name: str, headers: Mapping[Path, Dataset]) -> list[str]:
    """Check that all files are of one patient and one kind of image.

    Returns:
        A remark for what else may tell that they don't belong together.

    Raises:
        InputError: if they aren't.
    """
    remarks = []
    for keyword, text in ONE_SOURCE.items():
        found = {str(header.get(keyword, "")): path for path, header in headers.items()}
        if len(found) < 2:
            continue
        one, other = list(found.values())[:2]
        if text is not None:
            raise InputError(
                f"{other}: is {text} than {one.name}; both say that they are of one series. Put them into folders of "
                "their own, and give them different series."
            )
        remarks.append(f"{name}: has slices with different values of {keyword}, such as {one.name} and {other.name}.")
    return remarks


def _mixed_error(first: Plane, second: Plane, what: str, one: str, other: str) -> InputError:
    return InputError(
        f"{second}: its {what} is {other}, but that of {first.short} is {one}; both say that they are of one "
        "series. Put them into folders of their own, and give them different series."
    )


def stack_planes(planes: Sequence[Plane]) -> list[list[Plane]]:
    """The slices in their order along the normal; those at one place in one list, ordered by their files' names."""
    normal = planes[0].normal
    stack: list[list[Plane]] = []
    for plane in sorted(planes, key=lambda plane: float(plane.position @ normal)):
        if stack and (plane.position - stack[-1][0].position) @ normal < SAME_PLACE_MM:
            stack[-1].append(plane)
        else:
            stack.append([plane])
    return [sorted(twins, key=lambda plane: (plane.file, plane.frame or 0)) for twins in stack]


def _require_regular_grid(name: str, slices: Sequence[Plane]) -> None:
    """Raise InputError unless the slices' positions are evenly spaced on a straight line."""
    if len(slices) == 1:
        if slices[0].thickness is None:
            raise InputError(
                f"{slices[0]}: is the only slice of {name}, and has no positive SliceThickness or "
                "SpacingBetweenSlices. Give the whole series."
            )
        return
    positions = np.array([plane.position for plane in slices])
    heights = positions @ slices[0].normal
    gaps = np.diff(heights)
    usual = float(np.median(gaps))
    # the coordinate that a viewer shows: for axial slices the patient's z, whichever way the normal points
    shown = heights * np.sign(slices[0].normal[np.abs(slices[0].normal).argmax()])
    if gaps.max() > MISSING_SLICE * usual:
        at = int((gaps > MISSING_SLICE * usual).argmax())
        raise InputError(
            f"{name}: a slice is missing between {shown[at]:g} and {shown[at + 1]:g} mm ({slices[at].short} and "
            f"{slices[at + 1].short}): the gap is {gaps[at]:.4g} mm, elsewhere {usual:.4g} mm. Copy the series again."
        )
    even = np.linspace(positions[0], positions[-1], len(positions))
    away = np.linalg.norm(positions - even, axis=1)
    if away.max() > OFF_GRID_MM + OFF_GRID_SHARE * usual:
        at = int(away.argmax())
        raise InputError(
            f"{name}: the slice at {shown[at]:g} mm ({slices[at].short}) lies {away[at]:.3g} mm beside an even grid "
            f"(gaps of {gaps.min():.4g} … {gaps.max():.4g} mm). Resample it to even slices, and give it as NIfTI."
        )


def _affine(slices: Sequence[Plane]) -> np.ndarray:
    """(4, 4), voxel index (column, row, slice) -> mm in RAS+."""
    first = slices[0]
    affine = np.eye(4)
    affine[:3, 0] = first.directions[0] * first.spacing[1]
    affine[:3, 1] = first.directions[1] * first.spacing[0]
    if len(slices) > 1:
        # not along the normal: with a tilted gantry each slice is also shifted in its plane
        affine[:3, 2] = (slices[-1].position - first.position) / (len(slices) - 1)
    else:
        assert first.thickness is not None  # checked by _require_regular_grid
        affine[:3, 2] = first.normal * first.thickness
    affine[:3, 3] = first.position
    return LPS_TO_RAS @ affine


def _tilt_remarks(name: str, slices: Sequence[Plane]) -> list[str]:
    """A remark if the last slice is shifted within its plane by more than half a pixel, seen from the first."""
    way = slices[-1].position - slices[0].position
    aside = way - (way @ slices[0].normal) * slices[0].normal
    if np.linalg.norm(aside) <= slices[0].spacing.min() / 2:
        return []
    return [
        f"{name}: its slices are shifted within their planes, as by a tilted gantry. Viewers that use ITK show scan "
        "and NIfTI mask without that shift; a DICOM SEG is exact."
    ]


def _read_slices(
    name: str, stack: Sequence[Sequence[Plane]], headers: Mapping[Path, Dataset]
) -> tuple[np.ndarray, list[str]]:
    """The voxels (columns, rows, slices), and a remark if slices are there twice."""
    counts = Counter(plane.file for twins in stack for plane in twins)

    @lru_cache(maxsize=1)  # decode a multi-frame file once
    def frames(path: Path) -> np.ndarray:
        return stored_pixels(path, headers[path], counts[path])

    voxels = _room_for([twins[0] for twins in stack], name)
    duplicates: list[Plane] = []
    for index, (first, *others) in enumerate(stack):
        pixels = frames(first.file)[first.frame or 0]
        for other in others:
            same_scale = (first.slope, first.intercept) == (other.slope, other.intercept)
            same_place = np.abs(first.position - other.position).max() < SAME_PLACE_MM
            if not (same_scale and same_place and np.array_equal(pixels, frames(other.file)[other.frame or 0])):
                raise InputError(
                    f"{name}: {first.short} and {other.short} lie at one place but differ: the series holds "
                    "several volumes, such as phases or echoes. Split it into one series for each volume."
                )
            duplicates.append(other)
        values = _rescaled(pixels, first.slope, first.intercept).T
        voxels = voxels.astype(np.result_type(voxels, values), copy=False)
        voxels[..., index] = values
    if not duplicates:
        return voxels, []
    more = f" and {len(duplicates) - 1} more" if len(duplicates) > 1 else ""
    return voxels, [f"{name}: {duplicates[0].short}{more} left out: another file holds the same slice."]


def _room_for(slices: Sequence[Plane], name: str) -> np.ndarray:
    """An array (columns, rows, slices) of the type that the slices' scales need, not yet filled.

    Raises:
        InputError: if there isn't memory for it and for what is made of it.
    """
    is_whole = all(plane.slope == 1 and plane.intercept == round(plane.intercept) for plane in slices)
    kind = np.dtype(np.int16 if is_whole else np.float32)
    rows, columns = slices[0].size
    needed = 2 * rows * columns * len(slices) * kind.itemsize
    if needed > available_memory():
        raise memory_error(Path(name), needed)
    return np.empty((columns, rows, len(slices)), kind, order="F")


def stored_pixels(path: Path, header: Dataset, count: int) -> np.ndarray:
    """The stored values of a file, (frames, rows, columns).

    Args:
        count: how many frames its header places.
    """
    try:
        needed = get_expected_length(header)
        if needed > LARGE_FILE and needed > available_memory():
            raise memory_error(path, needed)
        found = int(header.get("NumberOfFrames") or 1)
        if _is_decoded_elsewhere(header):
            pixels = _decoded_elsewhere(path)
        else:
            dataset = dcmread(path)
            if header.file_meta.TransferSyntaxUID != RLELossless and "PixelData" in dataset:
                # fewer bytes behind the last frame than one has are padding
                found += (len(dataset.PixelData) - needed) // (needed // found)
            pixels = pixel_array(dataset, raw=True)
    except InputError:
        raise
    except Exception as error:  # each of the decoders has its own kinds
        packed = UID(header.file_meta.get("TransferSyntaxUID") or "")
        if packed and not _has_decoder(packed):
            raise InputError(
                f"{path}: is packed as {one_line(packed.name)}, which isn't read. Unpack it, e.g. by gdcmconv -w, or "
                "export it uncompressed."
            ) from error
        raise InputError(
            f"{path}: its pixels can't be decoded ({first_line(error)}); the file may be cut off. Copy it again."
        ) from error
    pixels = pixels.reshape(-1, *pixels.shape[-2:])
    if not found == len(pixels) == count:
        raise InputError(f"{path}: has the pixels of {found} frames, but its header places {count}. {EXPORT_AGAIN}")
    return pixels


def _has_decoder(packed: UID) -> bool:
    try:
        return bool(get_decoder(packed).is_available)
    except NotImplementedError:
        return False


def _is_decoded_elsewhere(dataset: Dataset) -> bool:
    """Whether a decoder in C++ is needed, which may crash."""
    return dataset.file_meta.get("TransferSyntaxUID") not in DECODED_HERE


def _decoded_elsewhere(path: Path) -> np.ndarray:
    """The pixels of a file whose decoder is C++ that a damaged one may crash.

    Raises:
        InputError: if it does.
        ValueError: if it can't decode them.
    """
    reply, pixels = ask_dicom_pixels(path)
    if pixels is None:
        raise ValueError(reply["error"])
    return pixels


def _rescaled(pixels: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """A slice in the scan's own unit: int16 if that holds every value exactly, else float32."""
    if pixels.dtype.kind in "iu" and slope == 1 and intercept == round(intercept):
        limits = np.iinfo(np.int16)
        if limits.min <= int(pixels.min()) + intercept and int(pixels.max()) + intercept <= limits.max:
            return (pixels.astype(np.int32) + int(intercept)).astype(np.int16)
    return (pixels * slope + intercept).astype(np.float32)


def _number_text(numbers: np.ndarray) -> str:
    return ", ".join(f"{number:g}" for number in numbers)

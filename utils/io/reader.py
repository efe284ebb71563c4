"""The one reader of scans, for the data check, training, validation and testing.

What a file is, its content tells, not its name. Each format has a module of its own; this one puts channels together
and compares an image with its label.
"""

import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from utils.io.geometry import affine_faults, grid_faults
from utils.io.nifti import channels_in, header_size, read_head, read_nifti
from utils.io.scan import IGNORED, Scan, Volume, is_dicom
from utils.system.errors import InputError, first_line, size_text
from utils.system.text import shortened

# SimpleITK and pydicom take 0.8 s to import, and most data sets are NIfTI: functions below import what they need

# files with voxels only, and how those end that describe them
HEADERS = {".img": (".hdr",), ".img.gz": (".hdr.gz",), ".raw": (".mhd", ".nhdr"), ".zraw": (".mhd",)}
NAMED_IN_HEADERS = (".mha", ".mhd", ".nrrd", ".nhdr")  # formats whose headers name the files with voxels
FEW_VALUES = 20  # that a message shows
NEARLY_WHOLE = 1e-3  # a label may lie this far from a whole number, as after resampling or a scale in the header
LABELS = np.iinfo(np.int16)
LARGEST = 1e18  # a standardisation adds up squares, which 32-bit numbers hold up to 3.4e38

Part = tuple[Path, Volume]  # of a scan: a channel's file, or the folder of a series


def read_scan(scan: Scan, in_channels: int | None = None) -> Volume:
    """The image of a scan, from one file, one for each channel, or a DICOM series.

    Args:
        in_channels: what the network takes; by default any number.

    Raises:
        InputError: if a file can't be read, holds no finite numbers on a 3D grid, or the channels don't fit together.
    """
    faults: list[str] = []
    parts = read_parts(scan, faults)
    faults += [fault for path, volume in parts for fault in content_faults(path, volume)]
    faults += alignment_faults(parts)
    if not faults and in_channels is not None and (fault := channel_fault(parts, in_channels)) is not None:
        faults.append(f"{fault} Give a scan that has {in_channels}, one file for each (…_0000, …_0001) or all in one.")
    if faults:
        raise InputError(faults[0])
    volumes = [volume for _, volume in parts]
    if len(volumes) == 1:
        return volumes[0]
    first = volumes[0]
    voxels = np.concatenate([volume.voxels for volume in volumes])
    remarks = [remark for volume in volumes for remark in volume.remarks]
    return Volume(voxels, first.affine, first.shape, first.header, (), remarks)


def read_label(
    path: Path,
    image_path: Path,
    image: Volume,
    classes: int | None = None,
    ignore: int | None = None,
    structures: Sequence[Sequence[str]] = (),
    not_annotated: Collection[int] = (),
    remarks: list[str] | None = None,
) -> np.ndarray:
    """The label map of a scan on the scan's grid, (X, Y, Z) in int16.

    Args:
        classes: how many values there may be, 0 … ``classes`` - 1; by default any whole numbers.
        ignore: a further value, which becomes :data:`IGNORED`.
        structures: names that each class may have in a DICOM label.
        not_annotated: classes that may be missing there without a remark.
        remarks: gets a sentence for what is remarkable about a DICOM label.

    Raises:
        InputError: if it can't be read, lies elsewhere, or has other values.
    """
    label = read_label_file(path, image_path, image, structures, not_annotated)
    if remarks is not None:
        remarks += label.remarks
    faults = grid_faults(path, label.shape, label.affine, image_path, image.shape, image.affine)
    faults += label_faults(path, label, classes, ignore)
    if faults:
        raise InputError(faults[0])
    values = np.rint(label.voxels[0]).astype(np.int16)
    if ignore is not None:
        values[values == ignore] = IGNORED
    return values


def read_file(path: Path) -> Volume:
    """The volume of a file of any kind but DICOM.

    Raises:
        InputError: if there is no such file, or no 3D volume in it.
    """
    path = header_file(path)
    with _faults_in_one_line(path):
        head = read_head(path)
        if header_size(head):
            return read_nifti(path, head)
        from utils.io.simpleitk_formats import read_with_simpleitk

        return read_with_simpleitk(path)


def read_label_file(
    path: Path,
    image_path: Path,
    image: Volume,
    structures: Sequence[Sequence[str]] = (),
    not_annotated: Collection[int] = (),
) -> Volume:
    """The volume of a label's file: of any kind that :func:`read_file` reads, or a DICOM RTSTRUCT or SEG.

    Args:
        image: the scan, on whose grid a DICOM label is drawn; others may lie on any.
        structures: names that each class may have in a DICOM label.
        not_annotated: classes that may be missing there without a remark.

    Raises:
        InputError: if it can't be read.
    """
    with _faults_in_one_line(path):
        if not is_dicom(path):
            return read_file(path)
        from utils.io.dicom_labels import read_dicom_label

        return read_dicom_label(path, image_path, image, structures, not_annotated)


def count_channels(path: Path) -> int:
    """How many channels a file of any kind but DICOM's slices has. Of NIfTI the header alone is read.

    Raises:
        InputError: if that can't be read.
    """
    path = header_file(path)
    with _faults_in_one_line(path):
        head = read_head(path)
        return channels_in(head) if header_size(head) else len(read_file(path).voxels)


def read_parts(scan: Scan, faults: list[str]) -> list[Part]:
    """Each file of a scan's image, or its DICOM series. What can't be read is added to ``faults``."""
    parts = []
    for path in [scan.path] if scan.is_series else scan.image:
        try:
            parts.append((path, _read_only_series(scan) if scan.is_series else read_file(path)))
        except InputError as error:
            faults.append(str(error))
    return parts


def content_faults(path: Path, volume: Volume) -> list[str]:
    """What keeps a volume from being an image, each fault in a sentence: its place in space, or its values."""
    faults = affine_faults(path, volume.affine)
    voxels = volume.voxels
    if voxels.dtype.kind != "f":
        return faults
    low, high = float(voxels.min()), float(voxels.max())
    if not np.isfinite([low, high]).all():  # NaN of any NaN
        count = voxels.size - int(np.isfinite(voxels).sum())
        faults.append(f"{path}: has NaN or infinite voxels ({count}). Replace them.")
    elif low < -LARGEST or high > LARGEST:
        count = int((np.abs(voxels) > LARGEST).sum())
        faults.append(
            f"{path}: has voxels that 32-bit numbers can't hold or square ({count}, from {low:g} to {high:g}). Replace "
            "them."
        )
    return faults


def alignment_faults(parts: Sequence[Part]) -> list[str]:
    """How the grids of channels differ from the first one's, each fault in a sentence."""
    return [
        fault
        for path, volume in parts[1:]
        for fault in grid_faults(path, volume.shape, volume.affine, parts[0][0], parts[0][1].shape, parts[0][1].affine)
    ]


def channel_fault(parts: Sequence[Part], in_channels: int) -> str | None:
    """That a scan has another number of channels than the network takes, in a sentence, or None."""
    channels = sum(len(volume.voxels) for _, volume in parts)
    if channels == in_channels:
        return None
    shapes = ", ".join(size_text(volume.file_shape) for _, volume in parts)
    return f"{parts[0][0]}: channels: {channels} (shape {shapes}), but the network takes {in_channels}."


def label_faults(path: Path, label: Volume, classes: int | None = None, ignore: int | None = None) -> list[str]:
    """What keeps a volume from being a label map, in a sentence; none if it is one.

    Args:
        classes: how many values there may be, 0 … ``classes`` - 1; by default any that int16 holds. A value within
            :data:`NEARLY_WHOLE` of a whole number counts as that.
        ignore: a further value.
    """
    values = label.voxels
    if len(values) != 1:
        return [f"{path}: has shape {size_text(label.file_shape)}; a label is 3D, one value for each voxel."]
    allowed = "whole numbers" if classes is None else f"0 … {classes - 1}"
    if ignore is not None:
        allowed += f" and {ignore}"
        values = np.where(has_value(values, ignore), 0, values)
    lowest, highest = values.min(), values.max()
    if not np.isfinite([lowest, highest]).all():
        return [f"{path}: has NaN or infinite values, but labels are {allowed}. Replace them."]
    whole = values.dtype.kind in "iub" or bool((np.abs(values - np.rint(values)) <= NEARLY_WHOLE).all())
    least, most = (0, classes - 1) if classes is not None else (LABELS.min, LABELS.max)
    if whole and least <= np.rint(lowest) and np.rint(highest) <= most:
        return []
    found = np.unique(values)
    shown = ", ".join(f"{value:g}" for value in found[:FEW_VALUES]) + (", …" if len(found) > FEW_VALUES else "")
    return [f"{path}: has the values {shown}, but labels are {allowed}. Remap them."]


def has_value(values: np.ndarray, value: int) -> np.ndarray:
    """Where a label has a value, of fractions one within :data:`NEARLY_WHOLE` of it.

    Args:
        value: of any size, also one that the label's type can't hold.
    """
    found = values == value if values.dtype.kind in "iub" else np.abs(values - value) <= NEARLY_WHOLE
    return np.asarray(found)


def scan_files(scan: Scan) -> list[Path]:
    """All files that a scan is read from: those of its image and its label, and the voxels beside a header."""
    named = [*scan.image, *([scan.label] if scan.label is not None else [])]
    return [file for path in named for file in (path, *voxel_files(path))]


def header_file(path: Path) -> Path:
    """What describes a file's voxels: for ``.img`` or ``.raw`` the header beside it, if there is one, or the file."""
    for ending, headers in HEADERS.items():
        if path.name.lower().endswith(ending):
            return next(iter(_files_beside(path, ending, headers)), path)
    return path


def voxel_files(path: Path) -> list[Path]:
    """The files that a header has its voxels in; none if it can't be read, which reading the scan will tell."""
    if path.name.lower().endswith(NAMED_IN_HEADERS):
        from utils.io.simpleitk_formats import files_of_header

        try:
            return list(files_of_header(path))
        except (OSError, ValueError):
            return []
    return [
        file
        for voxels, headers in HEADERS.items()
        for header in headers
        if path.name.lower().endswith(header)
        for file in _files_beside(path, header, (voxels,))
    ]


def _files_beside(path: Path, ending: str, others: Sequence[str]) -> list[Path]:
    """The files that have other endings, in small letters or capitals, and the rest of the name."""
    stem = path.name[: len(path.name) - len(ending)]
    beside = [path.with_name(stem + spelled) for other in others for spelled in (other, other.upper())]
    return [file for file in beside if file.is_file()]


def is_image(path: Path) -> bool:
    """Whether a file looks like a volume that :func:`read_file` reads."""
    if header_size(read_head(path)):
        return True
    from utils.io.simpleitk_formats import image_kind

    return image_kind(path) != ""


def _read_only_series(scan: Scan) -> Volume:
    """The DICOM series among the files of a scan.

    Raises:
        InputError: if there is none, more than one, or it can't be read.
    """
    from utils.io.dicom_series import Series, find_series, read_series

    with _faults_in_one_line(scan.path):
        series, remarks = find_series([path for path in scan.image if path != scan.label and is_dicom(path)])
        if len(series) != 1:
            names = f" ({', '.join(one.name for one in series)})" if series else ""
            raise InputError(f"{scan.path}: holds {len(series)} DICOM series{names}. Give a folder that holds one.")
        volume = read_series(Series(str(scan.path), series[0].files))
        volume.remarks.extend(remarks)
        return volume


@contextmanager
def _faults_in_one_line(path: Path) -> Iterator[None]:
    """Turn whatever reading a file raises into an InputError that names the file."""
    try:
        yield
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{path}: is too large for this machine's memory, or its header is damaged.") from error
    except (EOFError, zlib.error, OSError) as error:
        raise _unreadable(path, error) from error
    except Exception as error:  # damaged bytes raise whatever they happen to break in a library
        raise InputError(
            f"{path}: can't be read ({type(error).__name__}: {first_line(error)}). Copy or convert it again."
        ) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    """Why a file's bytes can't be had: the system's word, or that of what unpacks or counts them."""
    reason = getattr(error, "strerror", None)
    if reason is None:
        return InputError(f"{path}: is cut off or damaged ({first_line(error)}). Copy it again.")
    named = getattr(error, "filename", None) or path
    other = "" if str(named) == str(path) else f"{shortened(str(named))}: "  # the voxels' file of a header
    return InputError(f"{path}: can't be read ({other}{reason}). Mend the path, or copy it again.")

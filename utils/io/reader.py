"""Scans as they are on disk: NIfTI, DICOM and what SimpleITK reads, told apart by their content."""

import gzip
import re
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from utils.io.dicom_series import LPS_TO_RAS, Series, is_dicom, read_series
from utils.io.geometry import affine_faults, grid_faults, unit_of
from utils.io.scan import Scan, Volume
from utils.system.errors import InputError, size_text

NIFTI_1, NIFTI_2 = 348, 540  # bytes of their headers, which begin with this number


MAGIC_AT = {NIFTI_1: 344, NIFTI_2: 4}


SPACING_AT = {NIFTI_1: (80, "f4"), NIFTI_2: (112, "f8")}  # pixdim[1:4]


SFORM_CODE_AT = {NIFTI_1: (254, "i2"), NIFTI_2: (348, "i4")}


MILLIMETRES = {"meter": 1000.0, "micron": 0.001}  # in the units that a header may have instead


# files with voxels only, and how those end that describe them
HEADERS = {".img": (".hdr",), ".img.gz": (".hdr.gz",), ".raw": (".mhd", ".nhdr"), ".zraw": (".mhd",)}


META_DATA_FILE = re.compile(rb"^ElementDataFile *= *(?P<name>[^\r\n]+?) *\r?\n", re.MULTILINE)


META_PACKED_SIZE = re.compile(rb"^CompressedDataSize *= *(\d+)", re.MULTILINE)


# both would put lines of their own beside ours
sitk.ProcessObject.SetGlobalWarningDisplay(False)


nib.imageglobals.logger.setLevel("CRITICAL")


def read_scan(scan: Scan, in_channels: int) -> Volume:
    """The image of a scan, from one file, one for each channel, or a DICOM series.

    Raises:
        InputError: if a file can't be read, holds no finite numbers on a 3D grid, or the channels don't fit together.
    """
    if scan.is_series:
        voxels, affine, datasets, remarks = read_series(Series(str(scan.image[0].parent), scan.image))
        parts = [Volume(voxels[None], affine, voxels.shape, None, datasets, remarks)]
    else:
        parts = [read_file(path) for path in scan.image]
    for path, part in zip(scan.image, parts, strict=False):
        _require_content(path.parent if scan.is_series else path, part)
        faults = grid_faults(path, part.shape, part.affine, scan.image[0], parts[0].shape, parts[0].affine)
        if faults:
            raise InputError(faults[0])
    channels = sum(part.voxels.shape[0] for part in parts)
    if channels != in_channels:
        raise InputError(
            f"{scan.image[0]}: channels: {channels}, but the network takes {in_channels}. Give a scan that has "
            f"{in_channels}, one file for each (…_0000, …_0001) or all in one."
        )
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    remarks = [remark for part in parts for remark in part.remarks]
    return Volume(np.concatenate([part.voxels for part in parts]), first.affine, first.shape, first.header, (), remarks)


def read_label(path: Path, image_path: Path, image: Volume, classes: int) -> np.ndarray:
    """(X, Y, Z), the label map of a scan, on the scan's grid.

    Raises:
        InputError: if it can't be read, lies elsewhere, or has other values than 0 … ``classes`` - 1.
    """
    label = read_file(path)
    faults = grid_faults(path, label.shape, label.affine, image_path, image.shape, image.affine)
    if faults:
        raise InputError(faults[0])
    values = label.voxels[0]
    if label.voxels.shape[0] != 1 or not np.isin(np.unique(values), np.arange(classes)).all():
        raise InputError(f"{path}: is no label map with the values 0 … {classes - 1}. Remap it, or leave it out.")
    return values.astype(np.int16)


def read_file(path: Path) -> Volume:
    """The volume of a file of any kind but DICOM's slices.

    Raises:
        InputError: if there is no such file, or no 3D volume in it.
    """
    path = header_file(path)
    try:
        head = _head(path)
        nifti = _nifti_header_size(head)
        volume = _read_nifti(path, head, nifti) if nifti else _read_with_simpleitk(path)
    except (EOFError, zlib.error, OSError) as error:
        reason = getattr(error, "strerror", None)
        if reason is None:  # not the system's word, but that of what unpacks the bytes or counts them
            raise InputError(f"{path}: is cut off or damaged ({_brief(error)}). Copy it again.") from error
        named = getattr(error, "filename", None) or path
        other = "" if str(named) == str(path) else f"{named}: "  # the voxels' file of a header
        raise InputError(f"{path}: can't be read ({other}{reason}). Mend the path, or copy it again.") from error
    except MemoryError as error:
        raise InputError(f"{path}: is too large for this machine's memory, or its header is damaged.") from error
    return volume


def header_file(path: Path) -> Path:
    """What describes a file's voxels: for ``.img`` or ``.raw`` the header beside it, if there is one, or the file."""
    for ending, headers in HEADERS.items():
        if path.name.endswith(ending):
            beside = (path.with_name(path.name.removesuffix(ending) + header) for header in headers)
            return next((header for header in beside if header.is_file()), path)
    return path


def voxel_files(path: Path) -> list[Path]:
    """The files of a header's name beside it that may have its voxels."""
    beside = [
        path.with_name(path.name.removesuffix(header) + ending)
        for ending, headers in HEADERS.items()
        for header in headers
        if path.name.endswith(header)
    ]
    return [file for file in beside if file.is_file()]


def is_image(path: Path) -> bool:
    """Whether a file looks like a volume that :func:`read_file` reads."""
    if _nifti_header_size(_head(path)):
        return True
    return sitk.ImageFileReader.GetImageIOFromFileName(str(path)) != ""


def _head(path: Path) -> bytes:
    with _opened(path) as file:
        return file.read(NIFTI_2)


def _opened(path: Path) -> Any:
    """A file to read bytes from, unpacked where they are packed, whatever its name says."""
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if packed else open(path, "rb")


def _nifti_header_size(head: bytes) -> int:
    """How long the NIfTI header is that a file begins with; 0 where there is none."""
    for size, place in MAGIC_AT.items():
        sizes = (int.from_bytes(head[:4], order) for order in ("little", "big"))
        if size in sizes and head[place : place + 2] in (b"n+", b"ni"):
            return size
    return 0


def _read_nifti(path: Path, head: bytes, size: int) -> Volume:
    if len(head) < size:
        raise InputError(
            f"{path}: is cut off or damaged ({len(head)} of its header's {size} bytes are there). Copy it again."
        )
    order = "<" if head[:1] != b"\x00" else ">"
    place, kind = SPACING_AT[size]
    spacing = np.frombuffer(head, order + kind, 3, place)
    place, kind = SFORM_CODE_AT[size]
    placed_by_spacing = np.frombuffer(head, order + kind, 1, place)[0] == 0
    if placed_by_spacing and not (spacing > 0).all():  # nibabel makes them positive without a word
        sizes = " × ".join(f"{value:g}" for value in spacing)
        raise InputError(f"{path}: its voxels are {sizes} mm, which can't be. Mend its header.")
    try:
        if head[MAGIC_AT[size] : MAGIC_AT[size] + 2] == b"ni":
            image: Any = nib.load(path)  # a pair of files, which nibabel finds by their names
            voxels = np.asanyarray(image.dataobj)
        else:
            with _opened(path) as file:
                image = (nib.Nifti1Image if size == NIFTI_1 else nib.Nifti2Image).from_stream(file)
                voxels = np.asanyarray(image.dataobj)
                if isinstance(file, gzip.GzipFile):
                    while file.read(1 << 20):  # the checksum is behind the last byte
                        pass
    except (ImageFileError, HeaderDataError, ValueError, OverflowError) as error:
        raise InputError(f"{path}: can't be read as NIfTI ({_brief(error)}). Copy or convert it again.") from error
    affine = image.affine.copy()
    affine[:3] *= MILLIMETRES.get(unit_of(image.header), 1.0)
    if voxels.dtype == np.float64 and image.get_data_dtype().kind in "iu":
        voxels = voxels.astype(np.float32)  # whole numbers with a scale, which networks take as float32 anyway
    volume = _from_array(path, voxels, affine, image.header)
    if int(image.header["qform_code"]) == int(image.header["sform_code"]) == 0:
        volume.remarks.append(f"{path}: its header doesn't tell how it lies, so that left and right are a guess.")
    return volume


def _read_with_simpleitk(path: Path) -> Volume:
    if is_dicom(path):
        raise InputError(f"{path}: is a single DICOM file. Give the folder of its series.")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    kind = reader.GetImageIOFromFileName(str(path))
    if not kind:
        raise InputError(f"{path}: is no volume: neither NIfTI, DICOM, nor another file that SimpleITK reads.")
    if kind == "GDCMImageIO":  # which would make a scan of a slice
        raise InputError(f"{path}: is DICOM without the preamble that its files begin with. Export the series again.")
    if kind == "NiftiImageIO":
        raise InputError(f"{path}: is Analyze 7.5, which doesn't tell left from right. Convert it to NIfTI.")
    reader.SetImageIO(kind)
    try:
        reader.ReadImageInformation()
        if kind == "MetaImageIO":
            _require_meta_data(path, reader)
        image = reader.Execute()
    except RuntimeError as error:
        raise InputError(f"{path}: can't be read ({_brief(error)}). Copy or convert it again.") from error
    dimensions = image.GetDimension()
    if dimensions == 4 and image.GetSize()[3] == 1:
        image = image[..., 0]
    if image.GetDimension() != 3:
        raise InputError(f"{path}: has {dimensions} dimensions; a scan has 3.")
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    voxels = sitk.GetArrayFromImage(image)  # (Z, Y, X) or (Z, Y, X, C)
    return _from_array(path, np.moveaxis(voxels, (0, 2), (2, 0)), LPS_TO_RAS @ affine, None)


def _require_meta_data(path: Path, reader: sitk.ImageFileReader) -> None:
    """Raise InputError unless a MetaImage's voxels are all there; ITK would tell it on stderr, and only half of it."""
    with open(path, "rb") as file:
        head = file.read(1 << 16)
    named = META_DATA_FILE.search(head)
    if named is None or named["name"].startswith(b"LIST") or b"%" in named["name"]:
        return  # a file for each slice
    local = named["name"].upper() == b"LOCAL"
    data = path if local else path.with_name(named["name"].decode(errors="replace"))
    voxel = sitk.Image([1] * reader.GetDimension(), reader.GetPixelID(), reader.GetNumberOfComponents())
    packed = META_PACKED_SIZE.search(head)
    wanted = int(packed[1]) if packed else int(np.prod(reader.GetSize())) * sitk.GetArrayViewFromImage(voxel).nbytes
    if packed is None and re.search(rb"^CompressedData *= *True", head, re.MULTILINE):
        wanted = 1  # older files don't tell
    there = data.stat().st_size - (named.end() if local else 0)
    if there < wanted:
        raise InputError(
            f"{path}: is cut off or damaged ({there} of {wanted} bytes of its voxels are there). Copy it again."
        )


def _from_array(path: Path, voxels: np.ndarray, affine: np.ndarray, header: nib.Nifti1Header | None) -> Volume:
    """A volume of (X, Y, Z) voxels, or (X, Y, Z, C), or with dimensions of length one behind."""
    shape = voxels.shape
    if voxels.dtype.kind not in "iufb":
        raise InputError(
            f"{path}: has colours or other compound voxels ({voxels.dtype}). Convert it to one number each."
        )
    if len(shape) < 3 or max(shape[4:], default=1) > 1 or min(shape, default=0) < 1:
        raise InputError(f"{path}: has the shape {size_text(shape)}; a scan is 3D, or 4D with its channels last.")
    voxels = voxels.astype(voxels.dtype.newbyteorder("="), copy=False)  # torch knows no other
    channels = voxels.reshape(*shape[:3], -1)  # (X, Y, Z, C)
    return Volume(np.moveaxis(channels, -1, 0), np.asarray(affine, float), shape, header)


def _require_content(path: Path, volume: Volume) -> None:
    faults = affine_faults(path, volume.affine)
    bad = volume.voxels.size - int(np.isfinite(volume.voxels).sum()) if volume.voxels.dtype.kind == "f" else 0
    if bad:
        faults.append(f"{path}: has NaN or infinite voxels ({bad}). Replace them.")
    if faults:
        raise InputError(faults[0])


def _brief(error: Exception) -> str:
    """The part of an error that a person can use, on one line; ITK's begin with where in its code it is."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    if lines[-1].startswith("[nrrd]"):  # from the outermost function to the one that found the fault
        return lines[-1].split(": ", 1)[-1].strip()
    told = next((line for line in lines if "ERROR: " in line), lines[0])
    return told.split("): ")[-1].partition(" Refusing")[0].strip(" .")

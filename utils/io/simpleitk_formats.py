"""Files that SimpleITK reads: NRRD, MetaImage and others."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from utils.io.geometry import LPS_TO_RAS
from utils.io.reader_process import ask_itk_kind, ask_itk_volume
from utils.io.scan import BEST_DEFLATE, Volume, is_dicom, memory_error, remedy, stream_error, volume_from_array
from utils.io.voxel_files import VoxelFiles, meta_image_files, nrrd_files, stream_sizes
from utils.system.errors import InputError
from utils.system.files import open_regular, require_regular
from utils.system.text import shortened

META_IMAGE, NRRD = "MetaImageIO", "NrrdImageIO"
# their files can name others to be read, in ways that only their own libraries know
NAMES_OTHERS = {
    "HDF5ImageIO": "HDF5",
    "MINCImageIO": "MINC",
    "StimulateImageIO": "Stimulate",
    "Bruker2dseqImageIO": "Bruker",
}
META_PACKED = re.compile(rb"^CompressedData *= *True", re.MULTILINE)
META_PACKED_SIZE = re.compile(rb"^CompressedDataSize *= *(\d{1,18})", re.MULTILINE)
META_TEXT = re.compile(rb"^BinaryData *= *False", re.MULTILINE)
# a header tells the size of voxels, and how its axes lie, by one of these
SIZED = re.compile(rb"^(spacings:|space directions:|ElementSpacing|ElementSize)", re.MULTILINE)
META_ORIENTED = re.compile(rb"^(TransformMatrix|Rotation|Orientation)", re.MULTILINE)
NRRD_DIRECTIONS = re.compile(rb"^space directions:", re.MULTILINE)
# such as left-posterior-superior and LPS; others, such as 3D-left-handed, don't tell where the body lies
NRRD_ANATOMY = re.compile(
    rb"^space: *(?P<x>left|right|[LR])[- ]?(?P<y>anterior|posterior|[AP])[- ]?(superior|S)[- ]?(?P<time>time|T)?\s*$",
    re.MULTILINE | re.IGNORECASE,
)
NRRD_UNITS = re.compile(rb"^space units:.*$", re.MULTILINE)
META_UNIT = re.compile(rb"^DistanceUnits *= *(\S+)", re.MULTILINE)
PREFIXES = {"micro": 0.001, "milli": 1.0, "centi": 10.0, "": 1000.0}
UNITS = {"mm": 1.0, "cm": 10.0, "m": 1000.0, "um": 0.001, "micron": 0.001, "microns": 0.001} | {
    prefix + word: length for prefix, length in PREFIXES.items() for word in ("meter", "meters", "metre", "metres")
}
UNSTATED = {"", "?", "???"}
MICRO = str.maketrans("\u00b5\u03bc", "uu")  # the sign, and the Greek letter
HEADER_BYTES = {"GiplImageIO": 256, "MRCImageIO": 1024}
VTK_DATA = re.compile(rb"^(SCALARS|VECTORS|LOOKUP_TABLE|TENSORS)[^\n]*\n", re.MULTILINE)
NRRD_PACKED = re.compile(rb"^encoding: *(gz|gzip)\s*$", re.MULTILINE)
NRRD_SKIPS = re.compile(rb"^(line|byte) ?skip:", re.MULTILINE)


def image_kind(path: Path) -> str:
    """The name of the ITK class that reads a file; empty if none does.

    Raises:
        InputError: if SimpleITK crashes on it.
    """
    kind = ask_itk_kind(path)
    if not kind and path.name.lower().endswith((".mha", ".mhd")):  # which ITK knows in small letters alone
        with open_regular(path) as file:
            kind = META_IMAGE if b"NDims" in file.read(1 << 10) else ""
    return kind


def files_of_header(path: Path) -> tuple[Path, ...]:
    """The files that a header of these formats names for its voxels; none if they follow the header.

    Raises:
        InputError: if it names one that must not be read.
        OSError: if a file isn't there or can't be read.
    """
    name = path.name.lower()
    if name.endswith((".mha", ".mhd")):
        return meta_image_files(path).files
    return nrrd_files(path).files if name.endswith((".nrrd", ".nhdr")) else ()


def read_with_simpleitk(path: Path) -> Volume:
    """The volume of a file of a format that ITK knows, but for NIfTI and DICOM.

    Raises:
        InputError: if it is damaged, or no 3D volume.
        OSError, EOFError, zlib.error: if it can't be opened, or its stream is damaged.
    """
    require_regular(path)
    if is_dicom(path):
        raise InputError(f"{path}: is a single DICOM file. Give the folder of its series.")
    kind = image_kind(path)
    if not kind and (todo := remedy(path)):
        raise InputError(f"{path}: isn't read as it is. {todo}")
    if not kind:
        raise InputError(f"{path}: is no volume: neither NIfTI, DICOM, nor another file that SimpleITK reads.")
    if kind == "GDCMImageIO":  # which would make a scan of a slice
        raise InputError(f"{path}: is DICOM without the preamble that its files begin with. Export the series again.")
    if kind == "NiftiImageIO":
        raise InputError(f"{path}: is Analyze 7.5, which doesn't tell left from right. Convert it to NIfTI.")
    if kind in NAMES_OTHERS:
        raise InputError(
            f"{path}: is {NAMES_OTHERS[kind]}, whose files can name others to be read, and isn't opened. Convert it to "
            "NIfTI."
        )
    files = {META_IMAGE: meta_image_files, NRRD: nrrd_files}.get(kind, lambda _: None)(path)
    header = _ask(path, kind)[0]
    size = header["size"]
    if len(size) != 3 and not (len(size) == 4 and size[3] == 1):
        raise InputError(f"{path}: has {len(size)} dimensions; a scan has 3.")
    if files is None:
        _require_data(path, kind, header)
    else:
        (_require_meta_data if kind == META_IMAGE else _require_nrrd_data)(path, files, header["bytes"])
    header, array = _ask(path, kind, header["bytes"])
    if array is None:
        raise memory_error(path, header["bytes"])
    text = b"" if files is None else files.header
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(header["direction"], (3, 3)) * header["spacing"]
    affine[:3, 3] = header["origin"]
    unit = _unit(text)
    affine[:3] *= UNITS.get(unit, 1.0)
    anatomy = NRRD_ANATOMY.search(text)
    if anatomy and anatomy["time"]:  # ITK takes any of these for left-posterior-superior
        affine[0] *= -1 if anatomy["x"].lower().startswith(b"r") else 1
        affine[1] *= -1 if anatomy["y"].lower().startswith(b"a") else 1
    voxels = np.moveaxis(array, (0, 2), (2, 0))  # (Z, Y, X[, C]) -> (X, Y, Z[, C])
    volume = volume_from_array(path, voxels, LPS_TO_RAS @ affine)
    if files is not None and not SIZED.search(text):
        volume.remarks.append(f"{path}: its header gives no voxel size, and 1 mm is taken.")
    if unit and unit not in UNITS:
        volume.remarks.append(f"{path}: its header has the unit {shortened(unit)!r}, which isn't known; mm are taken.")
    if not (META_ORIENTED.search(text) or (anatomy and NRRD_DIRECTIONS.search(text))):
        volume.remarks.append(f"{path}: its header doesn't tell how it lies, so that left and right are a guess.")
    return volume


def _ask(path: Path, kind: str, size: int | None = None) -> tuple[dict[str, Any], np.ndarray | None]:
    header, array = ask_itk_volume(path, kind, size)
    if "error" in header:
        raise InputError(f"{path}: can't be read ({_itk_reason(header['error'])}). Copy or convert it again.")
    return header, array


def _unit(header: bytes) -> str:
    """The unit of length that a header states; several are joined by commas."""
    found = META_UNIT.search(header)
    of_nrrd = re.findall(rb'"([^"]*)"', (NRRD_UNITS.search(header) or [b""])[0])[:3]  # a fourth is of time
    units = {_decoded(unit).strip().lower().translate(MICRO) for unit in ([found[1]] if found else of_nrrd)}
    return ", ".join(sorted(units - UNSTATED))


def _decoded(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")


def _require_data(path: Path, kind: str, header: dict[str, Any]) -> None:
    """Check that a file of another format can hold its voxels; ITK makes up those that are missing.

    Raises:
        InputError: if it can't.
    """
    needed, size = header["bytes"], path.stat().st_size
    if kind == "VTKImageIO":
        is_whole = _is_whole_vtk(path, needed, needed // header["item_bytes"])
    elif kind in HEADER_BYTES and not _is_packed(path):
        is_whole = size >= HEADER_BYTES[kind] + needed
    else:
        is_whole = size * BEST_DEFLATE >= needed
    if not is_whole:
        raise InputError(
            f"{path}: is cut off or damaged ({size} bytes can't hold the {needed} of its voxels). Copy it again."
        )


def _is_whole_vtk(path: Path, needed: int, numbers: int) -> bool:
    """Whether a VTK file has as many bytes, or numbers in words, as its header says."""
    with open_regular(path) as file:
        head = file.read(1 << 12)
        start = max((found.end() for found in VTK_DATA.finditer(head)), default=0)
        size = path.stat().st_size - start
        if re.search(rb"^BINARY", head, re.MULTILINE | re.IGNORECASE):
            return size >= needed
        if size < 2 * numbers - 1:  # a digit and a space for each
            return False
        file.seek(start)
        return len(file.read().split()) >= numbers


def _is_packed(path: Path) -> bool:
    with open_regular(path) as file:
        return file.read(2) == b"\x1f\x8b"


def _require_meta_data(path: Path, files: VoxelFiles, needed: int) -> None:
    """Check that a MetaImage's voxels are all there; ITK tells only half of what can be wrong.

    Args:
        needed: bytes of the voxels.

    Raises:
        InputError: if they aren't, or are scaled in a way that ITK passes over.
    """
    for name, usual in ((b"Slope", 1.0), (b"Offset", 0.0)):
        scale = re.search(rb"^ElementToIntensityFunction" + name + rb" *= *(\S+)", files.header, re.MULTILINE)
        if scale and scale[1] not in (b"%g" % usual, b"%.1f" % usual):
            raise InputError(
                f"{path}: scales its values (ElementToIntensityFunction), which isn't read. Convert it to NIfTI."
            )
    if len(files.files) > 1 or META_TEXT.search(files.header):
        return  # a file for each slice, or numbers in words
    data = files.files[0] if files.files else path
    found = data.stat().st_size - files.start
    packed, packed_size = META_PACKED.search(files.header), META_PACKED_SIZE.search(files.header)
    least = needed if packed is None else int(packed_size[1]) if packed_size else 1  # older files don't tell how many
    if found < least:
        raise InputError(
            f"{path}: is cut off or damaged ({found} of {least} bytes of its voxels are there). Copy it again."
        )
    if packed:
        stream = _require_stream(path, data, files.start, needed)
        stated = int(packed_size[1]) if packed_size else 0
        # ITK unpacks as many bytes as are stated, and makes up the other voxels; but for a file of its own
        # the size may be missing
        if stated < stream and (stated > 0 or not files.files):
            raise InputError(
                f"{path}: doesn't state the size of its packed voxels rightly (CompressedDataSize = {stated}, and they "
                f"are {stream} bytes). Convert it again."
            )


def _require_nrrd_data(path: Path, files: VoxelFiles, needed: int) -> None:
    """Check that an NRRD's packed voxels are as many as its header says.

    Raises:
        InputError: if they are more or less.
    """
    if len(files.files) <= 1 and NRRD_PACKED.search(files.header) and not NRRD_SKIPS.search(files.header):
        _require_stream(path, files.files[0] if files.files else path, files.start, needed)


def _require_stream(path: Path, data: Path, start: int, needed: int) -> int:
    found, packed = stream_sizes(data, start, needed)
    if found != needed:
        raise stream_error(path, found, needed)
    return packed


def _itk_reason(text: str) -> str:
    """The reason in an error of ITK, whose text also says where in ITK's code it is."""
    lines = text.strip().splitlines() or ["it gives no reason"]
    if lines[-1].startswith("[nrrd]"):  # from the outermost function to the one that found the fault
        return lines[-1].split(": ", 1)[-1].strip()
    reason = next((line for line in lines if "ERROR: " in line), lines[0])
    return reason.split("): ")[-1].partition(" Refusing")[0].strip(" .:")

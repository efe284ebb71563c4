"""NIfTI-1 and NIfTI-2 files: single or in pairs, plain or in gzip, whatever their names say.

Where headers leave a choice, training and testing make the same one:

- Lengths in metres and microns become mm; a unit that the standard doesn't know is taken for mm.
- The sform places the voxels. Only if its voxel sizes differ from ``pixdim`` by more than 1 %, and there is a qform
  (which takes its sizes from ``pixdim``), does the qform, as in ITK: in ACDC's files the sform is a mere identity.
  Wherever the two place a corner of the scan more than half a voxel apart, a remark says so.
- The signs in ``pixdim`` mean nothing beside an sform or a qform, as in nibabel and ITK. If a header has neither, a
  negative size is an error, since it may be meant as a mirrored axis. Without an sform a size of 0 is one too.
- Voxels that begin at byte 0, the header's own first, follow the header.
- Bytes behind the end of a gzip stream are left alone, as gunzip does. A stream that holds more or less than the header
  says is an error.
"""

import gzip
import itertools
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from utils.io.geometry import affine_faults
from utils.io.scan import BEST_DEFLATE, Volume, memory_error, stream_error, volume_from_array
from utils.io.voxel_files import require_below
from utils.system.errors import InputError, first_line
from utils.system.files import open_regular
from utils.system.hardware import available_memory

NIFTI_1, NIFTI_2 = 348, 540  # bytes of their headers, which begin with this number
MAGIC_AT = {NIFTI_1: 344, NIFTI_2: 4}
DIM_AT = {NIFTI_1: (40, "i2"), NIFTI_2: (16, "i8")}  # the number of dimensions, and their sizes
SPACING_AT = {NIFTI_1: (80, "f4"), NIFTI_2: (112, "f8")}  # pixdim[1:4]
FORM_CODES_AT = {NIFTI_1: (252, "i2"), NIFTI_2: (344, "i4")}  # qform_code and sform_code
OFFSET_AT = {NIFTI_1: (108, "f4"), NIFTI_2: (168, "i8")}  # vox_offset
EXTENSION_FLAG = 4  # bytes behind the header that say whether more follows before the voxels
MILLIMETRES = {"meter": 1000.0, "micron": 0.001}  # in the units that a header may have instead
SAME_SIZE = 0.01  # as a share of the voxel size
SAME_PLACE = 0.5  # in voxels

nib.imageglobals.logger.setLevel("CRITICAL")  # it would print lines of its own beside ours


def read_head(path: Path) -> bytes:
    """The first bytes of a file, unpacked: as many as the longest NIfTI header has, or all of a shorter file."""
    head = b""
    with _open_unpacked(path) as file:
        try:
            while len(head) < NIFTI_2 and (more := file.read1(NIFTI_2 - len(head))):
                head += more
        except gzip.BadGzipFile:
            if not head:
                raise
            # a short file, and what is behind its end is no gzip
    return head


def header_size(head: bytes) -> int:
    """How long the NIfTI header is that a file begins with; 0 where there is none."""
    for size, place in MAGIC_AT.items():
        sizes = (int.from_bytes(head[:4], order) for order in ("little", "big"))
        if size in sizes and head[place : place + 2] in (b"n+", b"ni"):
            return size
    return 0


def channels_in(head: bytes) -> int:
    """How many channels a NIfTI header says that its volume has.

    Args:
        head: what :func:`read_head` returned, with a whole header in it.
    """
    dimensions, *_, channels = (int(number) for number in _stored(head, DIM_AT[header_size(head)], 5))
    return channels if dimensions > 3 else 1


def read_nifti(path: Path, head: bytes) -> Volume:
    """The volume of a NIfTI file, or of the pair whose header it is.

    Args:
        head: what :func:`read_head` returned, with a header in it.

    Raises:
        InputError: if it is damaged, or can't be placed in space.
        OSError, EOFError, zlib.error: if its bytes can't be read or unpacked.
    """
    size = header_size(head)
    if len(head) < size:
        raise InputError(
            f"{path}: is cut off or damaged ({len(head)} of its header's {size} bytes are there). Copy it again."
        )
    pixdim = _stored(head, SPACING_AT[size], 3)
    has_qform, has_sform = _stored(head, FORM_CODES_AT[size], 2) != 0
    # nibabel would change them without a word
    if not has_sform and not ((np.abs(pixdim) if has_qform else pixdim) > 0).all():
        sizes = " × ".join(f"{value:g}" for value in pixdim)
        raise InputError(f"{path}: its voxels are {sizes} mm, which can't be. Mend its header.")
    try:
        if head[MAGIC_AT[size] : MAGIC_AT[size] + 2] == b"ni":
            image: Any = nib.load(path)  # a pair of files, which nibabel finds by their names
            file_of_voxels = Path(image.file_map["image"].filename)
            require_below(path, file_of_voxels)
            _require_room(file_of_voxels, image)
            voxels = np.asanyarray(image.dataobj)
        else:
            with _open_unpacked(path) as file:
                image = (nib.Nifti1Image if size == NIFTI_1 else nib.Nifti2Image).from_stream(file)
                _require_room(path, image)
                voxels = np.asanyarray(_behind_header(file, image, head))
                if isinstance(file, gzip.GzipFile):
                    _require_end(path, file, image)
    except InputError:
        raise
    except (ImageFileError, HeaderDataError, ValueError, OverflowError) as error:
        raise InputError(f"{path}: can't be read as NIfTI ({first_line(error)}). Copy or convert it again.") from error
    return _placed(path, image, voxels, np.abs(pixdim))


def volume_from_nibabel(image: Any, source: Path) -> Volume:
    """The volume of an image of nibabel in memory, as if it were read from a file.

    Args:
        source: what messages call it.

    Raises:
        InputError: if it is no 3D volume, can't be placed in space, or its file can't be read.
    """
    try:
        voxels = np.asanyarray(image.dataobj)  # nibabel may read the file only now
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{source}: can't be read ({first_line(error)}). Copy it again.") from error
    if image.affine is None:
        raise InputError(f"{source}: has no affine, which says how large its voxels are and how it lies. Give it one.")
    if isinstance(image.header, nib.AnalyzeHeader) and not isinstance(image.header, nib.Nifti1Header):
        raise InputError(f"{source}: is Analyze 7.5, which doesn't tell left from right. Convert it to NIfTI.")
    if not isinstance(image.header, nib.Nifti1Header):
        return volume_from_array(source, voxels, image.affine)
    # an affine that was changed in place; nibabel itself brings it into the header as late as in saving
    if not np.allclose(image.affine, image.header.get_best_affine(), equal_nan=True):
        if faults := affine_faults(source, image.affine):
            raise InputError(faults[0])
        image = type(image)(voxels, image.affine, image.header)
    return _placed(source, image, voxels, np.abs(np.asarray(image.header["pixdim"][1:4], float)))


def _placed(source: Path, image: Any, voxels: np.ndarray, spacing: np.ndarray) -> Volume:
    """The volume of an image of nibabel.

    Args:
        voxels: the image's, as numbers.
        spacing: what ``pixdim`` says, without signs.
    """
    if voxels.dtype == np.float64 and image.get_data_dtype().kind in "iu":
        voxels = voxels.astype(np.float32)  # whole numbers with a scale, which networks take as float32 anyway
    affine, remark = _affine(image, spacing)
    volume = volume_from_array(source, voxels, affine, image.header)
    if remark is not None:
        volume.remarks.append(f"{source}: {remark}")
    return volume


def _behind_header(file: Any, image: Any, head: bytes) -> Any:
    """The voxels of a single file. Where its header says that they begin at its own first byte, they follow it."""
    size = header_size(head)
    data = image.dataobj
    if _stored(head, OFFSET_AT[size], 1)[0] != 0:
        return data
    return ArrayProxy(file, (image.shape, image.get_data_dtype(), size + EXTENSION_FLAG, data.slope, data.inter))


def _affine(image: Any, spacing: np.ndarray) -> tuple[np.ndarray, str | None]:
    """The affine (4, 4) in mm, and what a person should know about its choice."""
    header = image.header
    affine, remark = image.affine, None
    if header["qform_code"] != 0 and header["sform_code"] != 0:
        affine, remark = _choose_form(affine, header, spacing, image.shape)
    elif header["sform_code"] != 0 and not np.allclose(voxel_sizes(affine), spacing, rtol=SAME_SIZE, atol=0):
        of_pixdim, of_sform = (" × ".join(f"{value:.4g}" for value in each) for each in (spacing, voxel_sizes(affine)))
        remark = f"its pixdim says voxels of {of_pixdim}, its sform {of_sform}; the sform is taken."
    elif header["qform_code"] == header["sform_code"] == 0:
        remark = "its header doesn't tell how it lies, so that left and right are a guess."
    affine = affine.copy()
    affine[:3] *= MILLIMETRES.get(_unit(header), 1.0)
    return affine, remark


def _choose_form(
    sform: np.ndarray, header: nib.Nifti1Header, spacing: np.ndarray, shape: tuple[int, ...]
) -> tuple[np.ndarray, str | None]:
    """The sform or the qform of a header that has both, and how they disagree."""
    if not is_rotation(header):
        return sform, "its qform is no rotation; the sform is taken."
    qform = header.get_qform()
    if not (spacing > 0).all():
        return sform, "its pixdim has a size of 0; the sform is taken."
    sizes = voxel_sizes(sform)
    of_qform, of_sform = (" × ".join(f"{value:.4g}" for value in each) for each in (spacing, sizes))
    both = f"its qform has voxels of {of_qform}, its sform of {of_sform}"
    if not np.allclose(sizes, spacing, rtol=SAME_SIZE, atol=0):
        return qform, f"{both}; the qform is taken, as in ITK."
    cosines = (qform[:3, :3] / spacing * sform[:3, :3] / sizes).sum(0)  # of the angles between each axis's directions
    if cosines.min() < np.sqrt(0.5):
        return sform, f"{both}, and they turn an axis in directions that differ by over 45°; the sform is taken."
    corners = np.array([[*corner, 1] for corner in itertools.product(*((0, size) for size in shape[:3]))])
    if np.linalg.norm(corners @ (qform - sform).T, axis=1).max() > SAME_PLACE * sizes.min():
        return sform, f"{both}, and they place it differently; the sform is taken."
    return sform, None


def is_rotation(header: nib.Nifti1Header) -> bool:
    """Whether the numbers of a header's qform make a rotation."""
    try:
        return bool(np.isfinite(header.get_qform()).all())
    except (HeaderDataError, ValueError):
        return False


def _unit(header: Any) -> str:
    """The unit of length of a header; ``unknown`` for a number that stands for none."""
    try:
        return str(header.get_xyzt_units()[0])
    except KeyError:
        return "unknown"


def _stored(head: bytes, place: tuple[int, str], count: int) -> np.ndarray:
    order = "<" if head[:1] != b"\x00" else ">"
    return np.frombuffer(head, order + place[1], count, place[0])


def _open_unpacked(path: Path) -> Any:
    """A file to read bytes from, unpacked where they are packed, whatever its name says."""
    file = open_regular(path)
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    return _Unpacked(file) if packed else file


class _Unpacked(gzip.GzipFile):
    """A gzip stream that closes the file that it is read from."""

    def __init__(self, file: Any) -> None:
        super().__init__(fileobj=file)
        self.file = file

    def close(self) -> None:
        super().close()
        self.file.close()


def _voxel_bytes(image: Any) -> int:
    return int(np.prod(image.shape, dtype=object)) * int(image.get_data_dtype().itemsize)


def _require_room(path: Path, image: Any) -> None:
    """Check that a file can hold the voxels that its header says, and this machine's memory too.

    Raises:
        InputError: if not.
    """
    needed = _voxel_bytes(image)
    # a file of other integers with a scale becomes float64 on the way
    scaled = 8 * int(np.prod(image.shape, dtype=object)) if image.dataobj.slope != 1 or image.dataobj.inter != 0 else 0
    size = path.stat().st_size
    with open_regular(path) as file:
        most = size * BEST_DEFLATE if file.read(2) == b"\x1f\x8b" else size
    if most < needed:
        raise InputError(
            f"{path}: is cut off or damaged ({size} bytes can't hold the {needed} of its voxels). Copy it again."
        )
    if needed + max(needed, scaled) > available_memory():
        raise memory_error(path, needed + scaled)


def _require_end(path: Path, file: gzip.GzipFile, image: Any) -> None:
    """Check that a gzip stream ends behind the voxels, and its checksum.

    Raises:
        InputError: if it holds more.
        EOFError, OSError, zlib.error: if it is cut off, or the checksum is another.
    """
    try:
        more = file.read(1)
    except gzip.BadGzipFile as error:
        if not str(error).startswith("Not a gzipped file"):
            raise
        return  # all members were read and verified; what follows is none
    if more:
        raise stream_error(path, _voxel_bytes(image) + 1, _voxel_bytes(image))

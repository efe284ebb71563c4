"""NIfTI files of all kinds: the same voxels in the same place, and one line for each fault."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.io.volumes import (
    AFFINE,
    CUT,
    NO_VOLUME,
    VOXELS,
    assert_fault,
    assert_is_the_phantom,
    cut,
    patch,
    read,
    save,
    text,
)
from utils.io.reader import header_file, read_file

pytestmark = pytest.mark.usefixtures("nothing_beside")


PIXDIM, SFORM_CODE, SROW = 80, 254, 280  # bytes before them in a NIfTI-1 header


def placed_by_spacing(folder: Path, *spacing: float) -> Path:
    path = patch(save(folder / "scan.nii", VOXELS, None), PIXDIM, "f", *spacing)
    assert path.read_bytes()[SFORM_CODE - 2 : SFORM_CODE + 2] == b"\0\0\0\0"
    return path


def big_endian_placed_by_spacing(folder: Path) -> Path:
    nib.save(nib.Nifti1Image(VOXELS, None, nib.Nifti1Header(endianness=">")), folder / "scan.nii")
    return patch(folder / "scan.nii", PIXDIM + 8, "f", 0)


def nifti_2_placed_by_spacing(folder: Path) -> Path:
    nib.save(nib.Nifti2Image(VOXELS, None), folder / "scan.nii")
    return patch(folder / "scan.nii", 112, "d", -2)


def zero_sform(folder: Path) -> Path:
    return patch(save(folder / "scan.nii"), SROW, "f", *[0.0] * 12)


def wrong_checksum(folder: Path) -> Path:
    path = save(folder / "scan.nii.gz")
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)
    return path


def colours(folder: Path) -> Path:
    return save(folder / "scan.nii.gz", np.zeros((6, 5, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")]))


def lone_pair_header(folder: Path) -> Path:
    nib.save(nib.Nifti1Pair(VOXELS, AFFINE), folder / "scan.img")
    (folder / "scan.img").unlink()
    return folder / "scan.hdr"


def huge(folder: Path) -> Path:
    return patch(save(folder / "scan.nii"), 42, "h", 32767, 32767, 32767)


PLACELESS = "its affine can't place voxels in space: a voxel size is 0 or missing, or "


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("endianness", ["<", ">"])
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_nifti_of_either_version_and_byte_order(
    tmp_path: Path, kind: type[nib.Nifti1Image], endianness: str, name: str
) -> None:
    header = kind.header_class(endianness=endianness)
    header.set_data_dtype(np.int16)
    nib.save(kind(VOXELS, AFFINE, header), tmp_path / name)
    volume = read(tmp_path / name)
    assert_is_the_phantom(volume)
    assert volume.voxels.dtype.isnative
    assert type(volume.header) is kind.header_class
    assert volume.header.endianness == endianness


@pytest.mark.parametrize("ending", [".img", ".img.gz"])
def test_a_pair_of_header_and_voxels_by_either_name(tmp_path: Path, ending: str) -> None:
    nib.save(nib.Nifti1Pair(VOXELS, AFFINE), tmp_path / f"scan{ending}")
    header = tmp_path / f"scan{ending.replace('img', 'hdr')}"
    for path in (header, tmp_path / f"scan{ending}"):
        volume = read(path)
        assert_is_the_phantom(volume)
        assert volume.header is not None
        assert header_file(path) == header


def test_stored_numbers_are_scaled_by_slope_and_intercept(tmp_path: Path) -> None:
    scaled = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), AFFINE)
    scaled.header.set_slope_inter(0.5, -10)
    nib.save(scaled, tmp_path / "scan.nii")
    content = (tmp_path / "scan.nii").read_bytes()
    assert struct.unpack_from("<2f", content, 112) == (0.5, -10)
    assert content[-2:] == b"\x17\0"  # 23 is stored as it is
    voxels = read(tmp_path / "scan.nii").voxels
    assert voxels.dtype == np.float32  # float64, as nibabel has them, would take twice the memory
    assert (voxels[0, 0, 0, 0], voxels[0, 0, 0, 3], voxels[0, 1, 2, 3]) == (-10, -8.5, 1.5)  # 0, 3 and 23 / 2 - 10


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8"])
def test_numbers_keep_their_type(tmp_path: Path, dtype: str) -> None:
    voxels = np.arange(24).reshape(2, 3, 4).astype(dtype) / np.array(2 if "f" in dtype else 1, dtype)
    volume = read(save(tmp_path / "scan.nii.gz", voxels.astype(dtype)))
    assert volume.voxels.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(volume.voxels[0], voxels)


@pytest.mark.parametrize("more", [(1,), (1, 1)])
def test_dimensions_of_length_one_are_no_channels_and_are_remembered(tmp_path: Path, more: tuple[int, ...]) -> None:
    volume = read(save(tmp_path / "scan.nii.gz", VOXELS.reshape(6, 5, 4, *more)))
    assert_is_the_phantom(volume)
    assert volume.file_shape == (6, 5, 4, *more)


@pytest.mark.parametrize(("affine", "told"), [(AFFINE, False), (None, True)])
def test_a_header_that_does_not_tell_how_the_scan_lies_is_told(
    tmp_path: Path, affine: np.ndarray | None, told: bool
) -> None:
    nib.save(nib.Nifti1Image(VOXELS, affine), tmp_path / "scan.nii.gz")
    text = f"{tmp_path / 'scan.nii.gz'}: its header doesn't tell how it lies, so that left and right are a guess."
    assert read(tmp_path / "scan.nii.gz").remarks == [text] * told


@pytest.mark.parametrize(("qform", "sform"), [(0, 1), (1, 1), (2, 4), (4, 0)])
def test_the_header_keeps_codes_and_units(tmp_path: Path, qform: int, sform: int) -> None:
    made = nib.Nifti1Image(VOXELS, AFFINE)
    made.header.set_qform(AFFINE, qform)
    made.header.set_sform(AFFINE, sform)
    made.header.set_xyzt_units("mm", "sec")
    nib.save(made, tmp_path / "scan.nii.gz")
    volume = read(tmp_path / "scan.nii.gz")
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
    assert volume.header is not None
    assert (volume.header["qform_code"], volume.header["sform_code"]) == (qform, sform)
    assert volume.header.get_xyzt_units() == ("mm", "sec")


@pytest.mark.parametrize(("unit", "millimetres"), [("meter", 1000.0), ("micron", 0.001), ("mm", 1.0), ("unknown", 1.0)])
def test_lengths_are_in_mm_whatever_unit_the_header_has(unit: str, millimetres: float, tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((2, 3, 4), np.int16), np.diag([2.0, 3.0, 5.0, 1.0]))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "scan.nii")
    volume = read_file(tmp_path / "scan.nii")
    assert volume.spacing == pytest.approx((2 * millimetres, 3 * millimetres, 5 * millimetres))
    assert volume.header is not None
    assert volume.header.get_xyzt_units()[0] == unit


def test_a_unit_that_there_is_not_is_taken_for_mm(tmp_path: Path) -> None:
    path = patch(save(tmp_path / "scan.nii"), 123, "B", 5)
    assert_is_the_phantom(read_file(path))


# ---- where headers leave a choice


@pytest.mark.parametrize("behind", [b"g", b"garbage!" * 4, b"garbage!" * 100_000, bytes(7)], ids=len)
@pytest.mark.parametrize("name", ["scan.nii.gz", "scan"])
def test_bytes_behind_a_gzip_stream_are_left_alone_as_gunzip_does(tmp_path: Path, behind: bytes, name: str) -> None:
    content = save(tmp_path / "scan.nii.gz").read_bytes()
    (tmp_path / name).write_bytes(content + behind)
    assert_is_the_phantom(read(tmp_path / name))


def test_a_gzip_stream_of_several_members_as_bgzip_writes_it(tmp_path: Path) -> None:
    content = save(tmp_path / "scan.nii").read_bytes()
    members = [gzip.compress(content[start : start + 100]) for start in range(0, len(content), 100)]
    (tmp_path / "scan.nii.gz").write_bytes(b"".join(members) + b"garbage!")
    assert_is_the_phantom(read(tmp_path / "scan.nii.gz"))


@pytest.mark.parametrize(("qform", "sform"), [(0, 1), (1, 0), (1, 1)])
def test_the_signs_of_pixdim_mean_nothing_beside_an_sform_or_a_qform(tmp_path: Path, qform: int, sform: int) -> None:
    """As nibabel and SimpleITK have it."""
    made = nib.Nifti1Image(VOXELS, AFFINE)
    made.header.set_qform(AFFINE, qform)
    made.header.set_sform(AFFINE, sform)
    nib.save(made, tmp_path / "scan.nii")
    volume = read(patch(tmp_path / "scan.nii", PIXDIM, "f", -0.9, 1.2, -3))
    np.testing.assert_array_equal(volume.voxels, VOXELS[None])
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
    assert volume.remarks == []


def test_pixdim_may_be_0_beside_an_sform(tmp_path: Path) -> None:
    made = nib.Nifti1Image(VOXELS, AFFINE)
    made.header.set_qform(AFFINE, 1)
    nib.save(made, tmp_path / "scan.nii")
    path = patch(tmp_path / "scan.nii", PIXDIM, "f", 0, 0, 0)
    volume = read(path)
    np.testing.assert_array_equal(volume.voxels, VOXELS[None])
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)
    assert volume.remarks == [f"{path}: its pixdim has a size of 0; the sform is taken."]


def two_forms(folder: Path, qform: np.ndarray, sform: np.ndarray, qform_code: int = 1) -> Path:
    made = nib.Nifti1Image(VOXELS, None)
    made.header.set_sform(sform, 1)
    made.header.set_qform(qform, 1)
    made.header["qform_code"] = qform_code
    nib.save(made, folder / "scan.nii")
    return folder / "scan.nii"


QFORM = np.diag([1.3, 1.3, 10.0, 1.0])


def test_an_sform_with_other_voxel_sizes_than_pixdim_yields_to_the_qform(tmp_path: Path) -> None:
    """As in ACDC, whose sform is the identity while slices are 5 to 10 mm thick."""
    path = two_forms(tmp_path, QFORM, np.eye(4))
    volume = read(path)
    np.testing.assert_allclose(volume.affine, QFORM, atol=1e-6)
    words = "its qform has voxels of 1.3 × 1.3 × 10, its sform of 1 × 1 × 1; the qform is taken, as in ITK."
    assert volume.remarks == [f"{path}: {words}"]


def test_a_qform_without_a_code_is_none(tmp_path: Path) -> None:
    path = two_forms(tmp_path, QFORM, np.eye(4), qform_code=0)
    volume = read(path)
    np.testing.assert_array_equal(volume.affine, np.eye(4))
    words = "its pixdim says voxels of 1.3 × 1.3 × 10, its sform 1 × 1 × 1; the sform is taken."
    assert volume.remarks == [f"{path}: {words}"]


def test_an_sform_that_turns_the_axes_otherwise_is_taken_with_a_remark(tmp_path: Path) -> None:
    path = two_forms(tmp_path, QFORM, QFORM @ np.diag([-1, -1, 1, 1]))
    volume = read(path)
    np.testing.assert_allclose(volume.affine, QFORM @ np.diag([-1, -1, 1, 1]), atol=1e-6)
    sizes = "its qform has voxels of 1.3 × 1.3 × 10, its sform of 1.3 × 1.3 × 10"
    words = f"{sizes}, and they turn an axis in directions that differ by over 45°; the sform is taken."
    assert volume.remarks == [f"{path}: {words}"]


def test_an_sform_that_is_moved_or_tilted_is_taken_with_a_remark(tmp_path: Path) -> None:
    tilted = QFORM @ np.array([[0.995, -0.1, 0, 7], [0.1, 0.995, 0, 5], [0, 0, 1, 3], [0, 0, 0, 1]])
    path = two_forms(tmp_path, QFORM, tilted)
    volume = read(path)
    np.testing.assert_allclose(volume.affine, tilted, atol=1e-6)
    sizes = "its qform has voxels of 1.3 × 1.3 × 10, its sform of 1.3 × 1.3 × 10"
    assert volume.remarks == [f"{path}: {sizes}, and they place it differently; the sform is taken."]


def test_forms_that_differ_by_less_than_half_a_voxel_are_the_same(tmp_path: Path) -> None:
    """Headers hold 32-bit numbers, and a qform's angles are rounded otherwise than an sform's."""
    moved = QFORM.copy()
    moved[:3, 3] += 0.3  # by 0.52 mm in all, of voxels of 1.3 mm
    assert read(two_forms(tmp_path, QFORM, moved)).remarks == []


def test_a_damaged_sform_yields_to_the_qform(tmp_path: Path) -> None:
    path = patch(two_forms(tmp_path, QFORM, QFORM), SROW, "f", *[np.nan] * 12)
    np.testing.assert_allclose(read(path).affine, QFORM, atol=1e-6)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_voxels_that_begin_at_byte_0_follow_the_header(tmp_path: Path, ending: str) -> None:
    path = patch(save(tmp_path / "scan.nii"), 108, "f", 0)
    if ending == ".nii.gz":
        path = text(tmp_path, content=gzip.compress(path.read_bytes()))
    assert_is_the_phantom(read(path))


@pytest.mark.parametrize("name", ["SCAN.NII", "SCAN.NII.GZ", "SCAN.IMG", "SCAN.HDR"])
def test_endings_in_capitals(tmp_path: Path, name: str) -> None:
    if "NII" in name:
        save(tmp_path / name.lower()).rename(tmp_path / name)
    else:
        nib.save(nib.Nifti1Pair(VOXELS, AFFINE), tmp_path / "scan.img")
        for path in list(tmp_path.iterdir()):
            path.rename(tmp_path / path.name.upper())
        assert header_file(tmp_path / name) == tmp_path / "SCAN.HDR"
    assert_is_the_phantom(read(tmp_path / name))


# ---- what can't be read


def pair_with_voxels_of(other: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        nib.save(nib.Nifti1Pair(VOXELS, AFFINE), folder / "scan.img")
        (folder / "scan.img").unlink()
        (folder / "scan.img").symlink_to(other)
        return folder / "scan.hdr"

    return make


def with_slices(folder: Path, count: int) -> Path:
    """A packed file whose header says another number of slices than its 4."""
    content = bytearray(gzip.decompress(save(folder / "scan.nii.gz").read_bytes()))
    struct.pack_into("<h", content, 46, count)
    return text(folder, content=gzip.compress(bytes(content)))


def with_fewer_slices(folder: Path) -> Path:
    return with_slices(folder, 3)


def with_more_slices(folder: Path) -> Path:
    return with_slices(folder, 5)


def bomb_of_zeros(folder: Path) -> Path:
    content = bytearray(gzip.decompress(save(folder / "scan.nii.gz").read_bytes()))
    struct.pack_into("<3h", content, 42, 30000, 20000, 50)
    return text(folder, content=gzip.compress(bytes(content)))


FAULTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "half a gzip": (lambda folder: cut(save(folder / "scan.nii.gz"), 250), f"{CUT} (Compressed file ended before"),
    "gzip without its end": (lambda folder: cut(save(folder / "scan.nii.gz"), -4), f"{CUT} (Compressed file ended"),
    "gzip with a changed checksum": (wrong_checksum, f"{CUT} (CRC check failed"),
    "gzip with a changed checksum and bytes behind it": (
        lambda folder: text(folder, content=wrong_checksum(folder).read_bytes() + b"garbage!"),
        f"{CUT} (CRC check failed",
    ),
    # 6 × 5 × 4 voxels of 2 bytes are 240
    "cut off": (lambda folder: cut(save(folder / "scan.nii"), -40), f"{CUT} (Expected 240 bytes, got 200 bytes from"),
    "no voxels": (lambda folder: cut(save(folder / "scan.nii"), 352), f"{CUT} (Expected 240 bytes, got 0 bytes"),
    "half a header": (lambda folder: cut(save(folder / "scan.nii"), 100), NO_VOLUME),
    "most of a header": (
        lambda folder: cut(save(folder / "scan.nii"), 346),
        f"{CUT} (346 of its header's 348 bytes are there). Copy it again.",
    ),
    "huge": (huge, f"{CUT} (592 bytes can't hold the "),
    "voxels of a device": (pair_with_voxels_of("/dev/zero"), "isn't below the header's folder"),
    "voxels of a file elsewhere": (pair_with_voxels_of("/etc/passwd"), "isn't below the header's folder"),
    "a gzip with more than its header says": (with_fewer_slices, "holds more than the 180 bytes of voxels that its "),
    "a gzip with less than its header says": (with_more_slices, f"{CUT} ("),
    "a gzip that can't hold what its header says": (bomb_of_zeros, "can't hold the 60000000000 of its voxels"),
    "voxels in the header": (
        lambda folder: patch(save(folder / "scan.nii"), 108, "f", 100),
        "vox offset 100 too low",
    ),
    "negative size": (lambda folder: patch(save(folder / "scan.nii"), 44, "h", -5), "can't be read as NIfTI ("),
    "unknown type": (lambda folder: patch(save(folder / "scan.nii"), 70, "h", 3), "can't be read as NIfTI ("),
    "colours": (colours, "has colours or other compound voxels ("),
    "complex": (
        lambda folder: save(folder / "scan.nii", VOXELS.astype(np.complex64)),
        "has colours or other compound voxels (complex64). Convert it to one number each.",
    ),
    "2D": (lambda folder: save(folder / "scan.nii.gz", VOXELS[..., 0]), "has the shape 6 × 5; a scan is 3D, or 4D"),
    "5D": (
        lambda folder: save(folder / "scan.nii.gz", np.stack([VOXELS[..., None]] * 2, -1)),
        "has the shape 6 × 5 × 4 × 1 × 2; a scan is 3D, or 4D with its channels last.",
    ),
    "zero spacing": (
        lambda folder: placed_by_spacing(folder, 2, 2, 0),
        "its voxels are 2 × 2 × 0 mm, which can't be. Mend its header.",
    ),
    "negative spacing": (lambda folder: placed_by_spacing(folder, 2, -1.5, 3), "its voxels are 2 × -1.5 × 3 mm"),
    "zero spacing beside a qform": (
        lambda folder: patch(patch(placed_by_spacing(folder, 2, 0, 3), SFORM_CODE - 2, "h", 1), SFORM_CODE, "h", 0),
        "its voxels are 2 × 0 × 3 mm, which can't be. Mend its header.",
    ),
    "spacing that is no number": (lambda folder: placed_by_spacing(folder, np.nan, 2, 3), "are nan × 2 × 3 mm"),
    "infinite spacing": (lambda folder: placed_by_spacing(folder, np.inf, 2, 3), PLACELESS),
    "zero spacing, big-endian": (big_endian_placed_by_spacing, "its voxels are 1 × 1 × 0 mm"),
    "negative spacing, NIfTI-2": (nifti_2_placed_by_spacing, "its voxels are -2 × 1 × 1 mm"),
    "singular sform": (lambda folder: patch(save(folder / "scan.nii"), SROW, "f", 0, 0, 0), PLACELESS),
    "zero sform": (zero_sform, PLACELESS),
    "no voxels, pair": (lone_pair_header, "scan.img: No such file or directory"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_told_in_one_line(tmp_path: Path, name: str) -> None:
    spoil, words = FAULTS[name]
    assert_fault(spoil(tmp_path), words)

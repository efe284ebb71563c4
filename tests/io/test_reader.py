"""Scans as they lie on the disk: the same voxels in the same place from each format, and one line for each fault."""

import gzip
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from pydicom.dataset import FileMetaDataset

from tests.io.test_dicom import AXIAL, phantom, write_series
from utils.data.check import scan_faults
from utils.data.preprocessing import Preprocessing
from utils.io.dicom_series import find_series
from utils.io.reader import header_file, is_image, read_file, read_label, read_scan
from utils.io.scan import Scan, Volume
from utils.system.errors import InputError

# a rotation whose columns (2, 2, -1) / 3, (-1, 2, 2) / 3 and (2, -1, 2) / 3 are times 0.9, 1.2 and 3 mm
SPACING = (0.9, 1.2, 3.0)
ROTATION = np.array([[2, -1, 2], [2, 2, -1], [-1, 2, 2]]) / 3
ORIGIN = (-10.0, 20.0, 5.0)
AFFINE = np.array([[0.6, -0.4, 2, -10], [0.6, 0.8, -1, 20], [-0.3, 0.8, 2, 5], [0, 0, 0, 1]])
VOXELS = phantom((6, 5, 4))

PIXDIM, SFORM_CODE, SROW = 80, 254, 280  # bytes before them in a NIfTI-1 header


@pytest.fixture(autouse=True)
def _nothing_beside(capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> Iterator[None]:
    """No reader puts lines of its own beside ours, be it from C++."""
    yield
    assert capfd.readouterr() == ("", "")
    assert [str(one.message) for one in recwarn] == []


def read(*paths: Path, in_channels: int = 1) -> Volume:
    return read_scan(Scan("scan", paths, None), in_channels)


def fault(*paths: Path, in_channels: int = 1) -> str:
    """What is said of files that can't be read; one line, which names one of them."""
    with pytest.raises(InputError) as error:
        read(*paths, in_channels=in_channels)
    return one_line(str(error.value), *paths)


def one_line(message: str, *paths: Path) -> str:
    assert message.splitlines() == [message]
    assert any(message.startswith(f"{path}: ") for path in paths)
    return message


def save(path: Path, voxels: np.ndarray = VOXELS, affine: np.ndarray | None = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def image(voxels: np.ndarray = VOXELS, is_vector: bool = False) -> sitk.Image:
    """The same volume for SimpleITK, whose x and y run the other way."""
    made = sitk.GetImageFromArray(np.moveaxis(voxels, (0, 2), (2, 0)), isVector=is_vector)
    made.SetSpacing(SPACING)
    made.SetDirection((np.diag([-1, -1, 1]) @ ROTATION).ravel().tolist())
    made.SetOrigin((10.0, -20.0, 5.0))
    return made


def save_with_simpleitk(path: Path, packed: bool = False) -> Path:
    sitk.WriteImage(image(), str(path), useCompression=packed)
    return path


def patch(path: Path, place: int, kind: str, *values: float) -> Path:
    """Write values into a file by hand."""
    content = bytearray(path.read_bytes())
    struct.pack_into(f"<{len(values)}{kind}", content, place, *values)
    path.write_bytes(content)
    return path


def replace(path: Path, old: bytes, new: bytes) -> Path:
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))
    return path


def assert_is_the_phantom(volume: Volume) -> None:
    np.testing.assert_array_equal(volume.voxels, VOXELS[None])
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)
    assert volume.shape == (6, 5, 4)
    np.testing.assert_allclose(volume.spacing, SPACING, rtol=1e-6)
    assert volume.voxels.dtype == np.int16
    assert (list(volume.datasets), volume.remarks) == ([], [])


# ---- what is read


def test_the_phantom_differs_from_its_mirror_images_and_its_place_is_oblique() -> None:
    assert not any(np.array_equal(VOXELS, np.flip(VOXELS, axis)) for axis in range(3))
    np.testing.assert_allclose(ROTATION * SPACING, AFFINE[:3, :3], atol=1e-12)
    np.testing.assert_allclose(ROTATION @ ROTATION.T, np.eye(3), atol=1e-12)


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


def test_a_file_of_voxels_without_a_header_stands_for_itself(tmp_path: Path) -> None:
    (tmp_path / "scan.img").write_bytes(VOXELS.tobytes())
    assert header_file(tmp_path / "scan.img") == tmp_path / "scan.img"
    assert "is no volume" in fault(tmp_path / "scan.img")


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan", "scan.dcm", "scan.nrrd", "scan.txt"])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_the_content_counts_and_not_the_name(tmp_path: Path, name: str, packed: bool) -> None:
    content = save(tmp_path / "true.nii").read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(content) if packed else content)
    assert_is_the_phantom(read(tmp_path / name))
    assert is_image(tmp_path / name)


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


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("name", ["scan.nrrd", "scan.nhdr", "scan.mha", "scan.mhd"])
def test_nrrd_and_metaimage_lie_where_the_nifti_does(tmp_path: Path, name: str, packed: bool) -> None:
    volume = read(save_with_simpleitk(tmp_path / name, packed))
    assert_is_the_phantom(volume)
    nifti = read(save(tmp_path / "scan.nii.gz"))
    np.testing.assert_array_equal(volume.voxels, nifti.voxels)
    np.testing.assert_allclose(volume.affine, nifti.affine, atol=1e-6)
    assert (volume.header, volume.file_shape) == (None, (6, 5, 4))


def test_the_voxels_of_a_metaimage_mean_the_header_beside_them(tmp_path: Path) -> None:
    save_with_simpleitk(tmp_path / "scan.mhd")
    assert_is_the_phantom(read(tmp_path / "scan.raw"))


def test_a_dicom_series_keeps_its_headers(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", phantom(), AXIAL)
    (series,), _ = find_series(list((tmp_path / "ct").iterdir()))
    volume = read_scan(Scan("ct", series.files, None, is_series=True), 1)
    np.testing.assert_array_equal(volume.voxels, phantom()[None])
    np.testing.assert_allclose(volume.affine, AXIAL, atol=1e-9)
    assert (len(volume.datasets), volume.header, volume.file_shape) == (7, None, (12, 10, 7))


@pytest.mark.parametrize("more", [(1,), (1, 1)])
def test_dimensions_of_length_one_are_no_channels_and_are_remembered(tmp_path: Path, more: tuple[int, ...]) -> None:
    volume = read(save(tmp_path / "scan.nii.gz", VOXELS.reshape(6, 5, 4, *more)))
    assert_is_the_phantom(volume)
    assert volume.file_shape == (6, 5, 4, *more)


@pytest.mark.parametrize("name", ["scan.nrrd", "scan.mha"])
def test_a_fourth_dimension_of_length_one_in_other_formats(tmp_path: Path, name: str) -> None:
    sitk.WriteImage(sitk.JoinSeries([image()]), str(tmp_path / name))
    assert sitk.ReadImage(str(tmp_path / name)).GetDimension() == 4
    assert_is_the_phantom(read(tmp_path / name))


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nrrd", "scan.mha"])
def test_channels_in_one_file(tmp_path: Path, name: str) -> None:
    both = np.stack([VOXELS, VOXELS + 7], -1)
    if name == "scan.nii.gz":
        save(tmp_path / name, both)
    else:
        sitk.WriteImage(image(both, is_vector=True), str(tmp_path / name))
    volume = read(tmp_path / name, in_channels=2)
    np.testing.assert_array_equal(volume.voxels, [VOXELS, VOXELS + 7])
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)
    assert (volume.shape, volume.file_shape) == ((6, 5, 4), (6, 5, 4, 2))


def test_channels_in_several_files_of_any_kind(tmp_path: Path) -> None:
    first = save(tmp_path / "scan_0000.nii.gz", (VOXELS + 7)[..., None])
    volume = read(first, save_with_simpleitk(tmp_path / "scan_0001.nrrd"), in_channels=2)
    np.testing.assert_array_equal(volume.voxels, [VOXELS + 7, VOXELS])
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)
    assert volume.file_shape == (6, 5, 4)
    assert volume.header is not None


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


def test_a_negative_metaimage_spacing_runs_the_other_way(tmp_path: Path) -> None:
    path = changed(tmp_path, "scan.mha", b"ElementSpacing = ", b"ElementSpacing = 0.9 1.2 -3\nComment = ")
    np.testing.assert_allclose(read(path).affine[:3, 2], [-2, 1, -2], atol=1e-6)


def test_a_text_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "README.txt").write_text("hello")
    assert not is_image(tmp_path / "README.txt")


# ---- what can't be read


def text(folder: Path, name: str = "scan.nii.gz", content: bytes = b"hello") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def cut(path: Path, size: int) -> Path:
    """Keep some bytes of a file, or lose some for a negative number."""
    path.write_bytes(path.read_bytes()[:size])
    return path


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


def singular_sform(folder: Path) -> Path:
    return patch(save(folder / "scan.nii"), SROW + 4, "f", 0.6)  # x runs along (0.6, …), and so does y


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


def colours_in_nrrd(folder: Path) -> Path:
    rgb = np.zeros((6, 5, 4, 3), np.uint8)
    sitk.WriteImage(image(rgb, is_vector=True), str(folder / "scan.nrrd"))
    return folder / "scan.nrrd"


def flat(folder: Path, name: str) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((5, 6), np.uint8)), str(folder / name))
    return folder / name


def with_value(folder: Path, value: float) -> Path:
    voxels = VOXELS.astype(np.float32)
    voxels[1, 2, 3] = voxels[0, 0, 0] = value
    return save(folder / "scan.nii.gz", voxels)


def changed(folder: Path, name: str, old: bytes, new: bytes) -> Path:
    return replace(save_with_simpleitk(folder / name), old, new)


def without_voxels(folder: Path, name: str) -> Path:
    path = save_with_simpleitk(folder / name)
    path.with_suffix(".raw").unlink()
    return path


def lone_pair_header(folder: Path) -> Path:
    nib.save(nib.Nifti1Pair(VOXELS, AFFINE), folder / "scan.img")
    (folder / "scan.img").unlink()
    return folder / "scan.hdr"


def analyze(folder: Path) -> Path:
    nib.save(nib.AnalyzeImage(VOXELS, np.diag([-2, 2, 3, 1])), folder / "scan.img")
    return folder / "scan.hdr"


def dicom_slice(folder: Path) -> Path:
    return Path(write_series(folder, phantom(), AXIAL)[0].filename)


def dicom_dataset(folder: Path) -> Path:
    """A slice as old archives hold it, without the preamble and the meta header of a file."""
    dataset = pydicom.dcmread(dicom_slice(folder))
    dataset.preamble, dataset.file_meta = None, FileMetaDataset()
    dataset.save_as(folder / "bare.dcm", implicit_vr=True, little_endian=True)
    return folder / "bare.dcm"


def several_times(folder: Path) -> Path:
    sitk.WriteImage(sitk.JoinSeries([image(), image()]), str(folder / "scan.nrrd"))
    return folder / "scan.nrrd"


def huge(folder: Path) -> Path:
    return patch(save(folder / "scan.nii"), 42, "h", 32767, 32767, 32767)


NO_VOLUME = "is no volume: neither NIfTI, DICOM, nor another file that SimpleITK reads."
CUT = "is cut off or damaged"
PLACELESS = "its affine can't place voxels in space: a voxel size is 0 or missing. Mend its header."
FAULTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "text": (text, NO_VOLUME),
    "gzip of text": (lambda folder: text(folder, content=gzip.compress(b"hello")), NO_VOLUME),
    "empty": (lambda folder: text(folder, content=b""), NO_VOLUME),
    "text as NRRD": (lambda folder: text(folder, "scan.nrrd"), NO_VOLUME),
    "text as MetaImage": (lambda folder: text(folder, "scan.mha"), NO_VOLUME),
    "missing": (lambda folder: folder / "gone.nii.gz", "can't be read (No such file or directory). Mend the path"),
    "folder": (lambda folder: folder, "can't be read (Is a directory)"),
    "half a gzip": (lambda folder: cut(save(folder / "scan.nii.gz"), 250), f"{CUT} (Compressed file ended before"),
    "gzip without its end": (lambda folder: cut(save(folder / "scan.nii.gz"), -4), f"{CUT} (Compressed file ended"),
    "gzip with a changed checksum": (wrong_checksum, f"{CUT} (CRC check failed"),
    # 6 × 5 × 4 voxels of 2 bytes are 240
    "cut off": (lambda folder: cut(save(folder / "scan.nii"), -40), f"{CUT} (Expected 240 bytes, got 200 bytes from"),
    "no voxels": (lambda folder: cut(save(folder / "scan.nii"), 352), f"{CUT} (Expected 240 bytes, got 0 bytes"),
    "half a header": (lambda folder: cut(save(folder / "scan.nii"), 100), NO_VOLUME),
    "most of a header": (
        lambda folder: cut(save(folder / "scan.nii"), 346),
        f"{CUT} (346 of its header's 348 bytes are there). Copy it again.",
    ),
    "huge": (huge, "is too large for this machine's memory, or its header is damaged."),
    "negative size": (lambda folder: patch(save(folder / "scan.nii"), 44, "h", -5), "can't be read as NIfTI ("),
    "unknown type": (lambda folder: patch(save(folder / "scan.nii"), 70, "h", 3), "can't be read as NIfTI ("),
    "colours": (colours, "has colours or other compound voxels ("),
    "complex": (
        lambda folder: save(folder / "scan.nii", VOXELS.astype(np.complex64)),
        "has colours or other compound voxels (complex64). Convert it to one number each.",
    ),
    "colours as NRRD": (colours_in_nrrd, "channels: 3, but the network takes 1. Give a scan that has 1"),
    "2D": (lambda folder: save(folder / "scan.nii.gz", VOXELS[..., 0]), "has the shape 6 × 5; a scan is 3D, or 4D"),
    "5D": (
        lambda folder: save(folder / "scan.nii.gz", np.stack([VOXELS[..., None]] * 2, -1)),
        "has the shape 6 × 5 × 4 × 1 × 2; a scan is 3D, or 4D with its channels last.",
    ),
    "PNG": (lambda folder: flat(folder, "scan.png"), "has 2 dimensions; a scan has 3."),
    "2D MetaImage": (lambda folder: flat(folder, "scan.mha"), "has 2 dimensions; a scan has 3."),
    "4D NRRD": (several_times, "has 4 dimensions; a scan has 3."),
    "not a number": (lambda folder: with_value(folder, np.nan), "has NaN or infinite voxels (2). Replace them."),
    "infinite": (lambda folder: with_value(folder, -np.inf), "has NaN or infinite voxels (2). Replace them."),
    "zero spacing": (
        lambda folder: placed_by_spacing(folder, 2, 2, 0),
        "its voxels are 2 × 2 × 0 mm, which can't be. Mend its header.",
    ),
    "negative spacing": (lambda folder: placed_by_spacing(folder, 2, -1.5, 3), "its voxels are 2 × -1.5 × 3 mm"),
    "spacing that is no number": (lambda folder: placed_by_spacing(folder, np.nan, 2, 3), "are nan × 2 × 3 mm"),
    "infinite spacing": (lambda folder: placed_by_spacing(folder, np.inf, 2, 3), PLACELESS),
    "zero spacing, big-endian": (big_endian_placed_by_spacing, "its voxels are 1 × 1 × 0 mm"),
    "negative spacing, NIfTI-2": (nifti_2_placed_by_spacing, "its voxels are -2 × 1 × 1 mm"),
    "singular sform": (lambda folder: patch(save(folder / "scan.nii"), SROW, "f", 0, 0, 0), PLACELESS),
    "zero sform": (zero_sform, PLACELESS),
    "zero spacing, MetaImage": (
        lambda folder: changed(folder, "scan.mha", b"ElementSpacing = ", b"ElementSpacing = 0.9 1.2 0\nComment = "),
        "can't be read (Zero-valued spacing is not supported",
    ),
    "zero spacing, NRRD": (
        lambda folder: changed(folder, "scan.nrrd", b"(-2,1,2)", b"(0,0,0)"),
        "can't be read (Zero-valued spacing is not supported",
    ),
    "two axes along one line, NRRD": (
        lambda folder: changed(folder, "scan.nrrd", b"(-2,1,2)", b"(0.8,-1.6,1.6)"),
        "can't be read (Bad direction, determinant is 0)",
    ),
    "zero spacing without directions, NRRD": (
        lambda folder: changed(folder, "scan.nrrd", b"space directions: ", b"spacings: 1 1 0\n# "),
        "can't be read (axis 2 spacing (0) invalid)",
    ),
    "cut off, NRRD": (
        lambda folder: cut(save_with_simpleitk(folder / "scan.nrrd"), -40),
        "can't be read (fread got only 100 2-sized things, not 120",
    ),
    "cut off, packed NRRD": (
        lambda folder: cut(save_with_simpleitk(folder / "scan.nrrd", packed=True), -40),
        "can't be read (expected 240 bytes but received",
    ),
    "cut off, MetaImage": (
        lambda folder: cut(save_with_simpleitk(folder / "scan.mha"), -40),
        f"{CUT} (200 of 240 bytes of its voxels are there). Copy it again.",
    ),
    "cut off, packed MetaImage": (lambda folder: cut(save_with_simpleitk(folder / "scan.mha", True), -40), f"{CUT} ("),
    "no voxels, MetaImage": (lambda folder: without_voxels(folder, "scan.mhd"), "scan.raw: No such file or directory"),
    "no voxels, pair": (lone_pair_header, "scan.img: No such file or directory"),
    "Analyze": (analyze, "is Analyze 7.5, which doesn't tell left from right. Convert it to NIfTI."),
    "slice": (dicom_slice, "is a single DICOM file. Give the folder of its series."),
    "slice without a preamble": (
        lambda folder: text(folder, "slice.dcm", dicom_slice(folder).read_bytes()[132:]),
        "slice.dcm: is no volume: neither NIfTI, DICOM",
    ),
    "slice without a meta header": (
        dicom_dataset,
        "is DICOM without the preamble that its files begin with. Export the series again.",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_told_in_one_line(tmp_path: Path, name: str) -> None:
    spoil, words = FAULTS[name]
    path = spoil(tmp_path)
    message = fault(path)
    assert words in message
    assert message.count(str(path)) == 1 or "bytes from" in message  # not an error about an error


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads files whatever their permissions")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.nii.gz")
    path.chmod(0)
    assert "can't be read (Permission denied)" in fault(path)


@pytest.mark.parametrize(("given", "wanted"), [(1, 2), (2, 1), (3, 4)])
def test_another_number_of_channels_than_the_network_takes(tmp_path: Path, given: int, wanted: int) -> None:
    path = save(tmp_path / "scan.nii.gz", np.stack([VOXELS] * given, -1))
    assert f"channels: {given}, but the network takes {wanted}. Give a scan" in fault(path, in_channels=wanted)


def test_channels_on_two_grids(tmp_path: Path) -> None:
    first = save(tmp_path / "scan_0000.nii.gz")
    moved = AFFINE.copy()
    moved[2, 3] += 2
    second = save(tmp_path / "scan_0001.nii.gz", VOXELS, moved)
    words = f"{second}: lies up to 2 mm away from scan_0000.nii.gz (their affines differ)."
    assert fault(first, second, in_channels=2).startswith(words)
    save(second, VOXELS[1:])
    words = f"{second}: has shape 5 × 5 × 4, but scan_0000.nii.gz has 6 × 5 × 4."
    assert fault(first, second, in_channels=2).startswith(words)


def test_the_channel_with_the_fault_is_named(tmp_path: Path) -> None:
    first, second = save(tmp_path / "scan_0000.nii.gz"), with_value(tmp_path, np.nan)
    assert fault(first, second, in_channels=2).startswith(f"{second}: ")


# ---- labels


LABEL = (VOXELS > -500).astype(np.uint8) + (VOXELS > -200)


def label_fault(folder: Path, label: np.ndarray, affine: np.ndarray = AFFINE) -> str:
    scan, path = save(folder / "scan.nii.gz"), save(folder / "label.nii.gz", label, affine)
    with pytest.raises(InputError) as error:
        read_label(path, scan, read(scan), 3)
    return one_line(str(error.value), path)


@pytest.mark.parametrize("dtype", ["u1", "i2", "f4", "f8"])
@pytest.mark.parametrize("more", [(), (1,)])
def test_a_label_map_of_any_type(tmp_path: Path, dtype: str, more: tuple[int, ...]) -> None:
    assert np.unique(LABEL).tolist() == [0, 1, 2]
    scan = save(tmp_path / "scan.nii.gz")
    path = save(tmp_path / "label.nii.gz", LABEL.reshape(6, 5, 4, *more).astype(dtype))
    label = read_label(path, scan, read(scan), 3)
    np.testing.assert_array_equal(label, LABEL)
    assert label.dtype == np.int16


def test_a_label_map_of_another_kind_than_its_scan(tmp_path: Path) -> None:
    scan = save_with_simpleitk(tmp_path / "scan.nrrd")
    path = save(tmp_path / "label.nii.gz", LABEL)
    np.testing.assert_array_equal(read_label(path, scan, read(scan), 3), LABEL)


@pytest.mark.parametrize("value", [3, -1, 0.5, np.nan])
def test_a_label_with_other_values(tmp_path: Path, value: float) -> None:
    label = LABEL.astype(np.float32)
    label[0, 0, 0] = value
    words = "label.nii.gz: is no label map with the values 0 … 2. Remap it, or leave it out."
    assert words in label_fault(tmp_path, label)


def test_a_label_with_two_channels(tmp_path: Path) -> None:
    assert "is no label map with the values 0 … 2" in label_fault(tmp_path, np.stack([LABEL, LABEL], -1))


def test_a_label_on_another_grid(tmp_path: Path) -> None:
    moved = AFFINE.copy()
    moved[0, 3] += 3
    assert "lies up to 3 mm away from scan.nii.gz (their affines differ)" in label_fault(tmp_path, LABEL, moved)
    words = "has shape 6 × 5 × 3, but scan.nii.gz has 6 × 5 × 4. Both must lie on one grid"
    assert words in label_fault(tmp_path, LABEL[..., :3])


def test_a_label_without_a_file(tmp_path: Path) -> None:
    scan = save(tmp_path / "scan.nii.gz")
    with pytest.raises(InputError, match=r"gone\.nii\.gz: can't be read \(No such file or directory\)"):
        read_file(tmp_path / "gone.nii.gz")
    with pytest.raises(InputError, match=r"gone\.nii\.gz: can't be read"):
        read_label(tmp_path / "gone.nii.gz", scan, read(scan), 3)


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
    assert not any("measures in" in fault for fault in scan_faults(Scan("scan", (path,), path), 1, 3, Preprocessing()))

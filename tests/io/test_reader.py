"""Scans of any format: what a file is, channels, labels, and one line for each fault."""

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from pydicom.dataset import FileMetaDataset

from tests.io.series import AXIAL, phantom, write_series
from tests.io.volumes import (
    AFFINE,
    NO_VOLUME,
    ROTATION,
    SPACING,
    VOXELS,
    assert_fault,
    assert_is_the_phantom,
    fault,
    image,
    one_line,
    read,
    save,
    save_with_simpleitk,
    text,
)
from utils.io.dicom_series import find_series
from utils.io.reader import count_channels, header_file, is_image, read_file, read_label, read_scan, scan_files
from utils.io.scan import Scan
from utils.system.errors import InputError

pytestmark = pytest.mark.usefixtures("nothing_beside")


def colours_in_nrrd(folder: Path) -> Path:
    rgb = np.zeros((6, 5, 4, 3), np.uint8)
    sitk.WriteImage(image(rgb, is_vector=True), str(folder / "scan.nrrd"))
    return folder / "scan.nrrd"


def with_value(folder: Path, value: float) -> Path:
    voxels = VOXELS.astype(np.float32)
    voxels[1, 2, 3] = voxels[0, 0, 0] = value
    return save(folder / "scan.nii.gz", voxels)


def dicom_slice(folder: Path) -> Path:
    return Path(write_series(folder, phantom(), AXIAL)[0].filename)


def dicom_dataset(folder: Path) -> Path:
    """A slice as old archives hold it, without the preamble and the meta header of a file."""
    dataset = pydicom.dcmread(dicom_slice(folder))
    dataset.preamble, dataset.file_meta = None, FileMetaDataset()
    dataset.save_as(folder / "bare.dcm", implicit_vr=True, little_endian=True)
    return folder / "bare.dcm"


LABEL = (VOXELS > -500).astype(np.uint8) + (VOXELS > -200)


def label_fault(folder: Path, label: np.ndarray, affine: np.ndarray = AFFINE) -> str:
    scan, path = save(folder / "scan.nii.gz"), save(folder / "label.nii.gz", label, affine)
    with pytest.raises(InputError) as error:
        read_label(path, scan, read(scan), 3)
    return one_line(str(error.value), path)


def test_the_phantom_differs_from_its_mirror_images_and_its_place_is_oblique() -> None:
    assert not any(np.array_equal(VOXELS, np.flip(VOXELS, axis)) for axis in range(3))
    np.testing.assert_allclose(ROTATION * SPACING, AFFINE[:3, :3], atol=1e-12)
    np.testing.assert_allclose(ROTATION @ ROTATION.T, np.eye(3), atol=1e-12)


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


def test_a_dicom_series_keeps_its_headers(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", phantom(), AXIAL)
    (series,), _ = find_series(list((tmp_path / "ct").iterdir()))
    volume = read_scan(Scan("ct", series.files, None, is_series=True), 1)
    np.testing.assert_array_equal(volume.voxels, phantom()[None])
    np.testing.assert_allclose(volume.affine, AXIAL, atol=1e-9)
    assert (len(volume.datasets), volume.header, volume.file_shape) == (7, None, (12, 10, 7))


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


def test_a_text_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "README.txt").write_text("hello")
    assert not is_image(tmp_path / "README.txt")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads files whatever their permissions")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.nii.gz")
    path.chmod(0)
    assert "can't be read (Permission denied)" in fault(path)


@pytest.mark.parametrize(("given", "wanted"), [(1, 2), (2, 1), (3, 4)])
def test_another_number_of_channels_than_the_network_takes(tmp_path: Path, given: int, wanted: int) -> None:
    path = save(tmp_path / "scan.nii.gz", np.stack([VOXELS] * given, -1))
    shape = "6 × 5 × 4 × " + str(given)
    words = f"channels: {given} (shape {shape}), but the network takes {wanted}. Give a scan"
    assert words in fault(path, in_channels=wanted)


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


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (3, "has the values 0, 1, 2, 3, but labels are 0 … 2. Remap them."),
        (-1, "has the values -1, 0, 1, 2, but labels are 0 … 2. Remap them."),
        (0.5, "has the values 0, 0.5, 1, 2, but labels are 0 … 2. Remap them."),
        (np.nan, "has NaN or infinite values, but labels are 0 … 2. Replace them."),
    ],
)
def test_a_label_with_other_values(tmp_path: Path, value: float, words: str) -> None:
    label = LABEL.astype(np.float32)
    label[0, 0, 0] = value
    assert words in label_fault(tmp_path, label)


def test_without_a_number_of_classes_any_whole_numbers_are_labels(tmp_path: Path) -> None:
    scan, label = save(tmp_path / "scan.nii.gz"), LABEL.astype(np.float32)
    label[0, 0, :2] = -1, 300
    path = save(tmp_path / "label.nii.gz", label)
    np.testing.assert_array_equal(read_label(path, scan, read(scan)), label)
    label[0, 0, 0] = 0.5
    save(path, label)
    with pytest.raises(InputError, match=r"has the values 0, 0\.5, 1, 2, 300, but labels are whole numbers\. Remap"):
        read_label(path, scan, read(scan))


def test_a_label_with_two_channels(tmp_path: Path) -> None:
    words = "has shape 6 × 5 × 4 × 2; a label is 3D, one value for each voxel."
    assert words in label_fault(tmp_path, np.stack([LABEL, LABEL], -1))


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


# ---- DICOM folders


def series_scan(folder: Path) -> Scan:
    return Scan("scan", tuple(sorted(path for path in folder.rglob("*") if path.is_file())), None, is_series=True)


def test_the_series_among_other_files(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", phantom(), AXIAL)
    (tmp_path / "ct" / "notes.txt").write_text("hello")
    for one in write_series(tmp_path / "staging", phantom(), AXIAL, ImageType=["ORIGINAL", "LOCALIZER"]):
        Path(one.filename).rename(tmp_path / "ct" / f"scout_{Path(one.filename).name}")
    volume = read_scan(series_scan(tmp_path / "ct"), 1)
    np.testing.assert_array_equal(volume.voxels, phantom()[None])
    assert volume.remarks == [f"{tmp_path}/ct: 7 files left out, a localizer."]


def test_a_folder_with_more_or_less_than_one_series(tmp_path: Path) -> None:
    write_series(tmp_path / "ct" / "early", phantom(), AXIAL)
    write_series(tmp_path / "ct" / "late", phantom(), AXIAL)
    with pytest.raises(InputError, match=r"holds 2 DICOM series \(early, late\)\. Give a folder that holds one\.$"):
        read_scan(series_scan(tmp_path / "ct"), 1)
    text(tmp_path, "notes.txt")
    (tmp_path / "none").mkdir()
    (tmp_path / "notes.txt").rename(tmp_path / "none" / "notes.txt")
    with pytest.raises(InputError, match=rf"^{tmp_path}/none: holds 0 DICOM series\. Give a folder that holds one\.$"):
        read_scan(series_scan(tmp_path / "none"), 1)


def test_a_slice_that_is_gone(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", phantom(), AXIAL)
    scan = series_scan(tmp_path / "ct")
    scan.image[3].unlink()
    words = rf"^{tmp_path}/ct: can't be read \({scan.image[3]}: No such file or directory\)\. Mend the path"
    with pytest.raises(InputError, match=words):
        read_scan(scan, 1)


def test_all_files_that_a_scan_is_read_from(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(VOXELS, AFFINE), tmp_path / "scan.img")
    save_with_simpleitk(tmp_path / "label.mhd")
    scan = Scan("scan", (tmp_path / "scan.hdr",), tmp_path / "label.mhd")
    names = ["scan.hdr", "scan.img", "label.mhd", "label.raw"]
    assert [path.name for path in scan_files(scan)] == names
    write_series(tmp_path / "ct", phantom(), AXIAL)
    series = series_scan(tmp_path / "ct")
    assert scan_files(series) == sorted((tmp_path / "ct").iterdir())
    assert series.path == tmp_path / "ct"


# ---- what can't be read


FAULTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "text": (text, NO_VOLUME),
    "gzip of text": (lambda folder: text(folder, content=gzip.compress(b"hello")), NO_VOLUME),
    "empty": (lambda folder: text(folder, content=b""), NO_VOLUME),
    "missing": (lambda folder: folder / "gone.nii.gz", "can't be read (No such file or directory). Mend the path"),
    "folder": (lambda folder: folder, "can't be read (Is a directory)"),
    "not a number": (lambda folder: with_value(folder, np.nan), "has NaN or infinite voxels (2). Replace them."),
    "infinite": (lambda folder: with_value(folder, -np.inf), "has NaN or infinite voxels (2). Replace them."),
    "slice": (dicom_slice, "is a single DICOM file. Give the folder of its series."),
    "slice without a preamble": (
        lambda folder: text(folder, "slice.dcm", dicom_slice(folder).read_bytes()[132:]),
        "slice.dcm: is no volume: neither NIfTI, DICOM",
    ),
    "slice without a meta header": (
        dicom_dataset,
        "is DICOM without the preamble that its files begin with. Export the series again.",
    ),
    "colours as NRRD": (
        colours_in_nrrd,
        "channels: 3 (shape 6 × 5 × 4 × 3), but the network takes 1. Give a scan that",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_told_in_one_line(tmp_path: Path, name: str) -> None:
    spoil, words = FAULTS[name]
    assert_fault(spoil(tmp_path), words)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("channels", [1, 3])
def test_channels_by_the_header(tmp_path: Path, kind: type, ending: str, channels: int) -> None:
    """Whatever follows it: the file ends with its header."""
    path = tmp_path / f"scan{ending}"
    nib.save(kind(np.zeros((4, 5, 6, channels), np.int16), np.eye(4)), path)
    content = gzip.decompress(path.read_bytes()) if ending == ".nii.gz" else path.read_bytes()
    path.write_bytes(content[:600])
    assert count_channels(path) == channels


def test_channels_of_a_big_endian_header_and_of_three_dimensions(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((4, 5, 6, 2), ">i2"), np.eye(4), nib.Nifti1Header(endianness=">"))
    nib.save(image, tmp_path / "big.nii")
    assert (tmp_path / "big.nii").read_bytes()[:2] == b"\x00\x00"
    assert count_channels(tmp_path / "big.nii") == 2
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.eye(4)), tmp_path / "flat.nii")
    assert count_channels(tmp_path / "flat.nii") == 1


def test_channels_of_another_format(tmp_path: Path) -> None:
    vectors = np.zeros((6, 5, 4, 2), np.float32)  # (Z, Y, X, C)
    sitk.WriteImage(sitk.GetImageFromArray(vectors, isVector=True), str(tmp_path / "scan.nrrd"))
    assert count_channels(tmp_path / "scan.nrrd") == 2


@pytest.mark.parametrize("content", [None, b"", b"hello"])
def test_channels_of_what_is_no_volume(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "scan.nii.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"scan\.nii\.gz: "):
        count_channels(path)

"""Masks have the geometry of their scans by nibabel and SimpleITK; label tables have the viewers' formats."""

import gzip
import json
import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from scipy import ndimage

from tests.io.series import phantom, sitk_affine, write_series
from tests.io.volumes import AFFINE, SPACING, VOXELS, save_with_simpleitk
from utils.io.dicom_series import find_series
from utils.io.reader import read_scan
from utils.io.scan import Scan, Volume
from utils.segmentation.masks import keep_largest_component, write_label_tables, write_mask, write_probabilities
from utils.system.errors import WriteError

LABELS = {1: "spleen", 2: "left kidney", 9: "vena cava inferior"}
CLASSES = {0: "background", 1: "spleen", 2: "left kidney"}
MASK = np.select([VOXELS > -200, VOXELS > -500], [9, 2], 0).astype(np.uint8)


def read(path: Path, in_channels: int = 1) -> Volume:
    return read_scan(Scan("scan", (path,), None), in_channels)


def scan_file(path: Path, codes: tuple[int, int] = (1, 1), kind: Any = nib.Nifti1Image, endianness: str = "<") -> Path:
    """A scan whose header uses every field; ``codes`` are those of its qform and sform."""
    header = kind.header_class(endianness=endianness)
    header.set_data_dtype(np.int16)
    scan = kind(VOXELS, None, header)
    scan.header.set_qform(AFFINE, codes[0])
    scan.header.set_sform(AFFINE, codes[1])
    scan.header.set_xyzt_units("mm", "sec")
    scan.header.set_slope_inter(2.5, -1000)
    scan.header["descrip"], scan.header["aux_file"] = b"someone's abdomen", b"somewhere"
    scan.header["cal_min"], scan.header["cal_max"] = -160, 240
    scan.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"about a patient " * 20))
    nib.save(scan, path)
    return path


def written(folder: Path, volume: Volume, mask: np.ndarray = MASK) -> Any:
    write_mask(folder / "mask.nii.gz", mask, volume, LABELS)
    return load(folder / "mask.nii.gz")


def load(path: Path) -> Any:
    return nib.load(path)


def probabilities() -> np.ndarray:
    """(classes, X, Y, Z); 0 and 1 are among them."""
    scores = np.random.default_rng(0).random((3, 6, 5, 4)) ** 4
    scores[:, 0, 0, 0] = 0, 0, 1
    return (scores / scores.sum(0)).astype(np.float32)


# ---- masks


@pytest.mark.parametrize("codes", [(0, 1), (1, 1), (2, 4), (4, 0)])
@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nii", "scan.img"])
def test_a_mask_has_the_geometry_of_its_scan(tmp_path: Path, codes: tuple[int, int], name: str) -> None:
    kind = nib.Nifti1Pair if name == "scan.img" else nib.Nifti1Image
    scan = load(scan_file(tmp_path / name, codes, kind))
    mask = written(tmp_path, read(tmp_path / name))
    assert mask.shape == (6, 5, 4)
    np.testing.assert_array_equal(np.asanyarray(mask.dataobj), MASK)
    np.testing.assert_allclose(mask.affine, AFFINE, atol=1e-5)
    for place in ("qform", "sform"):
        ours, code = getattr(mask, f"get_{place}")(coded=True)
        theirs, their_code = getattr(scan, f"get_{place}")(coded=True)
        assert code == their_code == codes[place == "sform"]
        assert (ours is None) == (theirs is None) == (code == 0)
        if code:
            np.testing.assert_array_equal(ours, theirs)
    assert mask.header.get_xyzt_units() == ("mm", "sec")
    np.testing.assert_allclose(mask.header.get_zooms(), SPACING, rtol=1e-6)


@pytest.mark.parametrize("more", [(1,), (1, 1)])
def test_a_mask_has_its_scan_s_dimensions_of_length_one(tmp_path: Path, more: tuple[int, ...]) -> None:
    nib.save(nib.Nifti1Image(VOXELS.reshape(6, 5, 4, *more), AFFINE), tmp_path / "scan.nii.gz")
    mask = written(tmp_path, read(tmp_path / "scan.nii.gz"))
    assert mask.shape == (6, 5, 4, *more)
    np.testing.assert_array_equal(np.asanyarray(mask.dataobj).reshape(6, 5, 4), MASK)


def test_a_mask_of_several_channels_is_3d(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.stack([VOXELS, VOXELS], -1), AFFINE), tmp_path / "scan.nii.gz")
    mask = written(tmp_path, read(tmp_path / "scan.nii.gz", 2))
    assert mask.shape == (6, 5, 4)
    np.testing.assert_array_equal(np.asanyarray(mask.dataobj), MASK)
    np.testing.assert_allclose(mask.affine, AFFINE, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("endianness", ["<", ">"])
def test_the_stored_numbers_are_the_labels(tmp_path: Path, dtype: type, endianness: str) -> None:
    highest = np.iinfo(dtype).max
    labels: np.ndarray = np.where(MASK == 9, highest, MASK).astype(dtype)
    mask = written(tmp_path, read(scan_file(tmp_path / "scan.nii.gz", endianness=endianness)), labels)
    assert mask.get_data_dtype().newbyteorder("=") == dtype
    assert (mask.dataobj.slope, mask.dataobj.inter) == (1, 0)  # the scan has 2.5 and -1000
    np.testing.assert_array_equal(np.asanyarray(mask.dataobj), labels)
    content = gzip.decompress((tmp_path / "mask.nii.gz").read_bytes())
    bits = np.frombuffer(content[-labels.nbytes :], f"{endianness}u{labels.itemsize}")
    np.testing.assert_array_equal(bits.reshape(labels.shape, order="F"), labels)


def test_the_header_has_the_labels_and_nothing_else_of_the_scan(tmp_path: Path) -> None:
    volume = read(scan_file(tmp_path / "scan.nii.gz"))
    mask = written(tmp_path, volume)
    (extension,) = mask.header.extensions
    assert extension.get_code() == 6  # a comment
    assert json.loads(extension.get_content()) == {
        "labels": {"1": "spleen", "2": "left kidney", "9": "vena cava inferior"}
    }
    assert mask.header.get_intent() == ("label", (), "UNETR")
    assert (mask.header["descrip"], mask.header["aux_file"]) == (b"", b"")
    assert (mask.header["cal_min"], mask.header["cal_max"]) == (0, 0)
    assert volume.header is not None
    assert volume.header["descrip"] == b"someone's abdomen"  # the volume stays as it was
    assert volume.header.extensions[0].get_content().startswith(b"about a patient")


def test_names_in_any_letters(tmp_path: Path) -> None:
    names = {1: 'linke "Niere" 左肾', 2: "x" * 300}
    write_mask(tmp_path / "mask.nii.gz", MASK, read(scan_file(tmp_path / "scan.nii.gz")), names)
    (extension,) = load(tmp_path / "mask.nii.gz").header.extensions
    assert json.loads(extension.get_content())["labels"] == {"1": names[1], "2": names[2]}


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image, nib.Nifti1Pair, nib.Nifti2Pair])
def test_a_mask_has_its_scan_s_version_of_nifti_in_one_file(tmp_path: Path, kind: Any) -> None:
    name = "scan.img" if "Pair" in kind.__name__ else "scan.nii.gz"
    volume = read(scan_file(tmp_path / name, kind=kind))
    wanted = nib.Nifti2Image if "2" in kind.__name__ else nib.Nifti1Image
    mask = written(tmp_path, volume)
    assert type(mask) is wanted
    np.testing.assert_array_equal(np.asanyarray(mask.dataobj), MASK)
    np.testing.assert_allclose(mask.affine, AFFINE, atol=1e-5)
    write_probabilities(tmp_path / "probabilities.nii.gz", volume, CLASSES, lambda label: probabilities()[label])
    image = load(tmp_path / "probabilities.nii.gz")
    assert type(image) is wanted
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)
    np.testing.assert_allclose(np.moveaxis(image.get_fdata(), -1, 0), probabilities(), rtol=0, atol=1e-5)


def with_simpleitk(folder: Path, kind: str) -> tuple[Volume, sitk.Image]:
    """A scan that isn't NIfTI, and the same as SimpleITK reads it."""
    if kind != "DICOM":
        path = save_with_simpleitk(folder / f"scan.{kind}")
        return read(path), sitk.ReadImage(str(path))
    write_series(folder / "ct", phantom((6, 5, 4)), AFFINE)
    (series,), _ = find_series(list((folder / "ct").iterdir()))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder / "ct")))
    return read_scan(Scan("ct", series.files, None, is_series=True), 1), reader.Execute()


@pytest.mark.parametrize("kind", ["nrrd", "mha", "DICOM"])
def test_a_mask_has_the_geometry_of_a_scan_of_another_format(tmp_path: Path, kind: str) -> None:
    volume, scan = with_simpleitk(tmp_path, kind)
    mask = written(tmp_path, volume)
    np.testing.assert_allclose(mask.affine, AFFINE, atol=1e-5)
    assert (mask.header["qform_code"], mask.header["sform_code"]) == (1, 1)
    np.testing.assert_allclose(mask.get_qform(), AFFINE, atol=1e-5)
    assert mask.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_array_equal(np.asanyarray(mask.dataobj), MASK)

    image = sitk.ReadImage(str(tmp_path / "mask.nii.gz"))
    assert image.GetSize() == scan.GetSize() == (6, 5, 4)
    index = (5, 1, 2)
    # by hand: AFFINE times (5, 1, 2, 1) is (3 - 0.4 + 4 - 10, 3 + 0.8 - 2 + 20, -1.5 + 0.8 + 4 + 5) in RAS
    place = (3.4, -21.8, 8.3)
    np.testing.assert_allclose(scan.TransformIndexToPhysicalPoint(index), place, atol=1e-4)
    np.testing.assert_allclose(image.TransformIndexToPhysicalPoint(index), place, atol=1e-4)
    assert image[index] == MASK[index]
    assert scan[index] == VOXELS[index]


def test_the_mask_of_a_tilted_gantry_lies_on_its_series_in_simpleitk(tmp_path: Path) -> None:
    """Neither shows the shift of the slices, and both have the slices' own plane."""
    t = np.deg2rad(20)
    tilted = np.diag([-1.0, -1.0, 5.0, 1.0])  # the table moves along z, and the slices lean by 20 degrees
    tilted[1:3, 1] = -np.cos(t), np.sin(t)
    write_series(tmp_path / "ct", phantom((6, 5, 4)), tilted)
    (series,), _ = find_series(list((tmp_path / "ct").iterdir()))
    volume = read_scan(Scan("ct", series.files, None, is_series=True), 1)
    (remark,) = volume.remarks
    assert remark.startswith(f"{tmp_path / 'ct'}: its slices are shifted within their planes, as by a tilted gantry.")
    mask = written(tmp_path, volume)
    np.testing.assert_allclose(mask.affine, tilted, atol=1e-5)
    image = sitk.ReadImage(str(tmp_path / "mask.nii.gz"))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "ct")))
    np.testing.assert_allclose(sitk_affine(image), sitk_affine(reader.Execute()), atol=1e-4)
    # by hand: the normal is the cross product of the slices' axes, and leans towards z
    np.testing.assert_allclose(mask.get_qform()[:3, 2], [0, 5 * np.sin(t), 5 * np.cos(t)], atol=1e-5)


def test_a_mask_whose_axes_are_askew_within_its_slices(tmp_path: Path) -> None:
    askew = np.array([[2, 1, 0, 0], [0, 2, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1.0]])
    mask = written(tmp_path, Volume(VOXELS[None], askew, VOXELS.shape))
    np.testing.assert_allclose(mask.affine, askew)
    expected = nib.Nifti1Header()
    expected.set_qform(askew, 1, strip_shears=True)
    np.testing.assert_allclose(mask.get_qform(), expected.get_qform())


def test_a_mask_that_can_t_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    volume = read(scan_file(tmp_path / "scan.nii.gz"))
    with pytest.raises(WriteError, match=r"mask\.nii\.gz: can't be written \(No such file or directory\)"):
        write_mask(tmp_path / "nowhere" / "mask.nii.gz", MASK, volume, LABELS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scan.nii.gz"]


# ---- probabilities


@pytest.mark.parametrize("endianness", ["<", ">"])
@pytest.mark.parametrize("codes", [(0, 1), (4, 0)])
def test_probabilities_have_the_geometry_of_the_scan(tmp_path: Path, endianness: str, codes: tuple[int, int]) -> None:
    volume = read(scan_file(tmp_path / "scan.nii.gz", codes, endianness=endianness))
    wanted = probabilities()
    write_probabilities(tmp_path / "probabilities.nii.gz", volume, CLASSES, lambda label: wanted[label])
    image = load(tmp_path / "probabilities.nii.gz")
    assert image.shape == (6, 5, 4, 3)
    np.testing.assert_allclose(np.moveaxis(image.get_fdata(), -1, 0), wanted, rtol=0, atol=1e-5)
    assert image.get_fdata()[0, 0, 0].tolist() == pytest.approx([0, 0, 1], abs=1e-7)
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)
    assert (image.header["qform_code"], image.header["sform_code"]) == codes
    np.testing.assert_allclose(image.header.get_zooms()[:3], SPACING, rtol=1e-6)
    (extension,) = image.header.extensions
    assert json.loads(extension.get_content()) == {"classes": ["background", "spleen", "left kidney"]}


@pytest.mark.parametrize("kind", ["nrrd", "DICOM"])
def test_probabilities_of_another_format(tmp_path: Path, kind: str) -> None:
    volume, scan = with_simpleitk(tmp_path, kind)
    wanted = probabilities()
    write_probabilities(tmp_path / "probabilities.nii.gz", volume, CLASSES, lambda label: wanted[label])
    image = sitk.ReadImage(str(tmp_path / "probabilities.nii.gz"))
    assert image.GetSize() == (6, 5, 4, 3)
    voxels = sitk.GetArrayFromImage(image).transpose(0, 3, 2, 1)
    np.testing.assert_allclose(voxels, wanted, rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        image.TransformIndexToPhysicalPoint((5, 1, 2, 0))[:3], scan.TransformIndexToPhysicalPoint((5, 1, 2)), atol=1e-4
    )


# ---- tables


def test_the_table_for_3d_slicer(tmp_path: Path) -> None:
    write_label_tables(tmp_path, {1: "spleen", 2: "left kidney", 9: 'the\t"tube"'})
    # value, name without blanks, red, green, blue, opacity; of tab20 #1f77b4, #aec7e8 and the ninth, #9467bd
    assert (tmp_path / "labels_slicer.ctbl").read_text(encoding="utf-8").splitlines() == [
        "# colours of the labels",
        "0 background 0 0 0 0",
        "1 spleen 31 119 180 255",
        "2 left_kidney 174 199 232 255",
        '9 the_"tube" 148 103 189 255',
    ]


def test_the_table_for_itk_snap(tmp_path: Path) -> None:
    write_label_tables(tmp_path, {1: "spleen", 2: "left kidney", 9: 'the "tube"'})
    rows = []
    for line in (tmp_path / "labels_itksnap.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            numbers, name, end = line.split('"')  # a name in quotes ends the line
            assert end == ""
            rows.append(([float(number) for number in numbers.split()], name))
    # index, red, green, blue, opacity from 0 to 1, visible, visible in the mesh
    assert rows == [
        ([0, 0, 0, 0, 0, 0, 0], "Clear Label"),
        ([1, 31, 119, 180, 1, 1, 1], "spleen"),
        ([2, 174, 199, 232, 1, 1, 1], "left kidney"),
        ([9, 148, 103, 189, 1, 1, 1], "the 'tube'"),
    ]


def test_label_tables_have_a_line_for_each_label_whatever_its_name(tmp_path: Path) -> None:
    names = ["a\nb", "c\r\n\td", "\x1b[0m", "x" * 300, "m\udcff", "\u202eabc", 'left "kidney"\v']
    write_label_tables(tmp_path, dict(enumerate(names, 1)))
    shown = ["a b", "c d", "[0m", "x" * 300, "m\\udcff", "abc", "left 'kidney'"]
    snap = (tmp_path / "labels_itksnap.txt").read_text(encoding="utf-8").split("\n")[2:-1]
    assert [line.split('"')[1] for line in snap] == shown
    slicer = (tmp_path / "labels_slicer.ctbl").read_text(encoding="utf-8").split("\n")[2:-1]
    assert [line.split(" ")[1].replace('"', "'") for line in slicer] == [name.replace(" ", "_") for name in shown]


# ---- the largest component


def test_voxels_that_share_a_corner_are_one_component() -> None:
    mask = np.zeros((6, 6, 6), np.uint8)
    mask[:2, :2, :2] = mask[2, 2, 2] = 1  # nine voxels, of which one touches the others at a corner
    mask[4:, 4:, 4:] = 1  # eight
    mask[0, 0, 5] = 2
    keep_largest_component(mask, 1)
    assert (mask == 1).sum() == 9
    assert not mask[4:, 4:, 4:].any()
    assert mask[0, 0, 5] == 2  # other labels stay


@pytest.mark.parametrize("order", ["C", "F"])
def test_of_equal_components_the_first_in_scan_order_stays(order: Any) -> None:
    mask = np.zeros((5, 5, 5), np.uint8, order)
    mask[0, 4, 4] = mask[4, 0, 0] = mask[2, 2, 2] = 3  # scan order: the last index runs fastest
    keep_largest_component(mask, 3)
    assert np.argwhere(mask).tolist() == [[0, 4, 4]]


@pytest.mark.parametrize("seed", range(20))
def test_the_largest_component_is_that_of_scipy(seed: int) -> None:
    """Small random masks, many with several components of the largest size."""
    random = np.random.default_rng(seed)
    organ = random.random((12, 11, 10)) < random.uniform(0.01, 0.15)
    components, _ = ndimage.label(organ, np.ones((3, 3, 3)))
    largest = np.bincount(components.ravel())[1:].argmax() + 1
    mask = organ.astype(np.uint8)
    keep_largest_component(mask, 1)
    assert np.array_equal(mask == 1, components == largest)


def test_a_label_that_is_absent_or_in_one_piece_stays() -> None:
    mask = np.ones((3, 3, 3), np.uint8)
    for label in (1, 2):
        keep_largest_component(mask, label)
    assert mask.all()


@pytest.mark.parametrize("damaged", ["sform", "qform"])
def test_a_form_that_can_not_place_voxels_is_not_repeated(tmp_path: Path, damaged: str) -> None:
    """The mask lies where the reader put the scan, for nibabel as well."""
    image = nib.Nifti1Image(np.ones((4, 5, 6), np.int16), np.diag([2.0, 2.0, 3.0, 1.0]))
    image.header.set_qform(np.diag([2.0, 2.0, 3.0, 1.0]), 1)
    image.header["sform_code"] = 1
    if damaged == "sform":
        image.header["srow_x"] = 0
    else:
        image.header["quatern_b"] = 3  # of a rotation the squares add up to 1
    # nibabel would mend the header while saving
    content = bytearray(image.header.binaryblock + bytes(4) + np.ones(120, "<i2").tobytes())
    struct.pack_into("<f", content, 108, 352)
    content[344:348] = b"n+1\0"
    (tmp_path / "scan.nii").write_bytes(content)
    volume = read(tmp_path / "scan.nii")
    write_mask(tmp_path / "mask.nii.gz", np.zeros((4, 5, 6), np.uint8), volume, {1: "organ"})
    mask = nib.Nifti1Image.from_filename(tmp_path / "mask.nii.gz")
    np.testing.assert_allclose(mask.affine, volume.affine)
    np.testing.assert_allclose(volume.affine, np.diag([2.0, 2.0, 3.0, 1.0]))

"""NRRD and MetaImage lie where NIfTI does, and each fault is told in one line."""

import re
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from tests.io.volumes import (
    CUT,
    NO_VOLUME,
    VOXELS,
    assert_fault,
    assert_is_the_phantom,
    cut,
    image,
    read,
    replace,
    save,
    save_with_simpleitk,
    text,
)

pytestmark = pytest.mark.usefixtures("nothing_beside")


def flat(folder: Path, name: str) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((5, 6), np.uint8)), str(folder / name))
    return folder / name


def changed(folder: Path, name: str, old: bytes, new: bytes) -> Path:
    return replace(save_with_simpleitk(folder / name), old, new)


def without_voxels(folder: Path, name: str) -> Path:
    path = save_with_simpleitk(folder / name)
    path.with_suffix(".raw").unlink()
    return path


def analyze(folder: Path) -> Path:
    nib.save(nib.AnalyzeImage(VOXELS, np.diag([-2, 2, 3, 1])), folder / "scan.img")
    return folder / "scan.hdr"


def several_times(folder: Path) -> Path:
    sitk.WriteImage(sitk.JoinSeries([image(), image()]), str(folder / "scan.nrrd"))
    return folder / "scan.nrrd"


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


@pytest.mark.parametrize("name", ["SCAN.NRRD", "SCAN.NHDR", "SCAN.MHA", "SCAN.MHD"])
def test_endings_in_capitals(tmp_path: Path, name: str) -> None:
    save_with_simpleitk(tmp_path / name.lower()).rename(tmp_path / name)
    assert_is_the_phantom(read(tmp_path / name))


@pytest.mark.parametrize("name", ["scan.nrrd", "scan.mha"])
def test_a_fourth_dimension_of_length_one_in_other_formats(tmp_path: Path, name: str) -> None:
    sitk.WriteImage(sitk.JoinSeries([image()]), str(tmp_path / name))
    assert sitk.ReadImage(str(tmp_path / name)).GetDimension() == 4
    volume = read(tmp_path / name)
    if name == "scan.nrrd":  # ITK leaves out how it lies
        assert volume.remarks.pop().endswith(
            ": its header doesn't tell how it lies, so that left and right are a guess."
        )
    assert_is_the_phantom(volume)


def test_a_negative_metaimage_spacing_runs_the_other_way(tmp_path: Path) -> None:
    path = changed(tmp_path, "scan.mha", b"ElementSpacing = ", b"ElementSpacing = 0.9 1.2 -3\nComment = ")
    np.testing.assert_allclose(read(path).affine[:3, 2], [-2, 1, -2], atol=1e-6)


UNITS = {
    "mm": 1, "cm": 10, "m": 1000, "um": 0.001, "\u00b5m": 0.001, "\u03bcm": 0.001, "Microns": 0.001,
    "micrometers": 0.001, "meter": 1000, "metres": 1000, "centimeter": 10, "millimeters": 1, "???": 1,
}  # fmt: skip


@pytest.mark.parametrize("unit", UNITS)
def test_lengths_in_other_units_become_mm(tmp_path: Path, unit: str) -> None:
    for name, old, new in (
        ("scan.nrrd", "kinds:", f'space units: "{unit}" "{unit}" "{unit}"\nkinds:'),
        ("scan.mha", "DimSize", f"DistanceUnits = {unit}\nDimSize"),
    ):
        volume = read(changed(tmp_path, name, old.encode(), new.encode()))
        assert volume.spacing == pytest.approx([UNITS[unit] * size for size in (0.9, 1.2, 3)])
        assert volume.remarks == []


def test_units_in_latin_1_and_unknown_ones(tmp_path: Path) -> None:
    latin = b'space units: "\xb5m" "\xb5m" "\xb5m"\nkinds:'
    assert read(changed(tmp_path, "scan.nrrd", b"kinds:", latin)).spacing == pytest.approx((0.0009, 0.0012, 0.003))
    for units, named in ((b'"inch" "inch" "inch"', "'inch'"), (b'"mm" "mm" "cm"', "'cm, mm'"), (b'"ms" "" ""', "'ms'")):
        path = changed(tmp_path, "scan.nrrd", b"kinds:", b"space units: " + units + b"\nkinds:")
        volume = read(path)
        assert volume.spacing == pytest.approx((0.9, 1.2, 3))
        assert volume.remarks == [f"{path}: its header has the unit {named}, which isn't known; mm are taken."]


@pytest.mark.parametrize("size", [None, b"0", b"10"])
def test_packed_voxels_whose_size_is_not_stated_rightly(tmp_path: Path, size: bytes | None) -> None:
    """ITK reads as many bytes as are stated, and makes up the other voxels."""
    path = save_with_simpleitk(tmp_path / "scan.mha", packed=True)
    stated = re.search(rb"CompressedDataSize = \d+\n", path.read_bytes())
    assert stated is not None
    replace(path, stated[0], b"" if size is None else b"CompressedDataSize = %s\n" % size)
    assert_fault(path, "doesn't state the size of its packed voxels rightly (CompressedDataSize = ")


@pytest.mark.parametrize("name", ["scan.nrrd", "scan.mha"])
def test_a_header_without_voxel_sizes_is_noted(tmp_path: Path, name: str) -> None:
    voxels = np.arange(24, dtype="<i2")
    heads = {
        "scan.nrrd": b"NRRD0004\ntype: short\ndimension: 3\nsizes: 4 3 2\nendian: little\nencoding: raw\n\n",
        "scan.mha": b"ObjectType = Image\nNDims = 3\nTransformMatrix = 1 0 0 0 1 0 0 0 1\nDimSize = 4 3 2\n"
        b"ElementType = MET_SHORT\nElementByteOrderMSB = False\nElementDataFile = LOCAL\n",
    }
    path = text(tmp_path, name, heads[name] + voxels.tobytes())
    volume = read(path)
    assert volume.spacing == (1, 1, 1)
    assert volume.remarks[0] == f"{path}: its header gives no voxel size, and 1 mm is taken."


@pytest.mark.parametrize("name", ["scan.gipl", "scan.vtk", "scan.mrc"])
def test_formats_that_do_not_tell_left_from_right_are_noted(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    sitk.WriteImage(sitk.GetImageFromArray(VOXELS.transpose(2, 1, 0)), str(path))
    volume = read(path)
    np.testing.assert_array_equal(np.sort(volume.voxels.ravel()), np.sort(VOXELS.ravel()))
    assert volume.remarks == [f"{path}: its header doesn't tell how it lies, so that left and right are a guess."]


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        (b"left-posterior-superior", (-1, -1)),
        (b"left-anterior-superior", (-1, 1)),
        (b"Right-Anterior-Superior", (1, 1)),
        (b"RAS", (1, 1)),
        (b"left-posterior-superior-time", (-1, -1)),
        (b"LAST", (-1, 1)),
        (b"right-anterior-superior-time", (1, 1)),
        (b"scanner-xyz", None),
        (b"3D-left-handed", None),
        (b"3D-right-handed", None),
    ],
)
def test_an_nrrd_tells_left_from_right_by_its_space(
    tmp_path: Path, space: bytes, signs: tuple[int, int] | None
) -> None:
    """The signs are those of a step along x to the Right, and of one along y to Anterior."""
    has_time = space.lower().endswith((b"time", b"t"))
    sizes, directions, origin = b"4 3 2", b"(2,0,0) (0,3,0) (0,0,5)", b"(10,20,30)"
    if has_time:
        sizes, directions, origin = sizes + b" 1", b"(2,0,0,0) (0,3,0,0) (0,0,5,0) (0,0,0,1)", b"(10,20,30,0)"
    head = b"NRRD0005\ntype: short\ndimension: %d\nspace: %s\nsizes: %s\n" % (3 + has_time, space, sizes)
    head += b"space directions: %s\nspace origin: %s\nendian: little\nencoding: raw\n\n" % (directions, origin)
    path = text(tmp_path, "scan.nrrd", head + np.arange(24, dtype="<i2").tobytes())
    volume = read(path)
    if signs is None:
        assert volume.remarks == [f"{path}: its header doesn't tell how it lies, so that left and right are a guess."]
    else:
        x, y = signs
        np.testing.assert_allclose(volume.affine[:3], [[2 * x, 0, 0, 10 * x], [0, 3 * y, 0, 20 * y], [0, 0, 5, 30]])
        assert volume.remarks == []


@pytest.mark.parametrize("name", ["scan.gipl", "scan.vtk", "scan.mrc"])
def test_other_formats_that_are_cut_off(tmp_path: Path, name: str) -> None:
    """ITK makes up the voxels that are missing."""
    sitk.WriteImage(sitk.GetImageFromArray(VOXELS.transpose(2, 1, 0)), str(tmp_path / name))
    assert_fault(cut(tmp_path / name, -60), f"{CUT} (")


@pytest.mark.parametrize(("count", "is_whole"), [(24, True), (23, False)])
def test_vtk_in_words(tmp_path: Path, count: int, is_whole: bool) -> None:
    head = "# vtk DataFile Version 3.0\nx\nASCII\nDATASET STRUCTURED_POINTS\nDIMENSIONS 4 3 2\nSPACING 1 1 1\n"
    head += "ORIGIN 0 0 0\nPOINT_DATA 24\nSCALARS scalars short 1\nLOOKUP_TABLE default\n"
    path = text(tmp_path, "scan.vtk", (head + " ".join(map(str, range(100, 100 + count))) + "\n").encode())
    if is_whole:
        assert read(path).voxels.max() == 123
    else:
        assert_fault(path, f"{CUT} (")


def test_values_that_itk_would_not_scale_are_refused(tmp_path: Path) -> None:
    path = changed(tmp_path, "scan.mha", b"DimSize", b"ElementToIntensityFunctionSlope = -1\nDimSize")
    assert_fault(path, "scales its values (ElementToIntensityFunction), which isn't read. Convert it to NIfTI.")


# ---- what can't be read


FAULTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "text as NRRD": (lambda folder: text(folder, "scan.nrrd"), NO_VOLUME),
    "text as MetaImage": (lambda folder: text(folder, "scan.mha"), NO_VOLUME),
    "text as MetaImage, in capitals": (lambda folder: text(folder, "SCAN.MHA"), NO_VOLUME),
    "PNG": (lambda folder: flat(folder, "scan.png"), "has 2 dimensions; a scan has 3."),
    "2D MetaImage": (lambda folder: flat(folder, "scan.mha"), "has 2 dimensions; a scan has 3."),
    "4D NRRD": (several_times, "has 4 dimensions; a scan has 3."),
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
        f"{CUT} (",
    ),
    "cut off, MetaImage": (
        lambda folder: cut(save_with_simpleitk(folder / "scan.mha"), -40),
        f"{CUT} (200 of 240 bytes of its voxels are there). Copy it again.",
    ),
    "cut off, packed MetaImage": (lambda folder: cut(save_with_simpleitk(folder / "scan.mha", True), -40), f"{CUT} ("),
    "no voxels, MetaImage": (lambda folder: without_voxels(folder, "scan.mhd"), "scan.raw: No such file or directory"),
    "Analyze": (analyze, "is Analyze 7.5, which doesn't tell left from right. Convert it to NIfTI."),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_told_in_one_line(tmp_path: Path, name: str) -> None:
    spoil, words = FAULTS[name]
    assert_fault(spoil(tmp_path), words)

"""Series in, segmentations out: held against SimpleITK, highdicom, pydicom's real files and hand-computed places."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from pydicom.data import get_testdata_file
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from utils import __version__
from utils.io.dicom_seg import write_segmentation
from utils.io.dicom_series import Series, find_series, is_dicom, read_series
from utils.system.errors import InputError, WriteError

ROOT = Path(str(get_testdata_file("CT_small.dcm"))).parent
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
AXIAL = np.array([[-0.7, 0, 0, 90], [0, -0.8, 0, 60], [0, 0, 2.5, -40], [0, 0, 0, 1.0]])
NAMES = {0: "background", 1: "spleen", 2: "right kidney", 6: "liver", 10: "portal and splenic veins", 14: "bowel loop"}


def write_series(folder: Path, voxels: np.ndarray, affine: np.ndarray, **changes: Any) -> list[pydicom.Dataset]:
    """Write a synthetic CT series, one uncompressed file for each slice, whose names say nothing about its place.

    Args:
        folder: is made if it isn't there.
        voxels: (X, Y, Z) int16 in Hounsfield units.
        affine: (4, 4) from voxel index to mm in RAS+; its first two columns are perpendicular.
        changes: attributes of every file, such as ``SeriesNumber=3``; None takes an attribute away.

    Returns:
        What was written, in the order of the slices; ``filename`` is each one's file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :2], axis=0)
    order = np.random.default_rng(5).permutation(voxels.shape[2])
    common = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid()}
    common["FrameOfReferenceUID"] = generate_uid()
    written = []
    for index in range(voxels.shape[2]):
        slice_ = pydicom.Dataset()
        slice_.file_meta = FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_.SOPClassUID, slice_.SOPInstanceUID = CTImageStorage, generate_uid()
        slice_.Modality, slice_.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
        slice_.PatientName, slice_.PatientID, slice_.StudyDate = "Phantom^None", "phantom", "20240229"
        slice_.Columns, slice_.Rows = voxels.shape[:2]
        slice_.PixelSpacing = [round(float(step), 10) for step in spacing[::-1]]
        slice_.ImageOrientationPatient = [round(float(value), 12) for value in (lps[:3, :2] / spacing).T.ravel()]
        slice_.ImagePositionPatient = [round(float(value), 10) for value in (lps @ [0, 0, index, 1])[:3]]
        slice_.SliceThickness = round(float(np.linalg.norm(lps[:3, 2])), 10)
        slice_.RescaleSlope, slice_.RescaleIntercept = 1, -1024
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
        slice_.PixelData = (voxels[..., index] + 1024).astype("<i2").T.tobytes()
        for keyword, value in {**common, **changes}.items():
            if value is not None:
                setattr(slice_, keyword, value)
            elif keyword in slice_:
                delattr(slice_, keyword)
        slice_.filename = folder / f"IM{order[index]:04d}"
        save(slice_)
        written.append(slice_)
    return written


def save(dataset: pydicom.Dataset) -> None:
    dataset.save_as(Path(dataset.filename), enforce_file_format=True, overwrite=True)


def phantom(shape: tuple[int, int, int] = (12, 10, 7)) -> np.ndarray:
    """Differs from each of its mirror images and transposes."""
    x, y, z = np.indices(shape)
    return (-1000 + 3 * x + 40 * y + 300 * z + (x > 6) * (y < 3) * 17).astype(np.int16)


def oblique(tilt_mm: float = 0.0) -> np.ndarray:
    """Turned about all three axes; ``tilt_mm`` shifts each slice along its columns, as a tilted gantry does."""
    a, b, c = 0.3, -0.4, 0.2
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_x @ about_y @ about_z @ np.diag([-0.7, -0.8, 2.5])
    affine[:3, 2] += tilt_mm * affine[:3, 1] / 0.8
    affine[:3, 3] = 30, -20, 110
    return affine


def only_series(folder: Path) -> Series:
    (series,), remarks = find_series([path for path in folder.rglob("*") if path.is_file()])
    assert remarks == []
    return series


def sitk_affine(image: sitk.Image) -> np.ndarray:
    """Voxel index -> mm in RAS+ by SimpleITK's origin, spacing and direction, which are in LPS."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return LPS @ affine


def test_every_voxel_lies_where_the_headers_put_it(tmp_path: Path) -> None:
    voxels = phantom()
    write_series(tmp_path, voxels, AXIAL)
    read, affine, datasets, remarks = read_series(only_series(tmp_path))
    assert read.dtype == np.int16
    np.testing.assert_array_equal(read, voxels)
    # by hand: RAS x falls by 0.7 mm a column from 90, y by 0.8 mm a row from 60, z rises by 2.5 mm a slice from -40
    np.testing.assert_allclose(affine, AXIAL, atol=1e-9)
    np.testing.assert_allclose([float(one.ImagePositionPatient[2]) for one in datasets], -40 + 2.5 * np.arange(7))
    assert not any("PixelData" in one for one in datasets)
    assert remarks == []


@pytest.mark.parametrize("affine", [AXIAL, oblique()], ids=["axial", "oblique"])
def test_simpleitk_reads_the_same(tmp_path: Path, affine: np.ndarray) -> None:
    voxels = phantom()
    write_series(tmp_path, voxels, affine)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    image = reader.Execute()
    read, ours, *_ = read_series(only_series(tmp_path))
    np.testing.assert_array_equal(read, sitk.GetArrayFromImage(image).transpose(2, 1, 0))
    np.testing.assert_allclose(ours, sitk_affine(image), atol=1e-6)
    np.testing.assert_array_equal(read, voxels)


def test_slices_that_descend_are_turned_round(tmp_path: Path) -> None:
    down = AXIAL @ [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 6], [0, 0, 0, 1]]  # the same grid from its other end
    write_series(tmp_path, phantom()[..., ::-1], down)
    read, affine, *_ = read_series(only_series(tmp_path))
    np.testing.assert_array_equal(read, phantom())
    np.testing.assert_allclose(affine, AXIAL, atol=1e-9)


def test_a_tilted_gantry_shears_the_grid(tmp_path: Path) -> None:
    tilted = oblique(tilt_mm=0.9)
    write_series(tmp_path, phantom(), tilted)
    read, affine, *_ = read_series(only_series(tmp_path))
    np.testing.assert_array_equal(read, phantom())
    np.testing.assert_allclose(affine, tilted, atol=1e-8)
    assert affine[:3, 1] @ affine[:3, 2] == pytest.approx(0.8 * 0.9)  # not perpendicular


def test_a_single_slice_is_as_thick_as_it_says(tmp_path: Path) -> None:
    write_series(tmp_path, phantom((12, 10, 1)), AXIAL, SliceThickness="4.5")
    assert read_series(only_series(tmp_path))[1][2, 2] == 4.5


def test_a_single_slice_falls_back_on_the_spacing(tmp_path: Path) -> None:
    write_series(tmp_path, phantom((12, 10, 1)), AXIAL, SliceThickness=None, SpacingBetweenSlices="3")
    assert read_series(only_series(tmp_path))[1][2, 2] == 3


def test_positions_rounded_to_tenths_are_even_enough(tmp_path: Path) -> None:
    for index, one in enumerate(write_series(tmp_path, phantom(), AXIAL)):
        one.ImagePositionPatient[2] = round(-40 + 0.625 * index, 1)  # gaps of 0.6 and 0.7
        save(one)
    assert read_series(only_series(tmp_path))[1][2, 2] == pytest.approx(0.625, abs=0.01)


def test_slope_and_intercept_are_each_slices_own(tmp_path: Path) -> None:
    written = write_series(tmp_path, phantom(), AXIAL)
    for index, one in enumerate(written):
        one.RescaleSlope, one.RescaleIntercept = 0.5 + index, index
        save(one)
    read, *_ = read_series(only_series(tmp_path))
    assert read.dtype == np.float32
    stored = phantom().astype(float) + 1024
    np.testing.assert_allclose(read, stored * (0.5 + np.arange(7)) + np.arange(7))


def test_values_beyond_int16_become_float32(tmp_path: Path) -> None:
    write_series(tmp_path, phantom(), AXIAL, PixelRepresentation=0, RescaleIntercept=32000)
    read, *_ = read_series(only_series(tmp_path))
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, phantom().astype(float) + 1024 + 32000)


def test_a_missing_slope_means_stored_values(tmp_path: Path) -> None:
    write_series(tmp_path, phantom(), AXIAL, RescaleSlope=None, RescaleIntercept=None)
    np.testing.assert_array_equal(read_series(only_series(tmp_path))[0], phantom() + 1024)


def test_monochrome1_keeps_its_values(tmp_path: Path) -> None:
    write_series(tmp_path, phantom(), AXIAL, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_series(only_series(tmp_path))[0], phantom())


def test_a_slice_that_is_there_twice_is_read_once(tmp_path: Path) -> None:
    written = write_series(tmp_path, phantom(), AXIAL)
    twin = copy.deepcopy(written[3])
    twin.SOPInstanceUID, twin.filename = generate_uid(), tmp_path / "copy"
    save(twin)
    read, affine, datasets, remarks = read_series(only_series(tmp_path))
    np.testing.assert_array_equal(read, phantom())
    np.testing.assert_allclose(affine, AXIAL, atol=1e-9)
    assert len(datasets) == 7
    assert remarks == [f"{tmp_path.name}: copy left out: another file holds the same slice."]


def change(index: int, **values: Any) -> Callable[[list[pydicom.Dataset]], None]:
    def do(written: list[pydicom.Dataset]) -> None:
        one = written[index]
        for keyword, value in values.items():
            if value is None:
                delattr(one, keyword)
            else:
                setattr(one, keyword, value)
        save(one)

    return do


def cut(share: float) -> Callable[[list[pydicom.Dataset]], None]:
    def do(written: list[pydicom.Dataset]) -> None:
        path = Path(written[3].filename)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return do


def remove(*indices: int) -> Callable[[list[pydicom.Dataset]], None]:
    def do(written: list[pydicom.Dataset]) -> None:
        for index in indices:
            Path(written[index].filename).unlink()

    return do


def second_phase(written: list[pydicom.Dataset]) -> None:
    twin = copy.deepcopy(written[3])
    twin.PixelData = bytes(len(twin.PixelData))
    twin.SOPInstanceUID, twin.filename = generate_uid(), Path(written[3].filename).parent / "phase2"
    save(twin)


def same_pixels_on_another_scale(written: list[pydicom.Dataset]) -> None:
    written[3].filename, name = Path(written[3].filename).parent / "phase2", written[3].filename
    change(3, RescaleIntercept=0)(written)
    written[3].filename = name


def same_pixels_beside(written: list[pydicom.Dataset]) -> None:
    written[3].filename, name = Path(written[3].filename).parent / "phase2", written[3].filename
    change(3, ImagePositionPatient=[-80, -60, -32.5])(written)
    written[3].filename = name


def shifted_aside(written: list[pydicom.Dataset]) -> None:
    written[3].ImagePositionPatient[0] += 5
    save(written[3])


def lone_slice_without_thickness(written: list[pydicom.Dataset]) -> None:
    remove(0, 1, 2, 4, 5, 6)(written)
    change(3, SliceThickness="0")(written)


EXPORT = "Export the series again from its source."
# what is done to a written series, and the exact error: {3} is the file of slice 3, {name} the series, * anything
FAULTS: dict[str, tuple[Callable[[list[pydicom.Dataset]], None], str]] = {
    "missing slice": (
        remove(4),
        "{name}: a slice is missing between -32.5 and -27.5 mm ({3} and {5}): the gap is 5 mm, elsewhere 2.5 mm. "
        "Copy the series again.",
    ),
    "uneven": (
        change(3, ImagePositionPatient=[-90, -60, -31.5]),
        "{name}: the slice at -31.5 mm ({3}) lies 1 mm beside an even grid (gaps of 1.5 … 3.5 mm). "
        "Resample it to even slices, and give it as NIfTI.",
    ),
    "shifted aside": (
        shifted_aside,
        "{name}: the slice at -32.5 mm ({3}) lies 5 mm beside an even grid (gaps of 2.5 … 2.5 mm). "
        "Resample it to even slices, and give it as NIfTI.",
    ),
    "phases": (
        second_phase,
        "{name}: {3} and phase2 lie at one place but differ: the series holds several volumes, such as phases or "
        "echoes. Split it into one series for each volume.",
    ),
    "another scale": (
        same_pixels_on_another_scale,
        "{name}: {3} and phase2 lie at one place but differ: the series holds several volumes, such as phases or "
        "echoes. Split it into one series for each volume.",
    ),
    "beside": (
        same_pixels_beside,
        "{name}: {3} and phase2 lie at one place but differ: the series holds several volumes, such as phases or "
        "echoes. Split it into one series for each volume.",
    ),
    "orientation": (
        change(3, ImageOrientationPatient=[0, 1, 0, 0, 0, -1]),
        "{folder}/{3}: its orientation is 0, 1, 0, 0, 0, -1, but that of {first} is 1, 0, 0, 0, 1, 0; both say that "
        "they are of one series. Put them into folders of their own, and give them different series.",
    ),
    "size": (
        change(3, Rows=5, Columns=24),
        "{folder}/{3}: its size is 24 × 5 pixels, but that of {first} is 12 × 10 pixels; both say that they are of one "
        "series. Put them into folders of their own, and give them different series.",
    ),
    "pixel spacing": (
        change(3, PixelSpacing=[0.9, 0.7]),
        "{folder}/{3}: its PixelSpacing is 0.9, 0.7 mm, but that of {first} is 0.8, 0.7 mm; both say that they are of "
        "one series. Put them into folders of their own, and give them different series.",
    ),
    "zero spacing": (
        change(3, PixelSpacing=[0.8, 0]),
        "{folder}/{3}: has PixelSpacing 0.8 × 0 mm. " + EXPORT,
    ),
    "negative spacing": (
        change(3, PixelSpacing=[-0.8, 0.7]),
        "{folder}/{3}: has PixelSpacing -0.8 × 0.7 mm. " + EXPORT,
    ),
    "no spacing": (
        change(3, PixelSpacing=None),
        "{folder}/{3}: has no usable PixelSpacing, so its place is unknown. " + EXPORT,
    ),
    "no position": (
        change(3, ImagePositionPatient=None),
        "{folder}/{3}: has no usable ImagePositionPatient, so its place is unknown. " + EXPORT,
    ),
    "no orientation": (
        change(3, ImageOrientationPatient=None),
        "{folder}/{3}: has no usable ImageOrientationPatient, so its place is unknown. " + EXPORT,
    ),
    "zero orientation": (
        change(3, ImageOrientationPatient=[0, 0, 0, 0, 0, 0]),
        "{folder}/{3}: the axes in ImageOrientationPatient aren't perpendicular unit ones. " + EXPORT,
    ),
    "zero slope": (
        change(3, RescaleSlope=0),
        "{folder}/{3}: has no usable RescaleSlope and RescaleIntercept. " + EXPORT,
    ),
    "colour": (
        change(3, SamplesPerPixel=3, PhotometricInterpretation="RGB"),
        "{folder}/{3}: has colour pixels (RGB), not one number each. Give a scan in shades of grey.",
    ),
    "lone slice": (
        lone_slice_without_thickness,
        "{folder}/{3}: is the only slice of {name}, and has no positive SliceThickness or SpacingBetweenSlices. "
        "Give the whole series.",
    ),
    "cut off": (
        cut(0.95),
        "{folder}/{3}: its pixels can't be decoded (*); the file may be cut off. Copy it again.",
    ),
    "no pixels": (
        change(3, PixelData=None),
        "{folder}/{3}: its pixels can't be decoded (*); the file may be cut off. Copy it again.",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_in_one_line(tmp_path: Path, fault: str, recwarn: pytest.WarningsRecorder) -> None:
    spoil, expected = FAULTS[fault]
    written = write_series(tmp_path / "scan", phantom(), AXIAL)
    spoil(written)
    recwarn.clear()
    series = only_series(tmp_path / "scan")
    with pytest.raises(InputError) as caught:
        read_series(series)
    names = [Path(one.filename).name for one in written]
    expected = expected.format(*names, folder=tmp_path / "scan", name="scan", first=series.files[0].name)
    start, _, end = expected.partition("*")
    message = str(caught.value)
    assert message == expected if not end else message.startswith(start) and message.endswith(end)
    assert "\n" not in message
    assert [str(one.message) for one in recwarn] == []


def test_a_file_cut_off_in_its_header_is_named(tmp_path: Path) -> None:
    written = write_series(tmp_path, phantom(), AXIAL)
    files = tuple(Path(one.filename) for one in written)
    files[3].write_bytes(files[3].read_bytes()[:150])
    with pytest.raises(InputError, match=f"^{files[3]}: "):
        read_series(Series("scan", files))


# ---- finding series


def test_series_are_told_apart_by_their_uid_and_named_by_folder_and_number(tmp_path: Path) -> None:
    write_series(tmp_path / "Ann" / "CT", phantom(), AXIAL, SeriesNumber=2)
    write_series(tmp_path / "Bob" / "CT", phantom(), AXIAL, SeriesNumber=2)
    for number in (3, 4, 4):
        for one in write_series(tmp_path / "staging", phantom((4, 4, 2)), AXIAL, SeriesNumber=number):
            one.filename = tmp_path / "mixed" / one.SOPInstanceUID
            Path(one.filename).parent.mkdir(exist_ok=True)
            save(one)
    series, remarks = find_series([*(tmp_path / "Ann").rglob("IM*"), *(tmp_path / "Bob").rglob("IM*")])
    assert ([one.name for one in series], remarks) == (["Ann_CT", "Bob_CT"], [])
    series, remarks = find_series(list((tmp_path / "mixed").iterdir()))
    assert ([one.name for one in series], remarks) == (["mixed_3", "mixed_4", "mixed_4_2"], [])
    assert [len(one.files) for one in series] == [2, 2, 2]


def test_what_is_no_volume_is_left_out_with_a_remark(tmp_path: Path) -> None:
    write_series(tmp_path / "scan", phantom((4, 4, 3)), AXIAL)
    write_series(tmp_path / "scout", phantom((4, 4, 1)), AXIAL, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_series(tmp_path / "shots", phantom((4, 4, 2)), AXIAL, SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    write_series(tmp_path / "report", phantom((4, 4, 1)), AXIAL, Rows=None, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11")
    (tmp_path / "notes.txt").write_text("hello")
    series, remarks = find_series(sorted(path for path in tmp_path.rglob("*") if path.is_file()))
    assert [(one.name, len(one.files)) for one in series] == [("scan", 3)]
    assert sorted(remarks) == [
        f"{tmp_path}/notes.txt: left out, its header can't be read (File is missing DICOM File Meta Information header "
        "or the 'DICM' prefix is missing from the header. Use force=True to force reading.).",
        f"{tmp_path}/report/IM0000: left out, no pixels in it (Basic Text SR Storage).",
        f"{tmp_path}/scout/IM0000: left out, a localizer.",
        f"{tmp_path}/shots: 2 files left out, not a CT, MR or PET image (Secondary Capture Image Storage).",
    ]


def test_dicom_is_told_by_its_content(tmp_path: Path) -> None:
    write_series(tmp_path, phantom((4, 4, 1)), AXIAL)
    (tmp_path / "empty.dcm").touch()
    assert is_dicom(tmp_path / "IM0000")
    assert not is_dicom(tmp_path / "empty.dcm")


# ---- files of real scanners, which pydicom brings along


def test_a_real_ct_slice_against_simpleitk() -> None:
    path = ROOT / "CT_small.dcm"
    (series,), _ = find_series([path])
    voxels, affine, *_ = read_series(series)
    image = sitk.ReadImage(path)
    np.testing.assert_array_equal(voxels, sitk.GetArrayFromImage(image).transpose(2, 1, 0))
    np.testing.assert_allclose(affine, sitk_affine(image), atol=1e-6)
    assert affine[2, 2] == 5.0  # its SliceThickness


@pytest.mark.parametrize("name", ["RLE", "jpeg_ls_lossless", "jp2klossless", "implicit", "bigendian"])
def test_compressed_slices_hold_the_same_voxels(name: str) -> None:
    plain, affine, *_ = read_series(Series("plain", (ROOT / "MR_small.dcm",)))
    voxels, other_affine, *_ = read_series(Series(name, (ROOT / f"MR_small_{name}.dcm",)))
    assert plain.std() > 0
    np.testing.assert_array_equal(voxels, plain)
    np.testing.assert_array_equal(other_affine, affine)


def test_a_real_slice_with_bytes_to_spare(recwarn: pytest.WarningsRecorder) -> None:
    plain, *_ = read_series(Series("plain", (ROOT / "MR_small.dcm",)))
    np.testing.assert_array_equal(read_series(Series("padded", (ROOT / "MR_small_padded.dcm",)))[0], plain)
    assert [str(one.message) for one in recwarn] == []


def test_a_real_truncated_slice() -> None:
    with pytest.raises(InputError, match=r"MR_truncated\.dcm: its pixels can't be decoded .*Copy it again\.$"):
        read_series(Series("MR", (ROOT / "MR_truncated.dcm",)))


def test_a_real_cd() -> None:
    """Three patients' studies on one medium, with scouts, projections and slices picked from longer series."""
    files = [path for path in (ROOT / "dicomdirtests").rglob("*") if path.is_file() and is_dicom(path)]
    series, remarks = find_series(files)
    named = {one.name: one for one in series}
    assert len(named) == len(series)
    assert "98892001_CT2N" not in named
    assert sum("localizer" in remark for remark in remarks) == 1
    assert sum("Media Storage Directory" in remark for remark in remarks) == 2

    good = named["CT5N"]
    voxels, affine, *_ = read_series(good)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(ROOT / "dicomdirtests" / "98892001" / "CT5N")))
    image = reader.Execute()
    np.testing.assert_array_equal(voxels, sitk.GetArrayFromImage(image).transpose(2, 1, 0))
    np.testing.assert_allclose(affine, sitk_affine(image), atol=1e-6)
    assert voxels.shape == (16, 16, 5)
    with pytest.raises(InputError, match=r"CT2: a slice is missing between -99\.48 and 103\.02 mm \(17106 and 17136\)"):
        read_series(named["CT2"])
    with pytest.raises(InputError, match=r"its orientation is .* but that of 4467 is"):
        read_series(named["MR700"])


# ---- multi-frame files


def write_enhanced(folder: Path, voxels: np.ndarray, affine: np.ndarray) -> pydicom.Dataset:
    """The series of :func:`write_series` as one enhanced CT file, its frames shuffled."""
    slices = write_series(folder / "slices", voxels, affine)
    shuffled = [slices[index] for index in np.random.default_rng(2).permutation(len(slices))]
    whole = copy.deepcopy(slices[0])
    for keyword in ("PixelSpacing", "SliceThickness", "RescaleSlope", "RescaleIntercept"):
        delattr(whole, keyword)
    del whole.ImagePositionPatient, whole.ImageOrientationPatient
    whole.SOPClassUID, whole.NumberOfFrames = "1.2.840.10008.5.1.4.1.1.2.1", len(slices)
    shared, measures, orientation, scale = (pydicom.Dataset() for _ in range(4))
    measures.PixelSpacing, measures.SliceThickness = slices[0].PixelSpacing, slices[0].SliceThickness
    orientation.ImageOrientationPatient = slices[0].ImageOrientationPatient
    scale.RescaleSlope, scale.RescaleIntercept, scale.RescaleType = 1, -1024, "HU"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    shared.PixelValueTransformationSequence = [scale]
    whole.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for one in shuffled:
        group, position = pydicom.Dataset(), pydicom.Dataset()
        position.ImagePositionPatient = one.ImagePositionPatient
        group.PlanePositionSequence = [position]
        groups.append(group)
    whole.PerFrameFunctionalGroupsSequence = groups
    whole.PixelData = b"".join(one.PixelData for one in shuffled)
    whole.filename = folder / "enhanced.dcm"
    whole.file_meta.MediaStorageSOPClassUID = whole.SOPClassUID
    save(whole)
    return whole


def test_a_multi_frame_file_reads_like_its_slices(tmp_path: Path) -> None:
    write_enhanced(tmp_path, phantom(), oblique())
    (series,), _ = find_series([tmp_path / "enhanced.dcm"])
    voxels, affine, datasets, _ = read_series(series)
    np.testing.assert_array_equal(voxels, phantom())
    np.testing.assert_allclose(affine, oblique(), atol=1e-8)
    assert len(datasets) == 1
    volume = hd.imread(tmp_path / "enhanced.dcm").get_volume(dtype=np.float64)
    place = np.linalg.inv(LPS @ affine) @ volume.affine @ [*np.argwhere(volume.array == phantom()[3, 4, 5])[0], 1]
    np.testing.assert_allclose(place[:3], [3, 4, 5], atol=1e-4)


def test_a_multi_frame_file_among_slices(tmp_path: Path) -> None:
    write_enhanced(tmp_path, phantom(), AXIAL)
    with pytest.raises(InputError, match="scan: has 2 files, of which at least one is multi-frame"):
        read_series(Series("scan", (tmp_path / "enhanced.dcm", tmp_path / "slices" / "IM0000")))


def test_frames_without_places(tmp_path: Path) -> None:
    written = write_enhanced(tmp_path, phantom(), AXIAL)
    del written.PerFrameFunctionalGroupsSequence
    save(written)
    with pytest.raises(InputError, match=r"enhanced\.dcm: has 7 frames, but doesn't say where each lies\. Convert it"):
        read_series(Series("scan", (tmp_path / "enhanced.dcm",)))


# ---- segmentations


def organs(shape: tuple[int, int, int] = (12, 10, 7)) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[1:4, 2:8, 1:3] = 2
    mask[5:11, 1:4, 2:6] = 6
    mask[9, 9, 6] = 14
    return mask


def label_map(path: Path, affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """The file's segment numbers on the grid of ``affine``, as highdicom reads and places them."""
    volume = hd.seg.segread(path).get_volume(combine_segments=True)
    found = np.zeros(shape, np.uint8)
    there = np.argwhere(volume.array)
    mm = volume.affine @ np.c_[there, np.ones(len(there))].T  # in LPS
    index = (np.linalg.inv(affine) @ LPS @ mm)[:3].T
    np.testing.assert_allclose(index, np.round(index), atol=1e-4)
    found[tuple(np.round(index).astype(int).T)] = volume.array[tuple(there.T)]
    return found


@pytest.mark.parametrize("kind", ["slices", "enhanced"])
@pytest.mark.parametrize("affine", [AXIAL, oblique()], ids=["axial", "oblique"])
def test_a_segmentation_lies_on_its_series(tmp_path: Path, affine: np.ndarray, kind: str) -> None:
    written = write_enhanced(tmp_path, phantom(), affine)
    files = (tmp_path / "enhanced.dcm",) if kind == "enhanced" else tuple((tmp_path / "slices").iterdir())
    _, read_affine, datasets, _ = read_series(Series("scan", files))
    write_segmentation(tmp_path / "mask.dcm", organs(), NAMES, datasets)

    numbers = np.select([organs() == 2, organs() == 6, organs() == 14], [1, 2, 3])
    np.testing.assert_array_equal(label_map(tmp_path / "mask.dcm", read_affine, (12, 10, 7)), numbers)
    segmentation = hd.seg.segread(tmp_path / "mask.dcm")
    assert segmentation.segmentation_type == hd.seg.SegmentationTypeValues.BINARY
    assert [one.SegmentLabel for one in segmentation.SegmentSequence] == ["right kidney", "liver", "bowel loop"]
    assert segmentation.StudyInstanceUID == written.StudyInstanceUID
    assert segmentation.PatientName == "Phantom^None"
    (reference,) = segmentation.ReferencedSeriesSequence
    assert reference.SeriesInstanceUID == written.SeriesInstanceUID
    referred = {one.ReferencedSOPInstanceUID for one in reference.ReferencedInstanceSequence}
    assert referred == {pydicom.dcmread(path).SOPInstanceUID for path in files}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["enhanced.dcm", "mask.dcm", "slices"]


def test_each_frame_names_the_slice_that_it_lies_on(tmp_path: Path) -> None:
    written = write_series(tmp_path / "scan", phantom(), oblique(tilt_mm=0.9))
    _, _, datasets, _ = read_series(only_series(tmp_path / "scan"))
    write_segmentation(tmp_path / "mask.dcm", organs(), NAMES, datasets)
    frames = pydicom.dcmread(tmp_path / "mask.dcm")
    by_uid = {one.SOPInstanceUID: index for index, one in enumerate(written)}
    seen = []
    for frame, pixels in zip(frames.PerFrameFunctionalGroupsSequence, frames.pixel_array, strict=True):
        source = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        index, segment = by_uid[source], frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        value = {1: 2, 2: 6, 3: 14}[segment]
        np.testing.assert_array_equal(pixels.T, organs()[..., index] == value)
        assert frame.PlanePositionSequence[0].ImagePositionPatient == written[index].ImagePositionPatient
        seen.append((segment, index))
    assert sorted(seen) == [(1, 1), (1, 2), (2, 2), (2, 3), (2, 4), (2, 5), (3, 6)]


def test_simpleitk_puts_a_segment_in_the_same_place(tmp_path: Path) -> None:
    write_series(tmp_path / "scan", phantom(), oblique(), SliceThickness=5)  # slices that overlap by half
    _, affine, datasets, _ = read_series(only_series(tmp_path / "scan"))
    mask = organs() * (organs() == 6)
    write_segmentation(tmp_path / "mask.dcm", mask, NAMES, datasets)
    (shared,) = pydicom.dcmread(tmp_path / "mask.dcm").SharedFunctionalGroupsSequence
    assert shared.PixelMeasuresSequence[0].SpacingBetweenSlices == 2.5
    image = sitk.ReadImage(tmp_path / "mask.dcm")
    there = np.argwhere(sitk.GetArrayFromImage(image).transpose(2, 1, 0))
    mm = sitk_affine(image) @ np.c_[there, np.ones(len(there))].T
    index = (np.linalg.inv(affine) @ mm)[:3].T
    np.testing.assert_allclose(sorted(index.round(3).tolist()), sorted(np.argwhere(mask).tolist()), atol=1e-3)


def test_codes_of_the_organs(tmp_path: Path) -> None:
    write_series(tmp_path / "scan", phantom(), AXIAL)
    _, _, datasets, _ = read_series(only_series(tmp_path / "scan"))
    mask = organs()
    mask[0, 0, 0], mask[0, 0, 1] = 1, 10
    write_segmentation(tmp_path / "mask.dcm", mask, NAMES, datasets)
    spleen, kidney, liver, veins, bowel = pydicom.dcmread(tmp_path / "mask.dcm").SegmentSequence

    def code(item: pydicom.Dataset) -> tuple[str, str, str]:
        return item.get("CodeValue"), item.CodingSchemeDesignator, item.CodeMeaning

    def kind(segment: pydicom.Dataset) -> pydicom.Dataset:
        return segment.SegmentedPropertyTypeCodeSequence[0]

    assert code(kind(spleen)) == ("78961009", "SCT", "Spleen")
    assert code(kind(kidney)) == ("64033007", "SCT", "Kidney")
    assert code(kind(kidney).SegmentedPropertyTypeModifierCodeSequence[0]) == ("24028007", "SCT", "Right")
    assert code(kind(liver)) == ("10200004", "SCT", "Liver")
    assert [code(item) for item in veins.PrimaryAnatomicStructureSequence] == [
        ("32764006", "SCT", "Portal vein"),
        ("35819009", "SCT", "Splenic vein"),
    ]
    assert code(kind(bowel)) == ("bowel loop", "99UNETR", "bowel loop")
    algorithm = spleen.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("UNETR", __version__)


def test_names_in_any_letters(tmp_path: Path) -> None:
    write_series(tmp_path / "scan", phantom(), AXIAL, SpecificCharacterSet="ISO_IR 100", PatientName="Müller")
    _, _, datasets, _ = read_series(only_series(tmp_path / "scan"))
    names = {2: "rechte Nierenhälfte 肾", 6: "x" * 80, 14: "and\\or"}
    write_segmentation(tmp_path / "mask.dcm", organs(), names, datasets)
    read = pydicom.dcmread(tmp_path / "mask.dcm")
    assert [one.SegmentLabel for one in read.SegmentSequence] == ["rechte Nierenhälfte 肾", "x" * 64, "and/or"]
    assert read.PatientName == "Müller"


def test_a_mask_without_organs_has_every_segment_and_no_voxel(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    write_series(tmp_path / "scan", phantom(), AXIAL)
    _, _, datasets, _ = read_series(only_series(tmp_path / "scan"))
    write_segmentation(tmp_path / "mask.dcm", np.zeros((12, 10, 7), np.uint8), NAMES, datasets)
    segmentation = hd.seg.segread(tmp_path / "mask.dcm")
    assert [one.SegmentLabel for one in segmentation.SegmentSequence] == [NAMES[value] for value in (1, 2, 6, 10, 14)]
    assert not segmentation.pixel_array.any()
    assert [str(one.message) for one in recwarn] == []


def test_an_anonymized_series_can_be_segmented(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    gone = dict.fromkeys(("PatientName", "PatientID", "StudyDate", "SliceThickness"))
    write_series(tmp_path / "scan", phantom(), AXIAL, **gone)
    recwarn.clear()
    _, affine, datasets, _ = read_series(only_series(tmp_path / "scan"))
    write_segmentation(tmp_path / "mask.dcm", organs(), NAMES, datasets)
    assert label_map(tmp_path / "mask.dcm", affine, (12, 10, 7)).any()
    assert [str(one.message) for one in recwarn] == []


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("PatientBirthDate", "1950"), ("StudyDate", "2024-02-29"), ("StudyTime", "12:30"), ("PatientSex", "Male")],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_what_is_not_written_as_the_standard_has_it_becomes_empty(tmp_path: Path, keyword: str, value: str) -> None:
    datasets = write_series(tmp_path / "scan", phantom(), AXIAL)
    for one in datasets:
        setattr(one, keyword, value)
    write_segmentation(tmp_path / "mask.dcm", organs(), NAMES, datasets)
    written = pydicom.dcmread(tmp_path / "mask.dcm")
    assert not written[keyword].value
    assert written.PatientID == "phantom"
    assert datasets[0][keyword].value == value


def test_a_series_without_frame_of_reference(tmp_path: Path) -> None:
    write_series(tmp_path / "scan", phantom(), AXIAL, FrameOfReferenceUID=None)
    _, _, datasets, _ = read_series(only_series(tmp_path / "scan"))
    with pytest.raises(InputError, match=r"mask\.dcm: the series' headers don't allow .* Write NIfTI instead\."):
        write_segmentation(tmp_path / "mask.dcm", organs(), NAMES, datasets)
    assert not (tmp_path / "mask.dcm").exists()


def test_a_full_disk_leaves_no_part(tmp_path: Path) -> None:
    write_series(tmp_path / "scan", phantom(), AXIAL)
    _, _, datasets, _ = read_series(only_series(tmp_path / "scan"))
    with pytest.raises(WriteError):
        write_segmentation(tmp_path / "nowhere" / "mask.dcm", organs(), NAMES, datasets)

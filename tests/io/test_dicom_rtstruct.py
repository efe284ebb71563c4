"""Structure sets: read back by our own reader, by pydicom and matplotlib, and as rt-utils does it."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from matplotlib.path import Path as Outline
from PIL import Image, ImageDraw

from tests.io.series import AXIAL, oblique, only_series, phantom, write_enhanced, write_series
from tests.io.test_dicom_labels import TURNS, turned
from utils.io.dicom_rtstruct import write_structure_set
from utils.io.dicom_series import Series, read_series
from utils.io.rtstruct import RtStruct
from utils.io.scan import Volume
from utils.system.errors import InputError, WriteError

SHAPE = (22, 18, 7)
NAMES = {0: "background", 1: "ring", 2: "two parts", 3: "voxel", 4: "walls", 5: "absent"}
COLOURS = {1: (31, 119, 180), 2: (174, 199, 232), 3: (255, 127, 14), 4: (255, 187, 120), 5: (44, 160, 44)}


def structures() -> np.ndarray:
    """A ring with an island in its hole, two parts, a voxel, and walls one voxel thick around several holes."""
    x, y, z = np.indices(SHAPE)
    mask = np.zeros(SHAPE, np.uint8)
    radius = np.hypot(x - 7, y - 6)
    mask[(radius < 6) & (radius > 3) & (z > 0) & (z < 6)] = 1
    mask[(radius < 1.5) & (z > 1) & (z < 5)] = 1
    mask[15:20, 1:5, 0:3] = 2
    mask[16:21, 6:9, 2:7] = 2
    mask[1, 16, 3] = 3
    mask[8:19, 11:17, 1:6] = 4
    mask[9:13, 12:16, 2:5] = mask[14:18, 12:14, 2:5] = mask[14:18, 15, 3] = 0
    return mask


def written(folder: Path, affine: np.ndarray, mask: np.ndarray | None = None) -> Volume:
    """A series as it was read, with ``rt.dcm`` beside it."""
    write_series(folder / "ct", phantom(SHAPE), affine)
    volume = read_series(only_series(folder / "ct"))
    write_structure_set(
        folder / "rt.dcm", structures() if mask is None else mask, NAMES, COLOURS, list(volume.datasets)
    )
    return volume


def in_slices(path: Path, number: int, series: Sequence[pydicom.Dataset]) -> Iterator[tuple[int, np.ndarray]]:
    """The slice that each contour of an ROI names, and the contour in that slice's columns and rows (N, 2)."""
    index = {one.SOPInstanceUID: position for position, one in enumerate(series)}
    (roi,) = (roi for roi in pydicom.dcmread(path).ROIContourSequence if roi.ReferencedROINumber == number)
    for contour in roi.ContourSequence:
        (image,) = contour.ContourImageSequence
        at = index[image.ReferencedSOPInstanceUID]
        points = np.array(contour.ContourData, float).reshape(-1, 3)
        assert contour.ContourGeometricType == "CLOSED_PLANAR"
        assert contour.NumberOfContourPoints == len(points)
        along_row, along_column = np.reshape(series[at].ImageOrientationPatient, (2, 3))
        away = points - np.array(series[at].ImagePositionPatient, float)
        assert np.abs(away @ np.cross(along_row, along_column)).max() < 1e-3  # in the slice's plane
        row_step, column_step = series[at].PixelSpacing
        yield at, np.c_[away @ along_row / column_step, away @ along_column / row_step]


def by_matplotlib(path: Path, number: int, series: Sequence[pydicom.Dataset]) -> np.ndarray:
    """The voxels whose centres lie in an ROI's contours."""
    mask = np.zeros(SHAPE, bool)
    points = np.argwhere(np.ones(SHAPE[:2], bool))
    for at, polygon in in_slices(path, number, series):
        mask[..., at] ^= Outline(polygon, closed=False).contains_points(points).reshape(SHAPE[:2])
    return mask


def by_whole_voxels(path: Path, number: int, series: Sequence[pydicom.Dataset]) -> np.ndarray:
    """The same as rt-utils has it: points are rounded to voxels, and those on a contour belong to it."""
    mask = np.zeros(SHAPE, bool)
    for at, polygon in in_slices(path, number, series):
        picture = Image.new("1", SHAPE[:2])
        ImageDraw.Draw(picture).polygon([tuple(point) for point in polygon.round().astype(int).tolist()], 1, 1)
        mask[..., at] |= np.asarray(picture).T
    return mask


@pytest.mark.parametrize(
    "affine",
    [turned(*turn) for turn in TURNS] + [oblique(), oblique(tilt_mm=0.9), oblique(tilt_mm=-1.7)],
    ids=[f"{order}{signs}" for order, signs in TURNS] + ["oblique", "tilted", "tilted back"],
)
def test_structures_come_back_in_all_orientations(tmp_path: Path, affine: np.ndarray) -> None:
    volume = written(tmp_path, affine)
    path = tmp_path / "rt.dcm"
    own = RtStruct(path, pydicom.dcmread(path))
    assert [(one.number, one.name, one.is_drawn) for one in own.structures] == [
        (value, NAMES[value], True) for value in range(1, 5)
    ]
    for one in own.structures:
        expected = structures() == one.number
        mask, remarks = own.mask([one], volume)
        assert remarks == []
        np.testing.assert_array_equal(mask, expected)
        np.testing.assert_array_equal(by_matplotlib(path, one.number, volume.datasets), expected)
        np.testing.assert_array_equal(by_whole_voxels(path, one.number, volume.datasets), expected)


def test_a_tilted_gantry_moves_the_contours_of_each_slice(tmp_path: Path) -> None:
    affine = AXIAL.copy()
    affine[1, 2] = 0.9  # mm to the front from slice to slice
    mask = np.zeros(SHAPE, np.uint8)
    mask[4, 5] = 3
    written(tmp_path, affine, mask)
    (roi,) = pydicom.dcmread(tmp_path / "rt.dcm").ROIContourSequence
    centres = [np.mean(np.reshape(contour.ContourData, (-1, 3)), axis=0) for contour in roi.ContourSequence]
    # AXIAL has its first voxel at (90, 60, -40) mm to Right, Anterior, Superior with the signs of RAS; DICOM has LPS
    expected = [(-90 + 4 * 0.7, -60 + 5 * 0.8 - 0.9 * index, -40 + 2.5 * index) for index in range(SHAPE[2])]
    np.testing.assert_allclose(centres, expected, atol=1e-4)


def test_a_contour_encloses_the_area_of_its_voxels(tmp_path: Path) -> None:
    volume = written(tmp_path, AXIAL)
    for value in range(1, 5):
        polygons = in_slices(tmp_path / "rt.dcm", value, volume.datasets)
        areas = [float(x @ np.roll(y, -1) - np.roll(x, -1) @ y) / 2 for x, y in (polygon.T for _, polygon in polygons)]
        assert sum(areas) == pytest.approx(np.count_nonzero(structures() == value), rel=0.04)
        assert min(areas) > 0.95


@pytest.mark.parametrize(("order", "signs"), [((0, 2, 1), (1, 1, 1)), ((2, 0, 1), (1, 1, -1))])
def test_the_ends_of_a_contour_differ_in_x_or_y(tmp_path: Path, order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    """plastimatch takes them for one point otherwise, which cost each contour of coronal slices a corner."""
    written(tmp_path, turned(order, signs))
    for roi in pydicom.dcmread(tmp_path / "rt.dcm").ROIContourSequence:
        for contour in roi.ContourSequence:
            assert np.abs(np.subtract(contour.ContourData[:2], contour.ContourData[-3:-1])).max() > 0.3


def test_names_colours_and_references(tmp_path: Path) -> None:
    volume = written(tmp_path, AXIAL)
    read = pydicom.dcmread(tmp_path / "rt.dcm")
    first = volume.datasets[0]
    assert (read.Modality, read.SOPClassUID.name) == ("RTSTRUCT", "RT Structure Set Storage")
    assert (read.StudyInstanceUID, read.FrameOfReferenceUID) == (first.StudyInstanceUID, first.FrameOfReferenceUID)
    assert (read.PatientName, read.PatientID) == ("Phantom^None", "phantom")
    assert read.SeriesInstanceUID != first.SeriesInstanceUID
    assert [roi.ROINumber for roi in read.StructureSetROISequence] == [1, 2, 3, 4]
    assert {roi.ReferencedFrameOfReferenceUID for roi in read.StructureSetROISequence} == {first.FrameOfReferenceUID}
    assert [tuple(roi.ROIDisplayColor) for roi in read.ROIContourSequence] == [COLOURS[value] for value in range(1, 5)]
    assert {one.RTROIInterpretedType for one in read.RTROIObservationsSequence} == {"ORGAN"}
    (frame,) = read.ReferencedFrameOfReferenceSequence
    (study,) = frame.RTReferencedStudySequence
    (series,) = study.RTReferencedSeriesSequence
    assert frame.FrameOfReferenceUID == first.FrameOfReferenceUID
    assert study.ReferencedSOPInstanceUID == first.StudyInstanceUID
    assert series.SeriesInstanceUID == first.SeriesInstanceUID
    referred = [(one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID) for one in series.ContourImageSequence]
    assert referred == [(one.SOPClassUID, one.SOPInstanceUID) for one in volume.datasets]


def test_all_that_the_standard_requires_is_there_and_nothing_else(tmp_path: Path) -> None:
    """By the tables of the standard that highdicom has."""
    written(tmp_path, AXIAL)
    tables = Path(highdicom.__file__).parent / "_standard"
    modules = json.loads((tables / "iod_module_map.json").read_text())["rt-structure-set"]
    elements = json.loads((tables / "module_attribute_map.json").read_text())
    used = {one["key"] for one in modules if one["usage"] == "M"} | {"frame-of-reference", "approval"}
    rules: dict[tuple[str, ...], dict[str, str]] = {}
    for key in used:
        for one in elements[key]:
            rules.setdefault(tuple(one["path"]), {})[one["keyword"]] = one["type"]

    def check(dataset: pydicom.Dataset, place: tuple[str, ...]) -> None:
        for keyword, kind in rules[place].items():
            assert kind not in ("1", "2") or keyword in dataset, (place, keyword)
            assert kind != "1" or dataset[keyword].value not in (None, "", []), (place, keyword)
        for element in dataset:
            assert element.keyword in rules[place]
            for item in element.value if element.VR == "SQ" else ():
                check(item, (*place, element.keyword))

    check(pydicom.dcmread(tmp_path / "rt.dcm"), ())


def test_an_enhanced_file_is_referred_to_by_its_frames(tmp_path: Path) -> None:
    whole = write_enhanced(tmp_path, phantom(SHAPE), oblique())
    volume = read_series(Series("scan", (tmp_path / "enhanced.dcm",)))
    write_structure_set(tmp_path / "rt.dcm", structures(), NAMES, COLOURS, list(volume.datasets))
    read = pydicom.dcmread(tmp_path / "rt.dcm")
    own = RtStruct(tmp_path / "rt.dcm", read)
    for one in own.structures:
        np.testing.assert_array_equal(own.mask([one], volume)[0], structures() == one.number)
    for contour in read.ROIContourSequence[0].ContourSequence:
        (image,) = contour.ContourImageSequence
        assert image.ReferencedSOPInstanceUID == whole.SOPInstanceUID
        frame = whole.PerFrameFunctionalGroupsSequence[image.ReferencedFrameNumber - 1]
        position = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        along_row, along_column = np.reshape(volume.datasets[0].SharedFunctionalGroupsSequence[0]
                                             .PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3))  # fmt: skip
        away = np.reshape(contour.ContourData, (-1, 3)) - position
        assert np.abs(away @ np.cross(along_row, along_column)).max() < 1e-3


def test_names_in_any_letters(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", phantom(SHAPE), AXIAL, SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg")
    volume = read_series(only_series(tmp_path / "ct"))
    names = {1: "rechte Nierenhälfte 肾", 2: "x" * 80, 3: "and\\or", 4: "two\nlines <b>&amp;"}
    write_structure_set(tmp_path / "rt.dcm", structures(), names, COLOURS, list(volume.datasets))
    read = pydicom.dcmread(tmp_path / "rt.dcm")
    assert [roi.ROIName for roi in read.StructureSetROISequence] == [
        *("rechte Nierenhälfte 肾", "x" * 64, "and/or", "two lines <b>&amp;")
    ]
    assert read.PatientName == "Müller^Jörg"


def test_a_mask_without_voxels_has_every_label_and_no_contour(tmp_path: Path) -> None:
    volume = written(tmp_path, AXIAL, np.zeros(SHAPE, np.uint8))
    read = pydicom.dcmread(tmp_path / "rt.dcm")
    assert [roi.ROIName for roi in read.StructureSetROISequence] == [NAMES[value] for value in range(1, 6)]
    assert not any("ContourSequence" in roi for roi in read.ROIContourSequence)
    own = RtStruct(tmp_path / "rt.dcm", read)
    assert not any(one.is_drawn for one in own.structures)
    assert not own.mask(own.structures, volume)[0].any()


def test_a_contour_may_have_more_bytes_than_explicit_types_count(tmp_path: Path) -> None:
    mask = np.zeros((800, 12, 1), np.uint8)
    mask[::2, 1:-1] = mask[:, 5] = 1  # a spine with 400 teeth on both sides
    write_series(tmp_path / "ct", phantom(mask.shape), oblique())
    volume = read_series(only_series(tmp_path / "ct"))
    write_structure_set(tmp_path / "rt.dcm", mask, NAMES, COLOURS, list(volume.datasets))
    read = pydicom.dcmread(tmp_path / "rt.dcm")
    (contour,) = read.ROIContourSequence[0].ContourSequence
    assert len(contour.get_item("ContourData").value) > 65534
    assert contour.NumberOfContourPoints == len(contour.ContourData) // 3
    own = RtStruct(tmp_path / "rt.dcm", read)
    np.testing.assert_array_equal(own.mask(own.structures, volume)[0], mask == 1)


def test_an_anonymized_series_gets_contours(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    gone = dict.fromkeys(("PatientName", "PatientID", "StudyDate", "SliceThickness"))
    write_series(tmp_path / "ct", phantom(SHAPE), AXIAL, **gone)
    recwarn.clear()
    volume = read_series(only_series(tmp_path / "ct"))
    write_structure_set(tmp_path / "rt.dcm", structures(), NAMES, COLOURS, list(volume.datasets))
    assert pydicom.dcmread(tmp_path / "rt.dcm").PatientID in (None, "")
    assert [str(one.message) for one in recwarn] == []


@pytest.mark.parametrize("keyword", ["FrameOfReferenceUID", "StudyInstanceUID"])
def test_a_series_that_contours_can_not_refer_to(tmp_path: Path, keyword: str) -> None:
    write_series(tmp_path / "ct", phantom(SHAPE), AXIAL, **{keyword: None})
    volume = read_series(only_series(tmp_path / "ct"))
    with pytest.raises(InputError, match=rf"rt\.dcm: .*IM\d+ has no {keyword}, which contours have to refer to\. Use"):
        write_structure_set(tmp_path / "rt.dcm", structures(), NAMES, COLOURS, list(volume.datasets))
    assert not (tmp_path / "rt.dcm").exists()


def test_a_full_disk_leaves_no_part(tmp_path: Path) -> None:
    volume = written(tmp_path, AXIAL)
    with pytest.raises(WriteError):
        write_structure_set(tmp_path / "nowhere" / "rt.dcm", structures(), NAMES, COLOURS, list(volume.datasets))

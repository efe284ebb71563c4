"""RTSTRUCT and SEG as labels: what was drawn comes back in all orientations, and what can't be used is named."""

import itertools
import re
from collections.abc import Callable
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.uid import UID

from tests.io.labels import blobs, outlines, to_mm, write_rtstruct, write_seg
from tests.io.series import AXIAL, oblique, only_series, phantom, write_series
from utils.io.dicom_labels import is_dicom_label
from utils.io.dicom_seg import write_segmentation
from utils.io.dicom_series import read_series
from utils.io.reader import read_label, read_label_file
from utils.io.scan import Volume
from utils.system.errors import InputError

NAMES = ((), ("liver",), ("right kidney", "Kidney_R"))
SHAPE = (14, 12, 7)
TURNS = [(order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)]


def turned(order: tuple[int, ...], signs: tuple[int, ...]) -> np.ndarray:
    """An affine whose axes run along those of the body, in one of 48 ways."""
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, order] @ np.diag(np.multiply(signs, (0.7, 0.8, 2.5)))
    affine[:3, 3] = 30, -20, 110
    return affine


def on_grid(mask: np.ndarray, affine: np.ndarray, volume: Volume) -> np.ndarray:
    """Move a mask from the grid of ``affine`` to that of the series as it was read."""
    index = np.indices(volume.shape).reshape(3, -1)
    place = np.linalg.inv(affine) @ volume.affine @ np.vstack([index, np.ones(index.shape[1])])
    moved: np.ndarray = mask[tuple(np.rint(place[:3]).astype(int))].reshape(volume.shape)
    return moved


def scan(folder: Path, affine: np.ndarray = AXIAL) -> tuple[list[pydicom.Dataset], Volume]:
    written = write_series(folder / "ct", phantom(SHAPE), affine)
    return written, read_series(only_series(folder / "ct"))


def read(path: Path, volume: Volume) -> np.ndarray:
    return read_label(path, path.parent / "ct", volume, 3, structures=NAMES)


@pytest.mark.parametrize(("order", "signs"), TURNS)
def test_both_kinds_come_back_in_all_orientations(
    tmp_path: Path, order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    affine = turned(order, signs)
    series, volume = scan(tmp_path, affine)
    mask = blobs(SHAPE)
    expected = on_grid(mask, affine, volume)
    drawn = {"Liver": outlines(mask == 1, affine), "Kidney_R": outlines(mask == 2, affine)}
    write_rtstruct(tmp_path / "rt.dcm", series, drawn)
    np.testing.assert_array_equal(read(tmp_path / "rt.dcm", volume), expected)
    write_segmentation(tmp_path / "own.dcm", expected, {1: "liver", 2: "right kidney"}, volume.datasets)
    np.testing.assert_array_equal(read(tmp_path / "own.dcm", volume), expected)


@pytest.mark.parametrize("affine", [oblique(), oblique(tilt_mm=0.9)], ids=["oblique", "tilted"])
def test_both_kinds_come_back_from_oblique_slices(tmp_path: Path, affine: np.ndarray) -> None:
    series, volume = scan(tmp_path, affine)
    expected = on_grid(blobs(), affine, volume)
    drawn = {"liver": outlines(blobs() == 1, affine), "KIDNEY r": outlines(blobs() == 2, affine)}
    write_rtstruct(tmp_path / "rt.dcm", series, drawn)
    write_segmentation(tmp_path / "own.dcm", expected, {1: "liver", 2: "right kidney"}, volume.datasets)
    for name in ("rt.dcm", "own.dcm"):
        label = read_label_file(tmp_path / name, tmp_path / "ct", volume, NAMES)
        np.testing.assert_array_equal(label.voxels[0], expected)
        np.testing.assert_array_equal(label.affine, volume.affine)
        assert label.remarks == []


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_segmentations_of_highdicom(tmp_path: Path, kind: str) -> None:
    _, volume = scan(tmp_path)
    organs = {name: (on_grid(blobs(), AXIAL, volume) == value) * 1.0 for name, value in (("Liver", 1), ("KidneyR", 2))}
    expected = sum(value * mask for value, mask in enumerate(organs.values(), start=1))
    if kind == "FRACTIONAL":
        organs["Liver"] *= 0.7
        organs["Liver"][0, 0] = 0.3
    write_seg(tmp_path / "seg.dcm", volume.datasets, organs, kind)
    np.testing.assert_array_equal(read(tmp_path / "seg.dcm", volume), expected)


def test_a_segmentation_of_a_part_of_the_series(tmp_path: Path) -> None:
    """Cropped, as 3D Slicer writes it, and with its rows in the opposite order."""
    _, volume = scan(tmp_path)
    write_segmentation(tmp_path / "seg.dcm", blobs(), {1: "liver", 2: "right kidney"}, volume.datasets)
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    frames = seg.pixel_array[:, 11:0:-1, 1:13]  # rows 11 … 1, columns 1 … 12
    seg.Rows, seg.Columns = frames.shape[1:]
    seg.PixelData = np.packbits(frames.ravel(), bitorder="little").tobytes() + b"\0"
    (orientation,) = seg.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
    row, column = np.reshape(orientation.ImageOrientationPatient, (2, 3))
    orientation.ImageOrientationPatient = [*row, *-column]
    for own in seg.PerFrameFunctionalGroupsSequence:
        place = own.PlanePositionSequence[0]
        moved = np.array(place.ImagePositionPatient) + 11 * 0.8 * column + 0.7 * row
        place.ImagePositionPatient = [round(float(value), 6) for value in moved]
    seg.save_as(tmp_path / "seg.dcm")
    np.testing.assert_array_equal(read(tmp_path / "seg.dcm", volume), blobs())


def remarks_of(path: Path, volume: Volume, not_annotated: tuple[int, ...] = ()) -> list[str]:
    label = read_label_file(path, path.parent / "ct", volume, NAMES, not_annotated)
    return [remark.removeprefix(f"{path}: ") for remark in label.remarks]


def test_contours_of_type_xor_leave_out_what_they_share(tmp_path: Path) -> None:
    series, volume = scan(tmp_path)
    squares = [
        to_mm(np.array([[low, low, 3], [high, low, 3], [high, high, 3], [low, high, 3]]), AXIAL)
        for low, high in ((0.5, 5.5), (2.5, 8.5))  # 5 by 5 and 6 by 6 voxels, of which they share 3 by 3
    ]
    for kind, voxels in (("CLOSED_PLANAR", 25 + 36 - 9), ("CLOSEDPLANAR_XOR", 25 + 36 - 2 * 9)):
        write_rtstruct(tmp_path / "rt.dcm", series, {"liver": [(kind, square) for square in squares]})
        assert np.count_nonzero(read(tmp_path / "rt.dcm", volume) == 1) == voxels


def test_what_is_remarkable_is_told(tmp_path: Path) -> None:
    series, volume = scan(tmp_path)
    liver = outlines(blobs() == 1, AXIAL)
    point = ("POINT", to_mm(np.array([[3.0, 3, 3]]), AXIAL))
    line = ("OPEN_PLANAR", to_mm(np.array([[3.0, 3, 3], [5, 5, 3], [3, 5, 3]]), AXIAL))
    path = tmp_path / "rt.dcm"
    write_rtstruct(path, series, {"liver": [*liver, point, line], "PTV": liver, "marker": [point]})
    assert remarks_of(path, volume) == [
        'has no right kidney, which is taken to be absent. Name it under "not_annotated" if nobody drew it, or give '
        'its name under "also_called": the file has PTV and marker.',
        "liver has contours that enclose nothing, and are left out (OPEN_PLANAR, POINT).",
    ]
    assert len(remarks_of(path, volume, not_annotated=(2,))) == 1
    np.testing.assert_array_equal(read(path, volume), blobs() == 1)

    write_rtstruct(path, series, {"liver": liver, "kidney r": outlines(blobs() > 0, AXIAL)})
    assert remarks_of(path, volume) == ["liver and right kidney overlap; right kidney gets the voxels."]
    assert set(np.unique(read(path, volume))) == {0, 2}

    below, above = (outlines(blobs() == 1, AXIAL, slices) for slices in ((1, 2), (3, 4)))
    write_rtstruct(path, series, {"Liver": below, "LIVER": above, "kidney r": [], "right_kidney": [point]})
    assert remarks_of(path, volume, (2,)) == ["Liver and LIVER make up liver together."]
    np.testing.assert_array_equal(read(path, volume), blobs() == 1)


def fault(path: Path, volume: Volume) -> str:
    """Why a label can't be read, in one line that names it."""
    with pytest.raises(InputError) as caught:
        read(path, volume)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_segmentation_of_thicker_slices_is_none_of_this_scan(tmp_path: Path) -> None:
    """Made on slices of 7.5 mm, of which every one lies on a slice of the scan's 2.5 mm."""
    _, volume = scan(tmp_path)
    thick = write_series(tmp_path / "thick", phantom((14, 12, 3)), AXIAL @ np.diag([1.0, 1, 3, 1]))
    for one in thick:
        one.FrameOfReferenceUID = volume.datasets[0].FrameOfReferenceUID
    write_seg(tmp_path / "seg.dcm", thick, {"liver": np.ones((14, 12, 3), bool)}, "BINARY")
    assert re.search(r"has other pixels or slices than its scan \(of [\d.]+ mm\)", fault(tmp_path / "seg.dcm", volume))


def test_names_with_a_backslash(tmp_path: Path) -> None:
    series, volume = scan(tmp_path)
    write_rtstruct(tmp_path / "rt.dcm", series, {"PTV\\60": outlines(blobs() == 1, AXIAL)})
    mask = read_label(tmp_path / "rt.dcm", tmp_path / "ct", volume, 2, structures=((), ("PTV\\60",)))
    np.testing.assert_array_equal(mask, blobs() == 1)


def test_labels_of_other_scans(tmp_path: Path) -> None:
    _, volume = scan(tmp_path)
    other, _ = scan(tmp_path / "other")
    drawn = {"liver": outlines(blobs() == 1, AXIAL)}
    write_rtstruct(tmp_path / "rt.dcm", other, drawn)
    assert "was drawn on another series than" in fault(tmp_path / "rt.dcm", volume)
    other[0].FrameOfReferenceUID = volume.datasets[0].FrameOfReferenceUID  # another phase of one examination
    write_rtstruct(tmp_path / "rt.dcm", other, drawn)
    np.testing.assert_array_equal(read(tmp_path / "rt.dcm", volume), blobs() == 1)
    seg_of, _ = scan(tmp_path / "coarse", AXIAL @ np.diag([2.0, 2, 1, 1]))
    for one in seg_of:
        one.FrameOfReferenceUID = volume.datasets[0].FrameOfReferenceUID
    write_seg(tmp_path / "seg.dcm", seg_of, {"liver": blobs() == 1}, "BINARY")
    assert "has other pixels or slices than its scan (seg.dcm, frame 1)" in fault(tmp_path / "seg.dcm", volume)


def test_a_scan_in_another_format_has_no_identifiers(tmp_path: Path) -> None:
    series, volume = scan(tmp_path)
    write_rtstruct(tmp_path / "rt.dcm", series, {"liver": outlines(blobs() == 1, AXIAL)})
    flipped = Volume(volume.voxels.transpose(0, 3, 2, 1), volume.affine[:, [2, 1, 0, 3]], volume.shape[::-1])
    np.testing.assert_array_equal(read(tmp_path / "rt.dcm", flipped), blobs().transpose(2, 1, 0) == 1)


def first_contour(rt: pydicom.Dataset) -> pydicom.Dataset:
    contour: pydicom.Dataset = rt.ROIContourSequence[0].ContourSequence[0]
    return contour


def cut_points(rt: pydicom.Dataset) -> None:
    first_contour(rt).ContourData = first_contour(rt).ContourData[:-3]


def not_threes(rt: pydicom.Dataset) -> None:
    first_contour(rt).ContourData = first_contour(rt).ContourData[:-1]


def nowhere(rt: pydicom.Dataset) -> None:
    first_contour(rt).ContourData[4] = "1e300"


def tilt(rt: pydicom.Dataset) -> None:
    first_contour(rt).ContourData[2] = "-20"


def rename(rt: pydicom.Dataset) -> None:
    rt.StructureSetROISequence[0].ROIName = "Leber"


def other_frame(rt: pydicom.Dataset) -> None:
    rt.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = "1.2.3"


def no_contours(rt: pydicom.Dataset) -> None:
    del rt.ROIContourSequence


def other_class(rt: pydicom.Dataset) -> None:
    rt.SOPClassUID = UID("1.2.840.10008.5.1.4.1.1.481.2")


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (cut_points, "liver has a contour that lacks points. Copy it again."),
        (not_threes, "liver has a contour that isn't three numbers for each point. Export it again."),
        (nowhere, "liver has points at no place of a body. Export it again."),
        (tilt, "liver has contours that lie across the slices. Export it again, with contours on the slices."),
        (rename, 'has none of the structures liver and right kidney; it has Leber. Name them in "also_called".'),
        (other_frame, "liver was drawn in another frame of reference than its scan's. Register the two."),
        (no_contours, "is cut off or has no contours. Copy or export it again."),
        (other_class, "is DICOM, but neither RTSTRUCT nor SEG, the kinds that labels are."),
    ],
)
def test_contours_that_are_not_sound(tmp_path: Path, change: Callable[[pydicom.Dataset], None], text: str) -> None:
    series, volume = scan(tmp_path)
    write_rtstruct(tmp_path / "rt.dcm", series, {"liver": outlines(blobs() == 1, AXIAL)})
    rt = pydicom.dcmread(tmp_path / "rt.dcm")
    change(rt)
    rt.save_as(tmp_path / "rt.dcm")
    assert fault(tmp_path / "rt.dcm", volume).removeprefix(f"{tmp_path / 'rt.dcm'}").lstrip(": ") == text


@pytest.mark.parametrize("keyword", ["Rows", "NumberOfFrames"])
def test_segmentations_that_claim_more_than_they_have(tmp_path: Path, keyword: str) -> None:
    _, volume = scan(tmp_path)
    write_segmentation(tmp_path / "seg.dcm", blobs(), {1: "liver", 2: "right kidney"}, volume.datasets)
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    setattr(seg, keyword, 65000)
    seg.save_as(tmp_path / "seg.dcm")
    fault(tmp_path / "seg.dcm", volume)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["rt.dcm", "seg.dcm"])
def test_a_file_that_is_cut_off_or_damaged_ends_in_one_line_if_it_can_not_be_read(tmp_path: Path, kind: str) -> None:
    series, volume = scan(tmp_path)
    path = tmp_path / kind
    if kind == "rt.dcm":
        write_rtstruct(path, series, {"liver": outlines(blobs() == 1, AXIAL), "KidneyR": outlines(blobs() == 2, AXIAL)})
    else:
        write_segmentation(path, blobs(), {1: "liver", 2: "right kidney"}, volume.datasets)
    whole = path.read_bytes()
    recognized = []
    for size in np.linspace(140, len(whole) - 40, 40).astype(int):
        path.write_bytes(whole[:size])
        fault(path, volume)
        recognized.append(is_dicom_label(path))
    assert recognized[0] is False
    assert all(recognized[len(recognized) // 2 :])  # as the header is whole
    draw = np.random.default_rng(0)
    for _ in range(60):
        spoiled = bytearray(whole)
        for place in draw.integers(132, len(whole), 5):
            spoiled[place] = draw.integers(256)
        path.write_bytes(spoiled)
        try:
            read(path, volume)
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017


def test_names_are_needed(tmp_path: Path) -> None:
    series, volume = scan(tmp_path)
    write_rtstruct(tmp_path / "rt.dcm", series, {"liver": outlines(blobs() == 1, AXIAL)})
    with pytest.raises(InputError, match=r'rt\.dcm: tells structures by their names.*Give the data list "labels"\.'):
        read_label(tmp_path / "rt.dcm", tmp_path / "ct", volume)


def test_a_label_map_with_colours(tmp_path: Path) -> None:
    _, volume = scan(tmp_path)
    organs = {name: (on_grid(blobs(), AXIAL, volume) == value) * 1.0 for name, value in (("Liver", 1), ("KidneyR", 2))}
    colours = hd.PaletteColorLUTTransformation.from_colors(["black", "red", "blue"], palette_color_lut_uid="1.2")
    write_seg(tmp_path / "seg.dcm", volume.datasets, organs, "LABELMAP", palette_color_lut_transformation=colours)
    assert pydicom.dcmread(tmp_path / "seg.dcm").PhotometricInterpretation == "PALETTE COLOR"
    expected = sum(value * mask for value, mask in enumerate(organs.values(), start=1))
    np.testing.assert_array_equal(read(tmp_path / "seg.dcm", volume), expected)


def test_coordinates_that_are_padded_with_nul(tmp_path: Path) -> None:
    series, volume = scan(tmp_path)
    write_rtstruct(tmp_path / "rt.dcm", series, {"Liver": outlines(blobs() == 1, AXIAL)})
    expected = read(tmp_path / "rt.dcm", volume)
    content = (tmp_path / "rt.dcm").read_bytes()
    padded = re.sub(rb"(\\[-0-9.]+) (?=[^ 0-9])", rb"\1\0", content)
    assert padded != content
    (tmp_path / "rt.dcm").write_bytes(padded)
    np.testing.assert_array_equal(read(tmp_path / "rt.dcm", volume), expected)

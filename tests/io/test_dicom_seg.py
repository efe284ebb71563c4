"""Segmentations: held against highdicom, SimpleITK and hand-computed places."""

from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813

from tests.io.series import (
    AXIAL,
    LPS,
    oblique,
    only_series,
    phantom,
    read_tuple,
    sitk_affine,
    write_enhanced,
    write_series,
)
from utils import __version__
from utils.io.dicom_seg import write_segmentation
from utils.io.dicom_series import Series
from utils.system.errors import InputError, WriteError

NAMES = {0: "background", 1: "spleen", 2: "right kidney", 6: "liver", 10: "portal and splenic veins", 14: "bowel loop"}


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
    _, read_affine, datasets, _ = read_tuple(Series("scan", files))
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
    _, _, datasets, _ = read_tuple(only_series(tmp_path / "scan"))
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
    _, affine, datasets, _ = read_tuple(only_series(tmp_path / "scan"))
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
    _, _, datasets, _ = read_tuple(only_series(tmp_path / "scan"))
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
    _, _, datasets, _ = read_tuple(only_series(tmp_path / "scan"))
    names = {2: "rechte Nierenhälfte 肾", 6: "x" * 80, 14: "and\\or"}
    write_segmentation(tmp_path / "mask.dcm", organs(), names, datasets)
    read = pydicom.dcmread(tmp_path / "mask.dcm")
    assert [one.SegmentLabel for one in read.SegmentSequence] == ["rechte Nierenhälfte 肾", "x" * 64, "and/or"]
    assert read.PatientName == "Müller"


def test_a_mask_without_organs_has_every_segment_and_no_voxel(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    write_series(tmp_path / "scan", phantom(), AXIAL)
    _, _, datasets, _ = read_tuple(only_series(tmp_path / "scan"))
    write_segmentation(tmp_path / "mask.dcm", np.zeros((12, 10, 7), np.uint8), NAMES, datasets)
    segmentation = hd.seg.segread(tmp_path / "mask.dcm")
    assert [one.SegmentLabel for one in segmentation.SegmentSequence] == [NAMES[value] for value in (1, 2, 6, 10, 14)]
    assert not segmentation.pixel_array.any()
    assert [str(one.message) for one in recwarn] == []


def test_an_anonymized_series_can_be_segmented(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    gone = dict.fromkeys(("PatientName", "PatientID", "StudyDate", "SliceThickness"))
    write_series(tmp_path / "scan", phantom(), AXIAL, **gone)
    recwarn.clear()
    _, affine, datasets, _ = read_tuple(only_series(tmp_path / "scan"))
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
    _, _, datasets, _ = read_tuple(only_series(tmp_path / "scan"))
    with pytest.raises(InputError, match=r"mask\.dcm: the series' headers don't allow .* Write NIfTI instead\."):
        write_segmentation(tmp_path / "mask.dcm", organs(), NAMES, datasets)
    assert not (tmp_path / "mask.dcm").exists()


def test_a_full_disk_leaves_no_part(tmp_path: Path) -> None:
    write_series(tmp_path / "scan", phantom(), AXIAL)
    _, _, datasets, _ = read_tuple(only_series(tmp_path / "scan"))
    with pytest.raises(WriteError):
        write_segmentation(tmp_path / "nowhere" / "mask.dcm", organs(), NAMES, datasets)

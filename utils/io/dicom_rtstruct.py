"""Masks as DICOM structure sets, for radiotherapy's planning systems."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage, generate_uid
from scipy.ndimage import find_objects

from utils import __version__
from utils.io.dicom_seg import MAY_BE_EMPTY, is_standard
from utils.io.dicom_series import Plane, planes_of, quiet_pydicom, stack_planes
from utils.io.outlines import outlines
from utils.io.structures import dicom_name, text_of
from utils.system.errors import InputError, first_line
from utils.system.files import atomic_write

STUDY = "1.2.840.10008.3.1.2.3.1"  # what the standard has as the class of a study
DECIMALS = 4  # of coordinates in mm, which may have 16 characters
CONTOUR_DATA = Tag(tag_for_keyword("ContourData") or 0)


@quiet_pydicom()
def write_structure_set(
    path: Path,
    mask: np.ndarray,
    labels: Mapping[int, str],
    colours: Mapping[int, Sequence[int]],
    datasets: Sequence[Dataset],
) -> None:
    """Write a mask as a DICOM RTSTRUCT of the series that it was made from.

    Each label with at least one voxel becomes an ROI with its name and colour; its ROINumber is its value in the mask.
    Contours run along the borders of voxels, in the plane of their slice, wherever the gantry's tilt has shifted it.
    A file needs an ROI, so a mask without voxels gets one for each label, without contours.

    Holes are joined to the contour around them by a channel, the standard's "keyhole" technique (PS3.3, C.8.8.6.3).
    Its other technique, contours of the type CLOSEDPLANAR_XOR, isn't known to all readers: dcmrtstruct2nii leaves such
    contours out. Nested contours of the type CLOSED_PLANAR aren't in the standard, and some readers fill them:
    plastimatch by default.

    The file has implicit types, because with explicit ones a contour can't have more than 65,534 bytes.

    Args:
        mask: (X, Y, Z), labels on the series' grid, 0 for the background.
        labels: names of all values in ``mask`` but 0.
        colours: red, green and blue from 0 to 255 of the same values.
        datasets: those of the series' volume.

    Raises:
        InputError: if contours can't refer to such a series.
        WriteError: if the file can't be written.
    """
    planes = [twins[0] for twins in stack_planes([one for each in datasets for one in planes_of(_file(each), each)])]
    assert mask.shape == (*planes[0].size[::-1], len(planes)), "the mask isn't on the series' grid"
    headers = {_file(one): one for one in datasets}
    _require_identifiers(path, datasets)
    boxes = {value: box for value, box in enumerate(find_objects(mask), start=1) if box is not None}
    try:
        whole = _header(datasets)
    except (ValueError, TypeError, AttributeError, KeyError, NotImplementedError) as error:  # of pydicom, as it reads
        raise InputError(
            f"{path}: the series' headers don't allow an RTSTRUCT ({first_line(error)}). Use the NIfTI mask."
        ) from error
    whole.StructureSetROISequence, whole.ROIContourSequence, whole.RTROIObservationsSequence = [], [], []
    for value in boxes or sorted(set(labels) - {0}):
        roi, drawn, observed = Dataset(), Dataset(), Dataset()
        roi.ROINumber = drawn.ReferencedROINumber = value
        observed.ObservationNumber = observed.ReferencedROINumber = value
        roi.ROIName = dicom_name(labels[value])
        roi.ReferencedFrameOfReferenceUID = datasets[0].FrameOfReferenceUID
        roi.ROIGenerationAlgorithm = "AUTOMATIC"
        observed.RTROIInterpretedType, observed.ROIInterpreter = "ORGAN", None
        drawn.ROIDisplayColor = [*colours[value]]
        if value in boxes:
            drawn.ContourSequence = list(_contours(mask, value, boxes[value], planes, headers))
        whole.StructureSetROISequence.append(roi)
        whole.ROIContourSequence.append(drawn)
        whole.RTROIObservationsSequence.append(observed)
    with atomic_write(path) as temporary:
        whole.save_as(temporary, enforce_file_format=True)


def _contours(
    mask: np.ndarray,
    value: int,
    box: tuple[slice, slice, slice],
    planes: Sequence[Plane],
    headers: Mapping[Path, Dataset],
) -> Iterator[Dataset]:
    """The contours of a label, slice by slice; it has no voxels outside ``box``."""
    offset = box[0].start, box[1].start
    for index in range(box[2].start, box[2].stop):
        plane = planes[index]
        for polygon in outlines(mask[box[0], box[1], index] == value):
            along = (polygon + offset) * plane.spacing[::-1]
            contour = Dataset()
            contour.ContourImageSequence = [_reference(headers[plane.file], plane.frame)]
            contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(polygon)
            contour[CONTOUR_DATA] = _coordinates(plane.position + along @ plane.directions)
            yield contour


def _coordinates(points: np.ndarray) -> RawDataElement:
    """Points (N, 3) in mm as ContourData, in bytes: pydicom would make an object of each number."""
    # plastimatch takes a last point that differs from the first in z alone for the first again, and drops it
    across = np.linalg.norm((points - np.roll(points, 1, axis=0))[:, :2], axis=1)
    rounded = np.roll(points, -int(across.argmax()), axis=0).round(DECIMALS) + 0.0  # no -0.0
    text = "\\".join(map(str, rounded.ravel().tolist()))
    data = text.encode() + b" " * (len(text) % 2)
    return RawDataElement(CONTOUR_DATA, "DS", len(data), data, 0, is_implicit_VR=True, is_little_endian=True)


def _require_identifiers(path: Path, datasets: Sequence[Dataset]) -> None:
    needed = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPClassUID", "SOPInstanceUID")
    for dataset in datasets:
        if missing := [keyword for keyword in needed if not dataset.get(keyword)]:
            raise InputError(
                f"{path}: {dataset.filename} has no {missing[0]}, which contours have to refer to. Use the NIfTI mask."
            )


def _header(datasets: Sequence[Dataset]) -> Dataset:
    """All but the structures."""
    first, now = datasets[0], datetime.now()
    whole = Dataset()
    whole.file_meta = FileMetaDataset()
    whole.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    whole.SpecificCharacterSet = "ISO_IR 192"  # UTF-8, which has every label's letters
    whole.SOPClassUID, whole.SOPInstanceUID = RTStructureSetStorage, generate_uid()
    for keyword in MAY_BE_EMPTY:
        value = first.get(keyword)
        setattr(whole, keyword, text_of(value) if value is not None and is_standard(keyword, value) else None)
    whole.StudyInstanceUID, whole.FrameOfReferenceUID = first.StudyInstanceUID, first.FrameOfReferenceUID
    whole.PositionReferenceIndicator = None
    whole.Modality, whole.SeriesInstanceUID, whole.SeriesNumber = "RTSTRUCT", generate_uid(), 1001
    whole.SeriesDescription, whole.OperatorsName, whole.InstanceNumber = "UNETR structures", None, 1
    whole.Manufacturer = whole.ManufacturerModelName = "UNETR"
    whole.SoftwareVersions = __version__
    whole.StructureSetLabel, whole.ApprovalStatus = "UNETR", "UNAPPROVED"
    whole.StructureSetDate = whole.InstanceCreationDate = now.strftime("%Y%m%d")
    whole.StructureSetTime = whole.InstanceCreationTime = now.strftime("%H%M%S")
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = first.SeriesInstanceUID
    series.ContourImageSequence = [_reference(dataset, None) for dataset in datasets]
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = STUDY, first.StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = first.FrameOfReferenceUID, [study]
    whole.ReferencedFrameOfReferenceSequence = [frame]
    return whole


def _reference(dataset: Dataset, frame: int | None) -> Dataset:
    """A reference to an image, or to a frame of it, counted from 0."""
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    if frame is not None:
        reference.ReferencedFrameNumber = frame + 1
    return reference


def _file(dataset: Dataset) -> Path:
    return Path(dataset.filename)

"""Masks as DICOM segmentations."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from pydicom import Dataset, FileDataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid
from pydicom.valuerep import DA, TM

from utils import __version__
from utils.io.dicom_series import Plane, planes_of, quiet_pydicom, stack_planes
from utils.io.structures import dicom_name
from utils.system.errors import InputError, first_line
from utils.system.files import atomic_write

# elements that the standard lets be empty, and that anonymizers remove
MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"),
)

SNOMED: dict[str, tuple[Code, Code | None]] = {
    "spleen": (codes.SCT.Spleen, None),
    "right kidney": (codes.SCT.Kidney, codes.SCT.Right),
    "left kidney": (codes.SCT.Kidney, codes.SCT.Left),
    "gallbladder": (codes.SCT.Gallbladder, None),
    "esophagus": (codes.SCT.Esophagus, None),
    "liver": (codes.SCT.Liver, None),
    "stomach": (codes.SCT.Stomach, None),
    "aorta": (codes.SCT.Aorta, None),
    "inferior vena cava": (codes.SCT.InferiorVenaCava, None),
    "portal and splenic veins": (codes.SCT.Vein, None),
    "pancreas": (codes.SCT.Pancreas, None),
    "right adrenal gland": (codes.SCT.AdrenalGland, codes.SCT.Right),
    "left adrenal gland": (codes.SCT.AdrenalGland, codes.SCT.Left),
}
# DICOM has no code for both veins together: the general code for a vein, with these two as its structures
STRUCTURES = {"portal and splenic veins": (codes.SCT.PortalVein, codes.SCT.SplenicVein)}
PRIVATE_SCHEME = "99UNETR"


@quiet_pydicom()
def write_segmentation(path: Path, mask: np.ndarray, labels: Mapping[int, str], datasets: Sequence[Dataset]) -> None:
    """Write a mask as a DICOM SEG of the series that it was made from.

    Each label with at least one voxel becomes a segment with its name as SegmentLabel. Segments are numbered 1, 2, …
    in the order of their labels' values, because DICOM requires consecutive numbers: with voxels of the labels 2 and 6
    only, 2 becomes segment 1 and 6 becomes segment 2. A segment has frames only for slices with its voxels. Since a
    file needs a segment, a mask without voxels gets one for each label, on one empty frame.

    Args:
        mask: (X, Y, Z), labels on the series' grid, 0 for the background.
        labels: names of all values in ``mask`` but 0.
        datasets: those of the series' volume.

    Raises:
        InputError: if a segmentation can't refer to such a series.
        WriteError: if the file can't be written.
    """
    stack = stack_planes([plane for one in datasets for plane in planes_of(Path(one.filename), one)])
    planes = [twins[0] for twins in stack]
    assert mask.shape == (*planes[0].size[::-1], len(planes)), "the mask isn't on the series' grid"
    values = [int(value) for value in np.unique(mask) if value]
    empty = not values
    if empty:
        values, mask, planes = sorted(set(labels) - {0}), mask[..., :1], planes[:1]
    numbers = np.zeros(max(values) + 1, np.min_scalar_type(len(values)))
    numbers[values] = np.arange(1, len(values) + 1)
    try:
        segmentation = hd.seg.Segmentation(
            source_images=_sources(datasets, planes),
            pixel_array=numbers[mask].transpose(2, 1, 0),  # slices, rows, columns
            plane_positions=[
                hd.PlanePositionSequence(hd.CoordinateSystemNames.PATIENT, plane.position.tolist()) for plane in planes
            ],
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[_segment(number, labels[value]) for number, value in enumerate(values, start=1)],
            omit_empty_frames=not empty,
            series_instance_uid=generate_uid(),
            series_number=1000,
            series_description="UNETR segmentation",
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer="UNETR",
            manufacturer_model_name="UNETR",
            software_versions=__version__,
            device_serial_number="0",
            content_label="SEGMENTATION",
            specific_character_set="ISO_IR 192",  # UTF-8, which has every label's letters
        )
    # of highdicom, for headers that break the standard, and of pydicom
    except (ValueError, TypeError, AttributeError, KeyError, NotImplementedError) as error:
        raise InputError(
            f"{path}: the series' headers don't allow a DICOM segmentation ({first_line(error)}). Write NIfTI instead."
        ) from error
    with atomic_write(path) as temporary:
        segmentation.save_as(temporary)


def _segment(number: int, name: str) -> hd.seg.SegmentDescription:
    text = dicom_name(name)
    kind, side = SNOMED.get(name, (Code(name, PRIVATE_SCHEME, text), None))
    segment = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=text,
        segmented_property_category=codes.SCT.AnatomicalStructure if name in SNOMED else codes.SCT.Tissue,
        segmented_property_type=kind,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="UNETR", family=codes.DCM.ArtificialIntelligence, version=__version__
        ),
        primary_anatomic_structures=STRUCTURES.get(name),
    )
    if side is not None:
        coded = hd.sr.CodedConcept.from_code(side)
        segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [coded]
    return segment


def _sources(datasets: Sequence[Dataset], planes: Sequence[Plane]) -> list[Dataset]:
    """The series' headers as highdicom needs them: with every patient attribute, if only empty, and one geometry.

    Values that break the standard, as some anonymizers leave them, become empty.
    """
    first = planes[0]
    distance = first.thickness
    if len(planes) > 1:
        distance = round(float((planes[-1].position - first.position) @ first.normal) / (len(planes) - 1), 6)
    measures = Dataset()
    measures.PixelSpacing = list(first.spacing)
    measures.SliceThickness = first.thickness or distance
    measures.SpacingBetweenSlices = distance
    orientation = Dataset()
    orientation.ImageOrientationPatient = list(first.directions.ravel())
    sources: list[Dataset] = []
    for dataset in datasets:
        # a new data set: copy.copy would share its elements with the series' header
        source = FileDataset(dataset.filename, dict(dataset.items()), file_meta=dataset.file_meta)
        for keyword in MAY_BE_EMPTY:
            if keyword in source and not is_standard(keyword, source[keyword].value):
                del source[keyword]
            source.setdefault(keyword, None)
        if first.frame is None:
            source.update(measures)
            source.update(orientation)
        else:
            shared = Dataset()
            shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
            source.SharedFunctionalGroupsSequence = [shared]
        sources.append(source)
    return sources


def is_standard(keyword: str, value: Any) -> bool:
    """Whether a value of ``MAY_BE_EMPTY`` keeps to the standard, as far as highdicom insists on it."""
    kinds = {"PatientBirthDate": DA, "StudyDate": DA, "StudyTime": TM}
    if keyword == "PatientSex":
        return value in (None, "", "M", "F", "O")
    try:
        kinds.get(keyword, str)(value)
    except ValueError:
        return False
    return True

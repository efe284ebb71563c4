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
from utils.io.dicom_series import _places, _Plane, _planes, _quiet
from utils.system.errors import InputError, brief
from utils.system.files import replacing

# what the standard lets be empty, and anonymizers take away
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


# DICOM's list has no code for both veins together, so the general code names them as its structures
STRUCTURES = {"portal and splenic veins": (codes.SCT.PortalVein, codes.SCT.SplenicVein)}


PRIVATE_SCHEME = "99UNETR"


@_quiet()
def write_segmentation(path: Path, mask: np.ndarray, labels: Mapping[int, str], datasets: Sequence[Dataset]) -> None:
    """Write a mask as a DICOM SEG of the series that it was made from.

    Each label with at least one voxel becomes a segment with its name as SegmentLabel. Segments are numbered 1, 2, …
    in the order of their labels' values, because DICOM wants consecutive numbers: with voxels of the labels 2 and 6
    only, 2 becomes segment 1 and 6 becomes segment 2. Slices where a segment has no voxel have no frame for it.
    A mask without any voxel can't do without segments, though: it gets one for each label, on one empty frame.

    Args:
        mask: (X, Y, Z) whole numbers on the series' voxels, 0 for the background.
        labels: value -> name of every value in ``mask``; a name for 0 is ignored.
        datasets: the headers that :func:`read_series` returned with the scan.

    Raises:
        InputError: if a segmentation can't refer to such a series.
        WriteError: if the file can't be written.
    """
    everything = [plane for one in datasets for plane in _planes(Path(one.filename), one)]
    planes = [place[0] for place in _places(everything)]
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
    # highdicom's, for headers against the standard, and pydicom's
    except (ValueError, TypeError, AttributeError, KeyError, NotImplementedError) as error:
        raise InputError(
            f"{path}: the series' headers don't allow a DICOM segmentation ({brief(error)}). Write NIfTI instead."
        ) from error
    with replacing(path) as temporary:
        segmentation.save_as(temporary)


def _segment(number: int, name: str) -> hd.seg.SegmentDescription:
    text = name.replace("\\", "/")[:64]  # DICOM's limits to a short text
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


def _sources(datasets: Sequence[Dataset], planes: Sequence[_Plane]) -> list[Dataset]:
    """The series' headers with what highdicom insists on: every patient attribute, if empty, and one geometry.

    What isn't written as the standard has it, as some programs that anonymise leave it, becomes empty.
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
        # of its own, where copy.copy would change the series' headers too
        source = FileDataset(dataset.filename, dict(dataset.items()), file_meta=dataset.file_meta)
        for keyword in MAY_BE_EMPTY:
            if keyword in source and not _is_standard(keyword, source[keyword].value):
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


def _is_standard(keyword: str, value: Any) -> bool:
    """Whether a date, time or sex is written as the standard has it, without which highdicom makes no segmentation."""
    kinds = {"PatientBirthDate": DA, "StudyDate": DA, "StudyTime": TM}
    if keyword == "PatientSex":
        return value in (None, "", "M", "F", "O")
    try:
        kinds.get(keyword, str)(value)
    except ValueError:
        return False
    return True

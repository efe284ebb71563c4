"""Synthetic RTSTRUCT and SEG files of a series, whose content is known."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import contourpy
import highdicom as hd
import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from tests.io.series import LPS

RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
Contour = tuple[str, np.ndarray]  # its type, and its points (N, 3) in mm in LPS


def blobs(shape: tuple[int, int, int] = (14, 12, 7)) -> np.ndarray:
    """Differs from each of its mirror images and transposes; value 1 has a hole, and value 2 has two parts."""
    mask = np.zeros(shape, np.int16)
    mask[1:7, 2:9, 1:5] = 1
    mask[3:5, 4:6, 2:4] = 0
    mask[9:12, 1:4, 0:3] = 2
    mask[8:13, 7:11, 4:7] = 2
    return mask


def to_mm(points: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Voxel indices (N, 3) in mm in LPS."""
    placed: np.ndarray = points @ (LPS @ affine)[:3, :3].T + (LPS @ affine)[:3, 3]
    return placed


def outlines(mask: np.ndarray, affine: np.ndarray, slices: Sequence[int] | None = None) -> list[Contour]:
    """Contours around the voxels of a mask (X, Y, Z), slice by slice, as contourpy finds them."""
    found = []
    for index in range(mask.shape[2]) if slices is None else slices:
        plane = np.pad(mask[..., index].astype(float), 1)
        for line in contourpy.contour_generator(z=plane.T).lines(0.5):
            points = np.c_[np.asarray(line)[:-1] - 1, np.full(len(line) - 1, index)]
            found.append(("CLOSED_PLANAR", to_mm(points, affine)))
    return found


def write_rtstruct(
    path: Path, series: Sequence[pydicom.Dataset], structures: Mapping[str, Sequence[Contour]], **changes: Any
) -> pydicom.Dataset:
    """Write a structure set that was drawn on a series.

    Args:
        changes: attributes of the file; None takes one away.
    """
    first = series[0]
    whole = pydicom.Dataset()
    whole.file_meta = FileMetaDataset()
    whole.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    whole.SOPClassUID, whole.SOPInstanceUID, whole.Modality = RTSTRUCT, generate_uid(), "RTSTRUCT"
    whole.PatientID, whole.SeriesInstanceUID = "phantom", generate_uid()
    named, study, frame = (pydicom.Dataset() for _ in range(3))
    named.SeriesInstanceUID = first.SeriesInstanceUID
    study.RTReferencedSeriesSequence = [named]
    frame.RTReferencedStudySequence = [study]
    frame.FrameOfReferenceUID = first.FrameOfReferenceUID
    whole.ReferencedFrameOfReferenceSequence = [frame]
    whole.StructureSetROISequence, whole.ROIContourSequence, whole.RTROIObservationsSequence = [], [], []
    for number, (name, contours) in enumerate(structures.items(), start=1):
        roi, drawn = pydicom.Dataset(), pydicom.Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, name, first.FrameOfReferenceUID
        drawn.ReferencedROINumber = number
        if contours:
            drawn.ContourSequence = []
        for kind, points in contours:
            contour = pydicom.Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = kind, len(points)
            contour.ContourData = [f"{value:.3f}" for value in points.ravel()]
            drawn.ContourSequence.append(contour)
        whole.StructureSetROISequence.append(roi)
        whole.ROIContourSequence.append(drawn)
    for keyword, value in changes.items():
        if value is None:
            delattr(whole, keyword)
        else:
            setattr(whole, keyword, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    whole.save_as(path, enforce_file_format=True)
    return whole


def write_seg(
    path: Path, series: Sequence[pydicom.Dataset], masks: Mapping[str, np.ndarray], kind: str, **options: Any
) -> None:
    """Write a SEG with highdicom.

    Args:
        series: in the order of its slices.
        masks: (X, Y, Z) by name, with numbers from 0 to 1.
        kind: BINARY, FRACTIONAL or LABELMAP.
        options: of highdicom.
    """
    segments = [
        hd.seg.SegmentDescription(number, name, codes.SCT.Tissue, codes.SCT.Organ, "MANUAL")
        for number, name in enumerate(masks, start=1)
    ]
    stacked = np.stack(list(masks.values()), axis=-1).transpose(2, 1, 0, 3)
    if kind == "LABELMAP":
        pixels = np.zeros(stacked.shape[:3], np.uint8)
        for number in range(len(masks)):
            pixels[stacked[..., number] > 0] = number + 1
    else:
        pixels = stacked.astype(np.float32 if kind == "FRACTIONAL" else np.uint8)
    for one in series:
        one.PatientBirthDate, one.PatientSex, one.AccessionNumber, one.StudyID = "", "", "", ""
        one.StudyTime, one.ReferringPhysicianName = "", ""
    hd.seg.Segmentation(
        list(series),
        pixels,
        kind,
        segments,
        generate_uid(),
        1,
        generate_uid(),
        1,
        "test",
        "test",
        "1",
        "1",
        **options,
    ).save_as(path)

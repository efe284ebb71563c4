"""Contours of a DICOM RTSTRUCT."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset
from typing_extensions import override

from utils.io.contours import fill_contours
from utils.io.geometry import FARTHEST_MM, LPS_TO_RAS
from utils.io.scan import Volume
from utils.io.structures import DicomLabel, Structure, text_of
from utils.system.errors import InputError
from utils.system.text import one_line

CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
FEW_POINTS = "fewer than three points"


class RtStruct(DicomLabel):
    """A structure set.

    Args:
        dataset: the whole file.

    Raises:
        InputError: if it isn't complete.
    """

    def __init__(self, path: Path, dataset: Dataset) -> None:
        self.path = path
        rois, drawn = dataset.get("StructureSetROISequence"), dataset.get("ROIContourSequence")
        if rois is None or drawn is None or "RTROIObservationsSequence" not in dataset:  # which follows the contours
            raise InputError(f"{path}: is cut off or has no contours. Copy or export it again.")
        self._contours: dict[int, list[Dataset]] = defaultdict(list)
        for roi in drawn:
            self._contours[int(roi.ReferencedROINumber)] += list(roi.get("ContourSequence") or ())
        self._frame_of = {int(roi.ROINumber): str(roi.get("ReferencedFrameOfReferenceUID") or "") for roi in rois}
        self.structures = [self._structure(int(roi.ROINumber), text_of(roi.get("ROIName"))) for roi in rois]
        references = list(dataset.get("ReferencedFrameOfReferenceSequence") or ())
        self.frames = {str(one.get("FrameOfReferenceUID") or "") for one in references} | {*self._frame_of.values()}
        self.series = {
            str(series.get("SeriesInstanceUID") or "")
            for one in references
            for study in one.get("RTReferencedStudySequence") or ()
            for series in study.get("RTReferencedSeriesSequence") or ()
        }

    def _structure(self, number: int, name: str) -> Structure:
        kinds = [_kind(contour) for contour in self._contours[number]]
        left_out = sorted({kind for kind in kinds if kind not in CLOSED})
        is_drawn = any(kind in CLOSED for kind in kinds)
        return Structure(number, one_line(name) or f"structure {number}", is_drawn, ", ".join(left_out))

    @override
    def mask(self, structures: Iterable[Structure], image: Volume) -> tuple[np.ndarray, list[str]]:
        mask = np.zeros(image.shape, bool, order="F")
        remarks = []
        to_index = np.linalg.inv(image.affine) @ LPS_TO_RAS
        frame = str(image.datasets[0].get("FrameOfReferenceUID") or "") if image.datasets else ""
        for one in structures:
            about = f"{self.path}: {one.name}"
            if frame and self._frame_of[one.number] not in ("", frame):
                raise InputError(f"{about} was drawn in another frame of reference than its scan's. Register the two.")
            contours = [self._points(one, contour) for contour in self._contours[one.number]]
            closed = [points @ to_index[:3, :3].T + to_index[:3, 3] for points in contours if len(points) > 2]
            if one.left_out:
                remarks.append(f"{about} has contours that enclose nothing, and are left out ({one.left_out}).")
            if not closed:
                continue
            xor = any(_kind(contour) == CLOSED[1] for contour in self._contours[one.number])
            try:
                filled, found = fill_contours(closed, image.shape, image.spacing, xor)
            except ValueError as error:
                raise InputError(f"{about} {error}. Export it again, with contours on the slices.") from error
            mask |= filled
            remarks += [f"{about} {text}." for text in found]
        return mask, remarks

    def _points(self, structure: Structure, contour: Dataset) -> np.ndarray:
        """The points of a closed contour, (N, 3) in mm in LPS; none of others."""
        if _kind(contour) not in CLOSED:
            return np.empty((0, 3))
        value: Any = contour.get_item("ContourData").value
        try:
            # not as pydicom does it, which makes an object of each number
            texts = value.rstrip(b"\0 ").split(b"\\") if isinstance(value, bytes) else value
            points = np.fromiter(map(float, texts), float).reshape(-1, 3)
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{self.path}: {structure.name} has a contour that isn't three numbers for each point. Export it again."
            ) from error
        if not (np.abs(points) <= FARTHEST_MM).all():  # also false of NaN
            raise InputError(f"{self.path}: {structure.name} has points at no place of a body. Export it again.")
        if len(points) != int(contour.get("NumberOfContourPoints") or len(points)):
            raise InputError(f"{self.path}: {structure.name} has a contour that lacks points. Copy it again.")
        return points


def _kind(contour: Dataset) -> str:
    """The geometric type of a contour, or that it has too few points to enclose anything."""
    kind = str(contour.get("ContourGeometricType") or "no type").strip().upper()
    kind = {"CLOSEDPLANAR": CLOSED[0], "CLOSED_PLANAR_XOR": CLOSED[1]}.get(kind, kind)
    data = contour.get_item("ContourData") if "ContourData" in contour else None
    if kind not in CLOSED or (data is not None and data.value is not None and _count(data.value) > 6):
        return kind
    return FEW_POINTS


def _count(value: Any) -> int:
    return value.count(b"\\") + 1 if isinstance(value, bytes) else len(np.atleast_1d(value))

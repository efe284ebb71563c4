"""Segments of a DICOM SEG."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.uid import RLELossless
from typing_extensions import override

from utils.io.dicom_series import DECODED_HERE, GREYS, Plane, planes_of, stored_pixels
from utils.io.geometry import LPS_TO_RAS
from utils.io.scan import Volume
from utils.io.structures import DicomLabel, Structure, text_of
from utils.system.errors import InputError
from utils.system.text import one_line

ON_GRID = 0.2  # voxels by which a segment's grid may lie beside its scan's


class Segmentation(DicomLabel):
    """A segmentation: binary, of fractions, of which half and more counts, or a label map.

    Its segments are its structures. Each counts as drawn, also one without a voxel.

    Args:
        dataset: the whole file.

    Raises:
        InputError: if it isn't complete.
    """

    def __init__(self, path: Path, dataset: Dataset) -> None:
        self.path = path
        self._dataset = dataset
        segments = dataset.get("SegmentSequence")
        if not segments or "PixelData" not in dataset:
            raise InputError(f"{path}: is cut off or has no segments. Copy or export it again.")
        self.structures = [
            Structure(int(one.SegmentNumber), _name(one), True)
            for one in segments
            if one.get("SegmentNumber") or dataset.get("SegmentationType") != "LABELMAP"  # 0 is its background
        ]
        self.frames = {str(dataset.get("FrameOfReferenceUID") or "")}
        self.series = {str(one.get("SeriesInstanceUID") or "") for one in dataset.get("ReferencedSeriesSequence") or ()}

    @override
    def mask(self, structures: Iterable[Structure], image: Volume) -> tuple[np.ndarray, list[str]]:
        wanted = {one.number: one.name for one in structures}
        mask = np.zeros(image.shape, bool, order="F")
        to_index = np.linalg.inv(image.affine) @ LPS_TO_RAS
        self._require_slices(to_index)
        outside = False
        for number, plane in enumerate(self._planes):
            if self._segments is None:
                pixels = np.isin(self._pixels(number), list(wanted))
            elif self._segments[number] in wanted:
                pixels = 2 * self._pixels(number) >= self._whole
            else:
                continue
            rows, columns = np.nonzero(pixels)
            place = self._grid(plane, to_index)
            voxels = np.stack([columns, rows, np.ones_like(rows)], axis=1) @ place
            inside = ((voxels >= 0) & (voxels < image.shape)).all(1)
            outside |= not bool(inside.all())
            mask[tuple(voxels[inside].T)] = True
        if not outside:
            return mask, []
        return mask, [f"{self.path}: {', '.join(wanted.values())} has voxels outside the scan, which are left out."]

    @cached_property
    def _planes(self) -> list[Plane]:
        # the pixels of a label map may have colours, by a palette; what is stored is the segment all the same
        return planes_of(self.path, self._dataset, (*GREYS, "PALETTE COLOR"))

    @cached_property
    def _whole(self) -> int:
        """The value of a voxel that is wholly of a segment."""
        fractions = self._dataset.get("SegmentationType") == "FRACTIONAL"
        return int(self._dataset.MaximumFractionalValue) if fractions else 1

    @cached_property
    def _segments(self) -> list[int] | None:
        """The segment of each frame; None for a label map, whose frames have all."""
        if self._dataset.get("SegmentationType") == "LABELMAP":
            return None
        shared = (self._dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
        return [
            int((own.get("SegmentIdentificationSequence") or shared.SegmentIdentificationSequence)[0]
                .ReferencedSegmentNumber)
            for own in self._dataset.PerFrameFunctionalGroupsSequence
        ]  # fmt: skip

    def _pixels(self, frame: int) -> np.ndarray:
        """The stored values of a frame, (rows, columns), in numbers that hold twice as much."""
        if self._dataset.BitsAllocated != 1 or not self._is_plain:
            return self._decoded[frame].astype(np.int32)
        rows, columns = int(self._dataset.Rows), int(self._dataset.Columns)
        start, size = frame * rows * columns, rows * columns
        packed = np.frombuffer(self._dataset.PixelData, np.uint8)
        if (len(self._planes) * size + 7) // 8 > len(packed):
            raise InputError(f"{self.path}: is cut off: the last of its frames aren't there. Copy it again.")
        bits = np.unpackbits(packed[start // 8 : (start + size + 7) // 8], bitorder="little")
        return bits[start % 8 : start % 8 + size].reshape(rows, columns)

    @property
    def _is_plain(self) -> bool:
        return self._dataset.file_meta.TransferSyntaxUID in DECODED_HERE - {RLELossless}

    @cached_property
    def _decoded(self) -> np.ndarray:
        return stored_pixels(self.path, self._dataset, len(self._planes))

    def _require_slices(self, to_index: np.ndarray) -> None:
        """Check that the slices are no thicker than the scan's, which would leave empty ones between them.

        Frames without a voxel may be left out, so that their distance alone doesn't tell.

        Raises:
            InputError: if they are.
        """
        groups = (self._dataset.get(f"{kind}FunctionalGroupsSequence") for kind in ("PerFrame", "Shared"))
        measures = [item for group in groups if group for item in group[0].get("PixelMeasuresSequence") or ()]
        stated = next((float(item.SpacingBetweenSlices) for item in measures if item.get("SpacingBetweenSlices")), None)
        if stated is None:
            return
        rotation, directions = to_index[:3, :3], self._planes[0].directions
        normal, across = np.cross(*directions), int(np.abs(directions @ rotation.T).sum(0).argmin())
        per_slice = abs((rotation @ normal)[across])
        heights = np.unique(np.rint([plane.position @ normal * per_slice for plane in self._planes]))
        if abs(stated * per_slice) > 1 + ON_GRID and (len(heights) < 2 or np.diff(heights).min() > 1):
            raise InputError(
                f"{self.path}: has other pixels or slices than its scan (of {abs(stated):g} mm). Export it on the "
                "scan's own."
            )

    def _grid(self, plane: Plane, to_index: np.ndarray) -> np.ndarray:
        """(3, 3) whole numbers, from (column, row, 1) of a frame to a voxel of the scan.

        Raises:
            InputError: if the frame's pixels aren't voxels of the scan.
        """
        steps = (plane.directions * plane.spacing[::-1, None]) @ to_index[:3, :3].T
        start = to_index[:3, :3] @ plane.position + to_index[:3, 3]
        place = np.rint(np.vstack([steps, start]))
        away = np.abs(np.vstack([steps, start]) - place) * [[plane.size[1]], [plane.size[0]], [1]]
        if away.max() > ON_GRID or sorted(np.abs(place[:2]).sum(1)) != [1, 1] or (place[0] == place[1]).all():
            raise InputError(
                f"{self.path}: has other pixels or slices than its scan ({plane.short}). Export it on the scan's own."
            )
        return place.astype(np.int64)


def _name(segment: Dataset) -> str:
    return one_line(text_of(segment.get("SegmentLabel"))) or f"segment {int(segment.SegmentNumber)}"

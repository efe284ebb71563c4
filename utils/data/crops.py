"""Random crops of a scan, cut before anything else touches its voxels.

MONAI's transforms for this copy the whole scan, search it for voxels to centre on, and keep a history of each change;
docs/performance.md compares.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from utils.data.mirroring import PUBLISHED, Mirroring
from utils.data.strong_augmentation import Change, change_intensities, resample

KINDS = ("organ", "background")  # of voxels to centre on


@dataclass(frozen=True)
class Augmentation:
    """Probabilities of the random changes to a crop; the flip is drawn for each axis by itself.

    Attributes:
        mirroring: the axes that may be flipped, and the labels that swap in a flip along x.
        strong: whether crops are changed as :mod:`utils.data.strong_augmentation` does as well.
    """

    flip: float = 0.2
    rotate90: float = 0.2
    scale_intensity: float = 0.1
    shift_intensity: float = 0.1
    mirroring: Mirroring = PUBLISHED
    strong: bool = False


@dataclass(frozen=True)
class RandomCrops:
    """Crops of a scan, centred with equal chance on an organ and on background, and changed at random.

    A crop that would reach out of the scan is moved inside. It is flipped along x, y and z, as far as the labels allow,
    rotated by 90, 180 or 270 degrees in the x-y plane (where ``roi`` is square there, since its shape would change, and
    no label has a side), multiplied by 0.9 … 1.1, and shifted by -0.1 … 0.1, each with its probability. Strong
    augmentation rotates and scales before all that, and changes intensities after it.

    Attributes:
        roi: size of a crop in voxels.
        count: crops of a scan.
        tissue_above: background to centre on is above this in some channel; None takes all background.
        spacing: size of a voxel in mm, of which strong augmentation makes rotations.
        padding: what it fills an image with where a rotated crop reaches out of the scan.
    """

    roi: tuple[int, int, int]
    count: int
    augmentation: Augmentation
    tissue_above: float | None
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    padding: float = 0.0

    def prepare(self, scan: Mapping[str, Any]) -> dict[str, Any]:
        """The scan with what finds voxels to centre on, the same at each use.

        That is how many organ voxels lie in all rows along z up to each, (D · H,) in int32, and the same of background:
        the n-th voxel is found by them and one row of the scan, in a fiftieth of the memory of all their indices.

        Args:
            scan: ``image`` (C, D, H, W) and ``label`` (1, D, H, W), none smaller than ``roi``.

        Raises:
            ValueError: if there is no voxel to centre on.
        """
        image, label = scan["image"].numpy(), scan["label"].numpy()
        counts = {}
        for kind in KINDS:
            in_row = np.count_nonzero(self._mask(kind, image, label), axis=-1)  # (D, H, W) -> (D, H)
            counts[f"{kind}_counts"] = torch.from_numpy(np.cumsum(in_row, dtype=np.int32))  # (D, H) -> (D · H,)
        if not any(count[-1] for count in counts.values()):
            raise ValueError("no voxel is labelled, and none is above --a_min")
        return {**scan, **counts}

    def __call__(self, scan: Mapping[str, Any], random: np.random.Generator) -> dict[str, Any]:
        """Crops of a scan that :meth:`prepare` returned.

        Returns:
            ``image`` (count, C, *roi), ``label`` (count, 1, *roi), and the scan's ``name`` for each crop.
        """
        chances = self.augmentation
        turnable = self.roi[0] == self.roi[1] and chances.mirroring.allows_turns
        swapped = chances.mirroring.classes
        kept = scan["label"].dtype
        # a label in one byte may swap with one that needs two
        types = {"image": scan["image"].dtype, "label": torch.int16 if len(swapped or ()) > 256 else kept}
        crops = {key: torch.empty((self.count, len(scan[key]), *self.roi), dtype=one) for key, one in types.items()}
        centres = self._centres(scan, random)
        # drawn whether they count or not, so that one probability has no say in the other changes
        drawn = random.random((self.count, 9)).tolist()
        changes = [Change.draw(self.spacing, random) if chances.strong else None for _ in range(self.count)]
        for number, (centre, draws, change) in enumerate(zip(centres, drawn, changes, strict=True)):
            *flipped, turned, turn, scaled, scale, shifted, shift = draws
            axes = [axis for axis in chances.mirroring.axes if flipped[axis] < chances.flip]
            flips = [axis + 1 for axis in axes]
            turns = 1 + int(3 * turn) if turned < chances.rotate90 and turnable else 0
            if change is None or change.matrix is None:
                box = self._box(centre, scan["label"].shape[1:])
                cut = {key: scan[key][:, *box] for key in crops}
            else:
                cut = resample(scan, centre, change.matrix, self.roi, self.padding)
            for key, batch in crops.items():
                crop = cut[key]
                # torch copies here even where nothing is flipped or turned
                crop = crop.flip(flips) if flips else crop
                crop = crop.rot90(turns, (1, 2)) if turns else crop
                batch[number] = crop
            if 0 in axes and swapped is not None:
                label = crops["label"][number].numpy()
                label[:] = np.array(swapped, label.dtype)[label]
            image = crops["image"][number]
            if scaled < chances.scale_intensity:
                image *= 0.9 + 0.2 * scale
            if shifted < chances.shift_intensity:
                image += 0.2 * shift - 0.1
            if change is not None:
                image[:] = change_intensities(image, change.seed)
        return {**crops, "name": [scan["name"]] * self.count}

    def _centres(self, scan: Mapping[str, Any], random: np.random.Generator) -> list[tuple[int, int, int]]:
        """The voxel that each crop is cut around; those of a kind are equally likely."""
        image, label = scan["image"].numpy(), scan["label"].numpy()
        counts = {kind: scan[f"{kind}_counts"].numpy() for kind in KINDS}
        there = [kind for kind in KINDS if counts[kind][-1] > 0]
        if len(there) < len(KINDS):
            warnings.warn(f"{scan['name']}: all crops are centred on {there[0]}", stacklevel=1)
        centres = []
        for _ in range(self.count):
            kind = there[random.integers(len(there))]
            chosen = random.integers(counts[kind][-1], dtype=np.int32)
            row = int(np.searchsorted(counts[kind], chosen, side="right"))
            x, y = divmod(row, label.shape[2])
            mask = self._mask(kind, image[:, x, y], label[:, x, y])  # (W,)
            z = int(np.flatnonzero(mask)[chosen - counts[kind][row]])  # from the row's end, where the count is known
            centres.append((x, y, z))
        return centres

    def _box(self, centre: Sequence[int], shape: Sequence[int]) -> tuple[slice, ...]:
        """Where a crop around a voxel lies in a scan of some shape."""
        starts = [
            min(max(place - size // 2, 0), length - size)
            for place, size, length in zip(centre, self.roi, shape, strict=True)
        ]
        return tuple(slice(start, start + size) for start, size in zip(starts, self.roi, strict=True))

    def _mask(self, kind: str, image: np.ndarray, label: np.ndarray) -> np.ndarray:
        """Where voxels of a kind are, (C, …) and (1, …) -> (…)."""
        if kind == "organ":
            return label[0] != 0
        background = label[0] == 0
        return background if self.tissue_above is None else background & (image > self.tissue_above).any(0)

"""Random crops of a scan, cut first and augmented afterwards.

MONAI's transforms copy the whole scan, search it for voxels to centre on, and keep a history of each change;
docs/performance.md compares.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from utils.data.mirroring import PUBLISHED, Mirroring
from utils.data.strong_augmentation import StrongParameters, augment_intensities, resample
from utils.io.scan import IGNORED

CENTRES = ("foreground", "background")  # kinds of voxels that crops are centred on


@dataclass(frozen=True)
class Augmentation:
    """Probabilities of the random changes to a crop. Each axis is flipped independently.

    Attributes:
        mirroring: the axes that may be flipped, and the labels that swap in a flip along x.
        strong: whether :mod:`utils.data.strong_augmentation` is applied too.
    """

    flip: float = 0.2
    rotate90: float = 0.2
    scale_intensity: float = 0.1
    shift_intensity: float = 0.1
    mirroring: Mirroring = PUBLISHED
    strong: bool = False


@dataclass(frozen=True)
class RandomCrops:
    """Crops of a scan, centred with equal chance on the foreground and on the background, and augmented.

    A crop that would reach out of the scan is moved inside. Each with its probability, it is

    - flipped along x, y and z, as far as the labels allow
    - rotated by 90, 180 or 270 degrees in the x-y plane, if ``roi`` is square there and no label has a side
    - multiplied by 0.9 … 1.1, and shifted by -0.1 … 0.1.

    Strong augmentation rotates and scales before that, and changes intensities after it.

    Attributes:
        roi: size of a crop in voxels.
        count: crops of a scan.
        tissue_above: background to centre on is above this in some channel; None takes all background.
        spacing: voxel size in mm, for the rotations of strong augmentation.
        padding: value of the image where a rotated crop reaches out of the scan.
    """

    roi: tuple[int, int, int]
    count: int
    augmentation: Augmentation
    tissue_above: float | None
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    padding: float = 0.0

    def prepare(self, scan: Mapping[str, Any]) -> dict[str, Any]:
        """The scan with an index of the voxels to centre on, made once.

        The index says how many foreground voxels lie in all rows along z up to each, (D · H,) in int32, and the same of
        background. With it and one row of the scan the n-th voxel is found, in a fiftieth of the memory that a list of
        all voxels takes.

        Args:
            scan: ``image`` (C, D, H, W) and ``label`` (1, D, H, W), none smaller than ``roi``.

        Raises:
            ValueError: if there is no voxel to centre on.
        """
        image, label = scan["image"].numpy(), scan["label"].numpy()
        counts = {}
        for kind in CENTRES:
            in_row = np.count_nonzero(self._mask(kind, image, label), axis=-1)  # (D, H, W) -> (D, H)
            counts[f"{kind}_counts"] = torch.from_numpy(np.cumsum(in_row, dtype=np.int32))  # (D, H) -> (D · H,)
        if not any(count[-1] for count in counts.values()):
            raise ValueError("it has no voxel to centre crops on, neither labelled nor tissue that somebody judged")
        return {**scan, **counts}

    def __call__(self, scan: Mapping[str, Any], random: np.random.Generator) -> dict[str, Any]:
        """Crops of a scan that :meth:`prepare` returned.

        Returns:
            ``image`` (count, C, *roi), ``label`` (count, 1, *roi), and for each crop the scan's ``name`` and the
            classes that are ``not_annotated`` in it, which a flip may swap.
        """
        chances = self.augmentation
        can_rotate = self.roi[0] == self.roi[1] and chances.mirroring.allows_rotate90
        swapped = chances.mirroring.classes
        # a label in one byte may swap with one that needs two
        label_type = torch.int16 if len(swapped or ()) > 256 else scan["label"].dtype
        types = {"image": scan["image"].dtype, "label": label_type}
        crops = {key: torch.empty((self.count, len(scan[key]), *self.roi), dtype=one) for key, one in types.items()}
        centres = self._centres(scan, random)
        # draw all numbers, used or not, so that one probability doesn't alter the other changes
        drawn = random.random((self.count, 9)).tolist()
        not_annotated = [tuple(scan.get("not_annotated", ()))] * self.count
        strong = [StrongParameters.draw(self.spacing, random) if chances.strong else None for _ in range(self.count)]
        for number, (centre, draws, parameters) in enumerate(zip(centres, drawn, strong, strict=True)):
            *flipped, rotated, turn, scaled, scale, shifted, shift = draws
            axes = [axis for axis in chances.mirroring.axes if flipped[axis] < chances.flip]
            flips = [axis + 1 for axis in axes]
            turns = 1 + int(3 * turn) if rotated < chances.rotate90 and can_rotate else 0
            if parameters is None or parameters.matrix is None:
                box = self._box(centre, scan["label"].shape[1:])
                cut = {key: scan[key][:, *box] for key in crops}
            else:
                cut = resample(scan, centre, parameters.matrix, self.roi, self.padding)
            for key, batch in crops.items():
                crop = cut[key]
                # the conditions save a copy: torch copies even if there is no axis to flip
                crop = crop.flip(flips) if flips else crop
                crop = crop.rot90(turns, (1, 2)) if turns else crop
                batch[number] = crop
            if 0 in axes and swapped is not None:
                label = crops["label"][number].numpy()
                label[:] = np.array([*swapped, IGNORED]).astype(label.dtype)[label]  # IGNORED, -1, is the last one
                not_annotated[number] = tuple(sorted(swapped[one] for one in not_annotated[number]))
            image = crops["image"][number]
            if scaled < chances.scale_intensity:
                image *= 0.9 + 0.2 * scale
            if shifted < chances.shift_intensity:
                image += 0.2 * shift - 0.1
            if parameters is not None:
                image[:] = augment_intensities(image, parameters.seed)
        return {**crops, "name": [scan["name"]] * self.count, "not_annotated": not_annotated}

    def _centres(self, scan: Mapping[str, Any], random: np.random.Generator) -> list[tuple[int, int, int]]:
        """The voxel that each crop is cut around; all of one kind are equally likely."""
        image, label = scan["image"].numpy(), scan["label"].numpy()
        counts = {kind: scan[f"{kind}_counts"].numpy() for kind in CENTRES}
        present = [kind for kind in CENTRES if counts[kind][-1] > 0]
        if len(present) < len(CENTRES):
            warnings.warn(f"{scan['name']}: all crops are centred on {present[0]}", stacklevel=1)
        centres = []
        for _ in range(self.count):
            kind = present[random.integers(len(present))]
            chosen = random.integers(counts[kind][-1], dtype=np.int32)
            row = int(np.searchsorted(counts[kind], chosen, side="right"))
            x, y = divmod(row, label.shape[2])
            mask = self._mask(kind, image[:, x, y], label[:, x, y])  # (W,)
            z = int(np.flatnonzero(mask)[chosen - counts[kind][row]])  # negative: counted from the row's end
            centres.append((x, y, z))
        return centres

    def _box(self, centre: Sequence[int], shape: Sequence[int]) -> tuple[slice, ...]:
        """The slices that cut a crop around a voxel out of a scan of some shape."""
        starts = [
            min(max(place - size // 2, 0), length - size)
            for place, size, length in zip(centre, self.roi, shape, strict=True)
        ]
        return tuple(slice(start, start + size) for start, size in zip(starts, self.roi, strict=True))

    def _mask(self, kind: str, image: np.ndarray, label: np.ndarray) -> np.ndarray:
        """Which voxels are of a kind: (C, …) and (1, …) -> (…)."""
        if kind == "foreground":
            return label[0] > 0
        background = label[0] == 0
        return background if self.tissue_above is None else background & (image > self.tissue_above).any(0)

"""The one Dice of this repository, distances between surfaces, and what is averaged over scans and organs."""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from torch import Tensor

# MONAI 1.6 warns of an argument that its own surface Dice still uses
warnings.filterwarnings("ignore", category=FutureWarning, message=".*get_mask_edges.*|.*always_return_as_numpy.*")


def dice_per_label(prediction: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """Dice (1945) of each label 1 … num_classes - 1; the background has none.

    Args:
        prediction, label: label maps of one shape, integers 0 … num_classes - 1.

    Returns:
        (num_classes - 1,) in float64: 2 |P ∩ L| / (|P| + |L|). 0 where a label is in one map alone, NaN where it
        is in neither.
    """
    assert prediction.shape == label.shape, f"{prediction.shape} and {label.shape} differ"
    pairs = label.long().flatten() * num_classes + prediction.long().flatten()
    counts = torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes).double()
    both = counts.diagonal()
    dice = 2 * both / (counts.sum(0) + counts.sum(1))  # 0 / 0 is NaN: in neither map
    return dice[1:].cpu()


def surface_scores(
    prediction: np.ndarray, label: np.ndarray, spacing: tuple[float, float, float], tolerance: float
) -> tuple[float | None, float | None]:
    """How far the surfaces of two masks lie apart.

    Args:
        prediction, label: (X, Y, Z), boolean.
        spacing: voxel size in mm.
        tolerance: in mm, what the normalised surface Dice forgives.

    Returns:
        The 95 % Hausdorff distance in mm (the larger of both directions' 95th percentiles), None where a mask is empty;
        and the normalised surface Dice (Nikolov et al. 2018), 0 where one mask is empty, None where both are.
    """
    if not prediction.any() and not label.any():
        return None, None
    if not prediction.any() or not label.any():
        return None, 0.0
    places = np.nonzero(prediction | label)
    box = tuple(slice(axis.min(), axis.max() + 1) for axis in places)
    # a rim of one voxel, since a surface at the box's face is one as well
    ours, theirs = (torch.from_numpy(np.pad(mask[box], 1))[None, None] for mask in (prediction, label))  # (1, 1, …)
    distance = compute_hausdorff_distance(ours, theirs, include_background=True, percentile=95, spacing=spacing)
    near = compute_surface_dice(ours, theirs, [tolerance], include_background=True, spacing=spacing, use_subvoxels=True)
    return float(distance), float(near)


@dataclass(frozen=True)
class Scores:
    """Dice of every scan and label.

    Attributes:
        scans: names of the scans.
        organs: names of the labels, the background excluded.
        dice: (scans, organs); NaN where an organ is in neither label nor prediction.
    """

    scans: tuple[str, ...]
    organs: tuple[str, ...]
    dice: np.ndarray

    @property
    def scan_means(self) -> np.ndarray:
        """(scans,): the mean over the organs of each scan, those in neither map left out."""
        return _mean(self.dice, axis=1)

    @property
    def organ_means(self) -> np.ndarray:
        """(organs,): the mean of each organ over the scans that it is scored in."""
        return _mean(self.dice, axis=0)

    @property
    def mean(self) -> float:
        """The mean of ``scan_means``: what chooses the best model."""
        return float(_mean(self.scan_means, axis=0))


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean of what isn't NaN; NaN where there is nothing."""
    counted = np.isfinite(values)
    total = np.where(counted, values, 0.0).sum(axis)
    count = counted.sum(axis)
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)

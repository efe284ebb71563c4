"""The one Dice of this repository, distances between surfaces, and what is averaged over scans and organs."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
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


def deviation(values: np.ndarray) -> np.ndarray:
    """(…): the standard deviation of a sample (n - 1) down the first axis, NaN left out; NaN of fewer than two."""
    mean = _mean(values, axis=0)
    squares = np.where(np.isfinite(values), (values - mean) ** 2, 0.0).sum(0)
    degrees = np.isfinite(values).sum(0) - 1
    return np.sqrt(np.divide(squares, degrees, out=np.full(np.shape(squares), np.nan), where=degrees > 0))


@dataclass(frozen=True)
class FoldScores:
    """A score of the networks of several folds, each on the scans that it didn't see.

    Attributes:
        folds: by number.
    """

    folds: Mapping[int, Scores]

    @property
    def organs(self) -> tuple[str, ...]:
        """Names of the labels."""
        return next(iter(self.folds.values())).organs

    @property
    def by_fold(self) -> np.ndarray:
        """(folds, 1 + organs): each fold's mean over its scans, that of their means first."""
        return np.array([[scores.mean, *scores.organ_means] for scores in self.folds.values()])

    @property
    def by_scan(self) -> np.ndarray:
        """(scans, 1 + organs): each scan's mean and its organs, fold after fold."""
        return np.concatenate([np.column_stack([scores.scan_means, scores.dice]) for scores in self.folds.values()])

    @property
    def summary(self) -> dict[str, np.ndarray]:
        """Means and deviations, (1 + organs,) each, by what they are of."""
        rows: dict[str, np.ndarray] = {}
        for name, values in (("folds", self.by_fold), ("scans", self.by_scan)):
            rows |= {f"mean over {name}": _mean(values, axis=0), f"sd over {name}": deviation(values)}
        return rows

    @property
    def counted(self) -> np.ndarray:
        """(1 + organs,): in how many scans there is a score."""
        return np.isfinite(self.by_scan).sum(0)


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean of what isn't NaN; NaN where there is nothing."""
    counted = np.isfinite(values)
    total = np.where(counted, values, 0.0).sum(axis)
    count = counted.sum(axis)
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)

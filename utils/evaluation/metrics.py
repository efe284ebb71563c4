"""Dice, and its means and deviations over scans, organs and folds."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.data.overlap import dice_of, joint_counts
from utils.io.scan import IGNORED

FEW_CLASSES = 1000  # whose pairs make a table of some megabytes
TOLERANCE_MM = 2.0  # of the normalised surface Dice, unless somebody asks for another


def dice_per_label(prediction: Tensor, label: Tensor, num_classes: int, not_annotated: Sequence[int] = ()) -> Tensor:
    """Dice of each label 1 … num_classes - 1, as :func:`dice_per_structure` computes it: (num_classes - 1,)."""
    single = [(value,) for value in range(1, num_classes)]
    return dice_per_structure(prediction, label, single, num_classes, not_annotated)


def dice_per_structure(
    prediction: Tensor,
    label: Tensor,
    structures: Iterable[Sequence[int]],
    num_classes: int,
    not_annotated: Sequence[int] = (),
) -> Tensor:
    """Dice of each structure (Dice 1945): 2 |P ∩ L| / (|P| + |L|).

    Args:
        prediction, label: label maps of the same shape, with integers 0 … num_classes - 1. The label may also have
            :data:`IGNORED`: these voxels are left out.
        structures: the labels of each: one, or several of a region.
        not_annotated: labels that nobody drew.

    Returns:
        (structures,) in float64: 0 where one is in one map only, NaN where it is in neither, or not all of it was
        drawn.
    """
    assert prediction.shape == label.shape, f"{prediction.shape} and {label.shape} differ"
    # in a byte, torch would take IGNORED for 255
    if label.dtype != torch.uint8 and not (judged := label != IGNORED).all():
        prediction, label = prediction[judged], label[judged]
    if num_classes <= FEW_CLASSES:
        return dice_of_counts(joint_counts(label, prediction, num_classes), structures, not_annotated)
    # FreeSurfer's values go to 14175, and a table of all pairs of them would take gigabytes
    occurs = torch.bincount(torch.cat([label.flatten(), prediction.flatten()]), minlength=num_classes) > 0
    numbers = occurs.cumsum(0) - 1
    counts = joint_counts(numbers[label.long()], numbers[prediction.long()], int(occurs.sum()))
    number_of = {value: number for number, value in enumerate(occurs.nonzero().flatten().tolist())}
    occurring = [
        [number_of[value] for value in labels if value in number_of] if is_annotated(labels, not_annotated) else []
        for labels in structures
    ]
    return dice_of_counts(counts, occurring, ())


def dice_of_counts(counts: Tensor, structures: Iterable[Sequence[int]], not_annotated: Sequence[int]) -> Tensor:
    """What :func:`dice_per_structure` returns, from the :func:`joint_counts` of label and prediction."""
    dice = [dice_of(counts, labels) if is_annotated(labels, not_annotated) else math.nan for labels in structures]
    return torch.tensor(dice, dtype=torch.float64)


def is_annotated(labels: Iterable[int], not_annotated: Sequence[int]) -> bool:
    """Whether all labels of a structure were drawn."""
    return not set(labels) & set(not_annotated)


def nan_mean(values: Any, axis: int = 0) -> np.ndarray:
    """The mean of an array's finite values along an axis; NaN where there are none. None counts as NaN."""
    numbers = np.asarray(values, dtype=float)
    counted = np.isfinite(numbers)
    total = np.where(counted, numbers, 0.0).sum(axis)
    count = counted.sum(axis)
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)


def nan_to_none(value: float) -> float | None:
    """The number as JSON can hold it, which has no NaN."""
    return None if np.isnan(value) else float(value)


@dataclass(frozen=True)
class Scores:
    """Dice, or another score, of every scan and organ.

    Attributes:
        scans: names of the scans.
        organs: names of the labels without the background, and of the regions.
        dice: (scans, organs); NaN where an organ is in neither label nor prediction, or nobody drew it.
        not_annotated: the places in ``dice`` of organs that nobody drew.
    """

    scans: tuple[str, ...]
    organs: tuple[str, ...]
    dice: np.ndarray
    not_annotated: frozenset[tuple[int, int]] = frozenset()

    @property
    def scan_means(self) -> np.ndarray:
        """(scans,): each scan's mean over its organs, without NaN."""
        return nan_mean(self.dice, axis=1)

    @property
    def organ_means(self) -> np.ndarray:
        """(organs,): each organ's mean over the scans, without NaN."""
        return nan_mean(self.dice, axis=0)

    @property
    def mean(self) -> float:
        """The mean of ``scan_means``, by which training chooses the best model."""
        return float(nan_mean(self.scan_means, axis=0))


def deviation(values: np.ndarray) -> np.ndarray:
    """The sample standard deviation (n - 1) along the first axis without NaN; NaN of fewer than two values."""
    mean = nan_mean(values, axis=0)
    squares = np.where(np.isfinite(values), (values - mean) ** 2, 0.0).sum(0)
    degrees = np.isfinite(values).sum(0) - 1
    return np.sqrt(np.divide(squares, degrees, out=np.full(np.shape(squares), np.nan), where=degrees > 0))


@dataclass(frozen=True)
class FoldScores:
    """Scores of the networks of several folds, each on the scans that it wasn't trained on.

    Attributes:
        folds: scores by the fold's number.
    """

    folds: Mapping[int, Scores]

    @property
    def organs(self) -> tuple[str, ...]:
        """Names of the labels without the background, and of the regions."""
        return next(iter(self.folds.values())).organs

    @property
    def by_fold(self) -> np.ndarray:
        """(folds, 1 + organs): each fold's mean Dice, then its organs' means."""
        return np.array([[scores.mean, *scores.organ_means] for scores in self.folds.values()])

    @property
    def by_scan(self) -> np.ndarray:
        """(scans, 1 + organs): each scan's mean, then its organs; fold after fold."""
        return np.concatenate([np.column_stack([scores.scan_means, scores.dice]) for scores in self.folds.values()])

    @property
    def summary(self) -> dict[str, np.ndarray]:
        """Means and standard deviations over folds and over scans, (1 + organs,) each, by name."""
        rows: dict[str, np.ndarray] = {}
        for name, values in (("folds", self.by_fold), ("scans", self.by_scan)):
            rows |= {f"mean over {name}": nan_mean(values, axis=0), f"sd over {name}": deviation(values)}
        return rows

    @property
    def counted(self) -> np.ndarray:
        """(1 + organs,): how many scans have a score."""
        return np.isfinite(self.by_scan).sum(0)

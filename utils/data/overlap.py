"""How label maps overlap, in voxels of each pair of labels, from which the Dice of any union of labels follows."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def joint_counts(first: Tensor, second: Tensor, values: int) -> Tensor:
    """The voxels that have each label in one map (rows) and each in another (columns): (values, values).

    Args:
        first, second: label maps of the same shape, with integers 0 … values - 1.

    Returns:
        Whole numbers in float64, on the CPU.
    """
    pairs = (first.int() * values + second.int()).flatten()
    return torch.bincount(pairs, minlength=values**2).reshape(values, values).double().cpu()


def dice_of(counts: Tensor, labels: Sequence[int]) -> float:
    """The Dice of a union of labels in two maps: 2 |A ∩ B| / (|A| + |B|). NaN if it is in neither.

    Args:
        counts: of :func:`joint_counts`, or the sum of several.
    """
    chosen = list(labels)
    both, size = float(counts[chosen][:, chosen].sum()), float((counts.sum(0) + counts.sum(1))[chosen].sum())
    return 2 * both / size if size else math.nan

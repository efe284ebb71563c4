"""How sure networks are of an organ: by their probabilities, and by each other."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from utils.data.channels import CLASSES, Channels
from utils.data.overlap import dice_of, joint_counts

NEGLIGIBLE = 0.05


@dataclass(frozen=True)
class Certainty:
    """How sure networks are of a scan.

    Attributes:
        soft_dice: of each network, by structure: see :func:`soft_dice`.
        agreement: of the networks' masks, by structure: see :func:`agreement`.
    """

    soft_dice: Mapping[str, list[float]]
    agreement: Mapping[str, float]


class CertaintyCollector:
    """Takes one network's probabilities after the other."""

    def __init__(self, structures: Mapping[str, Sequence[int]], output: Channels = CLASSES) -> None:
        """Args:
        structures: by name, the label of an organ, or the labels of a region.
        output: what the channels of the probabilities are.
        """
        self.structures, self.output = structures, output
        self.clear()

    def clear(self) -> None:
        """Forget all networks."""
        self.soft_dice: dict[str, list[float]] = {name: [] for name in self.structures}
        self.masks: list[Tensor] = []  # label maps (D, H, W), one for each network

    def add(self, probabilities: Tensor) -> None:
        """Take the probabilities (channels, D, H, W) of one more network."""
        mask = self.output.label_map(probabilities).to(torch.int16)
        self.masks.append(mask)
        for name, labels in self.structures.items():
            probability = self.output.probability(probabilities, labels)
            self.soft_dice[name].append(
                math.nan if probability is None else soft_dice(probability, _is_in(mask, labels))
            )

    def certainty(self) -> Certainty:
        """What the networks so far tell."""
        by_name = {name: list(values) for name, values in self.soft_dice.items()}
        return Certainty(by_name, agreement(self.masks, self.structures))


def _is_in(mask: Tensor, labels: Sequence[int]) -> Tensor:
    inside = mask == labels[0]
    for label in labels[1:]:
        inside |= mask == label
    return inside


def soft_dice(probability: Tensor, mask: Tensor) -> float:
    """The Dice of a mask that the probabilities themselves make expect; NaN of an empty mask.

    2 Σ p m / Σ (p + m): the soft Dice confidence of Borges et al. 2024 (arXiv 2402.10665). Probabilities below
    :data:`NEGLIGIBLE` count as 0: far from the organ they say nothing, but in a large scan their sum would be larger
    than the organ.

    Args:
        probability, mask: (D, H, W), the latter of booleans.
    """
    size = int(mask.sum())
    if size == 0:
        return math.nan
    probability = torch.where(probability < NEGLIGIBLE, 0.0, probability)
    both = float(torch.where(mask, probability, 0.0).sum(dtype=torch.float64))
    return 2 * both / (float(probability.sum(dtype=torch.float64)) + size)


def agreement(masks: Sequence[Tensor], structures: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """How much masks of one scan agree on each structure: 2 Σ |A ∩ B| / Σ (|A| + |B|) over all pairs A, B of them.

    That is Dice for more than two masks (Crum et al. 2006, doi 10.1109/TMI.2006.880587). NaN of a single mask, or if
    none has the structure.

    Args:
        masks: label maps (D, H, W).
        structures: by name, the label of an organ, or the labels of a region.
    """
    labels = {label for of_one in structures.values() for label in of_one}
    values = 1 + max([*labels, *(int(mask.max()) for mask in masks)])
    counts = torch.zeros(values, values, dtype=torch.float64)
    for first, second in combinations(masks, 2):
        counts += joint_counts(first, second, values)
    return {name: dice_of(counts, of_one) for name, of_one in structures.items()}

"""How sure networks are of an organ: by their probabilities, and by each other."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

NEGLIGIBLE = 0.05


@dataclass(frozen=True)
class Certainty:
    """How sure networks are of a scan.

    Attributes:
        soft_dice: of each network, by class: see :func:`soft_dice`.
        agreement: of the networks' masks, by class: see :func:`agreement`.
    """

    soft_dice: tuple[tuple[float, ...], ...]
    agreement: tuple[float, ...]


@dataclass
class CertaintyCollector:
    """Takes one network's probabilities after the other.

    Attributes:
        soft_dice: of each network, by class.
        masks: of each network (D, H, W).
    """

    soft_dice: list[tuple[float, ...]] = field(default_factory=list)
    masks: list[Tensor] = field(default_factory=list)

    def add(self, probabilities: Tensor) -> None:
        """Take the probabilities (classes, D, H, W) of one more network."""
        values, mask = soft_dice(probabilities)
        self.soft_dice.append(values)
        self.masks.append(mask)

    def clear(self) -> None:
        """Forget all networks."""
        self.soft_dice.clear()
        self.masks.clear()

    def certainty(self) -> Certainty:
        """What the networks so far tell."""
        return Certainty(tuple(self.soft_dice), agreement(self.masks, len(self.soft_dice[0])))


def soft_dice(probabilities: Tensor) -> tuple[tuple[float, ...], Tensor]:
    """The Dice of each class that the probabilities themselves make expect, and the mask.

    2 Σ p m / Σ (p + m) with the mask m of the likeliest class: the soft Dice confidence of Borges et al. 2024
    (arXiv 2402.10665). Probabilities below :data:`NEGLIGIBLE` count as 0: far from the organ they say nothing, but in
    a large scan their sum would be larger than the organ.

    Args:
        probabilities: (classes, D, H, W).

    Returns:
        By class, NaN where the mask has no voxel; and the mask (D, H, W).
    """
    highest, mask = probabilities.max(0)
    mask = mask.to(torch.int16)
    values = []
    for label, probability in enumerate(probabilities):
        inside = mask == label
        size = inside.sum()
        both = torch.where(inside, highest, 0.0).sum(dtype=torch.float64)
        whole = torch.where(probability < NEGLIGIBLE, 0.0, probability).sum(dtype=torch.float64)
        values.append(torch.where(size > 0, 2 * both / (whole + size), torch.nan))
    return tuple(torch.stack(values).tolist()), mask


def agreement(masks: Sequence[Tensor], classes: int) -> tuple[float, ...]:
    """By class, how much masks of one scan agree: 2 Σ |A ∩ B| / Σ (|A| + |B|) over all pairs A, B of them.

    That is Dice for more than two masks (Crum et al. 2006, doi 10.1109/TMI.2006.880587). NaN of a single mask, or
    where no mask has the class.

    Args:
        masks: each (D, H, W), with integers 0 … classes - 1.
    """
    found = []
    for label in range(classes):
        votes = torch.zeros(masks[0].shape, dtype=torch.int16, device=masks[0].device)  # (D, H, W)
        for mask in masks:
            votes += mask == label
        # a voxel with n votes is in the common part of n (n - 1) / 2 pairs
        single, paired = int(votes.sum()), int((votes * (votes - 1)).sum())
        found.append(paired / (single * (len(masks) - 1)) if single and len(masks) > 1 else float("nan"))
    return tuple(found)

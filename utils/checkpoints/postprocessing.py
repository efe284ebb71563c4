"""What the folds of a cross-validation tell about a network: what helps at test time, and how far a mask is right."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Postprocessing:
    """What is done at test time, because it raised the Dice of scans that a fold's network hadn't seen.

    Attributes:
        largest_component: labels of which the mask keeps the largest component alone.
        mirrored: whether windows are also predicted mirrored, as crops were flipped in training.
    """

    largest_component: tuple[int, ...] = ()
    mirrored: bool = False

    def in_words(self, labels: Sequence[str]) -> str:
        """The same for people; empty if nothing is done.

        Args:
            labels: names of the classes, the background first.
        """
        component = ", ".join(labels[label] for label in self.largest_component)
        steps = {"mirrored passes": self.mirrored, f"largest component of {component}": bool(component)}
        return "; ".join(step for step, done in steps.items() if done)


@dataclass(frozen=True)
class DiceLine:
    """An organ's Dice as a line over its soft Dice, fitted to scans that a fold's network hadn't seen.

    Attributes:
        slope, offset: of the line.
        error: mean absolute distance of these scans' Dice from the line that was fitted to the others.
        always_there: whether every label had the organ, so that a mask without it has missed it.
    """

    slope: float
    offset: float
    error: float
    always_there: bool

    def dice(self, soft_dice: float) -> float:
        """The Dice 0 … 1 at a soft Dice; 0 where the mask has no voxel (NaN)."""
        return 0.0 if math.isnan(soft_dice) else min(1.0, max(0.0, self.slope * soft_dice + self.offset))


@dataclass(frozen=True)
class FromFolds:
    """What a cross-validation writes into its networks.

    Attributes:
        lines: by label without the background, the predicted Dice; None for a label that too few scans had. Empty if
            nothing was fitted.
    """

    postprocessing: Postprocessing = field(default_factory=Postprocessing)
    lines: tuple[DiceLine | None, ...] = ()

    def content(self) -> dict[str, Any]:
        """The same for a checkpoint."""
        return {
            "largest_component": list(self.postprocessing.largest_component),
            "mirrored": self.postprocessing.mirrored,
            "lines": [None if line is None else asdict(line) for line in self.lines],
        }


def from_folds(content: Mapping[str, Any] | None, classes: int) -> FromFolds:
    """What a checkpoint says; nothing if it says nothing.

    Args:
        classes: of the network, the background included.

    Raises:
        ValueError: if it has labels that the network hasn't.
    """
    if content is None:
        return FromFolds()
    labels, lines = content["largest_component"], content["lines"]
    if not set(labels) <= set(range(1, classes)) or len(lines) not in (0, classes - 1):
        raise ValueError("what its folds say is about other labels")
    return FromFolds(
        Postprocessing(tuple(labels), content["mirrored"]),
        tuple(None if line is None else DiceLine(**line) for line in lines),
    )


def common(members: Sequence[FromFolds], flips: Sequence[str | None]) -> Postprocessing:
    """What all networks of an ensemble have in common.

    Args:
        flips: how each network's crops were flipped; networks that were flipped otherwise aren't mirrored alike.
    """
    shared = set.intersection(*(set(one.postprocessing.largest_component) for one in members))
    mirrored = all(one.postprocessing.mirrored for one in members) and len(set(flips)) == 1
    return Postprocessing(tuple(sorted(shared)), mirrored)


def predicted_dice(
    lines: Sequence[DiceLine | None], soft_dice: Sequence[float], agreement: float, found: bool
) -> float | None:
    """The predicted Dice of an organ in a scan; None if nothing predicts it, or mask and label may lack the organ.

    It is the mean over the networks of what their lines say. But an ensemble's mask can't be expected to be closer to
    the truth than its networks are to each other.

    Args:
        lines: of the organ, of each network.
        soft_dice: of each network's mask; NaN where it has no voxel.
        agreement: of the networks' masks; NaN of one network.
        found: whether the ensemble's mask has the organ.
    """
    known = [line for line in lines if line is not None]
    if len(known) < len(lines):
        return None
    if not found:
        return 0.0 if all(line.always_there for line in known) else None
    mean = sum(line.dice(one) for line, one in zip(known, soft_dice, strict=True)) / len(known)
    return mean if math.isnan(agreement) else min(mean, agreement)

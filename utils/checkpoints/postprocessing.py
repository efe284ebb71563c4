"""What the folds of a cross-validation tell about a network: what helps at test time, and how far a mask is right."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
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

    def in_words(self, labels: Sequence[str], passes: int | None = None) -> str:
        """The same for people; empty if nothing is done.

        Args:
            labels: names of the classes, the background first.
            passes: how often each network predicts a window, to be said of mirrored passes; None leaves it out.
        """
        component = ", ".join(labels[label] for label in self.largest_component)
        times = "" if passes is None else f" ({passes} per window and network)"
        steps = {f"mirrored passes{times}": self.mirrored, f"largest component of {component}": bool(component)}
        return "; ".join(step for step, done in steps.items() if done)


@dataclass(frozen=True)
class DiceModel:
    """How an organ's Dice follows from its mask, fitted to scans that a fold's network hadn't seen.

    Within what nearly all of these scans had, it is linear in soft Dice and in the logarithm of the volume.

    Attributes:
        per_soft_dice, per_log_volume, offset: of the linear function.
        lowest_soft_dice: that 97.5 % of the scans had, or more.
        volumes: of the masks in ml, between which 95 % of the scans lie.
        error: mean absolute distance of the scans' Dice from what a fit to the others predicts.
        always_there: whether every label had the organ, so that a mask without it has missed it.
    """

    per_soft_dice: float
    per_log_volume: float
    offset: float
    lowest_soft_dice: float
    volumes: tuple[float, float]
    error: float
    always_there: bool

    def dice(self, soft_dice: float, volume: float) -> float:
        """The predicted Dice, 0 … 1.

        Below the lowest soft Dice it falls in proportion, to 0 at 0. And a mask v outside the volumes can't have more
        than 2 min(v, w) / (v + w), where w is the nearer of them.

        Args:
            soft_dice: of the mask; NaN if it has no voxel.
            volume: of the mask in ml.
        """
        if math.isnan(soft_dice) or volume <= 0:
            return 0.0
        smallest, largest = self.volumes
        usual = min(max(volume, smallest), largest)
        seen = max(soft_dice, self.lowest_soft_dice)
        linear = self.per_soft_dice * seen + self.per_log_volume * math.log(usual) + self.offset
        most = 2 * min(volume, usual) / (volume + usual)
        return min(most, max(0.0, linear) * soft_dice / seen)


@dataclass(frozen=True)
class FromFolds:
    """What a cross-validation writes into its networks.

    Attributes:
        models: of the Dice, by the name of an organ or region. One that too few scans had has none.
    """

    postprocessing: Postprocessing = field(default_factory=Postprocessing)
    models: Mapping[str, DiceModel] = field(default_factory=dict)

    def of(self, structures: Collection[str]) -> "FromFolds":
        """The same, with the models of these organs and regions alone."""
        return replace(self, models={name: model for name, model in self.models.items() if name in structures})

    def content(self) -> dict[str, Any]:
        """The same for a checkpoint."""
        return {
            "largest_component": list(self.postprocessing.largest_component),
            "mirrored": self.postprocessing.mirrored,
            "models": {name: asdict(model) for name, model in self.models.items()},
        }


def from_folds(content: Mapping[str, Any] | None, structures: Mapping[str, Sequence[int]]) -> FromFolds:
    """What a checkpoint says; nothing if it says nothing.

    Args:
        structures: labels by name of the organs and regions that are scored.

    Raises:
        ValueError: if it has organs that the network hasn't.
    """
    if content is None:
        return FromFolds()
    labels, models = content["largest_component"], content["models"]
    if (
        not set(labels) <= {label for one in structures.values() for label in one}
        or not models.keys() <= structures.keys()
    ):
        raise ValueError("what its folds say is about other labels")
    return FromFolds(
        Postprocessing(tuple(labels), content["mirrored"]),
        {name: DiceModel(**{**one, "volumes": tuple(one["volumes"])}) for name, one in models.items()},
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
    models: Sequence[DiceModel | None], soft_dice: Sequence[float], agreement: float, volume: float
) -> float | None:
    """The predicted Dice of an organ in a scan; None if nothing predicts it, or mask and label may lack the organ.

    It is the mean of what the networks' models say. But an ensemble's mask can't be expected to be closer to the truth
    than its networks are to each other.

    Args:
        models: of the organ, of each network.
        soft_dice: of each network's mask; NaN where it has no voxel.
        agreement: of the networks' masks; NaN of one network.
        volume: of the ensemble's mask in ml.
    """
    known = [model for model in models if model is not None]
    if len(known) < len(models):
        return None
    if volume == 0:
        return 0.0 if all(model.always_there for model in known) else None
    mean = sum(model.dice(one, volume) for model, one in zip(known, soft_dice, strict=True)) / len(known)
    return mean if math.isnan(agreement) else min(mean, agreement)

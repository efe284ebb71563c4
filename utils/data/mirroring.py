"""Mirrors, and which labels stand for which in them: a left kidney is a right one there."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from utils.system.errors import InputError

SIDES = {"left": "right", "right": "left"}
# which say a side only where the other one is a label too: L1 is a vertebra
ABBREVIATIONS = (
    {"l": "r", "r": "l"}, {"lt": "rt", "rt": "lt"}, {"lh": "rh", "rh": "lh"},
    # kidneys and adrenal glands in the BTCV lists that research repositories share
    {"rkid": "lkid", "lkid": "rkid"}, {"rad": "lad", "lad": "rad"},
)  # fmt: skip
# a heart's right half mirrored is no left one; the brain's ventricles are alike
HEART = re.compile(r"atrium|atrial|(?<!lateral )ventric")
# labels that differ by such a pair of words would have to swap in a mirror across y or z, where bodies have no symmetry
OPPOSITES = {
    1: {"anterior": "posterior", "front": "back", "ventral": "dorsal"},
    2: {"superior": "inferior", "upper": "lower", "cranial": "caudal"},
}


@dataclass(frozen=True)
class Mirroring:
    """A mirror that bodies and their labels look right in.

    Attributes:
        axes: which of x, y, z (0, 1, 2) are mirrored.
        classes: for each class, the one that stands for it in the mirror; None where each stands for itself.
    """

    axes: tuple[int, ...] = ()
    classes: tuple[int, ...] | None = None

    def pairs(self, labels: Sequence[str]) -> list[str]:
        """The labels that swap, a text for each two."""
        return [f"{labels[one]} with {labels[other]}" for one, other in enumerate(self.classes or ()) if one < other]

    @property
    def allows_turns(self) -> bool:
        """Whether labels stay right where x and y change places: none has a side, and none a front or back."""
        return {0, 1} <= set(self.axes) and (self.classes is None or list(self.classes) == sorted(self.classes))


# as UNETR was trained in 2021, labels as they are, whatever their side
PUBLISHED = Mirroring((0, 1, 2))


def trained_mirrorings(flips: str | None, labels: Sequence[str]) -> tuple[Mirroring, ...]:
    """The mirrors that a network knows from its training, none first.

    Args:
        flips: of its :class:`utils.checkpoints.description.Description`; what isn't known is taken for the flips of 2021.

    Raises:
        InputError: if its crops were not flipped.
    """
    if flips == "none":
        raise InputError(
            "--tta: crops were not flipped in training, and mirrored ones are strange to it. Leave it out."
        )
    if flips == "anatomical":
        return mirrorings(labels)
    return tuple(Mirroring(axes) for axes in _combinations(PUBLISHED.axes))


def _combinations(axes: Sequence[int]) -> list[tuple[int, ...]]:
    return [chosen for count in range(len(axes) + 1) for chosen in itertools.combinations(axes, count)]


def mirrorings(labels: Sequence[str]) -> tuple[Mirroring, ...]:
    """Every combination of axes that labels allow to mirror, none mirrored first.

    Across x the labels of left and right organs swap; a side without its counterpart, or of the heart, forbids it.
    Across y and z labels that differ by a pair of opposites (anterior and posterior, superior and inferior) forbid it.
    """
    order = [_other_side(label, labels) for label in labels]
    axes = [0] if None not in order else []
    for axis, words in OPPOSITES.items():
        both = {**words, **{other: word for word, other in words.items()}}
        # a label that merely holds such a word, as the inferior vena cava, is its own counterpart
        swaps = [_counterpart(label, labels, both) for label in labels]
        if all(other is None or labels[other] == label for label, other in zip(labels, swaps, strict=True)):
            axes.append(axis)
    return tuple(
        Mirroring(combination, tuple(int(other) for other in order if other is not None) if 0 in combination else None)
        for combination in _combinations(axes)
    )


def _other_side(label: str, labels: Sequence[str]) -> int | None:
    """The place of the label of the other side; its own where it has no side; None where nothing mirrors it."""
    place = _counterpart(label, labels, SIDES)
    if HEART.search(re.sub(r"[_-]", " ", label.lower())) and (place is None or labels[place] != label):
        return None
    if place is not None and labels[place] == label:
        others = [_counterpart(label, labels, words) for words in ABBREVIATIONS]
        return next((other for other in others if other not in (None, place)), place)
    return place


def _counterpart(label: str, labels: Sequence[str], words: dict[str, str]) -> int | None:
    """The place of the label with the opposite word; its own where it has no such word; None where it has none."""
    pattern = re.compile(r"(?<![a-z])(" + "|".join(words) + r")(?![a-z])")
    own, *names = [re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower() for name in (label, *labels)]
    other = pattern.sub(lambda match: words[match[0]], own)
    return names.index(other) if other in names else None

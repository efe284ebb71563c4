"""Which mirror images labels allow, and which labels swap in them: a mirrored left kidney is a right one."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from utils.system.errors import InputError

SIDES = {"left": "right", "right": "left"}
# these stand for a side only if the other one is a label too: L1 is a vertebra
ABBREVIATIONS = (
    {"l": "r", "r": "l"}, {"lt": "rt", "rt": "lt"}, {"lh": "rh", "rh": "lh"},
    # kidneys and adrenal glands in the BTCV lists that research repositories share
    {"rkid": "lkid", "lkid": "rkid"}, {"rad": "lad", "lad": "rad"},
)  # fmt: skip
# the heart's right half is no mirror image of its left; the brain's ventricles are
HEART = re.compile(r"atrium|atrial|(?<!lateral )ventric")
# labels that differ by such a pair of words would have to swap in a flip along y or z, where bodies aren't symmetric
OPPOSITES = {
    1: {"anterior": "posterior", "front": "back", "ventral": "dorsal"},
    2: {"superior": "inferior", "upper": "lower", "cranial": "caudal"},
}


@dataclass(frozen=True)
class Mirroring:
    """A flip along some axes that keeps labels right.

    Attributes:
        axes: which of x, y, z (0, 1, 2) are flipped.
        classes: for each class, the class that it becomes; None if labels don't change.
    """

    axes: tuple[int, ...] = ()
    classes: tuple[int, ...] | None = None

    def pairs(self, labels: Sequence[str]) -> list[str]:
        """The labels that swap, as "left kidney with right kidney"."""
        return [f"{labels[one]} with {labels[other]}" for one, other in enumerate(self.classes or ()) if one < other]

    @property
    def allows_rotate90(self) -> bool:
        """Whether labels stay right when x and y change places: none has a side, a front or a back."""
        return {0, 1} <= set(self.axes) and (self.classes is None or list(self.classes) == sorted(self.classes))


SIDES_ONLY = "left_right"  # flips along x alone
# as UNETR was trained in 2021: labels don't change, whatever their side
PUBLISHED = Mirroring((0, 1, 2))


def trained_mirrorings(flips: str | None, labels: Sequence[str]) -> tuple[Mirroring, ...]:
    """The mirrorings that a network saw in training, the identity first.

    Args:
        flips: ``anatomical``, ``left_right``, ``published`` or ``none``, as its checkpoint records; None stands for
            those of 2021.

    Raises:
        InputError: if its crops were not flipped.
    """
    if flips == "none":
        raise InputError(
            "`tta`: crops were not flipped in training, so the network doesn't know mirrored scans. Leave it out."
        )
    if flips == "anatomical":
        return mirrorings(labels)
    if flips == SIDES_ONLY:
        return tuple(one for one in mirrorings(labels) if set(one.axes) <= {0})
    return tuple(Mirroring(axes) for axes in _combinations(PUBLISHED.axes))


def _combinations(axes: Sequence[int]) -> list[tuple[int, ...]]:
    return [chosen for count in range(len(axes) + 1) for chosen in itertools.combinations(axes, count)]


def mirrorings(labels: Sequence[str]) -> tuple[Mirroring, ...]:
    """Every combination of axes along which labels allow flips, the identity first.

    Along x the labels of left and right organs swap; a side without its counterpart, or of the heart, forbids it.
    Along y and z labels that differ by a pair of opposites (anterior and posterior, superior and inferior) forbid it.
    """
    order = [_other_side(label, labels) for label in labels]
    axes = [0] if None not in order else []
    for axis, words in OPPOSITES.items():
        both = {**words, **{other: word for word, other in words.items()}}
        # a label with such a word and no opposite, as the inferior vena cava, forbids nothing
        swaps = [_counterpart(label, labels, both) for label in labels]
        if all(other is None or labels[other] == label for label, other in zip(labels, swaps, strict=True)):
            axes.append(axis)
    return tuple(
        Mirroring(combination, tuple(int(other) for other in order if other is not None) if 0 in combination else None)
        for combination in _combinations(axes)
    )


def side_pairs(labels: Sequence[str]) -> list[tuple[int, int]]:
    """The labels whose names differ by left and right alone, the left one's index first."""
    words = {word: other for pair in (SIDES, *ABBREVIATIONS) for word, other in pair.items() if word.startswith("l")}
    pairs = [(one, _counterpart(label, labels, words)) for one, label in enumerate(labels)]
    return [(one, other) for one, other in pairs if other is not None and other != one]


def _other_side(label: str, labels: Sequence[str]) -> int | None:
    """The index of the other side's label; a label's own index if it has no side; None if it can't be mirrored."""
    place = _counterpart(label, labels, SIDES)
    if HEART.search(re.sub(r"[_-]", " ", label.lower())) and (place is None or labels[place] != label):
        return None
    if place is not None and labels[place] == label:
        others = [_counterpart(label, labels, words) for words in ABBREVIATIONS]
        return next((other for other in others if other not in (None, place)), place)
    return place


def _counterpart(label: str, labels: Sequence[str], words: dict[str, str]) -> int | None:
    """The index of the label with the opposite word; a label's own if it has no such word; None if there is none."""
    pattern = re.compile(r"(?<![a-z])(" + "|".join(words) + r")(?![a-z])")
    own, *names = [re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower() for name in (label, *labels)]
    other = pattern.sub(lambda match: words[match[0]], own)
    return names.index(other) if other in names else None

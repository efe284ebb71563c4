"""How crops are changed at random: flips as far as bodies and labels allow them, and how strongly the rest."""

import numpy as np

from utils.data.mirroring import SIDES_ONLY, mirrorings
from utils.planning.choices import Choice
from utils.planning.fingerprint import Fingerprint

# uses of a scan from which on strong augmentation pays: on hippocampus MR it cost Dice after 4, changed nothing after
# 34 and gained 0.004 after 60 (docs/results.md, "Augmentation")
USES_FOR_STRONG = 50
FLIP = 0.5  # as nnU-Net
# how far the mirror image of a structure may lie from its partner, as a share of the scan's width
OFF_CENTRE = 0.1


def plan_augmentation(fingerprint: Fingerprint, uses: float) -> list[Choice]:
    """The choices about flips and augmentation.

    Args:
        uses: how often each scan gives a crop in the whole run.
    """
    strong = uses >= USES_FOR_STRONG
    reason = (
        f"Each scan gives a crop some {uses:.0f} times. "
        + ("From" if strong else "Below")
        + f" {USES_FOR_STRONG} times, "
        + (
            "rotation, scaling, noise, blur, contrast and low resolution as in nnU-Net keep the network from learning "
            "the scans by heart."
            if strong
            else "strong augmentation costs more Dice than it gains."
        )
    )
    return [_flips(fingerprint), Choice({"augment": "strong" if strong else "published"}, reason)]


def _flips(fingerprint: Fingerprint) -> Choice:
    obstacle = _obstacle(fingerprint)
    if obstacle is not None:
        return Choice({"RandFlipd_prob": 0, "RandRotate90d_prob": 0}, f"{obstacle} So crops are not mirrored.")
    pairs = next(one for one in mirrorings(fingerprint.labels) if one.axes == (0,)).pairs(fingerprint.labels)
    swapped = f"; a flip swaps {', '.join(pairs)}" if pairs else ""
    return Choice(
        {"flips": SIDES_ONLY, "RandFlipd_prob": FLIP, "RandRotate90d_prob": 0},
        f"The structures lie alike on the left and on the right, so that a mirror image is another patient{swapped}. "
        "Upside down and back to front nobody is scanned, so that the other axes are not flipped.",
    )


def _obstacle(fingerprint: Fingerprint) -> str | None:
    """Why a mirror image would mislead, None if it wouldn't."""
    if not fingerprint.labels_are_named:
        return "The labels have no names, so that nothing tells whether one is the other's left or right."
    along_x = [one for one in mirrorings(fingerprint.labels) if one.axes == (0,)]
    if not along_x:
        return "A label has a side, and the other side is no label or none of its kind: a flip would mix them up."
    swapped = along_x[0].classes or tuple(range(len(fingerprint.labels)))
    places: dict[int, list[float]] = {}
    for scan in fingerprint.scans:
        for value, structure in scan.structures.items():
            places.setdefault(value, []).append(structure.centre[0])
    for value, other in enumerate(swapped):
        if value in places and other in places:
            here, mirrored = float(np.median(places[value])), 1 - float(np.median(places[other]))
            if abs(here - mirrored) > OFF_CENTRE:
                side = "right" if here > mirrored else "left"
                return f"{fingerprint.labels[value]} lies to the {side}, and in a mirror image it would not."
    return None

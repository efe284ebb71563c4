"""Flips by the labels' sides and places, and how strong the rest is."""

import pytest

from tests.planning.made_up import ball, make_fingerprint, make_scan
from utils.planning.augmentation import USES_FOR_STRONG, plan_augmentation
from utils.planning.choices import Choice

KIDNEYS = ("background", "left kidney", "right kidney")


def flips(labels: tuple[str, ...], *places: float, named: bool = True) -> Choice:
    """The choice about flips for labels that lie so far to the right, from 0 to 1."""
    structures = {value: ball(30.0, (x, 0.5, 0.5)) for value, x in enumerate(places, start=1)}
    scans = [make_scan(structures=structures)] * 3
    return plan_augmentation(make_fingerprint(scans, labels, named), uses=100)[0]


def test_kidneys_swap_in_a_flip_along_x() -> None:
    found = flips(KIDNEYS, 0.3, 0.7)
    assert found.settings == {"flips": "left_right", "RandFlipd_prob": 0.5, "RandRotate90d_prob": 0}
    assert "a flip swaps left kidney with right kidney" in found.reason


def test_a_structure_in_the_middle_is_flipped() -> None:
    found = flips(("background", "prostate"), 0.52)
    assert found.settings["RandFlipd_prob"] == 0.5
    assert "swaps" not in found.reason


FORBIDDEN = {
    "a liver lies on the right": (flips, (("background", "liver"), 0.7), "liver lies to the right"),
    "a spleen on the left": (flips, (("background", "spleen"), 0.25), "spleen lies to the left"),
    "a side without its counterpart": (flips, (("background", "left kidney"), 0.5), "A label has a side"),
    "a heart": (flips, (("background", "left ventricle", "right ventricle"), 0.45, 0.55), "A label has a side"),
    "kidneys beside a liver": (flips, ((*KIDNEYS, "liver"), 0.3, 0.7, 0.65), "liver lies to the right"),
    "sides that are no mirror images": (flips, (KIDNEYS, 0.3, 0.9), "left kidney lies to the"),
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_forbids_flips(name: str) -> None:
    choose, given, reason = FORBIDDEN[name]
    found = choose(*given)  # type: ignore[arg-type]
    assert found.settings == {"RandFlipd_prob": 0, "RandRotate90d_prob": 0}
    assert reason in found.reason
    assert found.reason.endswith("So crops are not mirrored.")


def test_labels_without_names_forbid_flips_wherever_they_lie() -> None:
    found = flips(("background", "label 1"), 0.5, named=False)
    assert found.settings["RandFlipd_prob"] == 0
    assert "no names" in found.reason


def test_one_scan_that_lies_elsewhere_does_not_decide() -> None:
    scans = [make_scan(structures={1: ball(30.0, (x, 0.5, 0.5))}) for x in (0.5, 0.48, 0.52, 0.95, 0.5)]
    assert plan_augmentation(make_fingerprint(scans), uses=1)[0].settings["RandFlipd_prob"] == 0.5


@pytest.mark.parametrize(
    ("uses", "expected"), [(1, "published"), (USES_FOR_STRONG - 1, "published"), (USES_FOR_STRONG, "strong")]
)
def test_strong_augmentation_is_for_scans_that_are_seen_often(uses: float, expected: str) -> None:
    found = plan_augmentation(make_fingerprint([make_scan()] * 2), uses)[1]
    assert found.settings == {"augment": expected}
    assert f"{uses} times" in found.reason

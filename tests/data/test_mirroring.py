"""Which axes may be mirrored, and which labels swap in a mirror."""

import pytest

from utils.data.mirroring import Mirroring, mirrorings, side_pairs, trained_mirrorings
from utils.phantom import LABELS
from utils.system.errors import InputError


@pytest.mark.parametrize(
    ("labels", "axes"),
    [
        (LABELS, {0, 1, 2}),  # BTCV: left and right in pairs, and the inferior vena cava has no superior one
        (("background", "liver"), {0, 1, 2}),
        (("background", "left kidney", "spleen"), {1, 2}),  # no right kidney to swap with
        (("background", "anterior", "posterior"), {0, 2}),
        (("background", "upper lobe", "lower lobe"), {0, 1}),
        (("background", "Left Lung", "Right Lung"), {0, 1, 2}),
        (("background", "heart_ventricle_left", "heart_ventricle_right"), {1, 2}),  # whose walls differ
        (("background", "right atrium", "left atrium", "spleen"), {1, 2}),
        (("background", "Left-Lateral-Ventricle", "Right-Lateral-Ventricle"), {0, 1, 2}),
        (("background", "bright spot"), {0, 1, 2}),  # "right" is no word of its own in it
    ],
)
def test_labels_decide_which_axes_are_mirrored(labels: tuple[str, ...], axes: set[int]) -> None:
    passes = mirrorings(labels)
    assert passes[0] == Mirroring()
    assert {axis for one in passes for axis in one.axes} == axes
    assert len(passes) == 2 ** len(axes)
    for one in passes:
        assert (one.classes is not None) == (0 in one.axes)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("kidney_left", "kidney_right"),
        ("KidneyLeft", "KidneyRight"),
        ("lung_L", "lung_R"),
        ("Rt kidney", "Lt kidney"),
        ("lh-thalamus", "rh-thalamus"),
        ("rkid", "lkid"),
        ("rad", "lad"),
    ],
)
def test_sides_are_known_in_the_ways_in_which_they_are_written(one: str, other: str) -> None:
    mirroring = mirrorings(("background", one, "vertebra L1", "spleen", other))[-1]
    assert (mirroring.axes, mirroring.classes) == ((0, 1, 2), (0, 4, 2, 3, 1))
    assert mirroring.pairs(("background", one, "vertebra L1", "spleen", other)) == [f"{one} with {other}"]


def test_btcvs_kidneys_and_adrenal_glands_swap() -> None:
    order = next(one.classes for one in mirrorings(LABELS) if one.axes == (0,))
    assert order is not None
    assert {(LABELS[a], LABELS[b]) for a, b in enumerate(order) if a < b} == {
        ("right kidney", "left kidney"),
        ("right adrenal gland", "left adrenal gland"),
    }


def test_a_network_is_mirrored_as_its_crops_were() -> None:
    assert trained_mirrorings("anatomical", LABELS) == mirrorings(LABELS)
    published = trained_mirrorings("published", LABELS)
    assert [one.axes for one in published] == [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
    assert {one.classes for one in published} == {None}
    assert trained_mirrorings(None, LABELS) == published
    with pytest.raises(InputError, match="crops were not flipped in training"):
        trained_mirrorings("none", LABELS)


@pytest.mark.parametrize(
    ("labels", "pairs"),
    [
        (("background", "right kidney", "liver", "left kidney"), [(3, 1)]),
        (("background", "heart_ventricle_left", "heart_ventricle_right"), [(1, 2)]),  # on its side, if no mirror image
        (("background", "RKid", "LKid", "RAd", "LAd"), [(2, 1), (4, 3)]),
        (("background", "L1", "L2", "left lung", "spleen"), []),  # vertebrae, and a side without the other
        (LABELS, [(3, 2), (13, 12)]),
    ],
)
def test_pairs_of_sides_name_the_left_one_first(labels: tuple[str, ...], pairs: list[tuple[int, int]]) -> None:
    assert side_pairs(labels) == pairs

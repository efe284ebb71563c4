"""Random crops: where they lie, against MONAI's own rule, and what is changed about them, against numpy."""

import itertools
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms.utils import correct_crop_centers, map_binary_to_indices

from utils.crops import Augmentation, RandomCrops
from utils.mirroring import mirrorings

PLAIN = Augmentation(0, 0, 0, 0)


def scan(shape: tuple[int, int, int], organ: list[tuple[int, int, int]], channels: int = 1) -> dict[str, Any]:
    """A scan whose voxels are numbered from 1 in each channel, with one organ of label 2 at the given voxels."""
    image = torch.arange(1.0, math.prod(shape) + 1).reshape(1, *shape).repeat(channels, 1, 1, 1)
    label = torch.zeros(1, *shape, dtype=torch.uint8)
    for x, y, z in organ:
        label[0, x, y, z] = 2
    return {"image": image, "label": label, "name": "case"}


def starts(batch: dict[str, Any], shape: tuple[int, int, int]) -> list[tuple[int, ...]]:
    """Where unchanged crops of a numbered scan begin."""
    return [tuple(map(int, np.unravel_index(int(crop[0, 0, 0, 0]) - 1, shape))) for crop in batch["image"]]


def draw(crops: RandomCrops, item: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    return crops(crops.prepare(item), np.random.default_rng(seed))


@pytest.mark.parametrize("roi", [(2, 2, 2), (3, 2, 5), (1, 4, 3)])
@pytest.mark.parametrize("tissue_above", [None, 40.0])
def test_crops_lie_where_monai_may_put_them(roi: tuple[int, int, int], tissue_above: float | None) -> None:
    shape = (5, 4, 6)
    item = scan(shape, [(0, 0, 0), (2, 1, 3), (4, 3, 5)])
    batch = draw(RandomCrops(roi, 3000, PLAIN, tissue_above), item)
    image = None if tissue_above is None else item["image"]
    expected = set()
    for indices in map_binary_to_indices(item["label"], image, tissue_above or 0.0):
        for index in indices:
            centre = [int(place) for place in np.unravel_index(int(index), shape)]
            corrected = correct_crop_centers(centre, roi, shape)
            expected.add(tuple(place - size // 2 for place, size in zip(corrected, roi, strict=True)))
    assert set(starts(batch, shape)) == expected


def test_a_crop_is_the_slice_of_image_and_label() -> None:
    shape = (5, 4, 6)
    item = scan(shape, [(2, 1, 3), (3, 2, 4)], channels=2)
    batch = draw(RandomCrops((2, 3, 2), 20, PLAIN, None), item)
    assert batch["name"] == ["case"] * 20
    for number, (x, y, z) in enumerate(starts(batch, shape)):
        for key in ("image", "label"):
            assert torch.equal(batch[key][number], item[key][:, x : x + 2, y : y + 3, z : z + 2])


def test_half_of_the_crops_are_centred_on_an_organ_and_each_of_its_voxels_is_as_likely() -> None:
    shape = (6, 6, 6)
    organ = [(1, 1, 1), (1, 1, 4), (4, 2, 3)]
    found = starts(draw(RandomCrops((1, 1, 1), 6000, PLAIN, None), scan(shape, organ)), shape)
    shares = [found.count(voxel) / 6000 for voxel in organ]
    assert shares == pytest.approx([1 / 6] * 3, abs=0.02)  # four standard deviations
    background = [found.count(voxel) / 6000 for voxel in itertools.product(range(6), repeat=3) if voxel not in organ]
    assert sum(background) == pytest.approx(0.5, abs=0.026)
    assert min(background) > 0
    assert max(background) < 3 / (2 * 213)


def test_background_of_a_ct_is_above_the_window_in_some_channel() -> None:
    shape = (2, 2, 2)
    item = scan(shape, [(0, 0, 0)], channels=2)
    item["image"][0] = 0
    item["image"][1, 1, 0, 1] = 9  # the second channel has 1 … 8 elsewhere
    batch = draw(RandomCrops((1, 1, 1), 50, PLAIN, 8.0), item)
    assert {float(crop[1]) for crop in batch["image"]} == {1.0, 9.0}


def test_flips_are_numpys() -> None:
    item = scan((3, 4, 5), [(1, 1, 1)])
    whole = item["image"][0].numpy()
    batch = draw(RandomCrops((3, 4, 5), 200, Augmentation(0.5, 0, 0, 0), None), item)
    seen = set()
    for image, label in zip(batch["image"][:, 0].numpy(), batch["label"][:, 0].numpy(), strict=True):
        (flips,) = (
            axes
            for count in range(4)
            for axes in itertools.combinations(range(3), count)
            if np.array_equal(np.flip(whole, axes), image)
        )
        assert np.array_equal(np.flip(item["label"][0].numpy(), flips), label)
        seen.add(flips)
    assert len(seen) == 8


def test_rotations_are_numpys_and_come_after_flips() -> None:
    item = scan((4, 4, 5), [(1, 2, 1)])
    batch = draw(RandomCrops((4, 4, 5), 300, Augmentation(0, 1, 0, 0), None), item)
    turned = {turns: np.rot90(item["image"][0].numpy(), turns) for turns in (1, 2, 3)}
    found = [
        next(turns for turns, expected in turned.items() if np.array_equal(expected, image[0]))
        for image in batch["image"].numpy()
    ]
    assert [found.count(turns) for turns in (1, 2, 3)] == pytest.approx([100] * 3, abs=33)
    for turns, label in zip(found, batch["label"][:, 0].numpy(), strict=True):
        assert np.array_equal(np.rot90(item["label"][0].numpy(), turns), label)
    both = draw(RandomCrops((4, 4, 5), 300, Augmentation(1, 1, 0, 0), None), item)
    flipped = np.flip(item["image"][0].numpy())
    for turns, image in zip(found, both["image"][:, 0].numpy(), strict=True):
        assert np.array_equal(np.rot90(flipped, turns), image)


def variants(batch: dict[str, Any]) -> set[bytes]:
    return {image.numpy().tobytes() for image in batch["image"]}


def test_a_flip_along_x_swaps_left_and_right_where_flips_are_anatomical() -> None:
    """So that the right kidney, here the lower half of x, is on the same side of every crop."""
    item = scan((4, 4, 5), [])
    item["label"][:, :2], item["label"][:, 2:] = 1, 2
    item["label"][:, :, 0] = 3
    item["label"][..., 0] = 0
    labels = ("background", "right kidney", "left kidney", "liver")
    chances = Augmentation(0.5, 1, 0, 0, mirrorings(labels)[-1])
    anatomical = draw(RandomCrops((4, 4, 5), 200, chances, None), item)
    kidneys = anatomical["label"] * (anatomical["label"] != 3)
    assert set(kidneys[:, 0, :2].unique().tolist()) == {0, 1}
    assert set(kidneys[:, 0, 2:].unique().tolist()) == {0, 2}
    assert (anatomical["label"] == 3).flatten(1).sum(1).tolist() == [16] * 200
    assert variants(anatomical) == variants(draw(RandomCrops((4, 4, 5), 200, Augmentation(0.5, 0, 0, 0), None), item))
    published = draw(RandomCrops((4, 4, 5), 200, Augmentation(0.5, 0, 0, 0), None), item)
    assert set(published["label"][:, 0, :2].unique().tolist()) == {0, 1, 2, 3}


def test_an_axis_that_mixes_labels_up_is_not_flipped_and_nothing_turned() -> None:
    item = scan((4, 4, 5), [(1, 1, 1)])
    chances = Augmentation(0.5, 1, 0, 0, mirrorings(("background", "anterior", "posterior"))[-1])
    batch = draw(RandomCrops((4, 4, 5), 200, chances, None), item)
    whole = item["image"].numpy()
    assert variants(batch) == {np.flip(whole, axes).tobytes() for axes in ((), 1, 3, (1, 3))}


def test_labels_without_sides_are_flipped_and_turned_as_ever() -> None:
    item = scan((4, 4, 5), [(1, 1, 1)])
    chances = Augmentation(0.5, 0.5, 0, 0, mirrorings(("background", "liver", "inferior vena cava"))[-1])
    anatomical = draw(RandomCrops((4, 4, 5), 50, chances, None), item)
    published = draw(RandomCrops((4, 4, 5), 50, Augmentation(0.5, 0.5, 0, 0), None), item)
    for key in ("image", "label"):
        assert torch.equal(anatomical[key], published[key])


def test_intensities_are_scaled_by_at_most_a_tenth_and_labels_are_left() -> None:
    item = scan((4, 4, 4), [(1, 2, 1)])
    batch = draw(RandomCrops((4, 4, 4), 400, Augmentation(0, 0, 1, 0), None), item)
    factors = (batch["image"] / item["image"]).flatten(1)
    torch.testing.assert_close(factors, factors[:, :1].expand_as(factors), atol=1e-6, rtol=0)
    assert 0.9 <= float(factors.min()) < 0.905
    assert 1.095 < float(factors.max()) <= 1.1
    assert torch.equal(batch["label"], item["label"].expand_as(batch["label"]))


def test_scaling_comes_before_shifting_by_at_most_a_tenth() -> None:
    item = scan((4, 4, 4), [(1, 2, 1)])
    item["image"][0, 0, 0, 0] = 0
    shifts = draw(RandomCrops((4, 4, 4), 400, Augmentation(0, 0, 1, 1), None), item)["image"][:, 0, 0, 0, 0]
    assert -0.1 <= float(shifts.min()) < -0.095
    assert 0.095 < float(shifts.max()) <= 0.1


def test_a_change_is_as_frequent_as_it_should_be() -> None:
    item = scan((2, 2, 2), [(1, 1, 1)])
    images = draw(RandomCrops((2, 2, 2), 4000, Augmentation(0, 0, 0.1, 0), None), item)["image"]
    assert float((images != item["image"]).any(dim=(1, 2, 3, 4)).float().mean()) == pytest.approx(0.1, abs=0.02)


def test_crops_are_a_function_of_the_random_numbers_and_probabilities_do_not_move_them() -> None:
    item = scan((9, 9, 9), [(4, 4, 4)])
    crops = RandomCrops((3, 3, 3), 20, Augmentation(0.5, 0.5, 0.5, 0.5), None)
    first, again, other = draw(crops, item), draw(crops, item), draw(crops, item, seed=1)
    assert torch.equal(first["image"], again["image"])
    assert not torch.equal(first["image"], other["image"])
    plain = draw(RandomCrops((3, 3, 3), 20, PLAIN, None), item)["image"]
    flipped = draw(RandomCrops((3, 3, 3), 20, Augmentation(1, 0, 0, 0), None), item)["image"]
    assert torch.equal(plain.flip((2, 3, 4)), flipped)


@pytest.mark.parametrize(
    ("organ", "kind"), [([], "background"), (list(itertools.product(range(2), repeat=3)), "organ")]
)
def test_a_scan_with_voxels_of_one_kind_is_centred_on_those_with_a_warning(
    organ: list[tuple[int, int, int]], kind: str
) -> None:
    with pytest.warns(UserWarning, match=f"case: all crops are centred on {kind}"):
        batch = draw(RandomCrops((1, 1, 1), 100, PLAIN, None), scan((2, 2, 2), organ))
    assert len(set(starts(batch, (2, 2, 2)))) == 8


def test_a_scan_with_both_kinds_gives_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(RandomCrops((1, 1, 1), 10, PLAIN, None), scan((2, 2, 2), [(0, 0, 0)]))


def test_a_scan_with_nothing_to_centre_on() -> None:
    with pytest.raises(ValueError, match="no voxel is labelled, and none is above --a_min"):
        draw(RandomCrops((1, 1, 1), 1, PLAIN, 8.0), scan((2, 2, 2), []))

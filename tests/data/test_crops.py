"""Random crops: where they lie, against MONAI's own rule, and what is changed about them, against numpy."""

import itertools
import math
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms.utils import correct_crop_centers, map_binary_to_indices
from scipy import ndimage
from scipy.spatial.transform import Rotation

from utils.data.crops import Augmentation, RandomCrops
from utils.data.mirroring import mirrorings
from utils.data.strong_augmentation import RandBlur, StrongParameters, augment_intensities, resample

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


def test_a_label_in_one_byte_swaps_with_one_that_needs_two() -> None:
    item = scan((4, 4, 5), [])
    item["label"] = torch.full((1, 4, 4, 5), 1, dtype=torch.uint8)
    labels = ("background", "left lung", *(f"part {number}" for number in range(2, 300)), "right lung")
    batch = draw(RandomCrops((4, 4, 5), 2, Augmentation(1, 0, 0, 0, mirrorings(labels)[-1]), None), item)
    assert batch["label"].unique().tolist() == [300]


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
    ("organ", "kind"), [([], "background"), (list(itertools.product(range(2), repeat=3)), "foreground")]
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
    with pytest.raises(ValueError, match="it has no voxel to centre crops on"):
        draw(RandomCrops((1, 1, 1), 1, PLAIN, 8.0), scan((2, 2, 2), []))


def test_published_crops_are_what_numpys_draws_always_made_of_a_scan() -> None:
    """Worked out here from all indices of each kind, so that earlier runs go on with the crops they would have had."""
    generator = torch.Generator().manual_seed(0)
    item: dict[str, Any] = {
        "image": torch.randn(1, 20, 19, 18, generator=generator),
        "label": (torch.rand(1, 20, 19, 18, generator=generator) > 0.9).byte(),
        "name": "case",
    }
    image, label = item["image"][0].numpy(), item["label"][0].numpy()
    batch = draw(RandomCrops((8, 8, 6), 200, Augmentation(), None), item, seed=5)
    random = np.random.default_rng(5)
    kinds = [np.flatnonzero(label), np.flatnonzero(label == 0)]
    boxes = []
    for _ in range(200):
        kind = kinds[random.integers(2)]
        centre = np.unravel_index(kind[random.integers(len(kind), dtype=np.int32)], label.shape)
        starts = np.clip(np.array(centre) - (4, 4, 3), 0, np.array(label.shape) - (8, 8, 6))
        boxes.append(tuple(slice(start, start + size) for start, size in zip(starts, (8, 8, 6), strict=True)))
    for number, box in enumerate(boxes):
        *flipped, turned, turn, scaled, scale, shifted, shift = random.random(9)
        axes = [axis for axis in range(3) if flipped[axis] < 0.2]
        turns = 1 + int(3 * turn) if turned < 0.2 else 0
        expected, expected_label = (np.rot90(np.flip(volume[box], tuple(axes)), turns) for volume in (image, label))
        if scaled < 0.1:
            expected = expected * np.float32(0.9 + 0.2 * scale)
        if shifted < 0.1:
            expected = expected + np.float32(0.2 * shift - 0.1)
        assert np.array_equal(batch["image"][number, 0], expected)
        assert np.array_equal(batch["label"][number, 0], expected_label)


def in_voxels(spacing: tuple[float, float, float], degrees: tuple[float, float, float], scale: float) -> np.ndarray:
    """A rotation about x, y and z and a scale, both in mm, as a matrix for voxels."""
    rotation = Rotation.from_euler("XYZ", degrees, degrees=True).as_matrix()
    return np.linalg.inv(np.diag(spacing)) @ (scale * rotation) @ np.diag(spacing)


def smooth_scan(shape: tuple[int, int, int], labels: list[int], channels: int = 1) -> dict[str, Any]:
    random = np.random.default_rng(0)
    blobs = np.stack([ndimage.gaussian_filter(random.standard_normal(shape), 3) for _ in range(channels + 1)])
    kinds = np.digitize(blobs[0], np.quantile(blobs[0], np.linspace(0, 1, len(labels) + 1)[1:-1]))
    label = np.array(labels, np.uint8)[kinds]
    image = torch.from_numpy(blobs[1:].astype(np.float32) / blobs.std())
    return {"image": image, "label": torch.from_numpy(label[None]), "name": "case"}


@pytest.mark.parametrize(("degrees", "scale"), [((14, -9, 11), 1.0), ((0, 0, 0), 1.4), ((-5, 12, 8), 0.7)])
def test_a_rotated_and_scaled_crop_is_scipys(degrees: tuple[float, float, float], scale: float) -> None:
    roi, voxel = (15, 13, 11), (21, 20, 17)
    item = smooth_scan((43, 40, 36), [0, 3, 200], channels=2)
    matrix = in_voxels((1.5, 1.5, 2.0), degrees, scale)
    crop = resample(item, voxel, matrix, roi, 0.0)
    offset = voxel - matrix @ (7, 6, 5)  # the voxel is the crop's middle one
    for image, ours in zip(item["image"].numpy(), crop["image"].numpy(), strict=True):
        np.testing.assert_allclose(ours, ndimage.affine_transform(image, matrix, offset, roi, order=1), atol=1e-4)
    label = ndimage.affine_transform(item["label"][0].numpy(), matrix, offset, roi, order=0)
    assert crop["label"].dtype == torch.uint8
    assert set(crop["label"].unique().tolist()) == {0, 3, 200}
    assert (crop["label"][0].numpy() != label).mean() < 0.001  # places halfway between two voxels


def test_a_rotation_is_one_in_millimetres() -> None:
    """A ball is a ball from every side, in voxels of 1 × 1 × 3 mm as well; without these it would lie askew."""
    spacing, shape = (1.0, 1.0, 3.0), (61, 61, 21)
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) - (30, 30, 10)
    distance = np.linalg.norm(places * spacing, axis=-1)
    ball = np.exp(-((distance / 12) ** 2)).astype(np.float32)
    item = {"image": torch.from_numpy(ball[None]), "label": torch.from_numpy((distance < 12).astype(np.uint8)[None])}
    box = (slice(10, 51), slice(10, 51), slice(3, 18))

    def apart(matrix: np.ndarray) -> float:
        crop = resample(item, (30, 30, 10), matrix, (41, 41, 15), 0.0)["image"][0].numpy()
        return float(np.abs(crop - ball[box]).max())

    assert apart(in_voxels(spacing, (15, -15, 0), 1.0)) < 0.03  # what interpolation takes off the peak
    assert apart(Rotation.from_euler("XYZ", (15, -15, 0), degrees=True).as_matrix()) > 0.2


def test_drawn_rotations_and_scales_have_the_frequency_and_size_they_should() -> None:
    spacing = (1.5, 1.5, 2.0)
    random = np.random.default_rng(0)
    drawn = [StrongParameters.draw(spacing, random).matrix for _ in range(4000)]
    plain = sum(matrix is None for matrix in drawn) / 4000
    assert plain == pytest.approx(0.8 * 0.8, abs=0.03)  # four standard deviations
    scales, angles = [], []
    for matrix in drawn:
        if matrix is not None:
            millimetres = np.diag(spacing) @ matrix @ np.linalg.inv(np.diag(spacing))
            scale = float(np.cbrt(np.linalg.det(millimetres)))
            scales.append(scale)
            angles.append(Rotation.from_matrix(millimetres / scale).as_euler("XYZ", degrees=True))  # if it's a rotation
    scaled = [scale for scale in scales if abs(scale - 1) > 1e-9]
    assert len(scaled) / 4000 == pytest.approx(0.2, abs=0.026)
    assert 0.7 <= min(scaled) < 0.71
    assert 1.39 < max(scaled) <= 1.4
    tilted = np.array([angle for angle in angles if np.abs(angle).max() > 1e-6])
    assert len(tilted) / 4000 == pytest.approx(0.2, abs=0.026)
    np.testing.assert_allclose(tilted.min(0), -15, atol=0.3)
    np.testing.assert_allclose(tilted.max(0), 15, atol=0.3)
    assert np.abs(tilted).max() <= 15 + 1e-9


def test_an_image_that_is_its_label_stays_so() -> None:
    item = smooth_scan((40, 40, 40), [0, 1])
    item["image"] = item["label"].float()
    random, changed = np.random.default_rng(0), 0
    for _ in range(40):
        matrix = StrongParameters.draw((1.5, 1.5, 2.0), random).matrix
        if matrix is not None:
            crop = resample(item, (20, 18, 22), matrix, (16, 16, 16), 0.0)
            # a voxel's nearest neighbour has at least an eighth of its eight neighbours' weight
            assert float((crop["image"] - crop["label"].float()).abs().max()) <= 7 / 8 + 1e-4
            changed += 1
    assert changed > 5


def test_strong_crops_have_what_the_scan_has_where_it_has_it() -> None:
    """A crop around a voxel near the border, of some 30 voxels in the scan along each axis, is moved inside."""
    item = {"image": torch.ones(1, 60, 60, 60), "label": torch.full((1, 60, 60, 60), 7, dtype=torch.uint8)}
    matrix = in_voxels((1.5, 1.5, 2.0), (15, 15, 15), 1.4)
    for voxel in ((8, 30, 30), (30, 51, 31), (30, 30, 52)):
        crop = resample(item, voxel, matrix, (16, 16, 16), -5.0)
        torch.testing.assert_close(crop["image"], torch.ones(1, 16, 16, 16))
        assert crop["label"].unique().tolist() == [7]


def test_only_what_is_outside_of_the_scan_is_padded() -> None:
    """1.4 (n - 10) + 10 for n = 0 … 20 is within 0 … 20 for n = 3 … 17, and further out than a voxel for the others."""
    item = {"image": torch.ones(1, 21, 60, 21), "label": torch.full((1, 21, 60, 21), 7, dtype=torch.uint8)}
    crop = resample(item, (3, 30, 17), 1.4 * np.eye(3), (21, 21, 21), -5.0)
    inside = np.zeros((1, 21, 21, 21), bool)
    inside[:, 3:18, :, 3:18] = True
    np.testing.assert_allclose(crop["image"], np.where(inside, 1, -5), atol=1e-5)
    assert np.array_equal(crop["label"], np.where(inside, 7, 0))


def test_the_voxel_that_a_strong_crop_is_for_is_in_it() -> None:
    random = np.random.default_rng(0)
    for voxel in [*itertools.product((0, 19), (0, 21), (0, 17)), (10, 1, 9), (3, 20, 16)]:
        item = scan((20, 22, 18), [voxel])
        for _ in range(10):
            matrix = in_voxels((1.5, 1.5, 3.0), tuple(random.uniform(-15, 15, 3)), random.uniform(0.7, 1.4))
            crop = resample(item, voxel, matrix, (16, 16, 16), 0.0)
            at = crop["label"] == 2
            assert at.any()
            assert (crop["image"][at] - item["image"][0][voxel]).abs().min() < 0.1  # voxels are numbered along z


def test_strong_crops_are_a_function_of_their_generator_alone_on_any_thread() -> None:
    item = smooth_scan((40, 36, 30), [0, 1])
    crops = RandomCrops((16, 16, 16), 4, Augmentation(0.5, 0.5, 0.5, 0.5, strong=True), None, (1.5, 1.5, 2.0))
    prepared = crops.prepare(item)

    def of(seed: int) -> torch.Tensor:
        return crops(prepared, np.random.default_rng(seed))["image"]

    numpys, torchs = repr(np.random.get_state(legacy=False)), torch.get_rng_state()
    alone = [of(seed) for seed in range(12)]
    assert repr(np.random.get_state(legacy=False)) == numpys
    assert torch.equal(torchs, torch.get_rng_state())
    np.random.seed(3)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(of, range(12)))
    assert all(map(torch.equal, alone, together))
    assert type(alone[0]) is torch.Tensor
    assert not torch.equal(alone[0], alone[1])


def test_strong_crops_are_where_published_ones_are_and_flipped_as_they_are() -> None:
    """The label of a crop that strong augmentation neither rotates nor scales, so of 64 of 100, is as before."""
    item = smooth_scan((40, 36, 30), [0, 1, 2])
    labels = [
        draw(RandomCrops((8, 8, 8), 120, Augmentation(0.5, 0.5, 1, 1, strong=strong), None), item)["label"]
        for strong in (False, True)
    ]
    same = (labels[0] == labels[1]).flatten(1).all(1).float().mean()
    assert float(same) == pytest.approx(0.64, abs=0.18)


def test_strong_changes_of_intensity_have_nnunets_frequency() -> None:
    """Noise 0.1, blur 0.2 · 0.5, brightness and contrast 0.15, low resolution 0.25 · 0.5, gamma 0.1 and 0.3."""
    image = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 6, 6, 6)).astype(np.float32))
    changed = [augment_intensities(image, seed) for seed in range(150)]
    unchanged = sum(bool((one - image).abs().max() < 1e-5) for one in changed) / 150
    expected = 0.9 * 0.9 * 0.85 * 0.85 * 0.875 * 0.9 * 0.7
    assert unchanged == pytest.approx(expected, abs=0.16)  # four standard deviations


def test_strong_changes_of_intensity_mean_the_same_for_a_ct_as_for_an_mr() -> None:
    mr = smooth_scan((12, 12, 12), [0, 1], channels=2)["image"]
    for seed in range(40):
        changed = augment_intensities(mr, seed)
        assert torch.isfinite(changed).all()
        torch.testing.assert_close(augment_intensities(0.2 * mr + 0.5, seed), 0.2 * changed + 0.5, atol=1e-4, rtol=0)


def test_channels_change_by_draws_of_their_own_and_a_flat_one_stays() -> None:
    one = smooth_scan((8, 8, 8), [0, 1])["image"]
    changed = [augment_intensities(torch.cat([one, one, torch.ones_like(one)]), seed) for seed in range(20)]
    assert any(not torch.allclose(image[0], image[1]) for image in changed)
    for image in changed:
        torch.testing.assert_close(image[2:], torch.ones_like(one), atol=1e-4, rtol=0)


def test_blur_is_scipys_and_darkens_no_border() -> None:
    image = torch.zeros(1, 16, 12, 14)
    image[:, 8:] = 1
    blur = RandBlur((1, 1), (1, 1), (1, 1), prob=1)
    expected = ndimage.gaussian_filter(image[0].numpy(), 1, mode="nearest")
    np.testing.assert_allclose(blur(image)[0], expected, atol=0.02)  # its kernel is integrated over each voxel
    np.testing.assert_allclose(blur(torch.ones(1, 8, 8, 8)), 1, atol=1e-3)


def test_a_flip_along_x_swaps_what_is_not_annotated() -> None:
    item = {**scan((4, 4, 5), [(0, 0, 0)]), "not_annotated": (2, 3)}
    labels = ("background", "right kidney", "left kidney", "liver")
    chances = Augmentation(0.5, 0, 0, 0, mirrorings(labels)[-1])
    batch = draw(RandomCrops((4, 4, 5), 100, chances, None), item)
    swapped = [bool((label == 1).any()) for label in batch["label"]]  # the left kidney has become the right one
    assert set(swapped) == {False, True}
    assert batch["not_annotated"] == [(1, 3) if flipped else (2, 3) for flipped in swapped]


def test_voxels_that_nobody_judged_stay_so_and_no_crop_is_centred_on_them() -> None:
    item = scan((4, 4, 5), [(3, 3, 4)])
    item["label"] = item["label"].to(torch.int16)
    item["label"][:, :2] = -1
    labels = ("background", "right kidney", "left kidney")
    batch = draw(RandomCrops((1, 1, 1), 300, PLAIN, None), item)
    assert set(batch["label"].unique().tolist()) == {0, 2}
    whole = draw(RandomCrops((4, 4, 5), 20, Augmentation(1, 0, 0, 0, mirrorings(labels)[-1]), None), item)
    assert [(label == -1).sum().item() for label in whole["label"]] == [2 * 4 * 5] * 20
    assert set(whole["label"].unique().tolist()) == {-1, 0, 1}

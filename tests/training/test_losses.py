"""Losses against values worked out by hand, and against numpy."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.data.test_channels import BRATS, KITS, LABEL, LOGITS, volume
from tests.training.test_dice_ce import example
from utils.data.channels import Region, RegionChannels
from utils.training.losses import LOSSES, REGION_LOSSES, at_each_resolution, build_loss


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16])  # of scans with labels above 255
def test_each_resolution_counts_half_as_much_as_the_one_before(dtype: torch.dtype) -> None:
    values = {4: 7.0, 2: 4.0, 1: 14.0}  # by edge, what the loss is said to be there
    labels: list[Tensor] = []

    def loss(logits: Tensor, label: Tensor, not_annotated: Any = ()) -> Tensor:
        labels.append(label)
        return torch.tensor(values[logits.shape[-1]])

    label = torch.arange(64, dtype=dtype).view(1, 1, 4, 4, 4)
    logits = [torch.zeros(1, 2, *(edge,) * 3) for edge in values]
    assert at_each_resolution(loss)(logits, label).item() == pytest.approx((7 + 4 / 2 + 14 / 4) / 1.75)
    assert torch.equal(labels[0], label)
    # voxels 1 and 3 of each axis are nearest to the middles of two, and voxel 2 to that of four
    assert torch.equal(labels[1], label[..., 1::2, 1::2, 1::2])
    assert torch.equal(labels[2], label[..., 2:3, 2:3, 2:3])


def eight_voxels() -> tuple[Tensor, Tensor]:
    """Two of eight voxels are of class 1; the probability of the true class is 3/4 everywhere, as is its sigmoid."""
    label = torch.tensor([1, 1, 0, 0, 0, 0, 0, 0])
    logits = torch.stack([torch.zeros(8), math.log(3) * (2.0 * label - 1)])
    return logits.view(1, 2, 2, 2, 2), label.view(1, 1, 2, 2, 2)


# by class (0, 1): Σ p y = 4.5, 1.5; Σ y = 6, 2; Σ p = 5, 3; Σ p² = 3.5, 1.5
DICE = 1 - (2 * 4.5 / (3.5 + 6) + 2 * 1.5 / (1.5 + 2)) / 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dice", DICE),
        ("dice_ce", DICE + math.log(4 / 3)),
        # class 0 has logit 0, thus a sigmoid of 1/2; (1 - p)² is 1/4 for it and 1/16 for class 1
        ("dice_focal", DICE + (math.log(2) / 4 + math.log(4 / 3) / 16) / 2),
        # weights 1/36 and 1/4
        ("generalized_dice", 1 - 2 * (4.5 / 36 + 1.5 / 4) / ((5 + 6) / 36 + (3 + 2) / 4)),
        # Σ p y / (Σ p y + 0.3 · false positives + 0.7 · false negatives)
        ("tversky", 1 - (4.5 / (4.5 + 0.3 * 0.5 + 0.7 * 1.5) + 1.5 / (1.5 + 0.3 * 1.5 + 0.7 * 0.5)) / 2),
    ],
)
def test_eight_voxels_of_two_classes(name: str, expected: float) -> None:
    logits, label = eight_voxels()
    assert build_loss(name, 0.0, 0.0, deep_supervision=False)(logits, label).item() == pytest.approx(expected, rel=1e-6)


def in_numpy(name: str, logits: np.ndarray, label: np.ndarray, smooth_nr: float, smooth_dr: float) -> float:
    """The losses by their formulas, from logits (B, classes, n) and labels (B, n)."""
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    y = np.eye(logits.shape[1])[label].transpose(0, 2, 1)  # (B, classes, n)
    tp, fp, fn, size = (sums.sum(2) for sums in (p * y, p * (1 - y), (1 - p) * y, y))  # (B, classes)
    dice = np.mean(1 - (2 * tp + smooth_nr) / ((p**2 + y**2).sum(2) + smooth_dr))
    if name == "dice_ce":
        return float(dice - np.log((p * y).sum(1)).mean())
    if name == "dice_focal":
        sigmoid = 1 / (1 + np.exp(-logits))
        of_target = np.where(y == 1, sigmoid, 1 - sigmoid)
        return float(dice - ((1 - of_target) ** 2 * np.log(of_target)).mean())
    if name == "generalized_dice":
        weight = np.array([[1 / voxels**2 if voxels else 0 for voxels in sizes] for sizes in size])
        weight[size == 0] = weight.max(1)[np.nonzero(size == 0)[0]]  # an absent class has the highest weight
        whole = (weight * (2 * tp + fp + fn)).sum(1) + smooth_dr
        return float(np.mean(1 - (2 * (weight * tp).sum(1) + smooth_nr) / whole))
    if name == "tversky":
        return float(np.mean(1 - (tp + smooth_nr) / (tp + 0.3 * fp + 0.7 * fn + smooth_dr)))
    return float(dice)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_what_numpy_computes(name: str, dtype: torch.dtype) -> None:
    logits, label = example(torch.channels_last_3d)
    expected = in_numpy(name, logits.detach().double().flatten(2).numpy(), label.flatten(1).numpy(), 0.25, 0.5)
    loss = build_loss(name, 0.25, 0.5, deep_supervision=False)
    assert loss(logits, label.to(dtype)).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_an_absent_class_leaves_value_and_gradient_finite(name: str) -> None:
    logits = (50 * torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))).requires_grad_()
    value = build_loss(name, 0.0, 1e-6, deep_supervision=False)(logits, torch.zeros(2, 1, 4, 4, 4, dtype=torch.uint8))
    value.backward()
    assert value.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_generalised_dice_of_a_volume_without_the_organ() -> None:
    # both classes weigh 1/64: 2 · 4/64 / ((4 + 8) / 64 + (4 + 0) / 64) is 1/2
    label = torch.zeros(1, 1, 2, 2, 2, dtype=torch.uint8)
    loss = build_loss("generalized_dice", 0.0, 0.0, deep_supervision=False)
    assert loss(torch.zeros(1, 2, 2, 2, 2), label).item() == pytest.approx(0.5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16])
@pytest.mark.parametrize("name", LOSSES)
def test_mixed_precision_and_deep_supervision(name: str, dtype: torch.dtype) -> None:
    """Under autocast the loss of bfloat16 logits is that of the same numbers in float32."""
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 3, (1, 1, 8, 8, 8), generator=generator).to(dtype)
    logits = [torch.randn(1, 3, *(edge,) * 3, generator=generator).bfloat16().requires_grad_() for edge in (8, 4, 2)]
    loss = build_loss(name, 0.0, 1e-6, deep_supervision=True)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(logits, label)
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == loss([one.detach().float() for one in logits], label).item()
    for one in logits:
        assert one.grad is not None
        assert one.grad.isfinite().all()
        assert one.grad.abs().max() > 0


def partly() -> tuple[Tensor, Tensor]:
    """Two voxels with the probabilities (1/4, 1/4, 1/2) and (1/4, 1/2, 1/4), labelled background and class 1."""
    logits = torch.tensor([[[0.25, 0.25], [0.25, 0.5], [0.5, 0.25]]]).log()  # (1, classes, voxels)
    return logits.reshape(1, 3, 2, 1, 1), torch.tensor([0, 1], dtype=torch.uint8).reshape(1, 1, 2, 1, 1)


def test_a_structure_that_nobody_drew_counts_as_background_that_may_be_it() -> None:
    logits, label = partly()
    logits.requires_grad_()
    value = build_loss("dice_ce", 0.0, 0.0, deep_supervision=False)(logits, label, [[2]])
    # background and class 2 together have 3/4 and 1/2, class 1 has 1/4 and 1/2
    background = 1 - 2 * (3 / 4) / (9 / 16 + 1 / 4 + 1)
    first = 1 - 2 * (1 / 2) / (1 / 16 + 1 / 4 + 1)
    cross_entropy = -(math.log(3 / 4) + math.log(1 / 2)) / 2
    assert value.item() == pytest.approx((background + first) / 2 + cross_entropy, rel=1e-6)
    value.backward()
    assert logits.grad is not None
    gradient = logits.grad[0, :, :, 0, 0]  # (classes, voxels)
    # what is learned of the sum goes to both by their shares: 1/4 to 1/2 in one voxel, 1/4 to 1/4 in the other
    assert gradient[2, 0].item() == pytest.approx(2 * gradient[0, 0].item(), rel=1e-5)
    assert gradient[2, 1].item() == pytest.approx(gradient[0, 1].item(), rel=1e-5)
    torch.testing.assert_close(gradient.sum(0), torch.zeros(2), rtol=0, atol=1e-7)

    # by hand, with the probabilities q = 3/4, 1/2 of the background: class 1 has 1 - q, and dq/dz = q (1 - q)
    q = torch.tensor([3 / 4, 1 / 2], dtype=torch.float64)
    rest = 1 - q
    dice_background = -2 * torch.tensor([1.0, 0.0]) / 1.8125 + 2 * (2 * q[0]) / 1.8125**2 * q
    dice_first = -2 * torch.tensor([0.0, 1.0]) / 1.3125 + 2 * (2 * rest[1]) / 1.3125**2 * rest
    by_entropy = torch.tensor([-1 / q[0], 1 / rest[1]]) / 2
    by_q = (dice_background - dice_first) / 2 + by_entropy
    torch.testing.assert_close(gradient[1].double(), -by_q * q * rest, rtol=1e-5, atol=1e-7)


def test_each_sample_counts_the_same_whether_all_of_it_is_annotated_or_not() -> None:
    logits, label = partly()
    loss = build_loss("dice_ce", 0.0, 0.0, deep_supervision=False)
    alone = loss(logits, label, [[2]]).item(), loss(logits, label, [[]]).item()
    assert alone[0] != pytest.approx(alone[1])
    both = loss(torch.cat([logits, logits, logits]), torch.cat([label, label, label]), [[], [2], []])
    assert both.item() == pytest.approx((alone[0] + 2 * alone[1]) / 3, rel=1e-6)
    assert loss(logits, label).item() == alone[1]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("deep_supervision", [False, True])
def test_a_voxel_that_nobody_judged_changes_no_gradient(name: str, deep_supervision: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 3, (2, 1, 4, 4, 4), generator=generator).to(torch.int16)
    label[1, :, :2] = -1
    loss = build_loss(name, 0.0, 1e-6, deep_supervision)
    values = [torch.randn(2, 3, *(4 >> level,) * 3, generator=generator) for level in range(1 + deep_supervision)]
    gradients = []
    for other in (0.0, 7.0):
        logits = [one.clone() for one in values]
        for level, one in enumerate(logits):
            one[1, 0, : 2 >> level] += other
            one.requires_grad_()
        loss(logits if deep_supervision else logits[0], label, [[], [2]]).backward()
        gradients.append([one.grad for one in logits])
    for level, (first, second) in enumerate(zip(*gradients, strict=True)):
        assert first is not None
        assert second is not None
        assert torch.equal(first, second)
        assert not first[1, :, : 2 >> level].any()
        assert first[0].all()


def test_voxels_that_nobody_judged_are_as_if_they_were_not_there() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, 4, 2, 2, generator=generator)
    label = torch.randint(0, 3, (1, 1, 4, 2, 2), generator=generator).to(torch.int16)
    label[:, :, 1:3] = -1
    kept = [0, 3]
    for name in LOSSES:
        loss = build_loss(name, 0.0, 1e-6, deep_supervision=False)
        assert loss(logits, label).item() == pytest.approx(loss(logits[:, :, kept], label[:, :, kept]).item(), rel=1e-6)


def test_a_crop_of_which_nobody_judged_a_voxel_teaches_nothing() -> None:
    logits = torch.randn(1, 3, 4, 2, 2, requires_grad=True)
    value = build_loss("dice_ce", 0.0, 1e-6, deep_supervision=False)(logits, torch.full((1, 1, 4, 2, 2), -1))
    value.backward()
    assert value.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


# what nnU-Net 2.8.1 gives for the six voxels of tests/data/test_channels.py: the value of DC_and_BCE_loss with smooth
# 1e-5 and batch_dice False, in which the Dice loss is -Dice and not 1 - Dice, and its gradient
NNUNET: dict[str, tuple[RegionChannels, float, list[list[float]]]] = {
    "brats": (BRATS, -0.2518855929374695, [
        [0.0104549340903759, -0.012338888831436634, -0.02564595825970173, -0.005094466730952263, 0.022118058055639267,
         -0.0473761260509491],
        [0.022967763245105743, 0.022967763245105743, -0.04300132021307945, -0.01646341383457184, 0.048640936613082886,
         0.016223572194576263],
        [0.0049165599048137665, 0.024871693924069405, 0.03284408152103424, -0.04720630496740341, 0.011925415135920048,
         0.04366380348801613],
    ]),
    "kits": (KITS, -0.09268245100975037, [
        [0.0104549340903759, -0.012338888831436634, -0.02564595825970173, -0.005094466730952263, 0.022118058055639267,
         -0.0473761260509491],
        [0.022967763245105743, 0.022967763245105743, -0.04300132021307945, -0.01646341383457184, 0.048640936613082886,
         0.016223572194576263],
        [0.003813162911683321, 0.020069634541869164, -0.0788862407207489, 0.045742809772491455, 0.009361046366393566,
         0.037652213126420975],
    ]),
}  # fmt: skip


@pytest.mark.parametrize("name", NNUNET)
def test_the_loss_of_regions_is_that_of_nnunet(name: str) -> None:
    output, expected, gradient = NNUNET[name]
    logits = volume(LOGITS).clone().requires_grad_()
    value = build_loss("dice_ce", 1e-5, 1e-5, deep_supervision=False, output=output)(logits, volume(LABEL))
    value.backward()
    assert value.item() == pytest.approx(1 + expected, abs=1e-6)
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad[0, :, :, 0, 0], torch.tensor(gradient), rtol=1e-5, atol=1e-7)


TWO = RegionChannels((Region("all", (1, 2)), Region("core", (2,))), (1, 2))


def two_regions() -> tuple[Tensor, Tensor]:
    """Of eight voxels two are of label 1 and two of label 2; the probability of the truth is 3/4 in each region."""
    label = torch.tensor([1, 1, 2, 2, 0, 0, 0, 0])
    inside = torch.stack([label > 0, label == 2]).float()
    return (math.log(3) * (2 * inside - 1)).view(1, 2, 2, 2, 2), label.view(1, 1, 2, 2, 2)


# by region (all, core): Σ p y = 3, 1.5; Σ y = 4, 2; Σ p = 4, 3
REGION_DICE = 1 - (2 * 3 / (4 + 4) + 2 * 1.5 / (3 + 2)) / 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dice", REGION_DICE),
        ("dice_ce", REGION_DICE + math.log(4 / 3)),
        ("dice_focal", REGION_DICE + math.log(4 / 3) / 16),  # (1 - p)² is 1/16
        ("generalized_dice", 1 - 2 * (3 / 16 + 1.5 / 4) / ((4 + 4) / 16 + (3 + 2) / 4)),  # weights 1/16 and 1/4
        ("tversky", 1 - (3 / (3 + 0.3 * 1 + 0.7 * 1) + 1.5 / (1.5 + 0.3 * 1.5 + 0.7 * 0.5)) / 2),
    ],
)
def test_every_loss_of_regions_by_hand(name: str, expected: float) -> None:
    logits, label = two_regions()
    for dtype in (torch.uint8, torch.int16):
        loss = build_loss(name, 0.0, 0.0, deep_supervision=False, output=TWO)
        assert loss(logits, label.to(dtype)).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", REGION_LOSSES)
@pytest.mark.parametrize("deep_supervision", [False, True])
def test_a_voxel_that_nobody_judged_changes_no_gradient_of_regions(name: str, deep_supervision: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 3, (2, 1, 4, 4, 4), generator=generator).to(torch.int16)
    label[1, :, :2] = -1
    loss = build_loss(name, 0.0, 1e-6, deep_supervision, TWO)
    values = [torch.randn(2, 2, *(4 >> level,) * 3, generator=generator) for level in range(1 + deep_supervision)]
    gradients = []
    for other in (0.0, 7.0):
        logits = [one.clone() for one in values]
        for level, one in enumerate(logits):
            one[1, :, : 2 >> level] += other
            one.requires_grad_()
        loss(logits if deep_supervision else logits[0], label).backward()
        gradients.append([one.grad for one in logits])
    for level, (one, other_one) in enumerate(zip(*gradients, strict=True)):
        assert one is not None
        assert torch.equal(one, other_one)  # to the last bit
        assert not one[1, :, : 2 >> level].any()
        assert one[1, :, 2 >> level :].any()


def test_ignored_voxels_are_as_if_they_were_not_there() -> None:
    logits, label = two_regions()
    more = torch.cat([logits, torch.full_like(logits, 5.0)], 4), torch.cat([label, torch.full_like(label, -1)], 4)
    loss = build_loss("dice_ce", 0.0, 0.0, deep_supervision=False, output=TWO)
    assert loss(*more).item() == loss(logits, label).item()
    nothing = loss(logits.requires_grad_(), torch.full_like(label, -1))
    nothing.backward()
    assert nothing.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_a_region_with_a_label_that_nobody_drew_has_no_loss() -> None:
    """Label 1 is unknown in the second sample: there the region of 1 and 2 is, and that of 2 isn't."""
    logits, label = two_regions()
    logits, label = torch.cat([logits, logits]).requires_grad_(), torch.cat([label, label])
    loss = build_loss("dice_ce", 0.0, 0.0, deep_supervision=False, output=TWO)
    value = loss(logits, label, [[], [1]])
    core = 1 - 2 * 1.5 / (3 + 2) + math.log(4 / 3)
    assert value.item() == pytest.approx((REGION_DICE + math.log(4 / 3) + core) / 2, rel=1e-6)
    value.backward()
    assert logits.grad is not None
    assert not logits.grad[1, 0].any()
    assert logits.grad[1, 1].all()
    assert loss(logits[1:], label[1:], [[2]]).item() == 0  # nothing is known of it

"""How sure networks are, by hand."""

import math

import pytest
import torch

from utils.inference.confidence import CertaintyCollector, agreement, soft_dice


def scan(*probabilities: float) -> torch.Tensor:
    """Probabilities of background and an organ (2, 1, 1, voxels)."""
    organ = torch.tensor(probabilities)
    return torch.stack([1 - organ, organ])[:, None, None]


def test_soft_dice_is_the_dice_of_mask_and_probabilities() -> None:
    values, mask = soft_dice(scan(0.9, 0.6, 0.2, 0.04))
    assert mask.flatten().tolist() == [1, 1, 0, 0]
    assert values[1] == pytest.approx(2 * (0.9 + 0.6) / (2 + 1.7))
    assert values[0] == pytest.approx(2 * (0.8 + 0.96) / (2 + 0.1 + 0.4 + 0.8 + 0.96))


def test_a_certain_mask_has_soft_dice_one_and_an_empty_one_has_none() -> None:
    assert soft_dice(scan(1, 1, 0))[0][1] == 1
    assert math.isnan(soft_dice(scan(0.4, 0.4, 0))[0][1])


def test_the_agreement_of_two_masks_is_their_dice() -> None:
    masks = [torch.tensor([[[1, 1, 1, 0, 2]]]), torch.tensor([[[0, 1, 1, 1, 0]]])]
    assert agreement(masks, 4)[1:3] == pytest.approx((2 * 2 / 6, 0))
    assert math.isnan(agreement(masks, 4)[3])


def test_the_agreement_of_three_masks_is_over_all_pairs() -> None:
    masks = [torch.tensor(row) for row in ([1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 1])]
    # pairs share 2, 1 and 1 voxels, of 2 + 3, 2 + 2 and 3 + 2
    assert agreement(masks, 2)[1] == pytest.approx(2 * (2 + 1 + 1) / (5 + 4 + 5))


def test_one_network_agrees_with_nobody() -> None:
    collector = CertaintyCollector()
    collector.add(scan(0.9, 0.1))
    assert all(math.isnan(value) for value in collector.certainty().agreement)
    collector.add(scan(0.9, 0.1))
    certainty = collector.certainty()
    assert certainty.agreement == (1, 1)
    assert certainty.soft_dice[0] == certainty.soft_dice[1]
    collector.clear()
    assert not collector.soft_dice
    assert not collector.masks

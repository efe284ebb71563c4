"""How sure networks are, by hand."""

import math

import pytest
import torch

from utils.data.channels import Region, RegionChannels
from utils.inference.confidence import CertaintyCollector, agreement, soft_dice


def masks(*rows: list[int]) -> list[torch.Tensor]:
    return [torch.tensor(row, dtype=torch.bool) for row in rows]


def test_soft_dice_is_the_dice_of_mask_and_probabilities() -> None:
    probability, (mask,) = torch.tensor([0.9, 0.6, 0.2, 0.04]), masks([1, 1, 0, 0])
    assert soft_dice(probability, mask) == pytest.approx(2 * (0.9 + 0.6) / (2 + 1.7))


def test_a_certain_mask_has_soft_dice_one_and_an_empty_one_has_none() -> None:
    assert soft_dice(torch.tensor([1.0, 1.0, 0.0]), *masks([1, 1, 0])) == 1
    assert math.isnan(soft_dice(torch.tensor([0.4, 0.4, 0.0]), *masks([0, 0, 0])))


def agreed(*rows: list[int]) -> float:
    return agreement(masks(*rows), {"organ": (1,)})["organ"]


def test_the_agreement_of_two_masks_is_their_dice() -> None:
    assert agreed([1, 1, 1, 0], [0, 1, 1, 1]) == pytest.approx(2 * 2 / 6)
    assert agreed([1, 0], [0, 0]) == 0
    assert math.isnan(agreed([0, 0], [0, 0]))
    assert math.isnan(agreed([1, 1]))


def test_the_agreement_of_three_masks_is_over_all_pairs() -> None:
    # pairs share 2, 1 and 1 voxels, of 2 + 3, 2 + 2 and 3 + 2
    assert agreed([1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 1]) == pytest.approx(2 * (2 + 1 + 1) / (5 + 4 + 5))


def test_networks_are_collected_by_organ_and_region() -> None:
    one = torch.tensor([[0.1, 0.1, 1.0], [0.7, 0.3, 0.0], [0.2, 0.6, 0.0]])[:, None, None]  # (classes, 1, 1, 3)
    other = torch.tensor([[0.0, 0.9, 1.0], [1.0, 0.1, 0.0], [0.0, 0.0, 0.0]])[:, None, None]
    collector = CertaintyCollector({"core": (1,), "rim": (2,), "both": (1, 2)})
    collector.add(one)
    first = collector.certainty()
    expected = {"core": 2 * 0.7 / (1 + 1.0), "rim": 2 * 0.6 / (1 + 0.8), "both": 2 * 1.8 / (2 + 1.8)}
    assert {name: values[0] for name, values in first.soft_dice.items()} == pytest.approx(expected)
    assert all(math.isnan(value) for value in first.agreement.values())
    collector.add(other)
    both = collector.certainty()
    assert both.soft_dice["core"][1] == pytest.approx(2 * 1 / (1 + 1.1))
    assert math.isnan(both.soft_dice["rim"][1])
    assert both.agreement == pytest.approx({"core": 1, "rim": 0, "both": 2 * 1 / (2 + 1)})
    collector.clear()
    collector.add(one)
    assert collector.certainty().soft_dice == first.soft_dice


def test_a_trained_region_has_its_channel_and_a_label_alone_may_have_none() -> None:
    output = RegionChannels((Region("whole", (1, 2)), Region("core", (2,))), (1, 2))
    collector = CertaintyCollector({"rim": (1,), "core": (2,), "whole": (1, 2)}, output)
    collector.add(torch.tensor([[0.9, 0.8, 0.2], [0.6, 0.1, 0.0]])[:, None, None])
    found = collector.certainty().soft_dice
    assert math.isnan(found["rim"][0])
    assert found["core"] == pytest.approx([2 * 0.6 / (1 + 0.7)])
    assert found["whole"] == pytest.approx([2 * 1.7 / (2 + 1.9)])

"""Dice of boxes worked out by hand, and against MONAI's."""

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice
from monai.networks.utils import one_hot

from utils.metrics import Scores, dice_per_label


def box(value: int, start: int, stop: int) -> torch.Tensor:
    volume = torch.zeros(8, 4, 4, dtype=torch.int16)
    volume[start:stop] = value
    return volume


def test_two_boxes_that_share_half() -> None:
    assert dice_per_label(box(1, 0, 4), box(1, 2, 6), 2).tolist() == [0.5]  # 2 of 4 slices in common


def test_different_sizes() -> None:
    # 2 slices in common, 2 and 6 slices large: 2 · 2 / (2 + 6)
    assert dice_per_label(box(1, 2, 4), box(1, 0, 6), 2).tolist() == [0.5]


def test_absent_from_both_is_not_a_number_and_from_one_alone_is_zero() -> None:
    prediction, label = box(1, 0, 2), box(2, 4, 6)
    dice = dice_per_label(prediction, label, 4)
    assert dice[:2].tolist() == [0.0, 0.0]
    assert torch.isnan(dice[2])


def test_random_label_maps_agree_with_monai(random: np.random.Generator) -> None:
    prediction, label = (torch.from_numpy(random.integers(0, 5, (9, 8, 7))) for _ in range(2))
    theirs = compute_dice(one_hot(prediction[None, None], 5), one_hot(label[None, None], 5), include_background=False)[
        0
    ]
    torch.testing.assert_close(dice_per_label(prediction, label, 5), theirs.double(), atol=1e-6, rtol=0)


def test_means_leave_out_what_is_absent() -> None:
    scores = Scores(("a", "b"), ("liver", "spleen", "kidney"), np.array([[0.8, np.nan, np.nan], [0.6, 0.2, np.nan]]))
    assert scores.scan_means.tolist() == pytest.approx([0.8, 0.4])
    assert scores.organ_means[:2].tolist() == pytest.approx([0.7, 0.2])
    assert np.isnan(scores.organ_means[2])
    assert scores.mean == pytest.approx(0.6)  # over both scans, not the last alone


def test_a_set_without_any_organ_has_no_mean() -> None:
    assert np.isnan(Scores(("a",), ("liver",), np.array([[np.nan]])).mean)

"""Dice of boxes worked out by hand, and compared with MONAI's."""

import statistics

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice
from monai.networks.utils import one_hot

from utils.evaluation.metrics import FoldScores, Scores, dice_per_label, dice_per_structure, nan_mean, nan_to_none
from utils.io.scan import IGNORED


def box(value: int, start: int, stop: int) -> torch.Tensor:
    volume = torch.zeros(8, 4, 4, dtype=torch.int16)
    volume[start:stop] = value
    return volume


def test_two_boxes_that_share_half() -> None:
    assert dice_per_label(box(1, 0, 4), box(1, 2, 6), 2).tolist() == [0.5]  # 2 of 4 slices in common


def test_different_sizes() -> None:
    # 2 slices in common, 2 and 6 slices large: 2 · 2 / (2 + 6)
    assert dice_per_label(box(1, 2, 4), box(1, 0, 6), 2).tolist() == [0.5]


def test_a_label_in_neither_map_has_no_dice_and_in_one_map_zero() -> None:
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


def test_means_leave_out_absent_organs() -> None:
    scores = Scores(("a", "b"), ("liver", "spleen", "kidney"), np.array([[0.8, np.nan, np.nan], [0.6, 0.2, np.nan]]))
    assert scores.scan_means.tolist() == pytest.approx([0.8, 0.4])
    assert scores.organ_means[:2].tolist() == pytest.approx([0.7, 0.2])
    assert np.isnan(scores.organ_means[2])
    assert scores.mean == pytest.approx(0.6)  # over both scans, not only the last


def test_a_mean_counts_none_as_nan() -> None:
    assert nan_mean([1.0, None, 2.0, float("nan")]) == 1.5
    assert np.isnan(nan_mean([None]))
    assert np.isnan(nan_mean([]))
    np.testing.assert_array_equal(nan_mean([[1.0, None], [3.0, 5.0]], axis=1), [1.0, 4.0])


def test_json_has_null_for_nan() -> None:
    assert nan_to_none(float("nan")) is None
    assert nan_to_none(np.float64(0.5)) == 0.5


def test_scans_without_any_organ_have_no_mean() -> None:
    assert np.isnan(Scores(("a",), ("liver",), np.array([[np.nan]])).mean)


def test_means_and_deviations_over_folds_and_over_scans() -> None:
    """Fold 0 has two scans and fold 1 has one. Only one scan, of fold 0, has a liver."""
    nan = float("nan")
    folds = {
        0: Scores(("a", "b"), ("spleen", "liver"), np.array([[0.8, nan], [0.6, 0.4]])),
        1: Scores(("c",), ("spleen", "liver"), np.array([[0.9, nan]])),
    }
    scores = FoldScores(folds)
    # scans: a 0.8, b (0.6 + 0.4) / 2, c 0.9; folds: (0.8 + 0.5) / 2 and 0.9, of the spleen 0.7 and 0.9
    np.testing.assert_allclose(scores.by_scan, [[0.8, 0.8, nan], [0.5, 0.6, 0.4], [0.9, 0.9, nan]])
    np.testing.assert_allclose(scores.by_fold, [[0.65, 0.7, 0.4], [0.9, 0.9, nan]])
    summary = scores.summary
    np.testing.assert_allclose(summary["mean over folds"], [0.775, 0.8, 0.4])
    np.testing.assert_allclose(summary["mean over scans"], [2.2 / 3, 2.3 / 3, 0.4])
    # of two values the deviation is their distance over √2; of one there is none
    np.testing.assert_allclose(summary["sd over folds"], [0.25 / 2**0.5, 0.2 / 2**0.5, nan])
    # spleen: 0.8, 0.6, 0.9 have the squared distances 1/900, 25/900 and 16/900, half of whose sum is 21/900
    np.testing.assert_allclose(summary["sd over scans"], [statistics.stdev([0.8, 0.5, 0.9]), (21 / 900) ** 0.5, nan])
    assert scores.counted.tolist() == [3, 3, 1]


def test_one_fold_has_no_deviation() -> None:
    scores = FoldScores({3: Scores(("a",), ("spleen",), np.array([[0.5]]))})
    np.testing.assert_array_equal(scores.summary["sd over folds"], [np.nan, np.nan])
    np.testing.assert_array_equal(scores.summary["mean over folds"], [0.5, 0.5])


def test_voxels_that_nobody_judged_are_left_out() -> None:
    label = box(1, 0, 6)
    label[4:] = -1  # 4 of the prediction's slices 2 … 7 are among them
    assert dice_per_label(box(1, 2, 8), label, 2).tolist() == [2 * 2 / (2 + 4)]


def test_a_label_that_nobody_drew_has_no_dice_and_the_others_have_theirs() -> None:
    prediction, label = box(1, 0, 4), box(1, 2, 6)
    prediction[6:] = 2
    dice = dice_per_label(prediction, label, 3, not_annotated=(2,))
    assert dice[0].item() == 0.5
    assert torch.isnan(dice[1])


def test_the_dice_of_regions_is_that_of_nnunet() -> None:
    """Its ``region_or_label_to_mask`` and ``compute_tp_fp_fn_tn`` give 8/9, 2/3 and 2/3, as one counts by hand."""
    prediction, label = torch.tensor([0, 1, 2, 3, 2, 3]), torch.tensor([0, 1, 2, 3, 0, 1])
    structures = [(1, 2, 3), (2, 3), (3,)]
    dice = dice_per_structure(prediction, label, structures, 4)
    assert dice.tolist() == [8 / 9, 2 / 3, 2 / 3]
    unknown = dice_per_structure(prediction, label, structures, 4, not_annotated=(2,))
    assert unknown.isnan().tolist() == [True, True, False]
    label[4] = -1  # the core that is too many
    assert dice_per_structure(prediction, label, structures, 4).tolist() == [1, 2 * 2 / (3 + 2), 2 / 3]
    assert dice_per_structure(prediction[:1], label[:1], structures, 4).isnan().all()


def test_large_values_have_the_dice_of_small_ones(random: np.random.Generator) -> None:
    large = torch.tensor([0, 2, 41, 1035, 14175, 32767], dtype=torch.int16)  # the last occurs in neither
    prediction, label = (torch.from_numpy(random.integers(0, 5, (9, 8, 7))) for _ in range(2))
    of_label = large[label]
    label[0] = of_label[0] = IGNORED
    structures, not_annotated = [(1,), (2, 4), (3, 1), (5,), (4, 5)], [3]
    expected = dice_per_structure(prediction, label, structures, 6, not_annotated)
    of_large = [[int(large[value]) for value in values] for values in structures]
    found = dice_per_structure(large[prediction], of_label, of_large, 32768, [1035])
    assert expected.isnan().tolist() == [False, False, True, True, False]
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_label_255_of_a_byte_is_judged() -> None:
    label = torch.tensor([[[0, 255]]], dtype=torch.uint8)
    assert dice_per_structure(label, label, [(255,)], 256).tolist() == [1.0]

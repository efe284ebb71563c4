"""Overlap of label maps, counted by hand."""

import math

import torch

from utils.data.overlap import dice_of, joint_counts


def test_voxels_are_counted_by_pairs_of_labels() -> None:
    first, second = torch.tensor([0, 1, 1, 2, 2, 2]), torch.tensor([1, 1, 2, 2, 2, 0], dtype=torch.int16)
    counts = joint_counts(first, second, 4)
    assert counts.tolist() == [[0, 1, 0, 0], [0, 1, 1, 0], [1, 0, 2, 0], [0, 0, 0, 0]]
    assert dice_of(counts, [1]) == 2 * 1 / (2 + 2)
    assert dice_of(counts, [1, 2]) == 2 * 4 / (5 + 5)  # whatever the labels inside the union
    assert math.isnan(dice_of(counts, [3]))

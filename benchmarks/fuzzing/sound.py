"""The sound scan that every hostile input is a changed copy of, and its label."""

import numpy as np

SHAPE = (12, 10, 8)
SPACING = (12.0, 12.0, 14.0)  # of the network as well, so that nothing is resampled
CLASSES = ("background", "left organ", "right organ")


def voxels() -> np.ndarray:
    """(12, 10, 8) int16: two organs of 100 and 300, noise, and no symmetry."""
    noise = np.random.default_rng(0).normal(0, 15, SHAPE)
    return (noise + 200.0 * (labels() == 1) + 400.0 * (labels() == 2) - 100).astype(np.int16)


def labels() -> np.ndarray:
    """(12, 10, 8) uint8: a box of each organ."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:5, 2:8, 1:6] = 1
    mask[7:11, 3:9, 2:7] = 2
    return mask


def affine() -> np.ndarray:
    """(4, 4), from voxel index to mm in RAS+."""
    placed = np.diag([*SPACING, 1.0])
    placed[:3, 3] = -60.0, -50.0, 30.0
    return placed

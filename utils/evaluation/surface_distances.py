"""Hausdorff distance and surface Dice of two masks."""

import warnings

import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice

# MONAI 1.6 warns of an argument that its own surface Dice still uses
warnings.filterwarnings("ignore", category=FutureWarning, message=".*get_mask_edges.*|.*always_return_as_numpy.*")


def surface_scores(
    prediction: np.ndarray, label: np.ndarray, spacing: tuple[float, float, float], tolerance: float
) -> tuple[float | None, float | None]:
    """The 95 % Hausdorff distance and the normalised surface Dice (Nikolov et al. 2018).

    Args:
        prediction, label: (X, Y, Z), boolean.
        spacing: voxel size in mm.
        tolerance: of the surface Dice, in mm.

    Returns:
        The distance in mm (the larger of both directions' 95th percentiles), None if a mask is empty; and the surface
        Dice, 0 if one mask is empty, None if both are.
    """
    if not prediction.any() and not label.any():
        return None, None
    if not prediction.any() or not label.any():
        return None, 0.0
    indices = np.nonzero(prediction | label)
    box = tuple(slice(axis.min(), axis.max() + 1) for axis in indices)
    # pad by one voxel, so that an organ has a surface at the faces of the box too
    first, second = (torch.from_numpy(np.pad(mask[box], 1))[None, None] for mask in (prediction, label))  # (1, 1, …)
    distance = compute_hausdorff_distance(first, second, include_background=True, percentile=95, spacing=spacing)
    surface_dice = compute_surface_dice(
        first, second, [tolerance], include_background=True, spacing=spacing, use_subvoxels=True
    )
    return float(distance), float(surface_dice)

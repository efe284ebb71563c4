"""How far the surfaces of two masks lie apart."""

import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice


def surface_scores(
    prediction: np.ndarray, label: np.ndarray, spacing: tuple[float, float, float], tolerance: float
) -> tuple[float | None, float | None]:
    """How far the surfaces of two masks lie apart.

    Args:
        prediction, label: (X, Y, Z), boolean.
        spacing: voxel size in mm.
        tolerance: in mm, what the normalised surface Dice forgives.

    Returns:
        The 95 % Hausdorff distance in mm (the larger of both directions' 95th percentiles), None where a mask is empty;
        and the normalised surface Dice (Nikolov et al. 2018), 0 where one mask is empty, None where both are.
    """
    if not prediction.any() and not label.any():
        return None, None
    if not prediction.any() or not label.any():
        return None, 0.0
    places = np.nonzero(prediction | label)
    box = tuple(slice(axis.min(), axis.max() + 1) for axis in places)
    # a rim of one voxel, since a surface at the box's face is one as well
    ours, theirs = (torch.from_numpy(np.pad(mask[box], 1))[None, None] for mask in (prediction, label))  # (1, 1, …)
    distance = compute_hausdorff_distance(ours, theirs, include_background=True, percentile=95, spacing=spacing)
    near = compute_surface_dice(ours, theirs, [tolerance], include_background=True, spacing=spacing, use_subvoxels=True)
    return float(distance), float(near)

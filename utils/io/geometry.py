"""Whether a grid can place voxels in space, and whether two grids are the same."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from utils.system.errors import size_text

GRID_TOLERANCE_MM = 1e-2
FARTHEST_MM = 1e7  # beyond it 32-bit numbers, which headers have, don't tell one mm from the next
# DICOM and ITK count mm to the patient's Left, Posterior and Superior, nibabel to Right, Anterior and Superior
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def to_ras(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """A view of a volume (X, Y, Z) whose axes run to the Right, Anterior and Superior, as nearly as its voxels lie."""
    turned: np.ndarray = apply_orientation(volume, io_orientation(affine))
    return turned


def ras_spacing(affine: np.ndarray) -> tuple[float, float, float]:
    """Voxel size in mm along the axes of :func:`to_ras`."""
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    x, y, z = (float(steps[axis]) for axis in np.argsort(io_orientation(affine)[:, 0]))
    return x, y, z


def ras_affine(affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The affine (4, 4) of :func:`to_ras` of a volume with this affine and shape."""
    turned: np.ndarray = affine @ inv_ornt_aff(io_orientation(affine), shape)
    return turned


def affine_faults(path: Path, affine: np.ndarray) -> list[str]:
    """What is wrong with the affine (4, 4) of a file, in a sentence; none if it can place voxels in space."""
    if not np.isfinite(affine).all() or np.abs(affine).max() > FARTHEST_MM or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        return [
            f"{path}: its affine can't place voxels in space: a voxel size is 0 or missing, or a number is beyond "
            f"{FARTHEST_MM:g}. Mend its header."
        ]
    if not np.allclose(affine[3], (0, 0, 0, 1)):
        row = ", ".join(f"{number:g}" for number in affine[3])
        return [f"{path}: its affine ends with the row {row} instead of 0, 0, 0, 1. Is it transposed?"]
    return []


def grid_faults(
    path: Path,
    shape: Sequence[int],
    affine: np.ndarray,
    other_path: Path,
    other_shape: Sequence[int],
    other_affine: np.ndarray,
) -> list[str]:
    """How the grid (X, Y, Z) of a file differs from that of another, in a sentence; none if it doesn't."""
    if tuple(shape) != tuple(other_shape):
        return [
            f"{path}: has shape {size_text(shape)}, but {other_path.name} has "
            f"{size_text(other_shape)}. Both must lie on one grid; resample one to the other."
        ]
    corners = np.array([[x, y, z, 1] for x in (0, shape[0]) for y in (0, shape[1]) for z in (0, shape[2])])
    distance = np.abs(corners @ (affine - other_affine).T).max()
    if not distance <= GRID_TOLERANCE_MM:
        return [
            f"{path}: lies up to {distance:.3g} mm away from {other_path.name} (their affines differ). "
            "Both must lie on one grid; resample one to the other."
        ]
    return []

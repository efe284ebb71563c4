"""Linear interpolation, one axis at a time, between grids with parallel axes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

MAX_DRIFT = 1e-6  # in voxels: how far an axis may drift sideways over its whole length
SLAB_VOXELS = 2**21  # how much of a grid is processed at a time, so that it stays in the CPU's cache


@dataclass(frozen=True)
class AxisMap:
    """How a grid lies in another with parallel axes, in whatever order and direction.

    Attributes:
        order: for each axis of the grid, the axis of the other that it runs along.
        scale, offset: voxel i along an axis of the grid is at i · scale + offset on that axis of the other.
    """

    order: tuple[int, int, int]
    scale: tuple[float, float, float]
    offset: tuple[float, float, float]

    @classmethod
    def from_matrix(cls, matrix: np.ndarray, shape: Sequence[int]) -> "AxisMap | None":
        """The map of a matrix (4, 4) from a grid's voxel indices to another's; None if it rotates or shears.

        Args:
            shape: of the grid.
        """
        linear = matrix[:3, :3]
        order = np.abs(linear).argmax(0)  # by the grid's axes
        straight = np.zeros_like(linear)
        straight[order, range(3)] = linear[order, range(3)]
        drift = np.abs(linear - straight) @ np.array(shape)
        if len(set(order)) < 3 or (drift > MAX_DRIFT).any():
            return None
        x, y, z = (int(axis) for axis in order)
        scale = linear[order, range(3)]
        offset = matrix[order, 3]
        return cls((x, y, z), tuple(map(float, scale)), tuple(map(float, offset)))  # type: ignore[arg-type]

    def positions(self, axis: int, start: int, stop: int) -> Tensor:
        """Fractional indices on the other grid of the voxels ``start`` … ``stop`` - 1 along an axis, in float64."""
        return torch.arange(start, stop, dtype=torch.float64) * self.scale[axis] + self.offset[axis]


def interpolate(volume: Tensor, grid: AxisMap, start: Sequence[int], stop: Sequence[int]) -> Tensor:
    """The values of a volume at a box of a grid; beyond the volume, those of its border.

    Args:
        volume: (D, H, W), of any type and memory layout.
        start, stop: the box's first voxel and the one behind its last, along the grid's axes.

    Returns:
        ``stop - start`` in float32, in the volume's memory layout.
    """
    positions = {grid.order[axis]: grid.positions(axis, start[axis], stop[axis]) for axis in range(3)}
    layout = sorted(range(3), key=volume.stride, reverse=True)  # reads whole rows, whatever axis they run along
    volume = volume.permute(layout)
    # first the axis that shrinks most, so that the others have less to do
    for axis in sorted(range(3), key=lambda axis: len(positions[layout[axis]]) / volume.shape[axis]):
        volume = _interpolate_axis(volume, axis, positions[layout[axis]])
    return volume.permute([layout.index(axis) for axis in grid.order])


def _interpolate_axis(volume: Tensor, axis: int, positions: Tensor) -> Tensor:
    """The values at fractional indices along one axis."""
    last = volume.shape[axis] - 1
    positions = positions.clamp(0, last)
    below = positions.floor().long()
    weight = (positions - below).float().reshape([-1 if number == axis else 1 for number in range(3)])
    # indexing in brackets is up to five times as fast as index_select
    whole = (slice(None),) * axis
    lower: tuple[slice | Tensor, ...] = (*whole, below)
    upper: tuple[slice | Tensor, ...] = (*whole, (below + 1).clamp(max=last))
    return volume[lower].float().lerp_(volume[upper].float(), weight)

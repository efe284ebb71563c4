"""Linear interpolation an axis at a time, which is all that it takes where the axes of both grids are parallel."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

PARALLEL = 1e-6  # voxels by which an axis may lean over its whole length
SLAB_VOXELS = 2**21  # how much of a grid is worked on at a time, so that it stays in the cache


@dataclass(frozen=True)
class AxisMap:
    """A grid whose axes are parallel to those of another, in whatever order and direction.

    Attributes:
        order: for each axis of the grid, the axis of the other that it runs along.
        scale, offset: for each axis of the grid, its voxel i is at i · scale + offset on that axis of the other.
    """

    order: tuple[int, int, int]
    scale: tuple[float, float, float]
    offset: tuple[float, float, float]

    @classmethod
    def of(cls, matrix: np.ndarray, shape: Sequence[int]) -> "AxisMap | None":
        """What a matrix (4, 4) from a grid's voxel indices to another's does; None where it turns or shears.

        Args:
            shape: of the grid.
        """
        linear = matrix[:3, :3]
        order = np.abs(linear).argmax(0)  # by the grid's axes
        straight = np.zeros_like(linear)
        straight[order, range(3)] = linear[order, range(3)]
        lean = np.abs(linear - straight) @ np.array(shape)
        if len(set(order)) < 3 or (lean > PARALLEL).any():
            return None
        x, y, z = (int(axis) for axis in order)
        scale = linear[order, range(3)]
        offset = matrix[order, 3]
        return cls((x, y, z), tuple(map(float, scale)), tuple(map(float, offset)))  # type: ignore[arg-type]

    def places(self, axis: int, start: int, stop: int) -> Tensor:
        """Where the voxels ``start`` … ``stop`` - 1 along an axis of the grid are on the other's, in float64."""
        return torch.arange(start, stop, dtype=torch.float64) * self.scale[axis] + self.offset[axis]


def interpolate(volume: Tensor, grid: AxisMap, start: Sequence[int], stop: Sequence[int]) -> Tensor:
    """The values of a volume at a box of a grid, those of its border beyond it.

    Args:
        volume: (D, H, W), of any type and memory layout.
        start, stop: the box's first voxel and the one behind its last, along the grid's axes.

    Returns:
        ``stop - start`` in float32, in the volume's memory layout.
    """
    places = {grid.order[axis]: grid.places(axis, start[axis], stop[axis]) for axis in range(3)}
    layout = sorted(range(3), key=volume.stride, reverse=True)  # whole rows are read, whatever axis they run along
    volume = volume.permute(layout)
    # first where there are fewer places than voxels, so that what follows has less to do
    for axis in sorted(range(3), key=lambda axis: len(places[layout[axis]]) / volume.shape[axis]):
        volume = _along(volume, axis, places[layout[axis]])
    return volume.permute([layout.index(axis) for axis in grid.order])


def _along(volume: Tensor, axis: int, places: Tensor) -> Tensor:
    """The values at fractional indices along one axis."""
    last = volume.shape[axis] - 1
    places = places.clamp(0, last)
    below = places.floor().long()
    weight = (places - below).float().reshape([-1 if number == axis else 1 for number in range(3)])
    # indexing in brackets is up to five times as fast as index_select
    whole = (slice(None),) * axis
    lower: tuple[slice | Tensor, ...] = (*whole, below)
    upper: tuple[slice | Tensor, ...] = (*whole, (below + 1).clamp(max=last))
    return volume[lower].float().lerp_(volume[upper].float(), weight)

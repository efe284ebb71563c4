"""From probabilities on the network's grid to masks and probabilities on the scan's own grid."""

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.data.channels import CLASSES, HALF, Channels
from utils.data.resampling import SLAB_VOXELS, AxisMap, interpolate


def to_scan_grid(
    probabilities: Tensor,
    affine: np.ndarray,
    scan_affine: np.ndarray,
    scan_shape: tuple[int, int, int],
    output: Channels = CLASSES,
) -> np.ndarray:
    """The mask of the most probable class at each voxel of a scan's own grid; of regions, what those above 1/2 write.

    Probabilities are interpolated linearly. To save memory and time, classes are compared one by one with the best so
    far, each only where it can win. Voxels outside the network's grid, which is cropped to the foreground, are
    background.

    Args:
        probabilities: (channels, D, H, W) in float32 on the CPU; of classes the background first.
        affine, scan_affine: (4, 4), from voxel indices of the network's and the scan's grid to mm.
        output: what the channels are.

    Returns:
        ``scan_shape``, uint8 (uint16 beyond 255 labels).
    """
    written = output.written(len(probabilities))
    is_short = all(label < 256 for _, label in written)
    mask = np.zeros(scan_shape, np.uint8 if is_short else np.uint16)
    sampler = _Sampler(affine, scan_affine, tuple(probabilities.shape[1:]), scan_shape)
    # a class can only win near a voxel of the network's grid where it is more probable than the background
    rival = probabilities[0] if output.exclusive else HALF
    boxes = {channel: box for channel, _ in written if (box := sampler.box(probabilities[channel] > rival))}
    if not boxes:
        return mask
    lower = np.min([box[0] for box in boxes.values()], 0)
    upper = np.minimum(np.max([box[1] for box in boxes.values()], 0), scan_shape)
    if (upper <= lower).any():
        return mask
    planes = max(1, SLAB_VOXELS // int(np.prod((upper - lower)[1:])))
    for first in range(lower[0], upper[0], planes):
        start = np.array([first, *lower[1:]])
        stop = np.array([min(first + planes, upper[0]), *upper[1:]])
        # what the next channel has to exceed
        best = sampler(probabilities[0], start, stop) if output.exclusive else torch.full(tuple(stop - start), HALF)
        winner = torch.zeros(best.shape, dtype=torch.uint8 if is_short else torch.int32)
        for channel, label in written:
            if channel not in boxes:
                continue
            low, high = np.maximum(boxes[channel][0], start), np.minimum(boxes[channel][1], stop)
            if (low >= high).any():
                continue
            inside = tuple(slice(a, b) for a, b in zip(low - start, high - start, strict=True))
            value = sampler(probabilities[channel], low, high)
            winner[inside].masked_fill_(value > best[inside], label)
            if output.exclusive:
                torch.maximum(best[inside], value, out=best[inside])
        covered = sampler.covers(start, stop)
        place = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        mask[place] = (winner * covered).numpy()
    return mask


def class_on_scan_grid(
    probability: Tensor,
    affine: np.ndarray,
    scan_affine: np.ndarray,
    scan_shape: tuple[int, int, int],
    outside: float,
) -> np.ndarray:
    """The probability of one channel at each voxel of a scan's own grid.

    Args:
        probability: (D, H, W) in float32 on the CPU.
        affine, scan_affine: (4, 4), from voxel indices of the network's and the scan's grid to mm.
        outside: the probability outside the network's grid: 1 for the background, 0 for other channels.

    Returns:
        ``scan_shape``, float32.
    """
    sampler = _Sampler(affine, scan_affine, tuple(probability.shape), scan_shape)
    result = np.empty(scan_shape, np.float32)
    planes = max(1, SLAB_VOXELS // (scan_shape[1] * scan_shape[2]))
    for first in range(0, scan_shape[0], planes):
        start, stop = np.array([first, 0, 0]), np.array([min(first + planes, scan_shape[0]), *scan_shape[1:]])
        values = torch.where(sampler.covers(start, stop), sampler(probability, start, stop), outside)
        result[first : stop[0]] = values.numpy()
    return result


class _Sampler:
    """Interpolates volumes on the network's grid linearly at the voxels of a box of the scan's grid.

    A box is given by its first voxel ``start`` and, as in a slice, ``stop`` behind its last.
    """

    def __init__(
        self, affine: np.ndarray, scan_affine: np.ndarray, shape: tuple[int, ...], scan_shape: tuple[int, int, int]
    ) -> None:
        self.shape = np.array(shape)
        self.matrix = np.linalg.inv(affine) @ scan_affine  # from the scan's voxel indices to the network's
        self.parallel = AxisMap.from_matrix(self.matrix, scan_shape)

    def box(self, chosen: Tensor) -> tuple[np.ndarray, np.ndarray] | None:
        """The box of the scan's grid where interpolation reads any of the ``chosen`` voxels (D, H, W); None if none."""
        along_z = chosen.any(2)
        bounds = []
        for line in (along_z.any(1), along_z.any(0), chosen.any(0).any(0)):
            indices = torch.nonzero(line)
            if len(indices) == 0:
                return None
            bounds.append((int(indices[0]) - 1, int(indices[-1]) + 1))
        corners = np.array([[*corner, 1] for corner in itertools.product(*bounds)])  # (8, 4)
        on_scan = (corners @ np.linalg.inv(self.matrix).T)[:, :3]
        start, stop = np.floor(on_scan.min(0)).astype(int), np.ceil(on_scan.max(0)).astype(int) + 1
        return np.maximum(start, 0), np.maximum(stop, 0)

    def __call__(self, volume: Tensor, start: np.ndarray, stop: np.ndarray) -> Tensor:
        """(D, H, W) -> the values at the voxels of the box; outside the volume those at its border."""
        if self.parallel is not None:
            return interpolate(volume, self.parallel, start.tolist(), stop.tolist())
        scale = 2 / np.maximum(self.shape - 1, 1)  # grid_sample's coordinates go from -1 to 1, first to last voxel
        points = torch.stack([self._indices(axis, start, stop) * scale[axis] - 1 for axis in (2, 1, 0)], -1)
        # each plane is an item of the batch, which is all that torch distributes among its threads
        volumes = volume[None, None].expand(len(points), -1, -1, -1, -1)
        sampled = F.grid_sample(volumes, points[:, None], mode="bilinear", padding_mode="border", align_corners=True)
        return sampled[:, 0, 0]  # (planes, 1, 1, Y, Z) -> (planes, Y, Z)

    def covers(self, start: np.ndarray, stop: np.ndarray) -> Tensor:
        """Whether the network's grid covers each voxel of the box.

        It reaches to the outer faces of its outermost voxels, plus half a voxel for the rounding of its size.

        Returns:
            Booleans in the box's shape, or in one that broadcasts to it.
        """
        inside = torch.ones((1, 1, 1), dtype=torch.bool)
        for axis in range(3):
            indices = self._indices(axis, start, stop)
            inside = inside & (indices >= -1) & (indices <= float(self.shape[axis]))
        return inside

    def _indices(self, axis: int, start: np.ndarray, stop: np.ndarray) -> Tensor:
        """The network's voxel index along ``axis`` at each voxel of the box, in a shape that broadcasts to it."""
        total = torch.full((1, 1, 1), self.matrix[axis, 3], dtype=torch.float64)
        for other in range(3):
            if self.parallel is None or self.parallel.order[other] == axis:
                along = torch.arange(start[other], stop[other], dtype=torch.float64) * self.matrix[axis, other]
                total = total + along.reshape([-1 if number == other else 1 for number in range(3)])
        return total.float()

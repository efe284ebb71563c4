"""From a preprocessed scan to class probabilities and a mask, the same in training's validation and in testing."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from monai.data.utils import compute_importance_map, dense_patch_slices
from torch import Tensor, nn
from torch.utils.data import DataLoader

from utils.distributed import Process
from utils.errors import InputError
from utils.metrics import Scores, dice_per_label
from utils.mirroring import Mirroring
from utils.precision import Precision
from utils.resampling import SLAB_VOXELS, AxisMap, interpolate

CERTAIN = 1e4  # a logit that leaves no probability to others that are 0
PLANES = 4  # of all classes, which a CPU's cache holds

Window = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Pass:
    """One network's way over windows, mirrored or not."""

    network: nn.Module
    precision: Precision
    mirroring: Mirroring = field(default_factory=Mirroring)

    def __call__(self, windows: Tensor) -> Tensor:
        """(B, C, D, H, W) -> logits (B, classes, D, H, W), as they are where nothing is mirrored."""
        dims = [axis + 2 for axis in self.mirroring.axes]
        with self.precision.autocast():
            logits: Tensor = self.network(windows.flip(dims) if dims else windows)
        if dims:
            logits = logits.flip(dims)
        if self.mirroring.classes is not None:
            logits = logits[:, list(self.mirroring.classes)]
        return logits


@dataclass(frozen=True)
class Ensemble:
    """Networks, and mirrored passes of each, whose class probabilities are averaged.

    Attributes:
        members: each network with the number format that it computes in.
        mirrorings: the passes over each window.
    """

    members: tuple[tuple[nn.Module, Precision], ...]
    mirrorings: tuple[Mirroring, ...] = (Mirroring(),)

    @property
    def passes(self) -> tuple[Pass, ...]:
        """Every network's every pass."""
        return tuple(
            Pass(network, precision, mirroring) for network, precision in self.members for mirroring in self.mirrorings
        )


@dataclass
class Predictor:
    """Sliding windows over a scan, whose logits are averaged with a Gaussian's weights where they overlap.

    That is how MONAI does it. A window is left out if all of its voxels, and those right around it, are ``padding``,
    which for a CT is air: nothing but air is changed by that, neither here nor where the scan's own grid is
    interpolated from here. Voxels that no other window has are background.

    Attributes:
        roi: the window in voxels.
        padding: what a scan smaller than the window is padded with.
        overlap: share of a window that its neighbour repeats.
        batch_size: windows in one forward pass; halved where a GPU has no room for them.
        device: where the networks are.
        stitching: where the windows are put together; the CPU where a GPU has no room for that.
        say: prints a line.
    """

    roi: tuple[int, int, int]
    padding: float
    overlap: float
    batch_size: int
    device: torch.device
    say: Callable[[str], None] = print
    stitching: torch.device = field(init=False)

    def __post_init__(self) -> None:
        self.stitching = self.device

    def windows(self, shape: Sequence[int]) -> list[Window]:
        """The windows that cover a scan of ``shape`` (D, H, W), or what one smaller than a window is padded to."""
        steps = [max(1, int(roi * (1 - self.overlap))) for roi in self.roi]
        padded = [max(size, roi) for size, roi in zip(shape, self.roi, strict=True)]
        return cast(list[Window], dense_patch_slices(padded, self.roi, steps))

    @torch.inference_mode()
    def __call__(self, ensemble: Ensemble, image: Tensor, progress: Callable[[int], object] | None = None) -> Tensor:
        """(1, C, D, H, W) -> class probabilities (classes, D, H, W). A scan smaller than the window is padded.

        Args:
            progress: told how many windows were done, in each pass those first that are left out.

        Raises:
            InputError: if the GPU has no room even for one window.
        """
        # as many voxels before as behind
        missing = [max(0, roi - size) for roi, size in zip(self.roi, image.shape[2:], strict=True)]
        before = [size // 2 for size in missing]
        sides = [side for first, size in zip(before, missing, strict=True) for side in (size - first, first)]
        padded = F.pad(image[0], sides[::-1], value=self.padding)  # F.pad begins with the last axis
        inner = [slice(first, first + size) for first, size in zip(before, image.shape[2:], strict=True)]
        while True:
            try:
                return self._averaged(ensemble, padded.to(self.stitching), progress or _nobody)[:, *inner]
            except torch.OutOfMemoryError as error:
                self._take_less(error)

    def _averaged(self, ensemble: Ensemble, image: Tensor, progress: Callable[[int], object]) -> Tensor:
        """(C, D, H, W) -> the mean of all passes' probabilities (classes, D, H, W)."""
        first, *others = ensemble.passes
        total = self._probabilities(first, image, progress)
        for one in others:
            total += self._probabilities(one, image, progress)
        return total.div_(len(ensemble.passes)) if others else total

    def _probabilities(self, network: Pass, image: Tensor, progress: Callable[[int], object]) -> Tensor:
        """(C, D, H, W) -> (classes, D, H, W) of one pass, where the windows are put together."""
        windows = self.windows(image.shape[1:])
        tissue = (image != self.padding).any(0).cpu().numpy()  # whose any() takes a hundredth of torch's
        # were all of them air, one would have to tell how many classes there are
        predicted = [window for window in windows if tissue[_with_rim(window)].any()] or windows[:1]
        progress(len(windows) - len(predicted))
        gaussian = compute_importance_map(self.roi, mode="gaussian", device=self.stitching)
        weights = torch.zeros(image.shape[1:], device=self.stitching)
        total: Tensor | None = None
        for first in range(0, len(predicted), self.batch_size):
            batch = predicted[first : first + self.batch_size]
            logits = network(torch.stack([image[:, *window] for window in batch]).to(self.device))
            if total is None:
                # laid out as the logits are: to reorder them takes longer than to add them
                layout = torch.contiguous_format if logits.is_contiguous() else torch.channels_last_3d
                shape = (1, logits.shape[1], *image.shape[1:])
                total = torch.empty(shape, device=self.stitching, memory_format=layout).zero_()[0]
            for window, one in zip(batch, logits, strict=True):
                total[:, *window].addcmul_(one.to(self.stitching).float(), gaussian)
                weights[window] += gaussian
            progress(len(batch))
        assert total is not None
        alone = weights == 0
        total[0].masked_fill_(alone, CERTAIN)
        weights.masked_fill_(alone, 1)
        result = _class_after_class(total)
        for first in range(0, len(weights), PLANES):
            planes = slice(first, first + PLANES)
            result[:, planes] = (total[:, planes] / weights[planes]).softmax(0)
        return result

    def _take_less(self, error: torch.OutOfMemoryError) -> None:
        if self.batch_size > 1:
            self.batch_size //= 2
            self.say(f"out of GPU memory: from here on --sw_batch_size {self.batch_size}")
        elif self.stitching.type != "cpu":
            self.stitching = torch.device("cpu")
            self.say("out of GPU memory: from here on windows are put together on the CPU")
        else:
            raise InputError(
                f"--device {self.device}: has no room for one window of {' × '.join(map(str, self.roi))} voxels. "
                "Free its memory, or give --device cpu."
            ) from error


def _class_after_class(volume: Tensor) -> Tensor:
    """The memory of (classes, D, H, W) to hold the same plane by plane, each class by itself, which is read row by row.

    Where each voxel's classes lie together, the memory of a plane is that of the same plane in the result.
    """
    if volume.is_contiguous():
        return volume
    classes, depth, height, width = volume.shape
    # (classes, D, H, W) -> (D, H, W, classes) -> (D, classes, H, W) of other strides -> (classes, D, H, W)
    return volume.movedim(0, -1).view(depth, classes, height, width).transpose(0, 1)


def _nobody(_: int) -> None:
    """Whom progress is told where nobody asks."""


def _with_rim(window: Window) -> Window:
    """A window with the voxels right around it."""
    x, y, z = (slice(max(0, axis.start - 1), axis.stop + 1) for axis in window)
    return x, y, z


def to_scan_grid(
    probabilities: Tensor, affine: np.ndarray, scan_affine: np.ndarray, scan_shape: tuple[int, int, int]
) -> np.ndarray:
    """The mask of the most probable class at each voxel of a scan's own grid.

    Probabilities are interpolated linearly, one class at a time into a running maximum, and where a class can't win
    not at all. What the network's grid doesn't cover (it is cropped to the foreground) is background.

    Args:
        probabilities: (classes, D, H, W) in float32 on the CPU, the background first.
        affine, scan_affine: (4, 4), from voxel indices of the network's and the scan's grid to mm.

    Returns:
        ``scan_shape``, uint8 (uint16 beyond 255 labels).
    """
    classes = probabilities.shape[0]
    mask = np.zeros(scan_shape, np.uint8 if classes <= 256 else np.uint16)
    sampler = _Sampler(affine, scan_affine, tuple(probabilities.shape[1:]), scan_shape)
    # a class that wins somewhere is above the background at a neighbour on the network's grid
    boxes = {label: box for label in range(1, classes) if (box := sampler.box(probabilities[label] > probabilities[0]))}
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
        best = sampler(probabilities[0], start, stop)
        winner = torch.zeros(best.shape, dtype=torch.uint8 if classes <= 256 else torch.int32)
        for label, (low, high) in boxes.items():
            low, high = np.maximum(low, start), np.minimum(high, stop)
            if (low >= high).any():
                continue
            inside = tuple(slice(a, b) for a, b in zip(low - start, high - start, strict=True))
            value = sampler(probabilities[label], low, high)
            winner[inside].masked_fill_(value > best[inside], label)
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
    """The probability (D, H, W) of one class at each voxel of a scan's own grid, ``scan_shape`` in float32.

    Args:
        outside: the probability where the network's grid doesn't reach: 1 for the background, 0 for others.
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
    """Linear interpolation of volumes on the network's grid at the voxels of boxes of a scan's grid.

    A box is given by its first voxel and the one behind its last.
    """

    def __init__(
        self, affine: np.ndarray, scan_affine: np.ndarray, shape: tuple[int, ...], scan_shape: tuple[int, int, int]
    ) -> None:
        self.shape = np.array(shape)
        self.matrix = np.linalg.inv(affine) @ scan_affine  # from the scan's voxel indices to the network's
        self.parallel = AxisMap.of(self.matrix, scan_shape)

    def box(self, chosen: Tensor) -> tuple[np.ndarray, np.ndarray] | None:
        """The box of the scan's grid in which interpolation reads any of the ``chosen`` voxels (D, H, W)."""
        across = chosen.any(2)
        bounds = []
        for line in (across.any(1), across.any(0), chosen.any(0).any(0)):
            places = torch.nonzero(line)
            if len(places) == 0:
                return None
            bounds.append((int(places[0]) - 1, int(places[-1]) + 1))
        corners = np.array([[*corner, 1] for corner in itertools.product(*bounds)])  # (8, 4)
        there = (corners @ np.linalg.inv(self.matrix).T)[:, :3]
        return np.maximum(np.floor(there.min(0)).astype(int), 0), np.maximum(np.ceil(there.max(0)).astype(int) + 1, 0)

    def __call__(self, volume: Tensor, start: np.ndarray, stop: np.ndarray) -> Tensor:
        """(D, H, W) -> the values at the voxels of the box, those of the border beyond it."""
        if self.parallel is not None:
            return interpolate(volume, self.parallel, start.tolist(), stop.tolist())
        scale = 2 / np.maximum(self.shape - 1, 1)  # grid_sample counts from -1 to 1 between the outermost voxels
        places = torch.stack([self._indices(axis, start, stop) * scale[axis] - 1 for axis in (2, 1, 0)], -1)
        # each plane as a batch of its own, since torch shares batches among its threads and nothing else
        volumes = volume[None, None].expand(len(places), -1, -1, -1, -1)
        sampled = F.grid_sample(volumes, places[:, None], mode="bilinear", padding_mode="border", align_corners=True)
        return sampled[:, 0, 0]  # (planes, 1, 1, Y, Z) -> (planes, Y, Z)

    def covers(self, start: np.ndarray, stop: np.ndarray) -> Tensor:
        """Where the network's grid reaches: to the faces of its outermost voxels, and as far again for its rounding.

        Returns:
            Booleans in the box's shape, or in one that broadcasts to it.
        """
        inside = torch.ones((1, 1, 1), dtype=torch.bool)
        for axis in range(3):
            indices = self._indices(axis, start, stop)
            inside = inside & (indices >= -1) & (indices <= float(self.shape[axis]))
        return inside

    def _indices(self, axis: int, start: np.ndarray, stop: np.ndarray) -> Tensor:
        """The network's voxel index along ``axis`` at each voxel of the box, or in a shape that broadcasts to it."""
        total = torch.full((1, 1, 1), self.matrix[axis, 3], dtype=torch.float64)
        for other in range(3):
            if self.parallel is None or self.parallel.order[other] == axis:
                along = torch.arange(start[other], stop[other], dtype=torch.float64) * self.matrix[axis, other]
                total = total + along.reshape([-1 if number == other else 1 for number in range(3)])
        return total.float()


@dataclass(frozen=True)
class Example:
    """One scan with its label and prediction, (D, H, W) each, for a picture."""

    name: str
    image: Tensor
    label: Tensor
    prediction: Tensor


def score_scans(
    network: nn.Module,
    loader: DataLoader,
    predictor: Predictor,
    precision: Precision,
    labels: tuple[str, ...],
    process: Process,
) -> tuple[Scores, Example | None]:
    """Predict and score this process's scans, and collect the scores of all of them.

    Args:
        labels: names of the classes, the background first.

    Returns:
        The scores of all processes' scans on the network's grid, and this process's first scan.
    """
    network.eval()
    ensemble = Ensemble(((network, precision),))
    results = []
    example = None
    for batch in process.bar(loader, "validating"):
        prediction = predictor(ensemble, batch["image"]).argmax(0)  # (classes, D, H, W) -> (D, H, W)
        label = batch["label"][0, 0].to(prediction.device)  # (1, 1, D, H, W) -> (D, H, W)
        results.append((batch["name"][0], dice_per_label(prediction, label, len(labels)).numpy()))
        if example is None:
            example = Example(batch["name"][0], batch["image"][0, 0], label.cpu(), prediction.cpu())
    names, dice = zip(*process.gather(results), strict=True)
    return Scores(names, labels[1:], np.stack(dice)), example

"""From a preprocessed scan to class probabilities and a mask, the same in training's validation and in testing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from monai.data.utils import compute_importance_map, dense_patch_slices
from torch import Tensor, nn

from networks.precision import Precision
from utils.data.mirroring import Mirroring
from utils.system.errors import InputError

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

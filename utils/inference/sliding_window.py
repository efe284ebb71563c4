"""Class probabilities of a preprocessed scan by a sliding window, for validation and testing alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from monai.data.utils import compute_importance_map, dense_patch_slices
from torch import Tensor, nn

from networks.precision import Precision
from utils.data.channels import CLASSES, PLANES, Channels
from utils.data.mirroring import Mirroring
from utils.inference.confidence import CertaintyCollector
from utils.system.errors import InputError, size_text

OVERLAP = 0.5  # of neighbouring windows, unless somebody asks for another

Window = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Pass:
    """A network that predicts windows, mirrored or not."""

    network: nn.Module
    precision: Precision
    mirroring: Mirroring = field(default_factory=Mirroring)

    def __call__(self, windows: Tensor) -> Tensor:
        """(B, C, D, H, W) -> logits (B, classes, D, H, W); those of mirrored windows are mirrored back."""
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
    """Networks whose class probabilities are averaged, over mirrored passes too.

    Attributes:
        members: each network with the number format that it computes in.
        mirrorings: how each network's passes are mirrored; the first one isn't.
    """

    members: tuple[tuple[nn.Module, Precision], ...]
    mirrorings: tuple[Mirroring, ...] = (Mirroring(),)

    @property
    def passes(self) -> int:
        """How often each window is predicted."""
        return len(self.members) * len(self.mirrorings)

    def volumes(self, in_channels: int, out_channels: int) -> float:
        """How many volumes in float32 a prediction holds at once.

        These are the image as it is and padded, the sum of the windows' weights and which of them are 0, the channels
        of a pass and of each average that passes are added to, and the networks' masks in 16 bits.
        """
        averages = (len(self.mirrorings) > 1) + (len(self.members) > 1)
        return 2 * in_channels + 1.25 + out_channels * (1 + averages) + len(self.members) / 2


@dataclass
class Predictor:
    """Predicts a scan by a sliding window.

    Where windows overlap, their logits are averaged with Gaussian weights, as MONAI does it.

    A window is skipped if all its voxels, and those that touch it, are ``padding``, which for a CT is air. That changes
    air alone, also after interpolation to the scan's own grid. Voxels that are in skipped windows only are background.

    Attributes:
        roi: the window in voxels.
        padding: the value that pads a scan smaller than the window.
        overlap: the part of a window that its neighbour covers too, 0 … 1.
        batch_size: windows in one forward pass; halved if a GPU has no memory for them.
        device: where the networks are.
        say: prints a line.
        output: what the channels of the networks' output are.
        stitching: where the windows are averaged; the CPU if a GPU has no memory for that.
    """

    roi: tuple[int, int, int]
    padding: float
    overlap: float
    batch_size: int
    device: torch.device
    say: Callable[[str], None] = print
    output: Channels = CLASSES
    stitching: torch.device = field(init=False)

    def __post_init__(self) -> None:
        self.stitching = self.device

    def windows(self, shape: Sequence[int]) -> list[Window]:
        """The windows that cover a scan of ``shape`` (D, H, W), padded if it is smaller than a window."""
        steps = [max(1, int(roi * (1 - self.overlap))) for roi in self.roi]
        padded = [max(size, roi) for size, roi in zip(shape, self.roi, strict=True)]
        return cast(list[Window], dense_patch_slices(padded, self.roi, steps))

    @torch.inference_mode()
    def __call__(
        self,
        ensemble: Ensemble,
        image: Tensor,
        progress: Callable[[int], object] | None = None,
        certainty: CertaintyCollector | None = None,
    ) -> Tensor:
        """Predict a scan: (1, C, D, H, W) -> class probabilities (classes, D, H, W).

        Args:
            progress: called with a number of windows when they are done; skipped ones come first in each pass. If a
                GPU runs out of memory, the number of all that were done comes with a minus.
            certainty: gets the probabilities of each network.

        Raises:
            InputError: if the GPU has no memory even for one window.
        """
        # pad both sides alike
        missing = [max(0, roi - size) for roi, size in zip(self.roi, image.shape[2:], strict=True)]
        before = [size // 2 for size in missing]
        sides = [side for first, size in zip(before, missing, strict=True) for side in (size - first, first)]
        padded = F.pad(image[0], sides[::-1], value=self.padding)  # F.pad wants the last axis first
        inner = [slice(first, first + size) for first, size in zip(before, image.shape[2:], strict=True)]

        def add(probabilities: Tensor) -> None:
            if certainty is not None:
                certainty.add(probabilities[:, *inner])

        done = 0

        def count(windows: int) -> None:
            nonlocal done
            done += windows
            if progress is not None:
                progress(windows)

        while True:
            try:
                if certainty is not None:
                    certainty.clear()
                return self._averaged(ensemble, padded.to(self.stitching), count, add)[:, *inner]
            except torch.OutOfMemoryError as error:
                self._use_less_memory(error)
                count(-done)  # they are done again

    def _averaged(
        self,
        ensemble: Ensemble,
        image: Tensor,
        progress: Callable[[int], object],
        add: Callable[[Tensor], object],
    ) -> Tensor:
        """The mean over all networks: (C, D, H, W) -> probabilities (classes, D, H, W).

        Args:
            add: called with the probabilities of each network.
        """
        total: Tensor | None = None
        for network, precision in ensemble.members:
            own: Tensor | None = None
            for mirroring in ensemble.mirrorings:
                one = self._probabilities(Pass(network, precision, mirroring), image, progress)
                own = one if own is None else own.add_(one)
            assert own is not None
            if len(ensemble.mirrorings) > 1:
                own /= len(ensemble.mirrorings)
            add(own)
            total = own if total is None else total.add_(own)
        assert total is not None
        return total.div_(len(ensemble.members)) if len(ensemble.members) > 1 else total

    def _probabilities(self, network: Pass, image: Tensor, progress: Callable[[int], object]) -> Tensor:
        """One pass: (C, D, H, W) -> probabilities (classes, D, H, W)."""
        windows = self.windows(image.shape[1:])
        tissue = (image != self.padding).any(0).cpu().numpy()  # NumPy's any() is a hundred times as fast as torch's
        # if all are air, predict one of them all the same: its logits give the number of classes
        predicted = [window for window in windows if tissue[_with_rim(window)].any()] or windows[:1]
        progress(len(windows) - len(predicted))
        gaussian = compute_importance_map(self.roi, mode="gaussian", device=self.stitching)
        weights = torch.zeros(image.shape[1:], device=self.stitching)
        total: Tensor | None = None
        for first in range(0, len(predicted), self.batch_size):
            batch = predicted[first : first + self.batch_size]
            logits = network(torch.stack([image[:, *window] for window in batch]).to(self.device))
            if total is None:
                # in the memory layout of the logits: reordering them would take longer than adding them
                layout = torch.contiguous_format if logits.is_contiguous() else torch.channels_last_3d
                shape = (1, logits.shape[1], *image.shape[1:])
                total = torch.empty(shape, device=self.stitching, memory_format=layout).zero_()[0]
            for window, one in zip(batch, logits, strict=True):
                total[:, *window].addcmul_(one.to(self.stitching).float(), gaussian)
                weights[window] += gaussian
            progress(len(batch))
        assert total is not None
        unpredicted = weights == 0
        self.output.make_background(total, unpredicted)
        weights.masked_fill_(unpredicted, 1)
        result = _class_major(total)
        for first in range(0, len(weights), PLANES):
            planes = slice(first, first + PLANES)
            result[:, planes] = self.output.probabilities(total[:, planes] / weights[planes])
        return result

    def _use_less_memory(self, error: torch.OutOfMemoryError) -> None:
        """Halve the batch, then stitch on the CPU.

        Raises:
            InputError: if both are done already.
        """
        if self.batch_size > 1:
            self.batch_size //= 2
            self.say(f"out of GPU memory: from here on {self.batch_size} windows at a time")
        elif self.stitching.type != "cpu":
            self.stitching = torch.device("cpu")
            self.say("out of GPU memory: from here on windows are averaged on the CPU")
        else:
            raise InputError(
                f"`device` {self.device}: has no memory for one window of {size_text(self.roi)} voxels. "
                "Free its memory, or give `device` cpu."
            ) from error


def _class_major(volume: Tensor) -> Tensor:
    """A view (classes, D, H, W) of the same memory in which each plane holds one class after the other.

    That is faster to read row by row than the layout in which the classes of a voxel are neighbours. Both layouts hold
    plane d in the same part of memory, so one can be replaced by the other plane by plane.
    """
    if volume.is_contiguous():
        return volume
    classes, depth, height, width = volume.shape
    # (classes, D, H, W) -> (D, H, W, classes) -> (D, classes, H, W) of other strides -> (classes, D, H, W)
    return volume.movedim(0, -1).view(depth, classes, height, width).transpose(0, 1)


def _with_rim(window: Window) -> Window:
    """A window with the voxels that touch it."""
    x, y, z = (slice(max(0, axis.start - 1), axis.stop + 1) for axis in window)
    return x, y, z

"""Instance norm, the sum with a shortcut, and leaky ReLU in fewer passes over memory, on CPUs.

torch computes them one after the other, and each reads and writes the whole volume. Here the forward pass reads it
twice and writes it once, and the backward pass reads volume and gradient twice and writes once. Sums are taken in a
fixed order, so that no result depends on the number of threads.
"""

import functools
import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetResBlock
from torch import Tensor, nn

from networks.layers.cpu_kernels import is_traced
from networks.layers.instance_norm import InstanceNorm3d
from utils.system.openmp import can_run_kernels

LEAST = 2**18  # numbers of a volume; below, less than 0.1 ms is gained, and a launch needn't load the kernels
FORMATS = (torch.bfloat16, torch.float32)  # that the kernels know


class ResBlock(UnetResBlock):
    """MONAI's ``UnetResBlock``, whose norms, sum and activations are fused."""

    def forward(self, inp: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, features, D, H, W), smaller by the stride."""
        out = norm_act(self.conv1(inp), self.norm1, self.lrelu)
        if not self.downsample:
            return norm_act(self.conv2(out), self.norm2, self.lrelu, inp)
        return norm_act(self.conv2(out), self.norm2, self.lrelu, self.conv3(inp), self.norm3)


class BasicBlock(UnetBasicBlock):
    """MONAI's ``UnetBasicBlock``, whose norms and activations are fused."""

    def forward(self, inp: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, features, D, H, W), smaller by the stride."""
        out = norm_act(self.conv1(inp), self.norm1, self.lrelu)
        return norm_act(self.conv2(out), self.norm2, self.lrelu)


def norm_act(
    features: Tensor,
    norm: nn.Module,
    activation: nn.Module,
    shortcut: Tensor | None = None,
    norm_of_shortcut: nn.Module | None = None,
) -> Tensor:
    """``activation(norm(features) + norm_of_shortcut(shortcut))``, without what is not given.

    Args:
        features: (B, C, D, H, W).
        norm: any; fused if it is our instance norm.
        activation: any; fused if it is leaky ReLU.
        shortcut: of the same shape.
        norm_of_shortcut: as ``norm``; without one the shortcut is added as it is.
    """
    norms = [norm] if norm_of_shortcut is None else [norm, norm_of_shortcut]
    if not _can_be_fused(features, norms, activation):
        result = norm(features)
        if shortcut is not None:
            result += (shortcut if norm_of_shortcut is None else norm_of_shortcut(shortcut)).to(result.dtype)
        return activation(result)  # type: ignore[no-any-return]
    if shortcut is not None:
        shortcut = shortcut.to(features.dtype).contiguous(memory_format=torch.channels_last_3d)
    weights: list[Any] = [weight for one in norms for weight in (one.weight, one.bias)]
    slope, eps = float(activation.negative_slope), [float(one.eps) for one in norms]  # type: ignore[arg-type]
    if torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (features, shortcut, *weights)
    ):
        fused: Tensor = _NormAct.apply(features, shortcut, slope, eps, *weights)
        return fused
    result = torch.empty_like(features)
    _activate(features, shortcut, slope, eps, weights, result)
    return result


def _can_be_fused(features: Tensor, norms: Sequence[nn.Module], activation: nn.Module) -> bool:
    return (
        features.device.type == "cpu"
        and features.numel() >= LEAST
        and features.dtype in FORMATS
        and features.is_contiguous(memory_format=torch.channels_last_3d)
        and all(type(norm) is InstanceNorm3d for norm in norms)
        and type(activation) is nn.LeakyReLU
        and not is_traced()
        and can_run_kernels()
    )


class _NormAct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features: Tensor, shortcut: Tensor | None, slope: float, eps: list[float], *weights: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(features, shortcut)
        ctx.slope = slope
        result = torch.empty_like(features)
        ctx.table, ctx.scales = _activate(features, shortcut, slope, eps, weights, result)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        """The gradient of what a norm reads is weight · scale · (g - mean of g - x̂ · mean of g x̂).

        Here scale is 1 / √(variance + eps), x̂ the normalised input and g the gradient of the sum before the activation.
        The means are over a sample's voxels.
        """
        features, shortcut = ctx.saved_tensors
        gradient = gradients[0].to(features.dtype).contiguous(memory_format=torch.channels_last_3d)
        volumes = {"features": features, "shortcut": shortcut, "gradient": gradient}
        kernels, table = _kernels(), ctx.table.copy()
        sums = _run(kernels.sum_gradients, table, ctx.slope, **volumes).sum(1, dtype=np.float64)  # (B, 3, C)
        total, voxels = sums[:, 0], features[0, 0].numel()
        by_weights: list[Tensor | None] = []
        table[:, kernels.BY_GRADIENT_OF_SHORTCUT] = 1  # unless it is normalised
        for number, scale in enumerate(ctx.scales):
            by_normalised = sums[:, 1 + number] * scale  # Σ g x̂
            factor = table[:, kernels.SCALE + number]
            table[:, kernels.BY_GRADIENT + number] = factor
            table[:, kernels.BY_VALUE + number] = -factor * scale * by_normalised / voxels
            table[:, kernels.CONSTANT + number] = -factor * total / voxels
            by_weights += [torch.from_numpy(one.sum(0)).float() for one in (by_normalised, total)]
        by_features = torch.empty_like(features)
        by_shortcut = None if shortcut is None else torch.empty_like(shortcut)
        _run(kernels.gradients, table, ctx.slope, **volumes, by_features=by_features, by_shortcut=by_shortcut)
        needed = ctx.needs_input_grad[4:]
        by_weights = [one if is_needed else None for one, is_needed in zip(by_weights, needed, strict=True)]
        return by_features, by_shortcut, None, None, *by_weights


def _activate(
    features: Tensor,
    shortcut: Tensor | None,
    slope: float,
    eps: Sequence[float],
    weights: Sequence[Tensor | None],
    result: Tensor,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Compute the result.

    Args:
        eps: of each norm.
        weights: weight and bias of each norm, (C) or None.
        result: filled here; may be the features.

    Returns:
        The table (B, rows, C) of :mod:`networks.layers.norm_kernels`, as far as the forward pass needs it, and for each
        norm 1 / √(variance + eps), (B, C).
    """
    kernels = _kernels()
    table = np.zeros((len(features), kernels.TABLE_ROWS, features.shape[1]))
    table[:, kernels.SCALE_OF_SHORTCUT] = 1  # unless it is normalised
    scales = []
    for number, one in enumerate(eps):
        volume = features if number == 0 else shortcut
        assert volume is not None
        mean, variance = _moments(volume)
        scale = 1 / np.sqrt(variance + one)
        weight, bias = (None if tensor is None else tensor.detach().numpy() for tensor in weights[2 * number :][:2])
        table[:, kernels.MEAN + number] = mean
        table[:, kernels.SCALE + number] = scale if weight is None else scale * weight
        if bias is not None:
            table[:, kernels.SHIFT] += bias
        scales.append(scale)
    _run(kernels.activate, table, slope, features=features, shortcut=shortcut, result=result)
    return table, scales


def _moments(volume: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Each channel's mean and variance in each sample, (B, C)."""
    voxels = volume[0, 0].numel()
    no_table = np.empty((len(volume), 0, volume.shape[1]))
    sums = _run(_kernels().moments, no_table, features=volume).astype(np.float64)  # (B, chunks, 3, C)
    length = _voxels_of_chunk(volume.shape[1])
    first = np.arange(0, voxels, length)
    counts = np.minimum(first + length, voxels) - first
    with np.errstate(invalid="ignore"):  # where features are infinite
        mean = np.einsum("k,bkc->bc", counts, sums[:, :, 0]) / voxels
        between = np.einsum("k,bkc->bc", counts, (sums[:, :, 0] - mean[:, None]) ** 2)
        return mean, (sums[:, :, 1].sum(1) + between) / voxels


def _run(kernel: Any, table: np.ndarray, slope: float = 1.0, **volumes: Tensor | None) -> np.ndarray:
    """Run a kernel.

    Args:
        table: factors of each channel (B, rows, C).
        slope: of leaky ReLU.
        volumes: by their names in the job, (B, C, D, H, W) in ``channels_last_3d``.

    Returns:
        Sums of each chunk (B, chunks of a sample, 3, C), where the kernel computes sums.
    """
    kernels = _kernels()
    features = volumes["features"]
    assert features is not None
    samples, channels = features.shape[:2]
    voxels, width = features[0, 0].numel(), _width(channels)
    sums = np.zeros((samples, -(-voxels // _voxels_of_chunk(channels)), kernels.SUM_ROWS, channels), np.float32)
    wide = np.tile(table.astype(np.float32), width // channels)
    job = np.zeros(1, kernels.JOB)
    job["voxels"], job["channels"], job["width"] = voxels, channels, width
    job["voxels_of_chunk"], job["chunks"] = _voxels_of_chunk(channels), sums.shape[0] * sums.shape[1]
    job["table"], job["sums"], job["slope"] = wide.ctypes.data, sums.ctypes.data, slope
    for name, volume in volumes.items():
        job[name] = 0 if volume is None else volume.data_ptr()
    kernel.run(features.dtype, job)
    return sums


def _width(channels: int) -> int:
    """The least multiple of the channels that has as many numbers as the kernels work on at a time."""
    return -(-_kernels().WIDTH // channels) * channels


def _voxels_of_chunk(channels: int) -> int:
    width = _width(channels)
    return max(1, _kernels().CHUNK // width) * width // channels


@functools.cache
def _kernels() -> ModuleType:
    """The kernels, once they are needed: numba takes half a second to import."""
    return importlib.import_module("networks.layers.norm_kernels")

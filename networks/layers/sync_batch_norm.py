"""Batch normalisation over the batches of all processes together."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class CPUSyncBatchNorm(_BatchNorm):
    """What ``torch.nn.SyncBatchNorm`` does, which torch has for GPUs alone."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of axes will do."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, …) with each channel's mean and variance over all processes.

        Every process brings a batch of the same shape.
        """
        if not self.training:
            return super().forward(input)
        values = input.float()
        dims, shape = (0, *range(2, input.ndim)), (1, -1, *[1] * (input.ndim - 2))
        count = dist.get_world_size() * values.numel() // values.shape[1]
        mean = _Sum.apply(values.sum(dims)) / count  # (C,)
        centred = values - mean.reshape(shape)
        variance = _Sum.apply(centred.square().sum(dims)) / count  # (C,)
        if self.track_running_stats:
            self._track(mean, variance * (count / (count - 1)))
        scale = torch.rsqrt(variance + self.eps)
        if not self.affine:
            return (centred * scale.reshape(shape)).to(input.dtype)
        return (centred * (scale * self.weight).reshape(shape) + self.bias.reshape(shape)).to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        weight = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(variance, weight)


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Each process's part is in the losses of all processes, and has its gradient from all of them."""
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def synchronise(network: nn.Module) -> None:
    """Let the batch normalisations of a network work over all processes; its parameters and buffers stay the same."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                on_gpu = any(tensor.is_cuda for tensor in (*child.parameters(), *child.buffers()))
                kind = nn.SyncBatchNorm if on_gpu else CPUSyncBatchNorm
                norm = kind(child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats)
                norm.weight, norm.bias = child.weight, child.bias
                norm.running_mean, norm.running_var = child.running_mean, child.running_var
                norm.num_batches_tracked = child.num_batches_tracked
                setattr(module, name, norm)

"""Batch normalisation over the batches of all processes together."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class CPUSyncBatchNorm(nn.BatchNorm3d):
    """What ``torch.nn.SyncBatchNorm`` does, which torch has for GPUs alone."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, D, H, W) with each channel's mean and variance over all processes.

        Every process brings a batch of the same shape.
        """
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        values = input.float()
        dims, shape = (0, 2, 3, 4), (1, -1, 1, 1, 1)
        count = dist.get_world_size() * values.numel() // values.shape[1]
        mean = _Sum.apply(values.sum(dims)) / count  # (C,)
        centred = values - mean.reshape(shape)
        variance = _Sum.apply(centred.square().sum(dims)) / count  # (C,)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            weight = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean, weight)
            self.running_var.lerp_(variance * (count / (count - 1)), weight)
        scale = torch.rsqrt(variance + self.eps) * self.weight
        return (centred * scale.reshape(shape) + self.bias.reshape(shape)).to(input.dtype)


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
                kind = nn.SyncBatchNorm if child.weight.is_cuda else CPUSyncBatchNorm
                norm = kind(child.num_features, child.eps, child.momentum)
                norm.weight, norm.bias = child.weight, child.bias
                norm.running_mean, norm.running_var = child.running_mean, child.running_var
                norm.num_batches_tracked = child.num_batches_tracked
                setattr(module, name, norm)

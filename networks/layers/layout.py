"""Memory layouts in which torch's kernels are fast, where left alone it would take others."""

from typing import Any

import torch
from torch import Tensor


def in_layout_of(example: Tensor, volume: Tensor) -> Tensor:
    """The volume (B, C, D, H, W) with its channels together in memory, if those of ``example`` are.

    With one channel both of torch's layouts are the same but for a stride that nothing reads, by which a convolution
    chooses the layout of its result: the plain one, unless that stride is 1.
    """
    if example.is_contiguous() or not example.is_contiguous(memory_format=torch.channels_last_3d):
        return volume
    # (B, C, D, H, W) -> (B, D, H, W, C) and back
    return volume.permute(0, 2, 3, 4, 1).clone(memory_format=torch.contiguous_format).permute(0, 4, 1, 2, 3)


def with_dense_gradient(x: Tensor) -> Tensor:
    """The same, with a gradient that lies in memory without gaps.

    The gradient of a part of a concatenation is a view of the whole's, with gaps where the channels lie together, and
    the backward passes of activations take 25 times as long for it as for a copy.
    """
    if not torch.jit.is_scripting():  # a file of TorchScript can't hold it, of a script or of a trace
        return _dense(x)
    return x


def _dense(x: Tensor) -> Tensor:
    if torch.jit.is_tracing() or not x.requires_grad:
        return x
    y: Tensor = _DenseGradient.apply(x)
    return y


class _DenseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.detach()  # view_as would change strides that nothing reads, by which torch chooses layouts

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0]
        dense = gradient.is_contiguous() or gradient.is_contiguous(memory_format=torch.channels_last_3d)
        return gradient if dense else gradient.clone()

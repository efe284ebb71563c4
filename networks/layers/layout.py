"""Memory layouts in which torch's kernels are fast, where torch by itself would choose others."""

from typing import Any

import torch
from monai.networks.blocks import UnetrUpBlock
from torch import Tensor


def in_layout_of(example: Tensor, volume: Tensor) -> Tensor:
    """The volume (B, C, D, H, W) with its channels together in memory, if those of ``example`` are.

    With one channel both of torch's layouts are the same but for a stride that nothing reads. A convolution chooses the
    layout of its result by that stride: the plain one, unless it is 1.
    """
    if example.is_contiguous() or not example.is_contiguous(memory_format=torch.channels_last_3d):
        return volume
    # (B, C, D, H, W) -> (B, D, H, W, C) and back
    return volume.permute(0, 2, 3, 4, 1).clone(memory_format=torch.contiguous_format).permute(0, 4, 1, 2, 3)


class UpBlock(UnetrUpBlock):
    """MONAI's ``UnetrUpBlock``, whose gradient to the skip path lies in memory without gaps.

    The block concatenates both inputs. The gradient of a part of that is a view of the whole's, with gaps where the
    channels lie together, and the backward passes of activations take 25 times as long for it as for a copy.
    """

    def forward(self, inp: Tensor, skip: Tensor) -> Tensor:
        """(B, C, D, H, W) and a skip path of twice the resolution -> (B, features, 2D, 2H, 2W)."""
        result: Tensor = super().forward(inp, with_dense_gradient(skip))
        return result


def with_dense_gradient(x: Tensor) -> Tensor:
    """The same, with a gradient that lies in memory without gaps."""
    if torch.compiler.is_compiling() or not x.requires_grad:
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

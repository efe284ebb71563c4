"""Layers for which torch, left alone, takes a slower kernel of a CPU in float32 than it has: others than oneDNN's."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ONEDNN_ABOVE = 20480  # samples · channels · depth · height, above which torch 2.13 leaves a single sample to oneDNN
# changes nothing in a kernel of one voxel, but with it torch leaves that to oneDNN with a single thread too
DILATION = 2


class Linear(nn.Linear):
    """``nn.Linear`` that computes (B, N, inputs) as a convolution.

    Torch leaves a linear layer to MKL and a convolution to oneDNN, which on AMD's CPUs takes half as long.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        if torch.jit.is_scripting():
            return F.linear(input, self.weight, self.bias)
        if not (_in_float32_on_cpu(input) and input.dim() == 3 and torch.backends.mkl.is_available()):
            return F.linear(input, self.weight, self.bias)
        # (B, N, C) -> (B, N, 1, C) -> (B, C, N, 1) and back, so that strides say that channels lie together
        volume = input.unsqueeze(2).permute(0, 3, 1, 2)
        result = F.conv2d(volume, self.weight[:, :, None, None], self.bias, dilation=DILATION)
        return result.permute(0, 2, 3, 1).squeeze(2)


class Conv3d(nn.Conv3d):
    """``nn.Conv3d`` with stride 1 that keeps the input's memory layout, and is fast for a single sample.

    Torch leaves one sample of few voxels and channels to a slow kernel that knows one layout; zeros make them enough.
    """

    @classmethod
    def like(cls, plain: nn.Conv3d) -> "Conv3d":
        """The same convolution, with the same parameters."""
        own = nn.utils.skip_init(
            cls, plain.in_channels, plain.out_channels, plain.kernel_size,
            padding=plain.padding, bias=plain.bias is not None,
        )  # fmt: skip
        own.weight, own.bias = plain.weight, plain.bias
        return own

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, features, D, H, W)."""
        if torch.jit.is_scripting():
            return self._conv_forward(input, self.weight, self.bias)
        if not _in_float32_on_cpu(input):
            return self._conv_forward(input, self.weight, self.bias)
        # a stride of 1 says for a single channel too that channels are to lie together
        layout = torch.channels_last_3d if input.stride(1) == 1 else torch.contiguous_format
        volume, weight = _with_enough_channels(input, self.weight)
        dilation = DILATION if self.kernel_size == (1, 1, 1) else 1
        volume = volume.contiguous(memory_format=layout)
        result = F.conv3d(volume, weight, self.bias, padding=self.padding, dilation=dilation)
        return result.contiguous(memory_format=layout)


def _in_float32_on_cpu(x: Tensor) -> bool:
    return (
        # what is traced for a compiler or another program has kernels of its own
        not (torch.jit.is_tracing() or torch.compiler.is_compiling())
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
    )


def _with_enough_channels(volume: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    batch, channels, depth, height = volume.shape[:4]
    enough = ONEDNN_ABOVE // (depth * height) + 1
    if batch != 1 or not channels < enough <= 4:  # more cost as much as the slow kernel
        return volume, weight
    zeros_behind = (0, 0, 0, 0, 0, 0, 0, enough - channels)  # width, height, depth, channels
    return F.pad(volume, zeros_behind), F.pad(weight, zeros_behind)

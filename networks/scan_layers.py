"""Layers that read the scan, whose voxels autocast would round more than the network can bear.

bfloat16 has 8 bits: of BTCV's window of 425 Hounsfield units the upper half is rounded to steps of 1.7. These layers
give their input and weights twice the bits. What comes out is in autocast's format, or float32 where adding a position
embedding makes it that anyway.
"""

import torch
import torch.nn.functional as F
from monai.networks.blocks import UnetrBasicBlock
from torch import Tensor, nn

from networks.linear import is_traced, linear


class ScanConv3d(nn.Conv3d):
    """``nn.Conv3d`` that under autocast splits input x and weights w into a rounded number and the remainder.

    It convolves the channels (x, x's remainder, x) with (w, w, w's remainder), so that autocast's fast kernels compute
    what they did, summed in float32, with three channels for each. Left out is the product of both remainders, 2⁻¹⁶.
    In float32 a CPU's small kernels get channels of zeros: of fewer than four torch makes a slow convolution.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, features, D', H', W')."""
        weight = self.weight
        if not torch.jit.is_scripting():  # a file of TorchScript computes in float32
            input, weight = _in_more_channels(input, weight)
        return self._conv_forward(input, weight, self.bias)


class ScanLinear(nn.Linear):
    """``nn.Linear`` that computes in float32 under autocast too, which takes as long as three bfloat16 parts."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, N, inputs) -> (B, N, outputs)."""
        if torch.jit.is_scripting():
            return F.linear(input, self.weight, self.bias)
        with torch.autocast(input.device.type, enabled=False):
            return linear(input, self.weight, self.bias)


def read_by_twice_the_bits(block: UnetrBasicBlock) -> None:
    """Let the convolutions of a block that read its input be :class:`ScanConv3d`; its parameters stay."""
    for convolution in (block.layer.conv1, getattr(block.layer, "conv3", None)):
        if convolution is not None:
            plain = convolution.conv
            convolution.conv = nn.utils.skip_init(
                ScanConv3d, plain.in_channels, plain.out_channels, plain.kernel_size, padding=plain.padding, bias=False
            )
            convolution.conv.weight = plain.weight


def _in_more_channels(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C, D, H, W) and (F, C, k, k, k) -> (B, C', D, H, W) and (F, C', k, k, k), with the same convolution."""
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        rounded, remainder = _split(x, dtype)
        w_rounded, w_remainder = _split(weight, dtype)
        channels = torch.cat([rounded, remainder, rounded], 1)
        weight = torch.cat([w_rounded, w_rounded, w_remainder], 1)
    elif x.device.type == "cpu" and x.shape[1] < 4 and weight.shape[-1] <= 3 and not is_traced():
        zeros_behind = (0, 0, 0, 0, 0, 0, 0, 4 - x.shape[1])  # width, height, depth, channels
        channels, weight = F.pad(x, zeros_behind), F.pad(weight, zeros_behind)
    else:
        return x, weight
    # a stride of 1 says for a single channel too that channels are to lie together
    return channels.contiguous(memory_format=torch.channels_last_3d) if x.stride(1) == 1 else channels, weight


def _split(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x rounded to a format, and what is missing, which has no gradient: that of the rounded one is the whole's."""
    rounded = x.to(dtype)
    return rounded, (x.detach() - rounded.detach()).to(dtype)

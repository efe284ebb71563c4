"""Layers that route work on CPUs to oneDNN's kernels, where torch would choose slower ones."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.vit import SelfAttention

ONEDNN_ABOVE = 20480  # channels · depth · height, above which torch 2.13 leaves a single sample to oneDNN
# changes nothing in a kernel of one voxel, but with it torch leaves that to oneDNN with a single thread too; a single
# sample of fewer voxels it would leave to a kernel slower than any other
DILATION = 2
MOST_WEIGHTS = 2**23  # of a layer's attention in all heads: 12 layers then keep 200 MB for the backward pass


class Linear(nn.Linear):
    """``nn.Linear`` that computes (B, N, inputs) as a convolution.

    torch leaves a linear layer to MKL and a convolution to oneDNN, which on AMD's CPUs takes half as long.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        in_mkl = _in_float32_on_cpu(input) and torch.backends.mkl.is_available()
        if not (in_mkl and input.dim() == 3 and _is_left_to_onednn(input)):
            return F.linear(input, self.weight, self.bias)
        # (B, N, C) -> (B, N, 1, C) -> (B, C, N, 1) and back, so that strides say that channels lie together
        volume = input.unsqueeze(2).permute(0, 3, 1, 2)
        result = F.conv2d(volume, self.weight[:, :, None, None], self.bias, dilation=DILATION)
        return result.permute(0, 2, 3, 1).squeeze(2)


class MatrixAttention(SelfAttention):
    """Self-attention in bfloat16 by matrix products, as its formula reads.

    torch's flash attention takes twice as long in training on CPUs with instructions for bfloat16. But it keeps no
    weights of all pairs of tokens for the backward pass, so that it stays for long sequences.
    """

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Three times (B, heads, N, E / heads) -> (B, heads, N, E / heads)."""
        on_cpu = q.device.type == "cpu" and q.dtype == torch.bfloat16 and not is_traced()
        if not on_cpu or q.shape[:3].numel() * q.shape[2] > MOST_WEIGHTS:
            return super().attend(q, k, v)
        with torch.autocast("cpu", enabled=False):  # which would compute the softmax in float32, for the same result
            weights = (q * q.shape[3] ** -0.5 @ k.transpose(2, 3)).softmax(3)  # (B, heads, N, N)
            return F.dropout(weights, self.dropout_rate, self.training) @ v


class Conv3d(nn.Conv3d):
    """``nn.Conv3d`` with stride 1 that keeps the input's memory layout, and is fast for a single sample.

    torch leaves one sample of few voxels and channels to a slow kernel that knows one layout. Channels of zeros make
    the sample large enough for oneDNN.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, features, D, H, W)."""
        return conv3d(input, self.weight, self.bias, self.padding)


def conv3d(volume: Tensor, weight: Tensor, bias: Tensor | None, padding: str | tuple[int, ...]) -> Tensor:
    """``F.conv3d`` of (B, C, D, H, W), as :class:`Conv3d` computes it."""
    if not _in_float32_on_cpu(volume):
        return F.conv3d(volume, weight, bias, padding=padding)
    # a stride of 1 says for a single channel too that channels are to lie together
    layout = torch.channels_last_3d if volume.stride(1) == 1 else torch.contiguous_format
    volume, weight = _with_enough_channels(volume, weight)
    dilation = DILATION if weight.shape[2:].numel() == 1 and _is_left_to_onednn(volume) else 1
    result = F.conv3d(volume.contiguous(memory_format=layout), weight, bias, padding=padding, dilation=dilation)
    return result.contiguous(memory_format=layout)


def is_traced() -> bool:
    """Whether the computation is recorded for a compiler or another program, for batches of any size."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


def _in_float32_on_cpu(x: Tensor) -> bool:
    return (
        not is_traced()
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
    )


def _is_left_to_onednn(x: Tensor) -> bool:
    """Whether torch leaves a convolution to oneDNN: of (B, C, D, H, W), or of (B, N, C) as a linear layer."""
    return len(x) > 1 or x.shape[1:4].numel() > ONEDNN_ABOVE


def _with_enough_channels(volume: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    batch, channels, depth, height = volume.shape[:4]
    enough = ONEDNN_ABOVE // (depth * height) + 1
    if batch != 1 or not channels < enough <= 4:  # more cost as much as the slow kernel
        return volume, weight
    zeros_behind = (0, 0, 0, 0, 0, 0, 0, enough - channels)  # width, height, depth, channels
    return F.pad(volume, zeros_behind), F.pad(weight, zeros_behind)

"""A residual convolutional tokenizer: convolutions that turn a volume into the tokens of its patches.

From Primus V2 (Wald et al., arXiv 2503.01835, later versions in ``dynamic-network-architectures``), whose blocks are
those of ResNet-D (He et al., "Bag of Tricks", arXiv 1812.01187).
"""

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

FIRST_CHANNELS = 32  # at full resolution and at half; doubled from there on


def he_init(convolution: nn.Conv3d | nn.ConvTranspose3d) -> None:
    """Draw a convolution's weights as nnU-Net does (He et al., arXiv 1502.01852)."""
    nn.init.kaiming_normal_(convolution.weight, a=1e-2)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)


class ConvNorm(nn.Sequential):
    """A convolution without bias, and an instance norm with weights."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1, bias: bool = False) -> None:
        super().__init__(
            nn.Conv3d(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=bias),
            nn.InstanceNorm3d(channels_out, affine=True),
        )


class ResidualBlock(nn.Module):
    """Two convolutions, beside which the input goes through pooling where the resolution is halved."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, bias: bool = False) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = ConvNorm(channels_in, channels_out, 3, stride, bias)
        self.conv2 = ConvNorm(channels_out, channels_out, 3, bias=bias)
        self.skip = ConvNorm(channels_in, channels_out, 1) if channels_in != channels_out else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, channels_out, D / stride, H / stride, W / stride)."""
        residual = F.avg_pool3d(x, self.stride) if self.stride > 1 else x
        if self.skip is not None:
            residual = self.skip(residual)
        return F.relu(self.conv2(F.relu(self.conv1(x))) + residual)


class ResidualTokenizer(nn.Module):
    """Residual blocks that halve the resolution down to that of the patches, and a linear map to tokens.

    With patches of 8 voxels it has 32 channels at full resolution and 32, 64 and 128 below.
    """

    def __init__(self, in_channels: int, hidden_size: int, patch_size: int) -> None:
        super().__init__()
        halvings = patch_size.bit_length() - 1
        channels = [FIRST_CHANNELS, *(FIRST_CHANNELS * 2**level for level in range(halvings))]
        self.stem = ResidualBlock(in_channels, channels[0], stride=1, bias=True)
        self.stages = nn.ModuleList(
            ResidualBlock(finer, coarser, stride=2) for finer, coarser in itertools.pairwise(channels)
        )
        self.proj = nn.Conv3d(channels[-1], hidden_size, kernel_size=1)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                he_init(module)

    def forward(self, volume: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, E, d, h, w), with d = D / patch_size and so on."""
        x = self.stem(volume)
        for stage in self.stages:
            x = stage(x)
        return self.proj(x)

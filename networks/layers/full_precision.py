"""Layers whose numbers autocast would round more than the borders of organs can bear: a scan's voxels, and logits.

bfloat16 has 8 bits: of BTCV's window of 425 Hounsfield units the upper half is rounded to steps of 1.7, and logits from
4 to 8 to steps of 0.03. What lies between is rounded as well, but by then is spread over many channels.
"""

from typing import Any

import torch
from monai.networks.blocks import UnetOutBlock
from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetResBlock
from torch import Tensor, nn

from networks.layers.cpu_kernels import Conv3d, conv3d, is_traced
from networks.layers.instance_norm import InstanceNorm3d
from networks.layers.layout import in_layout_of


class ScanBlock(nn.Module):
    """MONAI's ``UnetrBasicBlock`` (3×3×3 kernels, stride 1) for the scan itself.

    Args:
        in_channels: channels of the scan.
        out_channels: features of the result.
        norm_name: MONAI's name of the normalisation.
        res_block: whether a residual connection goes around the convolutions.
    """

    def __init__(self, in_channels: int, out_channels: int, norm_name: str, res_block: bool) -> None:
        super().__init__()
        block = ScanResBlock if res_block else UnetBasicBlock
        self.layer: nn.Module = block(3, in_channels, out_channels, kernel_size=3, stride=1, norm_name=norm_name)

    def forward(self, scan: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, features, D, H, W)."""
        result: Tensor = self.layer(scan)
        return result


class ScanResBlock(UnetResBlock):
    """MONAI's ``UnetResBlock`` whose residual connection isn't rounded before it is normalised.

    It takes the scan as it is to the end of the decoder: a 1×1×1 convolution, of which the normalisation then takes the
    mean away, and with it the leading bits that all voxels share.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        for convolution in (self.conv1, self.conv3) if self.downsample else (self.conv1,):
            convolution.conv = Conv3d.like(convolution.conv)

    def forward(self, scan: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, features, D, H, W)."""
        out = self.lrelu(self.norm1(self.conv1(scan)))
        out = self.norm2(self.conv2(out))
        if hasattr(self, "conv3"):  # if there are not as many features as channels
            if torch.jit.is_scripting():
                residual = self.norm3(self.conv3(scan))
            else:
                residual = self._normalised_features(scan, out)
        else:
            residual = scan
        out += residual.to(out.dtype)
        result: Tensor = self.lrelu(out)
        return result

    def _normalised_features(self, scan: Tensor, example: Tensor) -> Tensor:
        convolution = self.conv3.conv
        with torch.autocast(scan.device.type, enabled=False):
            scan = scan.to(convolution.weight.dtype)
            if not isinstance(self.norm3, InstanceNorm3d) or is_traced():
                features: Tensor = self.norm3(convolution(scan))
                return features
            centred, weights = normalised_kernels(scan, convolution.weight, self.norm3.eps)
            if example.dtype != scan.dtype:
                centred, weights = in_parts(centred, weights, example.dtype)
        samples = in_layout_of(example, centred).split(1)
        normalised = [conv3d(one, kernel, None, (0, 0, 0)) for one, kernel in zip(samples, weights, strict=True)]
        return normalised[0] if len(normalised) == 1 else torch.cat(normalised)


class OutBlock(UnetOutBlock):
    """MONAI's ``UnetOutBlock``, whose logits are computed in float32 under autocast too."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conv.conv = Conv3d.like(self.conv.conv)

    def forward(self, features: Tensor) -> Tensor:
        """(B, features, D, H, W) -> (B, classes, D, H, W)."""
        if torch.jit.is_scripting():
            return self.conv(features)
        with torch.autocast(features.device.type, enabled=False):
            return self.conv(features.to(self.conv.conv.weight.dtype))


def normalised_kernels(volume: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """What instance norm makes of a 1×1×1 convolution, from the covariance of its input's channels C.

    A feature w·x has the mean w·mean(x) and the variance w·cov(x)·w over a sample's voxels, so that its normalised
    value is another convolution's of x - mean(x), and nothing has to be stored before it is normalised.

    Args:
        volume: (B, C, D, H, W).
        weight: (F, C, 1, 1, 1).
        eps: what instance norm adds to variances.

    Returns:
        volume less each channel's mean, and kernels (B, F, C, 1, 1, 1), those of each sample.
    """
    centred = volume - volume.mean((2, 3, 4), keepdim=True)
    rows = centred.flatten(2)  # (B, C, D · H · W)
    covariance = rows @ rows.transpose(1, 2) / rows.shape[2]  # (B, C, C)
    kernel = weight.flatten(1)  # (F, C)
    variance = ((kernel @ covariance) * kernel).sum(2)  # (B, F)
    return centred, weight * (variance + eps).rsqrt()[:, :, None, None, None, None]


def in_parts(volume: Tensor, kernels: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Each number as one of a shorter format and the remainder, in channels that are convolved to what they were.

    The channels x, x's remainder and x meet the weights w, w and w's remainder; the product of both remainders, less
    than 2⁻¹⁶ of the whole in bfloat16, is left out. The kernels of the shorter format sum in float32.

    Args:
        volume: (B, C, D, H, W).
        kernels: (B, F, C, 1, 1, 1).

    Returns:
        (B, 3 · C, D, H, W) and (B, F, 3 · C, 1, 1, 1) of the shorter format.
    """
    x, x_remainder = _split(volume, dtype)
    w, w_remainder = _split(kernels, dtype)
    return torch.cat([x, x_remainder, x], 1), torch.cat([w, w, w_remainder], 2)


def _split(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What x is rounded to, which takes all of its gradient, and the remainder."""
    rounded = x.to(dtype)
    return rounded, (x.detach() - rounded.detach()).to(dtype)

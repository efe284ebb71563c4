"""Input and output layers that stay exact under autocast: bfloat16 blurs organ boundaries.

bfloat16 has 8 bits. It rounds the upper half of BTCV's window of 425 Hounsfield units to steps of 1.7, and logits from
4 to 8 to steps of 0.03. The layers between are rounded too, but there a voxel is spread over many channels.
"""

import torch
from monai.networks.blocks import UnetOutBlock
from torch import Tensor

from networks.layers.cpu_kernels import conv3d, is_traced
from networks.layers.fused_norm import ResBlock, norm_act
from networks.layers.instance_norm import InstanceNorm3d
from networks.layers.layout import in_layout_of


class ScanResBlock(ResBlock):
    """A residual block whose residual connection isn't rounded before it is normalised.

    The residual carries the scan to the end of the decoder by a 1×1×1 convolution. Its normalisation subtracts the
    mean, and with it the leading bits that all voxels share.
    """

    def forward(self, inp: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, features, D, H, W)."""
        out = self.conv2(norm_act(self.conv1(inp), self.norm1, self.lrelu))
        # without conv3 there are as many features as channels
        residual = self.normalised_features(inp, out) if hasattr(self, "conv3") else inp
        return norm_act(out, self.norm2, self.lrelu, residual)

    def normalised_features(self, scan: Tensor, example: Tensor) -> Tensor:
        """The residual (B, features, D, H, W) of a scan (B, C, D, H, W), in the format and layout of ``example``."""
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

    def forward(self, inp: Tensor) -> Tensor:
        """(B, features, D, H, W) -> (B, classes, D, H, W)."""
        with torch.autocast(inp.device.type, enabled=False):
            logits: Tensor = self.conv(inp.to(self.conv.conv.weight.dtype))
        return logits


def normalised_kernels(volume: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """A 1×1×1 convolution and the instance norm behind it as one convolution of the centred volume.

    A feature w·x has the mean w·mean(x) and the variance w·cov(x)·w over a sample's voxels, with the covariance of the
    C input channels. So the normalised feature is a convolution of x - mean(x), and nothing has to be stored before it
    is normalised.

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
    """Volume and kernels in a shorter format without loss: each number is split into its rounded value and the rest.

    The channels x, rest of x and x meet the weights w, w and rest of w; the product of both rests, less than 2⁻¹⁶ of
    the whole in bfloat16, is left out. Convolutions in the shorter format sum in float32.

    Args:
        volume: (B, C, D, H, W).
        kernels: (B, F, C, 1, 1, 1).

    Returns:
        (B, 3 · C, D, H, W) and (B, F, 3 · C, 1, 1, 1) of the shorter format.
    """
    x, x_rest = _split(volume, dtype)
    w, w_rest = _split(kernels, dtype)
    return torch.cat([x, x_rest, x], 1), torch.cat([w, w, w_rest], 2)


def _split(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The rounded values, which take all of the gradient, and the rest."""
    rounded = x.to(dtype)
    return rounded, (x.detach() - rounded.detach()).to(dtype)

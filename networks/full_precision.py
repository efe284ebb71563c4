"""The layers at both ends of the network, whose numbers autocast would round more than the borders of organs can bear.

bfloat16 has 8 bits: of BTCV's window of 425 Hounsfield units the upper half is rounded to steps of 1.7, and logits of 8
to steps of 0.03. What lies between is rounded as well, but by then is spread over many channels.
"""

from typing import Any

import torch
from monai.networks.blocks import UnetOutBlock
from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetResBlock
from torch import Tensor, nn

from networks.cpu_kernels import Conv3d


class ScanBlock(nn.Module):
    """MONAI's ``UnetrBasicBlock`` (3×3×3 kernels, stride 1) for the scan itself.

    Args:
        in_channels: channels of the scan.
        out_channels: features of the result.
        norm_name: MONAI's name of the normalisation.
        res_block: whether a residual connection goes around the convolutions; it stays in float32 under autocast.
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
    """MONAI's ``UnetResBlock`` whose residual connection computes in float32 under autocast too.

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
        if torch.jit.is_scripting():
            residual = self._residual(scan)
        else:
            with torch.autocast(scan.device.type, enabled=False):
                residual = self._residual(scan.float())
        out += residual.to(out.dtype)
        result: Tensor = self.lrelu(out)
        return result

    def _residual(self, scan: Tensor) -> Tensor:
        if hasattr(self, "conv3"):  # if there are not as many features as channels
            scan = self.norm3(self.conv3(scan))
        return scan


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
            return self.conv(features.float())

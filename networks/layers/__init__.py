"""Layers that are faster or more exact than torch's and MONAI's, and :func:`optimize_for_cpu`, which swaps them in."""

from typing import TypeVar

from monai.networks.blocks import UnetOutBlock, UnetrBasicBlock, UnetrUpBlock
from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetResBlock
from torch import nn

from networks.layers.cpu_kernels import Conv3d, Linear, MatrixAttention
from networks.layers.full_precision import OutBlock, ScanResBlock
from networks.layers.fused_norm import BasicBlock, ResBlock
from networks.layers.instance_norm import InstanceNorm3d
from networks.layers.layout import UpBlock
from networks.vit import SelfAttention

Network = TypeVar("Network", bound=nn.Module)


def optimize_for_cpu(network: Network) -> Network:
    """Swap in layers that compute the same, faster on CPUs and with less rounding under autocast; in place.

    Every network gets the instance norm that keeps the memory layout, and MONAI's convolutional blocks with norm and
    activation in one. A network whose class sets ``fast_layers``, as UNETR's does, also gets oneDNN's linear layers,
    and input and output layers that stay exact under autocast on CPUs and GPUs alike. Parameters, their names and their
    order stay. Exports are made of the plain network.
    """
    for module in network.modules():
        if type(module) is nn.InstanceNorm3d and not module.track_running_stats:
            module.__class__ = InstanceNorm3d
        elif type(module) is UnetResBlock:
            module.__class__ = ResBlock
        elif type(module) is UnetBasicBlock:
            module.__class__ = BasicBlock
    if getattr(network, "fast_layers", False):
        for module in network.modules():
            if type(module) is nn.Linear:
                module.__class__ = Linear
            elif type(module) is SelfAttention:
                module.__class__ = MatrixAttention
            elif type(module) is UnetrUpBlock:
                module.__class__ = UpBlock
            elif type(module) is UnetOutBlock:
                module.__class__ = OutBlock
                module.conv.conv.__class__ = Conv3d
            elif type(module) is UnetrBasicBlock and type(module.layer) is ResBlock:
                _keep_residual_exact(module.layer)  # of UNETR's blocks the one that reads the scan
    return network


def _keep_residual_exact(block: ResBlock) -> None:
    block.__class__ = ScanResBlock
    for convolution in (block.conv1, block.conv3) if block.downsample else (block.conv1,):
        convolution.conv.__class__ = Conv3d

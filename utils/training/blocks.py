"""The blocks that a network is made of, and other ways to compute them where it is trained."""

from collections.abc import Callable

import torch
from monai.networks.blocks import UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock
from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetUpBlock
from monai.networks.blocks.segresnet_block import ResBlock
from monai.networks.nets.swin_unetr import SwinTransformerBlock
from torch import Tensor, nn

from networks.layers.full_precision import ScanBlock
from networks.vit import TransformerBlock

Forward = Callable[..., Tensor]

BLOCKS = (
    *(TransformerBlock, ScanBlock, UnetrPrUpBlock, UnetrUpBlock),
    *(SwinTransformerBlock, UnetrBasicBlock, ResBlock, UnetBasicBlock, UnetUpBlock),  # of MONAI's other networks
)


def train_blocks(network: nn.Module, way: Callable[[nn.Module, Forward], Forward]) -> None:
    """Compute a network's blocks in another way wherever gradients are recorded; its parameters and buffers stay.

    Validation and exports, which record none, are left as they are.

    Args:
        way: from a block and its forward pass to the one that takes its place.
    """
    blocks = [module for module in network.modules() if isinstance(module, BLOCKS)]
    inside_others = {part for block in blocks for part in block.modules() if part is not block}
    for block in blocks:
        if block not in inside_others:
            block.forward = _Switch(block.forward, way(block, block.forward))  # type: ignore[assignment]


class _Switch:
    """A forward pass that is another one where gradients are recorded."""

    def __init__(self, plain: Forward, recorded: Forward) -> None:
        self.plain = plain
        self.recorded = recorded

    def __call__(self, *inputs: Tensor) -> Tensor:
        return (self.recorded if torch.is_grad_enabled() else self.plain)(*inputs)

"""The blocks that a network is made of, and other ways to compute them where it is trained."""

from collections.abc import Callable

import torch
from monai.networks.blocks import UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock
from torch import Tensor, nn

from networks.vit import TransformerBlock

Forward = Callable[..., Tensor]

BLOCKS = (TransformerBlock, UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock)


def train_blocks(network: nn.Module, way: Callable[[nn.Module, Forward], Forward]) -> None:
    """Compute a network's blocks in another way wherever gradients are recorded; its parameters and buffers stay.

    Validation and exports, which record none, are left as they are.

    Args:
        way: from a block and its forward pass to the one that takes its place.
    """
    for block in network.modules():
        if isinstance(block, BLOCKS):
            block.forward = _Switch(block.forward, way(block, block.forward))  # type: ignore[assignment]


class _Switch:
    """A forward pass that is another one where gradients are recorded."""

    def __init__(self, plain: Forward, recorded: Forward) -> None:
        self.plain = plain
        self.recorded = recorded

    def __call__(self, *inputs: Tensor) -> Tensor:
        return (self.recorded if torch.is_grad_enabled() else self.plain)(*inputs)

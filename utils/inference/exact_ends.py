"""The two ends of a network that torch keeps exact, beside an engine that rounds all it computes to bfloat16.

:mod:`networks.layers.full_precision` has the layers. torch computes them here as it does by itself: the residual of the
scan goes into what another engine computes, and the output layer's features come out of it.
"""

from typing import Any

import torch
from torch import Tensor, nn

from networks.layers.full_precision import OutBlock, ScanResBlock


class ExactEnds(nn.Module):
    """The exact layers of a network, whose rest may be freed.

    Args:
        network: one with the layers of :func:`networks.layers.optimize_for_cpu`; without exact ones among them this
            passes on window and result.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        blocks = [block for block in network.modules() if isinstance(block, ScanResBlock) and hasattr(block, "conv3")]
        self.scan_block = blocks[0] if blocks else None
        outputs = [layer for layer in network.modules() if isinstance(layer, OutBlock)]
        self.out = outputs[0] if outputs else None  # the others are for deep supervision

    def inputs(self, window: Tensor) -> list[Tensor]:
        """(1, C, D, H, W) -> what the other engine reads: the window, and the residual (1, D, H, W, F) in bfloat16."""
        if self.scan_block is None:
            return [window]
        features = self.scan_block.conv3.conv.out_channels
        example = torch.empty(1, 2, 2, 2, features, dtype=torch.bfloat16).permute(0, 4, 1, 2, 3)
        residual = self.scan_block.normalised_features(window, example)  # (1, F, D, H, W)
        return [window, residual.permute(0, 2, 3, 4, 1).contiguous()]

    def logits(self, result: Tensor) -> Tensor:
        """Logits (1, classes, D, H, W) from what the other engine computed: features (1, D, H, W, F), or logits."""
        if self.out is None:
            return result
        logits: Tensor = self.out(result.permute(0, 4, 1, 2, 3))
        return logits


class BetweenEnds(nn.Module):
    """A network without its exact layers, to be traced."""

    def __init__(self, network: nn.Module, ends: ExactEnds) -> None:
        super().__init__()
        self.network, self.ends = network, ends

    def forward(self, window: Tensor, *residuals: Tensor) -> Tensor:
        """What :meth:`ExactEnds.inputs` gives -> what :meth:`ExactEnds.logits` takes."""
        hooks = []
        if self.ends.out is not None:
            hooks.append(self.ends.out.register_forward_hook(_input_as_result))
        if self.ends.scan_block is not None:
            residual = residuals[0].permute(0, 4, 1, 2, 3).float()
            hooks.append(self.ends.scan_block.norm3.register_forward_hook(lambda *_: residual))
        result: Tensor = self.network(window)
        for hook in hooks:
            hook.remove()
        return result if self.ends.out is None else result.permute(0, 2, 3, 4, 1).to(torch.bfloat16)


def _input_as_result(_: nn.Module, inputs: tuple[Any, ...], __: Tensor) -> Any:
    return inputs[0]

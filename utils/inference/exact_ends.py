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
        out: the output layer.
        scan_block: the block that reads the scan, if its residual is exact.
    """

    def __init__(self, out: OutBlock, scan_block: ScanResBlock | None) -> None:
        super().__init__()
        self.out, self.scan_block = out, scan_block

    def inputs(self, window: Tensor) -> list[Tensor]:
        """(1, C, D, H, W) -> what the other engine reads: the window, and the residual (1, D, H, W, F) in bfloat16."""
        if self.scan_block is None:
            return [window]
        features = self.scan_block.conv3.conv.out_channels
        example = torch.empty(1, 2, 2, 2, features, dtype=torch.bfloat16).permute(0, 4, 1, 2, 3)
        residual = self.scan_block.normalised_features(window, example)  # (1, F, D, H, W)
        return [window, residual.permute(0, 2, 3, 4, 1).contiguous()]

    def logits(self, features: Tensor) -> Tensor:
        """(1, D, H, W, F), what the other engine computed -> logits (1, classes, D, H, W)."""
        logits: Tensor = self.out(features.permute(0, 4, 1, 2, 3))
        return logits


def find_exact_ends(network: nn.Module) -> ExactEnds | None:
    """The exact layers of a network with those of :func:`networks.layers.optimize_for_cpu`; None if it has none."""
    blocks = [block for block in network.modules() if isinstance(block, ScanResBlock) and hasattr(block, "conv3")]
    outputs = [layer for layer in network.modules() if isinstance(layer, OutBlock)]
    # further output layers are for deep supervision
    return ExactEnds(outputs[0], blocks[0] if blocks else None) if outputs else None


class BetweenEnds(nn.Module):
    """A network without its exact layers, to be traced."""

    def __init__(self, network: nn.Module, ends: ExactEnds) -> None:
        super().__init__()
        self.network, self.ends = network, ends

    def forward(self, window: Tensor, *residuals: Tensor) -> Tensor:
        """What :meth:`ExactEnds.inputs` gives -> what :meth:`ExactEnds.logits` takes."""
        hooks = [self.ends.out.register_forward_hook(_input_as_result)]
        if self.ends.scan_block is not None:
            residual = residuals[0].permute(0, 4, 1, 2, 3).float()
            hooks.append(self.ends.scan_block.norm3.register_forward_hook(lambda *_: residual))
        features: Tensor = self.network(window)  # (1, F, D, H, W)
        for hook in hooks:
            hook.remove()
        return features.permute(0, 2, 3, 4, 1).to(torch.bfloat16)


def _input_as_result(_: nn.Module, inputs: tuple[Any, ...], __: Tensor) -> Any:
    return inputs[0]

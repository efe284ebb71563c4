"""Activations that are computed again in the backward pass instead of being kept for it, which takes less memory."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from utils.training.blocks import Forward, train_blocks


def recompute_activations(network: nn.Module) -> None:
    """Keep only what goes into a network's blocks for the backward pass.

    Gradients, random numbers and running statistics are as without.
    """
    train_blocks(network, _recomputed)


def _recomputed(block: nn.Module, forward: Forward) -> Forward:
    return partial(checkpoint, forward, use_reentrant=False, context_fn=partial(_contexts, block))


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What the first computation of a block runs in, and what the second."""
    return nullcontext(), _keeping_buffers(block)


@contextmanager
def _keeping_buffers(block: nn.Module) -> Iterator[None]:
    """Leave running statistics as they are: the first computation has counted the batch."""
    buffers = list(block.buffers())
    values = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:  # torch ends the second computation by an exception, once it has all that the backward pass asks for
        with torch.no_grad():
            for buffer, value in zip(buffers, values, strict=True):
                buffer.copy_(value)

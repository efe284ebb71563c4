"""Recompute a network's blocks in the backward pass, or compile them, one by one.

The network's class names its ``blocks`` (:mod:`networks.registry`). Each block gets a subclass of its class, which
changes how it is called where gradients are recorded. Parameters, buffers and names stay the same. So do validation and
exports, which record no gradients.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from networks.registry import architecture_of
from utils.system.errors import InputError


def recompute_activations(network: nn.Module) -> None:
    """Keep only the inputs of a network's blocks for the backward pass, which computes the rest again.

    Gradients, random numbers and running statistics are the same as without.

    Raises:
        InputError: if the network names no blocks.
    """
    for block in _outermost(network, "activation_checkpointing", "recomputed"):
        block.__class__ = _recomputed(type(block))  # type: ignore[arg-type]  # mypy takes no class for hashable


def compile_blocks(network: nn.Module) -> None:
    """Let torch compile each kind of a network's blocks, in the first training step that meets it.

    Blocks rather than the whole network: the 12 transformer blocks are compiled once, DDP still sends the gradients of
    one block while it computes another's, and each can be recomputed.

    Raises:
        InputError: if the network names no blocks.
    """
    # blocks of a kind differ in shape, drop path and batch; torch would leave all but the first few as they are
    torch._dynamo.config.cache_size_limit = 256  # newer releases call it recompile_limit, and know both names
    torch._dynamo.config.accumulated_cache_size_limit = 1024
    for block in _outermost(network, "compile", "compiled"):
        block.__class__ = _compiled(type(block))  # type: ignore[arg-type]


def _outermost(network: nn.Module, setting: str, what: str) -> list[nn.Module]:
    """The network's blocks that lie in no other block."""
    kinds = architecture_of(network).require("blocks", setting, what)
    blocks = [module for module in network.modules() if isinstance(module, kinds)]
    inside_others = {part for block in blocks for part in block.modules() if part is not block}
    return [block for block in blocks if block not in inside_others]


@cache
def _recomputed(kind: type[nn.Module]) -> type[nn.Module]:
    class Recomputed(kind):  # type: ignore[valid-type, misc]
        def __call__(self, *inputs: Any, **options: Any) -> Any:
            if not torch.is_grad_enabled():
                return super().__call__(*inputs, **options)
            contexts = partial(_contexts, self)
            return checkpoint(super().__call__, *inputs, use_reentrant=False, context_fn=contexts, **options)

    return Recomputed


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


@cache
def _compiled(kind: type[nn.Module]) -> type[nn.Module]:
    # blocks of one kind differ in shape, which torch would take for a reason to compile for all shapes at once
    compiled = torch.compile(kind.forward, dynamic=False)

    class Compiled(kind):  # type: ignore[valid-type, misc]
        def forward(self, *inputs: Any, **options: Any) -> Any:
            if not torch.is_grad_enabled():
                return super().forward(*inputs, **options)
            try:
                return compiled(self, *inputs, **options)
            except RuntimeError as error:
                from torch._dynamo.exc import BackendCompilerFailed  # takes a second to import

                if not isinstance(error, BackendCompilerFailed):
                    raise
                lines = str(error.inner_exception).strip().splitlines()
                reason = " … ".join(dict.fromkeys([lines[0], lines[-1]])).rstrip(".")
                raise InputError(
                    f"`compile`: torch can't compile the network here ({reason}). Install a C++ compiler (g++, or what "
                    "the environment variable CXX names; on GPUs also gcc and triton), or leave `compile` out."
                ) from error

    return Compiled

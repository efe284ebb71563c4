"""Blocks of a network that torch compiles where it is trained."""

import torch
from torch import Tensor, nn

from utils.system.errors import InputError
from utils.training.blocks import Forward, train_blocks


def compile_blocks(network: nn.Module) -> None:
    """Let torch compile each kind of a network's blocks, in the first training step that meets it.

    Blocks rather than the whole network: its 12 transformer blocks are compiled once, DDP still sends the gradients of
    one while another's are computed, and each can be computed again as it is (:mod:`utils.training.recomputation`).
    """
    train_blocks(network, _compiled)


def _compiled(_: nn.Module, forward: Forward) -> Forward:
    # blocks of one kind differ in shape, which torch would take for a reason to compile for all shapes at once
    compiled = torch.compile(forward, dynamic=False)

    def run(*inputs: Tensor) -> Tensor:
        from torch._dynamo.exc import BackendCompilerFailed  # takes a second that others needn't wait

        try:
            return compiled(*inputs)
        except BackendCompilerFailed as error:
            lines = str(error.inner_exception).strip().splitlines()
            reason = " … ".join(dict.fromkeys([lines[0], lines[-1]])).rstrip(".")
            raise InputError(
                f"--compile: torch can't compile the network here ({reason}). Install a C++ compiler (g++, or what the "
                "environment variable CXX names; on GPUs also gcc and triton), or leave --compile out."
            ) from error

    return run

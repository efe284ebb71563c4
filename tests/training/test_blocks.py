"""Blocks that are computed twice, or compiled, give what they give when they are left alone."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from networks import registry
from networks.layers import optimize_for_cpu
from networks.registry import NetworkConfig, register
from networks.unetr import UNETR, UNETRConfig
from networks.vit import TransformerBlock
from tests.conftest import REPOSITORY, TINY, Run
from tests.networks.test_unetr import small
from tests.processes import start_group
from tests.training.test_training import equal, lines, train, weights
from utils.export import export
from utils.system.errors import InputError
from utils.training import blocks
from utils.training.blocks import compile_blocks, recompute_activations

CHEAP = "aot_eager"  # a backend that takes a network apart as torch's own does, and generates no code
RECOMPUTING = "--activation_checkpointing"
Change = Callable[[nn.Module], None]
changes = pytest.mark.parametrize("change", [recompute_activations, compile_blocks])


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    """What one test compiles counts toward a limit that torch has for a process."""
    yield
    torch.compiler.reset()


@pytest.fixture
def cheap_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks._compiled.cache_clear()  # which keeps what another backend compiled
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=CHEAP))


def compile_cheaply(backend: object = CHEAP) -> None:
    """Let torch.compile use another backend, for the rest of a process's life."""
    torch.compile = partial(torch.compile, backend=backend)  # type: ignore[assignment]


def training_step(network: nn.Module, shape: tuple[int, ...]) -> tuple[Tensor, dict[str, Tensor | None]]:
    """The output for a random input, and the gradients."""
    torch.manual_seed(1)
    network.zero_grad()
    output = network(torch.randn(shape))
    output.square().mean().backward()
    return output.detach(), {name: parameter.grad for name, parameter in network.named_parameters()}

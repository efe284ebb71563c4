"""Blocks that are recomputed, or compiled, give what they give when they are left alone."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from networks.layers import optimize_for_cpu
from networks.registry import ARCHITECTURES, Architecture
from networks.unetr import UNETR
from networks.vit import TransformerBlock, ViTConfig
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
Change = tuple[Callable[[nn.Module], None], ...]
CHANGES: dict[str, Change] = {
    "recomputed": (recompute_activations,),
    "compiled": (compile_blocks,),
    "both": (compile_blocks, recompute_activations),  # in the order of main.py
}
changes = pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    """What one test compiles counts toward a limit that torch has for a process."""
    yield
    torch.compiler.reset()


def use_backend(monkeypatch: pytest.MonkeyPatch, backend: object = CHEAP) -> None:
    """Let a backend compile all blocks of a test."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    monkeypatch.setattr(blocks, "_compiled", cache(blocks._compiled.__wrapped__))  # no block of an earlier test


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


def built(kind: Callable[[Any], nn.Module]) -> nn.Module:
    """A network of a class that ``NETWORKS`` doesn't know, with tokens of 8 numbers."""
    config: Any = dataclass(frozen=True)(type("ToyConfig", (ViTConfig,), {}))
    ARCHITECTURES[config] = Architecture("toy", config, kind, lambda _: (16, 16, 16))
    torch.manual_seed(0)
    return ARCHITECTURES[config].build(config(hidden_size=8, mlp_dim=8, num_heads=2))


class TwoBlocks(nn.Sequential):
    blocks = (TransformerBlock,)

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(TransformerBlock(config, 0.0), TransformerBlock(config, 0.0))


def unetr(norm_name: str, recomputing: bool) -> UNETR:
    """As main.py makes it."""
    torch.manual_seed(0)
    network = optimize_for_cpu(small(norm_name=norm_name, dropout_rate=0.3, img_size=32))
    if recomputing:
        recompute_activations(network)
    return network


def step(network: UNETR, amp: bool = False) -> tuple[Tensor, int]:
    """Add up gradients; the logits, and the bytes that the forward pass kept for the backward pass."""
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    torch.manual_seed(1)
    volume = torch.randn(2, 1, 32, 32, 32)
    with (
        torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=amp),
    ):
        logits = network(volume)
    kept_forward = kept
    logits.float().square().mean().backward()
    return logits, kept_forward


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("norm_name", ["instance", "batch"])
def test_gradients_dropout_and_running_statistics_are_the_same(norm_name: str, amp: bool) -> None:
    kept, recomputed = (unetr(norm_name, recomputing) for recomputing in (False, True))
    start = {name: buffer.clone() for name, buffer in kept.named_buffers()}
    for _ in range(2):
        (logits, _), (again, _) = step(kept, amp), step(recomputed, amp)
        assert torch.equal(logits, again)
    assert equal(dict(kept.state_dict()), dict(recomputed.state_dict()))
    for (name, parameter), other in zip(kept.named_parameters(), recomputed.parameters(), strict=True):
        assert parameter.grad is not None
        assert other.grad is not None
        assert torch.equal(parameter.grad, other.grad), name
    if norm_name == "batch":
        assert {int(buffer) for name, buffer in recomputed.named_buffers() if "tracked" in name} == {2}
        assert all(not torch.equal(buffer, start[name]) for name, buffer in recomputed.named_buffers())


def test_less_is_kept() -> None:
    assert step(unetr("batch", True))[1] < step(unetr("batch", False))[1] / 4


def test_where_no_gradients_are_recorded_nothing_is_recomputed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def checkpoint(forward: Callable[..., Tensor], *inputs: Tensor, **_: object) -> Tensor:
        nonlocal calls
        calls += 1
        return forward(*inputs)

    monkeypatch.setattr(blocks, "checkpoint", checkpoint)
    one = unetr("batch", True).eval()
    volume = torch.randn(1, 1, 32, 32, 32)
    with torch.inference_mode():
        assert torch.equal(one(volume), unetr("batch", False).eval()(volume))
    assert calls == 0
    one(volume)
    assert calls == 12 + 4 + 4  # blocks of the transformer, of the skip paths and of the decoder


class Scaled(nn.Module):
    """``factor`` times a linear layer, plus ``shift``."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, tokens: Tensor, *, factor: float = 1.0, shift: Tensor | None = None) -> Tensor:
        scaled: Tensor = factor * self.linear(tokens)
        return scaled if shift is None else scaled + shift


class WithKeywords(nn.Module):
    blocks = (Scaled,)

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.block = Scaled(config)
        self.shift = nn.Parameter(torch.ones(config.hidden_size))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.block(tokens, factor=3.0, shift=self.shift)  # type: ignore[no-any-return]


@changes
def test_blocks_take_keyword_arguments(change: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    use_backend(monkeypatch)
    network = built(WithKeywords)
    plain = training_step(network, (2, 5, 8))
    assert plain[1]["shift"] is not None
    for one in change:
        one(network)
    torch.testing.assert_close(training_step(network, (2, 5, 8)), plain)


@changes
def test_a_copy_computes_with_its_own_parameters(change: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the running average of the weights and the networks of an ensemble are copies."""
    use_backend(monkeypatch)
    plain, network = built(TwoBlocks), built(TwoBlocks)
    for one in change:
        one(network)
    training_step(network, (2, 5, 8))
    twin = copy.deepcopy(network)
    network.zero_grad()
    with torch.no_grad():
        for parameter, other in zip(twin.parameters(), plain.parameters(), strict=True):
            parameter.mul_(1.5)
            other.mul_(1.5)
    torch.testing.assert_close(training_step(twin, (2, 5, 8)), training_step(plain, (2, 5, 8)))
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (recompute_activations, "`activation_checkpointing`: toy can't be recomputed, since its class declares no “bl"),
        (compile_blocks, "`compile`: toy can't be compiled, since its class declares no “blocks”"),
    ],
)
def test_a_network_without_blocks_is_refused(change: Callable[[nn.Module], None], message: str) -> None:
    with pytest.raises(InputError) as error:
        change(built(Scaled))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_run_is_the_same_and_goes_on_with_the_flag_or_without(run_main: Run, phantoms: Path, in_tmp: Path) -> None:
    flags = ("--norm_name=batch", "--dropout_rate=0.1", "--roi_x=32", "--noamp", "--lrschedule=constant")
    plain = train(run_main, phantoms, "plain", *flags, "--max_epochs=3")
    for name, second, third in (("on", [], [RECOMPUTING]), ("off", [RECOMPUTING], [])):
        train(run_main, phantoms, name, *flags, "--max_epochs=1", *third)
        train(run_main, phantoms, name, *flags, "--max_epochs=2", "--resume", *second)
        run = train(run_main, phantoms, name, *flags, "--max_epochs=3", "--resume", *third)
        assert [line["loss"] for line in lines(run)] == [line["loss"] for line in lines(plain)]
        assert equal(weights(run / "model_final.pt"), weights(plain / "model_final.pt"))


def test_two_processes_normalise_over_both_batches_once(phantoms: Path, in_tmp: Path) -> None:
    common = [f"--data_dir={phantoms}", "--workers=0", "--save_checkpoint", "--noamp", "--norm_name=batch", *TINY]
    common += ["--max_epochs=2", "--dropout_rate=0.1", "--accumulate=2", "--crops_per_scan=1", "--optim_name=sgd"]
    common += ["--optim_lr=1e-2", "--lrschedule=constant"]
    for group in [start_group(2, [*common, "--logdir=kept"]), start_group(2, [*common, "--logdir=again", RECOMPUTING])]:
        assert group.wait() == [0, 0], group.texts
    kept, again = (weights(Path("runs") / name / "model_final.pt") for name in ("kept", "again"))
    assert kept.keys() == again.keys()
    for name, tensor in kept.items():
        torch.testing.assert_close(again[name], tensor, rtol=0, atol=1e-7)


def test_weights_from_torchscript(run_main: Run, phantoms: Path, in_tmp: Path) -> None:
    folder = train(run_main, phantoms, "first", "--max_epochs=1", RECOMPUTING)
    export(folder / "model.pt", "torchscript", Path("script.pt"))
    start = ("--resume_jit", "--pretrained_dir=.", "--pretrained_model_name=script.pt", "--max_epochs=2")
    plain, again = train(run_main, phantoms, "a", *start), train(run_main, phantoms, "b", *start, RECOMPUTING)
    assert equal(weights(plain / "model_final.pt"), weights(again / "model_final.pt"))


def test_code_that_torch_generates_gives_the_same_gradients(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    network = built(TwoBlocks)
    plain = training_step(network, (2, 5, 8))
    names = list(network.state_dict())
    compile_blocks(network)
    torch.testing.assert_close(training_step(network, (2, 5, 8)), plain)
    recompute_activations(network)
    torch.testing.assert_close(training_step(network, (2, 5, 8)), plain)
    assert list(network.state_dict()) == names


@pytest.mark.parametrize("recomputing", [False, True])
def test_each_kind_of_block_is_compiled_once_and_validation_not_at_all(
    monkeypatch: pytest.MonkeyPatch, recomputing: bool
) -> None:
    counter = CompileCounterWithBackend(CHEAP)
    use_backend(monkeypatch, counter)
    networks = []
    for compiling in (False, True):
        torch.manual_seed(0)
        network = optimize_for_cpu(small(norm_name="batch", img_size=32))
        if compiling:
            compile_blocks(network)
            if recomputing:
                recompute_activations(network)
        networks.append(network)
    plain, compiled = networks
    for _ in range(2):
        expected, found = (training_step(network, (2, 1, 32, 32, 32)) for network in networks)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compiled.state_dict(), plain.state_dict())
    # a transformer block, the first skip path's, three skip paths and four of the decoder
    assert counter.frame_count == 1 + 1 + 3 + 4
    with torch.inference_mode():
        volume = torch.randn(3, 1, 32, 32, 32)
        torch.testing.assert_close(compiled.eval()(volume), plain.eval()(volume))
    assert counter.frame_count == 9
    training_step(compiled.train(), (1, 1, 32, 32, 32))  # a smaller last batch
    assert counter.frame_count == 18


def test_every_shape_of_a_block_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = CompileCounterWithBackend(CHEAP)
    use_backend(monkeypatch, counter)
    network = built(TwoBlocks)
    compile_blocks(network)
    for tokens in range(1, 11):  # torch's own limit is 8
        training_step(network, (2, tokens, 8))
    assert counter.frame_count == 2 * 10  # the first block's input asks for no gradient, the second one's does


def test_dropout_of_compiled_blocks_is_the_same_in_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    use_backend(monkeypatch)
    network = optimize_for_cpu(small(dropout_rate=0.3, img_size=32))
    compile_blocks(network)
    kept = training_step(network, (2, 1, 32, 32, 32))
    recompute_activations(network)
    torch.testing.assert_close(training_step(network, (2, 1, 32, 32, 32)), kept, rtol=1e-5, atol=1e-7)


def test_a_run_tells_the_first_step_and_goes_on_without(
    run_main: Run, phantoms: Path, in_tmp: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (
        "--norm_name=batch",
        "--roi_x=32",
        "--noamp",
        "--optim_name=sgd",
        "--lrschedule=constant",
        "--max_epochs=2",
    )
    plain = train(run_main, phantoms, "plain", *flags)
    assert "compilation" not in capsys.readouterr().out
    use_backend(monkeypatch)
    compiled = train(run_main, phantoms, "compiled", *flags, "--compile", "--activation_checkpointing")
    screen = capsys.readouterr().out.splitlines()
    told = [number for number, line in enumerate(screen) if line.startswith("the first step took ")]
    assert len(told) == 1
    assert screen[told[0]].endswith(" s, compilation included")
    assert screen[told[0] + 1].startswith("epoch 1/2: loss")
    # where it isn't compiled the network takes other kernels (networks/layers), which round in another order
    torch.testing.assert_close(
        weights(compiled / "model_final.pt"), weights(plain / "model_final.pt"), rtol=0, atol=5e-4
    )
    assert lines(compiled)[-1]["dice"]["mean"] == pytest.approx(lines(plain)[-1]["dice"]["mean"], abs=1e-3)
    before = weights(compiled / "model_final.pt")
    train(run_main, phantoms, "compiled", *flags, "--resume")
    assert equal(weights(compiled / "model_final.pt"), before)
    train(run_main, phantoms, "compiled", *flags, "--resume", "--max_epochs=3")
    assert [line["epoch"] for line in lines(compiled)] == [1, 2, 3]


def test_two_processes_compile(phantoms: Path, in_tmp: Path) -> None:
    common = [f"--data_dir={phantoms}", "--workers=0", "--save_checkpoint", "--noamp", "--norm_name=batch", *TINY]
    common += ["--max_epochs=1", "--crops_per_scan=1", "--optim_name=sgd", "--optim_lr=1e-2", "--lrschedule=constant"]
    for name, flags, before in (
        ("plain", [], None),
        ("compiled", ["--compile", "--activation_checkpointing"], compile_cheaply),
    ):
        group = start_group(2, [*common, f"--logdir={name}", *flags], before=before)
        assert group.wait() == [0, 0], group.texts
    assert sum(text.count("the first step took ") for text in group.texts) == 1
    plain, compiled = (weights(Path("runs") / name / "model_final.pt") for name in ("plain", "compiled"))
    torch.testing.assert_close(compiled, plain, rtol=0, atol=1e-6)


def test_a_missing_compiler_is_told_in_one_line(phantoms: Path, in_tmp: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "main.py"), f"--data_dir={phantoms}", "--device=cpu", "--workers=0"]
    environment = {**os.environ, "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(in_tmp / "cache")}
    done = subprocess.run([*command, "--compile", *TINY], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: --compile: torch can't compile the network here (")
    assert "no-such-compiler" in done.stderr
    assert "Install a C++ compiler" in done.stderr
    assert done.stderr.count("\n") == 1

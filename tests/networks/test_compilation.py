"""Networks whose blocks torch compiles where they are trained."""

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from utils.training.compilation import compile_blocks
from utils.training.recomputation import recompute_activations

from networks.vit import TransformerBlock
from tests.conftest import REPOSITORY, TINY, Run
from tests.networks.test_unetr import small
from tests.processes import start_group
from tests.training.test_training import equal, lines, train, weights

CHEAP = "aot_eager"  # a backend that takes a network apart as torch's own does, and generates no code


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    """What one test compiles counts toward a limit that torch has for a process."""
    yield
    torch.compiler.reset()


def compile_cheaply(backend: object = CHEAP) -> None:
    """Let torch.compile use another backend, for the rest of a process's life."""
    torch.compile = partial(torch.compile, backend=backend)  # type: ignore[assignment]


def step(network: nn.Module, shape: tuple[int, ...]) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
    torch.manual_seed(1)
    network.zero_grad()
    output = network(torch.randn(shape))
    output.square().mean().backward()
    return output.detach(), {name: parameter.grad for name, parameter in network.named_parameters()}


def test_code_that_torch_generates_gives_the_same_gradients(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    network = nn.Sequential(TransformerBlock(8, 8, 2, 0.0, 0.0), TransformerBlock(8, 8, 2, 0.0, 0.0))
    plain = step(network, (2, 5, 8))
    names = list(network.state_dict())
    compile_blocks(network)
    torch.testing.assert_close(step(network, (2, 5, 8)), plain)
    recompute_activations(network)
    torch.testing.assert_close(step(network, (2, 5, 8)), plain)
    assert list(network.state_dict()) == names


@pytest.mark.parametrize("recomputing", [False, True])
def test_each_kind_of_block_is_compiled_once_and_validation_not_at_all(
    monkeypatch: pytest.MonkeyPatch, recomputing: bool
) -> None:
    counter = CompileCounterWithBackend(CHEAP)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    networks = []
    for compiling in (False, True):
        torch.manual_seed(0)
        network = small(norm_name="batch", img_size=32)
        if compiling:
            compile_blocks(network)
            if recomputing:
                recompute_activations(network)
        networks.append(network)
    plain, compiled = networks
    for _ in range(2):
        expected, found = (step(network, (2, 1, 32, 32, 32)) for network in networks)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compiled.state_dict(), plain.state_dict())
    # a transformer block, the first skip path's, three skip paths and four of the decoder
    assert counter.frame_count == 1 + 1 + 3 + 4
    with torch.inference_mode():
        volume = torch.randn(3, 1, 32, 32, 32)
        torch.testing.assert_close(compiled.eval()(volume), plain.eval()(volume))
    assert counter.frame_count == 9
    step(compiled.train(), (1, 1, 32, 32, 32))  # a smaller last batch
    assert counter.frame_count == 18


def test_dropout_is_the_same_in_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=CHEAP))
    network = small(dropout_rate=0.3, img_size=32)
    compile_blocks(network)
    kept = step(network, (2, 1, 32, 32, 32))
    recompute_activations(network)
    torch.testing.assert_close(step(network, (2, 1, 32, 32, 32)), kept, rtol=1e-5, atol=1e-7)


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
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=CHEAP))
    compiled = train(run_main, phantoms, "compiled", *flags, "--compile", "--activation_checkpointing")
    screen = capsys.readouterr().out.splitlines()
    told = [number for number, line in enumerate(screen) if line.startswith("the first step took ")]
    assert len(told) == 1
    assert screen[told[0]].endswith(" s, compilation included")
    assert screen[told[0] + 1].startswith("epoch 1/2: loss")
    # where it isn't compiled the network takes other kernels (networks/cpu_kernels.py), which round in another order
    torch.testing.assert_close(
        weights(compiled / "model_final.pt"), weights(plain / "model_final.pt"), rtol=0, atol=5e-4
    )
    assert lines(compiled)[-1]["dice"]["mean"] == pytest.approx(lines(plain)[-1]["dice"]["mean"], abs=1e-3)
    before = weights(compiled / "model_final.pt")
    train(run_main, phantoms, "compiled", *flags, "--resume")
    assert equal(weights(compiled / "model_final.pt"), before)
    train(run_main, phantoms, "compiled", *flags, "--resume", "--max_epochs=3")
    assert [line["epoch"] for line in lines(compiled)] == [1, 2, 3]


def test_two_processes(phantoms: Path, in_tmp: Path) -> None:
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

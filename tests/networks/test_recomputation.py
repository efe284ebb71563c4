"""Activations that are computed twice give what they give when they are kept, in less memory."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from networks.unetr import UNETR
from tests.conftest import TINY, Run
from tests.networks.test_unetr import small
from tests.processes import start_group
from tests.training.test_training import equal, lines, train, weights
from utils.export import export
from utils.training import recomputation
from utils.training.blocks import Forward
from utils.training.recomputation import recompute_activations

RECOMPUTING = "--activation_checkpointing"


def network(norm_name: str, recomputing: bool) -> UNETR:
    torch.manual_seed(0)
    made = small(norm_name=norm_name, dropout_rate=0.3, img_size=32)
    if recomputing:
        recompute_activations(made)
    return made


def step(one: UNETR, amp: bool = False) -> tuple[Tensor, int]:
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
        logits = one(volume)
    kept_forward = kept
    logits.float().square().mean().backward()
    return logits, kept_forward


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("norm_name", ["instance", "batch"])
def test_gradients_dropout_and_running_statistics_are_the_same(norm_name: str, amp: bool) -> None:
    kept, recomputed = (network(norm_name, recomputing) for recomputing in (False, True))
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
    assert step(network("batch", True))[1] < step(network("batch", False))[1] / 4


def test_where_no_gradients_are_recorded_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def checkpoint(forward: Forward, *inputs: Tensor, **_: object) -> Tensor:
        nonlocal calls
        calls += 1
        return forward(*inputs)

    monkeypatch.setattr(recomputation, "checkpoint", checkpoint)
    one = network("batch", True).eval()
    volume = torch.randn(1, 1, 32, 32, 32)
    with torch.inference_mode():
        assert torch.equal(one(volume), network("batch", False).eval()(volume))
    assert calls == 0
    one(volume)
    assert calls == 12 + 4 + 4  # blocks of the transformer, of the skip paths and of the decoder


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

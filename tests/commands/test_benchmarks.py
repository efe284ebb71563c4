"""What the benchmarks compare with, and how the ablation goes on."""

import argparse
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import ablation, markdown
from benchmarks.emulation import EmulatedBfloat16
from benchmarks.network import peers_network
from networks.unetr import UNETR
from tests.conftest import TINY
from utils.config.flags import network_options, parse_train
from utils.system.errors import InputError, TrainingError

OPTIONS = network_options(vars(parse_train(TINY)))


def test_the_peer_of_the_reference_network_has_the_size_that_the_paper_tells() -> None:
    """92.58 million parameters, as the paper has it, and what MONAI keeps of its blocks without reading it."""
    with torch.device("meta"):
        network = peers_network()
    read = [tensor for name, tensor in network.named_parameters() if "cross_attn" not in name]
    assert sum(tensor.numel() for tensor in read) == pytest.approx(92.58e6, rel=0.01)


@pytest.mark.parametrize("deep_supervision", [False, True])
def test_with_our_weights_the_peer_gives_our_logits(deep_supervision: bool) -> None:
    options = {**OPTIONS, "deep_supervision": deep_supervision, "drop_path_rate": 0.2}
    torch.manual_seed(0)
    ours = UNETR(**options).eval()
    window = torch.randn(1, 1, 16, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(
            peers_network(options, ours.state_dict()).eval()(window), ours(window), atol=1e-5, rtol=1e-4
        )


def test_a_network_that_the_peer_can_not_be_is_refused() -> None:
    with pytest.raises(InputError, match="patches of 16 voxels alone"):
        peers_network({**OPTIONS, "patch_size": 8})


class _Products(TorchDispatchMode):
    """The formats in which convolutions and matrix products reach torch."""

    def __init__(self) -> None:
        super().__init__()
        self.formats: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(kind in func.name() for kind in ("conv", "mm", "linear", "matmul")):
            self.formats |= {value.dtype for value in args if isinstance(value, Tensor)}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("inference", [False, True])
def test_emulated_bfloat16_gives_what_torch_does_in_bfloat16_by_products_in_float32(inference: bool) -> None:
    """To the last digits of the format, since sums go in another order."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv3d(4, 8, 3), nn.ConvTranspose3d(8, 4, 2, 2), nn.Flatten(2), nn.Linear(4**3, 32))
    volume = torch.randn(1, 4, 4, 4, 4)

    def computed() -> list[Tensor]:
        with torch.inference_mode(inference), torch.autocast("cpu", torch.bfloat16):
            result = layers(volume)
        if inference:
            return [result]
        return [result.detach(), *torch.autograd.grad(result.square().sum(), list(layers.parameters()))]

    expected = computed()
    with _Products() as products, EmulatedBfloat16():
        found = computed()
    assert products.formats == {torch.float32}
    assert found[0].dtype == torch.bfloat16
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert (one - other).abs().max() <= 2**-7 * other.abs().max()


def test_emulated_bfloat16_rounds_products_of_bfloat16_alone() -> None:
    """1 + 2^-9 is 1 in bfloat16."""
    number, one = torch.tensor([[1 + 2**-9]]), torch.ones(1, 1)
    with EmulatedBfloat16():
        assert (number @ one).item() == 1 + 2**-9
        rounded = one.bfloat16() @ number.bfloat16()
        assert rounded.dtype == torch.bfloat16
        assert rounded.item() == 1


def test_a_table_is_one_that_markdown_reads() -> None:
    assert markdown.table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def _run(folder: Path, epochs: int, **flags: object) -> None:
    """What a run of ``epochs`` epochs leaves."""
    folder.mkdir(parents=True)
    (folder / "args.json").write_text(
        json.dumps({**vars(parse_train(["--data_dir=scans", "--max_epochs=3"])), **flags})
    )
    (folder / "metrics.jsonl").write_text("{}\n" * epochs)


def test_the_ablation_passes_over_what_is_finished_and_replaces_no_other_run(in_tmp: Path) -> None:
    flags = [f"--data_dir={in_tmp}/scans/", "--max_epochs=3"]
    _run(Path("runs/whole"), 3)
    _run(Path("runs/part"), 2)
    _run(Path("runs/other"), 3, optim_lr=0.5)
    assert ablation.finished("whole", flags)
    assert not ablation.finished("part", flags)
    assert not ablation.finished("none", flags)
    with pytest.raises(InputError, match=r"runs/other: holds a run with other flags \(--optim_lr\)"):
        ablation.finished("other", flags)


def test_after_a_failure_the_ablation_trains_no_further(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []

    def fails(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        launched.append(command)
        time.sleep(0.1)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(subprocess, "run", fails)
    monkeypatch.setattr(ablation, "RECIPE", "--data_dir=scans")
    args = argparse.Namespace(options=None, seeds=[0, 1, 2], epochs=6, jobs=2, logdir="ablation", data_dir="scans")
    with pytest.raises(TrainingError, match=r"ablation/\w+_seed0: main.py ended with status 1"):
        ablation.main(args)
    assert len(launched) <= 4

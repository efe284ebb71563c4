"""Networks compiled by OpenVINO give torch's logits, and are cached."""

import builtins
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from networks import NETWORKS
from networks.precision import Precision
from tests.conftest import REPOSITORY
from tests.inference.conftest import CPU, DESCRIPTION, FLOAT32, member
from utils.checkpoints.description import Description
from utils.inference import openvino
from utils.inference.openvino import CompiledNetwork, UnfitError, compile_network

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """One entry for each network that is compiled and not read from the cache."""
    found: list[Any] = []
    compile_anew = openvino._compile

    def compile_and_note(*arguments: Any) -> CompiledNetwork:
        found.append(arguments)
        return compile_anew(*arguments)

    monkeypatch.setattr(openvino, "_compile", compile_and_note)
    return found


def windows(batch: int, channels: int = 1) -> torch.Tensor:
    return torch.randn(batch, channels, 16, 16, 32, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("pos_embed", ["perceptron", "conv"])
@pytest.mark.parametrize("norm_name", ["instance", "batch"])
def test_logits_are_torchs(pos_embed: str, norm_name: str) -> None:
    network, description = member(pos_embed=pos_embed, norm_name=norm_name, in_channels=2)
    made = compile_network(network, description, FLOAT32, print)
    read = compile_network(network, description, FLOAT32, print)
    for batch in (3, 1):
        volume = windows(batch, channels=2)
        with torch.no_grad():
            expected = network(volume)
        for compiled in (made, read):
            torch.testing.assert_close(compiled(volume), expected, atol=1e-3, rtol=0)


def test_logits_of_todays_encoder_are_torchs() -> None:
    settings: dict[str, Any] = {
        "hidden_size": 12, "num_heads": 2, "mlp_dim": 16, "num_layers": 2, "out_channels": 3,
        "img_size": DESCRIPTION.config.img_size, "spacing": DESCRIPTION.config.spacing,
    }  # fmt: skip
    description = replace(DESCRIPTION, config=NETWORKS["primus"].make_config(settings))
    torch.manual_seed(0)
    network = description.build().eval()
    compiled = compile_network(network, description, FLOAT32, print)
    with torch.no_grad():
        torch.testing.assert_close(compiled(windows(2)), network(windows(2)), atol=1e-4, rtol=0)


def test_the_next_batch_leaves_logits_alone() -> None:
    compiled = compile_network(*member(), FLOAT32, print)
    first = compiled(windows(2))
    copy = first.clone()
    compiled(windows(2) + 1)
    assert torch.equal(first, copy)


def test_bfloat16_is_close_to_float32_and_not_the_same() -> None:
    network, description = member()
    volume = windows(1)
    exact = compile_network(network, description, FLOAT32, print)(volume)
    rounded = compile_network(network, description, Precision(CPU, torch.bfloat16), print)(volume)
    difference = (exact - rounded).square().mean().sqrt() / exact.square().mean().sqrt()
    assert difference < 0.05
    if "BF16" in openvino._core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert difference > 1e-4


SIGNAL_AFTER_TWO = """
import signal
from tests.inference.conftest import FLOAT32, member
from utils.inference.openvino import compile_network

networks = [compile_network(*member(seed), FLOAT32, print) for seed in range(2)]
while networks:
    del networks[0]
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
signal.raise_signal(signal.SIGUSR1)
"""


def test_a_signal_is_handled_after_networks_were_freed() -> None:
    """With an ``openvino.Core`` for each network the signal killed the process: its signal stack was freed."""
    command = [sys.executable, "-c", SIGNAL_AFTER_TWO]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_a_network_is_compiled_once_and_then_read_from_the_cache(compilations: list[Any], cache: Path) -> None:
    one, other = member(1), member(2)
    first = compile_network(*one, FLOAT32, print)(windows(1))
    again = compile_network(*one, FLOAT32, print)(windows(1))
    assert torch.equal(first, again)
    assert len(compilations) == 1
    assert not torch.equal(compile_network(*other, FLOAT32, print)(windows(1)), first)
    assert len(compilations) == 2
    assert len(list(cache.glob("*.openvino"))) == 2


def test_whatever_changes_a_compiled_network_compiles_it_again(
    compilations: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, description = member()
    with torch.no_grad():
        compile_network(network, description, FLOAT32, print)
        compile_network(network, description, Precision(CPU, torch.bfloat16), print)
        # the same weights in another network
        _, heads = member(num_heads=3)
        compile_network(_with_weights(heads, network), heads, FLOAT32, print)
        next(network.parameters())[0] += 1e-6
        compile_network(network, description, FLOAT32, print)
        monkeypatch.setattr(openvino, "content_hash", lambda path: "other code")
        compile_network(network, description, FLOAT32, print)
    assert len(compilations) == 5


def test_a_network_that_takes_any_window_is_compiled_for_each() -> None:
    config = NETWORKS["segresnet"].make_config({"out_channels": 3, "feature_size": 8, "img_size": 16})
    description = replace(DESCRIPTION, config=config)
    network = description.build().eval()
    for roi in ((16, 16, 16), (16, 16, 32)):
        of_window = replace(description, preprocessing=replace(description.preprocessing, roi=roi))
        compiled = compile_network(network, of_window, FLOAT32, print)
        volume = torch.randn(1, 1, *roi)
        with torch.no_grad():
            torch.testing.assert_close(compiled(volume), network(volume), atol=1e-4, rtol=0)


def _with_weights(description: Description, network: nn.Module) -> nn.Module:
    other = description.build().eval()
    other.load_state_dict(network.state_dict())
    return other


@pytest.mark.parametrize("damage", [b"", b"not a network", None])
def test_a_damaged_file_is_replaced(damage: bytes | None, compilations: list[Any], cache: Path) -> None:
    one = member()
    expected = compile_network(*one, FLOAT32, print)(windows(1))
    (path,) = cache.glob("*.openvino")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if damage is None else damage)
    assert torch.equal(compile_network(*one, FLOAT32, print)(windows(1)), expected)
    assert len(compilations) == 2
    compile_network(*one, FLOAT32, print)
    assert len(compilations) == 2


@pytest.mark.parametrize("place", [0.5, 1.0])
def test_a_file_with_a_flipped_bit_is_replaced(place: float, compilations: list[Any], cache: Path) -> None:
    """OpenVINO doesn't notice one among the weights, and would give other masks."""
    one = member()
    expected = compile_network(*one, FLOAT32, print)(windows(1))
    (path,) = cache.glob("*.openvino")
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.unlink()  # the file is mapped where it is in use
    path.write_bytes(content)
    assert torch.equal(compile_network(*one, FLOAT32, print)(windows(1)), expected)
    assert len(compilations) == 2
    assert path.read_bytes() != content


def test_the_cache_keeps_the_networks_used_last(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "CACHE_SIZE", 2)
    cache.mkdir(parents=True)
    for number in range(3):
        (cache / f"{number}.openvino").touch()
        os.utime(cache / f"{number}.openvino", (number, number))
    compile_network(*member(), FLOAT32, print)
    assert len(list(cache.glob("*.openvino"))) == 2
    assert (cache / "2.openvino").exists()


def test_without_a_cache_the_network_is_compiled_for_this_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    network, description = member()
    compiled = compile_network(network, description, FLOAT32, print)
    with torch.no_grad():
        torch.testing.assert_close(compiled(windows(1)), network(windows(1)), atol=1e-3, rtol=0)
    assert "note: OpenVINO's compiled network can't be cached for the next launch" in capsys.readouterr().out


class Bessel(nn.Module):
    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return torch.special.i0(windows)


def test_a_layer_that_openvino_does_not_know() -> None:
    _, description = member()
    with pytest.raises(UnfitError, match="OpenVINO can't compile the network"):
        compile_network(Bessel(), description, FLOAT32, print)


def test_openvino_computes_on_cpus_alone() -> None:
    with pytest.raises(UnfitError, match=r"computes on CPUs, not on cuda:0\. Give `device` cpu, or `engine` torch\.$"):
        openvino.require_fit([member()[0]], torch.device("cuda", 0))


def test_telemetry_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package ``openvino`` imports ``openvino_telemetry`` if it can, and works without."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("openvino", "openvino_telemetry")]:
        monkeypatch.delitem(sys.modules, name)
    seen: list[Any] = []
    load = builtins.__import__

    def watch(name: str, *arguments: Any, **more: Any) -> Any:
        if name == "openvino":
            seen.append(sys.modules.get("openvino_telemetry", "importable"))
            monkeypatch.setitem(sys.modules, "openvino", openvino)  # a second copy of the library would hang
            return openvino
        return load(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", watch)
    openvino._openvino()
    assert seen[0] is None
    assert "openvino_telemetry" not in sys.modules

"""The choice of the engine, and that each gives torch's probabilities."""

import importlib.util
import itertools
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.conftest import REPOSITORY
from tests.inference.conftest import CPU, DESCRIPTION, FLOAT32, PROCESS, member
from utils.data.mirroring import mirrorings
from utils.distributed.process import Process
from utils.inference import engines, openvino
from utils.inference.engines import place_networks
from utils.inference.openvino import CompiledNetwork, UnfitError
from utils.inference.sliding_window import Ensemble, Predictor

pytestmark = pytest.mark.usefixtures("cache")


def test_an_ensemble_with_mirrored_passes_gives_torchs_probabilities() -> None:
    """OpenVINO gets mirrored views there, and fewer windows in the last batch."""
    members = [member(seed) for seed in (1, 2)]
    passes = mirrorings(("background", "liver", "spleen"))
    compiled, words = place_networks("openvino", members, False, PROCESS)
    assert words.startswith("OpenVINO 20")
    assert all(isinstance(network, CompiledNetwork) for network, _ in compiled)
    torchs, words = place_networks("torch", members, False, PROCESS)
    assert words == "torch"
    predictor = Predictor((16, 16, 32), 0.0, 0.5, 2, CPU)
    volume = torch.randn(1, 1, 24, 16, 32, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(
        predictor(Ensemble(compiled, passes), volume), predictor(Ensemble(torchs, passes), volume), atol=1e-4, rtol=0
    )


def test_without_the_package_the_error_has_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else find(name))
    with pytest.raises(UnfitError, match=r"is not installed\. pip install openvino==[\d.]+ installs it\.$"):
        place_networks("openvino", [member()], False, PROCESS)
    monkeypatch.setattr(engines, "SMALL", 0)
    assert place_networks("auto", [member()], False, PROCESS)[1] == "torch"
    pinned = (REPOSITORY / "requirements-dev.txt").read_text().split()
    assert openvino.INSTALL.removeprefix("pip install ") in pinned


def test_auto_takes_torch_if_openvino_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "SMALL", 0)

    def fails(*_: object) -> None:
        raise RuntimeError("no such operation\nand more")

    with monkeypatch.context() as patch:
        patch.setattr(openvino._core(), "compile_model", fails, raising=False)
        with pytest.raises(
            UnfitError, match=r"OpenVINO can't compile the network \(no such operation.*`engine` torch\."
        ):
            place_networks("openvino", [member()], False, PROCESS)
        assert place_networks("auto", [member()], False, PROCESS)[1].startswith("torch, since OpenVINO can't compile")

    def damaged() -> None:
        raise ImportError("libopenvino.so: cannot open shared object file")

    monkeypatch.setattr(openvino, "_core", damaged)
    assert place_networks("auto", [member()], False, PROCESS)[1].startswith(
        "torch, since OpenVINO can't be started (libopenvino.so: cannot open"
    )


def test_torchscript_is_not_compiled() -> None:
    script = torch.jit.script(member()[0])
    with pytest.raises(UnfitError, match=r"can't compile TorchScript\. Give the checkpoint that was exported"):
        place_networks("openvino", [(script, DESCRIPTION)], False, PROCESS)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What a window takes each engine; any window is large enough to time them."""
    seconds = {"openvino": 1.0, "torch": 2.0, "timings": 0}

    def time_windows(networks: Mapping[str, nn.Module], *_: object) -> dict[str, float]:
        assert [isinstance(networks[name], CompiledNetwork) for name in ("openvino", "torch")] == [True, False]
        seconds["timings"] += 1
        return {name: seconds[name] for name in networks}

    monkeypatch.setattr(engines, "_seconds", time_windows)
    monkeypatch.setattr(engines, "SMALL", 0)
    return seconds


@pytest.mark.parametrize(("ours", "torchs", "chosen"), [(1.0, 2.0, "OpenVINO"), (2.0, 1.0, "torch")])
def test_auto_takes_the_faster_engine(ours: float, torchs: float, chosen: str, clock: dict[str, float]) -> None:
    clock |= {"openvino": ours, "torch": torchs}
    placed, words = place_networks("auto", [member()], False, PROCESS)
    assert isinstance(placed[0][0], CompiledNetwork) == (chosen == "OpenVINO")
    assert words.startswith(chosen)
    assert words.endswith(f", since a window takes OpenVINO {ours:.3f} s and torch {torchs:.3f} s")


def test_what_was_timed_is_remembered_for_any_weights_of_a_network(clock: dict[str, float], cache: Path) -> None:
    said: list[str] = []
    first = place_networks("auto", [member(1)], False, PROCESS, said.append)[1]
    assert said == ["note: torch and OpenVINO are timed, once for this network and machine"]
    clock |= {"openvino": 9.0}
    assert place_networks("auto", [member(2)], False, PROCESS, said.append)[1] == first
    assert (clock["timings"], len(said)) == (1, 1)
    words = place_networks("auto", [member(2, num_heads=3)], False, PROCESS, said.append)[1]  # another network
    assert words.startswith("torch, since a window takes OpenVINO 9.000 s")
    for path in cache.glob("*.timed"):
        path.write_text("{")
    assert place_networks("auto", [member(1)], False, PROCESS, said.append)[1].startswith("torch, since")


def test_small_windows_are_not_timed(cache: Path) -> None:
    assert place_networks("auto", [member()], False, PROCESS)[1] == "torch"
    assert not cache.exists()


def test_without_a_cache_auto_takes_torch(
    tmp_path: Path, clock: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or each launch would take the time again."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    words = place_networks("auto", [member()], False, PROCESS)[1]
    assert words.startswith("torch, since what was timed can't be kept (")


def test_all_processes_take_torch_if_one_does(clock: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    other = ("torch", "OpenVINO can't be started")
    monkeypatch.setattr(Process, "all_gather", lambda _, value: [value, other])
    placed, words = place_networks("auto", [member()], False, PROCESS)
    assert words == "torch, since OpenVINO can't be started"
    assert not isinstance(placed[0][0], CompiledNetwork)


def test_engines_are_timed_in_turns_after_a_slower_first_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes of a and b: 10 and 9 s, which don't count, 3 and 5 s, 4 and 2 s."""
    taken = [10.0, 9.0, 3.0, 5.0, 4.0, 2.0]
    clock = itertools.chain.from_iterable((0.0, seconds) for seconds in taken)
    monkeypatch.setattr(engines.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(engines, "TIMES", 2)
    networks = {"a": nn.Identity(), "b": nn.Identity()}
    assert engines._seconds(networks, FLOAT32, torch.zeros(1)) == {"a": 3.0, "b": 2.0}


def test_logits_that_differ_from_torchs_are_refused(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(openvino, "TOLERANCE", {torch.float32: 1e-12})
    monkeypatch.setattr(engines, "SMALL", 0)
    with pytest.raises(
        UnfitError, match=r"^`engine` openvino: OpenVINO's logits differ from torch's by .* and torch's are about"
    ):
        place_networks("openvino", [member()], False, PROCESS)
    assert not list(cache.glob("*.openvino"))
    placed, words = place_networks("auto", [member()], False, PROCESS)
    assert not isinstance(placed[0][0], CompiledNetwork)
    assert words.startswith("torch, since OpenVINO's logits differ")

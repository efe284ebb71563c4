"""Networks compiled by OpenVINO, which give torch's logits, and what is kept of them on the disk."""

import builtins
import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from networks.precision import Precision
from tests.checkpoints.test_load import DESCRIPTION, OPTIONS
from tests.conftest import REPOSITORY, Run
from tests.processes import start_group
from tests.segmentation.test_pipeline import trained  # noqa: F401  (a fixture)
from utils.checkpoints.description import Description
from utils.data.mirroring import mirrorings
from utils.distributed.process import Process
from utils.inference import openvino
from utils.inference.openvino import CompiledNetwork, UnfitError, compile_network, place_networks
from utils.inference.sliding_window import Ensemble, Predictor

CPU = torch.device("cpu")
FLOAT32 = Precision(CPU, torch.float32)
PROCESS = Process(CPU)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "unetr"


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """One entry for each network that isn't read from the disk."""
    found: list[Any] = []
    compile_anew = openvino._compile

    def compile_and_note(*arguments: Any) -> CompiledNetwork:
        found.append(arguments)
        return compile_anew(*arguments)

    monkeypatch.setattr(openvino, "_compile", compile_and_note)
    return found


def member(seed: int = 0, **changes: Any) -> tuple[nn.Module, Description]:
    torch.manual_seed(seed)
    description = Description(**{**vars(DESCRIPTION), "options": {**OPTIONS, **changes}})
    return description.build().eval(), description


def windows(batch: int, channels: int = 1) -> torch.Tensor:
    return torch.randn(batch, channels, 16, 16, 32, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("pos_embed", ["perceptron", "conv"])
@pytest.mark.parametrize("norm_name", ["instance", "batch"])
def test_logits_are_torchs(pos_embed: str, norm_name: str) -> None:
    network, description = member(pos_embed=pos_embed, norm_name=norm_name, in_channels=2)
    made = compile_network(network, description, FLOAT32, PROCESS)
    read = compile_network(network, description, FLOAT32, PROCESS)
    for batch in (3, 1):
        volume = windows(batch, channels=2)
        with torch.no_grad():
            expected = network(volume)
        for compiled in (made, read):
            torch.testing.assert_close(compiled(volume), expected, atol=1e-3, rtol=0)


def test_logits_of_one_batch_are_left_alone_by_the_next() -> None:
    compiled = compile_network(*member(), FLOAT32, PROCESS)
    first = compiled(windows(2))
    copy = first.clone()
    compiled(windows(2) + 1)
    assert torch.equal(first, copy)


def test_bfloat16_is_close_to_float32_and_not_the_same() -> None:
    network, description = member()
    volume = windows(1)
    exact = compile_network(network, description, FLOAT32, PROCESS)(volume)
    rounded = compile_network(network, description, Precision(CPU, torch.bfloat16), PROCESS)(volume)
    difference = (exact - rounded).square().mean().sqrt() / exact.square().mean().sqrt()
    assert difference < 0.05
    if "BF16" in openvino._core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert difference > 1e-4


SIGNAL_AFTER_TWO = """
import signal
from tests.inference.test_openvino import FLOAT32, PROCESS, member
from utils.engine import compile_network

networks = [compile_network(*member(seed), FLOAT32, PROCESS) for seed in range(2)]
while networks:
    del networks[0]
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
signal.raise_signal(signal.SIGUSR1)
"""


def test_a_signal_is_handled_after_networks_are_let_go() -> None:
    """With one ``openvino.Core`` for each of them it killed the process, whose stack for signals was gone."""
    command = [sys.executable, "-c", SIGNAL_AFTER_TWO]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_an_ensemble_of_mirrored_passes_is_the_one_of_torch() -> None:
    """What OpenVINO is given there are mirrored views and, for the last batch, fewer windows."""
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


def test_the_disk_has_it_at_the_second_start(compilations: list[Any], cache: Path) -> None:
    one, other = member(1), member(2)
    first = compile_network(*one, FLOAT32, PROCESS)(windows(1))
    again = compile_network(*one, FLOAT32, PROCESS)(windows(1))
    assert torch.equal(first, again)
    assert len(compilations) == 1
    assert not torch.equal(compile_network(*other, FLOAT32, PROCESS)(windows(1)), first)
    assert len(compilations) == 2
    assert len(list(cache.glob("*.openvino"))) == 2


def test_each_thing_that_tells_networks_apart_is_in_the_name(
    compilations: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, description = member()
    with torch.no_grad():
        compile_network(network, description, FLOAT32, PROCESS)
        compile_network(network, description, Precision(CPU, torch.bfloat16), PROCESS)
        # the same weights in another network
        heads = Description(**{**vars(description), "options": {**description.options, "num_heads": 3}})
        compile_network(_with_weights(heads, network), heads, FLOAT32, PROCESS)
        next(network.parameters())[0] += 1e-6
        compile_network(network, description, FLOAT32, PROCESS)
        monkeypatch.setattr(openvino, "fingerprint", lambda path: "other code")
        compile_network(network, description, FLOAT32, PROCESS)
    assert len(compilations) == 5


def test_a_network_that_takes_any_window_is_compiled_for_each() -> None:
    options = {"in_channels": 1, "out_channels": 3, "feature_size": 8}
    description = replace(DESCRIPTION, network="segresnet", options=options)
    network = description.build().eval()
    for roi in ((16, 16, 16), (16, 16, 32)):
        of_window = replace(description, preprocessing=replace(description.preprocessing, roi=roi))
        compiled = compile_network(network, of_window, FLOAT32, PROCESS)
        volume = torch.randn(1, 1, *roi)
        with torch.no_grad():
            torch.testing.assert_close(compiled(volume), network(volume), atol=1e-4, rtol=0)


def _with_weights(description: Description, network: nn.Module) -> nn.Module:
    other = description.build().eval()
    other.load_state_dict(network.state_dict())
    return other


@pytest.mark.parametrize("damage", [b"", b"not a network", None])
def test_a_damaged_file_is_made_again(damage: bytes | None, compilations: list[Any], cache: Path) -> None:
    one = member()
    expected = compile_network(*one, FLOAT32, PROCESS)(windows(1))
    (path,) = cache.glob("*.openvino")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if damage is None else damage)
    assert torch.equal(compile_network(*one, FLOAT32, PROCESS)(windows(1)), expected)
    assert len(compilations) == 2
    compile_network(*one, FLOAT32, PROCESS)
    assert len(compilations) == 2


def test_only_those_used_last_stay_on_the_disk(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "KEPT", 2)
    cache.mkdir(parents=True)
    for number in range(3):
        (cache / f"{number}.openvino").touch()
        openvino.os.utime(cache / f"{number}.openvino", (number, number))
    compile_network(*member(), FLOAT32, PROCESS)
    assert len(list(cache.glob("*.openvino"))) == 2
    assert (cache / "2.openvino").exists()


def test_without_a_place_to_keep_it_it_is_compiled_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    network, description = member()
    compiled = compile_network(network, description, FLOAT32, PROCESS)
    with torch.no_grad():
        torch.testing.assert_close(compiled(windows(1)), network(windows(1)), atol=1e-3, rtol=0)
    assert "note: what OpenVINO compiled can't be kept for the next launch" in capsys.readouterr().out


def test_logits_that_are_not_torchs_are_refused(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(openvino, "TOLERANCE", {torch.float32: 1e-12})
    with pytest.raises(
        UnfitError, match=r"^--engine openvino: OpenVINO's logits differ from torch's by .* where these"
    ):
        place_networks("openvino", [member()], False, PROCESS)
    assert not list(cache.glob("*.openvino"))
    placed, words = place_networks("auto", [member()], False, PROCESS)
    assert not isinstance(placed[0][0], CompiledNetwork)
    assert words.startswith("torch, since OpenVINO's logits differ")


def test_it_computes_on_cpus_alone() -> None:
    with pytest.raises(UnfitError, match=r"computes on CPUs, not on cuda:0\. Give --device cpu, or --engine torch\.$"):
        openvino._require_fit([member()[0]], torch.device("cuda", 0))


def test_without_the_package_the_command_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else find(name))
    with pytest.raises(UnfitError, match=r"is not installed\. pip install openvino==[\d.]+ installs it\.$"):
        place_networks("openvino", [member()], False, PROCESS)
    assert place_networks("auto", [member()], False, PROCESS)[1] == "torch, since OpenVINO is not installed"
    pinned = (REPOSITORY / "requirements-dev.txt").read_text().split()
    assert openvino.INSTALL.removeprefix("pip install ") in pinned


def test_where_openvino_fails_auto_takes_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no such operation\nand more")

    with monkeypatch.context() as patch:
        patch.setattr(openvino._core(), "compile_model", fails, raising=False)
        with pytest.raises(
            UnfitError, match=r"OpenVINO can't compile the network \(no such operation.*--engine torch\."
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


@pytest.mark.parametrize(("ours", "torchs", "chosen"), [(1.0, 2.0, "OpenVINO"), (2.0, 1.0, "torch")])
def test_auto_takes_the_faster_one(ours: float, torchs: float, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        openvino, "_seconds", lambda network, *_: ours if isinstance(network, CompiledNetwork) else torchs
    )
    placed, words = place_networks("auto", [member()], False, PROCESS)
    assert isinstance(placed[0][0], CompiledNetwork) == (chosen == "OpenVINO")
    assert words.startswith(chosen)
    assert words.endswith(f", since a window takes OpenVINO {ours:.3f} s and torch {torchs:.3f} s")


def test_a_window_is_timed_after_one_that_is_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts and ends by the clock: the passes take 10, 3 and 5 s."""
    clock = iter([0.0, 10.0, 10.0, 13.0, 13.0, 18.0])
    monkeypatch.setattr(openvino.time, "perf_counter", lambda: next(clock))
    assert openvino._seconds(nn.Identity(), FLOAT32, torch.zeros(1)) == 3.0


def test_nothing_is_told_to_the_packages_maker(monkeypatch: pytest.MonkeyPatch) -> None:
    """It imports ``openvino_telemetry`` if it can, and goes on without."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("openvino", "openvino_telemetry")]:
        monkeypatch.delitem(sys.modules, name)
    seen: list[Any] = []
    load = builtins.__import__

    def watch(name: str, *arguments: Any, **more: Any) -> Any:
        if name == "openvino":
            seen.append(sys.modules.get("openvino_telemetry", "importable"))
            monkeypatch.setitem(sys.modules, "openvino", openvino)  # a second copy of the library would never end
            return openvino
        return load(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", watch)
    openvino._openvino()
    assert seen[0] is None
    assert "openvino_telemetry" not in sys.modules


def masks(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(nib.load(path).dataobj) for path in sorted(folder.glob("*.nii.gz"))}  # type: ignore[attr-defined]


def test_a_scans_mask_is_the_one_of_torch(
    run_test: Run,
    trained: Path,  # noqa: F811
    phantoms: Path,
    in_tmp: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    common = [f"--data_dir={phantoms}", f"--pretrained_dir={trained}", "--pretrained_model_name=model.pt"]
    run_test([*common, "--output_dir=torch"])
    assert "engine:" not in capsys.readouterr().out
    run_test([*common, "--output_dir=openvino", "--engine=openvino", "--sw_batch_size=3"])
    assert "\nengine: OpenVINO 20" in capsys.readouterr().out
    assert "OpenVINO 20" in Path("openvino/report.html").read_text()
    expected, found = masks(Path("torch")), masks(Path("openvino"))
    assert expected.keys() == found.keys() == {"img0005.nii.gz", "img0006.nii.gz"}
    for name, mask in expected.items():
        assert mask.max() > 0
        assert (mask == found[name]).mean() >= 0.9999
    # what one engine finished the other does again, and itself not
    run_test([*common, "--output_dir=openvino", "--engine=openvino"])
    assert "2 of 2 scans were finished before" in capsys.readouterr().out
    run_test([*common, "--output_dir=openvino"])
    assert "finished before" not in capsys.readouterr().out


def test_processes_that_start_at_the_same_time_share_the_disk_and_the_choice(
    run_test: Run,
    trained: Path,  # noqa: F811
    phantoms: Path,
    in_tmp: Path,
    cache: Path,
) -> None:
    common = [f"--data_dir={phantoms}", f"--pretrained_dir={trained}", "--pretrained_model_name=model.pt"]
    place = {"XDG_CACHE_HOME": str(cache.parent)}
    group = start_group(2, [*common, "--output_dir=two", "--engine=auto"], program="test", environment=place)
    assert group.wait() == [0, 0], group.texts
    assert "since a window takes OpenVINO" in group.texts[0]
    assert len(list(cache.glob("*.openvino"))) == 1
    run_test([*common, "--output_dir=one"])
    expected, found = masks(Path("one")), masks(Path("two"))
    assert expected.keys() == found.keys()
    for name, mask in expected.items():
        assert (mask == found[name]).mean() >= 0.9999

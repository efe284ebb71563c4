"""Networks written for other programs, which give the same logits there."""

import hashlib
import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import safetensors
import torch
from packaging.version import Version
from torch import nn

from networks.registry import find_architecture
from tests.checkpoints.conftest import CONFIG, DESCRIPTION, NETWORK_FILE
from tests.conftest import REPOSITORY
from utils import export
from utils.checkpoints import load_network
from utils.checkpoints.description import describe
from utils.checkpoints.progress import Progress
from utils.checkpoints.read import read_checkpoint, read_vit
from utils.checkpoints.save import save_checkpoint
from utils.data.preprocessing import Preprocessing
from utils.system.errors import InputError

VARIANTS: dict[str, dict[str, Any]] = {
    "published": {},
    "batch norm, conv": {"norm_name": "batch", "pos_embed": "conv", "dropout_rate": 0.3, "in_channels": 2},
    "plain blocks": {"res_block": False, "conv_block": False},
    "convolutional stem": {"conv_stem": True, "deep_supervision": True},
    "thick slices": {"conv_stem": True, "halve_by_spacing": True},
}


def saved(folder: Path, **changes: Any) -> tuple[Path, nn.Module]:
    description = replace(DESCRIPTION, config=replace(CONFIG, **changes))
    torch.manual_seed(3)
    network = description.build()
    save_checkpoint(folder / "model.pt", description, network, Progress(epoch=7, score=0.5))
    return folder / "model.pt", network.eval()


def windows(network: Any, batch: int) -> torch.Tensor:
    channels = network.encoder1.layer.conv1.conv.weight.shape[1]
    return torch.randn(batch, channels, 16, 16, 32, generator=torch.Generator().manual_seed(5))


def told(metadata: str) -> tuple[Any, ...]:
    content = json.loads(metadata)
    settings = Preprocessing(**content["preprocessing"])
    return content["labels"], settings.spacing, settings.roi, settings.intensity, content["epoch"]


EXPECTED = (["background", "anterior", "posterior"], (1.0, 1.0, 2.5), (16, 16, 32), "zscore", 7)


old = pytest.mark.skipif(Version(torch.__version__) < Version("2.7"), reason="torch 2.6 can't write batch norm as ONNX")


@pytest.mark.parametrize("variant", ["published", pytest.param("batch norm, conv", marks=old), "convolutional stem"])
def test_onnx_runs_in_onnxruntime(variant: str, tmp_path: Path) -> None:
    weights, network = saved(tmp_path, **VARIANTS[variant])
    assert export.export(weights, "onnx", tmp_path / "model.onnx") <= 1e-4
    onnx.checker.check_model(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for batch in (1, 3):
        volume = windows(network, batch)
        (logits,) = session.run(["logits"], {"volume": volume.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(logits), network(volume), atol=1e-4, rtol=0)
    assert told(session.get_modelmeta().custom_metadata_map["unetr.json"]) == EXPECTED


@pytest.mark.parametrize("variant", VARIANTS)
def test_torchscript_predicts_and_trains(variant: str, tmp_path: Path) -> None:
    weights, network = saved(tmp_path, **VARIANTS[variant])
    assert export.export(weights, "torchscript", tmp_path / "script.pt") <= 1e-4
    files = {"unetr.json": ""}
    script = torch.jit.load(tmp_path / "script.pt", _extra_files=files)  # type: ignore[no-untyped-call]
    volume = windows(network, 2)
    with torch.no_grad():
        torch.testing.assert_close(script(volume), network(volume))
    assert told(files["unetr.json"]) == EXPECTED
    script.train()
    script(volume).square().sum().backward()
    assert all(parameter.grad is not None for parameter in script.parameters())
    if "dropout_rate" in VARIANTS[variant]:
        assert not torch.equal(script(volume), script(volume))


@pytest.mark.parametrize("changes", [{}, {"deep_supervision": True}])  # whose coarser outputs serve training alone
def test_a_bare_state_dict_has_the_published_names_and_describes_itself_to_us_alone(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    weights, _ = saved(tmp_path, **changes)
    network = DESCRIPTION.build()
    export.export(weights, "state_dict", tmp_path / "bare.pth")
    bare = torch.load(tmp_path / "bare.pth", weights_only=True)
    assert type(bare) is dict
    assert {name: tensor.shape for name, tensor in bare.items()} == {
        name: tensor.shape for name, tensor in network.state_dict().items()
    }
    with zipfile.ZipFile(tmp_path / "bare.pth") as archive:
        assert archive.testzip() is None
        assert told(archive.read("archive/extra/unetr.json").decode()) == EXPECTED
    assert describe(read_checkpoint(tmp_path / "bare.pth")) == DESCRIPTION


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_safetensors_file_has_the_published_names_and_describes_itself(variant: str, tmp_path: Path) -> None:
    weights, network = saved(tmp_path, **VARIANTS[variant])
    path = tmp_path / "model.safetensors"
    assert export.export(weights, "safetensors", path) == 0
    with safetensors.safe_open(path, framework="np") as file:
        metadata, bare = file.metadata(), {name: torch.from_numpy(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    assert metadata["format"] == "pt"
    assert told(metadata["unetr.json"]) == EXPECTED
    loaded, description = load_network(path)
    state = network.state_dict()
    assert bare.keys() == loaded.state_dict().keys() <= state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in bare.items())
    changes = {name: value for name, value in VARIANTS[variant].items() if name != "deep_supervision"}
    assert description == replace(DESCRIPTION, config=replace(CONFIG, **changes))
    with torch.no_grad():
        volume = windows(network, 2)
        assert torch.equal(loaded(volume), network(volume))
    assert export.export(path, "torchscript", tmp_path / "script.pt") <= 1e-4


def test_a_safetensors_file_is_known_by_its_content_too(tmp_path: Path) -> None:
    weights, network = saved(tmp_path)
    export.export(weights, "safetensors", tmp_path / "exported")
    loaded, description = load_network(tmp_path / "exported")
    assert description == DESCRIPTION
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    vit = read_vit(tmp_path / "exported")
    assert vit["labels"] == list(DESCRIPTION.labels)
    assert vit["state_dict"].keys() == network.state_dict().keys()


def test_an_export_can_be_exported(tmp_path: Path) -> None:
    weights, _ = saved(tmp_path)
    export.export(weights, "state_dict", tmp_path / "bare.pth")
    # TorchScript may take other kernels, which round in another order
    assert export.export(tmp_path / "bare.pth", "torchscript", tmp_path / "script.pt") <= 1e-4


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "utils.export", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_a_network_of_ones_own_is_exported_with_its_file(tmp_path: Path) -> None:
    file, weights, output = (tmp_path / name for name in ("plain.py", "plain.pt", "plain.onnx"))
    file.write_text(NETWORK_FILE)
    architecture = find_architecture(str(file))
    config = architecture.make_config({"out_channels": 3, "img_size": (10, 10, 5), "width": 2})
    description = replace(DESCRIPTION, config=config, preprocessing=Preprocessing(roi=(10, 10, 5)))
    network = description.build()
    save_checkpoint(weights, description, network, Progress(epoch=7))

    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    done = run(str(weights), "--format", "onnx", "--output", str(output))
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {weights}: its network plain is defined in plain.py (SHA-256 {sha256})")
    assert "--model_name" in done.stderr
    assert done.stderr.count("\n") == 1

    done = run(str(weights), "--format", "onnx", "--output", str(output), "--model_name", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    session = onnxruntime.InferenceSession(output)
    volume = torch.randn(3, 1, 10, 10, 5)
    (logits,) = session.run(["logits"], {"volume": volume.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), network.eval()(volume), atol=1e-4, rtol=0)
    content = json.loads(session.get_modelmeta().custom_metadata_map["unetr.json"])
    assert content["network"]["file"] == {"name": "plain.py", "sha256": sha256}
    assert content["network"]["options"]["width"] == 2


def test_other_logits_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, _ = saved(tmp_path)
    (tmp_path / "script.pt").write_text("the one before")

    def write_another_network(path: Path, network: nn.Module, *_: object) -> export.Forward:
        path.write_text("another network")
        return lambda volume: network(volume) * (1 + 2e-4)

    monkeypatch.setattr(export, "WRITERS", {"torchscript": write_another_network})
    with pytest.raises(InputError, match=r"not written, since its logits differ from the network's by 0\."):
        export.export(weights, "torchscript", tmp_path / "script.pt")
    assert (tmp_path / "script.pt").read_text() == "the one before"
    assert {file.name for file in tmp_path.iterdir()} == {"model.pt", "script.pt"}


def test_weights_that_describe_nothing_are_refused(tmp_path: Path) -> None:
    torch.save(DESCRIPTION.build().state_dict(), tmp_path / "bare.pth")
    with pytest.raises(InputError, match=r"bare\.pth: doesn't describe its network\. Give a checkpoint of main\.py\."):
        export.export(tmp_path / "bare.pth", "onnx", tmp_path / "model.onnx")


def test_the_checkpoint_itself_is_not_replaced(tmp_path: Path) -> None:
    weights, _ = saved(tmp_path)
    before = weights.read_bytes()
    with pytest.raises(InputError, match=r"model\.pt: is the checkpoint itself, which would be lost"):
        export.export(weights, "torchscript", tmp_path / ".." / tmp_path.name / "model.pt")
    assert weights.read_bytes() == before


def test_at_the_shell(tmp_path: Path) -> None:
    weights, _ = saved(tmp_path)
    done = run(str(weights), "--format", "state_dict")
    assert done.returncode == 0
    assert done.stdout.startswith(f"{tmp_path / 'model_state_dict.pth'}: 0.")
    assert done.stderr == ""
    done = run(str(tmp_path / "no" / "nothing.pt"))
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path / 'no' / 'nothing.pt'}: no such file")
    assert not (tmp_path / "no").exists()
    assert done.stderr.count("\n") == 1

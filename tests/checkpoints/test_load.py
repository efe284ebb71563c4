"""Loading trained networks, for a notebook and for testing."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from networks import NETWORKS, registry
from networks.registry import find_architecture
from tests.checkpoints.conftest import (
    CONFIG,
    DATA,
    DESCRIPTION,
    NETWORK_FILE,
    SETTINGS,
    same_weights,
    script,
)
from tests.conftest import REPOSITORY
from utils.checkpoints import load_network
from utils.checkpoints.description import Description
from utils.checkpoints.load import LoadSettings, load_ensemble, load_for_testing, weight_files
from utils.checkpoints.progress import Progress
from utils.checkpoints.save import save_checkpoint
from utils.data.data_list import DataList
from utils.data.preprocessing import Preprocessing
from utils.system.errors import DamagedError, InputError

SEGRESNET: dict[str, Any] = {
    "feature_size": 8, "out_channels": len(DESCRIPTION.labels),
    "img_size": DESCRIPTION.config.img_size, "spacing": DESCRIPTION.config.spacing,
}  # fmt: skip
TORCHSCRIPT = LoadSettings(format="torchscript", given=SETTINGS)


def load(path: Path, data: DataList = DATA, **given: Any) -> tuple[nn.Module, Description, str]:
    return load_for_testing(LoadSettings(given=given), path, data)


def test_a_checkpoint_describes_itself(saved: Path, network: nn.Module) -> None:
    loaded, description, line = load(saved)
    assert description == DESCRIPTION
    assert same_weights(loaded, network)
    assert "tensors loaded" in line


def test_a_setting_that_contradicts_the_checkpoint_is_an_error_with_both_values(saved: Path) -> None:
    with pytest.raises(InputError, match=r"`feature_size` 32 contradicts its 2; `space_z` 2 contradicts its 2\.5"):
        load(saved, feature_size=32, space_z=2.0, hidden_size=12)


def test_another_window_than_in_training(saved: Path, network: nn.Module) -> None:
    loaded, description, line = load(saved, roi_z=64)
    old = DESCRIPTION.config.img_size
    assert description.preprocessing.roi == description.config.img_size == (*old[:2], 64)
    assert f"note: the window is {old[0]} × {old[1]} × 64 voxels, and was {' × '.join(map(str, old))} in train" in line
    name = "vit.patch_embedding.position_embeddings"
    before, after = network.state_dict()[name], loaded.state_dict()[name]  # (1, N, E)
    grid = [edge // 16 for edge in old]
    volume = before.transpose(1, 2).unflatten(2, grid)
    expected = nn.functional.interpolate(volume, (*grid[:2], 4), mode="trilinear").flatten(2).transpose(1, 2)
    assert torch.equal(after, expected)
    assert loaded.eval()(torch.zeros(1, 1, *old[:2], 64)).shape[2:] == (*old[:2], 64)
    with pytest.raises(InputError, match="`img_size` must be multiples of 16 for unetr, not"):
        load(saved, roi_z=63)


@pytest.mark.parametrize(
    "embeddings",
    [
        torch.zeros(1, 3, 12),
        torch.zeros(2, 12),
        torch.zeros(2, 2, 12),
        torch.zeros(1, 2, 0),
        torch.zeros(1, 2, 12, dtype=torch.int64),
    ],
    ids=["number", "axes", "first axis", "empty", "whole numbers"],
)
def test_damaged_positions_at_another_window_are_one_line(saved: Path, embeddings: torch.Tensor) -> None:
    content = torch.load(saved, weights_only=True)
    content["state_dict"]["vit.patch_embedding.position_embeddings"] = embeddings
    torch.save(content, saved)
    with pytest.raises(DamagedError, match=r"position_embeddings \(.*for each of 1 × 1 × 2 patches") as error:
        load(saved, roi_z=64)
    assert "\n" not in str(error.value)


def test_another_window_of_thick_slices(tmp_path: Path) -> None:
    """At 1 × 1 × 2.5 mm z is halved once less: patches have 16 × 16 × 8 voxels."""
    description = replace(DESCRIPTION, config=replace(CONFIG, conv_stem=True, halve_by_spacing=True))
    kept = description.build()
    save_checkpoint(tmp_path / "model.pt", description, kept, Progress())
    loaded = load(tmp_path / "model.pt", roi_z=40)[0]
    name = "vit.patch_embedding.position_embeddings"
    assert [one.state_dict()[name].shape[1] for one in (kept, loaded)] == [4, 5]
    assert loaded.eval()(torch.zeros(1, 1, 16, 16, 40)).shape[2:] == (16, 16, 40)


def test_a_network_without_position_embeddings_takes_another_window_as_it_is(tmp_path: Path) -> None:
    description = replace(DESCRIPTION, config=NETWORKS["segresnet"].make_config(SEGRESNET))
    kept = description.build().eval()
    save_checkpoint(tmp_path / "model.pt", description, kept, Progress())
    loaded, at_48, _ = load(tmp_path / "model.pt", roi_x=48)
    volume = torch.randn(1, 1, 48, *at_48.preprocessing.roi[1:])
    assert torch.equal(loaded.eval()(volume), kept(volume))


def test_labels_of_the_scans_that_are_not_those_of_the_weights(saved: Path) -> None:
    """Scores compare them by value."""

    def tested_on(*names: str) -> str:
        return load(saved, data=replace(DATA, labels=names))[2]

    assert "note" not in tested_on("background", "Anterior", "posterior")
    words = r"model\.pt: has 'posterior' as label 2, but dataset_0\.json as label 1\. Give scans whose labels have"
    with pytest.raises(InputError, match=words):
        tested_on("background", "posterior", "anterior")
    with pytest.raises(
        InputError, match=r"knows 3 labels .* but dataset_0\.json names 2\. Give weights and a data list"
    ):
        tested_on("background", "anterior")
    line = tested_on("background", "front", "back")
    assert "dataset_0.json calls label 1 'front', the weights 'anterior' (and 1 more); labels are compared" in line


def test_networks_of_one_ensemble_take_the_same_channels(saved: Path) -> None:
    two = saved.with_name("two.pt")
    description = replace(DESCRIPTION, config=replace(CONFIG, in_channels=2))
    save_checkpoint(two, description, description.build(), Progress())
    with pytest.raises(InputError, match=r"two\.pt: `in_channels` 1 contradicts its 2\. Only networks"):
        load_ensemble(LoadSettings(), [saved, two], DATA)


def test_an_ensemble_has_a_network_and_a_line_for_each_file(saved: Path, network: nn.Module) -> None:
    members, lines = load_ensemble(LoadSettings(), [saved, saved], DATA)
    assert [description for _, description in members] == [DESCRIPTION] * 2
    assert all(same_weights(loaded, network) for loaded, _ in members)
    assert lines.count("model.pt (checkpoint after epoch 7)") == 2


def test_bare_weights_are_described_by_settings(network: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "bare.pth"
    torch.save(network.state_dict(), path)
    loaded, description, _ = load(path, **SETTINGS)
    assert same_weights(loaded, network)
    assert description.preprocessing.spacing == (1.5, 1.5, 2.0)
    assert description.labels == ("background", "label 1", "label 2")


def test_a_checkpoint_of_2021_is_read_with_its_numpy_score(network: nn.Module, tmp_path: Path) -> None:
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"epoch": 4800, "best_acc": np.float64(0.79), "state_dict": state}, tmp_path / "model.pt")
    loaded, _, line = load(tmp_path / "model.pt", **SETTINGS)
    assert same_weights(loaded, network)
    assert "(checkpoint after epoch 4800 of a DDP model)" in line


def test_torchscript_predicts_as_it_is_and_in_float32(network: nn.Module, tmp_path: Path) -> None:
    script(network, tmp_path / "script.pt")
    for settings in (TORCHSCRIPT, replace(TORCHSCRIPT, format="any")):
        loaded, description, line = load_for_testing(settings, tmp_path / "script.pt", DATA)
        assert isinstance(loaded, torch.jit.ScriptModule)
        assert description.amp is False
        assert line.endswith("script.pt (TorchScript), which computes in float32")


class AnyNetwork(nn.Module):
    """None of ours, and without any weights."""

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        return volume.expand(-1, 3, -1, -1, -1)


def test_torchscript_may_hold_a_network_of_any_kind(tmp_path: Path) -> None:
    script(AnyNetwork(), tmp_path / "script.pt")
    loaded, description, _ = load_for_testing(TORCHSCRIPT, tmp_path / "script.pt", DATA)
    assert loaded(torch.ones(1, 1, 16, 16, 32)).shape == (1, 3, 16, 16, 32)
    assert description.labels == ("background", "label 1", "label 2")


def test_weights_with_residual_blocks_do_not_fit_a_network_without(network: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "residual.pt"
    torch.save(network.state_dict(), path)
    with pytest.raises(InputError, match=r"unknown: .*decoder2\.conv_block\.conv3\.conv\.weight"):
        load(path, **SETTINGS, res_block=False)


def test_a_pattern_names_files_in_their_order(tmp_path: Path) -> None:
    for name in ("fold1.pt", "fold0.pt", "other.pt"):
        (tmp_path / name).touch()
    found = weight_files(tmp_path, ["fold*.pt", "other.pt"])
    assert [path.name for path in found] == ["fold0.pt", "fold1.pt", "other.pt"]
    with pytest.raises(InputError, match=r"`pretrained_model_name` last\*\.pt: no file in .* has such a name"):
        weight_files(tmp_path, ["last*.pt"])


def test_a_network_is_ready_to_predict(saved: Path, network: nn.Module) -> None:
    loaded, description = load_network(saved)
    assert description == DESCRIPTION
    assert not loaded.training
    volume = torch.randn(2, 1, 16, 16, 32)
    with torch.no_grad():
        assert torch.equal(loaded(volume), network.eval()(volume))
    with pytest.raises(InputError, match="`num_heads` 3 contradicts its 2"):
        load_network(saved, num_heads=3)


NOTEBOOK = """
import sys
import torch
from utils.checkpoints import load_network
network, description = load_network("model.pt")
with torch.no_grad():
    print(tuple(network(torch.zeros(1, 1, *description.preprocessing.roi)).shape), description.labels)
print([name for name in sys.modules if name.startswith("utils.config")], network.training)
"""


def test_a_notebook_loads_a_network_without_flags(saved: Path) -> None:
    """In a process of its own and another folder than the repository's, without a command line."""
    command = [sys.executable, "-c", NOTEBOOK]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=saved.parent, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["(1, 3, 16, 16, 32) ('background', 'anterior', 'posterior')", "[] False"]


def test_a_bare_state_dict_with_its_settings(network: nn.Module, tmp_path: Path) -> None:
    torch.save(network.state_dict(), tmp_path / "bare.pth")
    loaded, description = load_network(str(tmp_path / "bare.pth"), **SETTINGS)
    assert same_weights(loaded, network)
    assert description.config == replace(CONFIG, spacing=(1.5, 1.5, 2.0))
    with pytest.raises(InputError, match=r"bare\.pth: `feature_sizes` is not for unetr; leave it out"):
        load_network(tmp_path / "bare.pth", **SETTINGS, feature_sizes=2)
    with pytest.raises(InputError, match=r"bare\.pth: `num_heads` 5 must divide `hidden_size` 12"):
        load_network(tmp_path / "bare.pth", **{**SETTINGS, "num_heads": 5})
    with pytest.raises(InputError, match=r"bare\.pth: doesn't fit: `out_channels` is 14, but its weights have 3"):
        load_network(tmp_path / "bare.pth", **{**SETTINGS, "out_channels": 14})


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, nn.Module, Path]:
    """A network's file, the network, and its checkpoint, in a program that hasn't been given the file."""
    monkeypatch.setattr(registry, "_FILES", {})
    file = tmp_path / "plain.py"
    file.write_text(NETWORK_FILE)
    architecture = find_architecture(str(file))
    config = architecture.make_config({"out_channels": 3, "img_size": (10, 10, 5), "spacing": (1.0, 1.0, 2.0)})
    labels = ("background", "anterior", "posterior")
    description = Description(config, Preprocessing(spacing=(1.0, 1.0, 2.0), roi=(10, 10, 5)), labels, amp=False)
    network = description.build()
    save_checkpoint(tmp_path / "plain.pt", description, network, Progress(epoch=2))
    monkeypatch.setattr(registry, "_FILES", {})
    return file, network, tmp_path / "plain.pt"


def test_a_network_of_a_file_is_loaded_with_the_file(own: tuple[Path, nn.Module, Path]) -> None:
    file, network, weights = own
    loaded, description = load_network(weights, network_file=file)
    assert same_weights(loaded, network)
    assert (description.network, description.options["width"]) == ("plain", 4)
    moved = file.rename(file.with_name("renamed.py"))  # the content counts
    assert same_weights(load_network(weights, network_file=moved)[0], network)


def test_without_the_file_the_error_names_it_and_its_hash(own: tuple[Path, nn.Module, Path]) -> None:
    file, _, weights = own
    with pytest.raises(InputError) as error:
        load_network(weights)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert str(error.value).startswith(f"{weights}: its network plain is defined in plain.py (SHA-256 {sha256})")
    assert "Give it as `model_name`" in str(error.value)


def test_with_a_changed_file_the_error_has_both_hashes(own: tuple[Path, nn.Module, Path]) -> None:
    file, _, weights = own
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    file.write_text(NETWORK_FILE.replace("relu", "tanh"))
    after = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(InputError) as error:
        load_network(weights, network_file=file)
    assert before in str(error.value)
    assert after in str(error.value)
    assert "Give the file as it was in training" in str(error.value)


def test_bare_weights_of_a_network_of_a_file(own: tuple[Path, nn.Module, Path], tmp_path: Path) -> None:
    file, network, _ = own
    torch.save(network.state_dict(), tmp_path / "bare.pth")
    window = {"roi_x": 10, "roi_y": 10, "roi_z": 5}
    loaded, description = load_network(tmp_path / "bare.pth", file, out_channels=3, **window)
    assert same_weights(loaded, network)
    assert description.network == "plain"
    with pytest.raises(InputError, match=r"bare\.pth: `img_size` must be multiples of 5 for plain, not 96 × 96 × 96"):
        load_network(tmp_path / "bare.pth", file, out_channels=3)
    with pytest.raises(InputError, match="`num_heads` is not for plain; leave it out"):
        load_network(tmp_path / "bare.pth", file, out_channels=3, num_heads=2, **window)


VARIANT = """
from networks.registry import register
from networks.unetr import UNETR, UNETRConfig


@register("variant", config=UNETRConfig, window_divisor=lambda config: (16, 16, 16))
class Variant(UNETR):
    pass
"""


def test_a_variant_with_the_config_of_another_network_leaves_that_network_alone(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "variant.py").write_text(VARIANT)
    variant = find_architecture(str(tmp_path / "variant.py"))
    assert type(variant.build(variant.make_config({**CONFIG.__dict__}))).__name__ == "Variant"
    assert load_network(saved)[1].network == "unetr"


def test_a_file_that_was_refused_can_be_mended_and_given_again(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(VARIANT.replace('"variant"', '"unetr"'))
    for _ in range(2):
        with pytest.raises(InputError, match=r"calls its network unetr, as ours is called\. Rename it"):
            find_architecture(str(file))
    file.write_text(VARIANT)
    assert find_architecture(str(file)).name == "variant"

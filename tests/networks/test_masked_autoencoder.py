"""What a masked autoencoder hides, and what its encoder gives to a network."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from networks import NETWORKS, build_network
from networks.masked_autoencoder import autoencoder_of
from networks.registry import Architecture
from networks.vit import ViT, ViTConfig, patch_divisor
from utils import export
from utils.checkpoints.description import Description, describe
from utils.checkpoints.load import load_network
from utils.checkpoints.progress import Progress
from utils.checkpoints.resume import StartSettings, initial_state
from utils.checkpoints.save import save_checkpoint
from utils.data.data_list import unlisted
from utils.data.preprocessing import Preprocessing
from utils.evaluation.reconstruction import explained
from utils.system.errors import InputError
from utils.training.losses import reconstruction_loss

WINDOW = (32, 32, 16)
SMALL: dict[str, Any] = {"hidden_size": 12, "mlp_dim": 16, "num_heads": 2, "img_size": WINDOW, "patch_size": 8}
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "primus": ("primus", {"num_layers": 2}),
    "unetr": ("unetr", {"feature_size": 2}),
    "unetr with a stem": ("unetr", {"feature_size": 2, "conv_stem": True}),
    "thick slices": (
        "unetr",
        {"feature_size": 2, "conv_stem": True, "halve_by_spacing": True, "spacing": (1.0, 1.0, 4.0)},
    ),
}
encoders = pytest.mark.parametrize("kind", ENCODERS)


def autoencoder(kind: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    name, own = ENCODERS[kind]
    architecture = autoencoder_of(NETWORKS[name])
    return architecture.build(architecture.make_config({**SMALL, **own, **changes}))


@pytest.mark.parametrize(("kind", "patches"), [("primus", 4 * 4 * 2), ("thick slices", 4 * 4 * 4)])
def test_patches_put_together_are_the_volume(kind: str, patches: int) -> None:
    network = autoencoder(kind, in_channels=2)
    volume = torch.randn(2, 2, *WINDOW)
    assert network.cut(volume).shape[1] == patches
    assert torch.equal(network.as_volume(network.cut(volume)), volume)


@encoders
def test_hidden_voxels_play_no_part(kind: str) -> None:
    network = autoencoder(kind).eval()
    patches_in_all = math.prod(network.grid)
    volume, order = torch.randn(1, 1, *WINDOW), torch.randperm(patches_in_all)[None]
    with torch.no_grad():
        before, patches, hidden = network(volume, order)
        noise = torch.randn(1, 1, *WINDOW)
        changed = torch.where(network.in_voxels(hidden), noise, volume)
        assert torch.equal(network(changed, order)[0], before)
        assert not torch.equal(network(torch.where(network.in_voxels(hidden), volume, noise), order)[0], before)
    assert hidden.sum() == 3 * patches_in_all / 4
    assert not hidden[0, order[0, : patches_in_all // 4]].any()
    assert torch.equal(patches, network.cut(volume))


def test_other_patches_are_hidden_each_time() -> None:
    network = autoencoder("primus", mask_ratio=0.5)
    hidden = [network(torch.zeros(2, 1, *WINDOW))[2] for _ in range(2)]
    assert [one.sum(1).tolist() for one in hidden] == [[16, 16]] * 2
    assert not torch.equal(*hidden)
    assert not torch.equal(*hidden[0])


def test_the_loss_is_the_squared_error_of_hidden_patches() -> None:
    hidden = torch.tensor([[True, False, True]])
    patches = torch.tensor([[[1.0, 3.0], [50.0, 50.0], [0.0, 2.0]]])
    # errors 1, 3, 0 and 2
    assert reconstruction_loss((torch.zeros(1, 3, 2), patches, hidden), torch.zeros(1)) == (1 + 9 + 0 + 4) / 4


def test_the_mean_explains_nothing_and_the_truth_all() -> None:
    true = torch.tensor([0.0, 2.0, 4.0])
    assert explained(torch.full((3,), 2.0), true) == 0
    assert explained(true, true) == 1
    assert explained(torch.tensor([1.0, 2.0, 3.0]), true) == pytest.approx(0.75)  # errors 1, 0, 1 of 4, 0, 4


def description(kind: str) -> Description:
    network = autoencoder(kind)
    preprocessing = Preprocessing(spacing=network.config.spacing, roi=network.config.img_size)
    labels = tuple(f"label {number}" for number in range(network.config.out_channels))
    return Description(network.config, preprocessing, labels, amp=False)


@encoders
def test_a_network_starts_from_the_encoder(kind: str, tmp_path: Path) -> None:
    network, path = autoencoder(kind), tmp_path / "model_final.pt"
    save_checkpoint(path, description(kind), network, Progress())
    name, own = ENCODERS[kind]
    torch.manual_seed(1)
    started = build_network(name, **SMALL, **own)
    of_network = replace(description(kind), config=started.config)  # type: ignore[arg-type]
    found = initial_state(StartSettings(vit_weights=path), None, of_network, unlisted(None), started)
    assert found.notes == []
    theirs = {name.removeprefix("encoder."): tensor for name, tensor in network.state_dict().items()}
    ours = started.state_dict()
    layers = started.encoder_layers()  # type: ignore[operator]
    inside = [name for name in ours if name.split(".")[0] in layers]
    assert len(inside) > 20
    assert all(torch.equal(ours[name], theirs[name]) for name in inside)


def test_a_stem_of_another_width_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model_final.pt"
    save_checkpoint(path, description("unetr with a stem"), autoencoder("unetr with a stem"), Progress())
    wide = build_network("unetr", **SMALL, feature_size=4, conv_stem=True)
    of_network = replace(description("unetr with a stem"), config=wide.config)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="Give the settings that it was trained with, `feature_size` among them"):
        initial_state(StartSettings(vit_weights=path), None, of_network, unlisted(None), wide)


def test_a_stem_of_one_channel_gives_the_same_tokens_to_four_that_are_alike(tmp_path: Path) -> None:
    network, path = autoencoder("unetr with a stem").eval(), tmp_path / "model_final.pt"
    save_checkpoint(path, description("unetr with a stem"), network, Progress())
    four: Any = build_network("unetr", **SMALL, feature_size=2, conv_stem=True, in_channels=4)
    of_network = replace(description("unetr with a stem"), config=four.config)
    found = initial_state(StartSettings(vit_weights=path), None, of_network, unlisted(None), four)
    assert [note.split(";")[0] for note in found.notes] == ["the weights of 1 channels became those of 4"]
    volume = torch.randn(1, 1, *WINDOW)
    with torch.no_grad():
        expected = network.encoder.embed(volume)
        torch.testing.assert_close(four.eval().embed(volume.expand(-1, 4, -1, -1, -1)), expected, rtol=1e-4, atol=1e-5)


def test_an_encoder_behind_a_stem_starts_no_network_without(tmp_path: Path) -> None:
    path = tmp_path / "model_final.pt"
    save_checkpoint(path, description("thick slices"), autoencoder("thick slices"), Progress())
    plain = build_network("unetr", **SMALL, feature_size=2)
    of_network = replace(description("unetr"), config=plain.config)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="`conv_stem` off contradicts its on; `halve_by_spacing` off contradicts its"):
        initial_state(StartSettings(vit_weights=path), None, of_network, unlisted(None), plain)


def test_an_encoder_alone_segments_nothing(tmp_path: Path) -> None:
    path = tmp_path / "model_final.pt"
    save_checkpoint(path, description("primus"), autoencoder("primus"), Progress())
    assert describe({**torch.load(path, weights_only=True)}) == description("primus")
    with pytest.raises(InputError, match="holds a pre-trained encoder, which segments nothing yet"):
        load_network(path)
    with pytest.raises(InputError, match="holds a pre-trained encoder, which segments nothing yet"):
        export.export(path, "state_dict", tmp_path / "exported.pth")


def test_a_network_without_an_encoder_is_not_pre_trained() -> None:
    with pytest.raises(InputError, match="segresnet can't be pre-trained"):
        autoencoder_of(NETWORKS["segresnet"])


class OtherName(nn.Module):
    """A network of one's own, whose ViT isn't called so."""

    vit_encoder = "transformer"

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.transformer = ViT(config)

    def encoder_layers(self) -> tuple[str, ...]:
        return ("transformer",)

    def embed(self, volume: torch.Tensor) -> torch.Tensor:
        return self.transformer.patch_embedding(volume)


def test_a_vit_of_another_name_is_pre_trained() -> None:
    own = Architecture("other_name", ViTConfig, OtherName, patch_divisor)
    architecture = autoencoder_of(own)
    network = architecture.build(architecture.make_config(SMALL))
    restored, patches, hidden = network(torch.randn(1, 1, *WINDOW))
    assert restored.shape == patches.shape == (1, 32, 512)  # 4 · 4 · 2 patches of 8³ voxels
    assert hidden.sum() == 24


def test_something_is_always_hidden() -> None:
    network = autoencoder("primus", mask_ratio=0.01)
    _, _, hidden = network(torch.randn(1, 1, *WINDOW))
    assert hidden.sum() == 1
    with pytest.raises(ValueError, match="a window of one patch has nothing to hide"):
        autoencoder("unetr", img_size=(16, 16, 16), patch_size=16)


def test_weights_of_an_encoder_alone_are_for_vit_weights(tmp_path: Path) -> None:
    path = tmp_path / "model_final.pt"
    save_checkpoint(path, description("primus"), autoencoder("primus"), Progress())
    network = build_network("primus", **SMALL, num_layers=2)
    of_network = replace(description("primus"), config=network.config)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="holds a pre-trained encoder alone"):
        initial_state(StartSettings(weights=path), None, of_network, unlisted(None), network)

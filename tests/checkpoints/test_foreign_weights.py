"""Weights by name: origins, adaptation to another task, and what doesn't fit."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import monai
import pytest
import torch
from torch import Tensor, nn

from networks import build_network
from networks.registry import find_architecture
from tests.checkpoints.conftest import NETWORK_FILE
from tests.conftest import REPOSITORY
from tests.golden import REFERENCE, thinned, volume_by_formula, weights_by_formula
from utils.checkpoints.foreign_weights import (
    Transfer,
    average_channels,
    interpolate_positions,
    load_weights,
    same_logits,
)
from utils.checkpoints.read import read_checkpoint
from utils.system.errors import InputError

OPTIONS: dict[str, Any] = {
    "in_channels": 2,
    "out_channels": 3,
    "img_size": (32, 32, 32),
    "feature_size": 3,
    "hidden_size": 12,
    "mlp_dim": 8,
    "num_heads": 2,
}


def build(**changes: Any) -> nn.Module:
    torch.manual_seed(1)
    return build_network("unetr", **{**OPTIONS, **changes})


def load(state: Mapping[str, Tensor], adapt: bool | None = False, **changes: Any) -> tuple[nn.Module, Transfer]:
    torch.manual_seed(2)
    network = build(**changes)
    return network, load_weights(network, state, "file.pt", adapt=adapt)


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_full_size_weights_in_the_published_format_give_the_logits_of_monai_0_7_0(tmp_path: Path) -> None:
    """``docs/weights.md`` tells how the logits were made."""
    golden = torch.load(REPOSITORY / "tests" / "weights" / "monai070_unetr_full.pt", weights_only=True)
    published = weights_by_formula({name: torch.Size(shape) for name, shape in golden["shapes"].items()})
    path = tmp_path / "UNETR_model_best_acc.pth"
    torch.save(published, path)
    network = build_network("unetr", **REFERENCE).eval()
    transfer = load_weights(network, read_checkpoint(path)["state_dict"], str(path))
    assert transfer.line().endswith("170 tensors loaded, 4 that no forward pass reads left out")
    with torch.inference_mode():
        torch.testing.assert_close(thinned(network(volume_by_formula())), golden["logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        ("", "state dict"),
        ("module.", "state dict of a DDP model"),
        ("backbone.", "state dict of a backbone"),
        ("module.backbone.", "state dict of a DDP model of a backbone"),
    ],
)
def test_prefixes_are_taken_off_and_named(prefix: str, words: str) -> None:
    state = build().state_dict()
    network, transfer = load({prefix + name: tensor for name, tensor in state.items()})
    assert same(network.state_dict(), state)
    assert transfer.line() == f"file.pt ({words}): {len(state)} tensors loaded"


def test_a_name_with_a_prefix_and_without_is_not_guessed_at() -> None:
    state = build().state_dict()
    with pytest.raises(InputError, match=r"file\.pt: has out\.conv\.conv\.bias twice"):
        load({**state, "module.out.conv.conv.bias": state["out.conv.conv.bias"]})


@pytest.mark.parametrize("proj_type", ["perceptron", "conv"])
def test_weights_of_todays_monai(proj_type: str) -> None:
    theirs = monai.networks.nets.UNETR(**OPTIONS, proj_type=proj_type).eval()
    ours, transfer = load(theirs.state_dict(), pos_embed=proj_type)
    assert "state dict of MONAI 1's UNETR" in transfer.line()
    # each of 12 blocks has a norm (weight, bias) and maybe an attention (qkv or q/k/v, out_proj) that nothing reads
    assert len(transfer.left_out) == len(theirs.state_dict()) - len(ours.state_dict()) > 0
    assert all("cross_attn" in name for name in transfer.left_out)
    volume = torch.randn(1, 2, 32, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(volume), theirs(volume), atol=1e-5, rtol=0)


def test_names_that_are_missing_or_unknown_are_all_listed() -> None:
    state = dict(build().state_dict())
    state["vit.norm.scale"] = state.pop("vit.norm.weight")
    del state["out.conv.conv.bias"]
    with pytest.raises(InputError) as error:
        load(state)
    assert "file.pt: 3 of its tensors don't fit" in str(error.value)
    assert "missing: vit.norm.weight, out.conv.conv.bias; unknown: vit.norm.scale" in str(error.value)


def test_a_tensor_that_looks_dead_and_is_not_is_loaded() -> None:
    """With two input channels and three features the first block has a third convolution, which is alive."""
    state = {name: torch.full_like(tensor, 0.5) for name, tensor in build().state_dict().items()}
    network, transfer = load(state)
    assert torch.equal(network.state_dict()["encoder1.layer.conv3.conv.weight"], torch.full((3, 2, 1, 1, 1), 0.5))
    assert transfer.left_out == []


MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "feature size": ({"feature_size": 4}, "`feature_size` is 4, but its weights have 3"),
    "hidden size": ({"hidden_size": 24}, "`hidden_size` is 24, but its weights have 12"),
    "perceptron": ({"mlp_dim": 16}, "`mlp_dim` is 16, but its weights have 8"),
    "classes": ({"out_channels": 5}, "`out_channels` is 5, but its weights have 3"),
    "channels": ({"in_channels": 1}, "`in_channels` is 1, but its weights have 2"),
    "window": (
        {"img_size": (32, 32, 48)},
        "`roi_x`, `roi_y`, `roi_z` are 32 × 32 × 48, but its weights are for 8 patches",
    ),
}


@pytest.mark.parametrize("what", MISFITS)
def test_a_difference_in_shape_names_the_flag(what: str) -> None:
    changes, words = MISFITS[what]
    with pytest.raises(InputError) as error:
        load(build().state_dict(), **changes)
    assert words in str(error.value)
    assert ("`adapt_weights`" in str(error.value)) == (what in ("classes", "channels", "window"))
    with pytest.raises(InputError) as error:
        load(build().state_dict(), adapt=None, **changes)
    assert "`adapt_weights`" not in str(error.value)


@pytest.mark.parametrize("what", ["feature size", "hidden size", "perceptron"])
def test_what_adapting_cannot_change_stays_an_error(what: str) -> None:
    changes, words = MISFITS[what]
    with pytest.raises(InputError, match=words):
        load(build().state_dict(), adapt=True, **changes)


def test_a_window_of_as_many_patches_in_another_shape_is_another_window() -> None:
    state = build(img_size=(32, 32, 16)).state_dict()
    network = build(img_size=(16, 32, 32))
    with pytest.raises(
        InputError, match="`roi_x`, `roi_y`, `roi_z` are 16 × 32 × 32, but its weights are for 32 × 32 × 16"
    ):
        load_weights(network, state, "file.pt", img_size=(32, 32, 16), adapt=False)
    transfer = load_weights(network, state, "file.pt", img_size=(32, 32, 16), adapt=True)
    assert list(transfer.adapted.values()) == ["interpolated from 2 × 2 × 1 to 1 × 2 × 2 patches"]
    # weights that don't tell their window are taken to have had this one where they can, and a cube elsewhere
    assert load_weights(network, state, "file.pt", adapt=True).adapted == {}
    with pytest.raises(InputError, match="has 4 position embeddings and doesn't tell their window"):
        load(state, adapt=True, img_size=(32, 32, 32))


def test_another_number_of_classes_gets_a_new_output_layer() -> None:
    state = build().state_dict()
    network, transfer = load(state, adapt=True, out_channels=5)
    fresh = build(out_channels=5).state_dict()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, fresh[name] if name.startswith("out.") else state[name])
    assert transfer.table().splitlines() == [
        "weights of file.pt (state dict)",
        f"  loaded    {len(state) - 2:>3}  as they are",
        "  new         1  out.conv.conv.weight: 3 classes became 5",
        "  new         1  out.conv.conv.bias: 3 classes became 5",
    ]


def test_position_embeddings_are_interpolated_in_3d() -> None:
    # an embedding that is the patch's own place (0 or 1 along each axis), of 2 × 2 × 2 patches
    places = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)[None]  # (1, 8, 3)
    found = interpolate_positions(places, (2, 2, 2), (4, 2, 2))
    # patches of half the width: the middles of the new ones lie at -1/4, 1/4, 3/4, 5/4, and the ends are kept
    expected = torch.cartesian_prod(
        torch.tensor([0.0, 0.25, 0.75, 1.0]), torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0])
    )
    torch.testing.assert_close(found[0], expected)


@pytest.mark.parametrize(
    ("window", "patches"), [((64, 32, 32), "4 × 2 × 2"), ((64, 32, 16), "4 × 2 × 1")], ids=["more", "as many"]
)
def test_another_window_gets_interpolated_positions(window: tuple[int, int, int], patches: str) -> None:
    """The file doesn't tell its window, which a cube is taken for."""
    state = build().state_dict()
    network, transfer = load(state, adapt=True, img_size=window)
    name = "vit.patch_embedding.position_embeddings"
    grid = tuple(edge // 16 for edge in window)
    torch.testing.assert_close(network.state_dict()[name], interpolate_positions(state[name], (2, 2, 2), grid))
    assert transfer.adapted == {name: f"interpolated from 2 × 2 × 2 to {patches} patches"}
    assert len(transfer.loaded) == len(state) - 1


def test_channels_are_averaged_and_rescaled() -> None:
    weight = torch.tensor([[1.0, 3.0]])  # one output of two channels
    assert torch.equal(average_channels(weight, 1), torch.tensor([[4.0]]))  # (1 + 3) / 2 · 2 / 1
    assert torch.equal(average_channels(weight, 4), torch.tensor([[1.0, 1.0, 1.0, 1.0]]))  # 2 · 2 / 4 each
    by_voxel = torch.tensor([[1.0, 3.0, 10.0, 30.0]])  # two voxels, the channel fastest
    assert torch.equal(average_channels(by_voxel, 1, per_patch=2), torch.tensor([[4.0, 40.0]]))


@pytest.mark.parametrize("pos_embed", ["perceptron", "conv"])
@pytest.mark.parametrize(("old", "new"), [(1, 2), (2, 1), (2, 4)])
def test_channels_that_are_all_alike_give_what_they_gave(pos_embed: str, old: int, new: int) -> None:
    theirs = build(in_channels=old, pos_embed=pos_embed).eval()
    ours, transfer = load(theirs.state_dict(), adapt=True, in_channels=new, pos_embed=pos_embed)
    channel = torch.randn(1, 1, 32, 32, 32)
    with torch.no_grad():
        given = theirs(channel.expand(-1, old, -1, -1, -1))
        torch.testing.assert_close(ours.eval()(channel.expand(-1, new, -1, -1, -1)), given, atol=1e-4, rtol=0)
    assert set(transfer.adapted.values()) == {f"averaged from {old} to {new} channels"}


def test_a_shortcut_that_the_new_channels_need_is_new() -> None:
    state = build(in_channels=3).state_dict()  # three channels to three features: no third convolution
    network, transfer = load(state, adapt=True, in_channels=1)
    assert "encoder1.layer.conv3.conv.weight" not in state
    assert transfer.new == {"encoder1.layer.conv3.conv.weight": "the file has none"}
    assert len(network.state_dict()) == len(state) + 1


def test_a_shortcut_that_the_new_channels_have_no_place_for_is_dropped_and_said() -> None:
    state = build(in_channels=1).state_dict()
    _, transfer = load(state, adapt=True, in_channels=3)
    assert transfer.left_out == []  # it was read
    assert "  dropped     1  encoder1.layer.conv3.conv.weight: this network has no place for it" in (
        transfer.table().splitlines()
    )
    unread = {**build(in_channels=3).state_dict(), "encoder1.layer.conv3.conv.weight": torch.zeros(3, 3, 1, 1, 1)}
    assert load(unread, in_channels=3)[1].left_out == ["encoder1.layer.conv3.conv.weight"]


def test_deep_supervision_comes_and_goes() -> None:
    without, with_it = build().state_dict(), build(deep_supervision=True).state_dict()
    coarse = [f"coarse_outs.{level}.conv.conv.{part}" for level in range(3) for part in ("weight", "bias")]
    assert list(load(without, adapt=True, deep_supervision=True)[1].new) == coarse
    network, transfer = load(with_it, adapt=True)
    assert list(transfer.dropped) == coarse
    assert transfer.dropped[coarse[0]] == "this network has no place for it"
    assert same(network.state_dict(), {name: tensor for name, tensor in with_it.items() if name not in coarse})
    words = "doesn't fit: its weights are not of `deep_supervision`. Give `adapt_weights`"
    with pytest.raises(InputError, match=re.escape(words)):
        load(without, adapt=False, deep_supervision=True)


@pytest.mark.parametrize("adapt", [False, True])
def test_another_patch_size_is_named_and_nothing_else(adapt: bool) -> None:
    words = "doesn't fit: `patch_size` is 16, but its weights have 8. Give the settings that it was trained with."
    with pytest.raises(InputError, match=re.escape(words)):
        load(build(patch_size=8).state_dict(), adapt=adapt)


@pytest.mark.parametrize("adapt", [False, True])
def test_patches_of_thick_slices_are_named_and_nothing_else(adapt: bool) -> None:
    thick = {"conv_stem": True, "halve_by_spacing": True, "spacing": (1.0, 1.0, 5.0)}
    words = (
        "doesn't fit: a patch has 16 × 16 × 16 voxels, and in its weights 16 × 16 × 4, which `space_x`, `space_y`, "
        "`space_z` and `halve_by_spacing` decide. Give the settings that it was trained with."
    )
    with pytest.raises(InputError, match=re.escape(words)):
        load(build(**thick).state_dict(), adapt=adapt, **{**thick, "spacing": (1.0, 1.0, 2.0)})


def test_adapting_what_fits_changes_nothing() -> None:
    state = build().state_dict()
    network, transfer = load(state, adapt=True)
    assert same(network.state_dict(), state)
    assert transfer.adapted == transfer.new == {}


@pytest.fixture
def own(tmp_path: Path) -> Callable[..., nn.Module]:
    """Builds the network of a file of one's own, which declares input_layers and output_layers."""
    (tmp_path / "plain.py").write_text(NETWORK_FILE)

    def make(**settings: Any) -> nn.Module:
        return build_network(str(tmp_path / "plain.py"), **{"img_size": 5, **settings})

    return make


def test_a_network_of_ones_own_gets_new_classes_and_averaged_channels(own: Callable[..., nn.Module]) -> None:
    state = own(in_channels=2, out_channels=3).state_dict()
    network = own(in_channels=1, out_channels=4)
    fresh = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    transfer = load_weights(network, state, "file.pt", adapt=True)
    found = network.state_dict()
    # one channel has the sum of two channels' weights, so that a scan whose channels are alike gives the same
    torch.testing.assert_close(found["stem.weight"], state["stem.weight"].sum(1, keepdim=True))
    for name in ("stem.bias", "body.weight", "body.bias"):
        assert torch.equal(found[name], state[name])
    for name in ("head.weight", "head.bias"):
        assert torch.equal(found[name], fresh[name])
    assert transfer.table().splitlines() == [
        "weights of file.pt (state dict)",
        "  loaded      3  as they are",
        "  adapted     1  stem.weight: averaged from 2 to 1 channels",
        "  new         1  head.weight: 3 classes became 4",
        "  new         1  head.bias: 3 classes became 4",
    ]


def test_what_a_network_of_ones_own_does_not_fit_is_listed(own: Callable[..., nn.Module]) -> None:
    state = own(width=6).state_dict()
    words = "file.pt: 5 of its tensors don't fit the network that the settings describe; give the settings that it was"
    with pytest.raises(InputError, match=re.escape(words)):  # all but the bias of its head
        load_weights(own(), state, "file.pt", adapt=True)
    other = own(out_channels=3).state_dict()
    with pytest.raises(InputError, match="give `adapt_weights` to adapt them to the new task, or the settings that it"):
        load_weights(own(), other, "file.pt", adapt=False)


@pytest.mark.parametrize("lacking", ["input_layers", "output_layers"])
def test_adapting_a_network_that_declares_no_such_layers_is_an_error_that_names_them(
    tmp_path: Path, lacking: str
) -> None:
    file = tmp_path / "bare.py"
    file.write_text(re.sub(f" +{lacking} = .*\n", "", NETWORK_FILE))
    network = build_network(str(file), img_size=5)
    with pytest.raises(InputError) as error:
        load_weights(network, network.state_dict(), "file.pt", adapt=True)
    assert str(error.value) == (
        f"`adapt_weights`: plain can't be adapted to another task, since its class declares no “{lacking}”. Leave the "
        "setting out, or declare it (docs/architecture.md)."
    )
    assert find_architecture(str(file)).name == "plain"
    load_weights(network, network.state_dict(), "file.pt", adapt=False)  # which asks for nothing


def _vnet() -> Mapping[str, Tensor]:
    return monai.networks.nets.VNet().state_dict()


def _resnet_like() -> Mapping[str, Tensor]:
    return {f"layer{number}.weight": torch.zeros(2) for number in range(9)}


@pytest.mark.parametrize("other", [_vnet, _resnet_like])
@pytest.mark.parametrize("adapt", [True, False])
def test_weights_of_another_architecture(other: Callable[[], Mapping[str, Tensor]], adapt: bool) -> None:
    with pytest.raises(InputError, match=re.escape("file.pt: holds the weights of another architecture")) as error:
        load(other(), adapt=adapt)
    assert "\n" not in str(error.value)


def test_networks_with_the_same_weights_and_other_heads_differ() -> None:
    one, other = build(), build(num_heads=4)
    other.load_state_dict(one.state_dict())
    shape = (1, 2, 32, 32, 32)
    assert same_logits(one, build(), shape, "x.pt")
    assert not same_logits(one, other, shape, "x.pt")
    assert one.training  # as it was

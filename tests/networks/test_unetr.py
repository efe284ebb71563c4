"""The network against the one that wrote the published weights, MONAI 0.7.0's."""

import re
from typing import Any

import pytest
import torch

from networks import build_network
from networks.unetr import UNETR, UNETRConfig
from networks.vit import DropPath
from tests.conftest import REPOSITORY
from utils.checkpoints.foreign_weights import load_weights
from utils.system.errors import InputError

# what docs/weights.md made with monai==0.7.0: weights, one input and its logits
GOLDEN = {
    "in_channels": 2,
    "out_channels": 3,
    "img_size": (32, 16, 16),
    "feature_size": 3,
    "hidden_size": 9,
    "mlp_dim": 16,
    "num_heads": 3,
}


def small(**changes: Any) -> UNETR:
    options = {"in_channels": 1, "out_channels": 2, "img_size": 16, "feature_size": 2, "hidden_size": 8}
    network = build_network("unetr", **{**options, "mlp_dim": 8, "num_heads": 2, **changes})
    assert isinstance(network, UNETR)
    return network


@pytest.mark.parametrize("pos_embed", ["perceptron", "conv"])
def test_logits_are_those_of_monai_0_7_0(pos_embed: str) -> None:
    path = REPOSITORY / "tests" / "weights" / f"monai070_unetr_{pos_embed}.pt"
    golden = torch.load(path, weights_only=True)
    network = build_network("unetr", **GOLDEN, pos_embed=pos_embed).eval()
    transfer = load_weights(network, golden["state_dict"], "golden.pt")
    assert transfer.line().endswith("4 that no forward pass reads left out")
    with torch.no_grad():
        torch.testing.assert_close(network(golden["input"]), golden["logits"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("feature_size", "parameters"), [(16, 92_784_046), (32, 101_787_214)])
def test_parameters_of_the_reference_network(feature_size: int, parameters: int) -> None:
    with torch.device("meta"):
        network = UNETR(UNETRConfig(out_channels=14, img_size=(96, 96, 96), feature_size=feature_size))
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize("pos_embed", ["perceptron", "conv"])
@pytest.mark.parametrize("norm_name", ["instance", "batch"])
@pytest.mark.parametrize("patch_size", [8, 16])
def test_a_forward_pass_reads_every_parameter(pos_embed: str, norm_name: str, patch_size: int) -> None:
    network = small(pos_embed=pos_embed, norm_name=norm_name, img_size=32, patch_size=patch_size)
    network(torch.randn(2, 1, 32, 32, 32)).square().sum().backward()
    unread = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert unread == []


def test_names_are_the_published_ones() -> None:
    names = set(small().state_dict())
    assert {
        "vit.patch_embedding.position_embeddings",
        "vit.patch_embedding.patch_embeddings.1.weight",
        "vit.blocks.0.attn.qkv.weight",
        "vit.blocks.11.mlp.linear2.bias",
        "vit.norm.weight",
        "encoder1.layer.conv3.conv.weight",
        "encoder2.blocks.0.1.conv1.conv.weight",
        "decoder5.transp_conv.conv.weight",
        "out.conv.conv.bias",
    } <= names


def test_patches_of_8_voxels_leave_the_decoder_one_stage_less() -> None:
    network = small(patch_size=8, img_size=(8, 24, 16), feature_size=3).eval()
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert shapes["vit.patch_embedding.position_embeddings"] == (1, 1 * 3 * 2, 8)
    assert shapes["vit.patch_embedding.patch_embeddings.1.weight"] == (8, 8**3)
    assert not [name for name in shapes if name.startswith(("encoder4", "decoder5"))]
    # transposed convolutions (in, out, 2, 2, 2): from tokens to a quarter of the resolution, and on to the full one
    assert shapes["decoder4.transp_conv.conv.weight"] == (8, 12, 2, 2, 2)
    assert shapes["decoder3.transp_conv.conv.weight"] == (12, 6, 2, 2, 2)
    assert shapes["decoder2.transp_conv.conv.weight"] == (6, 3, 2, 2, 2)
    with torch.no_grad():
        assert network(torch.randn(2, 1, 8, 24, 16)).shape == (2, 2, 8, 24, 16)


@pytest.mark.parametrize(("patch_size", "levels"), [(16, 4), (8, 3)])
def test_deep_supervision_gives_every_resolution_in_training_alone(patch_size: int, levels: int) -> None:
    network = small(deep_supervision=True, patch_size=patch_size, img_size=32, out_channels=3)
    outputs = network(torch.randn(1, 1, 32, 32, 32))
    assert [output.shape for output in outputs] == [(1, 3, *(32 >> level,) * 3) for level in range(levels)]
    sum(output.square().sum() for output in outputs).backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []

    plain = small(patch_size=patch_size, img_size=32, out_channels=3)
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("coarse_outs.")})
    volume = torch.randn(1, 1, 32, 32, 32)
    with torch.no_grad():
        assert torch.equal(network.eval()(volume), plain.eval()(volume))


@pytest.mark.parametrize("patch_size", [8, 16])
def test_a_convolutional_stem_reads_the_scan_and_the_transformer_reads_the_stem(patch_size: int) -> None:
    network = small(conv_stem=True, patch_size=patch_size, img_size=(32, 16, 16), feature_size=2, in_channels=3)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    # 2 features at full resolution, twice as many after each halving
    assert shapes["encoder1.layer.conv1.conv.weight"] == (2, 3, 3, 3, 3)
    assert shapes["encoder2.conv1.conv.weight"] == (4, 2, 3, 3, 3)
    assert shapes["encoder3.conv1.conv.weight"] == (8, 4, 3, 3, 3)
    assert ("encoder4.conv1.conv.weight" in shapes) == (patch_size == 16)
    # a patch is 2 × 2 × 2 voxels of the last: of 8 features at a quarter of the resolution, or of 16 at an eighth
    assert shapes["vit.patch_embedding.patch_embeddings.1.weight"] == (8, 8 * patch_size)
    assert shapes["vit.patch_embedding.position_embeddings"] == (1, 32 * 16 * 16 // patch_size**3, 8)
    logits = network(torch.randn(2, 3, 32, 16, 16))
    assert logits.shape == (2, 2, 32, 16, 16)
    logits.square().sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


def test_with_a_convolutional_stem_only_the_transformers_last_tokens_see_the_whole_window() -> None:
    torch.manual_seed(0)
    network = small(conv_stem=True, patch_size=8, img_size=(64, 8, 8), norm_name="batch").eval()
    volume = torch.randn(1, 1, 64, 8, 8)
    changed = volume.clone()
    changed[:, :, :8] += 1  # 56 voxels from the other end, farther than the convolutions reach
    with torch.no_grad():
        assert not torch.equal(network(changed)[:, :, -2:], network(volume)[:, :, -2:])
        network.vit.norm.weight.zero_()
        network.vit.norm.bias.zero_()
        assert not torch.equal(network(changed)[:, :, :8], network(volume)[:, :, :8])
        assert torch.equal(network(changed)[:, :, -2:], network(volume)[:, :, -2:])


def test_thick_slices_are_halved_as_in_nnunets_plan_for_the_prostate() -> None:
    """Of 0.625 × 0.625 × 3.6 mm, kernels 331, 331 and 333 on, strides 221, 221 and 222 on."""
    network = small(
        conv_stem=True, halve_by_spacing=True, spacing=(0.625, 0.625, 3.6), img_size=(32, 16, 8), deep_supervision=True
    )
    assert network.grid == (2, 1, 2)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert shapes["vit.patch_embedding.position_embeddings"] == (1, 4, 8)
    kernels = ("encoder1.layer", "encoder2", "encoder3", "encoder4")
    assert [shapes[f"{name}.conv1.conv.weight"][2:] for name in kernels] == [(3, 3, 1), (3, 3, 1), (3, 3, 3), (3, 3, 3)]
    decoders = ("decoder2", "decoder3", "decoder4", "decoder5")
    blocks = [shapes[f"{name}.conv_block.conv1.conv.weight"][2:] for name in decoders]
    assert blocks == [(3, 3, 1), (3, 3, 1), (3, 3, 3), (3, 3, 3)]
    back = [shapes[f"{name}.transp_conv.conv.weight"][2:] for name in decoders]
    assert back == [(2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2)]
    logits = network(torch.randn(2, 1, 32, 16, 8))
    assert [one.shape[2:] for one in logits] == [(32, 16, 8), (16, 8, 8), (8, 4, 8), (4, 2, 4)]
    sum(one.square().sum() for one in logits).backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


def test_voxels_that_are_nearly_cubes_are_halved_along_all_axes() -> None:
    networks = []
    for halve_by_spacing in (False, True):
        torch.manual_seed(0)
        network = small(conv_stem=True, halve_by_spacing=halve_by_spacing, spacing=(1.5, 1.5, 3.0)).eval()
        networks.append(network)
    volume = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert torch.equal(networks[0](volume), networks[1](volume))


def test_windows_of_thick_slices_need_only_multiples_of_a_patch() -> None:
    thick = {"conv_stem": True, "halve_by_spacing": True, "spacing": (1.25, 1.25, 10.0)}  # 8, 4, 2 times as long
    assert small(**thick, img_size=(32, 16, 12)).grid == (2, 1, 3)
    with pytest.raises(ValueError, match="`img_size` must be multiples of 16 × 16 × 4 for unetr, not 16 × 16 × 6"):
        small(**thick, img_size=(16, 16, 6))
    with pytest.raises(ValueError, match="`halve_by_spacing` is for convolutions before the transformer"):
        small(halve_by_spacing=True)


def test_windows_that_bfloat16_may_fail_for_follow_the_voxels_along_x() -> None:
    """Sagittal slices: below the resolution of the scan a voxel is 1, 1 and 2 long where convolutions read it."""
    config = UNETRConfig(
        conv_stem=True, halve_by_spacing=True, spacing=(3.6, 0.625, 0.625), img_size=(8, 16, 16), hidden_size=12
    )
    assert config.patch == (4, 16, 16)
    assert UNETR.unsafe_bfloat16_roi_x(config) == (2, 4)


def test_a_residual_branch_is_left_out_for_whole_samples() -> None:
    torch.manual_seed(0)
    branch = torch.ones(4000, 2, 3)
    dropped = DropPath(0.2)(branch)
    kept = dropped[:, 0, 0] > 0
    torch.testing.assert_close(dropped, kept[:, None, None] * torch.full_like(branch, 1 / 0.8))
    assert kept.float().mean().item() == pytest.approx(0.8, abs=0.02)  # three deviations of 4000 draws
    assert torch.equal(DropPath(0.2).eval()(branch), branch)
    rates = [module.rate for module in small(drop_path_rate=0.22).modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0.02 * depth for depth in range(12)], abs=1e-6)


@pytest.mark.parametrize("img_size", [(16, 32, 48), (48, 16, 32)])
def test_sizes_may_differ_by_direction(img_size: tuple[int, int, int]) -> None:
    network = small(img_size=img_size, in_channels=3, out_channels=5).eval()
    with torch.no_grad():
        assert network(torch.randn(2, 3, *img_size)).shape == (2, 5, *img_size)


def test_blocks_can_be_turned_off() -> None:
    full = set(small().state_dict())
    no_residual = set(small(res_block=False).state_dict())
    no_convolution = set(small(conv_block=False).state_dict())
    assert {name for name in full if ".conv3." in name}
    assert not {name for name in no_residual if ".conv3." in name}
    assert {name for name in full if re.match(r"encoder2\.blocks\.0\.1\.", name)}
    assert not {name for name in no_convolution if re.match(r"encoder2\.blocks\.0\.1\.", name)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"img_size": (96, 96, 90)}, "`img_size` must be multiples of 16 for unetr, not 96 × 96 × 90"),
        ({"img_size": 0}, "`img_size` must be three numbers of voxels, not 0 × 0 × 0"),
        ({"img_size": (32, 32)}, "`img_size` must be 3 numbers, not (32, 32)"),
        ({"hidden_size": 10, "num_heads": 4}, "`num_heads` 4 must divide `hidden_size` 10"),
        ({"pos_embed": "sine"}, "`pos_embed` must be one of perceptron, conv, residual, not 'sine'"),
        ({"norm_name": "layer"}, "`norm_name` must be one of instance, batch, not 'layer'"),
        ({"feature_size": 0}, "`feature_size` must be at least 1, not 0"),
        ({"num_heads": 0}, "`num_heads` must be at least 1, not 0"),
        ({"dropout_rate": 1.5}, "`dropout_rate` must be at least 0 and below 1, not 1.5"),
        ({"drop_path_rate": 1.0}, "`drop_path_rate` must be at least 0 and below 1, not 1.0"),
        ({"patch_size": 12}, "`patch_size` must be one of 16, 8, not 12"),
        ({"patch_size": 8, "img_size": 20}, "`img_size` must be multiples of 8 for unetr, not 20 × 20 × 20"),
    ],
)
def test_wrong_arguments_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        small(**changes)


def test_an_unknown_network_is_named() -> None:
    with pytest.raises(InputError) as error:
        build_network("vnet")
    known, _, found = str(error.value).partition(", or a .py file that defines one, not ")
    assert found == "'vnet'."
    names = known.removeprefix("`model_name` must be one of ").split(", ")
    assert sorted(names) == ["dynunet", "primus", "segresnet", "swin_unetr", "unetr"]


def test_dropout_is_off_in_evaluation() -> None:
    network = small(dropout_rate=0.5).eval()
    volume = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert torch.equal(network(volume), network(volume))
        network.train()
        assert not torch.equal(network(volume), network(volume))

"""The encoder from ViTs of elsewhere, compared with what those ViTs compute."""

from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.nets import ViT as MonaiViT
from monai.networks.nets import ViTAutoEnc
from PIL import Image
from torch import Tensor, nn

from networks import build_network
from tests.conftest import TINY, Run
from tests.training.test_training import error_of, train
from utils.checkpoints.foreign_weights import interpolate_positions
from utils.checkpoints.nnssl_weights import as_our_vit
from utils.checkpoints.read import read_vit
from utils.checkpoints.vit_weights import load_vit_weights
from utils.system.errors import InputError

SIZES: dict[str, Any] = {"hidden_size": 12, "mlp_dim": 16, "num_heads": 3}
POSITIONS = "vit.patch_embedding.position_embeddings"


def build(img_size: tuple[int, int, int] = (32, 32, 48), **changes: Any) -> Any:
    torch.manual_seed(1)
    settings = {"out_channels": 2, "img_size": img_size, "feature_size": 2, **SIZES, **changes}
    return build_network("unetr", **settings)


def vit_of(dimensions: int, make: Callable[..., nn.Module] = MonaiViT, **changes: Any) -> nn.Module:
    """MONAI's ViT with biases of keys and values, and random numbers where a fresh one has 0 and 1."""
    torch.manual_seed(2)
    options = {"in_channels": 1, "img_size": (32,) * dimensions, "patch_size": 16, **SIZES, "qkv_bias": True}
    vit = make(**{**options, "spatial_dims": dimensions, **changes}).eval()
    for name, tensor in vit.named_parameters():
        if "norm" in name or name.endswith("bias"):
            nn.init.normal_(tensor, float("norm" in name and name.endswith("weight")), 0.3)
        if name.endswith("qkv.bias"):
            tensor.data[: len(tensor) // 3] = 0  # of queries, for which UNETR has no place
    return vit


def named_as_timm(vit: nn.Module) -> dict[str, Tensor]:
    names = {
        "patch_embedding.patch_embeddings.": "patch_embed.proj.",
        "patch_embedding.position_embeddings": "pos_embed",
        "attn.out_proj.": "attn.proj.",
        "mlp.linear1.": "mlp.fc1.",
        "mlp.linear2.": "mlp.fc2.",
    }
    state = {}
    for name, tensor in vit.state_dict().items():
        if "cross_attn" not in name:  # MONAI's alone
            for theirs, timms in names.items():
                name = name.replace(theirs, timms)
            state[name] = tensor
    return state


def tokens_of(network: Any, volume: Tensor) -> list[Tensor]:
    with torch.no_grad():
        normed, hidden_states = network.eval().vit(volume)
    return [*hidden_states, normed]


@pytest.mark.parametrize(("pos_embed", "channels"), [("perceptron", 1), ("conv", 1), ("perceptron", 2)])
def test_a_volume_that_is_an_image_in_all_slices_gets_the_tokens_of_the_image(pos_embed: str, channels: int) -> None:
    theirs = vit_of(2, in_channels=3)
    ours = build(pos_embed=pos_embed, in_channels=channels)
    decoder = {name: tensor.clone() for name, tensor in ours.state_dict().items() if not name.startswith("vit.")}
    text, notes = load_vit_weights(ours, named_as_timm(theirs), "file.pth")
    assert text == "its encoder from file.pth (a ViT of images with names of timm), all else from random weights"
    assert notes == [
        f"the weights of 3 channels became those of {channels}; a scan whose channels are alike gives the same tokens",
        "its patches of images are spread over z: axial slices are its images, rows along x and columns along y",
    ]

    image = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        _, expected = theirs(image.expand(-1, 3, -1, -1))  # grey: red, green and blue are alike
    volume = image[..., None].expand(-1, channels, -1, -1, 48)
    found = tokens_of(ours, volume)[:-1]
    assert len(found) == len(expected) == 12
    for our, their in zip(found, expected, strict=True):
        columns = our.unflatten(1, (4, 3))  # (1, x · y · z, E) -> (1, x · y, z, E)
        torch.testing.assert_close(columns, their[:, :, None].expand_as(columns), atol=1e-4, rtol=1e-4)
    assert all(torch.equal(ours.state_dict()[name], tensor) for name, tensor in decoder.items())


@pytest.mark.parametrize(
    ("make", "prefix", "options", "pos_embed"),
    [
        (ViTAutoEnc, "", {}, "perceptron"),
        (ViTAutoEnc, "module.", {}, "conv"),
        (MonaiViT, "vit.", {"proj_type": "perceptron", "qkv_bias": False, "in_channels": 2}, "perceptron"),
        # a flattened patch of 8 voxels and 8 channels is as long as one of 16 voxels
        (MonaiViT, "", {"proj_type": "perceptron", "patch_size": 8, "in_channels": 8}, "perceptron"),
    ],
)
def test_a_vit_of_volumes_gives_the_hidden_states_that_monai_computes(
    make: Callable[..., nn.Module], prefix: str, options: dict[str, Any], pos_embed: str
) -> None:
    theirs = vit_of(3, make, **options)
    channels = options.get("in_channels", 1)
    ours = build((32, 32, 32), pos_embed=pos_embed, in_channels=channels, patch_size=options.get("patch_size", 16))
    state = {prefix + name: tensor for name, tensor in theirs.state_dict().items()}
    text, notes = load_vit_weights(ours, {"epoch": 3, "state_dict": state, "optimizer": {}}, "file.pt")
    assert f"(a ViT of volumes with names of MONAI below state_dict{'.' * bool(prefix)}{prefix[:-1]})" in text
    assert ("left out: conv3d_transpose.* (2), conv3d_transpose_1.* (2)" in notes) == (make is ViTAutoEnc)
    volume = torch.randn(1, channels, 32, 32, 32)
    with torch.no_grad():
        _, expected = theirs(volume)
        expected = [*expected, theirs.norm(expected[-1])]  # type: ignore[operator]
    for our, their in zip(tokens_of(ours, volume), expected, strict=True):
        torch.testing.assert_close(our, their, atol=1e-5, rtol=1e-5)


def test_scales_of_layers_are_taken_into_the_layers() -> None:
    """A ViT whose layers put out 1 / gamma of what they should, and gamma behind them, is the ViT itself."""
    theirs = vit_of(2)
    state = named_as_timm(theirs)
    for number in range(12):
        for scale, layer in (("ls1", "attn.proj"), ("ls2", "mlp.fc2")):
            gamma = torch.rand(12) + 0.5
            state[f"blocks.{number}.{scale}.gamma"] = gamma
            for name in (f"blocks.{number}.{layer}.weight", f"blocks.{number}.{layer}.bias"):
                state[name] = state[name] / (gamma[:, None] if name.endswith("weight") else gamma)
    plain, scaled = build(), build()
    load_vit_weights(plain, named_as_timm(theirs), "plain")
    load_vit_weights(scaled, state, "scaled")
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(scaled.state_dict()[name], tensor, atol=1e-5, rtol=1e-5)


def test_a_bias_of_queries_is_left_out_and_said() -> None:
    state = named_as_timm(vit_of(2))
    without, with_it = build(), build()
    note = "left out: biases that the network has no place for (`qv_bias`)"
    assert note not in load_vit_weights(without, state, "file.pth")[1]
    state["blocks.3.attn.qkv.bias"] = torch.cat([torch.ones(12), state["blocks.3.attn.qkv.bias"][12:]])
    assert note in load_vit_weights(with_it, state, "file.pth")[1]
    for name, tensor in without.state_dict().items():
        assert torch.equal(with_it.state_dict()[name], tensor), name


def test_positions_of_images_lose_the_class_token_and_are_interpolated_as_pillow_does() -> None:
    state = named_as_timm(vit_of(2, img_size=(64, 64)))
    image = state["pos_embed"][0].T.unflatten(1, (4, 4))  # (E, x, y)
    state |= {"cls_token": torch.zeros(1, 1, 12), "head.weight": torch.zeros(5, 12), "head.bias": torch.zeros(5)}
    state["pos_embed"] = torch.cat([torch.full((1, 1, 12), 9.0), state["pos_embed"]], 1)
    ours = build((48, 32, 32))  # 3 × 2 × 2 patches
    _, notes = load_vit_weights(ours, state, "file.pth")
    assert "position embeddings are interpolated from 4 × 4 to 3 × 2 patches" in notes
    assert "left out: cls_token, head.* (2)" in notes
    found = ours.state_dict()[POSITIONS][0].T.unflatten(1, (3, 2, 2))  # (E, x, y, z)
    expected = np.stack(
        [np.asarray(Image.fromarray(channel.numpy()).resize((2, 3), Image.Resampling.BICUBIC)) for channel in image]
    )
    for z in range(2):
        torch.testing.assert_close(found[..., z], torch.from_numpy(expected), atol=1e-5, rtol=1e-4)


def test_positions_of_volumes_are_interpolated_from_a_cube_or_the_window_that_is_known() -> None:
    theirs = vit_of(3).state_dict()
    ours = build((32, 32, 48))
    _, notes = load_vit_weights(ours, theirs, "file.pt")
    expected = interpolate_positions(theirs[POSITIONS.removeprefix("vit.")], (2, 2, 2), (2, 2, 3))
    torch.testing.assert_close(ours.state_dict()[POSITIONS], expected)
    assert "position embeddings are interpolated from 2 × 2 × 2 to 2 × 2 × 3 patches" in notes

    as_many = build((64, 32, 16))  # 4 × 2 × 1
    load_vit_weights(as_many, theirs, "file.pt")
    expected = interpolate_positions(theirs[POSITIONS.removeprefix("vit.")], (2, 2, 2), (4, 2, 1))
    torch.testing.assert_close(as_many.state_dict()[POSITIONS], expected)

    flat = build((32, 16, 16)).state_dict()  # 2 patches, along x
    with pytest.raises(InputError, match=r"its position embeddings \(1, 2, 12\) are not those of a cube of patches"):
        load_vit_weights(build((16, 32, 32)), flat, "file.pt")
    _, notes = load_vit_weights(build((16, 32, 32)), flat, "file.pt", img_size=(32, 16, 16))
    assert "position embeddings are interpolated from 2 × 1 × 1 to 1 × 2 × 2 patches" in notes


def test_positions_of_nnssl_are_of_a_cube_where_they_can_be() -> None:
    cube = as_our_vit({"eva.pos_embed": torch.arange(8.0).reshape(1, 8, 1)}, num_heads=1, grid=(4, 2, 1))
    # the patch at x, y, z has the number 4z + 2y + x there
    assert cube["patch_embedding.position_embeddings"].flatten().tolist() == [0, 4, 2, 6, 1, 5, 3, 7]
    ours = as_our_vit({"eva.pos_embed": torch.arange(6.0).reshape(1, 6, 1)}, num_heads=1, grid=(3, 2, 1))
    assert ours["patch_embedding.position_embeddings"].flatten().tolist() == [0, 3, 1, 4, 2, 5]  # 3y + x


def without(*endings: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in named_as_timm(vit_of(2)).items() if not name.endswith(endings)}


def test_what_is_missing_beside_the_blocks_stays_as_it_was_and_is_said() -> None:
    ours, fresh = build(), build().state_dict()
    state = without("pos_embed") | {"blocks.4.attn.q_norm.weight": torch.ones(4), "rope.freqs": torch.ones(2)}
    for name in ("norm.weight", "norm.bias"):
        del state[name]
    _, notes = load_vit_weights(ours, state, "file.pth")
    assert notes[1:4] == [
        "left out, though its blocks compute something else without: blocks.4.attn.q_norm.weight",
        "left out: rope.freqs",
        f"not in file.pth, so as in a new network: {POSITIONS.removeprefix('vit.')}, norm.* (2)",
    ]
    assert all(torch.equal(ours.state_dict()[name], fresh[name]) for name in (POSITIONS, "vit.norm.weight"))


@pytest.mark.parametrize("channels", [1, 2])
def test_a_flattened_patch_of_16_voxels_is_not_taken_for_8_channels_of_8_voxels(channels: int) -> None:
    theirs = build((32, 32, 32), pos_embed="perceptron", patch_size=16)
    ours = build((32, 32, 32), pos_embed="perceptron", patch_size=8, in_channels=channels)
    with pytest.raises(InputError, match=r"\(12, 4096\) doesn't read patches with an edge of 8, as the network"):
        load_vit_weights(ours, theirs.state_dict(), "file.pth")


CHANGED: dict[str, tuple[Callable[[], Mapping[str, Any]], str]] = {
    "sizes": (
        lambda: named_as_timm(vit_of(2, hidden_size=24, mlp_dim=40)),
        "file.pth: `hidden_size` is 12, but its ViT has 24; `mlp_dim` is 16, but its ViT has 40. Give `hidden_size` "
        "24, `mlp_dim` 40, and the `num_heads` that it was trained with.",
    ),
    "deeper": (
        lambda: named_as_timm(vit_of(2, num_layers=24)),
        "its ViT has 24 blocks, and the network's has 12. Give",
    ),
    "shallower": (
        lambda: named_as_timm(vit_of(2, num_layers=6)),
        "its ViT has 6 blocks, and the network's has 12. Give",
    ),
    "patches": (
        lambda: named_as_timm(vit_of(2, patch_size=8)),
        "its patch embedding (12, 1, 8, 8) doesn't read patches with an edge of 16, as the network that the settings",
    ),
    "patches of a perceptron": (
        lambda: vit_of(3, patch_size=8, proj_type="perceptron").state_dict(),
        "its patch embedding (12, 512) doesn't read patches with an edge of 16",
    ),
    "no ViT": (lambda: nn.Linear(2, 2).state_dict(), "file.pth: holds no ViT with the names of timm (patch_embed.proj"),
    "no tensors": (lambda: {"epoch": 3, "model": {"args": 5}}, "file.pth: holds no ViT with the names of timm"),
    "two": (
        lambda: {prefix + name: tensor for prefix in ("a.", "b.") for name, tensor in without().items()},
        "file.pth: holds 2 ViTs, with the prefixes 'a.', 'b.'. Save the state dict of one alone.",
    ),
    "twice": (
        lambda: {**without(), **vit_of(2).state_dict()},
        "file.pth: holds 2 ViTs, with the prefixes '', ''.",
    ),
    "not finite": (
        lambda: without() | {"blocks.3.norm2.bias": torch.full((12,), torch.nan)},
        "file.pth: has numbers that aren't finite in blocks.3.norm2.bias. Give another file.",
    ),
    "no square": (
        lambda: without() | {"pos_embed": torch.zeros(1, 6, 12)},
        "its position embeddings (1, 6, 12) are not those of a square of patches",
    ),
    "other layers": (
        lambda: without("proj.bias") | {"blocks.3.norm2.bias": torch.zeros(5)},
        "its ViT is of another kind than the network's; missing: patch_embedding.patch_embeddings.bias, "
        "blocks.*.attn.* (12); of another shape: blocks.3.norm2.bias (5,) instead of (12,). Give a ViT of this kind",
    ),
}


@pytest.mark.parametrize("what", CHANGED)
def test_what_the_encoder_cannot_be_is_refused_in_a_line(what: str) -> None:
    make, words = CHANGED[what]
    ours = build()
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    with pytest.raises(InputError) as error:
        load_vit_weights(ours, make(), "file.pth")
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.state_dict().items())


def test_of_the_two_networks_of_dino_the_teacher_is_taken(tmp_path: Path) -> None:
    """DINO's files have two networks and the flags."""
    teacher = {f"backbone.{name}": tensor for name, tensor in named_as_timm(vit_of(2)).items()}
    student = {f"module.{name}": torch.zeros_like(tensor) for name, tensor in teacher.items()}
    teacher["head.mlp.weight"] = torch.zeros(3)
    path = tmp_path / "dino.pth"
    torch.save({"student": student, "teacher": teacher, "epoch": 3, "args": Namespace(arch="vit")}, path)
    ours, expected = build(), build()
    text, notes = load_vit_weights(ours, read_vit(path), "dino.pth")
    assert "(a ViT of images with names of timm below teacher.backbone)" in text
    assert "left out, since it is not of its ViT: head.mlp.weight" in notes
    load_vit_weights(expected, named_as_timm(vit_of(2)), "plain")
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in ours.state_dict().items())


def test_a_run_starts_its_encoder_from_a_file_and_goes_on_without_it(
    run_main: Run, phantoms: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # the learning rate moves nothing
    flags = ["--hidden_size=12", "--mlp_dim=16", "--num_heads=3", "--optim_lr=1e-12", "--vit_weights=vit.pth"]
    flags += ["--max_epochs=1", "--resume", "--skip_data_check", "--crops_per_scan=1", "--infer_overlap=0"]
    path = Path("vit.pth")
    torch.save({"model": named_as_timm(vit_of(2, in_channels=3))}, path)
    folder = train(run_main, phantoms, "first", *flags)
    screen = capsys.readouterr().out
    assert "its encoder from vit.pth (a ViT of images with names of timm below model), all else from random" in screen
    assert "note: vit.pth doesn't show its number of heads; --num_heads 3 has to be what it was trained with" in screen
    expected = build((16, 16, 16))
    load_vit_weights(expected, torch.load(path), "vit.pth")
    state = torch.load(folder / "model_final.pt", weights_only=True)["state_dict"]
    for name, tensor in expected.vit.state_dict().items():
        torch.testing.assert_close(state[f"vit.{name}"], tensor, atol=1e-6, rtol=0)

    path.unlink()
    train(run_main, phantoms, "first", *flags)
    assert "going on after epoch 1" in capsys.readouterr().out

    # a checkpoint of ours tells its heads and its window
    command = [f"--data_dir={phantoms}", "--logdir=second", *TINY, "--mlp_dim=16"]
    message = error_of(run_main, [*command, f"--vit_weights={folder / 'model_final.pt'}"], capsys)
    assert "model_final.pt: --num_heads 2 contradicts its 3. Give the settings that it was trained with." in message
    assert "vit.pth: no such file. Mend its path" in error_of(run_main, [*command, "--vit_weights=vit.pth"], capsys)


def test_a_transformer_behind_a_stem_takes_no_weights_of_one_that_reads_scans() -> None:
    with pytest.raises(InputError, match="`vit_weights`: with `conv_stem` the transformer reads features of") as error:
        load_vit_weights(build(conv_stem=True), without(), "file.pth")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_transformer_behind_a_stem_is_not_taken_for_one_that_reads_scans(prefix: str) -> None:
    sizes: dict[str, Any] = {"patch_size": 8, "feature_size": 16}  # 64 features in 2³ voxels are as many as 8³ voxels
    stem = build((16, 16, 16), conv_stem=True, **sizes)
    state = {prefix + name: tensor for name, tensor in stem.state_dict().items()}
    with pytest.raises(InputError, match="its transformer reads features of convolutions, not voxels"):
        load_vit_weights(build((16, 16, 16), **sizes), {"state_dict": state}, "file.pth")

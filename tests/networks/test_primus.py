"""Primus, its tokenizer and its transformer, compared with dynamic-network-architectures, where they are from."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from networks import build_network
from networks.primus import decoder_channels
from networks.vit import rotate, rotations
from tests.conftest import REPOSITORY, Run
from tests.training.test_blocks import training_step, use_backend
from tests.weights.make_primus import numbers
from utils import export
from utils.checkpoints.description import Description
from utils.checkpoints.foreign_weights import load_weights
from utils.checkpoints.progress import Progress
from utils.checkpoints.save import save_checkpoint
from utils.checkpoints.vit_weights import load_vit_weights
from utils.config.flags import parse_train
from utils.config.settings import description_from_args
from utils.data.data_list import unlisted
from utils.phantom import LABELS
from utils.system.errors import InputError
from utils.training.blocks import compile_blocks, recompute_activations

WINDOW = (16, 24, 32)
FLAGS = [
    "--model_name=primus", "--hidden_size=24", "--num_heads=2", "--mlp_dim=32", "--num_layers=2",
    "--roi_x=16", "--roi_y=16", "--roi_z=24", "--space_x=12", "--space_y=12", "--space_z=14",
]  # fmt: skip
LAST_LAYERS = {"attn.out_proj": "attn.proj", "mlp.linear2": "mlp.fc2"}


@pytest.fixture(scope="module")
def theirs() -> dict[str, Any]:
    """What dynamic-network-architectures 0.4.4 computes, by ``tests/weights/make_primus.py``."""
    found: dict[str, Any] = torch.load(REPOSITORY / "tests" / "weights" / "primus.pt", weights_only=True)
    return found


def test_sizes_have_as_many_parameters_as_theirs(theirs: dict[str, Any]) -> None:
    sizes: dict[str, dict[str, int]] = {
        "PrimusV2S": {},
        "PrimusV2B": {"hidden_size": 792, "mlp_dim": 2112, "num_heads": 12},
        "PrimusV2M": {"hidden_size": 864, "mlp_dim": 2304, "num_heads": 12, "num_layers": 16},
    }
    with torch.device("meta"):
        for name, settings in sizes.items():
            ours = build_network("primus", img_size=WINDOW, out_channels=5, **settings)
            assert sum(p.numel() for p in ours.parameters()) == theirs["parameters"][name], name


def test_rotations_are_those_of_timm(theirs: dict[str, Any]) -> None:
    sines, cosines = theirs["rope"][:, :66:2], theirs["rope"][:, 66::2]
    torch.testing.assert_close(rotations((4, 3, 2), 66), torch.stack([cosines, sines]), rtol=0, atol=1e-6)


def test_a_rotated_product_depends_on_the_distance_alone() -> None:
    torch.manual_seed(0)
    grid = (3, 4, 5)
    q, k = torch.randn(2, 1, 1, 1, 12).expand(-1, -1, -1, 60, -1)
    turned = rotations(grid, 12)
    products = (rotate(q, turned) @ rotate(k, turned).transpose(2, 3)).reshape(*grid, *grid)
    assert torch.allclose(products[0, 1, 2, 1, 3, 1], products[1, 0, 3, 2, 2, 2], atol=1e-5)
    assert not torch.allclose(products[0, 1, 2, 1, 3, 1], products[0, 1, 2, 1, 3, 2], atol=1e-3)


def test_the_first_pair_turns_by_one_radian_a_patch() -> None:
    x = torch.zeros(1, 1, 2, 6)
    x[..., 0] = 1  # of the pair that turns along the first axis
    turned = rotate(x, rotations((2, 1, 1), 6))
    assert torch.allclose(turned[0, 0, 1, :2], torch.tensor([math.cos(1), math.sin(1)]))
    assert torch.equal(turned[0, 0, 0], x[0, 0, 0])


def test_initial_weights_are_as_wide_as_theirs(theirs: dict[str, Any]) -> None:
    torch.manual_seed(0)
    ours: Any = build_network("primus", img_size=WINDOW, out_channels=5)
    deviations = theirs["deviations"]
    for number in (0, 5, 11):
        for our_name, their_name in LAST_LAYERS.items():
            deviation = ours.vit.blocks[number].get_submodule(our_name).weight.std().item()
            assert deviation == pytest.approx(deviations[f"eva.blocks.{number}.{their_name}.weight"], rel=0.03)
            assert deviation == pytest.approx(0.02 / math.sqrt(2 * (number + 1)), rel=0.03)
    assert ours.vit.blocks[3].scale1.gamma.eq(0.1).all()
    pairs: dict[str, Tensor] = {
        "eva.blocks.7.attn.q_proj.weight": ours.vit.blocks[7].attn.qkv.weight,
        "eva.pos_embed": ours.vit.patch_embedding.position_embeddings,
        "down_projection.final_proj.weight": ours.vit.patch_embedding.patch_embeddings.proj.weight,
        "up_projection.decode.0.0.weight": ours.decoder[0].weight,
    }
    for name, weight in pairs.items():
        assert weight.std().item() == pytest.approx(deviations[name], rel=0.03), name


def test_drop_path_rises_to_the_last_block() -> None:
    network: Any = build_network("primus", img_size=WINDOW)
    assert [block.drop_path.rate for block in network.vit.blocks] == pytest.approx([0.2 * n / 11 for n in range(12)])


def test_the_decoder_has_the_channels_of_theirs() -> None:
    # factor (396 / 10)^(1/3) = 3.41: 396, 116.2 -> 112 or 120, 34.1 -> 32
    assert decoder_channels(396, 5, 3) == [396, 120, 32, 5]


def with_decoder_of(ours: Any, state: dict[str, Tensor]) -> None:
    for name, tensor in state.items():
        if name.startswith("up_projection.decode."):
            stage, *rest = name.removeprefix("up_projection.decode.").split(".")
            # theirs: a convolution (0), a norm (1) and an activation in each stage, the last a convolution alone
            place = {"0": "0", "1": "1.norm"}.get(rest[0], "0")
            layer = ours.decoder.get_submodule(f"{3 * int(stage) + int(place[0])}{place[1:]}")
            # kernels of a network that reads z, y, x
            layer.get_parameter(rest[-1]).data = tensor.permute(0, 1, 4, 3, 2) if tensor.ndim == 5 else tensor


@pytest.mark.parametrize(
    ("name", "pos_embed", "channels"), [("PrimusV2", "residual", 1), ("PrimusV2", "residual", 2), ("Primus", "conv", 1)]
)
def test_weights_of_theirs_give_the_same_tokens_and_logits(
    theirs: dict[str, Any], name: str, pos_embed: str, channels: int
) -> None:
    found = theirs["networks"][f"{name}, {channels}"]
    state = {name: numbers(name, shape) for name, shape in found["shapes"].items()}
    settings: dict[str, Any] = {"hidden_size": 24, "num_heads": 2, "mlp_dim": 64, "num_layers": 3, "out_channels": 5}
    ours: Any = build_network("primus", img_size=WINDOW, in_channels=channels, pos_embed=pos_embed, **settings)
    nested = {"network_weights": {f"encoder.{name}": tensor for name, tensor in state.items()}}
    text, notes = load_vit_weights(ours.eval(), nested, "file.pth")
    assert text.startswith("its encoder from file.pth (a ViT of volumes with names of nnssl below network_weights.enc")
    assert notes == ["its axes z, y, x became x, y, z; its decoder is left out"]
    with_decoder_of(ours, state)
    volume = numbers("volume", (1, channels, *WINDOW[::-1])).permute(0, 1, 4, 3, 2)  # z, y, x -> x, y, z
    with torch.no_grad():
        tokens = ours.vit(volume)[0].unflatten(1, (2, 3, 4)).permute(0, 3, 2, 1, 4).flatten(1, 3)
        torch.testing.assert_close(tokens, found["tokens"], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours(volume).permute(0, 1, 4, 3, 2), found["logits"], atol=1e-5, rtol=1e-5)


def without(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda state: state.pop(name)


def flattened(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda state: state.update({name: state[name].flatten()})


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("Primus", without("eva.blocks.0.attn.k_proj.weight"), "missing: blocks.0.attn.qkv.weight"),
        ("Primus", flattened("eva.blocks.0.attn.v_proj.weight"), "missing: blocks.0.attn.qkv.weight"),
        ("Primus", without("eva.blocks.0.norm1.weight"), "holds no ViT with the names of timm"),
        ("Primus", lambda state: state.update({"eva.blocks.0.attn.q_proj.bias": torch.tensor(1.0)}), "attn.q_bias ()"),
        ("PrimusV2", flattened("down_projection.stem.blocks.0.conv1.conv.weight"), "of another shape: patch_embedding"),
    ],
    ids=["no keys", "values in a row", "no norm", "a bias without axis", "a kernel in a row"],
)
def test_a_damaged_file_of_theirs_is_one_line(
    theirs: dict[str, Any], name: str, damage: Callable[[dict[str, Tensor]], object], words: str
) -> None:
    state = {key: numbers(key, shape) for key, shape in theirs["networks"][f"{name}, 1"]["shapes"].items()}
    damage(state)
    settings: dict[str, Any] = {"hidden_size": 24, "num_heads": 2, "mlp_dim": 64, "num_layers": 3}
    pos_embed = {"Primus": "conv", "PrimusV2": "residual"}[name]
    ours = build_network("primus", img_size=WINDOW, pos_embed=pos_embed, **settings)
    with pytest.raises(InputError, match=re.escape(words)) as error:
        load_vit_weights(ours, {"network_weights": state}, "file.pth")
    assert "\n" not in str(error.value)


def described(*flags: str) -> Description:
    args = parse_train([*FLAGS, "--noamp", *flags])
    return replace(description_from_args(args, unlisted(None)), labels=LABELS)


@pytest.mark.parametrize("change", [(recompute_activations,), (compile_blocks,)], ids=["recomputed", "compiled"])
def test_blocks_that_are_recomputed_or_compiled_give_the_same(
    change: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_backend(monkeypatch)
    network = described("--drop_path_rate=0").build()
    plain = training_step(network, (2, 1, 16, 16, 24))
    for alter in change:
        alter(network)
    torch.testing.assert_close(training_step(network, (2, 1, 16, 16, 24)), plain, rtol=1e-3, atol=1e-4)
    torch.compiler.reset()


@pytest.mark.parametrize("form", ["torchscript", "onnx"])
def test_exports_give_the_same_logits(form: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    description = described()
    save_checkpoint(tmp_path / "model.pt", description, description.build(), Progress())
    assert export.export(tmp_path / "model.pt", form, tmp_path / "exported") <= 1e-4


@pytest.mark.parametrize("network", ["primus", "unetr"])
def test_a_run_goes_on_and_is_tested_at_another_window(
    network: str, run_main: Run, run_test: Run, phantoms: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """UNETR with all parts of the encoder."""
    content = json.loads((phantoms / "dataset_0.json").read_text())
    few = {part: content[part][:1] for part in ("training", "validation", "test")}
    Path("few.json").write_text(json.dumps({**content, **few}))
    data = [f"--data_dir={phantoms}", "--json_list=few.json", "--workers=0"]
    common = [*data, *FLAGS, "--save_checkpoint", "--logdir=run", "--skip_data_check", "--noamp"]
    common += ["--crops_per_scan=1", "--warmup_epochs=1", "--lrschedule=warmup_poly", "--betas", "0.9", "0.98"]
    if network == "unetr":
        common.remove("--num_layers=2")
        common += ["--model_name=unetr", "--feature_size=2", "--patch_size=8", "--rotary", "--swiglu", "--attn_norm"]
        common += ["--qv_bias", "--layer_scale=0.1", "--scaled_init", "--conv_stem"]
    run_main([*common, "--max_epochs=1"])
    run_main([*common, "--max_epochs=2", "--resume"])
    assert "going on after epoch 1" in capsys.readouterr().out
    run_test([*data, "--pretrained_dir=runs/run", "--pretrained_model_name=model.pt", "--roi_z=32"])
    assert "note: the window is 16 × 16 × 32 voxels, and was 16 × 16 × 24 in training" in capsys.readouterr().out
    assert json.loads(Path("runs/run/scores/scores.json").read_text())["mean"] >= 0


def test_weights_are_adapted_to_another_task() -> None:
    torch.manual_seed(0)
    old = described().build()
    description = described("--in_channels=2", "--out_channels=3", "--roi_x=32")
    new = description.build()
    transfer = load_weights(new, old.state_dict(), "file.pt", img_size=(16, 16, 24), adapt=True)
    stem = "vit.patch_embedding.patch_embeddings.stem"
    assert transfer.adapted == {
        "vit.patch_embedding.position_embeddings": "interpolated from 2 × 2 × 3 to 4 × 2 × 3 patches",
        f"{stem}.conv1.0.weight": "averaged from 1 to 2 channels",
        f"{stem}.skip.0.weight": "averaged from 1 to 2 channels",
    }
    assert transfer.new
    assert all(name.startswith("decoder.") for name in transfer.new)
    volume = torch.randn(1, 1, 32, 16, 24)
    ours, theirs = new.vit.patch_embedding.patch_embeddings, old.vit.patch_embedding.patch_embeddings  # type: ignore[union-attr]
    with torch.no_grad():
        torch.testing.assert_close(ours(volume.expand(-1, 2, -1, -1, -1)), theirs(volume), atol=1e-5, rtol=1e-5)  # type: ignore[operator]


def test_heads_that_cannot_turn_are_refused() -> None:
    with pytest.raises(ValueError, match="`rotary` needs heads with a multiple of 6 numbers, but `hidden_size` 32 in"):
        build_network("primus", hidden_size=32, num_heads=2)
    assert build_network("primus", hidden_size=32, num_heads=2, rotary=False, mlp_dim=8, num_layers=1)


def test_a_window_of_a_single_patch_is_refused() -> None:
    with pytest.raises(ValueError, match="`img_size` 8 × 8 × 8: one edge must be 16 or more for `pos_embed` residual"):
        build_network("primus", img_size=8)


def test_two_stems_are_refused() -> None:
    with pytest.raises(ValueError, match="both put convolutions before the transformer; give one"):
        build_network("unetr", conv_stem=True, pos_embed="residual")

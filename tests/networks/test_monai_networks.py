"""MONAI's networks under the same command lines, checkpoints and scores as ours."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from monai.networks.nets import DynUNet, SegResNet, SwinUNETR
from torch import nn

from networks import NETWORKS, build_network, precision
from networks.monai_networks import kernels_and_strides
from networks.precision import choose_precision
from tests.conftest import Run
from tests.training.test_blocks import training_step, use_backend
from tests.training.test_training import error_of, lines, weights
from utils import export
from utils.checkpoints.description import Description, describe
from utils.checkpoints.foreign_weights import load_weights
from utils.checkpoints.progress import Progress
from utils.checkpoints.resume import initial_state
from utils.checkpoints.save import save_checkpoint
from utils.config.flags import parse_test, parse_train, recorded_flags
from utils.config.settings import description_from_args, start_settings
from utils.data.data_list import unlisted
from utils.phantom import LABELS
from utils.system.errors import InputError
from utils.training.blocks import compile_blocks, recompute_activations

GRID = ["--space_x=12", "--space_y=12", "--space_z=14"]
SMALL = ["--roi_x=16", "--roi_y=16", "--roi_z=16"]
FLAGS = {
    "swin_unetr": [*GRID, "--roi_x=64", "--roi_y=32", "--roi_z=32", "--feature_size=12"],
    "segresnet": [*GRID, *SMALL, "--feature_size=8"],
    "dynunet": [*GRID, *SMALL, "--feature_size=2"],
}
three = pytest.mark.parametrize("name", FLAGS)


def described(name: str, *flags: str) -> Description:
    args = parse_train([f"--model_name={name}", *FLAGS[name], "--noamp", *flags])
    return replace(description_from_args(args, unlisted(None)), labels=LABELS)


def saved(name: str, folder: Path, *flags: str) -> tuple[Path, nn.Module]:
    torch.manual_seed(0)
    network = described(name, *flags).build()
    path = folder / f"{name}.pt"
    save_checkpoint(path, described(name, *flags), network, Progress())
    return path, network


def by_hand(name: str) -> nn.Module:
    """What :data:`FLAGS` make, of MONAI's classes and torch's norms alone."""
    if name == "swin_unetr":
        return SwinUNETR(in_channels=1, out_channels=14, feature_size=12, norm_name="instance")
    if name == "segresnet":
        return SegResNet(init_filters=8, in_channels=1, out_channels=14, blocks_down=(1, 2, 2, 4), blocks_up=(1, 1, 1))
    cube, halving = (3, 3, 3), (2, 2, 2)  # 16 voxels are halved to 8 and to 4
    return DynUNet(
        spatial_dims=3, in_channels=1, out_channels=14, filters=(2, 4, 8), kernel_size=(cube,) * 3,
        strides=((1, 1, 1), halving, halving), upsample_kernel_size=(halving, halving),
    )  # fmt: skip


@three
def test_logits_and_gradients_are_those_of_monais_own_class(name: str) -> None:
    ours, theirs = described(name).build(), by_hand(name)
    theirs.load_state_dict(ours.state_dict())
    shape = (1, 1, *described(name).preprocessing.roi)
    (logits, gradients), (expected, their_gradients) = (training_step(network, shape) for network in (ours, theirs))
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)
    for parameter, gradient in gradients.items():
        assert gradient is not None  # which DistributedDataParallel waits for
        expected_gradient = their_gradients[parameter]
        assert expected_gradient is not None
        torch.testing.assert_close(
            gradient, expected_gradient, rtol=0.02, atol=float(expected_gradient.abs().max()) / 50
        )


@pytest.mark.parametrize(("feature_size", "millions"), [(12, 4.0), (24, 15.7)])
def test_swin_unetr_has_as_many_parameters_as_published(feature_size: int, millions: float) -> None:
    """The table of SwinUNETR/BTCV in MONAI's research-contributions, whose numbers are cut off, not rounded."""
    network = build_network("swin_unetr", in_channels=1, out_channels=14, feature_size=feature_size)
    assert sum(parameter.numel() for parameter in network.parameters()) // 100_000 == round(millions * 10)


def test_segresnet_has_the_parameters_of_its_paper() -> None:
    """A block has two group norms and two convolutions without bias; 1, 2, 2, 4 blocks down and 1, 1, 1 up."""

    def block(channels: int) -> int:
        return 2 * 2 * channels + 2 * 27 * channels**2

    with torch.device("meta"):
        network = build_network("segresnet", in_channels=4, out_channels=3)
    channels = [32, 64, 128, 256]
    expected = 27 * 4 * 32  # the first convolution
    expected += sum(number * block(width) for number, width in zip((1, 2, 2, 4), channels, strict=True))
    expected += sum(27 * width * 2 * width + 2 * width * width + block(width) for width in channels[:-1])  # down and up
    expected += 2 * 32 + 32 * 3 + 3  # the last norm and the output
    assert sum(parameter.numel() for parameter in network.parameters()) == expected


@pytest.mark.parametrize(
    ("img_size", "spacing", "kernels", "strides"),
    [  # nnU-Net's plans of two tasks of the Medical Segmentation Decathlon: hippocampus, and prostate with thick slices
        ((40, 56, 40), (1.0, 1.0, 1.0), ["333"] * 4, ["111", "222", "222", "222"]),
        (
            (320, 256, 20),
            (0.625, 0.625, 3.6),
            ["331", "331", "333", "333", "333", "333", "333"],
            ["111", "221", "221", "222", "222", "221", "221"],
        ),
        ((96, 96, 96), (1.5, 1.5, 2.0), ["333"] * 5, ["111", "222", "222", "222", "222"]),  # 96, 48, 24, 12, 6
    ],
)
def test_kernels_and_strides_follow_nnunets_rule(
    img_size: tuple[int, ...], spacing: tuple[float, ...], kernels: list[str], strides: list[str]
) -> None:
    found = kernels_and_strides(img_size, spacing)
    assert [["".join(map(str, level)) for level in part] for part in found] == [kernels, strides]


def test_dynunet_has_nnunets_filters() -> None:
    with torch.device("meta"):
        network = build_network("dynunet", in_channels=1, out_channels=14, img_size=(96,) * 3, spacing=(1.5, 1.5, 2.0))
    assert network.filters == [32, 64, 128, 256, 320]
    assert not network.deep_supervision


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("swin_unetr --roi_x 48", "--roi_x, --roi_y, --roi_z must be multiples of 32 for swin_unetr, not 48 × 96 × 96"),
        (
            "swin_unetr --roi_x 32 --roi_y 32 --roi_z 32",
            "--roi_x, --roi_y, --roi_z 32 × 32 × 32: one edge must be 64 or more for swin_unetr",
        ),
        ("segresnet --roi_y 100", "--roi_x, --roi_y, --roi_z must be multiples of 8 for segresnet, not 96 × 100 × 96"),
        # 90, 45, 22.5, 11.25, 5.6
        ("dynunet --roi_z 90", "--roi_x, --roi_y, --roi_z must be multiples of 16 for dynunet, not 96 × 96 × 90"),
        (  # thick slices are halved twice, and the other axes four times
            "dynunet --roi_x 72 --roi_y 64 --roi_z 20 --space_x 1 --space_y 1 --space_z 5",
            "--roi_x, --roi_y, --roi_z must be multiples of 16 × 16 × 4 for dynunet, not 72 × 64 × 20",
        ),
        ("dynunet --roi_x 8 --roi_y 8 --roi_z 8", "dynunet halves a window at least twice"),
        ("segresnet --mlp_dim 12", "--mlp_dim is not for segresnet; leave it out"),
        (
            "dynunet --no-res_block --dropout_rate 0",
            "--dropout_rate is not for dynunet; leave it out; --res_block is not for dynunet; leave it out (python",
        ),
        ("swin_unetr --feature_size 16", "argument --feature_size: must be a multiple of 12, not 16"),
    ],
)
def test_what_does_not_fit_a_network_ends_with_one_line(
    flags: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_train(["--model_name", *flags.split()])
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("swin_unetr", 16, "^`feature_size` must be a multiple of 12, not 16$"),
        ("segresnet", 12, "^`feature_size` must be a multiple of 8, not 12$"),
        ("dynunet", 321, "^`feature_size` must be at least 1 and below 321, not 321$"),
    ],
)
def test_a_width_that_does_not_fit_is_named(name: str, size: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build_network(name, feature_size=size)


def test_each_network_has_defaults_of_its_own() -> None:
    sizes = {name: parse_train([f"--model_name={name}"]).feature_size for name in NETWORKS}
    assert sizes == {"unetr": 16, "swin_unetr": 24, "segresnet": 32, "dynunet": 32, "primus": None}
    assert parse_train(["--model_name=primus"]).hidden_size == 396
    args = parse_train(["--model_name=segresnet"])
    assert (args.mlp_dim, args.conv_block, args.res_block) == (None, None, None)
    assert parse_test(["--model_name=segresnet"]).feature_size is None  # which the checkpoint knows


@pytest.mark.parametrize("name", NETWORKS)
def test_a_record_leads_back_to_its_flags(name: str) -> None:
    args = vars(parse_train([f"--model_name={name}", "--space_z=3.5", "--roi_y=64"]))
    description = description_from_args(argparse.Namespace(**args), unlisted(None))
    given = {flag: args[flag] for flag in recorded_flags() if args[flag] is not None}
    assert description.settings() == {**given, "in_channels": 1, "out_channels": 14}
    assert description.options["img_size"] == (96, 64, 96)
    assert description.options["spacing"] == (1.5, 1.5, 3.5)
    assert describe(description.content()) == description


@pytest.mark.parametrize(
    ("name", "depths"), [("swin_unetr", [32, 64, 96]), ("segresnet", [8, 16, 32]), ("unetr", [16, 32])]
)
def test_windows_that_become_two_voxels_deep_have_float32(
    name: str, depths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Halved five times, three times, and from patches of 16 to volumes of an eighth."""
    monkeypatch.setattr(precision, "_cpu_multiplies_bfloat16", lambda: True)
    configs = [NETWORKS[name].make_config({"img_size": (depth, 96, 96)}) for depth in depths]
    found = [choose_precision(torch.device("cpu"), True, config).dtype for config in configs]
    assert found == [torch.float32] * (len(depths) - 1) + [torch.bfloat16]


@three
def test_a_run_goes_on_and_is_scored_as_it_was_validated(
    name: str, run_main: Run, run_test: Run, phantoms: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((phantoms / "dataset_0.json").read_text())
    few = {part: content[part][:1] for part in ("training", "validation", "test")}
    Path("few.json").write_text(json.dumps({**content, **few}))
    data = [f"--data_dir={phantoms}", "--json_list=few.json", "--workers=0"]
    common = [*data, *FLAGS[name], f"--model_name={name}", "--save_checkpoint", "--logdir=run", "--skip_data_check"]
    common += ["--crops_per_scan=1", "--ema_decay=0.5", "--optim_lr=3e-2", "--warmup_epochs=0", "--noamp"]
    run_main([*common, "--max_epochs=1"])
    screen = capsys.readouterr().out
    count = sum(parameter.numel() for parameter in by_hand(name).parameters())
    assert f"{name} with {count:,} parameters, from random weights" in screen
    if name == "dynunet":  # whose checkpoints have the tensors of shared blocks twice; one network for time's sake
        run_main([*common, "--max_epochs=2", "--resume", "--activation_checkpointing"])
        assert "going on after epoch 1" in capsys.readouterr().out
    run_test([*data, "--pretrained_dir=runs/run", "--pretrained_model_name=model_final.pt"])
    scores = json.loads(Path("runs/run/scores/scores.json").read_text())
    assert scores["mean"] == pytest.approx(lines(Path("runs/run"))[-1]["dice"]["mean"], abs=1e-6)

    if name == "segresnet":
        torch.save(weights(Path("runs/run/model.pt")), "bare.pth")
        bare = ["--pretrained_dir=.", "--pretrained_model_name=bare.pth", "--output_dir=bare", "--tta"]
        run_test([*data, *bare, *FLAGS[name], "--model_name=segresnet"])
    message = error_of(
        run_test, [*data, "--pretrained_dir=runs/run", "--pretrained_model_name=model.pt", "--num_heads=2"], capsys
    )
    assert f"model.pt: --num_heads is not for {name}; leave it out." in message


def test_networks_of_several_kinds_are_averaged(run_test: Run, phantoms: Path, in_tmp: Path) -> None:
    files = [saved(name, in_tmp)[0].name for name in ("segresnet", "dynunet")]
    data = [f"--data_dir={phantoms}", "--workers=0", "--split=test"]
    run_test([*data, "--pretrained_dir=.", "--pretrained_model_name", *files, "--output_dir=out"])
    assert list(Path("out").glob("img*.nii.gz"))


def test_weights_of_one_network_are_not_for_another(tmp_path: Path) -> None:
    path, _ = saved("segresnet", tmp_path)
    args = parse_train(
        [
            *(*GRID, *SMALL, "--model_name=dynunet", "--resume_ckpt"),
            *(f"--pretrained_dir={tmp_path}", "--pretrained_model_name=segresnet.pt"),
        ]
    )
    description = described("dynunet")
    with pytest.raises(InputError, match="`model_name` dynunet contradicts its segresnet"):
        initial_state(start_settings(args, description), None, description, unlisted(None), description.build())
    with pytest.raises(InputError, match="another architecture"):
        load_weights(description.build(), torch.load(path, weights_only=True)["state_dict"], "file.pt")


@three
def test_weights_of_other_classes_or_another_width_name_the_flag(name: str) -> None:
    wide = {"swin_unetr": 24, "segresnet": 16, "dynunet": 4}[name]
    other = described(name, "--out_channels=3", f"--feature_size={wide}").build().state_dict()
    with pytest.raises(
        InputError, match=rf"`feature_size` is \d+, but its weights have {wide}; `out_channels` is 14, but"
    ):
        load_weights(described(name).build(), other, "file.pt", adapt=False)


@three
def test_weights_are_adapted_to_other_classes_and_channels(name: str) -> None:
    old, new = described(name).build(), described(name, "--in_channels=2", "--out_channels=3").build()
    transfer = load_weights(new, old.state_dict(), "file.pt", adapt=True)
    assert set(transfer.new.values()) == {"14 classes became 3"}
    assert set(transfer.adapted.values()) == {"averaged from 1 to 2 channels"}
    before, after = old.state_dict(), new.state_dict()
    for tensor in transfer.adapted:
        torch.testing.assert_close(after[tensor], before[tensor].expand_as(after[tensor]) / 2)
    for tensor in transfer.loaded:
        assert torch.equal(after[tensor], before[tensor])


@three
def test_activations_are_computed_again(name: str) -> None:
    network = described(name).build()
    shape = (1, 1, *described(name).preprocessing.roi)
    plain = training_step(network, shape)
    recompute_activations(network)
    torch.testing.assert_close(training_step(network, shape), plain, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["segresnet", "dynunet"])
def test_blocks_are_compiled(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_backend(monkeypatch)
    network = described(name).build()
    plain = training_step(network, (1, 1, 16, 16, 16))
    compile_blocks(network)
    torch.testing.assert_close(training_step(network, (1, 1, 16, 16, 16))[0], plain[0], rtol=1e-3, atol=1e-4)
    torch.compiler.reset()


@pytest.mark.parametrize("name", ["segresnet", "dynunet"])
def test_torchscript_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    path, _ = saved(name, tmp_path)
    assert export.export(path, "torchscript", tmp_path / "script.pt") <= 1e-4


def test_swin_unetr_can_not_be_torchscript(tmp_path: Path) -> None:
    path, _ = saved("swin_unetr", tmp_path)
    with pytest.raises(
        InputError, match=r"--format torchscript: torch can't write this network as TorchScript\. Give --format onnx"
    ):
        export.export(path, "torchscript", tmp_path / "script.pt")
    assert not (tmp_path / "script.pt").exists()
    assert export.export(path, "state_dict", tmp_path / "bare.pth") == 0

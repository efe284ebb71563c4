"""``python -m utils.pretrain``, from a data list and from folders."""

import json
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import REPOSITORY, Run
from tests.training.test_training import equal, error_of, lines
from utils import pretrain
from utils.config.flags import idle_in_pretraining, parse_pretrain
from utils.distributed.process import Process
from utils.evaluation import reconstruction

NETWORK = [
    "--model_name=primus", "--hidden_size=12", "--num_heads=2", "--mlp_dim=16", "--num_layers=1",
    "--roi_x=16", "--roi_y=16", "--roi_z=24", "--space_x=12", "--space_y=12", "--space_z=14",
]  # fmt: skip
SHORT = ["--workers=0", "--noamp", "--skip_data_check", "--crops_per_scan=1", "--warmup_epochs=1", "--val_every=2"]


def a_list(phantoms: Path, folder: Path) -> Path:
    """A list of one labelled and two unlabelled scans, one of which has no label at all."""
    content = json.loads((phantoms / "dataset_0.json").read_text())
    training = content["training"]
    bare = [{"image": training[1]["image"]}, training[2]["image"]]
    content |= {"training": training[:1], "validation": content["validation"][:1], "unlabelled": bare, "test": []}
    (folder / "some.json").write_text(json.dumps(content))
    return folder / "some.json"


def run(flags: Sequence[str]) -> Path:
    pretrain.run([*NETWORK, *SHORT, *flags])
    return Path("runs") / next(flag for flag in flags if flag.startswith("--logdir")).split("=")[1]


def test_a_network_starts_from_what_a_run_leaves(
    run_main: Run, phantoms: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [f"--data_dir={phantoms}", f"--json_list={a_list(phantoms, in_tmp)}"]
    whole = run([*data, "--logdir=whole", "--max_epochs=2"])
    assert "3 scans train and 1 validate, without labels" in capsys.readouterr().out
    first = torch.load(whole / "model_final.pt", weights_only=True)["state_dict"]
    record = lines(whole)[-1]
    assert record["explained"] <= 1
    assert "dice" not in record
    assert (whole / "progress.png").exists()
    assert (whole / "validation.png").exists()

    weights = ["--vit_weights=runs/whole/model_final.pt", "--max_epochs=1", "--save_checkpoint", "--logdir=tuned"]
    run_main([*NETWORK, *SHORT, *data, *weights])
    screen = capsys.readouterr().out
    assert "its encoder from runs/whole/model_final.pt (a ViT of volumes" in screen
    tuned = torch.load(Path("runs/tuned/model_final.pt"), weights_only=True)["state_dict"]
    name = "vit.blocks.0.attn.qkv.weight"
    # a step of AdamW moves a weight by about the rate, 1e-4
    assert (tuned[name] - first[f"encoder.{name}"]).abs().max() < 1e-3


def test_interrupted_and_whole_runs_are_equal_to_the_last_bit(phantoms: Path, in_tmp: Path) -> None:
    flags = [f"--data_dir={phantoms}", f"--json_list={a_list(phantoms, in_tmp)}", "--lrschedule=constant"]
    whole = run([*flags, "--logdir=whole", "--max_epochs=2"])
    parts = run([*flags, "--logdir=parts", "--max_epochs=1"])
    run([*flags, "--logdir=parts", "--max_epochs=2", "--resume"])
    states = [torch.load(folder / "model_final.pt", weights_only=True)["state_dict"] for folder in (whole, parts)]
    assert equal(*states)


def test_a_signal_during_validation_stops_before_the_next_scan(
    phantoms: Path, in_tmp: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((phantoms / "dataset_0.json").read_text())
    assert len(content["validation"]) == 2
    calls = 0

    def ask_to_end(*_: Any) -> float:
        nonlocal calls
        calls += 1
        signal.raise_signal(signal.SIGTERM)
        return 0.0

    monkeypatch.setattr(reconstruction, "explained", ask_to_end)
    with pytest.raises(SystemExit) as stop:
        run([f"--data_dir={phantoms}", "--max_epochs=1", "--logdir=stopped"])
    assert stop.value.code == 128 + signal.SIGTERM
    assert calls == 1
    assert "stopped by SIGTERM after epoch 0 and " in capsys.readouterr().err


def test_all_machines_have_to_see_the_checkpoint_of_a_run_that_goes_on(
    phantoms: Path, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[list[Path]] = []
    monkeypatch.setattr(Process, "require_same_files", lambda self, paths: compared.append(list(paths)))
    flags = [f"--data_dir={phantoms}", f"--json_list={a_list(phantoms, in_tmp)}", "--max_epochs=1", "--logdir=first"]
    run(flags)
    folder = run([*flags, "--resume"])
    assert compared == [[], [folder / "model_final.pt"]]


def test_scans_of_a_folder(phantoms: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((phantoms / "dataset_0.json").read_text())
    images = [phantoms / entry["image"] for entry in content["training"][:3]]
    run([*["--input", *map(str, images)], "--logdir=folder", "--max_epochs=1"])
    assert "2 scans train and 1 validate, without labels" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model_name=segresnet"], "--model_name: segresnet can't be pre-trained"),
        (["--mask_ratio=1"], "--mask_ratio: must be at least 0.01 and below 1, not 1"),
        (["--resume_ckpt"], "unrecognized arguments: --resume_ckpt"),
        (["--feature_size=12"], "--feature_size is not for primus_autoencoder; leave it out"),
    ],
)
def test_what_it_cannot_do_is_one_line(
    flags: list[str], words: str, phantoms: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call: Callable[[Sequence[str]], Any] = pretrain.run
    network = [] if "--model_name" in flags[0] else NETWORK
    message = error_of(call, [*network, f"--data_dir={phantoms}", "--logdir=bad", *flags], capsys)
    assert words in message


def test_a_folder_with_one_scan_is_one_line(phantoms: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = json.loads((phantoms / "dataset_0.json").read_text())["training"][0]
    image = str(phantoms / entry["image"])
    message = error_of(pretrain.run, [*NETWORK, *SHORT, "--input", image, "--logdir=one"], capsys)
    assert f"--input {image}: holds one scan. Give two or more: one validates." in message


def test_a_list_that_trains_regions(phantoms: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = a_list(phantoms, in_tmp)
    regions = {"regions": {"whole": [1, 2], "core": [2]}, "regions_class_order": [1, 2]}
    labels = {"background": 0, "rim": 1, "core": 2}
    listed.write_text(json.dumps({**json.loads(listed.read_text()), **regions, "labels": labels}))
    flags = [f"--data_dir={phantoms}", f"--json_list={listed}", "--logdir=regions"]
    run([*flags, "--max_epochs=1"])
    folder = run([*flags, "--max_epochs=2", "--resume"])
    assert f"{folder}: continues from {folder / 'model_final.pt'}" in capsys.readouterr().out
    folders = ["--input", str(phantoms / "imagesTr"), "--out_channels=1", "--logdir=folders", "--max_epochs=1"]
    assert (run(folders) / "model_final.pt").exists()


@pytest.mark.parametrize("recipe", ["btcv", "btcv_2021", "hippocampus"])
def test_recipes_of_main_py_with_flags_that_do_nothing_here(recipe: str) -> None:
    flags = [f"@{REPOSITORY}/recipes/{recipe}.args"]
    assert idle_in_pretraining(parse_pretrain(flags)) == []  # but what main.py would do without them
    assert idle_in_pretraining(parse_pretrain([*flags, "--vit_lr=1e-5", "--loss=dice"])) == ["--loss", "--vit_lr"]


def test_an_average_of_the_weights(phantoms: Path, in_tmp: Path) -> None:
    flags = [f"--data_dir={phantoms}", f"--json_list={a_list(phantoms, in_tmp)}", "--max_epochs=1"]
    last = torch.load(run([*flags, "--logdir=last"]) / "model_final.pt", weights_only=True)
    mean = torch.load(run([*flags, "--logdir=mean", "--ema_decay=0.9"]) / "model_final.pt", weights_only=True)
    assert equal(mean["resume"]["trained"], last["state_dict"])
    assert not equal(mean["state_dict"], last["state_dict"])

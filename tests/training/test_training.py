"""Runs of both programs from the command line to the files that they leave, on phantoms and tiny networks."""

import csv
import json
import math
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from networks import build_network, precision
from tests.conftest import TINY, Run
from trainer import Learner
from utils.phantom import LABELS
from utils.training.losses import LOSSES

LOUD = ["--optim_lr=1e-2", "--warmup_epochs=1"]


def train(run_main: Run, phantoms: Path, name: str, *flags: str) -> Path:
    common = [f"--data_dir={phantoms}", f"--logdir={name}", "--workers=0", "--save_checkpoint"]
    run_main([*common, *LOUD, *TINY, *flags])
    return Path("runs") / name


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_seconds(folder: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines(folder)]


def weights(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def error_of(run: Run, argv: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The message that a command ends with; it ends with a non-zero status."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(list(argv))
    assert stop.value.code not in (0, None)
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert "Traceback" not in message
    return message


def test_what_a_run_leaves(run_main: Run, phantoms: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train(run_main, phantoms, "first", "--max_epochs=3", "--val_every=2")
    screen = capsys.readouterr().out
    assert "epoch 3/3: loss" in screen
    assert "right kidney" in screen
    assert "\r" not in screen

    assert json.loads((folder / "args.json").read_text())["max_epochs"] == 3
    records = lines(folder)
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert all(record["lr"] > 0 and record["seconds"] > 0 for record in records)
    assert ["dice" in record for record in records] == [False, True, True]
    assert set(records[1]["dice"]["organs"]) == set(LABELS[1:])
    for picture in ("progress.png", "validation.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")

    events = EventAccumulator(str(folder)).Reload()
    assert {"train/loss", "train/lr", "train/seconds", "validation_dice/mean", "validation_dice/right_kidney"} <= set(
        events.Tags()["scalars"]
    )
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3]
    assert events.Tags()["images"] == ["validation/label_and_prediction"]

    best, latest = (torch.load(folder / name, weights_only=True) for name in ("model.pt", "model_final.pt"))
    assert "resume" not in best
    assert latest["epoch"] == 3
    assert best["score"] == max(record["dice"]["mean"] for record in records if "dice" in record)
    assert best["labels"] == list(LABELS)


@pytest.mark.parametrize("workers", [0, 2])
def test_runs_of_one_seed_are_identical(run_main: Run, phantoms: Path, in_tmp: Path, workers: int) -> None:
    flags = ("--max_epochs=2", "--val_every=2", "--dropout_rate=0.1")
    first = train(run_main, phantoms, "first", *flags)
    second = train(run_main, phantoms, "second", *flags, f"--workers={workers}")
    other = train(run_main, phantoms, "other", *flags, "--seed=1")
    assert without_seconds(first) == without_seconds(second)
    assert equal(weights(first / "model_final.pt"), weights(second / "model_final.pt"))
    assert not equal(weights(first / "model_final.pt"), weights(other / "model_final.pt"))


@pytest.mark.parametrize("deep_supervision", [(), ("--deep_supervision",)], ids=["one", "all"])
def test_the_loss_that_is_named_is_minimised_at_one_resolution_or_all(
    run_main: Run, phantoms: Path, in_tmp: Path, deep_supervision: tuple[str, ...]
) -> None:
    losses = {}
    for name in LOSSES:
        folder = train(run_main, phantoms, name, "--max_epochs=1", f"--loss={name}", *deep_supervision)
        losses[name] = lines(folder)[0]["loss"]
        assert json.loads((folder / "args.json").read_text())["loss"] == name
    assert len(set(losses.values())) == len(LOSSES)
    assert 0 < losses["dice"] < 1  # 1 - Dice
    assert losses["dice_ce"] > losses["dice"] + 0.5 * math.log(14)  # the cross-entropy of 14 classes, hardly trained
    assert losses["dice"] < losses["dice_focal"] < losses["dice"] + math.log(2)  # focal: below the sigmoid's of 0
    assert (
        losses["dice_ce"] == lines(train(run_main, phantoms, "plain", "--max_epochs=1", *deep_supervision))[0]["loss"]
    )


def test_a_run_is_not_overwritten_in_silence(
    run_main: Run, phantoms: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(run_main, phantoms, "name", "--max_epochs=1")
    before = (folder / "model.pt").read_bytes()
    argv = [f"--data_dir={phantoms}", "--logdir=name", *TINY]
    message = error_of(run_main, argv, capsys)
    assert "runs/name holds a run already" in message
    assert "--overwrite" in message
    # a fault that shows before training starts leaves the old run alone even with --overwrite
    error_of(run_main, [*argv, "--overwrite", "--json_list=missing.json"], capsys)
    assert (folder / "model.pt").read_bytes() == before
    (folder / "notes.txt").write_text("mine")
    train(run_main, phantoms, "name", "--max_epochs=1", "--seed=5", "--overwrite")
    assert (folder / "model.pt").read_bytes() != before
    assert (folder / "notes.txt").read_text() == "mine"


def test_without_save_checkpoint_no_weights_are_kept_and_it_says_so(
    run_main: Run, phantoms: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_main([f"--data_dir={phantoms}", "--logdir=none", "--workers=0", "--max_epochs=1", *TINY])
    assert "no weights will be kept; --save_checkpoint keeps them" in capsys.readouterr().out
    assert not list(Path("runs/none").glob("*.pt"))


def test_what_may_surprise_is_said(
    run_main: Run, phantoms: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((phantoms / "dataset_0.json").read_text())
    Path("both.json").write_text(json.dumps({**content, "validation": content["training"][:1]}))
    flags = ["--json_list=both.json", "--fold=2", "--workers=0", "--max_epochs=1", "--save_checkpoint", *TINY]
    flags.append("--roi_y=32")
    run_main([f"--data_dir={phantoms}", *flags])
    screen = capsys.readouterr().out
    assert "note: 1 of the validation scans train as well" in screen
    assert 'note: --fold 2 changes nothing, since no entry of both.json has a "fold"' in screen
    assert "note: the run ends within its 50 epochs of warm-up" in screen
    assert "note: crops are not rotated by 90°, since --roi_x and --roi_y differ" in screen
    assert "no weights will be kept" not in screen


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_scans(
    run_main: Run, phantoms: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train(run_main, phantoms, "good", "--max_epochs=1")
    broken = torch.load("runs/good/model_final.pt", weights_only=True)["state_dict"]
    broken["out.conv.conv.weight"][:] = 1e38  # finite as such, which weights have to be
    torch.save(broken, "broken.pth")
    argv = [f"--data_dir={phantoms}", "--logdir=bad", "--workers=0", "--max_epochs=2", "--batch_size=4", *TINY]
    message = error_of(
        run_main, [*argv, "--resume_ckpt", "--pretrained_dir=.", "--pretrained_model_name=broken.pth"], capsys
    )
    assert "the loss is nan in epoch 1, in the batch of img000" in message
    assert "Last good checkpoint: none" in message


def running_variance(network: nn.Module) -> torch.Tensor:
    return next(buffer for name, buffer in network.named_buffers() if name.endswith("running_var"))


@pytest.mark.parametrize("broken", [lambda network: next(network.parameters()), running_variance])
@pytest.mark.parametrize(("stop", "batch_size", "after"), [(False, 4, "the last step"), (True, 1, "step 1")])
def test_weights_that_a_step_broke_are_not_saved(
    run_main: Run, phantoms: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    broken: Callable[[nn.Module], torch.Tensor], stop: bool, batch_size: int, after: str,
) -> None:  # fmt: skip
    update = Learner.update

    def breaks(learner: Learner) -> float:
        lr = update(learner)
        broken(learner.network).data.view(-1)[0] = float("inf")
        return lr

    def breaks_when_asked_to_end(learner: Learner, loss: torch.Tensor, parts: int) -> float:
        signal.raise_signal(signal.SIGTERM)
        return add_gradients(learner, loss, parts)

    add_gradients = Learner.add_gradients
    monkeypatch.setattr(Learner, "update", breaks)
    if stop:
        monkeypatch.setattr(Learner, "add_gradients", breaks_when_asked_to_end)
    argv = [f"--data_dir={phantoms}", "--logdir=bad", "--workers=0", "--max_epochs=1", *TINY, "--norm_name=batch"]
    argv += [f"--batch_size={batch_size}", "--save_checkpoint", "--skip_data_check"]
    message = error_of(run_main, argv, capsys)
    assert f"the weights aren't finite after {after} of epoch 1. Last good checkpoint: none" in message
    assert not Path("runs/bad/model_final.pt").exists()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),  # of a CPU
        MemoryError(),
    ],
)
def test_a_device_that_is_out_of_memory_is_one_line(
    run_main: Run,
    phantoms: Path,
    in_tmp: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr(Learner, "loss", full)
    argv = [f"--data_dir={phantoms}", "--logdir=full", "--workers=0", "--max_epochs=2", *TINY]
    message = error_of(run_main, argv, capsys)
    assert "cpu is out of memory after " in message
    assert "Last good checkpoint: none. Give a smaller --batch_size" in message
    assert "--optim_lr" not in message


def test_testing_gives_the_dice_of_training_s_validation(
    run_main: Run, run_test: Run, phantoms: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(run_main, phantoms, "run", "--max_epochs=6", "--val_every=3", "--optim_lr=3e-2")
    capsys.readouterr()
    run_test([f"--data_dir={phantoms}", f"--pretrained_dir={folder}", "--pretrained_model_name=model_final.pt"])
    screen = capsys.readouterr().out
    validated = lines(folder)[-1]["dice"]
    scores = json.loads((folder / "scores" / "scores.json").read_text())
    assert validated["mean"] > 0
    assert scores["mean"] == pytest.approx(validated["mean"], abs=1e-6)
    for organ, dice in validated["organs"].items():
        assert scores["organs"][organ] == (dice if dice is None else pytest.approx(dice, abs=1e-6))
    assert [scan["scan"] for scan in scores["scans"]] == ["img0005", "img0006"]
    assert "img0005" in screen
    assert f"{scores['mean']:.4f}" in screen

    with open(folder / "scores" / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["scan"] for row in rows] == ["img0005", "img0006", "mean"]
    assert float(rows[-1]["mean"]) == pytest.approx(scores["mean"])
    assert float(rows[0]["liver"]) == pytest.approx(scores["scans"][0]["organs"]["liver"])

    run_test(
        [
            *(f"--data_dir={phantoms}", f"--pretrained_dir={folder}", "--pretrained_model_name=model.pt"),
            *("--split=test", "--output_dir=elsewhere"),
        ]
    )
    assert [scan["scan"] for scan in json.loads(Path("elsewhere/scores.json").read_text())["scans"]] == ["img0007"]


@pytest.mark.parametrize(("flags", "name"), [([], "bfloat16"), (["--noamp"], "float32")])
def test_mixed_precision_trains_and_tests_alike(
    run_main: Run,
    run_test: Run,
    phantoms: Path,
    in_tmp: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    name: str,
) -> None:
    monkeypatch.setattr(precision, "_cpu_multiplies_bfloat16", lambda: True)
    folder = train(
        run_main, phantoms, "run", "--max_epochs=4", "--val_every=4", "--optim_lr=3e-2", "--roi_x=32", *flags
    )
    assert f"on cpu in {name}" in capsys.readouterr().out
    assert all(tensor.dtype == torch.float32 for tensor in weights(folder / "model.pt").values())
    run_test([f"--data_dir={phantoms}", f"--pretrained_dir={folder}", "--pretrained_model_name=model.pt"])
    assert f"on cpu in {name}" in capsys.readouterr().out
    scores = json.loads((folder / "scores" / "scores.json").read_text())
    assert scores["mean"] == pytest.approx(lines(folder)[-1]["dice"]["mean"], abs=1e-6)


def test_a_flag_that_contradicts_the_checkpoint(
    run_main: Run, run_test: Run, phantoms: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(run_main, phantoms, "run", "--max_epochs=1")
    argv = [f"--data_dir={phantoms}", f"--pretrained_dir={folder}", "--pretrained_model_name=model.pt"]
    assert "--feature_size 32 contradicts its 2" in error_of(run_test, [*argv, "--feature_size=32"], capsys)


def test_the_four_command_lines_of_2021(
    run_main: Run, run_test: Run, phantoms: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As its README has them but for --data_dir, and with a few epochs of a tiny network."""
    short = [f"--data_dir={phantoms}", "--max_epochs=2", *TINY]
    common = "--batch_size=1 --fold=0 --optim_lr=1e-4 --lrschedule=warmup_cosine --infer_overlap=0.5 --save_checkpoint"
    run_main([*common.split(), "--logdir=unetr_test", *short])

    # weights in the published format: a bare state dict with the four dead tensors, and TorchScript
    Path("pretrained_models").mkdir()
    state = weights(Path("runs/unetr_test/model.pt"))
    dead = {"vit.patch_embedding.cls_token": torch.zeros(1, 1, 12)}
    for name in ("encoder2.blocks.0.1", "encoder2.blocks.1.1", "encoder3.blocks.0.1"):
        size = 4 if name.startswith("encoder2") else 8
        dead[f"{name}.conv3.conv.weight"] = torch.zeros(size, size, 1, 1, 1)
    torch.save({**state, **dead}, "pretrained_models/UNETR_model_best_acc.pth")
    content = torch.load("runs/unetr_test/model.pt", weights_only=True)
    network = build_network("unetr", **content["network"]["options"]).eval()
    network.load_state_dict(state)
    torch.jit.trace(network, torch.zeros(1, 1, 16, 16, 16)).save("pretrained_models/UNETR_model_best_acc.pt")  # type: ignore[no-untyped-call]

    pretrained = [*common.split(), "--logdir=unetr_pretrained", "--pretrained_dir=./pretrained_models/"]
    capsys.readouterr()
    run_main([*pretrained, "--pretrained_model_name=UNETR_model_best_acc.pth", "--resume_ckpt", *short])
    assert "4 that no forward pass reads left out" in capsys.readouterr().out
    shutil.rmtree("runs/unetr_pretrained")
    run_main([*pretrained, "--noamp", "--pretrained_model_name=UNETR_model_best_acc.pt", "--resume_jit", *short])
    capsys.readouterr()

    network_flags = [flag for flag in short if "epochs" not in flag]
    run_test(
        ["--infer_overlap=0.5", "--pretrained_dir=./pretrained_models/", "--saved_checkpoint=ckpt", *network_flags]
    )
    assert "Dice on the network's grid" in capsys.readouterr().out
    scores = json.loads(Path("pretrained_models/scores/scores.json").read_text())
    assert scores["mean"] == pytest.approx(lines(Path("runs/unetr_test"))[-1]["dice"]["mean"], abs=1e-6)


def test_two_channels_and_zscore(run_main: Run, run_test: Run, in_tmp: Path, random: np.random.Generator) -> None:
    entries = []
    for number in range(3):
        label = np.zeros((20, 22, 18), np.uint8)
        label[5:14, 6:15, 4:12] = 1
        image = np.stack([label * 900.0 + 4000, label * -0.2], axis=-1) + random.normal(0, 0.05, (*label.shape, 2))
        nib.save(nib.Nifti1Image(image.astype(np.float32), np.eye(4)), f"image{number}.nii.gz")
        nib.save(nib.Nifti1Image(label, np.eye(4)), f"label{number}.nii.gz")
        entries.append({"image": f"image{number}.nii.gz", "label": f"label{number}.nii.gz"})
    Path("mr.json").write_text(json.dumps({"training": entries[:2], "validation": entries[2:]}))
    run_main(
        [
            *("--data_dir=.", "--json_list=mr.json", "--logdir=mr", "--in_channels=2", "--out_channels=2"),
            *("--intensity=zscore", "--workers=0", "--max_epochs=40", "--val_every=40", "--save_checkpoint", *TINY),
            *("--space_x=1", "--space_y=1", "--space_z=1", "--feature_size=4", "--optim_lr=1e-2", "--warmup_epochs=1"),
        ]
    )
    dice = lines(Path("runs/mr"))[-1]["dice"]["mean"]
    assert dice > 0.8  # a bright box on a dark ground is easy
    run_test(["--data_dir=.", "--json_list=mr.json", "--pretrained_dir=runs/mr", "--pretrained_model_name=model.pt"])
    assert json.loads(Path("runs/mr/scores/scores.json").read_text())["mean"] == pytest.approx(dice, abs=1e-6)


def test_anatomical_flips_tell_what_they_leave_out(
    run_main: Run, phantoms: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(run_main, phantoms, "anatomical", "--max_epochs=1", "--flips=anatomical")
    screen = capsys.readouterr().out
    assert "note: crops are not rotated by 90°, which would mix labels up" in screen
    pairs = "right kidney with left kidney, right adrenal gland with left adrenal gland"
    assert f"note: flips along x swap {pairs}" in screen
    assert "crops are not flipped" not in screen
    assert torch.load("runs/anatomical/model.pt", weights_only=True)["flips"] == "anatomical"
    train(run_main, phantoms, "plain", "--max_epochs=1", "--flips=anatomical", "--RandFlipd_prob=0")
    assert torch.load("runs/plain/model.pt", weights_only=True)["flips"] == "none"
    assert "note: --flips anatomical does nothing, since --RandFlipd_prob is 0" in capsys.readouterr().out
    listed = json.loads((phantoms / "dataset_0.json").read_text())
    labels = {**listed["labels"], "1": "upper spleen", "4": "lower spleen"}
    nameless = {name: part for name, part in listed.items() if name != "labels"}
    sideless = {**listed, "labels": {str(value): f"label {value}" for value in range(14)}}
    for name, content in (("z", {**listed, "labels": labels}), ("nameless", nameless), ("sideless", sideless)):
        path = Path(f"{name}.json").resolve()
        path.write_text(json.dumps(content))
        train(run_main, phantoms, name, "--max_epochs=1", "--flips=anatomical", f"--json_list={path}")
    screen = capsys.readouterr().out
    assert screen.count("note: crops are not flipped along z, which would mix labels up") == 1
    assert screen.count("names no labels, so that --flips anatomical can't tell left from right") == 1
    assert screen.count("note: no label has a side by its name, and flips along x swap none") == 1

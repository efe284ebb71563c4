"""Runs that stop and go on: by a signal, from a damaged file, with other flags."""

import errno
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import main
import trainer
from benchmarks.interrupted_training import differences
from tests.conftest import TINY, FileSizeLimit, Run
from tests.training.test_training import equal, error_of, lines, train, weights
from utils.checkpoints.read import read_checkpoint
from utils.evaluation import validation

FLAGS = ("--max_epochs=4", "--val_every=2", "--save_every=1", "--dropout_rate=0.1")


@pytest.fixture(scope="module")
def trained(run_main: Run, phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four epochs with four steps each that nothing disturbs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("trained"))
        return train(run_main, phantoms, "whole", *FLAGS).absolute()


@pytest.fixture
def whole(trained: Path, in_tmp: Path) -> Path:
    """The run of :func:`trained`, for a test to do with as it likes."""
    return Path(shutil.copytree(trained, "runs/whole"))


class InStep:
    """Does something within step ``number`` of the training that follows, counted from 1."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int, action: Callable[[], object]) -> None:
        self.steps = 0
        original = trainer.Learner.add_gradients

        def add_gradients(*args: Any) -> float:
            result = original(*args)
            self.steps += 1
            if self.steps == number:
                action()
            return result

        monkeypatch.setattr(trainer.Learner, "add_gradients", add_gradients)


def status_of(run: Callable[[], object]) -> int:
    with pytest.raises(SystemExit) as stop:
        run()
    assert isinstance(stop.value.code, int)
    return stop.value.code


@pytest.mark.parametrize(
    ("number", "status", "workers"), [(signal.SIGTERM, 143, 2), (signal.SIGINT, 130, 0), (signal.SIGUSR1, 138, 0)]
)
def test_a_signal_ends_the_step_saves_all_and_says_how_to_go_on(
    run_main: Run,
    phantoms: Path,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    status: int,
    workers: int,
) -> None:
    flags = (*FLAGS, "--resume", f"--workers={workers}", "--save_every=100")
    InStep(monkeypatch, 7, lambda: signal.raise_signal(number))
    assert status_of(lambda: train(run_main, phantoms, "stopped", *flags)) == status
    error = capsys.readouterr().err
    assert error == (
        f"stopped by {number.name} after epoch 1 and 3 scans of the next; runs/stopped/model_final.pt has it all: "
        "the same command with --resume, and without --overwrite, goes on\n"
    )
    stopped = train(run_main, phantoms, "stopped", *flags)
    screen = capsys.readouterr().out
    assert "runs/stopped: continues from runs/stopped/model_final.pt" in screen
    assert "going on after epoch 1 and 3 scans of the next" in screen
    assert differences(whole, stopped) == []


def test_a_run_with_every_option_goes_on_as_if_it_had_not_stopped_and_is_tested_alike(
    run_main: Run, run_test: Run, phantoms: Path, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--ema_decay=0.7", "--clip_grad_norm=0.5", "--norm_name=batch", "--vit_lr=1e-3", "--vit_reg_weight=0.1")
    network = ("--patch_size=8", "--roi_z=24", "--drop_path_rate=0.3", "--deep_supervision")
    flags = (*FLAGS, *options, *network, "--resume")
    undisturbed = train(run_main, phantoms, "undisturbed", *flags)
    run_test([f"--data_dir={phantoms}", f"--pretrained_dir={undisturbed}", "--pretrained_model_name=model_final.pt"])
    scores = json.loads((undisturbed / "scores" / "scores.json").read_text())
    assert scores["mean"] == pytest.approx(lines(undisturbed)[-1]["dice"]["mean"], abs=1e-6)
    InStep(monkeypatch, 7, lambda: signal.raise_signal(signal.SIGTERM))
    assert status_of(lambda: train(run_main, phantoms, "stopped", *flags)) == 143
    assert differences(undisturbed, train(run_main, phantoms, "stopped", *flags)) == []


def test_what_is_kept_is_the_average_and_what_goes_on_are_the_weights(
    run_main: Run, phantoms: Path, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The average by hand, from the weights after each of the four steps of an epoch."""
    seen: list[dict[str, torch.Tensor]] = []
    original = trainer.Learner.update

    def update(learner: trainer.Learner) -> float:
        lr = original(learner)
        seen.append({name: tensor.clone() for name, tensor in learner.network.state_dict().items()})
        return lr

    monkeypatch.setattr(trainer.Learner, "update", update)
    flags = ("--max_epochs=1", "--ema_decay=0.75", "--optim_lr=1e-2", "--lrschedule=constant")
    content = read_checkpoint(train(run_main, phantoms, "averaged", *flags) / "model_final.pt")
    assert len(seen) == 4
    assert equal(content["resume"]["trained"], seen[3])
    for name, kept in content["state_dict"].items():
        first, second, third, fourth = (step[name] for step in seen)
        expected = 0.421875 * first + 0.140625 * second + 0.1875 * third + 0.25 * fourth  # 0.75³, 0.75²/4, 0.75/4, 1/4
        torch.testing.assert_close(kept, expected, atol=1e-6, rtol=0)
    assert not equal(content["state_dict"], seen[3])
    assert equal(weights(Path("runs/averaged/model.pt")), content["state_dict"])
    without = read_checkpoint(train(run_main, phantoms, "averaged", "--resume", "--max_epochs=2") / "model_final.pt")
    assert "trained" not in without["resume"]
    assert equal(without["state_dict"], seen[7])


@pytest.mark.parametrize(("score", "line"), [(0.99, "best 0.9900 after epoch 6"), (-1.0, "after epoch 5")])
def test_a_best_model_of_a_later_epoch_than_the_latest_checkpoint_is_replaced_by_a_better_one_alone(
    run_main: Run, phantoms: Path, whole: Path, capsys: pytest.CaptureFixture[str], score: float, line: str
) -> None:
    """As a kill leaves them, which comes between two saves of the latest checkpoint."""
    best = whole / "model.pt"
    torch.save({**torch.load(best, weights_only=True), "score": score, "epoch": 6}, best)
    train(run_main, phantoms, "whole", *FLAGS, "--resume", "--max_epochs=5")
    assert capsys.readouterr().out.splitlines()[-2].endswith(line)
    assert (read_checkpoint(best)["score"] == score) == (score == 0.99)


def test_a_damaged_best_model_is_replaced(run_main: Run, phantoms: Path, whole: Path) -> None:
    (whole / "model.pt").write_bytes(b"damaged")
    train(run_main, phantoms, "whole", *FLAGS, "--resume", "--max_epochs=5")
    assert read_checkpoint(whole / "model.pt")["epoch"] == 5


@pytest.mark.parametrize("flags", [(), ("--resume",)])
def test_a_run_that_ended_since_the_folder_was_claimed_is_kept(
    run_main: Run, phantoms: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
) -> None:  # fmt: skip
    notes = main.training_notes

    def another_trains_meanwhile(*args: Any) -> list[str]:
        shutil.copytree(whole, "runs/late")
        return notes(*args)

    monkeypatch.setattr(main, "training_notes", another_trains_meanwhile)
    assert status_of(lambda: train(run_main, phantoms, "late", *FLAGS, *flags)) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: --logdir late: runs/late holds a run already.")
    assert differences(whole, Path("runs/late")) == []


def test_a_signal_during_validation_leaves_the_epoch_to_be_validated(
    run_main: Run, phantoms: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = 0
    original = validation.dice_per_structure

    def ask_to_end_after_the_first_scan(*args: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 1:
            signal.raise_signal(signal.SIGTERM)
        return original(*args)

    monkeypatch.setattr(validation, "dice_per_structure", ask_to_end_after_the_first_scan)
    assert status_of(lambda: train(run_main, phantoms, "stopped", *FLAGS, "--resume")) == 143
    assert calls == 1  # the second scan was not predicted
    assert "after epoch 1 and 4 scans of the next" in capsys.readouterr().err
    assert differences(whole, train(run_main, phantoms, "stopped", *FLAGS, "--resume")) == []


def test_a_signal_to_a_run_that_keeps_no_weights(
    run_main: Run, phantoms: Path, in_tmp: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    InStep(monkeypatch, 2, lambda: signal.raise_signal(signal.SIGTERM))
    argv = [f"--data_dir={phantoms}", "--workers=0", "--max_epochs=1"]
    assert status_of(lambda: run_main([*argv, *TINY])) == 143
    assert "nothing was kept, since --save_checkpoint is off" in capsys.readouterr().err
    assert not list(Path("runs/test").glob("*.pt"))


def test_a_full_disk_is_said_at_each_attempt_and_ends_the_run_with_an_error(
    run_main: Run, phantoms: Path, whole: Path, file_size_limit: FileSizeLimit, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = train(run_main, phantoms, "stopped", *FLAGS, "--max_epochs=2", "--lrschedule=constant")
    before = (stopped / "model_final.pt").read_bytes()
    capsys.readouterr()
    flags = (*FLAGS, "--resume", "--max_epochs=4", "--lrschedule=constant")
    with file_size_limit(len(before) // 2):
        assert status_of(lambda: train(run_main, phantoms, "stopped", *flags)) == 1
    screen = capsys.readouterr()
    assert screen.out.count("not saved: runs/stopped/model_final.pt: can't be written (File too large)") == 2
    assert "epoch 4/4: loss" in screen.out
    assert screen.err.startswith("error: the run has ended, but runs/stopped/model_final.pt: can't be written")
    assert screen.err.count("\n") == 1
    assert (stopped / "model_final.pt").read_bytes() == before
    assert not list(stopped.glob("*.part"))
    constant = train(run_main, phantoms, "constant", *FLAGS, "--lrschedule=constant")
    assert differences(constant, train(run_main, phantoms, "stopped", *flags)) == []


def test_a_damaged_latest_checkpoint_gives_way_to_the_one_before(
    run_main: Run, phantoms: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, "runs/damaged")
    latest = Path("runs/damaged/model_final.pt")
    content = latest.read_bytes()
    latest.write_bytes(content[: len(content) // 2])
    capsys.readouterr()
    resumed = train(run_main, phantoms, "damaged", *FLAGS, "--resume")
    screen = capsys.readouterr().out
    assert "moved to runs/damaged/set_aside/model_final.pt: runs/damaged/model_final.pt: can't be read" in screen
    assert "runs/damaged: continues from runs/damaged/model_previous.pt" in screen
    assert "going on after epoch 3" in screen
    assert differences(whole, resumed) == []
    assert (resumed / "set_aside/model_final.pt").read_bytes() == content[: len(content) // 2]


def test_where_no_checkpoint_can_be_read_a_run_begins_anew_and_deletes_nothing(
    run_main: Run, phantoms: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, "runs/damaged")
    for name in ("model_final.pt", "model_previous.pt"):
        (Path("runs/damaged") / name).write_bytes(b"")
    best = Path("runs/damaged/model.pt").read_bytes()
    capsys.readouterr()
    resumed = train(run_main, phantoms, "damaged", *FLAGS, "--resume")
    assert "runs/damaged: starts anew" in capsys.readouterr().out
    assert differences(whole, resumed) == []
    assert (resumed / "set_aside/model.pt").read_bytes() == best
    assert {"model_final.pt", "model_previous.pt", "model.pt", "metrics.jsonl", "args.json", "progress.png"} <= {
        file.name for file in (resumed / "set_aside").iterdir()
    }


@pytest.mark.parametrize(
    "error", [OSError(errno.ESTALE, "Stale file handle"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_checkpoints_that_can_not_be_read_for_a_while_are_not_set_aside(
    run_main: Run,
    phantoms: Path,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    before = sorted(path.name for path in whole.iterdir())

    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch, "load", fails)
    argv = [f"--data_dir={phantoms}", "--logdir=whole", "--save_checkpoint", "--resume", *TINY, *FLAGS]
    message = error_of(run_main, argv, capsys)
    assert f"runs/whole/model_final.pt: can't be read now ({error}). Launch again when it can be." in message
    assert sorted(path.name for path in whole.iterdir()) == before


def test_weights_alone_in_the_place_of_the_latest_give_way_too(
    run_main: Run, phantoms: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for earlier in ("model_final.pt", "model_final.pt.2"):
        shutil.copy(whole / "model.pt", whole / "model_final.pt")
        capsys.readouterr()
        train(run_main, phantoms, "whole", *FLAGS, "--resume")
        screen = capsys.readouterr().out
        assert f"moved to runs/whole/set_aside/{earlier}: runs/whole/model_final.pt: holds weights alone" in screen
        assert "continues from runs/whole/model_previous.pt" in screen


def test_a_best_model_without_checkpoints_is_not_deleted(
    run_main: Run, phantoms: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = (whole / "model.pt").read_bytes()
    for name in ("model_final.pt", "model_previous.pt"):
        (whole / name).unlink()
    capsys.readouterr()
    train(run_main, phantoms, "whole", *FLAGS, "--resume")
    screen = capsys.readouterr().out
    assert "moved to runs/whole/set_aside/model.pt: no checkpoint is left to continue from" in screen
    assert "runs/whole: starts anew" in screen
    assert (whole / "set_aside" / "model.pt").read_bytes() == best


def test_a_checkpoint_of_another_version_is_an_error_and_stays(
    run_main: Run, phantoms: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(whole / "model_final.pt", weights_only=True)
    argv = [f"--data_dir={phantoms}", "--logdir=whole", "--save_checkpoint", "--resume", *TINY, *FLAGS]
    for version, words in ((1, "an older version"), (4, "a newer version")):
        torch.save({**content, "format": version}, whole / "model_final.pt")
        assert f"runs/whole/model_final.pt: was made by {words}" in error_of(run_main, argv, capsys)
        assert not (whole / "set_aside").exists()


def test_a_run_from_a_checkpoint_is_saved_at_once_and_can_be_resumed_by_the_same_command(
    run_main: Run, phantoms: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (*FLAGS, "--checkpoint=runs/whole/model_previous.pt", "--resume", "--save_every=100")
    seen: list[int] = []
    InStep(monkeypatch, 1, lambda: seen.append(read_checkpoint(Path("runs/copy/model_final.pt"))["epoch"]))
    copy = train(run_main, phantoms, "copy", *flags)
    assert seen == [3]
    assert "runs/copy: starts from runs/whole/model_previous.pt" in capsys.readouterr().out
    train(run_main, phantoms, "copy", *flags, "--max_epochs=5")
    assert "runs/copy: continues from runs/copy/model_final.pt" in capsys.readouterr().out
    assert [record["epoch"] for record in lines(copy)] == [1, 2, 3, 4, 5]


def test_a_run_that_has_its_epochs_says_so(
    run_main: Run, phantoms: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    train(run_main, phantoms, "copy", *FLAGS, "--checkpoint=runs/whole/model_final.pt")
    assert "note: nothing is left to train: 4 epochs are done; a higher --max_epochs goes on" in capsys.readouterr().out
    assert equal(weights(Path("runs/copy/model_final.pt")), weights(whole / "model_final.pt"))


def test_other_names_of_labels_are_another_data_list(
    run_main: Run, phantoms: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((phantoms / "dataset_0.json").read_text())
    names = {**content["labels"], "1": "milt"}
    Path("renamed.json").write_text(json.dumps({**content, "labels": names}))
    argv = [f"--data_dir={phantoms}", "--logdir=whole", "--save_checkpoint", "--resume", "--workers=0", *TINY, *FLAGS]
    argv += ["--json_list=renamed.json"]
    message = error_of(run_main, argv, capsys)
    assert "its run had 'spleen' for label 1, which the data list calls 'milt'" in message
    assert "--allow_change json_list" in message
    run_main([*argv, "--max_epochs=6", "--allow_change", "json_list"])
    assert next(iter(lines(whole)[3]["dice"]["organs"])) == "spleen"
    assert next(iter(lines(whole)[5]["dice"]["organs"])) == "milt"


def test_a_run_that_is_done_stays_as_it_is(run_main: Run, phantoms: Path, whole: Path) -> None:
    before = {file.name: file.read_bytes() for file in whole.iterdir() if file.suffix in (".pt", ".png", ".jsonl")}
    train(run_main, phantoms, "whole", *FLAGS, "--resume")
    assert before == {
        file.name: file.read_bytes() for file in whole.iterdir() if file.suffix in (".pt", ".png", ".jsonl")
    }


def test_more_epochs_and_another_rate_take_effect_and_are_said(
    run_main: Run, phantoms: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (
        "--resume",
        "--max_epochs=6",
        "--optim_lr=5e-3",
        "--lrschedule=constant",
        "--augment=strong",
        "--loss=dice",
    )
    capsys.readouterr()
    train(run_main, phantoms, "whole", *FLAGS, *flags)
    screen = capsys.readouterr().out
    assert "note: --max_epochs is 6 from here on; it was 4" in screen
    assert "note: --optim_lr is 0.005 from here on; it was 0.01" in screen
    assert "note: --lrschedule is constant from here on; it was warmup_cosine" in screen
    assert "note: --augment is strong from here on; it was published" in screen
    assert "note: --loss is dice from here on; it was dice_ce" in screen
    records = lines(whole)
    assert [record["epoch"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert [record["lr"] for record in records[4:]] == [0.005, 0.005]


def test_another_folder_continues_from_a_checkpoint_of_a_run(run_main: Run, phantoms: Path, whole: Path) -> None:
    run = "--checkpoint=runs/whole/model_previous.pt"
    copy = train(run_main, phantoms, "copy", *FLAGS, run)
    assert equal(weights(whole / "model_final.pt"), weights(copy / "model_final.pt"))
    assert [record["epoch"] for record in lines(copy)] == [1, 2, 3, 4]


def test_a_run_from_before_parts_had_rates_of_their_own_goes_on(run_main: Run, phantoms: Path, whole: Path) -> None:
    content = torch.load(whole / "model_previous.pt", weights_only=True)
    for name in ("patch_size", "drop_path_rate", "deep_supervision"):
        del content["network"]["options"][name]
    vit, others = content["resume"]["optimizer"]["param_groups"]
    content["resume"]["optimizer"]["param_groups"] = [{**others, "params": vit["params"] + others["params"]}]
    torch.save(content, "earlier.pt")
    copy = train(run_main, phantoms, "copy", *FLAGS, "--checkpoint=earlier.pt")
    assert equal(weights(whole / "model_final.pt"), weights(copy / "model_final.pt"))


def test_another_network_or_preprocessing_is_refused_unless_named(
    run_main: Run, phantoms: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [f"--data_dir={phantoms}", "--logdir=whole", "--workers=0", "--save_checkpoint", "--resume"]
    other = [*argv, *TINY, *FLAGS, "--mlp_dim=24", "--a_max=300", "--optim_name=sgd"]
    message = error_of(run_main, other, capsys)
    assert "--mlp_dim 24 contradicts its 12" in message
    assert "--a_max 300 contradicts its 250" in message
    assert "--optim_name sgd contradicts its adamw" in message
    assert message.count("\n") == 1
    for fixed in ("--optim_name=sgd", "--mlp_dim=24", "--roi_x=32"):  # UNETR embeds the positions of a window's patches
        message = error_of(run_main, [*argv, *TINY, *FLAGS, "--a_max=300", fixed], capsys)
        assert message.endswith("Give the settings of its run.\n")
    assert "--allow_change" in error_of(run_main, [*argv, *TINY, *FLAGS, "--a_max=300"], capsys)

    flags = ("--resume", "--max_epochs=5", "--a_max=300", "--allow_change", "a_max")
    train(run_main, phantoms, "whole", *FLAGS, *flags)
    assert "note: --a_max is 300 from here on; it was 250" in capsys.readouterr().out
    assert read_checkpoint(whole / "model_final.pt")["preprocessing"]["a_max"] == 300


def test_another_data_list_is_refused_unless_named(
    run_main: Run, phantoms: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((phantoms / "dataset_0.json").read_text())
    argv = [f"--data_dir={phantoms}", "--logdir=whole", "--workers=0", "--save_checkpoint", "--resume", *TINY, *FLAGS]
    Path("fewer.json").write_text(json.dumps({**content, "training": content["training"][1:]}))
    message = error_of(run_main, [*argv, "--json_list=fewer.json"], capsys)
    assert "its run had other training scans (1 differ, imagesTr/img0001.nii.gz first)" in message
    assert "--allow_change json_list" in message
    Path("turned.json").write_text(json.dumps({**content, "validation": content["validation"][::-1]}))
    message = error_of(run_main, [*argv, "--json_list=turned.json"], capsys)
    assert "its run had other validation scans (they came in another order)" in message
    run_main([*argv, "--json_list=fewer.json", "--max_epochs=5", "--allow_change", "json_list"])
    assert lines(whole)[-1]["epoch"] == 5


def test_another_annotation_is_refused_unless_named(
    run_main: Run, phantoms: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((phantoms / "dataset_0.json").read_text())
    argv = [f"--data_dir={phantoms}", "--logdir=whole", "--workers=0", "--save_checkpoint", "--resume", *TINY, *FLAGS]
    first, *others = content["training"]
    Path("ignores.json").write_text(json.dumps({**content, "labels": {**content["labels"], "255": "ignore"}}))
    lacking = {**first, "not_annotated": [content["labels"]["1"]]}
    Path("lacks.json").write_text(json.dumps({**content, "training": [lacking, *others]}))
    for name in ("ignores", "lacks"):
        message = error_of(run_main, [*argv, f"--json_list={name}.json"], capsys)
        assert 'its run had another "ignore" in the labels, or other structures that are "not_annotated"' in message
        assert "--allow_change json_list" in message
    more = ["--json_list=ignores.json", "--max_epochs=5", "--allow_change", "json_list"]
    run_main([*argv, *more])
    state = read_checkpoint(whole / "model_final.pt")["resume"]
    assert state["annotation"]["ignore"] == 255
    torch.save(
        {
            **torch.load(whole / "model_final.pt", weights_only=True),
            "resume": {key: value for key, value in state.items() if key != "annotation"},
        },
        whole / "model_final.pt",
    )
    run_main([*argv, "--max_epochs=6"])  # of a version that kept no annotation
    assert lines(whole)[-1]["epoch"] == 6


def test_the_same_scans_in_another_place_are_the_same(run_main: Run, phantoms: Path, whole: Path) -> None:
    shutil.copytree(phantoms, "moved")
    train(run_main, Path("moved"), "whole", *FLAGS, "--resume", "--max_epochs=5")
    assert lines(whole)[-1]["epoch"] == 5


def test_only_the_latest_checkpoint_can_be_continued(
    run_main: Run, phantoms: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [f"--data_dir={phantoms}", "--logdir=other", *TINY, *FLAGS]
    message = error_of(run_main, [*argv, "--checkpoint=runs/whole/model.pt"], capsys)
    assert "runs/whole/model.pt: holds weights alone, nothing to continue from. Give the run's model_final" in message
    content = torch.load(whole / "model_final.pt", weights_only=True)
    torch.save({**content, "format": 1}, "older.pt")
    assert "older.pt: was made by an older version" in error_of(run_main, [*argv, "--checkpoint=older.pt"], capsys)
    torch.save({**content, "format": 4}, "newer.pt")
    assert "newer.pt: was made by a newer version" in error_of(run_main, [*argv, "--checkpoint=newer.pt"], capsys)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--resume"], "--resume needs --save_checkpoint"),
        (["--checkpoint=a.pt", "--resume_ckpt"], "--resume_ckpt and --checkpoint exclude each other"),
        (["--resume", "--save_checkpoint", "--overwrite"], "--resume continues a run and --overwrite deletes one"),
        (["--adapt_weights"], "--adapt_weights needs weights to adapt"),
        (["--allow_change", "a_max"], "--allow_change is for a run that goes on"),
        (["--allow_change", "speed", "--checkpoint=a.pt"], "argument --allow_change: must be among in_channels"),
        (["--save_every=0"], "argument --save_every: must be at least 1"),
    ],
)
def test_flags_that_contradict_each_other(
    run_main: Run, flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in error_of(run_main, flags, capsys)


@pytest.mark.parametrize("name", ["args.json", "x.part", "model.pt"])
def test_a_folder_where_a_file_of_the_run_should_be_is_one_line(
    run_main: Run, phantoms: Path, in_tmp: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (Path("runs/run") / name).mkdir(parents=True)
    with pytest.raises(SystemExit):
        run_main([f"--data_dir={phantoms}", "--logdir=run", "--overwrite", "--workers=0", "--max_epochs=1", *TINY])
    assert f"error: runs/run/{name}: can't be removed (Is a directory)" in capsys.readouterr().err


def test_nothing_is_moved_through_a_link(
    run_main: Run, phantoms: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("runs/run").mkdir(parents=True)
    Path("elsewhere").mkdir()
    Path("runs/run/set_aside").symlink_to(Path("elsewhere").absolute())
    Path("runs/run/model_final.pt").write_bytes(b"damaged")
    with pytest.raises(SystemExit):
        run_main(
            [
                f"--data_dir={phantoms}",
                "--logdir=run",
                "--resume",
                "--save_checkpoint",
                "--workers=0",
                "--max_epochs=1",
                *TINY,
            ]
        )
    assert "runs/run/set_aside: is a link" in capsys.readouterr().err
    assert not list(Path("elsewhere").iterdir())

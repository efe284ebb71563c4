"""Cross-validation: which commands it runs, what it refuses, and what it makes of the folds' scores."""

import csv
import hashlib
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints.conftest import NETWORK_FILE
from tests.conftest import REPOSITORY, TINY, Run
from utils.checkpoints.load import weight_files
from utils.config.flags import parse_crossval
from utils.config.messages import name_flags
from utils.crossval import Fold, check_folds, main, plan_network, run_command
from utils.data.channels import Region
from utils.data.data_list import DataList
from utils.distributed.process import Process
from utils.io.scan import Scan
from utils.system.errors import InputError, Stopped
from utils.system.signals import StopRequest
from utils.training.run_folder import claim_group

CPU = Process(torch.device("cpu"))
FLAGS = ["--json_list=folds.json", "--logdir=all", "--workers=0", "--max_epochs=1", "--device=cpu", *TINY]


class Programs:
    """Runs the two programs in this process, and remembers which."""

    def __init__(self, run_main: Run, run_test: Run, statuses: dict[str, int] | None = None) -> None:
        self.run = {"main.py": run_main, "test.py": run_test}
        self.statuses = statuses or {}
        self.log: list[str] = []

    def __call__(self, command: Sequence[str]) -> int:
        interpreter, path, *flags = command
        assert interpreter == sys.executable
        assert Path(path).is_file()
        assert Path(path).name == "test.py" or {"--resume", "--save_checkpoint"} <= set(flags)
        name = f"{Path(path).name} {next(flag for flag in flags if flag.startswith('--fold='))}"
        self.log.append(name)
        if name not in self.statuses:
            self.run[Path(path).name](flags)
        return self.statuses.get(name, 0)


def cross_validate(programs: Callable[[Sequence[str]], int], *flags: str) -> None:
    main(*parse_crossval([*FLAGS, *flags]), "the command", programs, CPU)


@pytest.fixture(scope="module")
def finished(
    run_main: Run, run_test: Run, phantoms: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """The folder of a cross-validation of two folds, and the programs that it ran."""
    folder = tmp_path_factory.mktemp("crossval")
    content = json.loads((phantoms / "dataset_0.json").read_text())
    training = [{**entry, "fold": number % 2} for number, entry in enumerate(content["training"][:3])]
    programs = Programs(run_main, run_test)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("folds.json").write_text(json.dumps({"labels": content["labels"], "training": training}))
        cross_validate(programs, f"--data_dir={phantoms}", "--optim_lr=1e-2", "--warmup_epochs=1")
    return folder, programs.log


@pytest.fixture
def again(
    finished: tuple[Path, list[str]], phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """The flags of that cross-validation, in a copy of its folder."""
    shutil.copytree(finished[0], tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return [f"--data_dir={phantoms}", "--optim_lr=1e-2", "--warmup_epochs=1"]


def test_every_scan_has_a_mask_by_the_network_that_did_not_see_it(finished: tuple[Path, list[str]]) -> None:
    folder, log = finished
    mirrored = ["test.py --fold=0", "test.py --fold=1"]
    assert log == ["main.py --fold=0", "test.py --fold=0", "main.py --fold=1", "test.py --fold=1", *mirrored]
    made_by = {}
    for name in ("img0001", "img0002", "img0003"):
        assert (folder / f"runs/all/out_of_fold/{name}.nii.gz").is_file()
        record = json.loads((folder / f"runs/all/out_of_fold/records/{name}.json").read_text())
        made_by[name] = record["made_with"]["weights"][0][0]
    # the list's entries are of fold 0, 1, 0
    weights = [f"runs/all/fold{fold}/model_final.pt" for fold in (0, 1)]
    assert list(made_by.values()) == [weights[0], weights[1], weights[0]]
    for path, names in zip(weights, (["img0002.nii.gz"], ["img0001.nii.gz", "img0003.nii.gz"]), strict=True):
        seen = torch.load(folder / path, weights_only=True)["resume"]["scans"]["training"]
        assert [Path(files[0]).name for files in seen] == names


def test_what_the_folds_tell_is_in_their_networks(finished: tuple[Path, list[str]]) -> None:
    folder = finished[0] / "runs/all"
    found = json.loads((folder / "postprocessing.json").read_text())
    assert len(found["largest component"]) == 13
    before, after = (
        statistics.mean(
            statistics.mean(organ["dice"] for organ in scan["organs"].values() if organ["dice"] is not None)
            for name in ("img0001", "img0002", "img0003")
            for scan in [json.loads((folder / place / "records" / f"{name}.json").read_text())]
        )
        for place in ("out_of_fold", "out_of_fold_mirrored")
    )
    assert found["mirrored passes"]["before"] == pytest.approx(before)
    assert found["mirrored passes"]["after"] == pytest.approx(after)
    for name in ("model.pt", "model_final.pt"):
        said = [torch.load(folder / f"fold{fold}" / name, weights_only=True)["from_folds"] for fold in (0, 1)]
        assert said[0] == said[1]
        assert said[0]["mirrored"] == found["mirrored passes"]["kept"]
        assert said[0]["models"] == {}  # three scans are too few


def test_without_postprocessing_nothing_is_tried(again: list[str], run_main: Run, run_test: Run) -> None:
    Path("runs/all/postprocessing.json").unlink()
    shutil.rmtree("runs/all/out_of_fold_mirrored")
    programs = Programs(run_main, run_test)
    cross_validate(programs, *again, "--no_postprocessing")
    assert programs.log == []
    assert not Path("runs/all/postprocessing.json").exists()


def test_the_tables_sum_up_the_scans_of_all_folds(finished: tuple[Path, list[str]]) -> None:
    folder = finished[0] / "runs/all"
    with open(folder / "out_of_fold/measurements.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 13
    liver = [float(row["dice"]) for row in rows if row["organ"] == "liver"]
    content = json.loads((folder / "crossval.json").read_text())
    scores = content["scores"]["dice"]
    assert scores["mean over scans"]["organs"]["liver"] == pytest.approx(statistics.mean(liver))
    assert scores["sd over scans"]["organs"]["liver"] == pytest.approx(statistics.stdev(liver))
    by_scan = {row["scan"]: float(row["dice"]) for row in rows if row["organ"] == "liver"}
    folds = [(by_scan["img0001"] + by_scan["img0003"]) / 2, by_scan["img0002"]]
    assert [scores[f"fold {fold}"]["organs"]["liver"] for fold in (0, 1)] == pytest.approx(folds)
    assert scores["sd over folds"]["organs"]["liver"] == pytest.approx(statistics.stdev(folds))
    assert scores["scans counted"]["organs"]["liver"] == 3

    assert (content["seed"], content["epochs"], content["scans"], content["command"]) == (0, 1, 3, "the command")
    digest = hashlib.sha256((finished[0] / "folds.json").read_bytes()).hexdigest()
    metrics = [json.loads((folder / f"fold{fold}/metrics.jsonl").read_text()) for fold in (0, 1)]
    for fold, entry in enumerate(content["folds"]):
        assert (entry["sha256"], entry["training"], entry["validation"]) == (digest, 1 + fold, 2 - fold)
        assert entry["seconds of training steps"] == pytest.approx(metrics[fold]["seconds"], abs=0.06)
        assert "cores of" in entry["machines"][0]
    with open(folder / "crossval.csv", newline="") as file:
        table = {(row["score"], row["fold"]): row for row in csv.DictReader(file)}
    assert len(table) == 3 * 7
    assert float(table["dice", "mean over scans"]["liver"]) == pytest.approx(statistics.mean(liver))
    assert {score for score, _ in table} == {"dice", "nsd", "hd95_mm"}


def test_what_is_finished_is_passed_over(
    again: list[str], run_main: Run, run_test: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    programs = Programs(run_main, run_test)
    before = Path("runs/all/crossval.csv").read_text()
    Path("runs/all/crossval.csv").unlink()
    cross_validate(programs, *again)
    assert programs.log == []
    assert Path("runs/all/crossval.csv").read_text() == before
    assert "the tables leave out" not in capsys.readouterr().out
    for name in ("model.pt", "metrics.jsonl"):  # a fold of another machine, of which only what is scored was copied
        Path(f"runs/all/fold1/{name}").unlink()
    cross_validate(programs, *again, "--folds", "1")
    assert programs.log == []
    assert json.loads(Path("runs/all/crossval.json").read_text())["folds"][0]["seconds of training steps"] is None
    assert "note: the tables leave out fold0; without --folds they are of all" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "gone", "status", "log"),
    [
        # a mask that is missing, or was made with another overlap, is made again
        ([], "out_of_fold/img0002.nii.gz", {"test.py --fold=1": 7}, ["test.py --fold=1"]),
        (["--infer_overlap=0.25"], None, {"test.py --fold=0": 7}, ["test.py --fold=0"]),
        # a run with fewer epochs or without its latest checkpoint goes on
        (["--max_epochs=2"], None, {"main.py --fold=0": 7}, ["main.py --fold=0"]),
        (["--max_epochs=2", "--folds", "1"], None, {"main.py --fold=1": 7}, ["main.py --fold=1"]),
        ([], "fold1/model_final.pt", {"main.py --fold=1": 7}, ["main.py --fold=1"]),
    ],
)
def test_what_is_not_finished_goes_on(
    again: list[str],
    run_main: Run,
    run_test: Run,
    flags: list[str],
    gone: str | None,
    status: dict[str, int],
    log: list[str],
) -> None:
    if gone is not None:
        (Path("runs/all") / gone).unlink()
    programs = Programs(run_main, run_test, status)
    with pytest.raises(SystemExit) as stop:
        cross_validate(programs, *again, *flags)
    assert stop.value.code == 7
    assert programs.log == log


def test_one_name_pattern_is_the_ensemble(again: list[str]) -> None:
    found = weight_files(Path("runs/all"), ["fold*/model_final.pt"])
    assert found == [Path(f"runs/all/fold{fold}/model_final.pt") for fold in (0, 1)]


def test_a_network_of_ones_own_whose_windows_divide_otherwise_than_ours(
    run_main: Run, run_test: Run, phantoms: Path, in_tmp: Path
) -> None:
    """Its windows are multiples of 5, and the default of 96 voxels is none."""
    Path("plain.py").write_text(NETWORK_FILE)
    content = json.loads((phantoms / "dataset_0.json").read_text())
    entries = [{**entry, "fold": number} for number, entry in enumerate(content["training"][:2])]
    Path("folds.json").write_text(json.dumps({"labels": content["labels"], "training": entries}))
    flags = [f"--data_dir={phantoms}", "--json_list=folds.json", "--logdir=own", "--workers=0", "--max_epochs=1"]
    flags += ["--device=cpu", "--roi_x=10", "--roi_y=10", "--roi_z=10", *TINY[:3], "--skip_data_check"]
    flags += ["--RandFlipd_prob=0", "--width=3"]

    def run(*more: str) -> list[str]:
        programs = Programs(run_main, run_test)
        main(*parse_crossval([*flags, *more]), "the command", programs, CPU)
        return programs.log

    assert run("--model_name=plain.py") == [
        *("main.py --fold=0", "test.py --fold=0", "main.py --fold=1", "test.py --fold=1")
    ]
    assert set(json.loads(Path("runs/own/crossval.json").read_text())["scores"]) == {"dice", "nsd", "hd95_mm"}
    Path("plain.py").rename("moved.py")
    assert run("--model_name=moved.py") == []
    with pytest.raises(InputError, match="`width` 4 contradicts its 3"):
        run("--model_name=moved.py", "--width=4")


@pytest.mark.parametrize(
    ("status", "code", "words"), [(3, 3, "ended with status 3"), (-signal.SIGKILL, 137, "was killed by SIGKILL")]
)
def test_a_fold_that_fails_ends_it_with_its_status(
    again: list[str],
    run_main: Run,
    run_test: Run,
    capsys: pytest.CaptureFixture[str],
    status: int,
    code: int,
    words: str,
) -> None:
    Path("runs/all/fold1/model_final.pt").unlink()
    programs = Programs(run_main, run_test, {"main.py --fold=1": status})
    with pytest.raises(SystemExit) as stop:
        cross_validate(programs, *again)
    assert stop.value.code == code
    message = capsys.readouterr().err
    assert message.startswith(f"error: fold 1: main.py {words}")
    assert message.count("\n") == 1
    assert Path("runs/all/fold0/model_final.pt").exists()


def test_overwrite_begins_all_folds_anew(again: list[str], run_main: Run, run_test: Run) -> None:
    Path("runs/all/fold1/notes.txt").write_text("mine")
    programs = Programs(run_main, run_test, {"main.py --fold=0": 1})
    with pytest.raises(InputError, match="No such file"):  # a fault that shows before leaves the runs alone
        cross_validate(programs, "--data_dir=.", "--overwrite")
    assert Path("runs/all/fold1/model_final.pt").exists()
    with pytest.raises(SystemExit):
        cross_validate(programs, *again, "--overwrite")
    # a launch without --overwrite must not take the old folds for finished ones
    assert [path.name for path in Path("runs/all/fold1").iterdir() if path.name != ".lock"] == ["notes.txt"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--seed=5"], "--seed 5 contradicts its 0. Give the flags of its run"),
        (["--hidden_size=24"], "--hidden_size 24 contradicts its 12"),
        (["--vit_weights=vit.pth"], r"--vit_weights vit\.pth contradicts its off"),
        (["--folds", "0", "9"], "--fold can be one of 0, 1"),
        (["--logdir=all/fold0"], "holds a run of main.py. Give another name"),
    ],
)
def test_what_does_not_fit_the_folds_there(again: list[str], flags: list[str], words: str) -> None:
    with pytest.raises(InputError) as error:
        cross_validate(Programs(pytest.fail, pytest.fail), *again, *flags)
    assert re.search(words, name_flags(str(error.value)))


def test_folds_are_passed_over_with_or_without_the_numbers_that_the_lists_give(again: list[str]) -> None:
    """The checkpoints record them as flags, as they did when flags were the only way."""
    recorded = torch.load("runs/all/fold0/model_final.pt", weights_only=True)["resume"]["flags"]
    assert (recorded["in_channels"], recorded["out_channels"]) == (1, 14)
    for flags in ([], ["--in_channels=1", "--out_channels=14"]):
        cross_validate(Programs(pytest.fail, pytest.fail), *again, *flags)
        content = json.loads(Path("runs/all/crossval.json").read_text())
        assert (content["flags"]["in_channels"], content["flags"]["out_channels"]) == (1, 14)


def test_folds_without_names_have_the_classes_of_their_run_or_flags(again: list[str]) -> None:
    content = json.loads(Path("folds.json").read_text())
    Path("folds.json").write_text(json.dumps({**content, "labels": None}))
    with pytest.raises(InputError, match="its run had other scans or labels"):
        cross_validate(Programs(pytest.fail, pytest.fail), *again)
    with pytest.raises(InputError, match="`out_channels` 3 contradicts its 14"):
        cross_validate(Programs(pytest.fail, pytest.fail), *again, "--out_channels=3")


def test_a_run_that_was_broken_off_is_none_of_fewer_epochs(again: list[str]) -> None:
    """Its learning rate had another way to go."""
    path = Path("runs/all/fold0/model_final.pt")
    content = torch.load(path, weights_only=True)
    content["resume"]["flags"]["max_epochs"] = 34
    torch.save(content, path)
    with pytest.raises(InputError, match=r"fold0/model_final\.pt: stopped after 1 of 34 epochs\. Give the flags"):
        cross_validate(Programs(pytest.fail, pytest.fail), *again)


def test_flags_that_an_older_run_does_not_record_had_their_defaults(again: list[str]) -> None:
    path = Path("runs/all/fold0/model_final.pt")
    content = torch.load(path, weights_only=True)
    del content["resume"]["flags"]["augment"]
    torch.save(content, path)
    with pytest.raises(InputError, match="`augment` strong contradicts its published"):
        cross_validate(Programs(pytest.fail, pytest.fail), *again, "--augment=strong")


def test_other_scans_than_a_finished_fold_had(again: list[str]) -> None:
    content = json.loads(Path("folds.json").read_text())
    content["training"][0]["fold"] = 1
    Path("folds.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"model_final\.pt: its run had other scans or labels"):
        cross_validate(Programs(pytest.fail, pytest.fail), *again)


def test_another_annotation_than_a_finished_fold_had(again: list[str]) -> None:
    content = json.loads(Path("folds.json").read_text())
    content["training"][0]["not_annotated"] = [content["labels"]["1"]]
    Path("folds.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r'model_final\.pt: its run had another "ignore" or "not_annotated" than'):
        cross_validate(Programs(pytest.fail, pytest.fail), *again, "--skip_data_check")


def test_masks_of_scans_that_lay_elsewhere_are_to_be_moved(again: list[str], phantoms: Path) -> None:
    shutil.copytree(phantoms, "moved")
    words = (
        r"is the mask of .*, and would be .* Move runs/all/out_of_fold elsewhere; the same command makes it anew\.\Z"
    )
    with pytest.raises(InputError, match=words):
        cross_validate(Programs(pytest.fail, pytest.fail), "--data_dir=moved", *again[1:])


def test_a_mask_that_was_changed_is_to_be_moved(again: list[str], run_main: Run, run_test: Run) -> None:
    mask = Path("runs/all/out_of_fold/img0002.nii.gz")
    changed = mask.read_bytes() + b"\0"
    mask.write_bytes(changed)
    flags = [*again, "--infer_overlap=0.25", "--no_postprocessing"]
    with pytest.raises(InputError, match=r"img0002.*: was changed .*\. Move runs/all/out_of_fold elsewhere;"):
        cross_validate(Programs(run_main, run_test), *flags)
    assert mask.read_bytes() == changed


def test_torchrun_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(InputError, match="Launch it without torchrun"):
        cross_validate(Programs(pytest.fail, pytest.fail))


def test_the_group_s_folder_is_locked(in_tmp: Path) -> None:
    program = "import fcntl; fcntl.lockf(open('runs/name/.lock', 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    command = [sys.executable, "-c", program]
    with claim_group("name"):
        assert b"BlockingIOError" in subprocess.run(command, capture_output=True, check=False).stderr
    subprocess.run(command, check=True)


def scan(name: str, folder: str = "images") -> Scan:
    return Scan(name, (Path(folder) / f"{name}.nii.gz",), Path("labels") / f"{name}.nii.gz")


def fold(number: int, trains: str, validates: str, **changes: Any) -> Fold:
    parts = {"training": list(map(scan, trains)), "validation": list(map(scan, validates)), "test": [], "labels": None}
    data = DataList(path=Path(f"dataset_{number}.json"), folder=Path("."), **{**parts, **changes})
    return Fold(number, data, Path("runs"), [], [])


def test_folds_that_share_the_scans_out() -> None:
    assert check_folds([fold(0, "bc", "a"), fold(1, "ac", "b"), fold(2, "ab", "c")], 2) == []
    notes = check_folds([fold(0, "bcdefg", "a"), fold(1, "acdefg", "b")], 2)
    assert notes == ["none of folds 0, 1 validates 5 of the scans that train (c, d, e, …)"]


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (
            fold(1, "c", "ab"),
            r"dataset_1\.json: a validates in fold 0 and in fold 1\. .*, or remove lists of an ear",
        ),
        (fold(1, "ab", "b"), r"dataset_1\.json: b trains and validates in fold 1"),
        (fold(1, "a", "b", labels=("background", "liver")), "names other labels than dataset_0.json"),
        (fold(1, "a", "", validation=[scan("a", "elsewhere")]), "would both be called a. Rename"),
    ],
)
def test_folds_that_do_not(second: Fold, words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_folds([fold(0, "b", "a"), second], 2)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({"labels": ("background", "liver")}, {"labels": ("background", "liver", "spleen")}, "names other labels than"),
        ({"labels": ("background", "liver")}, {"labels": None}, r"dataset_1\.json: names other labels than dataset_0"),
        ({}, {"regions": (Region("all", (1,)),)}, r"dataset_1\.json: names other regions than dataset_0"),
    ],
)
def test_folds_whose_lists_name_different_numbers(first: dict[str, Any], second: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_folds([fold(0, "b", "a", **first), fold(1, "a", "b", **second)], None)
    assert check_folds([fold(0, "b", "a", **first), fold(1, "a", "b", **first)], None) == []


def test_folds_whose_lists_name_different_channels() -> None:
    """The files, which aren't there, say nothing."""
    folds = [fold(0, "b", "a", modalities=("CT",)), fold(1, "a", "b", modalities=("T1", "T2"))]
    args, _ = parse_crossval([])
    with pytest.raises(InputError) as error:
        plan_network(folds, args)
    assert str(error.value) == (
        "dataset_1.json: its scans have another number of channels (2) than those of dataset_0.json (1). Mend one of "
        "them, or give `in_channels`."
    )
    assert plan_network(folds, parse_crossval(["--in_channels=3"])[0]).config.in_channels == 3
    assert plan_network(folds[1:], args).config.in_channels == 2


def test_main_gets_all_flags_but_those_of_the_folds(tmp_path: Path) -> None:
    recipe = tmp_path / "some.args"
    recipe.write_text("--a_min -100 --noamp\n")
    argv = [f"@{recipe}", "--folds", "0", "2", "--optim_lr", "1e-3", "--overwrite", "--logdir=x"]
    args, flags = parse_crossval(argv)
    assert flags == ["--a_min", "-100", "--noamp", "--optim_lr", "1e-3", "--logdir=x"]
    assert (args.folds, args.overwrite, args.a_min) == ([0, 2], True, -100)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--fold=0", "--fold is for one run of main.py; give --folds"),
        ("--folds 1 1", "--folds names a fold twice"),
        ("--checkpoint=x.pt", "--checkpoint and --allow_change are for one run"),
        ("--world_size=2 --distributed", "--world_size: folds are trained on one machine"),
        ("--resume --overwrite", "--resume continues a run and --overwrite deletes one"),
        ("--roi_x 90", "--roi_x, --roi_y, --roi_z must be multiples of 16 for unetr, not 90 × 96 × 96"),
    ],
)
def test_flags_that_make_no_sense_end_with_one_line(flags: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_crossval(flags.split())
    message = capsys.readouterr().err
    assert stop.value.code == 2
    assert words in message
    assert "python -m utils.crossval --help" in message
    assert message.count("\n") == 1


TIDY = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def end(*_):
    time.sleep(0.2)
    (folder / "saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
(folder / "ready").touch()
time.sleep(60)
"""


def test_a_signal_reaches_the_program_and_ends_in_order(tmp_path: Path) -> None:
    def send() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    stop = StopRequest()
    with stop.listening():
        threading.Thread(target=send).start()
        with pytest.raises(Stopped):
            run_command(stop, [sys.executable, "-c", TIDY, str(tmp_path)])
    assert (tmp_path / "saved").exists()


def test_a_program_ends_in_order_when_the_command_is_killed(tmp_path: Path) -> None:
    code = "import sys; from utils.crossval import StopRequest, run_command; run_command(StopRequest(), sys.argv[1:])"
    command = subprocess.Popen([sys.executable, "-c", code, sys.executable, "-c", TIDY, str(tmp_path)], cwd=REPOSITORY)
    wait_for(tmp_path / "ready")
    command.kill()
    assert command.wait() == -signal.SIGKILL
    wait_for(tmp_path / "saved")


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 30
    while not file.exists():
        assert time.monotonic() < deadline, file
        time.sleep(0.01)


def test_a_program_s_status() -> None:
    stop = StopRequest()
    status = partial(run_command, stop)
    assert status([sys.executable, "-c", "exit(5)"]) == 5
    with stop.deferred():  # a signal between two programs starts no other
        stop.number = signal.SIGTERM
        with pytest.raises(Stopped):
            status([sys.executable, "-c", "import time; time.sleep(60)"])

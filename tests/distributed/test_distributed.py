"""Devices, and processes that train together."""

import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import main as training_program
import trainer
from tests.conftest import REPOSITORY, TINY
from tests.processes import Group, start_group
from tests.training.test_training import lines, weights
from utils.checkpoints.description import describe
from utils.config.flags import parse_pretrain, parse_train
from utils.config.messages import name_flags
from utils.data.loaders import CroppedScans
from utils.distributed.launch import LaunchSettings, choose_device, launch
from utils.distributed.process import Process
from utils.distributed.rendezvous import RankInfo
from utils.evaluation import validation
from utils.system.errors import InputError

Parse = Callable[[Sequence[str]], Any]


def test_the_cpu_serves_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_device(None) == torch.device("cpu")
    with pytest.raises(InputError, match="`device` cuda: CUDA devices on this machine: 0"):
        choose_device("cuda")


def test_a_process_takes_the_gpu_of_its_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert choose_device(None, local_rank=3) == torch.device("cuda", 3)
    assert choose_device("cuda", local_rank=1) == torch.device("cuda", 1)
    assert choose_device("cuda:2", local_rank=0) == torch.device("cuda", 2)


def test_shards_hold_each_scan_once() -> None:
    parts = [Process(torch.device("cpu"), RankInfo(rank, 3)).shard(list(range(7))) for rank in range(3)]
    assert parts == [[0, 3, 6], [1, 4], [2, 5]]


@pytest.mark.parametrize("device", [None, "cpu"])
def test_distributed_with_no_gpu_and_no_torchrun_offers_gloo(
    monkeypatch: pytest.MonkeyPatch, device: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(InputError, match="over gloo: torchrun --nproc_per_node=2"):
        launch(print, LaunchSettings(distributed=True, device=device))


def test_one_gpu_for_all_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(InputError, match="`device` cuda:1: with `distributed` each process has a GPU of its own"):
        launch(print, LaunchSettings(distributed=True, device="cuda:1"))


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match=r"process 3 of this machine has no GPU left.*torchrun --nproc_per_node=2 "):
        choose_device(None, local_rank=2)


@pytest.mark.parametrize(
    ("missing", "value"), [("MASTER_ADDR", None), ("WORLD_SIZE", "two"), ("WORLD_SIZE", "1"), ("MASTER_PORT", "")]
)
def test_an_incomplete_environment(monkeypatch: pytest.MonkeyPatch, missing: str, value: str | None) -> None:
    whole = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, text in {**whole, missing: value}.items():
        if text is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, text)
    with pytest.raises(InputError, match=r"the environment variable RANK is set|the environment says RANK 1 of WORLD"):
        launch(print, LaunchSettings(distributed=True, device="cpu"))


@pytest.mark.parametrize("parse", [parse_train, parse_pretrain])
def test_overwriting_at_each_restart_is_refused(
    parse: Parse, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(SystemExit):
        parse(["--overwrite"])
    assert (
        "--overwrite would delete the run at each of torchrun's --max-restarts; give --resume"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("parse", [parse_train, parse_pretrain])
def test_machines_without_distributed_are_refused(parse: Parse, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--world_size=2"])
    assert "--world_size is for --distributed; give both, or neither" in capsys.readouterr().err


def test_a_machine_s_number_is_below_their_count(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_train(["--world_size=2", "--rank=2"])
    assert "--rank 2 must be below --world_size 2: machines count from 0" in capsys.readouterr().err


def test_torchrun_without_the_flag_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="`distributed`: is off, though this is one of 2 processes"):
        launch(print, LaunchSettings(device="cpu"))


def test_the_main_process_prints_settings_as_the_program_spells_them(capsys: pytest.CaptureFixture[str]) -> None:
    for rank in range(2):
        Process(torch.device("cpu"), RankInfo(rank, 2), spell=name_flags).say("`max_epochs` is 2")
    assert capsys.readouterr().out == "--max_epochs is 2\n"


def test_a_spawned_process_spells_settings_too(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The second of two machines never starts."""
    monkeypatch.delenv("RANK", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    settings = LaunchSettings(distributed=True, device="cpu", world_size=2, dist_url=url, dist_timeout=1.0)
    with pytest.raises(SystemExit):
        launch(print, settings, name_flags)
    assert "error: rank 0 of 2: waited 1 s (--dist_timeout) for rank 1 to start" in capfd.readouterr().err


def test_two_processes_under_torchrun(phantoms: Path, in_tmp: Path) -> None:
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
        *(str(REPOSITORY / "main.py"), "--distributed", f"--data_dir={phantoms}", "--logdir=two", "--workers=0"),
        *("--device=cpu", "--max_epochs=1", "--save_checkpoint", "--optim_lr=1e-2", *TINY),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 1/1: loss") == 1
    assert "2 processes" in done.stdout
    test = [sys.executable, str(REPOSITORY / "test.py"), f"--data_dir={phantoms}", "--workers=0"]
    subprocess.run(
        [*test, "--pretrained_dir=runs/two", "--pretrained_model_name=model.pt"], check=True, capture_output=True
    )
    validated = json.loads(Path("runs/two/metrics.jsonl").read_text())["dice"]["mean"]
    scores = json.loads(Path("runs/two/scores/scores.json").read_text())
    assert [scan["scan"] for scan in scores["scans"]] == ["img0005", "img0006"]
    assert scores["mean"] == pytest.approx(validated, abs=1e-6)


def patch(target: Any, name: str, value: object) -> None:
    """Replace an attribute until the process ends."""
    setattr(target, name, value)


def in_one_process(argv: Sequence[str]) -> None:
    training_program.run([*argv, "--device=cpu"])


def flags(data: Path, name: str, *more: str) -> list[str]:
    common = [f"--data_dir={data}", f"--logdir={name}", "--workers=0", "--save_checkpoint", "--noamp"]
    return [*common, *TINY, "--crops_per_scan=1", *more]


@pytest.fixture
def seven(phantoms: Path, in_tmp: Path) -> Path:
    """A data list with six training and seven validation scans."""
    data = in_tmp / "seven"
    shutil.copytree(phantoms, data)
    shutil.copy(data / "imagesTr" / "img0001.nii.gz", data / "imagesTr" / "img0007.nii.gz")
    shutil.copy(data / "labelsTr" / "label0001.nii.gz", data / "labelsTr" / "label0007.nii.gz")
    entries = [{"image": f"imagesTr/img000{n}.nii.gz", "label": f"labelsTr/label000{n}.nii.gz"} for n in range(1, 8)]
    (data / "dataset_0.json").write_text(json.dumps({"training": entries[:6], "validation": entries}))
    return data


def test_two_processes_are_one_with_twice_the_batch(phantoms: Path, in_tmp: Path) -> None:
    """Twenty steps with the default optimizer and learning rates."""
    schedule = ("--max_epochs=10", "--val_every=10")
    group = start_group(2, flags(phantoms, "two", *schedule))
    in_one_process(flags(phantoms, "one", *schedule, "--batch_size=2"))
    in_one_process(flags(phantoms, "accumulated", *schedule, "--accumulate=2"))
    assert group.wait() == [0, 0], group.texts
    two, one, accumulated = (weights(Path("runs") / name / "model_final.pt") for name in ("two", "one", "accumulated"))
    start = torch.load("runs/one/model_final.pt", weights_only=True)
    assert start["epoch"] * 2 == 20
    for name, tensor in two.items():
        torch.testing.assert_close(tensor, one[name], rtol=0, atol=1e-5)
        torch.testing.assert_close(tensor, accumulated[name], rtol=0, atol=1e-7)
    dice = [lines(Path("runs") / name)[-1]["dice"]["mean"] for name in ("two", "one", "accumulated")]
    assert dice == pytest.approx([dice[0]] * 3, abs=1e-6)
    losses = [[line["loss"] for line in lines(Path("runs") / name)] for name in ("two", "one")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    # all of them have trained: AdamW moves a weight by about the rate at each step, and the rates add up to 2.2e-4
    description = describe(start)
    assert description is not None
    torch.manual_seed(0)
    before = description.build().state_dict()
    moved = max(float((two[name] - tensor).abs().max()) for name, tensor in before.items())
    assert 1e-4 < moved < 3e-4


def _print_what_validates() -> None:
    original, table = training_program.score_scans, validation.organ_table

    def printing(network: Any, loader: Any, **options: Any) -> Any:
        print("validates", *(item["name"] for item in loader.dataset), flush=True)
        return original(network, loader=loader, **options)

    def printing_scans(scores: Any) -> str:
        print("scored", *scores.scans, flush=True)
        return table(scores)

    patch(training_program, "score_scans", printing)
    patch(validation, "organ_table", printing_scans)


def test_three_processes_validate_each_of_seven_scans_once(seven: Path) -> None:
    schedule = ("--max_epochs=1", "--optim_lr=1e-2", "--warmup_epochs=1")
    group = start_group(3, flags(seven, "three", *schedule), before=_print_what_validates)
    in_one_process(flags(seven, "one", *schedule, "--accumulate=3"))
    assert group.wait() == [0, 0, 0], group.texts
    printed = [line.split() for text in group.texts for line in text.splitlines()]
    shares = [words[1:] for words in printed if words[:1] == ["validates"]]
    names = [f"img000{number}" for number in range(1, 8)]
    assert [len(share) for share in shares] == [3, 2, 2]
    assert sorted(name for share in shares for name in share) == names
    assert [words[1:] for words in printed if words[:1] == ["scored"]] == [names] * 3
    three, one = (lines(Path("runs") / name)[0] for name in ("three", "one"))
    assert three["dice"]["mean"] == pytest.approx(one["dice"]["mean"], abs=1e-6)
    assert "".join(group.texts).count("epoch 1/1: loss") == 1


def _print_what_trains() -> None:
    original = CroppedScans.__getitem__

    def printing(self: CroppedScans, key: tuple[int, int]) -> Any:
        print("trains", *key, flush=True)
        return original(self, key)

    patch(CroppedScans, "__getitem__", printing)


def _in_the_fourth_step(action: Callable[[], object]) -> None:
    """Let rank 1 do something before the forward pass of its fourth step."""
    original = trainer.Learner.loss
    steps = []

    def loss(*args: Any) -> Any:
        steps.append(1)
        if len(steps) == 4 and os.environ["RANK"] == "1":
            action()
        return original(*args)

    patch(trainer.Learner, "loss", loss)


def _print_and_stop_in_the_fourth_step() -> None:
    _print_what_trains()
    _in_the_fourth_step(lambda: os.kill(os.getpid(), signal.SIGTERM))


@pytest.mark.parametrize("size", [1, 3])
def test_the_rest_of_an_epoch_is_trained_by_another_number_of_processes(seven: Path, size: int) -> None:
    """Two processes take three steps an epoch, and are stopped in the first step of the second epoch."""
    argv = flags(seven, "run", "--max_epochs=2", "--resume")
    group = start_group(2, argv, before=_print_and_stop_in_the_fourth_step)
    assert group.wait() == [143, 143], group.texts
    assert "".join(group.texts).count("stopped by SIGTERM after epoch 1 and 2 scans of the next; ") == 1
    rest = start_group(size, argv, before=_print_what_trains)
    assert rest.wait() == [0] * size, rest.texts
    printed = [
        line.split()[1:] for text in (*group.texts, *rest.texts) for line in text.splitlines() if "trains" in line
    ]
    first, second = (sorted(int(index) for epoch, index in printed if epoch == name) for name in ("0", "1"))
    assert first == list(range(6))
    repeated = -4 % size  # four scans are left
    assert len(second) == 6 + repeated
    assert set(second) == set(range(6))
    assert [line["epoch"] for line in lines(Path("runs/run"))] == [1, 2]


def _stop_rank_1_after_its_first_scan() -> None:
    original = validation.dice_per_structure

    def dice(*args: Any) -> Any:
        print("scored one", flush=True)
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    patch(validation, "dice_per_structure", dice)


def test_a_signal_during_validation_stops_all_processes(seven: Path) -> None:
    """Two processes validate four and three scans; the second one leaves two of its own for after the stop."""
    argv = flags(seven, "run", "--max_epochs=1", "--resume")
    group = start_group(2, argv, before=_stop_rank_1_after_its_first_scan)
    assert group.wait() == [143, 143], group.texts
    assert [text.count("scored one") for text in group.texts] == [4, 1]
    assert "".join(group.texts).count("stopped by SIGTERM after epoch 0 and 6 scans of the next; ") == 1
    in_one_process(argv)
    assert [line["epoch"] for line in lines(Path("runs/run"))] == [1]
    assert "mean" in lines(Path("runs/run"))[0]["dice"]


def failing(group: Group) -> str:
    """The single error line of a group that fails."""
    assert group.wait() == [1] * len(group.processes), group.texts
    text = "".join(group.texts)
    assert "Traceback" not in text
    assert text.count("error: ") == 1, text
    return text[text.index("error: ") :]


def test_an_error_in_one_process_is_reported_once_and_ends_all(phantoms: Path, in_tmp: Path) -> None:
    shutil.copytree(phantoms, "data")
    Path("data/imagesTr/img0002.nii.gz").write_bytes(b"damaged")
    assert "checking" not in failing(start_group(2, flags(Path("data"), "run")))  # found by rank 0
    message = failing(start_group(2, flags(Path("data"), "run", "--skip_data_check")))
    assert message.startswith("error: rank ")
    assert "img0002.nii.gz" in message


def _lose_the_fourth_loss() -> None:
    original = trainer.Learner.add_gradients
    steps = []

    def lost(*args: Any) -> float:
        loss = original(*args)
        steps.append(1)
        return math.nan if len(steps) == 4 and os.environ["RANK"] == "1" else loss

    patch(trainer.Learner, "add_gradients", lost)


def test_a_loss_that_is_not_finite_in_one_process_ends_all(phantoms: Path, in_tmp: Path) -> None:
    argv = flags(phantoms, "run", "--max_epochs=3", "--save_every=1")
    message = failing(start_group(2, argv, before=_lose_the_fourth_loss))
    assert re.search(r"the loss is nan in epoch 2, in the batch of img000\d\. Last good checkpoint: runs/run/", message)
    assert torch.load("runs/run/model_final.pt", weights_only=True)["epoch"] == 1


def test_processes_with_different_flags(phantoms: Path, in_tmp: Path) -> None:
    message = failing(start_group(2, lambda rank: flags(phantoms, "run", f"--max_epochs={rank + 2}")))
    assert "--max_epochs: is 2 for rank 0 and 3 for rank 1. Give every machine the same command and list." in message


def test_the_data_folder_may_have_another_name_on_each_machine(phantoms: Path, in_tmp: Path) -> None:
    for rank in range(2):
        Path(f"data{rank}").symlink_to(phantoms)
    # no cache, since two machines don't share prepared scans as these processes would
    more = ("--max_epochs=1", "--use_normal_dataset")
    group = start_group(2, lambda rank: flags(Path(f"data{rank}"), "run", *more))
    assert group.wait() == [0, 0], group.texts


def _on_a_disk_of_its_own() -> None:
    if os.environ["RANK"] == "1":
        Path("elsewhere").mkdir()
        os.chdir("elsewhere")


def test_a_checkpoint_that_only_one_process_sees(phantoms: Path, in_tmp: Path) -> None:
    argv = flags(phantoms, "run", "--max_epochs=1", "--resume")
    in_one_process(argv)
    message = failing(start_group(2, argv, before=_on_a_disk_of_its_own))
    file = "runs/run/model_final.pt"
    assert re.search(rf"{file}: is \w{{12}} for rank 0 and not there for rank 1. All machines have to see the", message)


def _hang() -> None:
    time.sleep(0.5)  # until its heartbeat is sent
    os.kill(os.getpid(), signal.SIGSTOP)


def test_a_process_that_hangs_is_named(phantoms: Path, in_tmp: Path) -> None:
    argv = flags(phantoms, "run", "--max_epochs=3", "--dist_timeout=2")
    group = start_group(2, argv, before=partial(_in_the_fourth_step, _hang))
    group.processes[0].join(60)
    group.processes[1].kill()
    assert group.wait() == [1, -signal.SIGKILL]
    where = "error: rank 0 of 2: waited longer than 2 s (--dist_timeout) in the backward pass of step 2 of epoch 2 for "
    straggler = "rank 1, last heard from in the forward pass of step 2 of epoch 2. "
    assert group.texts[0].splitlines()[-1].startswith(where + straggler)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_dies_is_noticed(phantoms: Path, in_tmp: Path) -> None:
    group = start_group(
        2, flags(phantoms, "run", "--max_epochs=3", "--save_every=1"), before=partial(_in_the_fourth_step, _die)
    )
    assert group.wait() == [1, -signal.SIGKILL]
    last = group.texts[0].splitlines()[-1]
    assert last.startswith("error: rank 0 of 2: lost another process in the backward pass of step 2 of epoch 2 (")
    assert "Last good checkpoint: runs/run/model_final.pt. Launch the same command with --resume to go on" in last


def _print_what_is_mapped() -> None:
    original = training_program.run_training

    def printing(run: Any, progress: Any) -> None:
        mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if ".pt" in line]
        print("mapped", len(mapped), sum("unetr-scans-" in line and "(deleted)" in line for line in mapped), flush=True)
        held = [scan["image"].untyped_storage() for scan in run.train_loader.dataset.scans]
        print("held", len(held), flush=True)
        original(run, progress)

    patch(training_program, "run_training", printing)


@pytest.mark.parametrize("kept", [False, True])
def test_the_processes_of_a_machine_share_one_copy_of_the_scans(
    phantoms: Path, in_tmp: Path, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both map the same four files, which are deleted unless they are in --cache_dir.

    There each also maps the scan that it validates.
    """
    Path("tmp").mkdir()
    cache = [f"--cache_dir={in_tmp / 'cache'}"] * kept
    group = start_group(
        2, flags(phantoms, "run", "--max_epochs=1", *cache), before=_print_what_is_mapped,
        environment={"TMPDIR": str(in_tmp / "tmp")},
    )  # fmt: skip
    assert group.wait() == [0, 0], group.texts
    for text in group.texts:
        assert ("mapped 5 0" if kept else "mapped 4 4") in text
        assert "held 4" in text
    assert list(Path("tmp").glob("unetr*")) == []
    in_one_process(flags(phantoms, "one", "--max_epochs=1", "--accumulate=2"))
    assert [line["loss"] for line in lines(Path("runs/run"))] == [line["loss"] for line in lines(Path("runs/one"))]


def test_two_machines_by_hand(phantoms: Path, in_tmp: Path) -> None:
    """One command on each, as in 2021."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        *(sys.executable, str(REPOSITORY / "main.py"), *flags(phantoms, "two", "--max_epochs=1"), "--device=cpu"),
        *("--distributed", "--world_size=2", f"--dist-url=tcp://127.0.0.1:{port}"),
    ]
    machines = [
        subprocess.Popen([*command, f"--rank={rank}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for rank in range(2)
    ]
    texts = [machine.communicate(timeout=120)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], texts
    assert "on cpu in float32, 2 processes" in texts[0]
    assert texts[1] == ""


def test_scans_are_tested_by_several_processes(phantoms: Path, in_tmp: Path) -> None:
    in_one_process(flags(phantoms, "run", "--max_epochs=1"))
    weights_file = ["--pretrained_dir=runs/run", "--pretrained_model_name=model.pt", f"--data_dir={phantoms}"]
    group = start_group(3, [*weights_file, "--workers=0"], program="test")
    assert group.wait() == [0, 0, 0], group.texts
    scores = json.loads(Path("runs/run/scores/scores.json").read_text())
    assert [scan["scan"] for scan in scores["scans"]] == ["img0005", "img0006"]
    assert scores["mean"] == pytest.approx(lines(Path("runs/run"))[0]["dice"]["mean"], abs=1e-6)


def test_two_programs_do_not_train_into_one_folder(phantoms: Path, in_tmp: Path) -> None:
    argv = flags(phantoms, "run", "--max_epochs=2000", "--val_every=2000", "--save_every=1", "--resume")
    first = start_group(1, argv)
    deadline = time.monotonic() + 60
    while not Path("runs/run/model_final.pt").exists():
        assert time.monotonic() < deadline, first.texts
        time.sleep(0.05)
    assert "--logdir run: another program is training into runs/run. Wait for its end" in failing(start_group(1, argv))
    first.processes[0].kill()
    assert first.wait() == [-signal.SIGKILL]
    last = start_group(1, [*argv, "--max_epochs=3"])
    last.wait()
    assert "another program" not in last.texts[0]


def _under_a_parent_that_dies() -> None:
    """Continue as the child of a process that is killed later, as torchrun may be."""
    parent = os.getpid()
    if os.fork():
        time.sleep(60)
    training_program.launch = partial(_killing, parent, training_program.launch)  # type: ignore[assignment]


def _killing(parent: int, launch: Callable[..., None], *arguments: Any) -> None:
    _in_the_fourth_step(lambda: os.kill(parent, signal.SIGKILL))
    launch(*arguments)


def test_processes_save_and_end_when_their_torchrun_is_killed(phantoms: Path, in_tmp: Path) -> None:
    argv = flags(phantoms, "run", "--max_epochs=2000", "--val_every=2000", "--dist_timeout=2")
    group = start_group(2, argv, before=_under_a_parent_that_dies)
    group.processes[1].join(60)
    assert group.processes[1].exitcode == -signal.SIGKILL
    deadline = time.monotonic() + 60
    while "stopped by SIGTERM after" not in group.texts[0]:
        assert time.monotonic() < deadline, group.texts
        time.sleep(0.05)
    group.processes[0].kill()
    assert "runs/run/model_final.pt has it all" in group.texts[0]

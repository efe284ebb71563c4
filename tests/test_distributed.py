"""Devices and processes."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from tests.conftest import REPOSITORY, TINY
from utils.distributed import Process
from utils.errors import InputError
from utils.launch import choose_device, launch
from utils.rendezvous import Seat


def test_the_cpu_serves_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_device(None) == torch.device("cpu")
    with pytest.raises(InputError, match="--device cuda: CUDA devices on this machine: 0"):
        choose_device("cuda")


def test_a_process_takes_the_gpu_of_its_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert choose_device(None, local_rank=3) == torch.device("cuda", 3)
    assert choose_device("cuda", local_rank=1) == torch.device("cuda", 1)
    assert choose_device("cuda:2", local_rank=0) == torch.device("cuda", 2)


def test_scans_are_shared_with_none_twice_and_none_left_out() -> None:
    parts = [Process(torch.device("cpu"), Seat(rank, 3)).share(list(range(7))) for rank in range(3)]
    assert parts == [[0, 3, 6], [1, 4], [2, 5]]


def test_distributed_on_a_machine_without_gpus_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("RANK", raising=False)
    seen: list[Process] = []
    launch(lambda process, args: seen.append(process), Namespace(device="cpu", distributed=True, world_size=1))
    assert seen == [Process(torch.device("cpu"))]


def test_torchrun_without_the_flag_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="--distributed: wasn't given, though this is one of 2 processes"):
        launch(lambda process, args: None, Namespace(device="cpu", distributed=False, world_size=1))


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

"""Worker processes: what they hand over, and what happens when one dies or hangs."""

import faulthandler
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

import trainer
from tests.conftest import REPOSITORY, TINY, FileSizeLimit, Run
from tests.training.test_training import train
from utils.data import workers as module
from utils.data.crops import RandomCrops
from utils.data.workers import WorkerLoader
from utils.distributed.process import Process
from utils.distributed.rendezvous import RankInfo
from utils.system.errors import InputError, LostError, Stopped

TEST_PROCESS = os.getpid()
Act = Callable[[int], Any]


def sample(number: int) -> dict[str, Any]:
    """A megabyte of numbers, a boolean that isn't contiguous, nothing, and a name."""
    generator = torch.Generator().manual_seed(number)
    return {
        "image": torch.randn(1, 512, 512, generator=generator),
        "label": number < torch.arange(6).view(2, 3).T,
        "empty": torch.zeros(0, 3, dtype=torch.int16),
        "name": f"scan{number}",
    }


class Samples(Dataset):
    """Six samples; ``act`` is called in the worker before each is made."""

    def __init__(self, act: Act = lambda number: None) -> None:
        self.act = act

    def __len__(self) -> int:
        return 6

    def __getitem__(self, number: int) -> dict[str, Any]:
        self.act(number)
        return sample(number)


def first(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return samples[0]


def loader(act: Act = lambda number: None, workers: int = 2, owner: Process | None = None) -> WorkerLoader:
    owner = owner or Process(torch.device("cpu"))
    return WorkerLoader(Samples(act), owner=owner, workers=workers, batch_size=1, collate_fn=first)


def names(batches: Iterator[dict[str, Any]]) -> list[str]:
    return [batch["name"] for batch in batches]


def processes(batches: WorkerLoader) -> list[int]:
    return [int(worker.process.pid or 0) for worker in batches._workers]


def is_alive(process: int) -> bool:
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_batches_come_in_order_and_unchanged(workers: int) -> None:
    batches = loader(workers=workers)
    for _ in range(2):
        taken = list(batches)
        assert len(taken) == 6
        for number, batch in enumerate(taken):
            expected = sample(number)
            assert batch.keys() == expected.keys()
            assert batch["name"] == expected["name"]
            for key in ("image", "label", "empty"):
                assert (batch[key].dtype, batch[key].shape) == (expected[key].dtype, expected[key].shape)
                assert torch.equal(batch[key], expected[key])


def test_batches_need_no_shared_memory(file_size_limit: FileSizeLimit) -> None:
    """Where no file may grow, those of /dev/shm may not either."""
    with file_size_limit(0):
        assert len(list(loader())) == 6


def test_a_pass_that_is_left_early_does_not_disturb_the_next() -> None:
    batches = loader()
    assert next(iter(batches))["name"] == "scan0"
    assert names(iter(batches)) == [f"scan{number}" for number in range(6)]


def die(number: int, how: int) -> None:
    if number == 3:
        faulthandler.disable()  # pytest's, which would print where
        os.kill(os.getpid(), how)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (signal.SIGKILL, "a process of `workers` was killed by SIGKILL (is the machine out of memory?)."),
        (signal.SIGSEGV, "a process of `workers` was killed by SIGSEGV."),
        (signal.SIGBUS, "a process of `workers` was killed by SIGBUS."),
    ],
)
def test_the_death_of_a_worker_ends_the_pass(how: signal.Signals, words: str) -> None:
    """A batch that it had made and was handing over is lost with it."""
    taken: list[str] = []
    with pytest.raises(LostError) as error:
        taken.extend(batch["name"] for batch in loader(lambda number: die(number, how)))
    assert taken in (["scan0"], ["scan0", "scan1", "scan2"])
    assert str(error.value) == f"{words} With `workers` 0 the main process does its work."


def test_a_worker_may_die_while_it_hands_over() -> None:
    batches = loader(workers=1)
    iterator = iter(batches)
    next(iterator)
    time.sleep(0.2)  # the next batch is larger than what the socket holds, so half of it is sent
    os.kill(processes(batches)[0], signal.SIGKILL)
    with pytest.raises(LostError, match="SIGKILL"):
        list(iterator)


def test_an_error_in_a_worker_is_raised_as_it_is() -> None:
    class UnportableError(Exception):  # a local class can't be pickled
        pass

    def fail(number: int) -> None:
        if number == 2:
            raise InputError("scan2: is wrong. Mend it.")
        if number == 3:
            raise UnportableError("the reason")

    batches = iter(loader(fail, workers=1))
    assert [next(batches)["name"] for _ in range(2)] == ["scan0", "scan1"]
    with pytest.raises(InputError, match=r"^scan2: is wrong. Mend it.$"):
        next(batches)
    everything = loader(lambda number: fail(3))
    with pytest.raises(RuntimeError, match="the reason"):
        list(everything)


@pytest.mark.parametrize("stopped", [False, True])
def test_a_signal_ends_the_wait_for_a_worker_that_hangs_and_the_worker(stopped: bool) -> None:
    def hang(number: int) -> None:
        if number == 1:
            if stopped:
                os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(1000)

    owner = Process(torch.device("cpu"))
    batches = loader(hang, owner=owner)
    iterator = iter(batches)
    next(iterator)
    hanging = processes(batches)
    start = time.monotonic()
    with owner.stop.listening(), owner.stop.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped):
            next(iterator)
    del batches, iterator
    assert time.monotonic() - start < 5
    assert not any(map(is_alive, hanging))


def test_one_of_several_processes_waits_a_while_since_they_stop_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.6)
    owner = Process(torch.device("cpu"), RankInfo(0, 2, 0, 2))
    late = iter(loader(lambda number: time.sleep(0.7 if number == 1 else 0), owner=owner))
    hangs = iter(loader(lambda number: time.sleep(1000 if number == 1 else 0), owner=owner))
    next(late)
    next(hangs)
    with owner.stop.listening(), owner.stop.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        assert next(late)["name"] == "scan1"
        with pytest.raises(LostError, match=r"^a process of `workers` hangs.$"):
            next(hangs)


def test_workers_end_when_their_owner_is_killed(tmp_path: Path) -> None:
    program = """
import os, signal
from tests.data.test_workers import loader, processes
batches = loader()
next(iter(batches))
print(*processes(batches), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    end = time.monotonic() + 5
    while any(map(is_alive, map(int, done.stdout.split()))):
        assert time.monotonic() < end
        time.sleep(0.05)


def in_worker(monkeypatch: pytest.MonkeyPatch, marker: Path, act: Callable[[], None]) -> None:
    """Do something in a worker process, once ``marker`` exists."""
    original = RandomCrops.__call__

    def cut(crops: RandomCrops, *arguments: Any) -> Any:
        if marker.exists() and os.getpid() != TEST_PROCESS:
            act()
        return original(crops, *arguments)

    monkeypatch.setattr(RandomCrops, "__call__", cut)


def test_training_without_a_worker_ends_in_one_line_and_goes_on(
    run_main: Run, phantoms: Path, in_tmp: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--max_epochs=3", "--use_normal_dataset", "--save_every=100")
    undisturbed = train(run_main, phantoms, "undisturbed", *flags, "--workers=0")
    marker = Path("marker").absolute()
    in_worker(monkeypatch, marker, lambda: os.kill(os.getpid(), signal.SIGKILL))
    monkeypatch.setattr(trainer.Learner, "is_finite", lambda learner: marker.write_text("an epoch is done") > 0)
    with pytest.raises(SystemExit) as stop:
        train(run_main, phantoms, "killed", *flags, "--workers=2")
    assert stop.value.code == 1
    assert capsys.readouterr().err == (
        "error: a process of --workers was killed by SIGKILL (is the machine out of memory?). With --workers 0 the "
        "main process does its work. Last good checkpoint: runs/killed/model_final.pt. Launch the same command with "
        "--resume to go on.\n"
    )
    resumed = train(run_main, phantoms, "killed", *flags, "--resume", "--workers=0")
    weights = [torch.load(run / "model_final.pt", weights_only=True)["state_dict"] for run in (undisturbed, resumed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_one_sigterm_ends_a_training_whose_worker_hangs(phantoms: Path, in_tmp: Path) -> None:
    flags = [f"--data_dir={phantoms}", "--logdir=hung", "--max_epochs=1000", "--val_every=1000", "--use_normal_dataset"]
    more = ["--workers=2", "--save_checkpoint", "--device=cpu", *TINY]
    command = [sys.executable, str(REPOSITORY / "main.py"), *flags, *more]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        while not program.stdout.readline().startswith("epoch 2/"):
            assert program.poll() is None
        helpers = Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()
        for helper in helpers:
            os.kill(int(helper), signal.SIGSTOP)
        program.send_signal(signal.SIGTERM)
        _, error = program.communicate(timeout=60)
    assert program.returncode == 143
    assert error.startswith("stopped by SIGTERM after epoch ")
    assert "runs/hung/model_final.pt has it all" in error
    assert len(helpers) == min(2, os.cpu_count() or 1)
    assert not any(is_alive(int(helper)) for helper in helpers)

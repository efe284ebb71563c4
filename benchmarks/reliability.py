"""Interrupt training runs at random moments, and compare their results: ``python -m benchmarks.reliability``.

Each run trains a tiny network on phantoms, and is launched with ``--resume`` until it is done. It is killed (``kill
-9``), asked to stop (SIGTERM), or hits a file size limit, which makes writes fail as on a full disk. Of two processes
under torchrun one is killed several times; they have to go on without a new launch. The results must be identical to
those of an uninterrupted run with the same seed and number of processes.
"""

import argparse
import faulthandler
import multiprocessing
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main as training_program
from utils.checkpoints.read import read_checkpoint
from utils.config.parser import Parser, count
from utils.phantom import write_phantoms
from utils.system.errors import one_line_errors

EPOCHS, SAVE_EVERY = 12, 2
FLAGS = [
    *("--space_x=12", "--space_y=12", "--space_z=14", "--roi_x=16", "--roi_y=16", "--roi_z=16"),
    *("--hidden_size=12", "--mlp_dim=12", "--num_heads=2", "--feature_size=2", "--dropout_rate=0.1"),
    *("--optim_lr=1e-2", "--warmup_epochs=2", f"--max_epochs={EPOCHS}", "--val_every=6", f"--save_every={SAVE_EVERY}"),
    "--crops_per_scan=1",
    *("--device=cpu", "--noamp", "--save_checkpoint", "--resume"),
]
WORKERS_KILLED = 3  # in a run of two processes
TOO_LONG = 120  # seconds; a run takes a few
PRINT_STACKS = signal.SIGUSR2  # makes a launch print the stack of each thread
# forks the runs from a server that has imported everything, which saves seconds in each; torch's optimizers import
# torch._dynamo
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["main", "torch._dynamo"])


@dataclass
class Outcome:
    """The result of runs that were interrupted in one way.

    Attributes:
        interruptions: their number.
        in_training: interruptions after the launch had trained for an epoch.
        within_epochs: interruptions that left a checkpoint in the middle of an epoch.
        lost: checkpoints that are gone, can't be read, or are more than ``--save_every`` epochs old.
        runs: completed runs.
        problems: differences from the uninterrupted run, and other wrong behaviour.
    """

    interruptions: int = 0
    in_training: int = 0
    within_epochs: int = 0
    lost: int = 0
    runs: int = 0
    problems: list[str] = field(default_factory=list)


class FaultInjector:
    """Launches one command on the same phantoms, and interrupts it.

    Args:
        folder: where the runs are written.
        data: the folder of the phantoms, written by :func:`utils.phantom.write_phantoms`.
        seed: determines the moments of the interruptions.
    """

    def __init__(self, folder: Path, data: Path, seed: int = 0) -> None:
        self.folder = folder
        self.data = data
        self.random = random.Random(seed)
        server = CONTEXT.Process(target=int)  # the next launch would wait for the server's imports
        server.start()
        server.join()
        start = time.monotonic()
        assert self.finish(self.launch("uninterrupted"), "uninterrupted") == 0, self.log("uninterrupted")
        self.seconds = time.monotonic() - start
        self.expected = self.run_folder("uninterrupted")

    def run_folder(self, name: str) -> Path:
        """The folder of a run."""
        return self.folder / "runs" / name

    def log(self, name: str) -> str:
        """The output of all launches of a run."""
        path = self.folder / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def launch(self, name: str, file_size: int | None = None) -> ForkServerProcess:
        """Launch a run.

        Args:
            name: of the run.
            file_size: the limit for files that it writes, in bytes.
        """
        workers = self.random.choice((0, 0, 0, 1, 2))  # mostly none, since starting them takes long
        argv = [*FLAGS, f"--data_dir={self.data}", f"--logdir={name}", f"--workers={workers}"]
        process = CONTEXT.Process(target=_train, args=(argv, self.folder, name, file_size))
        process.start()
        return process

    def finish(self, process: ForkServerProcess, name: str) -> int:
        """Wait for the end of a launch of run ``name``. Returns its exit status, negative for a signal that killed it.

        Raises:
            RuntimeError: if it doesn't end, with its log and the stacks of its threads.
        """
        process.join(TOO_LONG)
        if process.exitcode is None:
            assert process.pid is not None
            os.kill(process.pid, PRINT_STACKS)
            process.join(1)
            process.kill()
            raise RuntimeError(f"a launch of {name} did not end within {TOO_LONG} s:\n{self.log(name)}")
        return process.exitcode

    def wait_until(self, happened: Callable[[], bool], runs: Callable[[], bool], name: str) -> bool:
        """Wait until something has happened or run ``name`` has ended. Returns whether it still runs."""
        deadline = time.monotonic() + TOO_LONG
        while not happened() and runs():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{name} made no progress within {TOO_LONG} s:\n{self.log(name)}")
            time.sleep(0.01)
        return runs()

    def interrupt(self, name: str, number: int) -> int:
        """Launch a run and send it a signal at a random moment. Returns its exit status.

        Half of these moments are during the start. The others are after an epoch of this launch, however long the
        start takes on a busy machine.
        """
        printed = len(self.log(name))
        process = self.launch(name)
        if self.random.random() < 0.5:
            self.wait_until(lambda: ": loss " in self.log(name)[printed:], process.is_alive, name)
        time.sleep(self.random.uniform(0, 0.25 * self.seconds))  # about as long as a start takes
        if process.is_alive():
            assert process.pid is not None
            os.kill(process.pid, number)
        return self.finish(process, name)

    def repeat(self, kind: str, times: int, interrupt: Callable[[str, Outcome], bool]) -> Outcome:
        """Interrupt runs ``times`` times, and let each of them end.

        Args:
            kind: the first part of the runs' names.
            interrupt: launches the run of a name once, records the result, and returns whether the run is done.
        """
        outcome = Outcome()
        while outcome.interruptions < times:
            name = f"{kind}{outcome.runs}"
            done = False
            while not done and outcome.interruptions < times:
                done = interrupt(name, outcome)
            if not done:
                status = self.finish(self.launch(name), name)
                if status != 0:
                    outcome.problems.append(f"{name} ended with status {status}:\n{self.log(name)}")
            outcome.runs += 1
            outcome.problems += [f"{name}: {problem}" for problem in differences(self.expected, self.run_folder(name))]
        return outcome

    def signals(self, number: int, times: int) -> Outcome:
        """Send a signal to runs ``times`` times."""
        expected = -number if number == signal.SIGKILL else 128 + number

        def interrupt(name: str, outcome: Outcome) -> bool:
            saved = (self.run_folder(name) / "model_final.pt").exists()
            printed = self.log(name)
            status = self.interrupt(name, number)
            if status == 0:
                return True
            outcome.interruptions += 1
            outcome.in_training += ": loss " in self.log(name)[len(printed) :]
            before_its_first_line = status == -number and self.log(name) == printed
            if status != expected and not before_its_first_line:
                outcome.problems.append(f"{name} ended with status {status}:\n{self.log(name)}")
            self._check_checkpoint(name, saved, outcome)
            return False

        return self.repeat(signal.Signals(number).name, times, interrupt)

    def full_disks(self, times: int) -> Outcome:
        """Limit the file size ``times`` times, each time after a launch without a limit that made progress."""
        size = (self.expected / "model_final.pt").stat().st_size

        def interrupt(name: str, outcome: Outcome) -> bool:
            printed = self.log(name)
            if self.interrupt(name, signal.SIGTERM) == 0:
                return True
            latest = self.run_folder(name) / "model_final.pt"
            before = latest.read_bytes() if latest.exists() else None
            limit = self.random.randrange(size // 100, size)
            status = self.finish(self.launch(name, file_size=limit), name)
            outcome.interruptions += 1
            outcome.in_training += ": loss " in self.log(name)[len(printed) :]
            if status != 1 or "not saved: " not in self.log(name):
                outcome.problems.append(f"{name} ended with status {status} on a full disk:\n{self.log(name)}")
            self._check_checkpoint(name, before is not None, outcome, full=True)
            if before is not None and latest.read_bytes() != before:
                outcome.problems.append(f"{name}: a full disk changed the last good checkpoint")
            return False

        return self.repeat("full-disk", times, interrupt)

    def two_processes(self, name: str) -> "subprocess.Popen[str]":
        """Launch a run in two processes that torchrun restarts."""
        # kills should come within epochs: so more epochs, long steps, and only a checkpoint between epochs
        epochs = [f"--max_epochs={2 * EPOCHS}", f"--val_every={2 * EPOCHS}", "--save_every=1", "--crops_per_scan=32"]
        argv = [*FLAGS, *epochs, f"--data_dir={self.data}", f"--logdir={name}", "--workers=0", "--distributed"]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        restarts = f"--max-restarts={6 * WORKERS_KILLED}"  # kills while saving come on top
        with open(self.folder / f"{name}.log", "w") as log:
            return subprocess.Popen(
                [*torchrun, restarts, training_program.__file__, *argv],
                cwd=self.folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=log, text=True,
            )  # fmt: skip

    def killed_workers(self, times: int) -> Outcome:
        """Kill one of two processes until ``times`` kills were within an epoch, :data:`WORKERS_KILLED` in each run."""
        outcome = Outcome()
        if self.two_processes("uninterrupted-two").wait(TOO_LONG) != 0:
            raise RuntimeError(self.log("uninterrupted-two"))
        while outcome.within_epochs < times:
            name = f"workers{outcome.runs}"
            torchrun = self.two_processes(name)
            kills = 0
            while sum(self._within_epochs(name)) < min(WORKERS_KILLED, times - outcome.within_epochs):
                if not self._kill_a_worker(torchrun, name):
                    break
                kills += 1
            outcome.interruptions += kills
            status = torchrun.wait(TOO_LONG)
            text = self.log(name)
            if status != 0:
                outcome.problems.append(f"{name} ended with status {status}:\n{text}")
            outcome.in_training += len(self._within_epochs(name))
            outcome.within_epochs += sum(self._within_epochs(name))
            outcome.lost += text.count("starts anew") - 1 + text.count("moved to ")
            outcome.runs += 1
            problems = differences(self.run_folder("uninterrupted-two"), self.run_folder(name))
            outcome.problems += [f"{name}: {problem}" for problem in problems]
        return outcome

    def _within_epochs(self, name: str) -> list[bool]:
        """For each kill that the other process noticed, whether it was within an epoch, and not while saving."""
        lines = [line for line in self.log(name).splitlines() if "lost another process in " in line]
        return [" of epoch " in line for line in lines]

    def _kill_a_worker(self, torchrun: "subprocess.Popen[str]", name: str) -> bool:
        """Kill one of torchrun's processes in an epoch, after another epoch of the same launch.

        Returns:
            Whether torchrun restarted both. If the run ended first, it didn't.
        """
        latest = self.run_folder(name) / "model_final.pt"

        def runs() -> bool:
            return torchrun.poll() is None

        epochs, launches = (self.log(name).count(text) for text in (": loss ", ": continues from "))
        if not self.wait_until(lambda: latest.exists() and self.log(name).count(": loss ") > epochs, runs, name):
            return False
        seconds = float(re.findall(r": loss .* ([\d.]+) s$", self.log(name), re.MULTILINE)[-1])
        time.sleep(self.random.uniform(0.2, 0.8) * seconds)
        children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
        os.kill(int(self.random.choice(children)), signal.SIGKILL)
        return self.wait_until(lambda: self.log(name).count(": continues from ") > launches, runs, name)

    def _check_checkpoint(self, name: str, saved_before: bool, outcome: Outcome, full: bool = False) -> None:
        latest = self.run_folder(name) / "model_final.pt"
        if not latest.exists():
            outcome.lost += saved_before
            return
        try:
            progress = read_checkpoint(latest)["resume"]["progress"]
        except ValueError as error:
            outcome.lost += 1
            outcome.problems.append(str(error))
            return
        outcome.within_epochs += progress["unfinished"]["scans"] > 0
        trained = len((self.run_folder(name) / "metrics.jsonl").read_text().splitlines())
        outcome.lost += not full and trained - progress["epoch"] > SAVE_EVERY


def _train(argv: list[str], folder: Path, name: str, file_size: int | None) -> None:
    os.chdir(folder)
    multiprocessing.set_start_method("fork", force=True)  # the default when the program is launched from a shell
    torch.set_num_threads(1)
    with open(f"{name}.log", "a") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    faulthandler.register(PRINT_STACKS)
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, resource.RLIM_INFINITY))
    training_program.run(argv)


def differences(expected: Path, found: Path) -> list[str]:
    """The results that differ between two runs of one seed. Wall-clock times may differ."""
    problems = []
    for name in ("model.pt", "model_final.pt"):
        one, other = (_comparable(torch.load(folder / name, weights_only=True)) for folder in (expected, found))
        problems += [f"{name}: {place}" for place in _unequal(one, other)]
    if _curves(expected) != _curves(found):
        problems.append("TensorBoard's curves")
    if (expected / "progress.png").read_bytes() != (found / "progress.png").read_bytes():
        problems.append("progress.png")
    lines = [(folder / "metrics.jsonl").read_text().count("\n") for folder in (expected, found)]
    if lines[0] != lines[1]:
        problems.append(f"metrics.jsonl: {lines[1]} lines instead of {lines[0]}")
    return problems


def _comparable(content: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint without what may differ: the command, times, and flags such as the run's name and its workers."""
    del content["command"]
    if "resume" in content:
        del content["resume"]["flags"]
        for line in content["resume"]["progress"]["history"]:
            del line["seconds"]
    return content


def _unequal(one: Any, other: Any, place: str = "") -> list[str]:
    """The places, as KEY/KEY/INDEX, at which two nested values differ."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [problem for key in one for problem in _unequal(one[key], other[key], f"{place}/{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [problem for number, pair in pairs for problem in _unequal(*pair, f"{place}/{number}")]
    same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    return [] if same else [place]


def _curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if tag != "train/seconds"
    }


def main(args: argparse.Namespace) -> None:
    """Print a row for each kind of interruption."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "phantoms"
        write_phantoms(data, {"training": 4, "validation": 2, "test": 0}, seed=0, spacing=(10.0, 10.0, 12.0))
        injector = FaultInjector(folder, data, args.seed)
        outcomes = {
            "kill -9": injector.signals(signal.SIGKILL, args.times),
            "SIGTERM": injector.signals(signal.SIGTERM, args.times),
            "full disk": injector.full_disks(args.times),
            "kill -9, 1 of 2": injector.killed_workers(args.times),
        }
    print(f"{'':<15}  times  in training  within an epoch  checkpoints lost  runs  differences")
    for kind, outcome in outcomes.items():
        moments = (outcome.interruptions, outcome.in_training, outcome.within_epochs)
        ends = (outcome.lost, outcome.runs, len(outcome.problems))
        print("{:<15}  {:>5}  {:>11}  {:>15}  {:>16}  {:>4}  {:>11}".format(kind, *moments, *ends))
    problems = [problem for outcome in outcomes.values() for problem in outcome.problems]
    if problems:
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    parser = Parser(prog="python -m benchmarks.reliability", description="Interrupt training runs, and compare.")
    parser.add_argument("--times", type=count, default=30, help="interruptions of each kind")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    with one_line_errors():
        main(parser.parse_args())

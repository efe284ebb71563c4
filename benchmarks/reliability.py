"""Disturb training runs at random moments and compare what they end with: ``python -m benchmarks.reliability``.

Each run is a tiny network on phantoms, launched again and again with ``--resume`` until it is done. It is killed
(``kill -9``), asked to stop (SIGTERM), or meets a file size limit, which fails a write as a full disk does. Two
processes under torchrun lose one of them again and again, and have to go on without being launched anew. What a run
ends with has to be identical with what an undisturbed one of the same seed and number of processes leaves.
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

EPOCHS = 12
FLAGS = [
    *("--space_x=12", "--space_y=12", "--space_z=14", "--roi_x=16", "--roi_y=16", "--roi_z=16"),
    *("--hidden_size=12", "--mlp_dim=12", "--num_heads=2", "--feature_size=2", "--dropout_rate=0.1"),
    *(
        "--optim_lr=1e-2",
        "--warmup_epochs=2",
        f"--max_epochs={EPOCHS}",
        "--val_every=6",
        "--save_every=2",
        "--crops_per_scan=1",
    ),
    *("--device=cpu", "--noamp", "--save_checkpoint", "--resume"),
]
WORKERS_KILLED = 3  # in a run of two processes
TOO_LONG = 120  # seconds for a run that takes a few
WHERE = signal.SIGUSR2  # lets a launch write where each of its threads is
# a server that has imported everything forks the runs, each of which would otherwise spend seconds on imports; torch's
# optimizers import its compiler
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["main", "torch._dynamo"])


@dataclass
class Outcome:
    """How the runs that were disturbed in one way fared.

    Attributes:
        disturbances: how often they were.
        in_training: how often that was after the launch had trained for an epoch, and not in its start.
        within_epochs: how often that left a checkpoint in the middle of an epoch.
        lost: checkpoints that were there and can't be read any more, or are older than ``--save_every`` epochs.
        runs: how many runs came to their end.
        faults: what differs from the undisturbed run, or went otherwise than it should.
    """

    disturbances: int = 0
    in_training: int = 0
    within_epochs: int = 0
    lost: int = 0
    runs: int = 0
    faults: list[str] = field(default_factory=list)


class Laboratory:
    """Runs of one command on the same phantoms.

    Args:
        folder: where the runs lie.
        data: phantoms, as :func:`utils.phantom.write_phantoms` leaves them.
    """

    def __init__(self, folder: Path, data: Path, seed: int = 0) -> None:
        self.folder = folder
        self.data = data
        self.random = random.Random(seed)
        server = CONTEXT.Process(target=int)  # the first launch waits until the server has imported everything
        server.start()
        server.join()
        start = time.monotonic()
        assert self.finish(self.launch("undisturbed"), "undisturbed") == 0, self.log("undisturbed")
        self.seconds = time.monotonic() - start
        self.whole = self.run_folder("undisturbed")

    def run_folder(self, name: str) -> Path:
        """The folder of a run."""
        return self.folder / "runs" / name

    def log(self, name: str) -> str:
        """What all launches of a run printed."""
        path = self.folder / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def launch(self, name: str, file_size: int | None = None) -> ForkServerProcess:
        """Launch the command of a run, with a limit on the size of files in bytes."""
        workers = self.random.choice((0, 0, 0, 1, 2))  # most without, since starting them takes long
        argv = [*FLAGS, f"--data_dir={self.data}", f"--logdir={name}", f"--workers={workers}"]
        process = CONTEXT.Process(target=_train, args=(argv, self.folder, name, file_size))
        process.start()
        return process

    def finish(self, process: ForkServerProcess, name: str) -> int:
        """Wait for the end of a launch of that run; its exit status, negative for a signal that killed it.

        Raises:
            RuntimeError: if it doesn't end, with its log, and where its threads were.
        """
        process.join(TOO_LONG)
        if process.exitcode is None:
            assert process.pid is not None
            os.kill(process.pid, WHERE)
            process.join(1)
            process.kill()
            raise RuntimeError(f"a launch of {name} did not end within {TOO_LONG} s:\n{self.log(name)}")
        return process.exitcode

    def wait_until(self, happened: Callable[[], bool], runs: Callable[[], bool], name: str) -> bool:
        """Wait until something has happened or the run of that name has ended; whether it still runs."""
        deadline = time.monotonic() + TOO_LONG
        while not happened() and runs():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{name} trained no further:\n{self.log(name)}")
            time.sleep(0.01)
        return runs()

    def disturb(self, name: str, number: int) -> int:
        """Launch a run and send it a signal at a random moment; its exit status.

        Half of these moments lie in the start, and half after the first epoch, however long the start takes on a busy
        machine.
        """
        said = len(self.log(name))
        process = self.launch(name)
        if self.random.random() < 0.5:
            self.wait_until(lambda: ": loss " in self.log(name)[said:], process.is_alive, name)
        time.sleep(self.random.uniform(0, 0.25 * self.seconds))  # an undisturbed start takes about as long
        if process.is_alive():
            assert process.pid is not None
            os.kill(process.pid, number)
        return self.finish(process, name)

    def repeat(self, what: str, times: int, disturb: Callable[[str, Outcome], bool]) -> Outcome:
        """Disturb runs until that has been done ``times`` times and each of them is done.

        Args:
            disturb: launches the run of that name once, notes what came of it, and tells whether it is done.
        """
        outcome = Outcome()
        while outcome.disturbances < times:
            name = f"{what}{outcome.runs}"
            done = False
            while not done and outcome.disturbances < times:
                done = disturb(name, outcome)
            if not done:
                status = self.finish(self.launch(name), name)
                if status != 0:
                    outcome.faults.append(f"{name} ended with status {status}:\n{self.log(name)}")
            outcome.runs += 1
            outcome.faults += [f"{name}: {fault}" for fault in differences(self.whole, self.run_folder(name))]
        return outcome

    def signals(self, number: int, times: int) -> Outcome:
        """Send runs a signal ``times`` times."""
        expected = -number if number == signal.SIGKILL else 128 + number

        def disturb(name: str, outcome: Outcome) -> bool:
            saved = (self.run_folder(name) / "model_final.pt").exists()
            said = self.log(name)
            status = self.disturb(name, number)
            if status == 0:
                return True
            outcome.disturbances += 1
            outcome.in_training += ": loss " in self.log(name)[len(said) :]
            before_its_first_line = status == -number and self.log(name) == said
            if status != expected and not before_its_first_line:
                outcome.faults.append(f"{name} ended with status {status}:\n{self.log(name)}")
            self._look_at_checkpoint(name, saved, outcome)
            return False

        return self.repeat(signal.Signals(number).name, times, disturb)

    def full_disks(self, times: int) -> Outcome:
        """Let runs meet a file size limit ``times`` times, each time after they have come further without one."""
        size = (self.whole / "model_final.pt").stat().st_size

        def disturb(name: str, outcome: Outcome) -> bool:
            said = self.log(name)
            if self.disturb(name, signal.SIGTERM) == 0:
                return True
            latest = self.run_folder(name) / "model_final.pt"
            before = latest.read_bytes() if latest.exists() else None
            limit = self.random.randrange(size // 100, size)
            status = self.finish(self.launch(name, file_size=limit), name)
            outcome.disturbances += 1
            outcome.in_training += ": loss " in self.log(name)[len(said) :]
            if status != 1 or "not saved: " not in self.log(name):
                outcome.faults.append(f"{name} ended with status {status} on a full disk:\n{self.log(name)}")
            self._look_at_checkpoint(name, before is not None, outcome, full=True)
            if before is not None and latest.read_bytes() != before:
                outcome.faults.append(f"{name}: a full disk changed the last good checkpoint")
            return False

        return self.repeat("full-disk", times, disturb)

    def two_processes(self, name: str) -> "subprocess.Popen[str]":
        """Launch the command of a run with two processes that torchrun restarts."""
        # for kills that are to be within epochs: more of these, with long steps and nothing but a checkpoint in between
        epochs = [f"--max_epochs={2 * EPOCHS}", f"--val_every={2 * EPOCHS}", "--save_every=1", "--crops_per_scan=32"]
        argv = [*FLAGS, *epochs, f"--data_dir={self.data}", f"--logdir={name}", "--workers=0", "--distributed"]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        restarts = f"--max-restarts={6 * WORKERS_KILLED}"  # kills that come while saving are made up for
        with open(self.folder / f"{name}.log", "w") as log:
            return subprocess.Popen(
                [*torchrun, restarts, training_program.__file__, *argv],
                cwd=self.folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=log, text=True,
            )  # fmt: skip

    def killed_workers(self, times: int) -> Outcome:
        """Kill one of two processes until ``times`` kills came within an epoch, :data:`WORKERS_KILLED` in each run."""
        outcome = Outcome()
        if self.two_processes("undisturbed-two").wait(TOO_LONG) != 0:
            raise RuntimeError(self.log("undisturbed-two"))
        while outcome.within_epochs < times:
            name = f"workers{outcome.runs}"
            torchrun = self.two_processes(name)
            kills = 0
            while sum(self._within_epochs(name)) < min(WORKERS_KILLED, times - outcome.within_epochs):
                if not self._kill_a_worker(torchrun, name):
                    break
                kills += 1
            outcome.disturbances += kills
            status = torchrun.wait(TOO_LONG)
            text = self.log(name)
            if status != 0:
                outcome.faults.append(f"{name} ended with status {status}:\n{text}")
            outcome.in_training += len(self._within_epochs(name))
            outcome.within_epochs += sum(self._within_epochs(name))
            outcome.lost += text.count("begins anew") - 1 + text.count("moved to ")
            outcome.runs += 1
            faults = differences(self.run_folder("undisturbed-two"), self.run_folder(name))
            outcome.faults += [f"{name}: {fault}" for fault in faults]
        return outcome

    def _within_epochs(self, name: str) -> list[bool]:
        """For each process that another has missed, whether that was in a step of an epoch, and not in saving, say."""
        lines = [line for line in self.log(name).splitlines() if "lost another process in " in line]
        return [" of epoch " in line for line in lines]

    def _kill_a_worker(self, torchrun: "subprocess.Popen[str]", name: str) -> bool:
        """Kill one of torchrun's processes in an epoch that others came before in this launch of it.

        Returns:
            Whether both were launched again; not if the run ended before, which it may do well.
        """
        latest = self.run_folder(name) / "model_final.pt"

        def runs() -> bool:
            return torchrun.poll() is None

        epochs, launches = (self.log(name).count(said) for said in (": loss ", ": goes on from "))
        if not self.wait_until(lambda: latest.exists() and self.log(name).count(": loss ") > epochs, runs, name):
            return False
        seconds = float(re.findall(r": loss .* ([\d.]+) s$", self.log(name), re.MULTILINE)[-1])
        time.sleep(self.random.uniform(0.2, 0.8) * seconds)
        children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
        os.kill(int(self.random.choice(children)), signal.SIGKILL)
        return self.wait_until(lambda: self.log(name).count(": goes on from ") > launches, runs, name)

    def _look_at_checkpoint(self, name: str, saved_before: bool, outcome: Outcome, full: bool = False) -> None:
        latest = self.run_folder(name) / "model_final.pt"
        if not latest.exists():
            outcome.lost += saved_before
            return
        try:
            progress = read_checkpoint(latest)["resume"]["progress"]
        except ValueError as error:
            outcome.lost += 1
            outcome.faults.append(str(error))
            return
        outcome.within_epochs += progress["unfinished"]["scans"] > 0
        trained = len((self.run_folder(name) / "metrics.jsonl").read_text().splitlines())
        outcome.lost += not full and trained - progress["epoch"] > 2  # --save_every


def _train(argv: list[str], folder: Path, name: str, file_size: int | None) -> None:
    os.chdir(folder)
    multiprocessing.set_start_method("fork", force=True)  # as where the program is launched from a shell
    torch.set_num_threads(1)
    with open(f"{name}.log", "a") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    faulthandler.register(WHERE)
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, resource.RLIM_INFINITY))
    training_program.run(argv)


def differences(whole: Path, other: Path) -> list[str]:
    """What two runs of one seed end with that isn't identical, times of the clock left out."""
    faults = []
    for name in ("model.pt", "model_final.pt"):
        ours, theirs = (_lasting(torch.load(folder / name, weights_only=True)) for folder in (whole, other))
        faults += [f"{name}: {place}" for place in _unequal(ours, theirs)]
    if _curves(whole) != _curves(other):
        faults.append("TensorBoard's curves")
    if (whole / "progress.png").read_bytes() != (other / "progress.png").read_bytes():
        faults.append("progress.png")
    lines = [(folder / "metrics.jsonl").read_text().count("\n") for folder in (whole, other)]
    if lines[0] != lines[1]:
        faults.append(f"metrics.jsonl: {lines[1]} lines instead of {lines[0]}")
    return faults


def _lasting(content: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint without what may differ: the command, times, and the flags that name a run and its workers."""
    del content["command"]
    if "resume" in content:
        del content["resume"]["flags"]
        for line in content["resume"]["progress"]["history"]:
            del line["seconds"]
    return content


def _unequal(ours: Any, theirs: Any, place: str = "") -> list[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        return [fault for key in ours for fault in _unequal(ours[key], theirs[key], f"{place}/{key}")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [fault for number, pair in pairs for fault in _unequal(*pair, f"{place}/{number}")]
    same = torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs
    return [] if same else [place]


def _curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if tag != "train/seconds"
    }


def main(args: argparse.Namespace) -> None:
    """Print how the runs fared."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "phantoms"
        write_phantoms(data, {"training": 4, "validation": 2, "test": 0}, seed=0, spacing=(10.0, 10.0, 12.0))
        laboratory = Laboratory(folder, data, args.seed)
        outcomes = {
            "kill -9": laboratory.signals(signal.SIGKILL, args.times),
            "SIGTERM": laboratory.signals(signal.SIGTERM, args.times),
            "full disk": laboratory.full_disks(args.times),
            "kill -9, 1 of 2": laboratory.killed_workers(args.times),
        }
    print(f"{'':<15}  times  in training  within an epoch  checkpoints lost  runs  differences")
    for what, outcome in outcomes.items():
        moments = (outcome.disturbances, outcome.in_training, outcome.within_epochs)
        ends = (outcome.lost, outcome.runs, len(outcome.faults))
        print("{:<15}  {:>5}  {:>11}  {:>15}  {:>16}  {:>4}  {:>11}".format(what, *moments, *ends))
    faults = [fault for outcome in outcomes.values() for fault in outcome.faults]
    if faults:
        raise SystemExit("\n".join(faults))


if __name__ == "__main__":
    parser = Parser(prog="python -m benchmarks.reliability", description="Disturb training runs, and compare.")
    parser.add_argument("--times", type=count, default=30, help="how often runs are disturbed in each way")
    parser.add_argument("--seed", type=int, default=0, help="another seed disturbs at other moments")
    main(parser.parse_args())

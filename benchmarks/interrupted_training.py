"""Interruptions of ``main.py``: training runs of a tiny network on phantoms, launched with ``--resume``."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.interruptions import REPOSITORY, TINY, TOO_LONG, FaultInjector, Launch, Outcome, unequal
from utils.checkpoints.read import read_checkpoint

EPOCHS, SAVE_EVERY = 12, 2
FLAGS = [
    *TINY,
    *("--optim_lr=1e-2", "--warmup_epochs=2", f"--max_epochs={EPOCHS}", "--val_every=6", f"--save_every={SAVE_EVERY}"),
    *("--save_checkpoint", "--resume", "--logdir=run"),
]
WORKERS_KILLED = 3  # in a run of two processes


class TrainingInjector(FaultInjector):
    """Interrupts ``main.py``. An interruption is halfway if it left a checkpoint in the middle of an epoch.

    Args:
        data: the folder of the phantoms, written by :func:`utils.phantom.write_phantoms`.
    """

    program = "main.py"

    def __init__(self, folder: Path, data: Path, seed: int = 0) -> None:
        self.data = data
        super().__init__(folder, seed)

    def flags(self, name: str) -> list[str]:
        """The flags of a run with a random number of workers, mostly none, since starting them takes long."""
        return [*FLAGS, f"--data_dir={self.data}", f"--workers={self.random.choice((0, 0, 0, 1, 2))}"]

    def results(self, name: str) -> Path:
        """The run's folder."""
        return self.folder / name / "runs" / "run"

    def progress(self, name: str) -> int:
        """The number of trained epochs."""
        return self.log(name).count(": loss ")

    def finished(self, name: str) -> dict[str, Any]:
        """The checkpoint, once there is one; its content changes."""
        return {"model_final.pt": None} if (self.results(name) / "model_final.pt").exists() else {}

    def differences(self, name: str) -> list[str]:
        """What differs in the checkpoints, the curves and the number of epochs."""
        return differences(self.results(self.reference(name)), self.results(name))

    def examine(self, launch: Launch, outcome: Outcome) -> None:
        """Check that the checkpoint can be read, and is new enough."""
        content = self._checkpoint(launch, outcome)
        if content is not None:
            trained = len((self.results(launch.name) / "metrics.jsonl").read_text().splitlines())
            outcome.lost += trained - content["resume"]["progress"]["epoch"] > SAVE_EVERY

    def _checkpoint(self, launch: Launch, outcome: Outcome) -> dict[str, Any] | None:
        latest = self.results(launch.name) / "model_final.pt"
        if not latest.exists():
            return None
        try:
            content = read_checkpoint(latest)
        except ValueError as error:
            outcome.lost += 1
            outcome.problems.append(str(error))
            return None
        outcome.halfway += content["resume"]["progress"]["unfinished"]["scans"] > 0
        return content

    def full_disks(self, times: int) -> Outcome:
        """Limit the file size ``times`` times, each time after a launch without a limit that made progress."""
        size = (self.results(self.reference("")) / "model_final.pt").stat().st_size

        def interrupt(name: str, outcome: Outcome) -> bool:
            progress = self.progress(name)
            if self.interrupt(name, signal.SIGTERM).status == 0:
                return True
            latest = self.results(name) / "model_final.pt"
            before = latest.read_bytes() if latest.exists() else None
            launch = self.launch(name, file_size=self.random.randrange(size // 100, size))
            self.finish(launch)
            outcome.interruptions += 1
            outcome.at_work += self.progress(name) > progress
            if launch.status != 1 or "not saved: " not in launch.output():
                outcome.problems.append(f"{name} ended with status {launch.status} on a full disk:\n{self.log(name)}")
            self.find_losses(launch, outcome)
            self._checkpoint(launch, outcome)
            if before is not None and latest.read_bytes() != before:
                outcome.problems.append(f"{name}: a full disk changed the last good checkpoint")
            return False

        return self.repeat("full-disk", times, interrupt)

    def two_processes(self, name: str) -> "subprocess.Popen[str]":
        """Launch a run in two processes that torchrun restarts."""
        # kills should come within epochs: so more epochs, long steps, and only a checkpoint between epochs
        number = EPOCHS + 2 * WORKERS_KILLED
        epochs = [f"--max_epochs={number}", f"--val_every={number}", "--save_every=1", "--crops_per_scan=32"]
        argv = [*FLAGS, *epochs, f"--data_dir={self.data}", "--workers=0", "--distributed"]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        restarts = f"--max-restarts={6 * WORKERS_KILLED}"  # kills while saving come on top
        path = self.new_log(name)
        with open(path, "w") as log:
            return subprocess.Popen(
                [*torchrun, restarts, str(REPOSITORY / self.program), *argv],
                cwd=path.parent, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=log, text=True,
            )  # fmt: skip

    def killed_workers(self, times: int) -> Outcome:
        """Kill one of two processes until ``times`` kills were within an epoch, :data:`WORKERS_KILLED` in each run."""
        outcome = Outcome()
        if self.two_processes("uninterrupted-two").wait(TOO_LONG) != 0:
            raise RuntimeError(self.log("uninterrupted-two"))
        while outcome.halfway < times:
            name = f"workers{outcome.runs}"
            torchrun = self.two_processes(name)
            kills = 0
            while sum(self._within_epochs(name)) < min(WORKERS_KILLED, times - outcome.halfway):
                if not self._kill_a_worker(torchrun, name):
                    break
                kills += 1
            outcome.interruptions += kills
            status = torchrun.wait(TOO_LONG)
            text = self.log(name)
            if status != 0:
                outcome.problems.append(f"{name} ended with status {status}:\n{text}")
            outcome.at_work += len(self._within_epochs(name))
            outcome.halfway += sum(self._within_epochs(name))
            outcome.lost += text.count("starts anew") - 1 + text.count("moved to ")
            outcome.runs += 1
            problems = differences(self.results("uninterrupted-two"), self.results(name))
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
        latest = self.results(name) / "model_final.pt"

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


def differences(expected: Path, found: Path) -> list[str]:
    """The results that differ between two runs of one seed. Wall-clock times may differ."""
    problems = []
    for name in ("model.pt", "model_final.pt"):
        one, other = (_comparable(torch.load(folder / name, weights_only=True)) for folder in (expected, found))
        problems += [f"{name}: {place}" for place in unequal(one, other)]
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


def _curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if tag != "train/seconds"
    }

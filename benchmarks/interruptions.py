"""Interrupt a program at random moments, launch it again until it is done, and compare its results.

:mod:`benchmarks.reliability` does this to each program; a subclass of :class:`FaultInjector` knows one of them.
"""

import faulthandler
import multiprocessing
import os
import random
import resource
import runpy
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from glob import glob
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch

from utils.system.files import UNFINISHED

REPOSITORY = Path(__file__).parent.parent
UNINTERRUPTED = "uninterrupted"
TOO_LONG = 120  # seconds; a launch takes a few
PRINT_STACKS = signal.SIGUSR2  # makes a launch print the stack of each thread
# forks the launches from a server that has imported everything, which saves seconds in each; torch's optimizers import
# torch._dynamo
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["main", "utils.crossval", "utils.export", "utils.inference.engines", "torch._dynamo", "torch.onnx"]
)

# a network and a grid small enough to train in seconds
TINY = [
    *("--space_x=12", "--space_y=12", "--space_z=14", "--roi_x=16", "--roi_y=16", "--roi_z=16"),
    *("--hidden_size=12", "--mlp_dim=12", "--num_heads=2", "--feature_size=2", "--dropout_rate=0.1"),
    *("--crops_per_scan=1", "--device=cpu", "--noamp"),
]


@dataclass
class Outcome:
    """The result of runs that were interrupted in one way.

    Attributes:
        interruptions: their number.
        at_work: interruptions of launches that had done a part of their work.
        halfway: interruptions in the middle of something, which each :class:`FaultInjector` defines.
        lost: finished work that is gone, can't be read, or was done again.
        runs: completed runs.
        problems: differences from the uninterrupted run, and other wrong behaviour.
    """

    interruptions: int = 0
    at_work: int = 0
    halfway: int = 0
    lost: int = 0
    runs: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass
class Launch:
    """One launch of a run's command.

    Attributes:
        name: of the run.
        log: its output.
        progress: what the run had done before, as :meth:`FaultInjector.progress` counts it.
        finished: what :meth:`FaultInjector.finished` said before.
        start: when it began, in nanoseconds.
        writing: whether a file was half-written when it was interrupted.
    """

    process: ForkServerProcess
    name: str
    log: Path
    progress: int
    finished: Mapping[str, Any]
    start: int
    writing: bool = False

    @property
    def status(self) -> int:
        """Its exit status, negative for a signal that killed it."""
        assert self.process.exitcode is not None, "the launch has ended"
        return self.process.exitcode

    @property
    def pid(self) -> int:
        """The process."""
        assert self.process.pid is not None, "the launch has begun"
        return self.process.pid

    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text() if self.log.exists() else ""


class FaultInjector(ABC):
    """Launches one program on the same data, and interrupts it.

    Each run has a folder of its own as its working directory.

    Args:
        folder: where the runs are written.
        seed: determines the moments of the interruptions.
    """

    program: str  # its file in this repository
    interruptions_of_a_run = sys.maxsize  # at most, so that there are several runs
    references: tuple[str, ...] = (UNINTERRUPTED,)  # names of runs that are never interrupted

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.folder = folder
        self.folder.mkdir(exist_ok=True)
        self.random = random.Random(seed)
        server = CONTEXT.Process(target=int)  # the next launch would wait for the server's imports
        server.start()
        server.join()
        self.seconds = {}
        for name in self.references:
            start = time.monotonic()
            assert self.finish(self.launch(name)) == 0, self.log(name)
            self.seconds[name] = time.monotonic() - start

    @abstractmethod
    def flags(self, name: str) -> list[str]:
        """The command line of a run's next launch."""

    @abstractmethod
    def results(self, name: str) -> Path:
        """The folder with a run's results."""

    @abstractmethod
    def progress(self, name: str) -> int:
        """How much of its work a run has done: a number that grows."""

    @abstractmethod
    def finished(self, name: str) -> dict[str, Any]:
        """What a run has finished so far, by name. Later launches must neither lose it nor change its value."""

    @abstractmethod
    def examine(self, launch: Launch, outcome: Outcome) -> None:
        """Look at the files after an interruption. They must be whole."""

    @abstractmethod
    def differences(self, name: str) -> list[str]:
        """The results of a completed run that differ from those of the uninterrupted one. Times may differ."""

    def reference(self, name: str) -> str:
        """The name of the uninterrupted run that a run must equal."""
        return self.references[0]

    def statuses(self, number: int) -> set[int]:
        """The exit statuses that a signal may lead to."""
        return {-number if number == signal.SIGKILL else 128 + number}

    def log(self, name: str) -> str:
        """The output of all launches of a run."""
        return "".join(path.read_text() for path in sorted((self.folder / name).glob("launch*.log")))

    def new_log(self, name: str) -> Path:
        """The file for the output of a run's next launch, in the run's working directory."""
        place = self.folder / name
        place.mkdir(exist_ok=True)
        return place / f"launch{len(list(place.glob('launch*.log'))):04}.log"

    def launch(self, name: str, file_size: int | None = None) -> Launch:
        """Launch a run.

        Args:
            name: of the run.
            file_size: the limit for files that it writes, in bytes.
        """
        log = self.new_log(name)
        process = CONTEXT.Process(target=_run, args=(self.program, self.flags(name), log, file_size))
        launch = Launch(process, name, log, self.progress(name), self.finished(name), time.time_ns())
        process.start()
        return launch

    def finish(self, launch: Launch) -> int:
        """Wait for the end of a launch. Returns its exit status, negative for a signal that killed it.

        Raises:
            RuntimeError: if it doesn't end, with the log and the stacks of its threads.
        """
        launch.process.join(TOO_LONG)
        if launch.process.exitcode is None:
            os.kill(launch.pid, PRINT_STACKS)
            launch.process.join(1)
            launch.process.kill()
            raise RuntimeError(f"a launch of {launch.name} did not end within {TOO_LONG} s:\n{self.log(launch.name)}")
        return launch.status

    def wait_until(
        self, happened: Callable[[], bool], runs: Callable[[], bool], name: str, pause: float = 0.01
    ) -> bool:
        """Wait until something has happened or run ``name`` has ended. Returns whether it still runs.

        Args:
            pause: seconds between two looks.
        """
        deadline = time.monotonic() + TOO_LONG
        while not happened() and runs():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{name} made no progress within {TOO_LONG} s:\n{self.log(name)}")
            time.sleep(pause)
        return runs()

    def wait_for_a_moment(self, launch: Launch, at_work: bool) -> None:
        """Wait for a random moment of a launch.

        Half of these moments are during the start. The others are after a part of its work, however long the start
        takes on a busy machine.

        Args:
            at_work: always wait for a part of its work.
        """
        if at_work or self.random.random() < 0.5:
            self.wait_until(lambda: self.is_at_work(launch), launch.process.is_alive, launch.name)
        # about as long as a start takes
        time.sleep(self.random.uniform(0, 0.25 * self.seconds[self.reference(launch.name)]))

    def is_at_work(self, launch: Launch) -> bool:
        """Whether a launch has done a part of its work."""
        return self.progress(launch.name) > launch.progress

    def is_writing(self, launch: Launch) -> bool:
        """Whether a launch has begun a file that isn't whole yet."""
        return any(_changed(path) >= launch.start for path in self.unfinished(launch.name))

    def unfinished(self, name: str) -> list[Path]:
        """The files of a run that aren't whole, by their names."""
        # unlike pathlib's, this passes over folders that vanish at this moment
        return [
            Path(path) for path in glob(f"{self.results(name)}/**/*{UNFINISHED}", recursive=True, include_hidden=True)
        ]

    def interrupt(self, name: str, number: int, at_work: bool = False) -> Launch:
        """Launch a run, send it a signal at a random moment, and wait for its end.

        Args:
            at_work: not before it has done a part of its work.
        """
        launch = self.launch(name)
        self.wait_for_a_moment(launch, at_work)
        launch.writing = self.is_writing(launch)
        if launch.process.is_alive():
            self.send(launch, number)
        self.finish(launch)
        return launch

    def send(self, launch: Launch, number: int) -> None:
        """Send a launch a signal."""
        os.kill(launch.pid, number)

    def repeat(self, kind: str, times: int, interrupt: Callable[[str, Outcome], bool]) -> Outcome:
        """Interrupt runs ``times`` times, and let each of them end.

        Args:
            kind: the first part of the runs' names.
            interrupt: launches the run of a name once, records the result, and returns whether the run is done.
        """
        outcome = Outcome()
        while outcome.interruptions < times:
            name = f"{kind}{outcome.runs}"
            done, end = False, min(times, outcome.interruptions + self.interruptions_of_a_run)
            while not done and outcome.interruptions < end:
                done = interrupt(name, outcome)
            if not done:
                self.complete(name, outcome)
            outcome.runs += 1
            outcome.problems += [f"{name}: {problem}" for problem in self.differences(name)]
        return outcome

    def complete(self, name: str, outcome: Outcome) -> None:
        """Launch a run without an interruption."""
        launch = self.launch(name)
        if self.finish(launch) != 0:
            outcome.problems.append(f"{name} ended with status {launch.status}:\n{self.log(name)}")
        self.find_losses(launch, outcome)

    def find_losses(self, launch: Launch, outcome: Outcome) -> None:
        """Count what had been finished before a launch and has gone or changed since then."""
        now = self.finished(launch.name)
        lost = [what for what, value in launch.finished.items() if what not in now or now[what] != value]
        outcome.lost += len(lost)
        outcome.problems += [f"{launch.name}: {what} was lost, or done again" for what in lost]

    def signals(self, number: int, times: int) -> Outcome:
        """Send a signal to runs ``times`` times, at least once at work."""

        def interrupt(name: str, outcome: Outcome) -> bool:
            launch = self.interrupt(name, number, at_work=outcome.at_work == 0)
            if launch.status == 0:
                self.find_losses(launch, outcome)
                return True
            outcome.interruptions += 1
            outcome.at_work += self.is_at_work(launch)
            before_its_first_line = launch.status == -number and not launch.output()
            if launch.status not in self.statuses(number) and not before_its_first_line:
                outcome.problems.append(f"{name} ended with status {launch.status}:\n{self.log(name)}")
            self.find_losses(launch, outcome)
            self.examine(launch, outcome)
            return False

        return self.repeat(signal.Signals(number).name, times, interrupt)


def _run(program: str, argv: list[str], log: Path, file_size: int | None) -> None:
    """Run a program as if its command line had been typed in the folder of ``log``."""
    os.chdir(log.parent)
    os.setsid()  # so that a signal can be sent to all that it starts
    multiprocessing.set_start_method("fork", force=True)  # the default when the program is launched from a shell
    torch.set_num_threads(1)
    with open(log, "w") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    faulthandler.register(PRINT_STACKS)
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, resource.RLIM_INFINITY))
    sys.argv = [program, *argv]
    runpy.run_path(str(REPOSITORY / program), run_name="__main__")


def _changed(path: Path) -> int:
    """When a file was last changed, in nanoseconds; 0 if it has gone."""
    try:
        return path.stat().st_ctime_ns
    except FileNotFoundError:
        return 0


def unequal(one: Any, other: Any, place: str = "") -> list[str]:
    """The places, as KEY/KEY/INDEX, at which two nested values differ."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [problem for key in one for problem in unequal(one[key], other[key], f"{place}/{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [problem for number, pair in pairs for problem in unequal(*pair, f"{place}/{number}")]
    same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    return [] if same else [place]

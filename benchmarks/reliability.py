"""Interrupt the programs at random moments, and compare their results: ``python -m benchmarks.reliability``.

Each program is launched with the same command until it is done. It is killed (``kill -9``), asked to stop (SIGTERM),
or hits a file size limit, which makes writes fail as on a full disk. The results must be identical to those of an
uninterrupted run.

- ``main.py`` trains a tiny network on phantoms, with ``--resume``. Of two processes under torchrun one is killed
  several times; they have to go on without a new launch.
- ``test.py`` segments phantoms with that network. What is finished must not be done again.
- ``utils.crossval`` trains and scores two folds. Signals go to it, to the program that it runs, or to both.
- ``utils.export`` writes the network in each format. At any moment there is the whole new file, the old one, or none.
"""

import argparse
import signal
import tempfile
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

from benchmarks.interrupted_commands import CrossValidationInjector, ExportInjector, SegmentationInjector
from benchmarks.interrupted_training import TrainingInjector
from benchmarks.interruptions import Outcome
from utils.config.parser import Parser, count
from utils.phantom import write_phantoms
from utils.system.errors import one_line_errors

TRAINING_HEADS = ("times", "in training", "within an epoch", "checkpoints lost", "runs", "differences")
COMMAND_HEADS = ("times", "at work", "while writing", "lost or broken", "runs", "differences")


class Programs:
    """Each program with an uninterrupted run, which takes place when it is first asked for.

    Args:
        folder: where phantoms and runs are written.
        seed: determines the moments of the interruptions.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.seed = seed
        self.coarse = folder / "phantoms"
        write_phantoms(self.coarse, {"training": 4, "validation": 2, "test": 0}, seed=0, spacing=(10.0, 10.0, 12.0))

    @cached_property
    def training(self) -> TrainingInjector:
        """``main.py``."""
        return TrainingInjector(self.folder / "training", self.coarse, self.seed)

    @cached_property
    def weights(self) -> Path:
        """The trained network."""
        return self.training.results(self.training.references[0]) / "model.pt"

    @cached_property
    def segmentation(self) -> SegmentationInjector:
        """``test.py``, on finer phantoms: a full disk then has room for the messages but not for a mask."""
        data = self.folder / "fine"
        write_phantoms(data, {"training": 0, "validation": 5, "test": 0}, seed=1, spacing=(5.0, 5.0, 6.0))
        return SegmentationInjector(self.folder / "segmentation", data, self.weights, self.seed)

    @cached_property
    def crossval(self) -> CrossValidationInjector:
        """``utils.crossval``."""
        return CrossValidationInjector(self.folder / "crossval", self.coarse, self.seed)

    @cached_property
    def export(self) -> ExportInjector:
        """``utils.export``."""
        return ExportInjector(self.folder / "export", self.weights, self.seed)


Interrupt = Callable[[Programs, int], Outcome]

TRAINING_ROWS: dict[str, Interrupt] = {
    "kill -9": lambda programs, times: programs.training.signals(signal.SIGKILL, times),
    "SIGTERM": lambda programs, times: programs.training.signals(signal.SIGTERM, times),
    "full disk": lambda programs, times: programs.training.full_disks(times),
    "kill -9, 1 of 2": lambda programs, times: programs.training.killed_workers(times),
}
COMMAND_ROWS: dict[str, Interrupt] = {
    "test.py: kill -9": lambda programs, times: programs.segmentation.signals(signal.SIGKILL, times),
    "test.py: SIGTERM": lambda programs, times: programs.segmentation.signals(signal.SIGTERM, times),
    "test.py: full disk": lambda programs, times: programs.segmentation.full_disks(times),
    "crossval: kill -9": lambda programs, times: programs.crossval.signals(signal.SIGKILL, times),
    "crossval: SIGTERM": lambda programs, times: programs.crossval.signals(signal.SIGTERM, times),
    "crossval: full disk": lambda programs, times: programs.crossval.full_disks(times),
    "export: kill -9": lambda programs, times: programs.export.signals(signal.SIGKILL, times),
    "export: full disk": lambda programs, times: programs.export.full_disks(times),
}
ROWS = {**TRAINING_ROWS, **COMMAND_ROWS}


def table(heads: Sequence[str], outcomes: dict[str, Outcome]) -> str:
    """The outcomes by the name of their row, below six heads."""
    width = max(map(len, outcomes))
    lines = [[" " * width, *heads]]
    for name, outcome in outcomes.items():
        moments = (outcome.interruptions, outcome.at_work, outcome.halfway)
        ends = (outcome.lost, outcome.runs, len(outcome.problems))
        cells = [f"{number:>{len(head)}}" for number, head in zip((*moments, *ends), heads, strict=True)]
        lines.append([f"{name:<{width}}", *cells])
    return "\n".join("  ".join(line) for line in lines)


def main(args: argparse.Namespace) -> None:
    """Print a row for each kind of interruption."""
    problems = []
    with tempfile.TemporaryDirectory() as name:
        programs = Programs(Path(name), args.seed)
        for heads, rows in ((TRAINING_HEADS, TRAINING_ROWS), (COMMAND_HEADS, COMMAND_ROWS)):
            chosen = {row: interrupt for row, interrupt in rows.items() if args.rows is None or row in args.rows}
            outcomes = {row: interrupt(programs, args.times) for row, interrupt in chosen.items()}
            if outcomes:
                print(table(heads, outcomes), flush=True)
            problems += [problem for outcome in outcomes.values() for problem in outcome.problems]
    if problems:
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    parser = Parser(prog="python -m benchmarks.reliability", description="Interrupt programs, and compare.")
    parser.add_argument("--times", type=count, default=30, help="interruptions of each kind")
    parser.add_argument(
        "--rows", nargs="+", choices=tuple(ROWS), metavar="NAME", help=f"only some (default: {'; '.join(ROWS)})"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    with one_line_errors():
        main(parser.parse_args())

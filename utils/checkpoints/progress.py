"""How far a training run has come."""

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass
class UnfinishedEpoch:
    """The part of an epoch that is done.

    Attributes:
        scans: how many of its scans, over all processes.
        losses: of its steps, the mean over all processes once saved.
        lr: the last step's learning rate.
        seconds: the time that it took.
    """

    scans: int = 0
    losses: list[float] = field(default_factory=list)
    lr: float = 0.0
    seconds: float = 0.0


def steps_for(scans: int, processes: int, batch_size: int, accumulate: int) -> int:
    """Training steps in which ``scans`` scans are used once, over all processes."""
    return math.ceil(math.ceil(math.ceil(scans / processes) / batch_size) / accumulate)


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        epoch: epochs that are done, their validation included.
        unfinished: what is done of the next one.
        score: mean Dice of the last validation, or None before the first.
        best_score, best_epoch: the mean Dice of the best model that was kept, and after how many epochs it was.
        history: the JSON lines of the epochs that are done.
    """

    epoch: int = 0
    unfinished: UnfinishedEpoch = field(default_factory=UnfinishedEpoch)
    score: float | None = None
    best_score: float | None = None
    best_epoch: int | None = None
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def at_start(self) -> bool:
        """Whether not even a step is done."""
        return self.epoch == 0 and self.unfinished.scans == 0

    def steps_done(self, scans: int, processes: int, batch_size: int, accumulate: int) -> int:
        """Training steps that are done, in epochs of ``scans`` scans.

        They are counted from the epoch's end, where the last step may have fewer scans than the others.
        """
        left = max(0, scans - self.unfinished.scans)
        whole, rest = (steps_for(count, processes, batch_size, accumulate) for count in (scans, left))
        return (self.epoch + 1) * whole - rest

    def __str__(self) -> str:
        return f"epoch {self.epoch}" + (
            f" and {self.unfinished.scans} scans of the next" if self.unfinished.scans else ""
        )

    def finish_epoch(self, line: dict[str, Any], score: float | None) -> None:
        """Add an epoch's JSON line to the history and turn to the next.

        Args:
            score: mean Dice of the epoch's validation, if it had one.
        """
        self.epoch += 1
        self.unfinished = UnfinishedEpoch()
        self.history.append(line)
        self.score = self.score if score is None else score

    def improves(self, score: float) -> bool:
        """Whether a validation's mean Dice is the best so far. NaN is below every number."""
        return self.best_score is None or math.isnan(self.best_score) or score > self.best_score

"""How far a training run has come."""

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass
class UnfinishedEpoch:
    """The part of an epoch that is done.

    Attributes:
        scans: scans used so far, over all processes.
        losses: the loss of each step; in a checkpoint the mean over all processes.
        lr: learning rate of the last step.
        seconds: time spent so far.
    """

    scans: int = 0
    losses: list[float] = field(default_factory=list)
    lr: float = 0.0
    seconds: float = 0.0


def steps_for(scans: int, processes: int, batch_size: int, accumulate: int) -> int:
    """Training steps that use each of ``scans`` scans once, over all processes."""
    return math.ceil(math.ceil(math.ceil(scans / processes) / batch_size) / accumulate)


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        epoch: epochs that are done, their validation included.
        unfinished: the part of the next epoch that is done.
        score: mean Dice of the last validation; None before the first.
        best_score, best_epoch: mean Dice of the best saved model, and the epochs behind it.
        history: the JSON line of each epoch that is done.
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

        Counted back from the epoch's end, since its last step may have fewer scans than the others.
        """
        left = max(0, scans - self.unfinished.scans)
        whole, rest = (steps_for(count, processes, batch_size, accumulate) for count in (scans, left))
        return (self.epoch + 1) * whole - rest

    def __str__(self) -> str:
        return f"epoch {self.epoch}" + (
            f" and {self.unfinished.scans} scans of the next" if self.unfinished.scans else ""
        )

    def finish_epoch(self, line: dict[str, Any], score: float | None) -> None:
        """Add the JSON line of a finished epoch to the history.

        Args:
            score: mean Dice of the epoch's validation; None if it had none.
        """
        self.epoch += 1
        self.unfinished = UnfinishedEpoch()
        self.history.append(line)
        self.score = self.score if score is None else score

    def improves(self, score: float) -> bool:
        """Whether a mean Dice is the best so far. NaN is below every number."""
        return self.best_score is None or math.isnan(self.best_score) or score > self.best_score

"""The training loop: what happens when. Files, ranks and flags are other modules' business."""

import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from utils.checkpoint import Progress
from utils.distributed import Process
from utils.errors import Stopped, TrainingError
from utils.inference import Example
from utils.metrics import Scores
from utils.precision import Precision
from utils.run_folder import RunFolder
from utils.score_tables import organ_table, score_record

Loss = Callable[[Tensor, Tensor], Tensor]
Validate = Callable[[nn.Module], tuple[Scores, Example | None]]


@dataclass(frozen=True)
class Plan:
    """How long a run is and what happens between its epochs.

    Attributes:
        epochs: epochs in the whole run.
        validate_every: epochs from one validation to the next; the last epoch always has one.
        save: whether the weights are kept.
        save_every: epochs from one save of the latest checkpoint to the next; the last epoch always has one.
        seed: seed of what is random in the network itself (dropout).
    """

    epochs: int
    validate_every: int
    save: bool
    save_every: int
    seed: int

    def validates(self, epoch: int) -> bool:
        """Whether a validation follows when ``epoch`` epochs are done."""
        return epoch % self.validate_every == 0 or epoch == self.epochs

    def saves(self, epoch: int) -> bool:
        """Whether the latest checkpoint is saved when ``epoch`` epochs are done."""
        return self.save and (epoch % self.save_every == 0 or epoch == self.epochs)


@dataclass(frozen=True)
class Learner:
    """A network and what a training step does to it.

    Attributes:
        network: as it is validated and saved.
        wrapped: the same as it is trained, its gradients averaged over the processes.
    """

    network: nn.Module
    wrapped: nn.Module
    loss_function: Loss
    optimizer: Optimizer
    scheduler: LRScheduler
    scaler: torch.amp.GradScaler
    precision: Precision

    def step(self, image: Tensor, label: Tensor) -> tuple[float, float]:
        """One step of the optimizer, unless the loss isn't finite.

        Args:
            image: (B, C, D, H, W).
            label: (B, 1, D, H, W).

        Returns:
            The loss and the learning rate of the step.
        """
        with self.precision.autocast():
            logits = self.wrapped(image)  # (B, classes, D, H, W)
            loss = self.loss_function(logits.float(), label)
        value, lr = loss.item(), float(self.scheduler.get_last_lr()[0])
        if math.isfinite(value):
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.scheduler.step()
        return value, lr


@dataclass(frozen=True)
class Run:
    """What a run is made of, beside how far it has come.

    Attributes:
        validate: scores a network on the validation scans of all processes, and shows the first of this one's.
        folder: where the main process records the run; None in the others.
    """

    plan: Plan
    learner: Learner
    train_loader: DataLoader
    validate: Validate
    process: Process
    folder: RunFolder | None


def run_training(run: Run, progress: Progress) -> None:
    """Train from where ``progress`` stands to the end of the plan.

    Raises:
        TrainingError: when a loss isn't finite, or the end of the run could not be saved.
        Stopped: after a signal; the step that was under way has ended and everything is saved.
    """
    plan, learner, process, folder = run.plan, run.learner, run.process, run.folder
    try:
        with process.stop.deferred():
            if folder is not None and plan.save and not progress.at_start and not folder.latest.exists():
                # of a run from elsewhere; without it a kill would lead back to before that run's first step
                folder.save_latest(learner.network, learner.optimizer, learner.scaler, progress)
            while progress.epoch < plan.epochs:
                process.end_if_asked()
                run_epoch(run, progress)
    except TrainingError as error:
        good = folder.latest if folder is not None and folder.latest.exists() else "none"
        raise TrainingError(f"{error} Last good checkpoint: {good}. Try a lower --optim_lr, or --noamp.") from None
    except Stopped as stopped:
        text = f"stopped by {signal.Signals(stopped.number).name} after {progress}; "
        progress.unfinished.losses = process.means(progress.unfinished.losses)
        if folder is not None and not plan.save:
            text += "nothing was kept, since --save_checkpoint is off"
        elif folder is not None and folder.save_latest(learner.network, learner.optimizer, learner.scaler, progress):
            text += f"{folder.latest} has it all: launch the same command with --resume, not --overwrite, to go on"
        elif folder is not None:
            text += "that could not be saved, and --resume will go on from the checkpoint before"
        process.wait_for_all()
        raise Stopped(stopped.number, text if process.is_main else "") from None
    if folder is not None:
        folder.require_saved()


def run_epoch(run: Run, progress: Progress) -> None:
    """What is left of an epoch, its validation where the plan has one, and the record of both."""
    plan, learner, process, folder = run.plan, run.learner, run.process, run.folder
    train_epoch(run, progress)
    epoch, done = progress.epoch + 1, progress.unfinished
    loss = process.means([sum(done.losses) / len(done.losses)])[0]
    line: dict[str, Any] = {"epoch": epoch, "loss": loss, "lr": done.lr, "seconds": done.seconds}
    process.say(f"epoch {epoch}/{plan.epochs}: loss {loss:.4f}, rate {done.lr:.2e}, {done.seconds:.1f} s")

    scores, example = None, None
    if plan.validates(epoch):
        with process.ending_within(learner.network):
            scores, example = run.validate(learner.network)
        line["dice"] = score_record(scores)
    progress.finish_epoch(line, None if scores is None else scores.mean)
    if scores is not None:
        kept = progress.improves(scores.mean) and (
            folder is None or not plan.save or folder.save_best(learner.network, progress)
        )
        if kept:
            progress.best_score, progress.best_epoch = scores.mean, epoch
        process.say(f"{organ_table(scores)}\n  {_best(progress)}")
    if folder is not None:
        folder.record(progress, example)
        if plan.saves(epoch):
            folder.save_latest(learner.network, learner.optimizer, learner.scaler, progress)


def train_epoch(run: Run, progress: Progress) -> None:
    """What is left of a pass over the training scans, noted in ``progress`` step by step.

    Raises:
        TrainingError: when a loss isn't finite, with the epoch and the scans of the batch.
        Stopped: after the step in which a signal came.
    """
    learner, loader, process = run.learner, run.train_loader, run.process
    learner.wrapped.train()
    done = progress.unfinished
    loader.sampler.go_to(progress.epoch, done.scans)  # type: ignore[attr-defined]
    scans_in_step = loader.batch_size * process.world_size  # type: ignore[operator]
    scans_in_epoch = len(loader.sampler) * process.world_size  # type: ignore[arg-type]
    start = time.perf_counter()
    bar = process.bar(loader, f"epoch {progress.epoch + 1}/{run.plan.epochs}")
    for batch in bar:
        # dropout, like the crops, is a function of the seed and the step, not of what happened before
        torch.manual_seed(_step_seed(run.plan.seed, progress.epoch, done.scans, process.rank))
        image = batch["image"].to(process.device, non_blocking=True)  # (B, C, D, H, W)
        label = batch["label"].to(process.device, non_blocking=True)  # (B, 1, D, H, W)
        loss, lr = learner.step(image, label)
        if not math.isfinite(loss):
            scans = ", ".join(dict.fromkeys(batch["name"]))
            raise TrainingError(f"the loss is {loss} in epoch {progress.epoch + 1}, in the batch of {scans}.")
        now = time.perf_counter()
        done.scans = min(done.scans + scans_in_step, scans_in_epoch)
        done.losses.append(loss)
        done.lr = lr
        done.seconds += now - start
        start = now
        bar.set_postfix(loss=f"{loss:.4f}", lr=f"{lr:.1e}")
        process.end_if_asked()


def _best(progress: Progress) -> str:
    if progress.best_score is None:
        return "no best model was kept yet"
    return f"best {progress.best_score:.4f} after epoch {progress.best_epoch}"


def _step_seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])

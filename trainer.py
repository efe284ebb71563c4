"""The training loop: what happens when. Files, ranks and flags are other modules' business."""

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from networks.precision import Precision
from utils.checkpoints.progress import Progress
from utils.checkpoints.resume import learner_state
from utils.distributed.process import Process
from utils.evaluation.validation import Validation
from utils.system.errors import LostError, Stopped, TrainingError, is_out_of_memory
from utils.training.losses import Loss
from utils.training.run_folder import RunFolder

Batch = dict[str, Any]
Validate = Callable[[nn.Module], Validation]


@dataclass(frozen=True)
class Plan:
    """How long a run is and what happens between its epochs.

    Attributes:
        epochs: epochs in the whole run.
        validate_every: epochs from one validation to the next; the last epoch always has one.
        save: whether the weights are kept.
        save_every: epochs from one save of the latest checkpoint to the next; the last epoch always has one.
        seed: seed of what is random in the network itself (dropout).
        accumulate: batches of each process in a step.
    """

    epochs: int
    validate_every: int
    save: bool
    save_every: int
    seed: int
    accumulate: int

    def validates(self, epoch: int) -> bool:
        """Whether a validation follows when ``epoch`` epochs are done."""
        return epoch % self.validate_every == 0 or epoch == self.epochs

    def saves(self, epoch: int) -> bool:
        """Whether the latest checkpoint is saved when ``epoch`` epochs are done."""
        return self.save and (epoch % self.save_every == 0 or epoch == self.epochs)


@dataclass
class Learner:
    """A network and what a training step does to it.

    Attributes:
        network: whose weights are trained.
        wrapped: the same for training: with DDP around it, or recorded as a CUDA graph.
        compiling: whether the next step is the first one, which compiles the network.
        clip_grad_norm: the longest gradient of all weights together; longer ones are shortened to it.
        average: the running average of the weights, where there is one.
    """

    network: nn.Module
    wrapped: nn.Module
    loss_function: Loss
    optimizer: Optimizer
    scheduler: LRScheduler
    scaler: torch.amp.GradScaler
    precision: Precision
    compiling: bool = False
    clip_grad_norm: float | None = None
    average: AveragedModel | None = None

    def __post_init__(self) -> None:
        # such as a mask of -inf in a network of one's own
        self._infinite = [name for name, buffer in self.network.named_buffers() if not buffer.isfinite().all()]

    @property
    def evaluated(self) -> nn.Module:
        """The network that is validated and saved: with the average of its weights where there is one."""
        return self.network if self.average is None else self.average.module

    def loss(self, image: Tensor, label: Tensor, not_annotated: Sequence[Sequence[int]] = ()) -> Tensor:
        """The loss of a batch.

        Args:
            image: (B, C, D, H, W).
            label: (B, 1, D, H, W).
            not_annotated: for each sample the classes that nobody drew; empty if all are drawn in all.
        """
        with self.precision.autocast():
            logits = self.wrapped(image)  # (B, classes, D, H, W), or a list with deep supervision
            return self.loss_function(logits, label, not_annotated)

    def add_gradients(self, loss: Tensor, parts: int) -> float:
        """Add the gradients of one of a step's ``parts`` batches; the batch's loss as a number."""
        self.scaler.scale(loss / parts).backward()
        return loss.item()

    def update(self) -> float:
        """Take an optimizer step; the learning rate that it had."""
        lr = float(self.scheduler.get_last_lr()[-1])  # not that of a ViT, which comes first
        if self.clip_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.scheduler.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        return lr

    def is_finite(self) -> bool:
        """Whether all weights are finite, and the running statistics."""
        buffers = [buffer for name, buffer in self.network.named_buffers() if name not in self._infinite]
        return all(bool(tensor.isfinite().all()) for tensor in (*self.network.parameters(), *buffers))

    def state(self) -> dict[str, Any]:
        """What resuming needs beside the saved network."""
        return learner_state(self.network, self.average, self.optimizer, self.scaler)


@dataclass(frozen=True)
class Run:
    """The parts of a training run.

    Attributes:
        validate: scores a network on the validation scans of all processes.
        latest: where the checkpoint lies that the run can go on from.
        folder: where the main process records the run; None in the others.
    """

    plan: Plan
    learner: Learner
    train_loader: DataLoader
    validate: Validate
    process: Process
    latest: Path
    folder: RunFolder | None


def run_training(run: Run, progress: Progress) -> None:
    """Train from where ``progress`` stands to the end of the plan.

    Raises:
        TrainingError: when a loss or a weight isn't finite, or the end of the run could not be saved.
        LostError: when another process has died, or a worker that makes batches; in the latter case all is saved.
        Stopped: after a signal; the step that was under way has ended and everything is saved.
    """
    plan, learner, process, folder = run.plan, run.learner, run.process, run.folder
    try:
        with process.stop.deferred():
            if folder is not None and plan.save and not progress.at_start and not folder.latest.exists():
                # the run came from another folder; without this a kill would lose all of it
                folder.save_latest(learner.evaluated, learner.state(), progress)
            while progress.epoch < plan.epochs:
                process.stop_together_if_requested()
                run_epoch(run, progress)
    except TrainingError as error:
        raise TrainingError(f"{error} {_last_good(run)} Try a lower `optim_lr`, or `noamp`.") from None
    except LostError as error:
        advice = "Launch the same command with `resume` to go on; torchrun --max-restarts does that by itself."
        if process.world_size == 1:  # it waited for a batch of a worker that died, and all it has learnt is whole
            advice = "Launch the same command with `resume` to go on."
            if folder is not None and plan.save:
                folder.save_latest(learner.evaluated, learner.state(), progress)
        raise LostError(f"{error} {_last_good(run)} {advice}") from None
    except Stopped as stopped:
        text = f"stopped by {signal.Signals(stopped.number).name} after {progress}; "
        progress.unfinished.losses = process.all_reduce_mean(progress.unfinished.losses)
        if folder is not None and not plan.save:
            text += "nothing was kept, since `save_checkpoint` is off"
        elif folder is not None and folder.save_latest(learner.evaluated, learner.state(), progress):
            text += f"{folder.latest} has it all: the same command with `resume`, and without `overwrite`, goes on"
        elif folder is not None:
            text += "that could not be saved, and `resume` will go on from the checkpoint before"
        process.barrier()
        raise Stopped(stopped.number, text if process.is_main else "") from None
    except (RuntimeError, MemoryError) as error:
        if not (isinstance(error, torch.OutOfMemoryError) or is_out_of_memory(error)):
            raise
        on_gpu = ", or `nocuda_graph`" if process.device.type == "cuda" else ""
        advice = (
            "Give a smaller `batch_size` (with `accumulate`) or `crops_per_scan`, or `activation_checkpointing`"
            f"{on_gpu}."
        )
        raise TrainingError(f"{process.device} is out of memory after {progress}. {_last_good(run)} {advice}") from None
    if folder is not None:
        folder.require_saved()


def run_epoch(run: Run, progress: Progress) -> None:
    """Train what is left of an epoch, validate where the plan says so, and record both."""
    plan, learner, process, folder = run.plan, run.learner, run.process, run.folder
    train_epoch(run, progress)
    epoch, so_far = progress.epoch + 1, progress.unfinished
    loss = process.all_reduce_mean([sum(so_far.losses) / len(so_far.losses)])[0]
    line: dict[str, Any] = {"epoch": epoch, "loss": loss, "lr": so_far.lr, "seconds": so_far.seconds}
    process.say(f"epoch {epoch}/{plan.epochs}: loss {loss:.4f}, rate {so_far.lr:.2e}, {so_far.seconds:.1f} s")

    found = None
    if plan.validates(epoch):
        found = run.validate(learner.evaluated)
        line |= found.record
    progress.finish_epoch(line, None if found is None else found.score)
    if found is not None and process.on_main_then_broadcast(
        "saving the best model", partial(_save_if_best, run, progress, found.score)
    ):
        progress.best_score, progress.best_epoch = found.score, epoch
    process.note_progress("saving")
    if folder is not None:
        folder.record(progress, found)
        if plan.saves(epoch):
            folder.save_latest(learner.evaluated, learner.state(), progress)
    if found is not None:
        process.say(f"{found.text}\n  {_best_text(progress)}")


def train_epoch(run: Run, progress: Progress) -> None:
    """Train what is left of a pass over the training scans; ``progress`` is kept up to date step by step.

    Raises:
        TrainingError: when a loss isn't finite, with the epoch and the scans of the batch, or the weights in the end.
        Stopped: after the step in which a signal came.
    """
    plan, learner, loader, process = run.plan, run.learner, run.train_loader, run.process
    learner.wrapped.train()
    so_far = progress.unfinished
    loader.sampler.go_to(progress.epoch, so_far.scans)  # type: ignore[attr-defined]
    scans_in_batch = loader.batch_size * process.world_size  # type: ignore[operator]
    scans_in_epoch = len(loader.sampler) * process.world_size  # type: ignore[arg-type]
    start = time.perf_counter()
    bar = process.bar(loader, f"epoch {progress.epoch + 1}/{plan.epochs}")
    for batches in _groups(bar, plan.accumulate):
        step = f"step {len(so_far.losses) + 1} of epoch {progress.epoch + 1}"
        # dropout, like the crops, is a function of the seed and the step, not of what happened before
        scans = [so_far.scans + number * scans_in_batch for number in range(len(batches))]
        seeds = [_step_seed(plan.seed, progress.epoch, before, process.rank) for before in scans]
        loss = accumulate_gradients(learner, batches, seeds, process, step)
        stop, broken = process.all_reduce_max(process.stop.number, not math.isfinite(loss))
        if broken:
            names = ", ".join(dict.fromkeys(name for batch in batches for name in batch["name"]))
            value, names = next(pair for pair in process.all_gather((loss, names)) if not math.isfinite(pair[0]))
            raise TrainingError(f"the loss is {value} in epoch {progress.epoch + 1}, in the batch of {names}.")
        so_far.lr = learner.update()
        now = time.perf_counter()
        so_far.scans = min(scans[-1] + scans_in_batch, scans_in_epoch)
        so_far.losses.append(loss)
        so_far.seconds += now - start
        if learner.compiling:
            bar.clear()
            process.say(f"the first step took {now - start:.1f} s, compilation included")
            learner.compiling = False
        start = now
        bar.set_postfix(loss=f"{loss:.4f}", lr=f"{so_far.lr:.1e}")
        if stop:
            require_finite(learner, process, step)
        process.stop.raise_if_requested(stop)
    require_finite(learner, process, f"the last step of epoch {progress.epoch + 1}")


def require_finite(learner: Learner, process: Process, step: str) -> None:
    """Check the weights before they are saved; the loss of the step after would tell, but comes later.

    Raises:
        TrainingError: in all processes, if they aren't finite in one of them.
    """
    if any(process.all_reduce_max(not learner.is_finite())):
        raise TrainingError(f"the weights aren't finite after {step}.")


def accumulate_gradients(
    learner: Learner, batches: Sequence[Batch], seeds: Sequence[int], process: Process, step: str
) -> float:
    """Add up the gradients of a step's batches, averaged over the processes while the last one's are computed.

    Returns:
        The mean of the batches' losses in this process.
    """
    losses = []
    with process.collective():
        for number, (batch, seed) in enumerate(zip(batches, seeds, strict=True)):
            torch.manual_seed(seed)
            image = batch["image"].to(process.device, non_blocking=True)  # (B, C, D, H, W)
            label = batch["label"].to(process.device, non_blocking=True)  # (B, 1, D, H, W)
            last = number == len(batches) - 1
            with nullcontext() if last else process.no_sync(learner.wrapped):
                process.note_progress(f"the forward pass of {step}")
                loss = learner.loss(image, label, batch["not_annotated"])
                process.note_progress(f"the backward pass of {step}")
                losses.append(learner.add_gradients(loss, len(batches)))
    return sum(losses) / len(losses)


def _groups(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    rest = iter(batches)
    while group := list(islice(rest, size)):
        yield group


def _save_if_best(run: Run, progress: Progress, score: float) -> bool:
    """In the main process: whether the network is the best so far and, where weights are kept, could be saved."""
    assert run.folder is not None
    return progress.improves(score) and (not run.plan.save or run.folder.save_best(run.learner.evaluated, progress))


def _last_good(run: Run) -> str:
    return f"Last good checkpoint: {run.latest if run.latest.exists() else 'none'}."


def _best_text(progress: Progress) -> str:
    if progress.best_score is None:
        return "no best model was kept yet"
    return f"best {progress.best_score:.4f} after epoch {progress.best_epoch}"


def _step_seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])

"""The training loop: what happens when. Files, ranks and flags are other modules' business."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from utils import checkpoint
from utils.checkpoint import Description, Progress
from utils.distributed import Process
from utils.errors import TrainingError
from utils.inference import Predictor, score_scans
from utils.precision import Precision
from utils.run_folder import RunFolder
from utils.score_tables import organ_table

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Plan:
    """How long a run is and what happens between its epochs.

    Attributes:
        epochs: epochs in the whole run.
        validate_every: epochs from one validation to the next; the last epoch always has one.
        save: whether the weights are kept.
        seed: seed of what is random in the network itself (dropout).
    """

    epochs: int
    validate_every: int
    save: bool
    seed: int

    def validates(self, epoch: int) -> bool:
        """Whether a validation follows when ``epoch`` epochs are done."""
        return epoch % self.validate_every == 0 or epoch == self.epochs


def run_training(
    progress: Progress,
    plan: Plan,
    network: nn.Module,
    description: Description,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    scaler: torch.amp.GradScaler,
    loss_function: Loss,
    train_loader: DataLoader,
    val_loader: DataLoader,
    predictor: Predictor,
    process: Process,
    folder: RunFolder | None,
) -> None:
    """Train from where ``progress`` stands to the end of the plan.

    Args:
        folder: where the main process records the run; None in the others.

    Raises:
        TrainingError: when a loss isn't finite.
    """
    wrapped = process.wrap(network)
    while progress.epoch < plan.epochs:
        # dropout, like the crops, is a function of seed and epoch, not of what happened before
        torch.manual_seed(plan.seed + progress.epoch)
        try:
            training = train_epoch(
                wrapped, train_loader, loss_function, optimizer, scheduler, scaler, predictor.precision, process,
                progress.epoch, plan.epochs,
            )  # fmt: skip
        except TrainingError as stop:
            good = folder.latest if folder is not None and folder.latest.exists() else "none"
            raise TrainingError(f"{stop} Last good checkpoint: {good}. Try a lower --optim_lr, or --noamp.") from None
        progress.epoch += 1
        process.say(
            f"epoch {progress.epoch}/{plan.epochs}: loss {training['loss']:.4f}, "
            f"rate {training['lr']:.2e}, {training['seconds']:.1f} s"
        )

        scores, example = None, None
        if plan.validates(progress.epoch):
            scores, example = score_scans(network, val_loader, predictor, description.labels, process)
            better = progress.note(scores.mean)
            process.say(f"{organ_table(scores)}\n  best {progress.best_score:.4f} after epoch {progress.best_epoch}")
        if folder is not None:
            folder.record(progress.epoch, training, scores, example)
            if plan.save and scores is not None:
                if better:
                    checkpoint.save(folder.best, description, network, progress)
                state = checkpoint.resume_state(optimizer, scheduler, scaler, progress)
                checkpoint.save(folder.latest, description, network, progress, state)


def train_epoch(
    network: nn.Module,
    loader: DataLoader,
    loss_function: Loss,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    scaler: torch.amp.GradScaler,
    precision: Precision,
    process: Process,
    epoch: int,
    epochs: int,
) -> dict[str, float]:
    """One pass over the training scans.

    Returns:
        ``loss`` (mean over the steps and processes), ``lr`` (of the last step) and ``seconds``.

    Raises:
        TrainingError: when a loss isn't finite, with the epoch and the scans of the batch.
    """
    network.train()
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    start = time.perf_counter()
    total = torch.zeros((), device=process.device)
    bar = process.bar(loader, f"epoch {epoch + 1}/{epochs}")
    for batch in bar:
        image = batch["image"].to(process.device, non_blocking=True)  # (B, C, D, H, W)
        label = batch["label"].to(process.device, non_blocking=True)  # (B, 1, D, H, W)
        with precision.autocast():
            logits = network(image)  # (B, classes, D, H, W)
            loss = loss_function(logits.float(), label)
        value = loss.item()
        if not math.isfinite(value):
            scans = ", ".join(dict.fromkeys(batch["name"]))
            raise TrainingError(f"the loss is {value} in epoch {epoch + 1}, in the batch of {scans}.")
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        lr = scheduler.get_last_lr()[0]
        scheduler.step()
        total += value
        bar.set_postfix(loss=f"{value:.4f}", lr=f"{lr:.1e}")
    return {"loss": process.mean(total / len(loader)), "lr": float(lr), "seconds": time.perf_counter() - start}

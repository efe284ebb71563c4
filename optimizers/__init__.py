"""Optimizers and learning-rate schedules by name, and averages of weights."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from optimizers.lr_scheduler import constant, cosine_anneal, warmup_cosine

OPTIMIZERS: Mapping[str, type[Optimizer]] = {"adamw": AdamW, "adam": Adam, "sgd": SGD}
SCHEDULES: Mapping[str, Callable[..., float]] = {
    "warmup_cosine": warmup_cosine,
    "cosine_anneal": cosine_anneal,
    "constant": constant,
}


def parameter_groups(network: nn.Module, vit_lr: float | None, vit_weight_decay: float | None) -> list[dict[str, Any]]:
    """The network's parameters for :func:`build_optimizer`: those of its ViT, if it has one, and the others.

    Args:
        vit_lr: highest learning rate of the ViT; None for that of the others.
        vit_weight_decay: weight decay of the ViT; None for that of the others.
    """
    of_vit = [parameter for name, parameter in network.named_parameters() if name.startswith("vit.")]
    others = [parameter for name, parameter in network.named_parameters() if not name.startswith("vit.")]
    own = {"lr": vit_lr, "weight_decay": vit_weight_decay}
    settings = {name: value for name, value in own.items() if value is not None}
    return [*([{"params": of_vit, **settings}] if of_vit else []), {"params": others}]


def build_optimizer(
    name: str, groups: list[dict[str, Any]], lr: float, weight_decay: float, momentum: float
) -> Optimizer:
    """Build an optimizer of :data:`OPTIMIZERS`; ``momentum`` is used by ``sgd`` alone, with Nesterov's form.

    Args:
        groups: of :func:`parameter_groups`, which may have a learning rate and a weight decay of their own.
    """
    options: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay, "fused": True}
    if name == "sgd":
        options |= {"momentum": momentum, "nesterov": momentum > 0}
    return OPTIMIZERS[name](groups, **options)


def build_scheduler(
    name: str, optimizer: Optimizer, epochs: int, warmup_epochs: int, steps_per_epoch: int, steps_done: int = 0
) -> LambdaLR:
    """Build a schedule of :data:`SCHEDULES`, to be stepped after each step of the optimizer.

    Args:
        steps_done: steps of the optimizer before this; the schedule goes on after them.
    """
    factor = partial(
        SCHEDULES[name], total_steps=epochs * steps_per_epoch, warmup_steps=warmup_epochs * steps_per_epoch
    )
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]  # LambdaLR wants it of one who goes on, and takes its first step at once
    return LambdaLR(optimizer, factor, last_epoch=steps_done - 1)


def averaged(network: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of a network's weights and running statistics.

    Its first update takes them as they are, each later one ``decay`` of the average and the rest of the weights.
    """
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)

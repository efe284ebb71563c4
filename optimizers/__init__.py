"""Optimizers and learning-rate schedules by name, and averages of weights."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from networks.registry import lies_in
from optimizers.lr_scheduler import constant, cosine_anneal, warmup_cosine, warmup_poly
from utils.system.errors import InputError
from utils.system.text import few_names

BETAS = (0.9, 0.999)
OPTIMIZERS: Mapping[str, type[Optimizer]] = {"adamw": AdamW, "adam": Adam, "sgd": SGD}
# what each keeps of a parameter: a tensor of its shape, but for ``step``, a number
STATE: Mapping[type[Optimizer], tuple[str, ...]] = {
    AdamW: ("step", "exp_avg", "exp_avg_sq"),
    Adam: ("step", "exp_avg", "exp_avg_sq"),
    SGD: ("momentum_buffer",),
}
SCHEDULES: Mapping[str, Callable[..., float]] = {
    "warmup_cosine": warmup_cosine,
    "warmup_poly": warmup_poly,
    "cosine_anneal": cosine_anneal,
    "constant": constant,
}


def parameter_groups(
    network: nn.Module, own: Mapping[str, Mapping[str, float | None]] | None = None
) -> list[dict[str, Any]]:
    """The network's parameters for :func:`build_optimizer`: the groups that its class declares, then all others.

    A network whose ``parameter_groups`` is a method returns all groups itself.

    Args:
        own: by group, its highest ``lr`` and its ``weight_decay``; None for those of the others.

    Raises:
        InputError: if that method leaves out parameters that ask for gradients, which nobody would notice.
    """
    declared: Any = getattr(network, "parameter_groups", {})
    if callable(declared):
        own_groups = [{**group, "params": list(group["params"])} for group in declared()]
        grouped = {id(parameter) for group in own_groups for parameter in group["params"]}
        left_out = [name for name, one in network.named_parameters() if one.requires_grad and id(one) not in grouped]
        if left_out:
            raise InputError(
                f"{type(network).__name__}: its parameter_groups() leaves out {few_names(left_out)}, which wouldn't be "
                "trained. Add a group for them, or freeze them by requires_grad_(False)."
            )
        return own_groups
    groups: list[dict[str, Any]] = []
    rest = dict(network.named_parameters())
    for group, layers in declared.items():
        members = [rest.pop(name) for name in list(rest) if lies_in(name, layers)]
        settings = {name: value for name, value in ((own or {}).get(group) or {}).items() if value is not None}
        groups += [{"params": members, **settings}] if members else []
    return [*groups, {"params": list(rest.values())}]


def build_optimizer(
    name: str,
    groups: list[dict[str, Any]],
    lr: float,
    weight_decay: float,
    momentum: float,
    betas: Sequence[float] = BETAS,
) -> Optimizer:
    """Build an optimizer of :data:`OPTIMIZERS`.

    Args:
        groups: parameter groups, which may have a learning rate and a weight decay of their own.
        momentum: for ``sgd`` alone, which uses Nesterov's form.
        betas: for ``adamw`` and ``adam``: how much of the averages of gradients and of their squares a step keeps.
    """
    options: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay, "fused": True}
    if name == "sgd":
        options |= {"momentum": momentum, "nesterov": momentum > 0}
    else:
        options["betas"] = tuple(betas)
    return OPTIMIZERS[name](groups, **options)


def build_scheduler(
    name: str, optimizer: Optimizer, epochs: int, warmup_epochs: int, steps_per_epoch: int, steps_done: int = 0
) -> LambdaLR:
    """Build a schedule of :data:`SCHEDULES`; call its ``step`` after each step of the optimizer.

    Args:
        steps_done: steps of the optimizer before this, in a run that is resumed.
    """
    factor = partial(
        SCHEDULES[name], total_steps=epochs * steps_per_epoch, warmup_steps=warmup_epochs * steps_per_epoch
    )
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]  # LambdaLR asks for it when a run is resumed
    return LambdaLR(optimizer, factor, last_epoch=steps_done - 1)


def averaged(network: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of a network's weights and running statistics.

    The first update copies them; a later one sets the average to decay · average + (1 - decay) · weights.
    """
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)

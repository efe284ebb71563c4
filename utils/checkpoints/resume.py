"""Where a run starts: from random weights, from a file's, or from its own checkpoint."""

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from networks.unetr import UNETR
from utils.checkpoints.description import FORMAT, Description, _differing, _flag_text, describe, refuse_contradictions
from utils.checkpoints.foreign_weights import load_weights, same_logits
from utils.checkpoints.progress import Progress, UnfinishedEpoch
from utils.checkpoints.read import read_checkpoint, read_torchscript, read_vit
from utils.checkpoints.vit_weights import load_vit_weights
from utils.config.flags import (
    as_flags,
    training_flags,
)
from utils.data.data_list import DataList
from utils.system.errors import DamagedError, InputError

# keywords of networks that follow from the data, that adapting can change, or on which no weight depends
FREE_OPTIONS = (
    *("img_size", "spacing", "in_channels", "out_channels", "deep_supervision"),
    *("dropout_rate", "drop_path_rate"),
)


@dataclass
class InitialState:
    """Where a run starts from.

    Attributes:
        progress: how far it has come.
        source: a text about where its weights are from.
        notes: what differs from the flags that it ran with so far.
        state: from :func:`resume_state`, where it goes on; :meth:`restore` gives it away.
    """

    progress: Progress
    source: str
    notes: list[str] = field(default_factory=list)
    state: dict[str, Any] | None = None

    def restore(
        self, network: nn.Module, average: AveragedModel | None, optimizer: Optimizer, scaler: torch.amp.GradScaler
    ) -> None:
        """Put all that learns where the run that goes on had it; learning rate and such stay the flags'.

        Args:
            network: with the weights that were saved, which are those of ``average`` if there was one.
        """
        if self.state is None:
            return
        if "trained" in self.state:
            network.load_state_dict(self.state["trained"])
            if average is not None:
                average.n_averaged.fill_(self.state["averaged"])
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": self.state["optimizer"]["state"], "param_groups": groups})
        if self.state["scaler"]:  # a run without float16 had nothing to scale
            scaler.load_state_dict(self.state["scaler"])
        self.state = None  # it is as large as the optimizer


def initial_state(
    args: argparse.Namespace, path: Path | None, description: Description, data: DataList, network: nn.Module
) -> InitialState:
    """Give a network the weights that a run starts from.

    They are random, or of a file (``--resume_ckpt``, ``--resume_jit``, for the encoder ``--vit_weights``), or those of
    a run that goes on.

    Args:
        path: the checkpoint of the run that goes on, or None for a new run.

    Raises:
        InputError: if the file can't be read, or isn't of the network, data and preprocessing that the flags describe.
    """
    if path is not None:
        return _continue(args, path, description, data, network)
    weights = Path(args.pretrained_dir) / args.pretrained_model_name
    if args.resume_ckpt:
        return InitialState(Progress(), _transfer(args, weights, read_checkpoint(weights), description, network))
    if args.resume_jit:
        module, content = read_torchscript(weights)
        source = _transfer(args, weights, content, description, network)
        shape = (1, description.options["in_channels"], *description.preprocessing.roi)
        if not args.adapt_weights and not same_logits(network, module, shape):
            raise InputError(
                f"{weights}: its network gives other logits than the one that the flags describe has with its weights. "
                "Give the flags that it was made with, --num_heads among them."
            )
        return InitialState(Progress(), source)
    if args.vit_weights is not None:
        return _start_encoder(Path(args.vit_weights), description, network)
    return InitialState(Progress(), "from random weights")


def _start_encoder(path: Path, description: Description, network: nn.Module) -> InitialState:
    """Start a new run with the encoder from a file's ViT."""
    assert isinstance(network, UNETR)
    content = read_vit(path)
    recorded = describe(content)
    if recorded is not None:
        given = {name: description.options[name] for name in ("hidden_size", "mlp_dim", "num_heads", "patch_size")}
        refuse_contradictions(path, given, recorded.options, "Give the flags that it was trained with.")
    img_size = None if recorded is None else recorded.options.get("img_size")
    source, notes = load_vit_weights(network, content, str(path), img_size)
    if recorded is None:
        heads = description.options["num_heads"]
        notes.append(f"{path} doesn't show its number of heads; --num_heads {heads} has to be what it was trained with")
    return InitialState(Progress(), source, notes)


def _transfer(
    args: argparse.Namespace, path: Path, content: Mapping[str, Any], description: Description, network: nn.Module
) -> str:
    """Start a new run from a file's weights; what was done to them, in words."""
    recorded = describe(content)
    if recorded is not None:
        given = {name: value for name, value in description.options.items() if name not in FREE_OPTIONS}
        refuse_contradictions(
            path,
            {"model_name": description.network, **given},
            {"model_name": recorded.network, **recorded.options},
            "Give the flags that it was trained with.",
        )
    transfer = load_weights(
        network,
        content["state_dict"],
        str(path),
        kind=_kind(content),
        img_size=recorded.preprocessing.roi if recorded is not None else None,
        adapt=args.adapt_weights,
    )
    return transfer.table() if args.adapt_weights else transfer.line()


def _kind(content: Mapping[str, Any]) -> str:
    return "state dict" if content.get("epoch") is None else f"checkpoint after epoch {content['epoch']}"


def _continue(
    args: argparse.Namespace, path: Path, description: Description, data: DataList, network: nn.Module
) -> InitialState:
    content = read_checkpoint(path)
    recorded = require_continuable(path, content)
    state = content["resume"]
    ours = {
        "optim_name": args.optim_name,
        **as_flags(description.network, description.options, description.preprocessing),
    }
    theirs = {
        "optim_name": state["flags"]["optim_name"],
        **as_flags(recorded.network, recorded.options, recorded.preprocessing),
    }
    given = {name: value for name, value in ours.items() if name not in args.allow_change}
    differing = _differing(given, theirs)
    remedy = "Give the flags of its run, or name those that change on purpose after --allow_change."
    if differing in (["model_name"], ["optim_name"]):  # after which nothing can go on
        remedy = "Give the flags of its run."
    refuse_contradictions(path, given, theirs, remedy)
    if "json_list" not in args.allow_change:
        _refuse_other_scans(path, data.files(), state["scans"])
        _refuse_other_labels(path, description.labels, recorded.labels)
    transfer = load_weights(
        network, content["state_dict"], str(path), kind=_kind(content), img_size=recorded.preprocessing.roi
    )
    progress = Progress(**{**state["progress"], "unfinished": UnfinishedEpoch(**state["progress"]["unfinished"])})
    notes = [
        f"--{name} is {_flag_text(getattr(args, name))} from here on; it was {_flag_text(state['flags'][name])}"
        for name in (*training_flags(), *args.allow_change)
        if name in state["flags"] and getattr(args, name) != state["flags"][name]
    ]
    return InitialState(progress, f"{transfer.line()}, going on after {progress}", notes, state)


def require_continuable(path: Path, content: Mapping[str, Any]) -> Description:
    """Check that a run can continue from what :func:`read_checkpoint` gave; the description of its network.

    Raises:
        DamagedError: if it lacks what that needs.
        InputError: if an older version made it.
    """
    recorded = describe(content)
    if recorded is None or "resume" not in content:
        raise DamagedError(
            f"{path}: holds weights alone, nothing to continue from. Give the run's model_final.pt, "
            "or start a new run from these weights with --resume_ckpt."
        )
    if content["format"] < FORMAT:
        raise InputError(
            f"{path}: was made by an older version of this program, whose runs can't be continued. "
            "Start a new run from its weights with --resume_ckpt."
        )
    return recorded


def _refuse_other_scans(path: Path, ours: Mapping[str, list[list[str]]], theirs: Mapping[str, list[list[str]]]) -> None:
    """Compare the training and validation scans with those of the run that goes on.

    Raises:
        InputError: if there are others, or they come in another order.
    """
    for part, files in theirs.items():
        if ours[part] != files:
            other = [scan for scan in files if scan not in ours[part]] + [
                scan for scan in ours[part] if scan not in files
            ]
            what = f"{len(other)} differ, {other[0][0]} first" if other else "they came in another order"
            raise InputError(
                f"{path}: its run had other {part} scans ({what}). Give its --data_dir, --json_list and --fold, "
                "or --allow_change json_list to go on with these."
            )


def _refuse_other_labels(path: Path, ours: tuple[str, ...], theirs: tuple[str, ...]) -> None:
    """Compare the names of the labels with those of the run that goes on; another number is another network.

    Raises:
        InputError: naming the first that differs.
    """
    for value, (our, their) in enumerate(zip(ours, theirs, strict=False)):
        if our != their:
            raise InputError(
                f"{path}: its run had {their!r} for label {value}, which the data list calls {our!r}. Give its "
                "--json_list, or --allow_change json_list to go on with these names."
            )


def learner_state(
    network: nn.Module, average: AveragedModel | None, optimizer: Optimizer, scaler: torch.amp.GradScaler
) -> dict[str, Any]:
    """What :meth:`InitialState.restore` restores: of optimizer and loss scaler, and the weights where an average is saved."""
    weights = {} if average is None else {"trained": network.state_dict(), "averaged": int(average.n_averaged)}
    return {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(), **weights}


def resume_state(
    learner: Mapping[str, Any],
    progress: Progress,
    flags: Mapping[str, Any],
    scans: Mapping[str, list[list[str]]],
) -> dict[str, Any]:
    """What continuing a run needs beside the network that is kept, with what :func:`learner_state` gave."""
    return {
        **learner,
        "progress": asdict(progress),
        "flags": dict(flags),
        "scans": dict(scans),
    }

"""What a checkpoint holds; saving, restoring, and reading the weights of the published network.

``model.pt`` (the best) holds what inference needs, ``model_final.pt`` (the latest) also what resuming needs:

=================  =============================================================================
``format``         version of this layout
``network``        ``name`` and ``options``, the keywords of :func:`networks.build_network`
``preprocessing``  the fields of :class:`utils.preprocessing.Preprocessing`
``labels``         names of the classes, the background first
``amp``            whether mixed precision was on
``state_dict``     the weights, under the published names
``epoch``          epochs of training behind them
``score``          mean Dice of the last validation up to then, or None
``versions``       of torch and MONAI
``command``        the command line that made it
``resume``         (latest only) optimizer, scheduler, scaler, best score and its epoch
=================  =============================================================================
"""

import argparse
import math
import pickle
import re
import shlex
import sys
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import monai
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from networks import build_network
from utils.args import as_flags, network_options, preprocessing, recorded_flags
from utils.data_list import DataList
from utils.errors import InputError, blame_flags
from utils.files import replacing
from utils.preprocessing import Preprocessing

FORMAT = 1
# what earlier networks saved and no forward pass reads; a block's third convolution is dead where the block keeps the
# number of channels, which those of the decoder never do
DEAD_TENSORS = re.compile(
    r"vit\.patch_embedding\.cls_token"  # MONAI 0.7
    r"|(encoder[23]\.blocks\.\d+\.1|encoder1\.layer)\.(conv|norm)3\..+"  # MONAI 0.7
    r"|vit\.blocks\.\d+\.(norm_)?cross_attn\..+"  # MONAI 1.x
)


@dataclass(frozen=True)
class Description:
    """All that inference needs to know of a network beside its weights."""

    network: str
    options: dict[str, Any]
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    amp: bool

    def build(self) -> nn.Module:
        """The network, with fresh weights."""
        return build_network(self.network, **self.options)


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        epoch: epochs that are done.
        score: mean Dice of the last validation, or None before the first.
        best_score, best_epoch: the best validation's mean Dice, and after how many epochs it was.
    """

    epoch: int = 0
    score: float | None = None
    best_score: float | None = None
    best_epoch: int | None = None

    def note(self, score: float) -> bool:
        """Take note of a validation's mean Dice; whether it is the best so far. NaN is below every number."""
        self.score = score
        better = self.best_score is None or math.isnan(self.best_score) or score > self.best_score
        if better:
            self.best_score, self.best_epoch = score, self.epoch
        return better


def save(
    path: Path,
    description: Description,
    network: nn.Module,
    progress: Progress,
    resume: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint in one step: a reader sees the old file or the new one, never a part.

    Args:
        resume: from :func:`resume_state`, for a checkpoint that a run can continue from.
    """
    content = {
        "format": FORMAT,
        "network": {"name": description.network, "options": description.options},
        "preprocessing": asdict(description.preprocessing),
        "labels": list(description.labels),
        "amp": description.amp,
        "state_dict": {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()},
        "epoch": progress.epoch,
        "score": progress.score,
        "versions": {"torch": str(torch.__version__), "monai": str(monai.__version__)},
        "command": shlex.join(sys.argv),
    }
    if resume is not None:
        content["resume"] = resume
    with replacing(path) as temporary:
        torch.save(content, temporary)


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint or of a bare state dict. No code in the file is run.

    Raises:
        InputError: if there is no such file, or it holds something else.
    """
    _require_file(path)
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of TorchScript, which is named below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError) as error:
        reason = "it is damaged, or no file of torch.save"
        if "TorchScript" in str(error):
            reason = "it is TorchScript, which --resume_jit and --saved_checkpoint=torchscript read"
        elif "Unsupported global" in str(error) or "Unsupported class" in str(error):
            reason = "it holds more than weights, which could be code and is not run; save its state_dict() alone"
        raise InputError(f"{path}: can't be read as weights ({reason}).") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        return dict(content)
    if isinstance(content, Mapping) and content and all(isinstance(value, Tensor) for value in content.values()):
        return {"state_dict": content}
    raise InputError(f"{path}: holds no weights: neither a checkpoint of main.py nor a state dict.")


def read_torchscript(path: Path) -> dict[str, Any]:
    """The weights of a TorchScript file, as :func:`read` gives them.

    TorchScript is code: load it from people you trust.

    Raises:
        InputError: if there is no such file, or it isn't TorchScript.
    """
    _require_file(path)
    try:
        module = torch.jit.load(str(path), map_location="cpu")
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"{path}: can't be read as TorchScript. --resume_ckpt and --saved_checkpoint=ckpt read state dicts."
        ) from error
    return {"state_dict": module.state_dict()}


def _require_file(path: Path) -> None:
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {what}. Mend --pretrained_dir and --pretrained_model_name, or --checkpoint.")


def describe(content: Mapping[str, Any]) -> Description | None:
    """What a checkpoint says of its network; None for bare weights, which say nothing."""
    if "network" not in content:
        return None
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in content["preprocessing"].items()
    }
    network = content["network"]
    return Description(
        network=network["name"],
        options=dict(network["options"]),
        preprocessing=Preprocessing(**fields),
        labels=tuple(content["labels"]),
        amp=content["amp"],
    )


def load_weights(network: nn.Module, content: Mapping[str, Any], path: Path) -> str:
    """Put the weights of a file into a network, each under its own name.

    Returns:
        A line that says how many were loaded, and how many dead ones were left out.

    Raises:
        InputError: if names or shapes don't fit; all that don't are listed.
    """
    given = {name.removeprefix("module."): tensor for name, tensor in content["state_dict"].items()}
    wanted = network.state_dict()
    dead = [name for name in given if name not in wanted and DEAD_TENSORS.fullmatch(name)]
    for name in dead:
        del given[name]
    faults = [f"{name} is missing" for name in wanted if name not in given]
    faults += [f"{name} is unknown" for name in given if name not in wanted]
    faults += [
        f"{name} has shape {tuple(tensor.shape)} instead of {tuple(wanted[name].shape)}"
        for name, tensor in given.items()
        if name in wanted and tensor.shape != wanted[name].shape
    ]
    if faults:
        raise InputError(
            f"{path}: {len(faults)} of its tensors don't fit the network that the flags describe.\n       "
            + "\n       ".join(faults)
        )
    network.load_state_dict(given)
    left_out = f", {len(dead)} that no forward pass reads left out" if dead else ""
    return f"{path}: {len(given)} tensors loaded{left_out}"


def load_start(
    args: argparse.Namespace, description: Description, network: nn.Module
) -> tuple[dict[str, Any] | None, str]:
    """Give a network the weights that a run starts from.

    They are random, or of a file (``--resume_ckpt``, ``--resume_jit``), or those of a run that goes on
    (``--checkpoint``).

    Returns:
        What the run that goes on has saved, or None for a new run, and a line about where the weights are from.

    Raises:
        InputError: if the file can't be read, or isn't of the network that the flags describe.
    """
    weights = Path(args.pretrained_dir) / args.pretrained_model_name
    if args.resume_ckpt:
        return None, load_weights(network, read(weights), weights)
    if args.resume_jit:
        return None, load_weights(network, read_torchscript(weights), weights)
    if args.checkpoint is None:
        return None, "from random weights"

    path = Path(args.checkpoint)
    content = read(path)
    recorded = describe(content)
    if recorded is None or "resume" not in content:
        raise InputError(
            f"{path}: holds weights alone, nothing to continue from. Give the run's model_final.pt, "
            "or start a new run from these weights with --resume_ckpt."
        )
    refuse_contradictions(
        path,
        as_flags(description.options, description.preprocessing),
        as_flags(recorded.options, recorded.preprocessing),
    )
    return content, f"{load_weights(network, content, path)}, going on after epoch {content['epoch']}"


def resume_state(
    optimizer: Optimizer, scheduler: LRScheduler, scaler: torch.amp.GradScaler, progress: Progress
) -> dict[str, Any]:
    """What :func:`resume` needs beside the weights."""
    return {
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "scaler": scaler.state_dict(),
        "best_score": progress.best_score,
        "best_epoch": progress.best_epoch,
    }


def resume(
    content: Mapping[str, Any] | None,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    scaler: torch.amp.GradScaler,
) -> Progress:
    """Put optimizer, schedule and scaler where the run that goes on had them; a new run (None) is at its beginning."""
    if content is None:
        return Progress()
    state = content["resume"]
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    scaler.load_state_dict(state["scaler"])
    return Progress(content["epoch"], content["score"], state["best_score"], state["best_epoch"])


def load_for_testing(args: argparse.Namespace, path: Path, data: DataList) -> tuple[nn.Module, Description, str]:
    """The network of a weights file, ready to predict.

    A checkpoint describes itself, and a flag that says otherwise is an error. Bare weights are described by the
    flags, with their defaults, and by the data list's label names.

    Returns:
        The network, its description, and a line about where the weights are from.

    Raises:
        InputError: if the file can't be read, or isn't what flags or data list say.
    """
    content = read_torchscript(path) if args.saved_checkpoint == "torchscript" else read(path)
    given = {name: value for name in recorded_flags() if (value := getattr(args, name)) is not None}
    description = describe(content)
    if description is None:
        flags = {**recorded_flags(), **given}
        description = Description(
            network="unetr",
            options=network_options(flags),
            preprocessing=preprocessing(flags),
            labels=data.label_names(flags["out_channels"]),
            amp=True,
        )
    else:
        refuse_contradictions(path, given, as_flags(description.options, description.preprocessing))
        data.label_names(len(description.labels))
    with blame_flags():
        network = description.build()
    return network, description, load_weights(network, content, path)


def refuse_contradictions(path: Path, given: Mapping[str, Any], recorded: Mapping[str, Any]) -> None:
    """Compare flags with what a checkpoint records.

    Raises:
        InputError: naming each flag that differs, with both values.
    """
    faults = [
        f"--{name} {_flag_text(value)} contradicts its {_flag_text(recorded[name])}"
        for name, value in given.items()
        if name in recorded and value != recorded[name]
    ]
    if faults:
        raise InputError(f"{path}: {'; '.join(faults)}. Leave these flags out, or give the weights that they describe.")


def _flag_text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)

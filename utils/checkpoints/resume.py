"""Where a run starts: from random weights, from a file's, or from its own checkpoint."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from networks.registry import AUTOENCODERS, Architecture, NetworkConfig
from networks.vit import ViTConfig
from optimizers import STATE
from utils.checkpoints.description import (
    OF_LABELS,
    Description,
    describe,
    differing_settings,
    refuse_contradictions,
    setting_text,
)
from utils.checkpoints.foreign_weights import ADAPTABLE, as_weights, load_weights, same_logits
from utils.checkpoints.progress import Progress, UnfinishedEpoch
from utils.checkpoints.read import read_checkpoint, read_torchscript, read_vit
from utils.checkpoints.schema import tensor_fault
from utils.checkpoints.vit_weights import load_vit_weights
from utils.data.data_list import DataList
from utils.system.errors import DamagedError, InputError
from utils.system.text import few_names
from utils.system.typed import shown, shown_text

# of an encoder, that its weights need; linear and convolutional patch embeddings stand for each other
SETTINGS_OF_VIT = [
    one.name
    for one in fields(ViTConfig)
    if one.name not in (*NetworkConfig.__dataclass_fields__, "pos_embed") and not one.metadata.get("any_weights")
]
SETTINGS_OF_STEM = ("conv_stem", "halve_by_spacing")  # which decide what a ViT reads, where a network has them


@dataclass(frozen=True)
class StartSettings:
    """Where the weights of a run come from, and what may differ from the run that goes on.

    Attributes:
        weights: a file to start from; None for random weights.
        torchscript: whether that file is TorchScript.
        adapt: whether its weights are adapted to another task.
        vit_weights: a file whose ViT the encoder starts from.
        settings: of this run, by the names of its flags; the run's checkpoints keep them.
        changeable: settings that may differ from the run that goes on, and are told.
        allow_change: further settings that may differ, as asked for; ``json_list`` stands for the data list.
    """

    weights: Path | None = None
    torchscript: bool = False
    adapt: bool = False
    vit_weights: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    changeable: Collection[str] = ()
    allow_change: Collection[str] = ()


@dataclass
class InitialState:
    """Where a run starts from.

    Attributes:
        progress: how far it has come.
        source: a text about where its weights are from.
        notes: how it differs from what it starts from.
        state: from :func:`resume_state`, where it goes on; :meth:`restore` releases it.
        file: the checkpoint that it is of.
    """

    progress: Progress
    source: str
    notes: list[str] = field(default_factory=list)
    state: dict[str, Any] | None = None
    file: Path | None = None

    def restore(
        self, network: nn.Module, average: AveragedModel | None, optimizer: Optimizer, scaler: torch.amp.GradScaler
    ) -> None:
        """Restore optimizer and scaler; hyper-parameters stay as given.

        Args:
            network: with the weights that were saved, which are those of ``average`` if there was one.

        Raises:
            DamagedError: if they aren't of this network and this optimizer.
        """
        if self.state is None:
            return
        source = f"{self.file}: what continues its run"
        if "trained" in self.state:
            network.load_state_dict(_fitting(self.state["trained"], network.state_dict(), source))
            if average is not None:
                average.n_averaged.fill_(self.state.get("averaged", 0))
        groups = optimizer.state_dict()["param_groups"]
        kept = _optimizer_state(self.state["optimizer"]["state"], optimizer, source)
        optimizer.load_state_dict({"state": kept, "param_groups": groups})
        if self.state["scaler"]:  # a run without float16 had nothing to scale
            scaler.load_state_dict(self.state["scaler"])
        self.state = None  # it is as large as the optimizer


def _fitting(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Tensors by name, which have to be those of a network.

    Raises:
        DamagedError: naming the first that isn't.
    """
    for name in (*wanted, *given):
        if name not in given or name not in wanted or given[name].shape != wanted[name].shape:
            raise DamagedError(f"{source} doesn't fit its network: {name} is missing, unknown or of another shape.")
    return {name: as_weights(name, tensor, wanted[name], source) for name, tensor in given.items()}


def _optimizer_state(
    given: Mapping[int, Mapping[str, Any]], optimizer: Optimizer, source: str
) -> dict[int, dict[str, Any]]:
    """What an optimizer keeps of each parameter, by its number.

    Raises:
        DamagedError: naming the first thing that it can't go on with.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = STATE[type(optimizer)]
    for number, kept in given.items():
        fault = None
        if not 0 <= number < len(parameters):
            fault = "isn't there"
        elif set(kept) != set(names):
            fault = f"has {', '.join(map(shown, kept)) or 'nothing'}, not {', '.join(names)}"
        else:
            faults = (_state_fault(name, kept[name], parameters[number].shape) for name in names)
            fault = next((one for one in faults if one is not None), None)
        if fault is not None:
            raise DamagedError(
                f"{source} doesn't fit its optimizer: parameter {number} {fault}. Give an older checkpoint of the run, "
                "or start a new run from its weights with `resume_ckpt`."
            )
    return {number: dict(kept) for number, kept in given.items()}


def _state_fault(name: str, value: object, shape: torch.Size) -> str | None:
    if name == "momentum_buffer" and value is None:  # before the first step
        return None
    if name == "step" and isinstance(value, int | float) and not isinstance(value, bool):
        value = torch.tensor(value, dtype=torch.float64)
    fault = tensor_fault(value)
    if fault is not None:
        return f"has a {name} that {fault}"
    assert isinstance(value, Tensor)
    if not value.is_floating_point() or value.shape != (() if name == "step" else shape):
        return f"has a {name} of {tuple(value.shape)} in {value.dtype}"
    positive = name not in ("step", "exp_avg_sq") or bool((value >= 0).all())
    return None if positive and value.isfinite().all() else f"has a {name} that is no number of a run"


def initial_state(
    start: StartSettings, continued: Path | None, description: Description, data: DataList, network: nn.Module
) -> InitialState:
    """Give a network the weights that a run starts from.

    Args:
        continued: the checkpoint of the run that goes on, or None for a new run.

    Raises:
        InputError: if the file can't be read, or isn't of the network, data and preprocessing that are described.
    """
    if continued is not None:
        return _continue(start, continued, description, data, network)
    if start.weights is not None and start.torchscript:
        module, content = read_torchscript(start.weights)
        state = _transfer(start, start.weights, content, description, network)
        shape = (1, description.config.in_channels, *description.preprocessing.roi)
        if not start.adapt and not same_logits(network, module, shape, start.weights):
            raise InputError(
                f"{start.weights}: its network gives other logits than the one that the settings describe has with its "
                "weights. Give the settings that it was made with, `num_heads` among them."
            )
        return state
    if start.weights is not None:
        return _transfer(start, start.weights, read_checkpoint(start.weights), description, network)
    if start.vit_weights is not None:
        return _start_encoder(start.vit_weights, description, network)
    return InitialState(Progress(), "from random weights")


def _start_encoder(path: Path, description: Description, network: nn.Module) -> InitialState:
    """Start a new run with the encoder from a file's ViT."""
    description.architecture.require("vit_encoder", "vit_weights", "started from a ViT")
    content = read_vit(path)
    recorded = describe(content, path)
    if recorded is not None:
        stem = [name for name in SETTINGS_OF_STEM if name in description.options]
        kept = [name for name in (*SETTINGS_OF_VIT, *stem) if name in recorded.options]
        given: dict[str, Any] = {name: description.options[name] for name in kept}
        refuse_contradictions(path, given, recorded.options, "Give the settings that it was trained with.")
        if recorded.network in AUTOENCODERS:
            tensors = content["state_dict"].items()
            names = {name: name.removeprefix("encoder.") for name, _ in tensors if name.startswith("encoder.")}
            content["state_dict"] = {names[name]: tensor for name, tensor in tensors if name in names}
    img_size = None if recorded is None else recorded.config.img_size
    source, notes = load_vit_weights(network, content, str(path), img_size)
    if recorded is None:
        heads = description.options["num_heads"]
        notes.append(f"{path} doesn't show its number of heads; `num_heads` {heads} has to be what it was trained with")
    return InitialState(Progress(), source, notes)


def _transfer(
    start: StartSettings, path: Path, content: Mapping[str, Any], description: Description, network: nn.Module
) -> InitialState:
    """Start a new run from a file's weights."""
    recorded = describe(content, path)
    if recorded is not None and recorded.network in AUTOENCODERS:
        raise InputError(f"{path}: holds a pre-trained encoder alone. Start from it by `vit_weights`.")
    if recorded is not None:
        fields = description.architecture.flags
        fixed = [name for name in fields if name not in ADAPTABLE and not fields[name].metadata.get("any_weights")]
        refuse_contradictions(
            path,
            {"model_name": description.architecture.title, **{name: description.options[name] for name in fixed}},
            {"model_name": recorded.architecture.title, **recorded.options},
            "Give the settings that it was trained with.",
        )
    transfer = load_weights(
        network,
        content["state_dict"],
        str(path),
        kind=kind_of(content),
        img_size=recorded.preprocessing.roi if recorded is not None else None,
        adapt=start.adapt,
    )
    source = transfer.table() if start.adapt else transfer.line()
    return InitialState(Progress(), source, [] if recorded is None else _notes_on_channels(path, recorded, description))


def _notes_on_channels(path: Path, recorded: Description, description: Description) -> list[str]:
    """A note if the output layer keeps the weights of channels that meant something else: labels, or other regions."""
    if recorded.output == description.output or recorded.config.out_channels != description.config.out_channels:
        return []
    before, now = (
        f"the {'labels' if one.output.exclusive else 'regions'} {few_names(one.output.names(one.labels))}"
        for one in (recorded, description)
    )
    return [f"{path}: its channels are {before}; from here on they learn {now}"]


def kind_of(content: Mapping[str, Any]) -> str:
    """What :func:`read_checkpoint` gave, in words."""
    epoch = content.get("epoch")
    return f"checkpoint after epoch {epoch}" if isinstance(epoch, int) else "state dict"


def _continue(
    start: StartSettings, path: Path, description: Description, data: DataList, network: nn.Module
) -> InitialState:
    content = read_checkpoint(path)
    recorded = require_continuable(path, content)
    state = content["resume"]
    now, before = start.settings, state["flags"]
    ours = {"optim_name": now["optim_name"], **description.settings()}
    theirs = {"optim_name": before["optim_name"], **recorded.settings()}
    given = {name: value for name, value in ours.items() if name not in start.allow_change}
    remedy = "Give the settings of its run, or name those that change on purpose after `allow_change`."
    if any(_is_fixed(name, description.architecture) for name in differing_settings(given, theirs)):
        remedy = "Give the settings of its run."
    refuse_contradictions(path, given, theirs, remedy)
    if "json_list" not in start.allow_change:
        _refuse_other_scans(path, data.files(), state["scans"])
        if is_annotated_otherwise(data, state):
            raise InputError(
                f'{path}: its run had another "ignore" in the labels, or other structures that are "not_annotated", '
                "than the data list. Give its `json_list`, or `allow_change` json_list to go on with these."
            )
        _refuse_other_labels(path, description.labels, recorded.labels)
        if description.output != recorded.output:
            raise InputError(
                f"{path}: its run trained other regions than the data list names, or wrote other labels for them. Give "
                "its `json_list`, or `allow_change` json_list to go on with these."
            )
    transfer = load_weights(
        network, content["state_dict"], str(path), kind=kind_of(content), img_size=recorded.preprocessing.roi
    )
    progress = Progress(**{**state["progress"], "unfinished": UnfinishedEpoch(**state["progress"]["unfinished"])})
    notes = [
        f"`{name}` is {setting_text(now[name])} from here on; it was {setting_text(before[name])}"
        for name in (*start.changeable, *start.allow_change)
        if name in before and now[name] != before[name]
    ]
    return InitialState(progress, f"{transfer.line()}, going on after {progress}", notes, state, path)


def _is_fixed(setting: str, architecture: Architecture) -> bool:
    """Whether a run can't go on with another value of a setting, since its weights or its optimizer don't fit."""
    if architecture.name in AUTOENCODERS:  # whose program has no `allow_change`
        return True
    fields = architecture.flags
    of_weights = setting in fields and not fields[setting].metadata.get("any_weights")
    of_positions = setting.startswith("roi_") and bool(architecture.declared("position_embeddings"))
    return setting in ("model_name", "optim_name") or of_weights or of_positions


def require_continuable(path: Path, content: Mapping[str, Any]) -> Description:
    """Check that a run can continue from what :func:`read_checkpoint` gave; the description of its network.

    Raises:
        DamagedError: if it lacks what that needs.
        InputError: if an older version made it.
    """
    recorded = describe(content, path)
    if recorded is None or "resume" not in content:
        raise DamagedError(
            f"{path}: holds weights alone, nothing to continue from. Give the run's model_final.pt, "
            "or start a new run from these weights with `resume_ckpt`."
        )
    if content["format"] < OF_LABELS:
        raise InputError(
            f"{path}: was made by an older version of this program, whose runs can't be continued. "
            "Start a new run from its weights with `resume_ckpt`."
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
            what = f"{len(other)} differ, {shown_text(other[0][0])} first" if other else "they came in another order"
            raise InputError(
                f"{path}: its run had other {part} scans ({what}). Give its `data_dir`, `json_list` and `fold`, "
                "or `allow_change` json_list to go on with these."
            )


def is_annotated_otherwise(data: DataList, state: Mapping[str, Any]) -> bool:
    """Whether other labels are annotated than in the run that goes on. Older checkpoints don't know, and count as no.

    Args:
        state: from :func:`resume_state`.
    """
    ours = data.recorded()["annotation"]
    return bool(state.get("annotation", ours) != ours)


def _refuse_other_labels(path: Path, ours: tuple[str, ...], theirs: tuple[str, ...]) -> None:
    """Compare the names of the labels with those of the run that goes on; another number is another network.

    Raises:
        InputError: naming the first that differs.
    """
    for value, (our, their) in enumerate(zip(ours, theirs, strict=False)):
        if our != their:
            raise InputError(
                f"{path}: its run had {their!r} for label {value}, which the data list calls {our!r}. Give its "
                "`json_list`, or `allow_change` json_list to go on with these names."
            )


def learner_state(
    network: nn.Module, average: AveragedModel | None, optimizer: Optimizer, scaler: torch.amp.GradScaler
) -> dict[str, Any]:
    """What :meth:`InitialState.restore` restores: optimizer, loss scaler, and weights of which the average is saved."""
    weights = {} if average is None else {"trained": network.state_dict(), "averaged": int(average.n_averaged)}
    return {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(), **weights}


def resume_state(
    learner: Mapping[str, Any],
    progress: Progress,
    flags: Mapping[str, Any],
    data: Mapping[str, Any],
) -> dict[str, Any]:
    """What continuing a run needs beside the saved network.

    Args:
        learner: from :func:`learner_state`.
        data: from :meth:`DataList.recorded`.
    """
    return {
        **learner,
        "progress": asdict(progress),
        "flags": dict(flags),
        **data,
    }

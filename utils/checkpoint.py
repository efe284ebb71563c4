"""What a checkpoint holds; saving one, reading one, and starting or continuing a run from one.

``model.pt`` (the best) holds what inference needs, ``model_final.pt`` (the latest) also what resuming needs:

=================  =============================================================================
``format``         version of this layout
``network``        ``name`` and ``options``, the keywords of :func:`networks.build_network`
``preprocessing``  the fields of :class:`utils.preprocessing.Preprocessing`
``labels``         names of the classes, the background first
``amp``            whether mixed precision was on
``flips``          how crops were flipped: ``none``, ``published``, ``anatomical``
``state_dict``     the weights, under the published names; with --ema_decay their average
``epoch``          epochs of training behind them
``score``          mean Dice of the last validation up to then, or None
``versions``       of torch, MONAI and this repository
``command``        the command line that made it
``resume``         (latest only) optimizer, scaler, :class:`Progress`, flags and data list;
                   with --ema_decay also the weights that the average is of
=================  =============================================================================

Schedule and random numbers are functions of the step, so that ``resume`` needs neither.
"""

import argparse
import errno
import importlib.util
import json
import math
import pickle
import shlex
import struct
import sys
import warnings
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from numpy._core.multiarray import scalar as numpy_scalar
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

import utils
from networks import NETWORKS, build_network
from networks.unetr import UNETR
from utils.args import (
    as_flags,
    network_faults,
    network_options,
    preprocessing,
    preprocessing_flags,
    recorded_flags,
    training_flags,
)
from utils.data_list import DataList
from utils.errors import DamagedError, InputError, blame_flags, brief, lacks_memory
from utils.files import replacing
from utils.preprocessing import Preprocessing
from utils.vit_weights import load_vit_weights
from utils.weights import load_weights, same_logits

FORMAT = 2
# the scalars in which the repository of 2021 saved its best score; making them runs no code of the file
NUMPY_SCALARS: list[Any] = [
    (numpy_scalar, "numpy.core.multiarray.scalar"),
    (numpy_scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    type(np.dtype(np.float64)),
    type(np.dtype(np.float32)),
]
# keywords of networks that follow from the data, that adapting can change, or on which no weight depends
FREE_OPTIONS = (
    *("img_size", "spacing", "in_channels", "out_channels", "deep_supervision"),
    *("dropout_rate", "drop_path_rate"),
)
# what the readers of zip files and of torch raise on files that are damaged or none of theirs
UNREADABLE = (
    *(RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError),
    *(ArithmeticError, struct.error, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error),
)
METADATA = "unetr.json"  # what describes the network in a file that another format leaves no room for it


@dataclass(frozen=True)
class Description:
    """All that inference needs to know of a network beside its weights.

    Attributes:
        flips: how crops were flipped in training, ``none`` or what ``--flips`` says; None where that isn't known.
    """

    network: str
    options: dict[str, Any]
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    amp: bool
    flips: str | None = None

    def build(self) -> nn.Module:
        """The network, with fresh weights."""
        return build_network(self.network, **self.options)

    def content(self) -> dict[str, Any]:
        """The part of a checkpoint that says this."""
        return {
            "format": FORMAT,
            "network": {"name": self.network, "options": self.options},
            "preprocessing": asdict(self.preprocessing),
            "labels": list(self.labels),
            "amp": self.amp,
            "flips": self.flips,
            "versions": {"torch": str(torch.__version__), "monai": str(monai.__version__), "unetr": utils.__version__},
            "command": shlex.join(sys.argv),
        }


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


def save(
    path: Path,
    description: Description,
    network: nn.Module,
    progress: Progress,
    resume: Mapping[str, Any] | None = None,
    previous: Path | None = None,
) -> None:
    """Write a checkpoint in one step: whatever happens, ``path`` is the old file or the new one.

    Args:
        resume: from :func:`resume_state`, for a checkpoint that a run can continue from.
        previous: gets the checkpoint that was at ``path``.

    Raises:
        WriteError: if it can't be written.
    """
    content = {
        **description.content(),
        "state_dict": {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()},
        "epoch": progress.epoch,
        "score": progress.score,
    }
    if resume is not None:
        content["resume"] = resume
    with replacing(path, previous) as temporary, open(temporary, "wb") as file:
        save_tensors(content, file)


def save_tensors(content: Any, file: Any) -> None:
    """``torch.save``, with the disk's own error where there is no room, which torch hides behind one of its own."""
    try:
        torch.save(content, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint or of a bare state dict. No code in the file is run.

    Raises:
        DamagedError: if there is no such file, or it is damaged, or it holds something else.
        InputError: if a newer version made it.
    """
    content = _load(path, if_torchscript="Give --resume_jit, or to test.py --saved_checkpoint=torchscript")
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        _refuse_newer(path, content)
        return dict(content)
    if isinstance(content, Mapping) and content and all(isinstance(value, Tensor) for value in content.values()):
        metadata = _metadata(path)
        _refuse_newer(path, metadata)
        return {**metadata, "state_dict": content}
    raise DamagedError(f"{path}: holds no weights: neither a checkpoint of main.py nor a state dict.")


def read_vit(path: Path) -> dict[str, Any]:
    """The content of a file with the weights of a ViT, by whatever program. No code in the file is run.

    Raises:
        DamagedError: if there is no such file, or it is damaged, or it holds something else.
        InputError: if it needs a package that is missing.
    """
    if path.suffix == ".safetensors":
        return {"state_dict": _load_safetensors(path)}
    content = _load(path, if_torchscript="Save its state_dict() alone")
    if not isinstance(content, Mapping):
        raise DamagedError(f"{path}: holds no weights: neither a checkpoint nor a state dict.")
    content = {**_metadata(path), **content}
    _refuse_newer(path, content)
    return content


def _describes_itself(content: Mapping[str, Any]) -> bool:
    """Whether it is one of ours; others may call something network, or format."""
    return isinstance(content.get("format"), int) and "preprocessing" in content


def _refuse_newer(path: Path, content: Mapping[str, Any]) -> None:
    if _describes_itself(content) and (content["format"] > FORMAT or content["network"]["name"] not in NETWORKS):
        raise InputError(f"{path}: was made by a newer version of this program. Update it.")


def _load(path: Path, if_torchscript: str) -> Any:
    """What torch.save wrote.

    Args:
        if_torchscript: what to do where torch.jit.save wrote it.
    """
    _require_file(path)
    try:
        _require_whole(path)
        with (
            warnings.catch_warnings(action="ignore", category=UserWarning),  # of TorchScript, which is named below
            torch.serialization.safe_globals([*NUMPY_SCALARS, argparse.Namespace]),  # flags, as MAE and DINO save them
        ):
            return torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        reason = _why_unreadable(path, error)
        if "TorchScript" in str(error):
            reason = f"it is TorchScript. {if_torchscript}"
        elif "Unsupported global" in str(error) or "Unsupported class" in str(error):
            reason = "it holds more than weights, which could be code and is not run. Save its state_dict() alone"
        raise DamagedError(f"{path}: can't be read as weights: {reason}.") from error


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    _require_file(path)
    if importlib.util.find_spec("safetensors") is None:
        raise InputError(f"{path}: to read it takes a package that is missing. Install it: pip install safetensors")
    import safetensors.torch

    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, *UNREADABLE) as error:
        raise DamagedError(f"{path}: can't be read as weights: {_why_unreadable(path, error)}.") from error
    return tensors


def add_metadata(path: Path, metadata: str) -> None:
    """Put what describes the network into a bare state dict, where TorchScript has it too; others don't see it."""
    with zipfile.ZipFile(path, "a") as archive:
        top = archive.namelist()[0].split("/")[0]
        archive.writestr(f"{top}/extra/{METADATA}", metadata)


def _metadata(path: Path) -> dict[str, Any]:
    """What :func:`add_metadata` put there, or nothing."""
    if not zipfile.is_zipfile(path):
        return {}  # torch before 1.6 wrote no archive
    with zipfile.ZipFile(path) as archive:
        found = [name for name in archive.namelist() if name.endswith(f"/extra/{METADATA}")]
        return json.loads(archive.read(found[0])) if found else {}


def read_torchscript(path: Path) -> tuple[torch.jit.ScriptModule, dict[str, Any]]:
    """A TorchScript file's network, and what the file tells of it, as :func:`read` gives that of a checkpoint.

    TorchScript is code: load it from people you trust.

    Raises:
        InputError: if there is no such file, or it isn't TorchScript.
    """
    _require_file(path)
    try:
        _require_whole(path)
        module = torch.jit.load(str(path), map_location="cpu")
    except UNREADABLE as error:
        reason = _why_unreadable(path, error)
        if _is_of_torch_save(path):
            reason = "it is a checkpoint or a state dict. Give --resume_ckpt, or to test.py --saved_checkpoint=ckpt"
        raise InputError(f"{path}: can't be read as TorchScript: {reason}.") from error
    metadata = _metadata(path)
    _refuse_newer(path, metadata)
    return module, {**metadata, "state_dict": module.state_dict()}


def _require_file(path: Path) -> None:
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "no such file"
        there = [] if path.is_dir() else sorted(file.name for file in path.parent.glob("*.pt*"))
        what += f", but there are {', '.join(there[:6])}" if there else ""
        raise InputError(
            f"{path}: {what}. Mend its path (--pretrained_dir and --pretrained_model_name, or --checkpoint or "
            "--vit_weights of main.py)."
        )


def _why_unreadable(path: Path, error: Exception) -> str:
    """What is wrong with a file, and what to do.

    Raises:
        InputError: if the error tells nothing of its content, so that it may be sound.
    """
    # EINVAL does, as of a place before a damaged file's beginning
    if lacks_memory(error) or getattr(error, "errno", None) not in (None, errno.EINVAL):
        raise InputError(f"{path}: can't be read now ({brief(error)}). Launch again when it can be.") from error
    if path.stat().st_size == 0:
        return "it is empty. Copy it again, or give another file"
    return "it is damaged, or of another kind. Copy it again, or give another file"


def _is_of_torch_save(path: Path) -> bool:
    names = _members(path)
    return "data.pkl" in names and "constants.pkl" not in names


def _is_torchscript(path: Path) -> bool:
    return "constants.pkl" in _members(path)


def _members(path: Path) -> set[str]:
    """The names in an archive that torch wrote, without that of its folder; none where it isn't a sound one."""
    try:
        _require_whole(path)
        with zipfile.ZipFile(path) as archive:
            return {name.split("/", 1)[-1] for name in archive.namelist()}
    except UNREADABLE:
        return set()


def _require_whole(path: Path) -> None:
    """Compare the checksums that torch.save writes, since torch.load doesn't.

    Raises:
        ValueError: if one differs; or others of :data:`UNREADABLE`.
    """
    if not zipfile.is_zipfile(path):
        return  # torch.load says what it is
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"{damaged} has another checksum")


def describe(content: Mapping[str, Any]) -> Description | None:
    """What a checkpoint says of its network; None for bare weights, which say nothing."""
    if not _describes_itself(content):
        return None
    return Description(
        network=content["network"]["name"],
        # those of an older file have no place for what came later
        options={**NETWORKS[content["network"]["name"]].defaults, **_with_tuples(content["network"]["options"])},
        preprocessing=Preprocessing(**_with_tuples(content["preprocessing"])),
        labels=tuple(content["labels"]),
        amp=content["amp"],
        flips=content.get("flips"),
    )


def _with_tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


@dataclass
class Start:
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


def start(
    args: argparse.Namespace, path: Path | None, description: Description, data: DataList, network: nn.Module
) -> Start:
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
        return Start(Progress(), _transfer(args, weights, read(weights), description, network))
    if args.resume_jit:
        module, content = read_torchscript(weights)
        source = _transfer(args, weights, content, description, network)
        shape = (1, description.options["in_channels"], *description.preprocessing.roi)
        if not args.adapt_weights and not same_logits(network, module, shape):
            raise InputError(
                f"{weights}: its network gives other logits than the one that the flags describe has with its weights. "
                "Give the flags that it was made with, --num_heads among them."
            )
        return Start(Progress(), source)
    if args.vit_weights is not None:
        return _start_encoder(Path(args.vit_weights), description, network)
    return Start(Progress(), "from random weights")


def _start_encoder(path: Path, description: Description, network: nn.Module) -> Start:
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
    return Start(Progress(), source, notes)


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
) -> Start:
    content = read(path)
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
    return Start(progress, f"{transfer.line()}, going on after {progress}", notes, state)


def require_continuable(path: Path, content: Mapping[str, Any]) -> Description:
    """Check that a run can continue from what :func:`read` gave; the description of its network.

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
    """What :meth:`Start.restore` restores: of optimizer and loss scaler, and the weights where an average is saved."""
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


def weight_files(args: argparse.Namespace) -> list[Path]:
    """The files that ``--pretrained_model_name`` names or whose names fit its patterns, below ``--pretrained_dir``.

    Raises:
        InputError: if nothing fits a pattern.
    """
    folder = Path(args.pretrained_dir)
    files: list[Path] = []
    for name in args.pretrained_model_name:
        is_pattern = any(sign in name for sign in "*?[") and not (folder / name).exists()
        fitting = sorted(folder.glob(name)) if is_pattern and not Path(name).is_absolute() else [folder / name]
        if not fitting:
            raise InputError(f"--pretrained_model_name {name}: no file in {folder} has such a name.")
        files += fitting
    return files


def load_ensemble(
    args: argparse.Namespace, paths: Sequence[Path], data: DataList
) -> tuple[list[tuple[nn.Module, Description]], str]:
    """The networks of some weights files, which have to agree in preprocessing, channels and labels.

    Returns:
        Each network with its description, and lines about where the weights are from.

    Raises:
        InputError: if a file can't be read, or isn't what flags, data list or the first file say.
    """
    members: list[tuple[nn.Module, Description]] = []
    lines = []
    for path in paths:
        network, description, line = load_for_testing(args, path, data)
        lines.append(line)
        if members:
            first = members[0][1]
            given, theirs = (
                {
                    **preprocessing_flags(one.preprocessing),
                    "in_channels": one.options["in_channels"],
                    "labels": ", ".join(one.labels),
                    **({"flips": one.flips} if args.tta else {}),  # by which they are mirrored alike
                }
                for one in (first, description)
            )
            refuse_contradictions(path, given, theirs, f"Only networks with the preprocessing of {paths[0]} fit it.")
        members.append((network, description))
    return members, "\n".join(lines)


def load_for_testing(args: argparse.Namespace, path: Path, data: DataList) -> tuple[nn.Module, Description, str]:
    """The network of a weights file, ready to predict.

    A checkpoint describes itself, and a flag that says otherwise is an error. Bare weights are described by the
    flags, with their defaults, and by the data list's label names. TorchScript is its own network, in float32.

    Returns:
        The network, its description, and a line about where the weights are from, with another on labels where the
        data list has names of its own.

    Raises:
        InputError: if the file can't be read, or isn't what flags or data list say.
    """
    torchscript = args.saved_checkpoint == "torchscript" or (args.saved_checkpoint == "any" and _is_torchscript(path))
    module, content = read_torchscript(path) if torchscript else (None, read(path))
    given = {name: value for name in recorded_flags() if (value := getattr(args, name)) is not None}
    description = describe(content)
    note = ""
    if description is None:
        flags = {**recorded_flags(args.model_name or "unetr"), **given}
        description = Description(
            network=flags["model_name"],
            options=network_options(flags),
            preprocessing=preprocessing(flags),
            labels=data.label_names(flags["out_channels"]),
            amp=True,
        )
    else:
        refuse_contradictions(
            path,
            given,
            as_flags(description.network, description.options, description.preprocessing),
            "Leave these flags out, or give the weights that they describe.",
        )
        note = _label_note(path, description.labels, data)
        flags = {**given, "model_name": description.network}
    if faults := network_faults({name: value for name, value in flags.items() if value is not None}):
        raise InputError(f"{path}: {'; '.join(faults)}.")
    if module is not None:
        _require_shapes(module, description, path)
        return module, replace(description, amp=False), f"{path} (TorchScript), which computes in float32{note}"
    # without weights until the file's are in it: to draw random ones takes longer than to read those
    with blame_flags(), torch.device("meta"):
        network = description.build()
    transfer = load_weights(network, content["state_dict"], str(path), kind=_kind(content))
    return network, description, transfer.line() + note


def _label_note(path: Path, labels: tuple[str, ...], data: DataList) -> str:
    """Compare the labels of weights with those of the scans that they are tested on, which are scored by value.

    Returns:
        A line about names that the weights don't know, else nothing.

    Raises:
        InputError: if the data list has another number of labels, or one that the weights have at another value.
    """
    theirs = labels if data.labels is None else data.labels
    if len(theirs) != len(labels):
        raise InputError(
            f"{path}: knows {len(labels)} labels (the background included), but {data.path} names {len(theirs)}. "
            "Give weights and a data list of one task."
        )
    values = {name.casefold(): value for value, name in enumerate(labels)}
    unknown = []
    for value, name in enumerate(theirs):
        known = values.get(name.casefold())
        if known is None:
            unknown.append(f"label {value} {name!r}, the weights {labels[value]!r}")
        elif known != value:
            raise InputError(
                f"{path}: has {name!r} as label {known}, but {data.path} as label {value}. Give scans whose labels "
                "have the values of the weights."
            )
    if not unknown:
        return ""
    others = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
    return f"\nnote: {data.path} calls {unknown[0]}{others}; labels are compared by value, with the weights' names"


def _require_shapes(module: nn.Module, description: Description, path: Path) -> None:
    """Let a network of unknown making predict one window.

    Raises:
        InputError: if it can't, or has another number of classes.
    """
    window = torch.zeros(1, description.options["in_channels"], *description.preprocessing.roi)
    expected = (1, len(description.labels), *description.preprocessing.roi)
    try:
        with torch.inference_mode():
            found = tuple(module.eval()(window).shape)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(
            f"{path}: can't predict a window of {tuple(window.shape)} ({reason}). "
            "Give the --in_channels, --roi_x, --roi_y and --roi_z that it was made for."
        ) from error
    if found != expected:
        raise InputError(
            f"{path}: gives {found} for a window of {tuple(window.shape)}, not {expected}. "
            "Give the --out_channels that it was made for."
        )


def refuse_contradictions(path: Path, given: Mapping[str, Any], recorded: Mapping[str, Any], remedy: str) -> None:
    """Compare flags with what a checkpoint records.

    Raises:
        InputError: naming each flag that differs, with both values.
    """
    faults = [
        f"--{name} {_flag_text(given[name])} contradicts its {_flag_text(recorded[name])}"
        for name in _differing(given, recorded)
    ]
    if faults:
        raise InputError(f"{path}: {'; '.join(faults)}. {remedy}")


def _differing(given: Mapping[str, Any], recorded: Mapping[str, Any]) -> list[str]:
    """The flags that contradict what is recorded; ``model_name`` alone if it does, since the others follow from it."""
    differing = [name for name, value in given.items() if name in recorded and value != recorded[name]]
    return ["model_name"] if "model_name" in differing else differing


def _flag_text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)

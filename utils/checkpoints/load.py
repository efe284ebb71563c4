"""Load trained networks: one for a notebook, or an ensemble for testing."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from networks.registry import AUTOENCODERS, find_architecture
from utils.checkpoints.description import (
    Description,
    config_from,
    describe,
    preprocessing_from,
    preprocessing_settings,
    refuse_contradictions,
)
from utils.checkpoints.foreign_weights import Transfer, interpolate_positions, load_weights, predicted_logits
from utils.checkpoints.read import is_torchscript, read_checkpoint, read_torchscript
from utils.checkpoints.resume import kind_of
from utils.checkpoints.schema import tensor_fault
from utils.checkpoints.task import is_task, networks_of
from utils.data.channels import RegionChannels
from utils.data.data_list import DataList, unlisted
from utils.system.errors import DamagedError, InputError, size_text
from utils.system.typed import shown_text

FORMATS = ("ckpt", "torchscript", "any")


@dataclass(frozen=True)
class LoadSettings:
    """How weights files are read.

    Attributes:
        format: one of :data:`FORMATS`; ``any`` looks into each file.
        given: settings of network and preprocessing by the names of their flags. They describe bare weights, and must
            agree with a checkpoint, which describes itself. ``model_name`` may be a network's .py file.
        same_flips: whether the networks of an ensemble must have been trained with the same flips.
        scored: the part of the data list whose labels are compared, ``test`` for example; None if none are.
    """

    format: str = "ckpt"
    given: Mapping[str, Any] = field(default_factory=dict)
    same_flips: bool = False
    scored: str | None = None


def load_network(
    path: str | Path, network_file: str | Path | None = None, **settings: Any
) -> tuple[nn.Module, Description]:
    """A trained network in float32 on the CPU, in evaluation mode, and what its checkpoint says of it.

    ``network, description = load_network("runs/x/model.pt")``. No code in the file is run.
    :func:`networks.layers.optimize_for_cpu` makes it faster.

    Args:
        path: a checkpoint of ``main.py``, a bare state dict, or the archive of a task with one network.
        network_file: the Python file of a network of one's own. It is code, and is run.
        settings: what a bare state dict doesn't say, by the names of the flags: ``out_channels=3, roi_x=64``.

    Raises:
        InputError: if the file can't be read, or isn't of such a network.
    """
    given = settings if network_file is None else {"model_name": str(network_file), **settings}
    (network, description), *others = load_ensemble(LoadSettings(given=given), [Path(path)], unlisted(None))[0]
    if others:
        raise InputError(f"{path}: holds {len(others) + 1} networks. Read them by load_ensemble.")
    return network.eval(), description


def weight_files(folder: Path, names: Sequence[str]) -> list[Path]:
    """The files below a folder that have these names, or whose names fit these patterns.

    Raises:
        InputError: if nothing fits a pattern.
    """
    files: list[Path] = []
    for name in names:
        is_pattern = any(sign in name for sign in "*?[") and not (folder / name).exists()
        fitting = sorted(folder.glob(name)) if is_pattern and not Path(name).is_absolute() else [folder / name]
        if not fitting:
            raise InputError(f"`pretrained_model_name` {name}: no file in {folder} has such a name.")
        files += fitting
    return files


def load_ensemble(
    settings: LoadSettings, paths: Sequence[Path], data: DataList
) -> tuple[list[tuple[nn.Module, Description]], str]:
    """The networks of weights files and archives of tasks, which have to agree in preprocessing, channels and labels.

    Returns:
        Each network with its description, and lines about where the weights are from.

    Raises:
        InputError: if a file can't be read, or isn't what settings, data list or the first file say.
    """
    members: list[tuple[nn.Module, Description]] = []
    lines = []
    found = (one for path in paths for one in _networks_in(settings, path, data))
    for place, network, description, line in found:
        lines.append(line)
        if members:
            first = members[0][1]
            given, theirs = (
                {
                    **preprocessing_settings(one.preprocessing),
                    "in_channels": one.config.in_channels,
                    "labels": ", ".join(map(shown_text, one.labels)),
                    "trained regions": _trained_regions(one),
                    **({"flips": one.flips} if settings.same_flips else {}),
                }
                for one in (first, description)
            )
            refuse_contradictions(place, given, theirs, f"Only networks with the preprocessing of {paths[0]} fit it.")
        members.append((network, description))
    return members, "\n".join(lines)


def _networks_in(
    settings: LoadSettings, path: Path, data: DataList
) -> Iterator[tuple[str, nn.Module, Description, str]]:
    """Each network of a file: where it is, and what :func:`load_for_testing` gives. No code in an archive is run."""
    if not is_task(path):
        yield (str(path), *load_for_testing(settings, path, data))
        return
    for name, in_memory in networks_of(path):
        place = f"{path} ({name})"
        try:
            network, description, line = load_for_testing(replace(settings, format="ckpt"), in_memory, data)
        except InputError as error:
            raise type(error)(str(error).replace(str(in_memory), place)) from error
        yield place, network, description, line.replace(str(in_memory), place)


def load_for_testing(settings: LoadSettings, path: Path, data: DataList) -> tuple[nn.Module, Description, str]:
    """The network of a weights file, ready to predict.

    A checkpoint describes itself, and a setting that says otherwise is an error. Bare weights are described by the
    settings, with their defaults, and by the data list's label names. The data list's regions, if it names some, are
    those that are scored. TorchScript is its own network, in float32.

    Returns:
        The network, its description, and a line about where the weights are from, with others where the data list has
        names of its own for labels, or scans that trained the network are scored.

    Raises:
        InputError: if the file can't be read, or isn't what settings or data list say.
    """
    given = dict(settings.given)
    architecture = find_architecture(given.get("model_name", "unetr"))  # runs a file of one's own
    if "model_name" in given:
        given["model_name"] = architecture.title
    torchscript = settings.format == "torchscript" or (settings.format == "any" and is_torchscript(path))
    module, content = read_torchscript(path) if torchscript else (None, read_checkpoint(path))
    description = describe(content, path)
    note = ""
    if description is None:
        preprocessing = preprocessing_from(given)
        try:
            config = config_from(architecture, given, preprocessing)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        labels = data.label_names(config.out_channels)
        description = Description(config, preprocessing, labels, amp=True, output=data.output)
    else:
        refuse_encoder(description, path)
        if module is None:
            description, content, note = _at_window(description, content, given, path)
        remedy = "Leave these settings out, or give the weights that they describe."
        refuse_contradictions(path, given, description.settings(), remedy)
        note += _label_note(path, description.labels, data)
    note += _training_note(path, content, settings.scored, data)
    if data.regions:
        description = replace(description, regions=data.regions)
    foreign = [name for name in given if name not in description.settings()]
    if foreign:
        faults = "; ".join(f"`{name}` is not for {description.network}; leave it out" for name in foreign)
        raise InputError(f"{path}: {faults}.")
    if module is not None:
        require_shapes(module, description, path)
        return module, replace(description, amp=False), f"{path} (TorchScript), which computes in float32{note}"
    network, transfer = build_with_weights(description, content, path)
    return network, description, transfer.line() + note


def refuse_encoder(description: Description, path: Path) -> None:
    """Check that a checkpoint isn't one of ``utils.pretrain``.

    Raises:
        InputError: if it is.
    """
    if description.network in AUTOENCODERS:
        raise InputError(
            f"{path}: holds a pre-trained encoder, which segments nothing yet. Train a network from it by "
            "`vit_weights`, and give that network's checkpoint."
        )


def _at_window(
    description: Description, content: dict[str, Any], given: Mapping[str, Any], path: Path
) -> tuple[Description, dict[str, Any], str]:
    """A checkpoint at the window that settings ask for, if its network's weights fit windows of any size.

    Position embeddings are interpolated, as are those of an adapted network.

    Returns:
        Its description and content at that window, and a line about it where it is another one than in training.

    Raises:
        InputError: if the network takes no such window.
        DamagedError: if the position embeddings aren't those of its own window.
    """
    axes = ("roi_x", "roi_y", "roi_z")
    old = description.preprocessing.roi
    new = tuple(given.get(name, edge) for name, edge in zip(axes, old, strict=True))
    if new == old or not description.architecture.declared("any_window", False):
        return description, content, ""
    try:
        config = replace(description.config, img_size=new)
        preprocessing = replace(description.preprocessing, roi=new)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    positions = description.architecture.declared("position_embeddings", None)
    if positions in content["state_dict"]:
        grids = [config.grid_of(window) for window in (old, new)]
        tensors = content["state_dict"]
        _require_embeddings(tensors[positions], grids[0], f"{path}: its {positions}")
        content = {**content, "state_dict": {**tensors, positions: interpolate_positions(tensors[positions], *grids)}}
    line = f"\nnote: the window is {size_text(new)} voxels, and was {size_text(old)} in training"
    return replace(description, config=config, preprocessing=preprocessing), content, line


def _require_embeddings(tensor: Tensor, grid: tuple[int, ...], source: str) -> None:
    """Check that a tensor can be the position embeddings of a grid of patches.

    Raises:
        DamagedError: if it can't.
    """
    one_each = tensor.ndim == 3 and tensor.shape[:2] == (1, math.prod(grid)) and tensor.shape[2] > 0
    if not tensor.is_floating_point() or not one_each:
        raise DamagedError(
            f"{source} {tuple(tensor.shape)} in {str(tensor.dtype).removeprefix('torch.')} isn't an embedding "
            f"in floats for each of {size_text(grid)} patches. Give another file."
        )


def build_with_weights(
    description: Description, content: Mapping[str, Any], source: object
) -> tuple[nn.Module, Transfer]:
    """The network of a description with the weights that :func:`read_checkpoint` gave.

    Raises:
        InputError: if they don't fit it.
    """
    # to draw random weights takes longer than to read a file's; a program may have another default than float32
    network = description.build_empty().float()
    return network, load_weights(network, content["state_dict"], str(source), kind=kind_of(content))


def _trained_regions(description: Description) -> str:
    """The regions that a network has channels for, as text."""
    output = description.output
    if not isinstance(output, RegionChannels):
        return "none"
    pairs = zip(output.regions, output.order, strict=True)
    return "; ".join(f"{shown_text(one.name)} {list(one.labels)} writes {value}" for one, value in pairs)


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


def _training_note(path: Path, content: Mapping[str, Any], scored: str | None, data: DataList) -> str:
    """A line about scans that are scored and trained the network, as far as its file tells by their paths, or nothing.

    Args:
        scored: the part of the data list whose scans are scored.
    """
    if scored is None or "resume" not in content:
        return ""
    trained = {files[0] for files in content["resume"]["scans"]["training"]}
    known = [scan for scan in getattr(data, scored) if scan.label is not None and data.paths(scan)[0] in trained]
    if not known:
        return ""
    return f"\nnote: by their paths, {len(known)} of these scans trained {path}; such scores are too high"


def require_shapes(module: nn.Module, description: Description, path: Path) -> None:
    """Let a network that isn't ours predict one window, which shows whether it has the right channels and classes.

    Raises:
        InputError: if it can't, gives something else than logits, has another number of classes, or a state that no
            checkpoint keeps.
    """
    for name, value in module.state_dict().items():
        fault = tensor_fault(value)
        if fault is not None:
            raise InputError(f"{path}: its {name} {fault}, and checkpoints keep tensors alone. Make it a buffer.")
    window = torch.zeros(1, description.config.in_channels, *description.preprocessing.roi)
    expected = (1, description.config.out_channels, *description.preprocessing.roi)
    found = tuple(predicted_logits(module, window, path).shape)
    if found != expected:
        raise InputError(
            f"{path}: gives {found} for a window of {tuple(window.shape)}, not {expected}. "
            "Give the `out_channels` that it was made for."
        )

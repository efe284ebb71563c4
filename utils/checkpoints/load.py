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
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from utils.checkpoints.description import Description, describe, refuse_contradictions
from utils.checkpoints.foreign_weights import load_weights
from utils.checkpoints.read import _is_torchscript, read_checkpoint, read_torchscript
from utils.checkpoints.resume import _kind
from utils.config.flags import (
    as_flags,
    network_faults,
    network_options,
    preprocessing,
    preprocessing_flags,
    recorded_flags,
)
from utils.data.data_list import DataList
from utils.system.errors import InputError, blame_flags


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
    module, content = read_torchscript(path) if torchscript else (None, read_checkpoint(path))
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

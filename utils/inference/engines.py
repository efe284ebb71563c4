"""The engine that computes the forward passes: torch, or on a CPU OpenVINO."""

import copy
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from networks.layers import optimize_for_cpu
from networks.precision import Precision, choose_precision
from utils.checkpoints.description import Description
from utils.distributed.process import Process
from utils.inference import openvino
from utils.inference.openvino import UnfitError, example_window
from utils.system.files import atomic_write

ENGINES = ("auto", "torch", "openvino")
Members = tuple[tuple[nn.Module, Precision], ...]
Say = Callable[[str], None]
SMALL = 2**17  # voxels; for smaller windows compiling takes longer than OpenVINO saves
ENDING = ".timed"
TIMES = 4  # passes of each engine that are timed


def place_networks(
    engine: str, members: Sequence[tuple[nn.Module, Description]], amp: bool, process: Process, say: Say | None = None
) -> tuple[Members, str]:
    """Make the networks of an ensemble ready to predict, each with the number format that it computes in.

    Args:
        engine: ``torch``, ``openvino``, or ``auto``: OpenVINO where it is installed and faster for a window of the
            first network. That is timed once for each machine and network.
        members: each network with its description; the networks are changed in place.
        amp: whether formats shorter than float32 are allowed.
        say: takes what a person should know; by default the process prints it.

    Returns:
        The networks, and the name of the engine, with the reason if there was a choice.

    Raises:
        UnfitError: if ``openvino`` is asked for and can't run the networks.
    """
    say = say or process.say
    formats = [choose_precision(process.device, amp and one.amp, one.config) for _, one in members]
    networks = [network.eval() for network, _ in members]
    chosen, reason = engine, ""
    if engine == "auto":
        chosen, reason = _faster_engine(networks, members[0][1], formats[0], process.device, say)
    placed: list[nn.Module] = []
    if chosen == "openvino":
        try:
            openvino.require_fit(networks, process.device)
            for (network, description), precision in zip(members, formats, strict=True):
                placed.append(openvino.compile_network(network, description, precision, say))
        except UnfitError as error:
            if engine == "openvino":
                raise
            chosen, reason = "torch", error.fault
    if engine == "auto":
        # all processes take the same engine: torch, if one of them does
        choices = process.all_gather((chosen, reason))
        chosen, reason = next((choice for choice in choices if choice[0] == "torch"), choices[0])
    if chosen == "torch":
        placed = [
            _place_for_torch(network, description, precision, process)
            for (network, description), precision in zip(members, formats, strict=True)
        ]
    words = openvino.version() if chosen == "openvino" else "torch"
    return tuple(zip(placed, formats, strict=True)), f"{words}, since {reason}" if reason else words


def _place_for_torch(network: nn.Module, description: Description, precision: Precision, process: Process) -> nn.Module:
    """The network with faster layers on the process's device, its weights in the format that it computes in."""
    placed = process.place(optimize_for_cpu(network))
    if description.architecture.file is None:  # one from a file of one's own may compute a part without autocast
        precision.convert_weights(placed)
    return placed


def _faster_engine(
    networks: Sequence[nn.Module], description: Description, precision: Precision, device: torch.device, say: Say
) -> tuple[str, str]:
    """The engine that is faster for a window of the first network, and the reason if there was a choice.

    What was timed is kept in the cache of compiled networks.
    """
    if math.prod(description.preprocessing.roi) < SMALL or not openvino.is_possible(networks, device):
        return "torch", ""
    path = openvino.cache_folder() / f"{openvino.hash_of_kind(description, precision)}{ENDING}"
    try:
        seconds = _remembered(path)
        if seconds is None:
            say("note: torch and OpenVINO are timed, once for this network and machine")
            openvino.require_fit(networks, device)
            seconds = _time_engines(networks[0], description, precision, say)
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as temporary:
                temporary.write_text(json.dumps(seconds))
    except UnfitError as error:
        return "torch", error.fault
    except OSError as error:
        return "torch", f"what was timed can't be kept ({error})"
    faster = "openvino" if seconds["openvino"] < seconds["torch"] else "torch"
    return faster, f"a window takes OpenVINO {seconds['openvino']:.3f} s and torch {seconds['torch']:.3f} s"


def _remembered(path: Path) -> dict[str, float] | None:
    """What was timed before; None if nothing was, or the file isn't as it was written."""
    try:
        seconds = json.loads(path.read_text())
        return {name: float(seconds[name]) for name in ("openvino", "torch")}
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def _time_engines(network: nn.Module, description: Description, precision: Precision, say: Say) -> dict[str, float]:
    """Seconds that each engine takes for a window.

    Raises:
        UnfitError: if OpenVINO can't run the network.
    """
    engines = {
        "openvino": openvino.compile_network(network, description, precision, say),
        "torch": _place_for_torch(copy.deepcopy(network), description, precision, Process(precision.device)),
    }
    return _seconds(engines, precision, example_window(description))


def _seconds(engines: Mapping[str, nn.Module], precision: Precision, window: Tensor) -> dict[str, float]:
    """The time of each engine's forward pass: the shortest of a few, after a slower first one.

    They take turns, so that a machine that is busy for a moment slows both.
    """
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    with torch.inference_mode(), precision.autocast():
        for _ in range(1 + TIMES):
            for name, engine in engines.items():
                start = time.perf_counter()
                engine(window)
                seconds[name].append(time.perf_counter() - start)
    return {name: min(taken[1:]) for name, taken in seconds.items()}

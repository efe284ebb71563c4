"""The engine that computes the forward passes: torch, or on a CPU OpenVINO."""

import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from networks.layers import optimize_for_cpu
from networks.precision import Precision, choose_precision
from utils.checkpoints.description import Description
from utils.distributed.process import Process
from utils.inference import openvino
from utils.inference.openvino import UnfitError, example_window

Members = tuple[tuple[nn.Module, Precision], ...]


def place_networks(
    engine: str, members: Sequence[tuple[nn.Module, Description]], amp: bool, process: Process
) -> tuple[Members, str]:
    """Make the networks of an ensemble ready to predict, each with the number format that it computes in.

    Args:
        engine: ``torch``, ``openvino``, or ``auto``: OpenVINO if it is faster for a window of the first network.
        members: each network with its description; the networks are changed in place.
        amp: whether formats shorter than float32 are allowed.

    Returns:
        The networks, and the name of the engine, with the reason if it was chosen here.

    Raises:
        UnfitError: if ``openvino`` is asked for and can't run the networks.
    """
    formats = [choose_precision(process.device, amp and one.amp, one.config) for _, one in members]
    networks = [network.eval() for network, _ in members]
    compiled: list[nn.Module] = []
    reason_against = None
    if engine != "torch":
        try:
            openvino.require_fit(networks, process.device)
            for (network, description), precision in zip(members, formats, strict=True):
                compiled.append(openvino.compile_network(network, description, precision, process))
        except UnfitError as error:
            if engine == "openvino":
                raise
            reason_against = error.fault
    if engine == "openvino":
        return tuple(zip(compiled, formats, strict=True)), openvino.version()
    placed = [
        _place_for_torch(network, precision, process) for network, precision in zip(networks, formats, strict=True)
    ]
    if engine == "torch":
        return tuple(zip(placed, formats, strict=True)), "torch"
    reason = ""
    if reason_against is None:
        window = example_window(members[0][1])
        openvino_seconds, torch_seconds = (
            _seconds(network, formats[0], window) for network in (compiled[0], placed[0])
        )
        reason = f"a window takes OpenVINO {openvino_seconds:.3f} s and torch {torch_seconds:.3f} s"
        reason_against = None if openvino_seconds < torch_seconds else reason
    # all processes take the same engine: torch, if one of them has a reason for it
    reasons_against = [other for other in process.all_gather(reason_against) if other is not None]
    if reasons_against:
        return tuple(zip(placed, formats, strict=True)), f"torch, since {reasons_against[0]}"
    return tuple(zip(compiled, formats, strict=True)), f"{openvino.version()}, since {reason}"


def _place_for_torch(network: nn.Module, precision: Precision, process: Process) -> nn.Module:
    """The network with faster layers on the process's device, its weights in the format that it computes in."""
    placed = process.place(optimize_for_cpu(network))
    precision.convert_weights(placed)
    return placed


def _seconds(network: nn.Module, precision: Precision, window: Tensor) -> float:
    """The time of a forward pass: the shorter of two, after a slower first one."""
    seconds = []
    with torch.inference_mode(), precision.autocast():
        for _ in range(3):
            start = time.perf_counter()
            network(window)
            seconds.append(time.perf_counter() - start)
    return min(seconds[1:])

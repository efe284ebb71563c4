"""What computes the forward passes of ``test.py``: torch, or on a CPU OpenVINO, an engine made for it.

OpenVINO compiles a network for windows of one size, which takes some seconds. What it made is kept on disk, in
``$XDG_CACHE_HOME/unetr`` (by default ``~/.cache/unetr``), under a name that tells its weights, code and machine.
"""

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from torch import Tensor, nn

from networks.precision import Precision, choose_precision
from utils.checkpoints.description import Description
from utils.distributed.process import Process
from utils.system.errors import InputError, brief
from utils.system.files import fingerprint, replacing

Members = tuple[tuple[nn.Module, Precision], ...]

INSTALL = "pip install openvino==2026.4.0"
KEPT = 16  # compiled networks on disk; one of the reference network has 355 MiB
ENDING = ".openvino"
# how far a compiled network's logits may be from torch's in float32, as a share of their root mean square on random
# windows; seen for the reference network: 0.0001 and 0.01, as of torch's own autocast
TOLERANCE = {torch.float32: 0.001, torch.bfloat16: 0.05}


class CompiledNetwork(nn.Module):
    """A network that OpenVINO compiled.

    Windows go through it one after the other: more at a time were no faster, and a batch of any size fits so.

    Args:
        compiled: an ``openvino.CompiledModel`` for a window of fixed shape (1, C, D, H, W).
        memory: what holds its weights, which OpenVINO doesn't keep; None where it has its own.
    """

    def __init__(self, compiled: Any, memory: np.ndarray | None = None) -> None:
        super().__init__()
        self.compiled = compiled
        self.request = compiled.create_infer_request()
        self.shape = tuple(compiled.output(0).shape)
        self.memory = memory  # the last to be let go

    def forward(self, windows: Tensor) -> Tensor:
        """(B, C, D, H, W) in float32 -> logits (B, classes, D, H, W) in float32."""
        logits = torch.empty(len(windows), *self.shape[1:])
        for window, place in zip(windows.contiguous().split(1), logits.split(1), strict=True):
            self.request.set_input_tensor(_shared(window.numpy()))
            self.request.set_output_tensor(_shared(place.numpy()))
            self.request.infer()
        return logits


class UnfitError(InputError):
    """OpenVINO can't have a network.

    Args:
        fault: why not.
        remedy: what to do where OpenVINO is wanted.
    """

    def __init__(self, fault: str, remedy: str) -> None:
        super().__init__(f"--engine openvino: {fault}. {remedy}.")
        self.fault = fault


def place_networks(
    engine: str, members: Sequence[tuple[nn.Module, Description]], amp: bool, process: Process
) -> tuple[Members, str]:
    """Make the networks of an ensemble ready to predict, each with the number format that it computes in.

    Args:
        engine: ``torch``; ``openvino``; or ``auto``, OpenVINO if a window of the first network takes it less time.
        amp: whether formats shorter than float32 are allowed.

    Returns:
        The networks, and the engine that has them, with the reason where it was chosen here.

    Raises:
        UnfitError: if ``openvino`` is asked for and can't be had.
    """
    formats = [
        choose_precision(process.device, amp and one.amp, one.preprocessing.roi, one.network) for _, one in members
    ]
    networks = [network.eval() for network, _ in members]
    compiled: list[nn.Module] = []
    fault = None
    if engine != "torch":
        try:
            _require_fit(networks, process.device)
            for (network, description), precision in zip(members, formats, strict=True):
                compiled.append(compile_network(network, description, precision, process))
        except UnfitError as error:
            if engine == "openvino":
                raise
            fault = error.fault
    if engine == "openvino":
        return tuple(zip(compiled, formats, strict=True)), _name()
    placed = tuple(zip(map(process.place, networks), formats, strict=True))
    for network, precision in placed:
        precision.convert_weights(network)
    if engine == "torch":
        return placed, "torch"
    reason = ""
    if fault is None:
        window = _window(members[0][1])
        ours, torchs = (_seconds(network, formats[0], window) for network in (compiled[0], placed[0][0]))
        reason = f"a window takes OpenVINO {ours:.3f} s and torch {torchs:.3f} s"
        fault = None if ours < torchs else reason
    faults = [other for other in process.collect(fault) if other is not None]  # one engine for all processes
    if faults:
        return placed, f"torch, since {faults[0]}"
    return tuple(zip(compiled, formats, strict=True)), f"{_name()}, since {reason}"


def compile_network(
    network: nn.Module, description: Description, precision: Precision, process: Process
) -> CompiledNetwork:
    """A network compiled by OpenVINO, from the disk if it was compiled before.

    Where the disk can't be used, that is said, and the network is compiled for this once.

    Raises:
        UnfitError: if it can't be compiled, or its logits aren't torch's.
    """
    path = cache_folder() / f"{_key(network, description, precision)}{ENDING}"
    compiled = None
    try:
        with _locked(path.parent):
            kept = _read(path, precision)
            if kept is not None:
                return kept
            compiled = _compile(network, description, precision)
            with replacing(path) as temporary:
                temporary.write_bytes(compiled.compiled.export_model().getbuffer())
            _remove_oldest(path.parent)
    except OSError as error:
        process.say(f"note: what OpenVINO compiled can't be kept for the next launch ({error})")
    return compiled or _compile(network, description, precision)


def cache_folder() -> Path:
    """Where compiled networks are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "unetr"


def _require_fit(networks: Sequence[nn.Module], device: torch.device) -> None:
    """Check what can be told before compiling.

    Raises:
        UnfitError: if OpenVINO can't have these networks.
    """
    if device.type != "cpu":
        raise UnfitError(f"OpenVINO computes on CPUs, not on {device}", "Give --device cpu, or --engine torch")
    if importlib.util.find_spec("openvino") is None:
        raise UnfitError("OpenVINO is not installed", f"{INSTALL} installs it")
    try:
        _core()
    except (ImportError, RuntimeError) as error:
        raise UnfitError(f"OpenVINO can't be started ({brief(error)})", f"Mend it, as by {INSTALL}") from error
    if any(isinstance(network, torch.jit.ScriptModule) for network in networks):
        raise UnfitError(
            "OpenVINO can't compile TorchScript", "Give the checkpoint that was exported, or --engine torch"
        )


def _name() -> str:
    return f"OpenVINO {importlib.metadata.version('openvino')}"


def _openvino() -> Any:
    """The package, without the one by which it would tell its maker over the internet that it is used."""
    if "openvino" not in sys.modules and "openvino_telemetry" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # an import then fails, which it allows
        try:
            import openvino
        finally:
            del sys.modules["openvino_telemetry"]
    import openvino

    return openvino


@cache
def _core() -> Any:
    """OpenVINO's start, one for all networks and for good.

    Each sets a stack for signals (``sigaltstack``), and puts the one before back when it goes: where two are let go in
    the order in which they came, that one is gone already, and the next signal kills the program.
    """
    return _openvino().Core()


def _shared(array: np.ndarray) -> Any:
    """OpenVINO's view of an array, without a copy."""
    return _openvino().Tensor(array, shared_memory=True)


def _configuration(precision: Precision) -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": {torch.float32: "f32", torch.bfloat16: "bf16"}[precision.dtype],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),  # which torchrun sets to 1 for several processes
        "ENABLE_CPU_PINNING": False,  # several processes would all take the first cores
    }


def _key(network: nn.Module, description: Description, precision: Precision) -> str:
    """What differs wherever a compiled network would differ: weights, window, code, packages, format and CPU."""
    code = [fingerprint(path) for path in sorted((Path(__file__).parent.parent / "networks").glob("*.py"))]
    versions = [importlib.metadata.version("openvino"), torch.__version__, monai.__version__]
    cpu = [_core().get_property("CPU", name) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
    about = [code, versions, cpu, str(precision), description.network, sorted(description.options.items())]
    about.append(description.preprocessing.roi)  # of a window that not every network has among its options
    digest = hashlib.sha256(repr(about).encode())
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()[:32]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one program at a time look into a folder and write to it; others wait, and find what it made."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read(path: Path, precision: Precision) -> CompiledNetwork | None:
    """The compiled network in a file, mapped into memory; None if there is none, or it is damaged."""
    if not path.exists():
        return None
    os.utime(path)  # the last to be removed
    try:
        memory = np.memmap(path, np.uint8, mode="c")
        return CompiledNetwork(_core().import_model(_shared(memory), "CPU", _configuration(precision)), memory)
    except (RuntimeError, ValueError):  # the latter of an empty file
        return None


def _remove_oldest(folder: Path) -> None:
    for path in sorted(folder.glob(f"*{ENDING}"), key=lambda path: path.stat().st_mtime)[:-KEPT]:
        path.unlink()


def _compile(network: nn.Module, description: Description, precision: Precision) -> CompiledNetwork:
    """Compile a network, and compare its logits with those that it has in torch.

    Raises:
        UnfitError: if it can't be compiled, or they differ by more than rounding.
    """
    window = _window(description)
    with torch.inference_mode():
        with warnings.catch_warnings(action="ignore"):  # of torch, that tracing is old and fixes shapes
            traced = torch.jit.trace(network, window, check_trace=False)
        expected = network(window)
    try:
        compiled = _converted(traced, window, precision)
        logits = compiled(window)
    except (ImportError, RuntimeError) as error:
        raise UnfitError(f"OpenVINO can't compile the network ({brief(error)})", "Give --engine torch") from error
    difference = (logits - expected).square().mean().sqrt()
    size = expected.square().mean().sqrt()
    if not difference <= TOLERANCE[precision.dtype] * size:
        raise UnfitError(
            f"OpenVINO's logits differ from torch's by {difference:.2g}, where these are about {size:.2g}",
            "Give --engine torch",
        )
    return compiled


def _converted(traced: Any, window: Tensor, precision: Precision) -> CompiledNetwork:
    """A trace compiled, as by ``openvino.convert_model`` without its check of the trace, most of the time it takes."""
    openvino = _openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    frontend = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(traced)
    model = frontend.convert(frontend.load(decoder))
    model.reshape(openvino.PartialShape(list(window.shape)))
    return CompiledNetwork(_core().compile_model(model, "CPU", _configuration(precision)))


def _window(description: Description) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, description.options["in_channels"], *description.preprocessing.roi, generator=generator)


def _seconds(network: nn.Module, precision: Precision, window: Tensor) -> float:
    """Of a forward pass: the shorter of two, after one that is slower."""
    seconds = []
    with torch.inference_mode(), precision.autocast():
        for _ in range(3):
            start = time.perf_counter()
            network(window)
            seconds.append(time.perf_counter() - start)
    return min(seconds[1:])

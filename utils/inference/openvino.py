"""Networks compiled by OpenVINO, which on some CPUs are faster than torch.

Compiling a network for windows of one size takes some seconds. Compiled networks are cached in
``$XDG_CACHE_HOME/unetr`` (by default ``~/.cache/unetr``), under a hash of weights, code, packages and CPU.
"""

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import mmap
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from torch import Tensor, nn

from networks.layers import optimize_for_cpu
from networks.precision import Precision
from utils.checkpoints.description import Description
from utils.inference.exact_ends import BetweenEnds, ExactEnds, find_exact_ends
from utils.system.errors import InputError, first_line
from utils.system.files import atomic_write, content_hash
from utils.system.hardware import instruction_set, processor

CODE = [*(Path(__file__).parents[2] / "networks").rglob("*.py"), Path(__file__).with_name("exact_ends.py")]
INSTALL = "pip install openvino==2026.4.0"
CACHE_SIZE = 16  # compiled networks; one of the reference network takes 355 MiB
ENDING = ".openvino"
DIGEST = hashlib.sha256().digest_size  # bytes at the end of a file, the hash of what is before
# largest root mean square difference to torch's float32 logits, relative to theirs, on random windows; measured for the
# reference network: 0.0001 and 0.01, the latter the same as torch's own autocast
TOLERANCE = {torch.float32: 0.001, torch.bfloat16: 0.05}


class CompiledNetwork(nn.Module):
    """A network that OpenVINO compiled.

    Windows go through it one by one: larger batches were no faster, and so a batch may have any size.

    Args:
        compiled: an ``openvino.CompiledModel`` for windows (1, C, D, H, W) of one shape.
        ends: the layers that torch computes, if there are any.
        memory: the memory of its weights, if OpenVINO doesn't own it.
    """

    def __init__(self, compiled: Any, ends: ExactEnds | None, memory: np.ndarray | None = None) -> None:
        super().__init__()
        self.compiled = compiled
        self.ends = ends
        self.request = compiled.create_infer_request()
        self.shape = tuple(compiled.output(0).shape)
        self.memory = memory  # after the request, so that it is freed last
        # new memory takes longer to map than to fill
        self.features = None if ends is None else torch.empty(self.shape, dtype=torch.bfloat16)

    def forward(self, windows: Tensor) -> Tensor:
        """(B, C, D, H, W) in float32 -> logits (B, classes, D, H, W) in float32."""
        found = [self._logits(window) for window in windows.contiguous().split(1)]
        return found[0] if len(found) == 1 else torch.cat(found)

    def _logits(self, window: Tensor) -> Tensor:
        if self.ends is None:
            logits = torch.empty(self.shape, dtype=torch.float32)
            self._infer([window], logits)
            return logits
        assert self.features is not None
        self._infer(self.ends.inputs(window), self.features)
        return self.ends.logits(self.features)

    def _infer(self, inputs: Sequence[Tensor], result: Tensor) -> None:
        for number, given in enumerate(inputs):
            self.request.set_input_tensor(number, _as_openvinos(given))
        self.request.set_output_tensor(_as_openvinos(result))
        self.request.infer()


class UnfitError(InputError):
    """OpenVINO can't run a network.

    Args:
        fault: why not.
        remedy: what a person who asked for OpenVINO can do.
    """

    def __init__(self, fault: str, remedy: str) -> None:
        super().__init__(f"`engine` openvino: {fault}. {remedy}.")
        self.fault = fault


def compile_network(
    network: nn.Module, description: Description, precision: Precision, say: Callable[[str], None]
) -> CompiledNetwork:
    """Compile a network with OpenVINO, or read it from the cache if it was compiled before.

    If the cache can't be used, ``say`` is told so and the network is compiled for this launch alone.

    Raises:
        UnfitError: if it can't be compiled, or its logits differ from torch's.
    """
    path = cache_folder() / f"{_key(network, description, precision)}{ENDING}"
    optimize_for_cpu(network)
    ends = None if precision.dtype == torch.float32 else find_exact_ends(network)
    compiled = None
    try:
        with _locked(path.parent):
            cached = _read(path, precision, ends)
            if cached is not None:
                return cached
            compiled = _compile(network, description, precision, ends)
            with atomic_write(path) as temporary:
                content = compiled.compiled.export_model().getbuffer()
                with open(temporary, "wb") as file:
                    file.write(content)
                    file.write(hashlib.sha256(content).digest())
            _remove_oldest(path.parent)
    except OSError as error:
        say(f"note: OpenVINO's compiled network can't be cached for the next launch ({error})")
    return compiled or _compile(network, description, precision, ends)


def cache_folder() -> Path:
    """The folder of compiled networks."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "unetr"


def is_possible(networks: Sequence[nn.Module], device: torch.device) -> bool:
    """Whether there is anything to ask OpenVINO: it is installed, and these networks are none of TorchScript's."""
    scripts = any(isinstance(network, torch.jit.ScriptModule) for network in networks)
    return device.type == "cpu" and not scripts and importlib.util.find_spec("openvino") is not None


def require_fit(networks: Sequence[nn.Module], device: torch.device) -> None:
    """Check what can be checked before compiling.

    Raises:
        UnfitError: if OpenVINO can't run these networks here.
    """
    if device.type != "cpu":
        raise UnfitError(f"OpenVINO computes on CPUs, not on {device}", "Give `device` cpu, or `engine` torch")
    if importlib.util.find_spec("openvino") is None:
        raise UnfitError("OpenVINO is not installed", f"{INSTALL} installs it")
    try:
        _core()
    except (ImportError, RuntimeError) as error:
        raise UnfitError(
            f"OpenVINO can't be started ({first_line(error)})", f"Mend the installation, for example by {INSTALL}"
        ) from error
    if any(isinstance(network, torch.jit.ScriptModule) for network in networks):
        raise UnfitError(
            "OpenVINO can't compile TorchScript", "Give the checkpoint that was exported, or `engine` torch"
        )


def version() -> str:
    """OpenVINO's name and version, for people to read."""
    return f"OpenVINO {importlib.metadata.version('openvino')}"


def _openvino() -> Any:
    """The package ``openvino``, without its telemetry, which would report its use over the internet."""
    if "openvino" not in sys.modules and "openvino_telemetry" not in sys.modules:
        # this makes the import of the telemetry fail, which openvino allows
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
        try:
            import openvino
        finally:
            del sys.modules["openvino_telemetry"]
    import openvino

    return openvino


@cache
def _core() -> Any:
    """The ``openvino.Core``, one for all networks and never freed.

    Each ``Core`` sets a stack for signal handlers (``sigaltstack``), and restores the previous one when it is freed. If
    two are freed in the order of their creation, the restored stack is freed memory, and the next signal kills the
    program.
    """
    return _openvino().Core()


def _shared(array: np.ndarray) -> Any:
    """The array as an OpenVINO tensor, without a copy."""
    return _openvino().Tensor(array, shared_memory=True)


def _as_openvinos(tensor: Tensor) -> Any:
    """A tensor of torch in float32 or bfloat16, which numpy doesn't know, as one of OpenVINO's, without a copy."""
    if tensor.dtype == torch.float32:
        return _shared(tensor.numpy())
    openvino = _openvino()
    bits = tensor.view(torch.uint16).numpy()
    return openvino.Tensor(bits, openvino.Shape(list(bits.shape)), openvino.Type.bf16)


def _configuration(precision: Precision) -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": {torch.float32: "f32", torch.bfloat16: "bf16"}[precision.dtype],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),  # torchrun sets them to 1 for several processes
        "ENABLE_CPU_PINNING": False,  # else several processes would all use the first cores
    }


def hash_of_kind(description: Description, precision: Precision) -> str:
    """A hash of all but the weights that a compiled network depends on: code, packages, format, network and CPU."""
    code = [content_hash(path) for path in sorted(CODE)]
    code.append(description.architecture.sha256)  # of a network file outside the repository
    versions = [importlib.metadata.version("openvino"), torch.__version__, monai.__version__]
    cpu = [processor(), instruction_set(), torch.get_num_threads()]
    window = description.preprocessing.roi
    about = [code, versions, cpu, str(precision), description.network, description.config, window]
    return hashlib.sha256(repr(about).encode()).hexdigest()[:32]


def _key(network: nn.Module, description: Description, precision: Precision) -> str:
    """A hash of all that a compiled network depends on."""
    digest = hashlib.sha256(hash_of_kind(description, precision).encode())
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()[:32]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one program at a time use a folder; others wait, and then find what it wrote."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(os.open(folder / ".lock", os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read(path: Path, precision: Precision, ends: ExactEnds | None) -> CompiledNetwork | None:
    """The compiled network in a file, mapped into memory; None if the file is missing or isn't as it was written."""
    if path.is_symlink() or not path.is_file():
        return None
    os.utime(path)  # now it is the last one that the cache drops
    try:
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        memory = np.frombuffer(mapped, np.uint8)
        content, digest = memory[:-DIGEST], memory[-DIGEST:]
        if hashlib.sha256(content.data).digest() != digest.tobytes():
            return None
        compiled = _core().import_model(_shared(content), "CPU", _configuration(precision))
        # OpenVINO has the weights in its own layout by now; what it should read again comes from the file
        mapped.madvise(mmap.MADV_DONTNEED)
        return CompiledNetwork(compiled, ends, memory)
    except (RuntimeError, ValueError):  # ValueError: the file is empty
        return None


def _remove_oldest(folder: Path) -> None:
    for path in sorted(folder.glob(f"*{ENDING}"), key=lambda path: path.stat().st_mtime)[:-CACHE_SIZE]:
        path.unlink()


def _compile(
    network: nn.Module, description: Description, precision: Precision, ends: ExactEnds | None
) -> CompiledNetwork:
    """Compile a network, and compare its logits with torch's.

    Raises:
        UnfitError: if it can't be compiled, or they differ by more than rounding.
    """
    window = example_window(description)
    with torch.inference_mode():
        expected = network(window)
        inputs = [window] if ends is None else ends.inputs(window)
        try:
            with warnings.catch_warnings(action="ignore"):  # torch warns that tracing is old and fixes shapes
                inner = network if ends is None else BetweenEnds(network, ends)
                traced = torch.jit.trace(inner, inputs, check_trace=False)
            compiled = CompiledNetwork(_compile_trace(traced, inputs, precision), ends)
            logits = compiled(window)
        except Exception as error:  # what a network of one's own has that can't be traced, or OpenVINO doesn't know
            raise UnfitError(
                f"OpenVINO can't compile the network ({first_line(error)})", "Give `engine` torch"
            ) from error
    difference = (logits - expected).square().mean().sqrt()
    size = expected.square().mean().sqrt()
    if not difference <= TOLERANCE[precision.dtype] * size:
        raise UnfitError(
            f"OpenVINO's logits differ from torch's by {difference:.2g}, and torch's are about {size:.2g}",
            "Give `engine` torch",
        )
    return compiled


def _compile_trace(traced: Any, inputs: Sequence[Tensor], precision: Precision) -> Any:
    """Compile a trace, as ``openvino.convert_model`` does, but without its check, which takes most of the time."""
    openvino = _openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    frontend = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(traced)
    model = frontend.convert(frontend.load(decoder))
    model.reshape(
        {place: openvino.PartialShape(list(one.shape)) for place, one in zip(model.inputs, inputs, strict=True)}
    )
    return _core().compile_model(model, "CPU", _configuration(precision))


def example_window(description: Description) -> Tensor:
    """A random window (1, C, D, H, W) for the network, always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, description.config.in_channels, *description.preprocessing.roi, generator=generator)

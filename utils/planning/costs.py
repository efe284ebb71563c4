"""What a training step of a network costs: its memory, counted, and its time, measured."""

import functools
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from networks.layers import optimize_for_cpu
from networks.precision import Precision, choose_precision
from networks.registry import Architecture, NetworkConfig, Size
from optimizers import build_optimizer, parameter_groups
from utils.checkpoints.foreign_weights import predicted_logits
from utils.distributed.process import Process
from utils.system.errors import InputError, size_text
from utils.system.files import text_hash
from utils.system.hardware import machine
from utils.training.losses import build_loss

BYTES_PER_WEIGHT = 16  # the weight, its gradient and Adam's two averages, in float32
# beside what the backward pass keeps there are gradients of activations, the loss and the kernels' scratch space
# (docs/planning.md has the measurements)
ON_TOP_OF_ACTIVATIONS = 1.5
PROGRAM_BYTES = 800e6  # Python, torch and MONAI, with the libraries that they load
WARM_UP_STEPS, TIMED_STEPS = 1, 3


@dataclass(frozen=True)
class StepCost:
    """How long a network takes on this machine.

    Attributes:
        step_seconds: a training step.
        window_seconds: a forward pass of one window in validation.
        amp: whether mixed precision is on.
    """

    step_seconds: float
    window_seconds: float
    amp: bool


@functools.cache
def step_bytes(architecture: Architecture, config: NetworkConfig, crops: int) -> float:
    """The memory that training needs beside the scans, in bytes.

    The forward pass runs on torch's device ``meta``, which knows the shape of each tensor and computes none. What
    autograd keeps for the backward pass is counted. A network of one's own that looks at numbers, of which there are
    none, computes a crop on the CPU.

    Args:
        crops: in a step.

    Raises:
        InputError: if a network of one's own can't take the window.
    """
    network = architecture.build_empty(config).to("meta")  # a class may build on the CPU whatever the default is
    weights = sum(parameter.numel() for parameter in network.parameters())
    shape = (config.in_channels, *config.img_size)
    try:
        activations = _activation_bytes(network, torch.zeros((crops, *shape), device="meta"))
    except Exception:  # whatever a stranger's code raises
        if architecture.file is None:
            raise
        network, crop = architecture.build(config), torch.zeros(1, *shape)
        predicted_logits(network, crop, architecture.file)
        activations = crops * _activation_bytes(network, crop)
    logits = 4 * crops * config.out_channels * math.prod(config.img_size)
    return PROGRAM_BYTES + BYTES_PER_WEIGHT * weights + ON_TOP_OF_ACTIVATIONS * (activations + logits)


def _activation_bytes(network: nn.Module, volume: Tensor) -> int:
    """What autograd keeps of a forward pass in training, beside the weights."""
    network.train()
    parameters = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, Tensor] = {}  # by storage; holding the tensors keeps an address from being used twice

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(volume)
    return sum(one.untyped_storage().nbytes() for key, one in kept.items() if key not in parameters)


def faster_step(
    architecture: Architecture,
    config: NetworkConfig,
    crops: int,
    lr: float,
    timings: dict[str, float],
    process: Process,
) -> StepCost:
    """The cost of a step on this machine, with mixed precision or without, whichever is faster.

    Args:
        crops: in a step.
        timings: seconds by network, settings and kind of machine. What is in there isn't measured again, and what is
            measured gets in.

    Raises:
        InputError: if this machine has no memory for it.
    """
    device = process.device
    here = [machine(gpu=device.type == "cuda"), torch.get_num_threads(), torch.__version__]
    title = f"{name_with_size(architecture, config)}, {crops} × {size_text(config.img_size)} voxels"
    costs = []
    for amp in number_formats(device, config):
        key = f"{title} {text_hash(json.dumps([here, asdict(config), architecture.sha256, amp]))[:12]}"
        if f"{key} step" not in timings or f"{key} window" not in timings:
            process.say(f"timing {title}, in {choose_precision(device, amp, config)} on {device}")
            cost = measure_step(architecture, config, crops, lr, device, amp)
            timings[f"{key} step"], timings[f"{key} window"] = cost.step_seconds, cost.window_seconds
        costs.append(StepCost(timings[f"{key} step"], timings[f"{key} window"], amp))
    return min(costs, key=lambda cost: cost.step_seconds)


def name_with_size(architecture: Architecture, config: NetworkConfig) -> str:
    """The network's name and the settings that make its size: those in which the sizes of its class differ."""
    sizes: Sequence[Size] = architecture.declared("sizes")
    names = dict.fromkeys(name for size in sizes for name in size.settings)
    differing = [name for name in names if len({str(size.settings.get(name)) for size in sizes}) > 1]
    settings = ", ".join(f"{name} {getattr(config, name)}" for name in differing)
    return f"{architecture.name} ({settings})" if settings else architecture.name


def number_formats(device: torch.device, config: NetworkConfig) -> tuple[bool, ...]:
    """With mixed precision or without, as far as that makes a difference here."""
    differs = choose_precision(device, True, config) != choose_precision(device, False, config)
    return (True, False) if differs else (True,)


def measure_step(
    architecture: Architecture, config: NetworkConfig, crops: int, lr: float, device: torch.device, amp: bool
) -> StepCost:
    """Train for a few steps on noise.

    Args:
        crops: in a step.

    Raises:
        InputError: if this machine has no memory for it.
    """
    try:
        return _measure(architecture, config, crops, lr, device, amp)
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise InputError(
            f"a step of {architecture.name} with {crops} crops of {size_text(config.img_size)} voxels doesn't fit into "
            "this machine's memory. Give a lower `memory`."
        ) from error


def _measure(
    architecture: Architecture, config: NetworkConfig, crops: int, lr: float, device: torch.device, amp: bool
) -> StepCost:
    precision = choose_precision(device, amp, config)
    network = Process(device).place(optimize_for_cpu(architecture.build(config)))
    loss_function = build_loss("dice_ce", 0.0, 1e-6, getattr(config, "deep_supervision", False))
    optimizer = build_optimizer("adamw", parameter_groups(network), lr, 1e-5, 0.0)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn((crops, config.in_channels, *config.img_size), generator=generator).to(device)
    kind = torch.uint8 if config.out_channels <= 256 else torch.int16  # as in training
    label = torch.randint(0, config.out_channels, (crops, 1, *config.img_size), generator=generator, dtype=kind)
    label = label.to(device)

    def step() -> None:
        with precision.autocast():
            loss = loss_function(network(image), label)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    network.train()
    step_seconds = _fastest(step, device)
    network.eval()
    with torch.inference_mode():
        window_seconds = _fastest(lambda: _forward(network, image[:1], precision), device)
    return StepCost(step_seconds, window_seconds, amp)


def _forward(network: nn.Module, image: Tensor, precision: Precision) -> None:
    with precision.autocast():
        network(image)


def _fastest(work: Any, device: torch.device) -> float:
    """Seconds that the fastest of some calls took: others may have waited for another program."""
    seconds = []
    for number in range(WARM_UP_STEPS + TIMED_STEPS):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number >= WARM_UP_STEPS:
            seconds.append(time.perf_counter() - start)
    return min(seconds)

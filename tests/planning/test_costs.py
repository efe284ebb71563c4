"""What a step takes, counted by hand for a network of one convolution."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from networks import NETWORKS
from networks.registry import Architecture, NetworkConfig, Size
from utils.distributed.process import Process
from utils.planning import costs
from utils.planning.costs import (
    BYTES_PER_WEIGHT,
    ON_TOP_OF_ACTIVATIONS,
    PROGRAM_BYTES,
    StepCost,
    faster_step,
    measure_step,
    name_with_size,
    number_formats,
    step_bytes,
)
from utils.system.errors import InputError

CPU = torch.device("cpu")
VOXELS = 8**3


class OneConvolution(nn.Module):
    """From channels to classes."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.first = nn.Conv3d(config.in_channels, config.out_channels, 3, padding=1)

    def forward(self, volume: Tensor) -> Tensor:
        out: Tensor = self.first(volume)
        return out


class WithActivation(OneConvolution):
    def forward(self, volume: Tensor) -> Tensor:
        return super().forward(volume).relu()


def small(network: Any) -> tuple[Architecture, NetworkConfig]:
    architecture = Architecture("small", NetworkConfig, network, lambda config: (1, 1, 1))
    return architecture, NetworkConfig(1, 2, (8, 8, 8))


def beside_program(network: Any, crops: int) -> float:
    return step_bytes(*small(network), crops) - PROGRAM_BYTES


@pytest.mark.parametrize("crops", [1, 3])
def test_a_convolution_keeps_its_input(crops: int) -> None:
    weights = 27 * 2 + 2
    kept, logits = 4 * VOXELS * crops, 4 * 2 * VOXELS * crops
    expected = BYTES_PER_WEIGHT * weights + ON_TOP_OF_ACTIVATIONS * (kept + logits)
    assert beside_program(OneConvolution, crops) == expected


def test_what_two_layers_keep_is_counted_once() -> None:
    more = beside_program(WithActivation, 1) - beside_program(OneConvolution, 1)
    assert more == ON_TOP_OF_ACTIVATIONS * 4 * 2 * VOXELS  # the ReLU's output


class LooksAtNumbers(WithActivation):
    def forward(self, volume: Tensor) -> Tensor:
        return super().forward(volume) if float(volume.max()) < 1 else volume


class OfFiveChannels(nn.Conv3d):
    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(5, config.out_channels, 3, padding=1)


def of_a_file(network: Any) -> tuple[Architecture, NetworkConfig]:
    architecture, config = small(network)
    return dataclasses.replace(architecture, file=Path("mine.py")), config


def test_a_network_of_ones_own_that_looks_at_numbers_is_counted_all_the_same() -> None:
    assert step_bytes(*of_a_file(LooksAtNumbers), 3) == step_bytes(*of_a_file(WithActivation), 3)


def test_a_network_of_ones_own_with_a_fault_is_one_line() -> None:
    with pytest.raises(InputError, match=r"mine\.py: can't predict a window of \(1, 1, 8, 8, 8\)") as error:
        step_bytes(*of_a_file(OfFiveChannels), 3)
    assert "\n" not in str(error.value)
    with pytest.raises(RuntimeError):  # of one of ours it is a bug
        step_bytes(*small(OfFiveChannels), 3)


def test_it_computes_nothing_and_leaves_the_default_device_alone() -> None:
    config = NETWORKS["unetr"].make_config({"img_size": (96, 96, 96)})
    assert step_bytes(NETWORKS["unetr"], config, 1) > 2e9
    assert torch.zeros(1).device == CPU


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_can_be_counted_and_crops_cost_activations_alone(name: str) -> None:
    config = NETWORKS[name].make_config({"img_size": (64, 64, 64)})
    one, two, three = (step_bytes(NETWORKS[name], config, crops) for crops in (1, 2, 3))
    assert PROGRAM_BYTES < one < two
    assert three - two == pytest.approx(two - one, rel=0.03)


def test_a_step_is_timed() -> None:
    cost = measure_step(*small(OneConvolution), 2, 1e-3, CPU, amp=False)
    assert 0 < cost.window_seconds < 1
    assert 0 < cost.step_seconds < 1
    assert not cost.amp


class OfTwoSizes(OneConvolution):
    sizes = tuple(Size({"feature_size": width, "norm_name": "instance"}, 1e-3) for width in (8, 16))


@dataclass(frozen=True)
class OfTwoSizesConfig(NetworkConfig):
    feature_size: int = 8
    norm_name: str = "instance"


def test_a_size_is_named_by_what_sizes_differ_in() -> None:
    architecture = Architecture("own", OfTwoSizesConfig, OfTwoSizes, lambda config: (1, 1, 1))
    assert name_with_size(architecture, OfTwoSizesConfig(feature_size=16)) == "own (feature_size 16)"
    assert name_with_size(*small(OneConvolution)) == "small"  # which has one size


def test_each_size_is_timed_once_and_the_line_says_which(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(costs, "measure_step", lambda *given: StepCost(2.0, 1.0, given[-1]))
    monkeypatch.setattr(costs, "number_formats", lambda device, config: (False,))
    architecture = Architecture("own", OfTwoSizesConfig, OfTwoSizes, lambda config: (1, 1, 1))
    timings: dict[str, float] = {}
    for width in (8, 16, 8):
        config = OfTwoSizesConfig(1, 2, (8, 8, 8), feature_size=width)
        assert faster_step(architecture, config, 2, 1e-3, timings, Process(CPU)) == StepCost(2.0, 1.0, False)
    assert capsys.readouterr().out == (
        "timing own (feature_size 8), 2 × 8 × 8 × 8 voxels, in float32 on cpu\n"
        "timing own (feature_size 16), 2 × 8 × 8 × 8 voxels, in float32 on cpu\n"
    )
    assert sorted(timings.values()) == [1.0, 1.0, 2.0, 2.0]


def test_the_faster_format_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "measure_step", lambda *given: StepCost(3.0 if given[-1] else 2.0, 1.0, given[-1]))
    monkeypatch.setattr(costs, "choose_precision", lambda device, amp, config: "bfloat16" if amp else "float32")
    assert not faster_step(*small(OneConvolution), 2, 1e-3, {}, Process(CPU)).amp


class Failing(OneConvolution):
    message = ""

    def forward(self, volume: Tensor) -> Tensor:
        raise RuntimeError(self.message)


class OutOfMemory(Failing):
    message = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes. Buy new RAM!"


class Broken(Failing):
    message = "shapes don't fit"


def test_no_memory_is_one_line_and_a_bug_is_a_bug() -> None:
    with pytest.raises(InputError, match="a step of small with 2 crops of 8 × 8 × 8 voxels doesn't fit") as raised:
        measure_step(*small(OutOfMemory), 2, 1e-3, CPU, amp=False)
    assert "\n" not in str(raised.value)
    with pytest.raises(RuntimeError, match="shapes don't fit"):
        measure_step(*small(Broken), 2, 1e-3, CPU, amp=False)


def test_formats_that_make_no_difference_are_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils.planning.costs.choose_precision", lambda device, amp, config: "float32")
    assert number_formats(CPU, NetworkConfig()) == (True,)
    monkeypatch.setattr("utils.planning.costs.choose_precision", lambda device, amp, config: amp)
    assert number_formats(CPU, NetworkConfig()) == (True, False)


def test_a_step_with_more_classes_than_a_byte_counts() -> None:
    architecture, config = small(OneConvolution)
    assert (
        measure_step(architecture, dataclasses.replace(config, out_channels=300), 1, 1e-3, CPU, False).step_seconds > 0
    )

"""Fingerprints of made-up data sets, and a machine whose steps take as long as they are large."""

import math
from collections.abc import Sequence

import numpy as np

from networks.registry import NetworkConfig
from utils.planning.costs import StepCost
from utils.planning.fingerprint import QUANTILES, Fingerprint, ScanFacts, StructureFacts

Box = tuple[float, float, float]
CT, MR = (-1024.0, 1500.0), (0.0, 4000.0)  # lowest and highest value
CENTRE = (0.5, 0.5, 0.5)


def ramp(low: float, high: float) -> tuple[float, ...]:
    """Quantiles of values that are spread evenly."""
    return tuple(float(value) for value in np.linspace(low, high, QUANTILES + 1))


def ball(diameter: float, centre: Box = CENTRE) -> StructureFacts:
    """A ball of so many mm, at a place from 0 to 1 along each axis."""
    volume = math.pi / 6 * diameter**3 / 1000
    return StructureFacts(max(1, round(volume)), volume, (diameter,) * 3, diameter, centre)


def make_scan(
    shape: tuple[int, int, int] = (96, 96, 96),
    spacing: Box = (1.0, 1.0, 1.0),
    structures: dict[int, StructureFacts] | None = None,
    values: tuple[float, float] = CT,
    labelled: tuple[float, float] = (0.0, 200.0),
    channels: int = 1,
    name: str = "scan",
) -> ScanFacts:
    """A scan that a body fills."""
    structures = {1: ball(40.0)} if structures is None else structures
    x, y, z = (count * mm for count, mm in zip(shape, spacing, strict=True))
    return ScanFacts(
        name=name,
        shape=shape,
        spacing=spacing,
        orientation="RAS",
        body_mm=(x, y, z),
        quantiles=(ramp(*values),) * channels,
        labelled_quantiles=(ramp(*labelled),) * channels if structures else (),
        structures=structures,
    )


def make_fingerprint(
    scans: Sequence[ScanFacts], labels: tuple[str, ...] = ("background", "organ"), named: bool = True,
    modalities: tuple[str, ...] | None = None,
) -> Fingerprint:  # fmt: skip
    """A data set of which a fifth validates."""
    validation = max(1, len(scans) // 5)
    return Fingerprint(tuple(scans), labels, named, modalities, len(scans) - validation, validation)


class Machine:
    """Measures no time: a step takes ``seconds`` for each voxel, a window a third of that.

    Attributes:
        calls: how often it was asked.
    """

    def __init__(self, seconds: float = 3e-6, amp: bool = True) -> None:
        self.seconds = seconds
        self.amp = amp
        self.calls = 0

    def __call__(self, config: NetworkConfig, crops: int, lr: float) -> StepCost:
        self.calls += 1
        voxels = math.prod(config.img_size)
        return StepCost(self.seconds * crops * voxels, self.seconds * voxels / 3, self.amp)

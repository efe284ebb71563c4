"""How long the network trains: steps, epochs, warm-up, validations."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from utils.inference.sliding_window import OVERLAP
from utils.system.errors import InputError

STEPS_WITHOUT_HOURS = 25_000  # a tenth of nnU-Net's 250,000 (docs/planning.md)
VALIDATION_SHARE = 0.1  # of the hours
LONG_VALIDATION = 0.25  # of the time for steps, from which on a plan remarks on a single validation
START_SECONDS = 30.0  # for the imports and the data check
# to read and to resample a file, and each of its voxels: a CT of 512 × 512 × 150 takes 4 s
FILE_SECONDS, VOXEL_SECONDS = 0.1, 1e-7
# each step also loads its crops, and time is kept for saving
STEP_SHARE = 0.95
MOST_VALIDATIONS = 10
WARM_UP_SHARE = 0.05  # of the epochs: Primus warms up for 50 of 1000 (Wald et al., arXiv 2503.01835)
TIME_GRID = 1.05  # measured seconds are rounded to a power of this, so that noise rarely changes a plan


@dataclass(frozen=True)
class Schedule:
    """Epochs and what happens between them."""

    steps: int
    epochs: int
    warmup_epochs: int
    val_every: int


def rounded(seconds: float) -> float:
    """A measured time on a coarse grid."""
    return float(TIME_GRID ** round(math.log(seconds, TIME_GRID)))


def reading_seconds(shape: Sequence[int], volumes: int) -> float:
    """How long it takes until a scan is prepared.

    Args:
        shape: its voxels along each axis.
        volumes: its channels, and its label.
    """
    return volumes * (FILE_SECONDS + VOXEL_SECONDS * math.prod(shape))


def _more_than(hours: float) -> str:
    """A time with two digits that is longer by some tenth."""
    return f"{1.15 * hours:.2g}"


def windows_of_a_scan(shape: tuple[float, float, float], window: tuple[int, int, int]) -> int:
    """How many windows a sliding window takes for a scan in voxels."""
    stride = [max(1.0, edge * (1 - OVERLAP)) for edge in window]
    counts = [
        1 + max(0, math.ceil((full - edge) / step)) for full, edge, step in zip(shape, window, stride, strict=True)
    ]
    return math.prod(counts)


def time_left(hours: float, reading: float, validation: float) -> tuple[float, int]:
    """The seconds of ``hours`` for training steps, 0 if none are left, and how many validations there are beside them.

    Args:
        reading: seconds until all scans are prepared.
        validation: seconds of one validation.
    """
    left = hours * 3600 - START_SECONDS - reading
    validations = max(1, min(MOST_VALIDATIONS, int(VALIDATION_SHARE * left / validation)))
    return max(0.0, left - validations * validation) * STEP_SHARE, validations


def plan_schedule(
    hours: float | None, steps_per_epoch: int, step: float, reading: float, validation: float
) -> Schedule:
    """Epochs for the time there is, or for :data:`STEPS_WITHOUT_HOURS`.

    Args:
        step: seconds of a step on this machine; without ``hours``, any number.
        reading, validation: as in :func:`time_left`.

    Raises:
        InputError: if the time doesn't suffice for one epoch and one validation.
    """
    if hours is None:
        epochs, validations = max(1, round(STEPS_WITHOUT_HOURS / steps_per_epoch)), MOST_VALIDATIONS
    else:
        seconds, validations = time_left(hours, reading, validation)
        if seconds == 0:
            least = (START_SECONDS + reading + 2 * validation) / 3600
            raise InputError(
                f"`hours` {hours:g}: to read all scans and to validate once takes longer on this machine. Give "
                f"`hours` {_more_than(least)} or more."
            )
        epochs = int(seconds / step / steps_per_epoch)
        if epochs == 0:
            least = hours * steps_per_epoch * step / seconds
            raise InputError(
                f"`hours` {hours:g}: too short for one pass over the scans, {steps_per_epoch} steps of {step:.2g} s on "
                f"this machine. Give `hours` {_more_than(least)} or more."
            )
    return Schedule(
        steps=epochs * steps_per_epoch,
        epochs=epochs,
        warmup_epochs=min(max(1, round(WARM_UP_SHARE * epochs)), epochs - 1),
        val_every=math.ceil(epochs / validations),
    )

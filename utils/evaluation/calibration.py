"""Fit what a mask's Dice is by its soft Dice, and judge whether a change helps by more than noise."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from utils.checkpoints.postprocessing import DiceLine

FEWEST_SCANS = 8  # a line through fewer says little
ONE_SIDED = 0.975  # by chance, so large a gain is found in one of forty comparisons


@dataclass(frozen=True)
class Gain:
    """What a change does to the Dice of some scans.

    Attributes:
        before, after: mean Dice over the scans.
        noise: so large is a mean gain by chance: t · s / √n of the scans' gains, with t of 97.5 % and n - 1 degrees of
            freedom.
    """

    before: float
    after: float
    noise: float

    @property
    def helps(self) -> bool:
        """Whether the Dice rises by more than noise."""
        return self.after - self.before > self.noise


def gain(before: Sequence[float | None], after: Sequence[float | None]) -> Gain | None:
    """Compare the Dice of the same scans; None if fewer than two have both.

    Args:
        before, after: of each scan; None or NaN where it has no Dice.
    """
    pairs = np.array([before, after], dtype=float)  # (2, scans)
    pairs = pairs[:, np.isfinite(pairs).all(0)]
    number = pairs.shape[1]
    if number < 2:
        return None
    gains = pairs[1] - pairs[0]
    noise = stats.t.ppf(ONE_SIDED, number - 1) * gains.std(ddof=1) / number**0.5
    return Gain(float(pairs[0].mean()), float(pairs[1].mean()), float(noise))


def fit_line(
    soft_dice: Sequence[float | None], dice: Sequence[float | None], always_there: bool
) -> tuple[DiceLine, list[float | None]] | None:
    """Fit an organ's line; None if fewer than eight scans have both numbers.

    The slope is the median over pairs of scans (Theil 1950, Sen 1968), which single failures don't move. But it is no
    less than that of a line through the origin: a mask that has no certain voxel is worth nothing, and trained scans
    are too much alike to show that.

    Args:
        soft_dice, dice: of each scan; None where it has none.
        always_there: whether every label has the organ.

    Returns:
        The line; and for each scan the Dice that the line through the other scans predicts, None where it isn't known.
    """
    x, y = (np.array(values, dtype=float) for values in (soft_dice, dice))
    known = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    if len(known) < FEWEST_SCANS:
        return None
    predicted: list[float | None] = [None] * len(x)
    for scan in known:
        others = known[known != scan]
        slope, offset = _line(x[others], y[others])
        predicted[scan] = DiceLine(slope, offset, 0.0, always_there).dice(x[scan])
    error = np.mean([abs(y[scan] - predicted[scan]) for scan in known])
    slope, offset = _line(x[known], y[known])
    return DiceLine(slope, offset, float(error), always_there), predicted


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    steepest_through_origin = np.median(y) / np.median(x)
    slope = max(stats.theilslopes(y, x).slope if np.ptp(x) > 0 else 0.0, steepest_through_origin)
    return float(slope), float(np.median(y - slope * x))


def rank_correlation(predicted: Sequence[float | None], dice: Sequence[float | None]) -> float | None:
    """Spearman's, over the pairs that have both numbers; None if it is undefined."""
    pairs = np.array([predicted, dice], dtype=float)
    pairs = pairs[:, np.isfinite(pairs).all(0)]
    if pairs.shape[1] < 3 or (np.ptp(pairs, axis=1) == 0).any():
        return None
    return float(stats.spearmanr(*pairs).statistic)

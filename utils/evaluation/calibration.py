"""Fit how Dice follows from a mask and its probabilities, and judge whether a change helps by more than noise."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize, stats

from utils.checkpoints.postprocessing import DiceModel

FEWEST_SCANS = 8  # a fit to fewer says little
RIDGE = 8.0  # scans: so many weigh as much as the belief that all masks are alike, while slopes are small
USUAL = (2.5, 97.5)  # percentiles: of the scans beyond, the fit takes what these have
OUTLYING = 0.05  # a Dice as far from the fit, or farther, weighs less
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


def fit_dice_model(
    soft_dice: Sequence[float | None], volumes: Sequence[float], dice: Sequence[float | None], always_there: bool
) -> tuple[DiceModel, list[float | None]] | None:
    """Fit an organ's model; None if fewer than eight scans have a mask and a Dice.

    The fit is a regression with Huber's loss (1964), which single failures hardly move, and a ridge (Hoerl and Kennard
    1970), which keeps it flat where scans are few. The ridge has Huber's loss too, so that a steep slope is shrunk
    less; the predictions in docs/results.md were measured with that. More certainty never means less Dice.

    Args:
        soft_dice, dice: of each scan; None where it has none.
        volumes: of each scan's mask in ml.
        always_there: whether every label has the organ.

    Returns:
        The model; and for each scan the Dice that a fit to the other scans predicts, None where it isn't known.
    """
    soft, true, sizes = (np.array(values, dtype=float) for values in (soft_dice, dice, volumes))
    # a soft Dice of 0 is of a network so unsure that no probability counts
    known = np.flatnonzero((soft > 0) & np.isfinite(true) & (sizes > 0))
    if len(known) < FEWEST_SCANS:
        return None
    predicted: list[float | None] = [None] * len(soft)
    for scan in known:
        others = known[known != scan]
        model = _fit(soft[others], sizes[others], true[others], always_there)
        predicted[scan] = model.dice(soft[scan], sizes[scan])
    error = np.mean([abs(true[scan] - predicted[scan]) for scan in known])
    return replace(_fit(soft[known], sizes[known], true[known], always_there), error=float(error)), predicted


def _fit(soft_dice: np.ndarray, volumes: np.ndarray, dice: np.ndarray, always_there: bool) -> DiceModel:
    features = np.stack([soft_dice, np.log(volumes)])  # (2, scans)
    lowest, highest = np.percentile(features, USUAL, axis=1, keepdims=True)
    features = np.clip(features, lowest, highest)
    means, deviations = features.mean(1, keepdims=True), features.std(1, keepdims=True) + 1e-9
    standard = (features - means) / deviations

    def residuals(fitted: np.ndarray) -> np.ndarray:
        return np.concatenate([fitted[:2] @ standard + fitted[2] - dice, RIDGE**0.5 * fitted[:2]])

    start, bounds = np.array([0.0, 0.0, np.median(dice)]), ([0.0, -np.inf, -np.inf], np.inf)
    fitted = optimize.least_squares(residuals, start, bounds=bounds, loss="huber", f_scale=OUTLYING).x
    slopes = fitted[:2] / deviations[:, 0]
    return DiceModel(
        per_soft_dice=float(slopes[0]),
        per_log_volume=float(slopes[1]),
        offset=float(fitted[2] - slopes @ means[:, 0]),
        lowest_soft_dice=float(lowest[0, 0]),
        volumes=(float(np.exp(lowest[1, 0])), float(np.exp(highest[1, 0]))),
        error=0.0,
        always_there=always_there,
    )


def rank_correlation(predicted: Sequence[float | None], dice: Sequence[float | None]) -> float | None:
    """Spearman's, over the pairs that have both numbers; None if it is undefined."""
    pairs = np.array([predicted, dice], dtype=float)
    pairs = pairs[:, np.isfinite(pairs).all(0)]
    if pairs.shape[1] < 3 or (np.ptp(pairs, axis=1) == 0).any():
        return None
    return float(stats.spearmanr(*pairs).statistic)

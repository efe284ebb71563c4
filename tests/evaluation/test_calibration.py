"""Whether a change helps by more than noise, and a mask's Dice from its soft Dice, by hand."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from utils.checkpoints.postprocessing import DiceModel, predicted_dice
from utils.evaluation.calibration import fit_dice_model, gain, rank_correlation

NAN = float("nan")


def test_a_gain_is_compared_with_its_paired_t_test() -> None:
    before, after = [0.5, 0.6, 0.7, 0.8, None], [0.52, 0.61, 0.73, 0.82, 0.9]
    found = gain(before, after)
    assert found is not None
    assert (found.before, found.after) == (pytest.approx(0.65), pytest.approx(0.67))
    # gains 0.02, 0.01, 0.03, 0.02: standard deviation √(0.0002 / 3); t of 3 degrees of freedom is 3.1824
    assert found.noise == pytest.approx(3.182446 * (0.0002 / 3) ** 0.5 / 2, rel=1e-5)
    assert found.helps == (stats.ttest_rel(after[:4], before[:4]).pvalue < 0.05)


@pytest.mark.parametrize(
    ("after", "helps"),
    [
        ([0.9] * 6, True),  # everywhere by as much
        ([0.8] * 6, False),  # nowhere
        ([0.8] * 5 + [0.9], False),  # one scan may be luck
        ([0.82, 0.83, 0.81, 0.82, 0.83, 0.84], True),
        ([0.7] * 6, False),
    ],
)
def test_a_change_helps_if_it_helps_more_than_by_chance(after: list[float], helps: bool) -> None:
    found = gain([0.8] * 6, after)
    assert found is not None
    assert found.helps == helps


def test_one_scan_tells_nothing() -> None:
    assert gain([0.5, None], [0.9, 0.9]) is None


def model(**changes: Any) -> DiceModel:
    """A Dice of twice the soft Dice, less one, whatever the volume of 50 … 200 ml."""
    values = {"per_soft_dice": 2.0, "per_log_volume": 0.0, "offset": -1.0, "lowest_soft_dice": 0.8}
    return DiceModel(**{**values, "volumes": (50.0, 200.0), "error": 0.0, "always_there": True, **changes})


def test_within_what_the_folds_saw_the_dice_is_linear() -> None:
    assert model().dice(0.9, 100) == pytest.approx(0.8)
    assert model(per_log_volume=0.1, offset=-1.5).dice(0.9, 100) == pytest.approx(0.3 + 0.1 * math.log(100))
    assert model(offset=-2.0).dice(0.9, 100) == 0
    assert model(offset=0.0).dice(0.9, 100) == 1


def test_below_it_the_dice_falls_to_nothing() -> None:
    assert model().dice(0.8, 100) == pytest.approx(0.6)
    assert model().dice(0.4, 100) == pytest.approx(0.3)
    assert model().dice(0.0, 100) == 0
    assert model().dice(NAN, 0) == 0


def test_a_mask_unlike_all_others_in_size_can_not_be_right() -> None:
    certain = model(offset=0.0)
    assert certain.dice(0.9, 50) == 1
    assert certain.dice(0.9, 10) == pytest.approx(2 * 10 / (10 + 50))
    assert certain.dice(0.9, 600) == pytest.approx(2 * 200 / (600 + 200))


def test_a_fit_finds_what_its_scans_share_though_some_failed() -> None:
    generator = np.random.default_rng(0)
    soft_dice, volumes = generator.uniform(0.85, 0.95, 200), generator.uniform(20, 60, 200)
    dice = 2 * soft_dice + 0.1 * np.log(volumes) - 1.5
    lost = dice[::20].sum()
    dice[::20] = 0.0
    fitted = fit_dice_model([*soft_dice, None], [*volumes, 0.0], [*dice, 0.0], always_there=True)
    assert fitted is not None
    found, predicted = fitted
    assert found.per_soft_dice == pytest.approx(2, rel=0.1)  # a little less by the ridge of 8 scans
    assert found.per_log_volume == pytest.approx(0.1, rel=0.1)
    assert found.lowest_soft_dice == pytest.approx(0.8525, abs=0.005)  # the 2.5 % quantile of 0.85 … 0.95
    assert found.volumes == pytest.approx((21, 59), abs=1.5)
    assert predicted[200] is None
    sound = np.arange(200) % 20 > 0
    assert np.array(predicted[:200])[sound] == pytest.approx(dice[sound], abs=0.02)
    assert found.error == pytest.approx(lost / 200, abs=0.01)  # the failures are off by all of their Dice


def test_more_certainty_never_means_less_dice() -> None:
    soft_dice = np.linspace(0.8, 0.9, 20)
    fitted = fit_dice_model(soft_dice.tolist(), [30.0] * 20, (1.5 - soft_dice).tolist(), always_there=False)
    assert fitted is not None
    assert fitted[0].per_soft_dice == pytest.approx(0, abs=1e-6)
    assert fitted[0].dice(0.85, 30) == pytest.approx(0.65)
    assert not fitted[0].always_there


def test_too_few_scans_give_no_model() -> None:
    assert fit_dice_model([0.9] * 7 + [None], [1.0] * 8, [0.8] * 8, always_there=True) is None
    assert fit_dice_model([0.9] * 8, [1.0] * 8, [0.8] * 8, always_there=True) is not None


def test_the_predicted_dice_of_an_ensemble_is_bounded_by_its_agreement() -> None:
    two = [model(), model()]
    assert predicted_dice(two, [0.9, 0.8], 0.95, 100) == pytest.approx(0.7)  # of 0.8 and 0.6
    assert predicted_dice(two, [0.9, 0.8], 0.4, 100) == 0.4
    assert predicted_dice(two, [0.9, NAN], 0.9, 100) == pytest.approx(0.4)  # one network missed it
    assert predicted_dice([model()], [0.9], NAN, 100) == pytest.approx(0.8)
    assert predicted_dice([model(), None], [0.9, 0.9], 1.0, 100) is None


def test_an_organ_that_is_not_found_was_missed_if_every_scan_has_it() -> None:
    assert predicted_dice([model()], [NAN], NAN, 0) == 0
    assert predicted_dice([model(always_there=False)], [NAN], NAN, 0) is None


def test_ranks_are_those_of_the_pairs_that_have_both_numbers() -> None:
    assert rank_correlation([0.1, 0.2, None, 0.4], [0.3, 0.5, 0.1, 0.9]) == pytest.approx(1)
    assert rank_correlation([0.1, 0.2, 0.3], [0.9, 0.5, 0.1]) == pytest.approx(-1)
    assert rank_correlation([0.1, 0.1, 0.1], [0.9, 0.5, 0.1]) is None


def test_a_network_that_is_sure_of_nothing_has_no_model() -> None:
    assert fit_dice_model([0.0] * 10, [20.0] * 10, [0.1] * 10, always_there=True) is None

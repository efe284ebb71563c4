"""Whether a change helps by more than noise, and a mask's Dice from its soft Dice, by hand."""

import numpy as np
import pytest
from scipy import stats

from utils.checkpoints.postprocessing import DiceLine, predicted_dice
from utils.evaluation.calibration import fit_line, gain, rank_correlation

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


def test_a_line_is_found_through_scans_of_which_one_failed() -> None:
    soft_dice = np.linspace(0.85, 0.95, 11)
    dice = 3 * soft_dice - 2
    dice[4] = 0.0
    fitted = fit_line(soft_dice.tolist(), dice.tolist(), always_there=True)
    assert fitted is not None
    line, predicted = fitted
    assert (line.slope, line.offset) == (pytest.approx(3), pytest.approx(-2))
    # all others lie on the line, so the error is that of the one scan, over eleven
    assert line.error == pytest.approx((3 * soft_dice[4] - 2) / 11)
    assert predicted == pytest.approx((3 * soft_dice - 2).tolist())


def test_scans_that_are_alike_give_a_line_through_the_origin() -> None:
    fitted = fit_line([0.9] * 10, [0.8, 0.82] * 5, always_there=False)
    assert fitted is not None
    line = fitted[0]
    assert line.dice(0.0) == pytest.approx(0)
    assert line.dice(0.9) == pytest.approx(0.81)
    assert not line.always_there


def test_too_few_scans_give_no_line() -> None:
    assert fit_line([0.9] * 7 + [None], [0.8] * 8, always_there=True) is None


def test_the_predicted_dice_of_an_ensemble_is_bounded_by_its_agreement() -> None:
    line = DiceLine(slope=2.0, offset=-1.0, error=0.0, always_there=True)
    assert line.dice(0.2) == 0
    assert line.dice(1.5) == 1
    assert predicted_dice([line, line], [0.9, 0.8], 0.95, found=True) == pytest.approx(0.7)  # of 0.8 and 0.6
    assert predicted_dice([line, line], [0.9, 0.8], 0.4, found=True) == 0.4
    assert predicted_dice([line, line], [0.9, NAN], 0.9, found=True) == pytest.approx(0.4)  # one network missed it
    assert predicted_dice([line], [0.9], NAN, found=True) == pytest.approx(0.8)
    assert predicted_dice([line, None], [0.9, 0.9], 1.0, found=True) is None


def test_an_organ_that_is_not_found_was_missed_if_every_scan_has_it() -> None:
    always, sometimes = (DiceLine(1.0, 0.0, 0.0, always_there=there) for there in (True, False))
    assert predicted_dice([always], [NAN], NAN, found=False) == 0
    assert predicted_dice([sometimes], [NAN], NAN, found=False) is None


def test_ranks_are_those_of_the_pairs_that_have_both_numbers() -> None:
    assert rank_correlation([0.1, 0.2, None, 0.4], [0.3, 0.5, 0.1, 0.9]) == pytest.approx(1)
    assert rank_correlation([0.1, 0.2, 0.3], [0.9, 0.5, 0.1]) == pytest.approx(-1)
    assert rank_correlation([0.1, 0.1, 0.1], [0.9, 0.5, 0.1]) is None

"""Epochs, warm-up and validations for a number of hours."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.planning.schedule import (
    MOST_VALIDATIONS,
    START_SECONDS,
    STEP_SHARE,
    STEPS_WITHOUT_HOURS,
    TIME_GRID,
    Schedule,
    plan_schedule,
    reading_seconds,
    rounded,
    time_left,
    windows_of_a_scan,
)
from utils.system.errors import InputError


def validations(found: Schedule) -> int:
    """How many there are, one at the end included."""
    return math.ceil(found.epochs / found.val_every)


def test_half_an_hour() -> None:
    found = plan_schedule(0.5, steps_per_epoch=10, step=0.5, reading=20.0, validation=5.0)
    # of 1800 s, 50 go to the start and 50 to ten validations; a twentieth of the rest is kept
    seconds = (1800 - START_SECONDS - 20.0 - 10 * 5.0) * STEP_SHARE
    assert found.epochs == int(seconds / 5.0)
    assert found.steps == 10 * found.epochs
    assert validations(found) == MOST_VALIDATIONS


def test_a_machine_of_half_the_speed_trains_half_the_epochs() -> None:
    fast, slow = (plan_schedule(0.5, 10, step, 20, 5.0).epochs for step in (0.5, 1.0))
    assert slow == fast // 2


def test_without_hours_there_are_as_many_steps_as_documented() -> None:
    found = plan_schedule(None, steps_per_epoch=10, step=0.0, reading=20.0, validation=0.0)
    assert (found.epochs, found.steps) == (STEPS_WITHOUT_HOURS // 10, STEPS_WITHOUT_HOURS)
    assert found.val_every == found.epochs // MOST_VALIDATIONS
    assert found.warmup_epochs == found.epochs // 20
    many_scans = plan_schedule(None, steps_per_epoch=3 * STEPS_WITHOUT_HOURS, step=0.0, reading=20.0, validation=0.0)
    assert many_scans.epochs == 1


def test_long_validations_are_few() -> None:
    found = plan_schedule(0.5, 10, 0.5, 20, validation=100.0)
    assert validations(found) == 1
    assert found.val_every == found.epochs


def test_a_single_epoch_needs_no_warm_up() -> None:
    found = plan_schedule(0.1, 100, 2.0, 1, 1.0)
    assert (found.epochs, found.warmup_epochs, found.val_every) == (1, 0, 1)


@given(
    hours=st.floats(0.02, 200.0), steps=st.integers(1, 5000), step=st.floats(1e-3, 100.0),
    reading=st.floats(1.0, 3000.0), validation=st.floats(1e-2, 1e4),
)  # fmt: skip
@settings(max_examples=300, deadline=None, derandomize=True)
def test_no_schedule_takes_longer_than_the_hours(
    hours: float, steps: int, step: float, reading: float, validation: float
) -> None:
    try:
        found = plan_schedule(hours, steps, step, reading, validation)
    except InputError as error:
        advised = float(str(error).split()[-3])
        assert advised > hours
        plan_schedule(advised, steps, step, reading, validation) if "one pass" in str(error) else time_left(
            advised, reading, validation
        )
        return
    seconds = START_SECONDS + reading + found.steps * step + validations(found) * validation
    assert seconds <= hours * 3600
    assert 0 <= found.warmup_epochs < found.epochs
    assert 1 <= found.val_every <= found.epochs
    assert validations(found) <= MOST_VALIDATIONS


def test_an_hour_too_short_names_one_that_suffices() -> None:
    with pytest.raises(InputError, match=r"^`hours` 0\.01: to read all scans and to validate once takes longer") as one:
        plan_schedule(0.01, 10, 0.5, 20, 5.0)
    assert str(one.value).endswith("Give `hours` 0.019 or more.")  # 1.15 times 60 s
    with pytest.raises(InputError, match=r"`hours` 0\.02: too short for one pass over the scans, 100 steps of 1 s"):
        plan_schedule(0.02, 100, 1.0, 20, 5.0)


def test_windows_overlap_by_half() -> None:
    assert windows_of_a_scan((64.0, 64.0, 64.0), (64, 64, 64)) == 1
    assert windows_of_a_scan((96.0, 64.0, 30.0), (64, 64, 64)) == 2
    assert windows_of_a_scan((128.0, 128.0, 128.0), (64, 64, 64)) == 3**3
    assert windows_of_a_scan((5.0, 5.0, 1.0), (1, 1, 1)) == 25


def test_times_are_rounded_to_a_coarse_grid() -> None:
    assert rounded(1.0) == 1.0
    for seconds in (1e-4, 0.03, 0.99, 1.01, 70.0):
        assert seconds / TIME_GRID**0.5 <= rounded(seconds) <= seconds * TIME_GRID**0.5
    assert len({rounded(0.995 + 0.0001 * n) for n in range(100)}) == 1  # noise of 1 % around a step of the grid


def test_a_large_ct_is_ready_in_eight_seconds_with_its_label() -> None:
    assert reading_seconds((512, 512, 150), 2) == pytest.approx(2 * (0.1 + 3.93), abs=0.01)

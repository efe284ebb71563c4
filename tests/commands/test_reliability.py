"""Runs that are killed, stopped and starved of disk end as the one that was left alone."""

import signal
from pathlib import Path

import pytest

from benchmarks.reliability import Laboratory, Outcome


@pytest.fixture(scope="module")
def laboratory(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    return Laboratory(tmp_path_factory.mktemp("laboratory"), phantoms)


def check(outcome: Outcome, times: int) -> None:
    assert outcome.faults == []
    assert (outcome.disturbances, outcome.lost) == (times, 0)
    assert outcome.in_training > 0


def test_kill_9_at_30_random_moments(laboratory: Laboratory) -> None:
    check(laboratory.signals(signal.SIGKILL, 30), 30)


def test_sigterm_at_random_moments_most_of_them_within_an_epoch(laboratory: Laboratory) -> None:
    outcome = laboratory.signals(signal.SIGTERM, 6)
    check(outcome, 6)
    assert outcome.within_epochs > 0


def test_writes_that_hit_the_file_size_limit(laboratory: Laboratory) -> None:
    check(laboratory.full_disks(3), 3)


def test_kill_9_of_one_of_two_processes_within_an_epoch_three_times_in_a_run(laboratory: Laboratory) -> None:
    outcome = laboratory.killed_workers(3)
    check(outcome, outcome.disturbances)
    assert (outcome.runs, outcome.within_epochs) == (1, 3)

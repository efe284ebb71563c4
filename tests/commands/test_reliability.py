"""Runs that are killed, stopped or out of disk space end like an uninterrupted one."""

import signal
from pathlib import Path

import pytest

from benchmarks.reliability import FaultInjector, Outcome


@pytest.fixture(scope="module")
def injector(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> FaultInjector:
    return FaultInjector(tmp_path_factory.mktemp("injector"), phantoms)


def check(outcome: Outcome, times: int) -> None:
    assert outcome.problems == []
    assert (outcome.interruptions, outcome.lost) == (times, 0)
    assert outcome.in_training > 0


def test_kill_9_at_30_random_moments(injector: FaultInjector) -> None:
    check(injector.signals(signal.SIGKILL, 30), 30)


def test_sigterm_at_random_moments_most_of_them_within_an_epoch(injector: FaultInjector) -> None:
    outcome = injector.signals(signal.SIGTERM, 6)
    check(outcome, 6)
    assert outcome.within_epochs > 0


def test_writes_that_hit_the_file_size_limit(injector: FaultInjector) -> None:
    check(injector.full_disks(3), 3)


def test_kill_9_of_one_of_two_processes_within_an_epoch_three_times_in_a_run(injector: FaultInjector) -> None:
    outcome = injector.killed_workers(3)
    check(outcome, outcome.interruptions)
    assert (outcome.runs, outcome.within_epochs) == (1, 3)

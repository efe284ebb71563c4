"""A process that fails, hangs or is lost ends all processes, and one of them prints one line."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from utils.distributed import watchdog
from utils.distributed.rendezvous import RankInfo
from utils.distributed.watchdog import Watchdog
from utils.system.errors import InputError, LostError, ReportedElsewhereError, Stopped

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The exit statuses with which watchdogs end the program."""
    statuses: list[int] = []

    def end(status: int) -> None:
        statuses.append(status)
        raise SystemExit  # in the watchdog's thread

    monkeypatch.setattr(watchdog.os, "_exit", end)
    return statuses


Make = Callable[[int, float], Watchdog]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes watchdogs of three processes."""
    store = dist.HashStore()
    made: list[Watchdog] = []

    def make(rank: int, seconds: float) -> Watchdog:
        made.append(Watchdog(store, RankInfo(rank, 3), seconds))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_after_a_timeout_the_straggler_is_named(
    make: Make, ends: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = (make(rank, 0.6) for rank in range(3))
    third.note_progress("loading scans")
    for each in (first, second):
        each.note_progress("step 3 of epoch 2")
    with second.collective(), first.collective():
        time.sleep(1.2)
    assert ends[0] == 1
    message = capsys.readouterr().err
    assert message.count("error: ") == 1
    assert (
        "waited longer than 0.6 s (`dist_timeout`) in step 3 of epoch 2 for rank 2, last heard from in loading scans."
        in message
    )


def test_a_straggler_that_makes_progress_is_waited_for(make: Make, ends: list[int]) -> None:
    first, second, third = (make(rank, 0.6) for rank in range(3))
    with first.collective(), second.collective():
        for _ in range(15):
            time.sleep(0.1)
            third.note_progress()
    assert ends == []


def test_a_collective_that_has_ended_is_no_hang(make: Make, ends: list[int]) -> None:
    first, _, _ = (make(rank, 0.6) for rank in range(3))
    for _ in range(8):
        with first.collective():
            time.sleep(0.2)
    assert ends == []


def test_all_are_in_one_collective_and_none_makes_progress(
    make: Make, ends: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    watchdogs = [make(rank, 0.6) for rank in range(3)]
    with watchdogs[0].collective(), watchdogs[1].collective(), watchdogs[2].collective():
        for each in watchdogs:
            each.note_progress("backward")
        time.sleep(1.2)
    assert ends
    assert capsys.readouterr().err.count(", last heard from in backward") == 2


def test_a_straggler_inside_a_collective_is_named(
    make: Make, ends: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    watchdogs = [make(rank, 0.6) for rank in range(3)]
    with watchdogs[0].collective(), watchdogs[1].collective(), watchdogs[2].collective():
        for each in watchdogs:
            each.note_progress("forward")
        for each in watchdogs[::2]:
            each.note_progress("backward")
        time.sleep(1.2)
    assert ends
    assert "in backward for rank 1, last heard from in forward." in capsys.readouterr().err


def test_a_process_that_hangs_ends_after_another_has_failed(
    make: Make, ends: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watchdog, "GRACE_SECONDS", 0.2)
    make(0, 1.0)
    other = make(1, 1.0)
    other.close()
    with pytest.raises(InputError), other.reported_once():
        raise InputError("a fault")
    time.sleep(0.6)
    assert ends == [1]
    assert capsys.readouterr().err == ""


def reported(make: Make, *errors: BaseException) -> list[BaseException]:
    """The exceptions that errors in several processes turn into, in order of their occurrence."""
    results: list[BaseException] = []
    for rank, error in enumerate(errors):
        try:
            with make(rank, 60).reported_once():
                raise error
        except (Exception, Stopped) as result:
            results.append(result)
    return results


def test_each_error_is_reported_once_with_a_rank(make: Make) -> None:
    same, again, other = reported(make, InputError("no such file"), InputError("no such file"), InputError("another"))
    assert same.__notes__ == ["rank 0 of 3"]
    assert isinstance(again, ReportedElsewhereError)
    assert other.__notes__ == ["rank 2 of 3"]


def test_a_lost_connection_is_not_reported_after_the_error_that_caused_it(make: Make) -> None:
    fault, consequence = reported(make, InputError("no such file"), LostError("lost another process"))
    assert isinstance(fault, InputError)
    assert isinstance(consequence, ReportedElsewhereError)


def test_the_first_lost_connection_is_reported(make: Make) -> None:
    first, second = reported(make, LostError("lost another"), LostError("lost another one"))
    assert first.__notes__ == ["rank 0 of 3"]
    assert isinstance(second, ReportedElsewhereError)


def test_a_signal_keeps_its_status_and_its_message_is_printed_once(make: Make) -> None:
    silent, first, same = reported(make, Stopped(15, ""), Stopped(15, "stopped"), Stopped(15, "stopped"))
    assert [(error.number, str(error)) for error in (silent, first, same) if isinstance(error, Stopped)] == [
        (15, ""), (15, "stopped"), (15, ""),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:25503: Connection reset "
            "by peer. This is typically caused by a remote worker hanging. GLHF!",
            "Read error [127.0.0.1]:25503: Connection reset by peer",
        ),
        ("Connection closed by peer [10.0.0.2]:77", "Connection closed by peer [10.0.0.2]:77"),
    ],
)
def test_a_broken_connection_is_reported_in_plain_words(make: Make, message: str, reason: str) -> None:
    here = make(0, 60)
    here.note_progress("step 1 of epoch 2")
    with pytest.raises(LostError) as error, here.collective():
        raise RuntimeError(message)
    assert str(error.value) == f"lost another process in step 1 of epoch 2 ({reason})."


def test_other_errors_in_a_collective_are_unchanged(make: Make) -> None:
    with pytest.raises(RuntimeError, match="out of memory"), make(0, 60).collective():
        raise RuntimeError("CUDA out of memory")


def test_the_same_error_in_several_processes_at_once(make: Make) -> None:
    """Whoever is first, it is reported once."""
    watchdogs = [make(rank, 60) for rank in range(3)]

    def fail(each: Watchdog) -> BaseException | None:
        try:
            with each.reported_once():
                raise InputError("the same")
        except (InputError, ReportedElsewhereError) as error:
            return error
        return None

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(fail, watchdogs))
    assert sum(isinstance(result, InputError) for result in results) == 1

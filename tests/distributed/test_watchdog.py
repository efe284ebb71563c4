"""Processes that fail, hang or are lost end all of them, with one line from one of them."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from utils.distributed import watchdog
from utils.distributed.rendezvous import Seat
from utils.distributed.watchdog import Watch
from utils.system.errors import InputError, LostError, Stopped, ToldError

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The statuses with which watches end the program."""
    statuses: list[int] = []

    def end(status: int) -> None:
        statuses.append(status)
        raise SystemExit  # of the watch's thread

    monkeypatch.setattr(watchdog.os, "_exit", end)
    return statuses


Make = Callable[[int, float], Watch]


@pytest.fixture
def make() -> Iterator[Make]:
    """Watches of three processes."""
    store = dist.HashStore()
    made: list[Watch] = []

    def make(rank: int, seconds: float) -> Watch:
        made.append(Watch(store, Seat(rank, 3), seconds))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_who_waits_too_long_names_those_who_have_not_come(
    make: Make, ends: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = (make(rank, 0.6) for rank in range(3))
    third.at("loading scans")
    for each in (first, second):
        each.at("step 3 of epoch 2")
    with second.meeting(), first.meeting():
        time.sleep(1.2)
    assert ends[0] == 1
    said = capsys.readouterr().err
    assert said.count("error: ") == 1
    assert (
        "waited longer than 0.6 s (--dist_timeout) in step 3 of epoch 2 for rank 2, last heard from in loading scans."
        in said
    )


def test_who_makes_headway_is_waited_for(make: Make, ends: list[int]) -> None:
    first, second, third = (make(rank, 0.6) for rank in range(3))
    with first.meeting(), second.meeting():
        for _ in range(15):
            time.sleep(0.1)
            third.step()
    assert ends == []


def test_a_meeting_that_is_over_was_no_hang(make: Make, ends: list[int]) -> None:
    first, _, _ = (make(rank, 0.6) for rank in range(3))
    for _ in range(8):
        with first.meeting():
            time.sleep(0.2)
    assert ends == []


def test_all_have_come_and_nothing_moves(make: Make, ends: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    watches = [make(rank, 0.6) for rank in range(3)]
    with watches[0].meeting(), watches[1].meeting(), watches[2].meeting():
        for each in watches:
            each.at("backward")
        time.sleep(1.2)
    assert ends
    assert capsys.readouterr().err.count(", last heard from in backward") == 2


def test_who_has_come_to_a_meeting_and_not_to_the_same_place_in_it(
    make: Make, ends: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    watches = [make(rank, 0.6) for rank in range(3)]
    with watches[0].meeting(), watches[1].meeting(), watches[2].meeting():
        for each in watches:
            each.at("forward")
        for each in watches[::2]:
            each.at("backward")
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
    with pytest.raises(InputError), other.telling():
        raise InputError("a fault")
    time.sleep(0.6)
    assert ends == [1]
    assert capsys.readouterr().err == ""


def told(make: Make, *errors: BaseException) -> list[BaseException]:
    """What comes of errors in as many processes, one after the other."""
    results: list[BaseException] = []
    for rank, error in enumerate(errors):
        try:
            with make(rank, 60).telling():
                raise error
        except (Exception, Stopped) as result:
            results.append(result)
    return results


def test_each_fault_is_told_once_with_a_rank(make: Make) -> None:
    same, again, other = told(make, InputError("no such file"), InputError("no such file"), InputError("another"))
    assert same.__notes__ == ["rank 0 of 3"]
    assert isinstance(again, ToldError)
    assert other.__notes__ == ["rank 2 of 3"]


def test_who_lost_another_says_so_unless_that_one_has_said_why(make: Make) -> None:
    fault, consequence = told(make, InputError("no such file"), LostError("lost another process"))
    assert isinstance(fault, InputError)
    assert isinstance(consequence, ToldError)


def test_the_first_who_lost_another_tells(make: Make) -> None:
    first, second = told(make, LostError("lost another"), LostError("lost another one"))
    assert first.__notes__ == ["rank 0 of 3"]
    assert isinstance(second, ToldError)


def test_a_signal_keeps_its_status_and_its_words_are_said_once(make: Make) -> None:
    silent, words, same = told(make, Stopped(15, ""), Stopped(15, "stopped"), Stopped(15, "stopped"))
    assert [(error.number, str(error)) for error in (silent, words, same) if isinstance(error, Stopped)] == [
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
def test_a_broken_connection_is_told_in_plain_words(make: Make, message: str, reason: str) -> None:
    here = make(0, 60)
    here.at("step 1 of epoch 2")
    with pytest.raises(LostError) as error, here.meeting():
        raise RuntimeError(message)
    assert str(error.value) == f"lost another process in step 1 of epoch 2 ({reason})."


def test_other_errors_in_a_meeting_stay_what_they_are(make: Make) -> None:
    with pytest.raises(RuntimeError, match="out of memory"), make(0, 60).meeting():
        raise RuntimeError("CUDA out of memory")


def test_watches_of_many_processes_at_once(make: Make) -> None:
    """Whoever is first, the fault is told once."""
    watches = [make(rank, 60) for rank in range(3)]

    def fail(each: Watch) -> BaseException | None:
        try:
            with each.telling():
                raise InputError("the same")
        except (InputError, ToldError) as error:
            return error
        return None

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(fail, watches))
    assert sum(isinstance(result, InputError) for result in results) == 1

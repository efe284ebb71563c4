"""Signals that ask to end."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.synchronize import Event

import pytest
import torch
from torch import nn

from tests.conftest import REPOSITORY
from utils.system.errors import Stopped
from utils.system.signals import SIGNALS, StopRequest, forwarded_to


@pytest.mark.parametrize("number", SIGNALS)
def test_a_deferred_signal_waits(number: int) -> None:
    before = signal.getsignal(number)
    stop = StopRequest()
    with stop.listening(), stop.deferred():
        stop.raise_if_requested()
        signal.raise_signal(number)
        with pytest.raises(Stopped) as stopped:
            stop.raise_if_requested()
    assert stopped.value.number == number
    assert signal.getsignal(number) == before


def test_a_signal_after_that_of_another_process_counts_as_a_copy() -> None:
    stop = StopRequest()
    with stop.listening():
        with stop.deferred(), pytest.raises(Stopped):
            stop.raise_if_requested(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # while the program saves, say
    assert stop.number == signal.SIGTERM


def test_otherwise_a_signal_stops_the_program_at_once() -> None:
    stop = StopRequest()
    with stop.listening(), pytest.raises(Stopped, match="stopped by SIGTERM"):
        signal.raise_signal(signal.SIGTERM)


def test_deferring_can_be_nested() -> None:
    stop = StopRequest()
    with stop.listening(), stop.deferred():
        with stop.deferred():
            pass
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped):
            stop.raise_if_requested()


def test_threads_begin_no_more_calls_after_a_signal() -> None:
    stop = StopRequest()
    begun: list[int] = []

    def work(item: int) -> None:
        begun.append(item)
        if item == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)

    with stop.listening(), pytest.raises(Stopped, match="SIGTERM"):
        list(stop.map_in_threads(work, range(50), threads=1))
    assert len(begun) < 10


# a signal right after the main thread has taken the lock of a result that another thread is about to set
A_LOCK_IS_TAKEN = """
import signal, sys, threading, time
from utils.system.errors import one_line_errors
from utils.system.signals import StopRequest

enter = threading.Condition.__enter__

def enter_and_signal(condition):
    held = enter(condition)
    in_main = threading.get_ident() == threading.main_thread().ident
    if in_main and sys._getframe(1).f_code.co_name == "result":
        threading.Condition.__enter__ = enter
        signal.raise_signal(signal.SIGTERM)
    return held

threading.Condition.__enter__ = enter_and_signal
stop = StopRequest()
with one_line_errors(), stop.listening():
    for _ in stop.map_in_threads(time.sleep, [0.2, 0.2], threads=1):
        pass
print("went on")
"""


def test_a_signal_while_a_lock_is_held_causes_no_deadlock() -> None:
    done = subprocess.run(
        [sys.executable, "-c", A_LOCK_IS_TAKEN],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    said = "stopped by SIGTERM before anything was done; launch the same command again\n"
    assert (done.returncode, done.stdout, done.stderr) == (143, "", said)


def test_except_exception_does_not_catch_stopped() -> None:
    assert not issubclass(Stopped, Exception)


def test_stopping_before_the_next_forward_pass() -> None:
    stop = StopRequest()
    network = nn.Linear(1, 1)
    with stop.listening(), stop.deferred(), stop.stop_before_forward(network):
        network(torch.zeros(1))
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped):
            network(torch.zeros(1))
    network(torch.zeros(1))


TWO_SIGNALS = """
import signal, sys, time
from utils.system.signals import StopRequest
stop = StopRequest()
with stop.listening(), stop.deferred():
    signal.raise_signal(signal.SIGTERM)
    time.sleep(float(sys.argv[1]))
    signal.raise_signal(int(sys.argv[2]))
    print("still there")
"""


@pytest.mark.parametrize(
    ("seconds", "second", "status", "screen"),
    [
        (0.0, signal.SIGINT, 0, "still there\n"),
        (0.3, signal.SIGINT, -signal.SIGINT, ""),
        (0.3, signal.SIGTERM, 0, "still there\n"),  # a copy of the first
        (5.2, signal.SIGTERM, -signal.SIGTERM, ""),
    ],
)
def test_a_second_signal_kills_the_program_and_a_copy_does_not(
    seconds: float, second: int, status: int, screen: str
) -> None:
    command = [sys.executable, "-c", TWO_SIGNALS, str(seconds), str(int(second))]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (status, screen), done.stderr


def _help(stop: StopRequest, ready: Event) -> None:
    stop.leave_to_parent()
    ready.set()
    time.sleep(60)


def test_a_helper_ignores_signals_while_its_parent_handles_them() -> None:
    context = multiprocessing.get_context("forkserver")
    stop, ready = StopRequest(), context.Event()
    helper = context.Process(target=_help, args=(stop, ready), daemon=True)
    with stop.listening():
        helper.start()
        assert ready.wait(60)
        assert helper.pid is not None
        for number in SIGNALS:
            os.kill(helper.pid, number)
        helper.join(0.3)
        assert helper.is_alive()
    helper.terminate()
    helper.join(10)
    assert helper.exitcode == 0


def test_signals_are_forwarded() -> None:
    program = (
        "import signal, time; signal.signal(signal.SIGUSR1, lambda *_: exit(7)); print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with forwarded_to([process.pid]):
            signal.raise_signal(signal.SIGUSR1)
        assert process.wait(10) == 7
        with forwarded_to([process.pid]):
            signal.raise_signal(signal.SIGUSR1)  # it has ended already, which is fine

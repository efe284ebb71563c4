"""Calls in threads that end with them."""

import os
import threading
import time
from collections.abc import Callable

import pytest
import torch

from utils.threads import SuccessiveThreads


def happens(condition: Callable[[], bool]) -> bool:
    """Whether something comes true within ten seconds."""
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_calls_are_done_one_after_the_other() -> None:
    first_may_end = threading.Event()
    done = []

    def first() -> None:
        first_may_end.wait(10)
        done.append("first")

    with SuccessiveThreads() as threads:
        threads.submit(first)
        second = threads.submit(done.append, "second")
        time.sleep(0.05)
        assert not second.done()
        first_may_end.set()
    assert done == ["first", "second"]  # and the with block has waited for both


def test_an_error_comes_with_its_own_call_alone() -> None:
    with SuccessiveThreads() as threads:
        broken = threads.submit(int, "three")
        whole = threads.submit(int, "3", base=5)
    assert whole.result() == 3
    with pytest.raises(ValueError, match="three"):
        broken.result()


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads as Linux does")
@pytest.mark.skipif(not torch.backends.openmp.is_available(), reason="this torch has no OpenMP")
def test_no_thread_of_openmp_is_left_of_a_call_that_is_done() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.ones(1 << 20).add(1)  # this thread's own team
        alone = len(os.listdir("/proc/self/task"))
        with SuccessiveThreads() as threads:
            beside = threads.submit(lambda: (torch.ones(1 << 20).add(1), len(os.listdir("/proc/self/task")))[1])
            assert beside.result() == alone + 2
            assert happens(lambda: len(os.listdir("/proc/self/task")) == alone)
    finally:
        torch.set_num_threads(before)

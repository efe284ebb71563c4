"""Calls in background threads, which end with the call."""

import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from tests.conftest import REPOSITORY
from utils.system.threads import SuccessiveThreads


def test_calls_run_one_after_the_other() -> None:
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


def test_an_error_affects_its_own_call_alone() -> None:
    with SuccessiveThreads() as threads:
        broken = threads.submit(int, "three")
        whole = threads.submit(int, "3")
    assert whole.result() == 3
    with pytest.raises(ValueError, match="three"):
        broken.result()


COUNT = """
import os, time, torch
from utils.system.threads import SuccessiveThreads

def compute():
    torch.ones(1 << 20).add(1)
    return len(os.listdir("/proc/self/task"))

torch.set_num_threads(2)
alone = compute()
with SuccessiveThreads() as threads:
    beside = threads.submit(compute).result()
    end = time.monotonic() + 10
    while (left := len(os.listdir("/proc/self/task"))) > alone and time.monotonic() < end:
        time.sleep(0.01)
    print(beside - alone, left - alone)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads as Linux does")
@pytest.mark.skipif(not torch.backends.openmp.is_available(), reason="this torch has no OpenMP")
def test_a_call_that_has_ended_leaves_no_openmp_thread() -> None:
    """With teams of two threads, a call has its own thread and one that computes with it."""
    counted = subprocess.run([sys.executable, "-c", COUNT], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert counted.stdout.split() == ["2", "0"]

"""Calls in background threads, and how many of them torch takes."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")


class SuccessiveThreads:
    """Runs calls in the background one after the other, each in a new thread; leaving ``with`` waits for all.

    A new thread per call, because a thread that has computed with torch keeps its OpenMP team until it ends. While all
    teams together have more threads than there are cores, GNU's OpenMP puts waiting threads to sleep at once. That made
    a network 8 % slower beside a thread that was idle (docs/performance.md).
    """

    def __init__(self) -> None:
        self._last: ThreadPoolExecutor | None = None

    def __enter__(self) -> "SuccessiveThreads":
        return self

    def __exit__(self, *_: object) -> None:
        if self._last is not None:
            self._last.shutdown()

    def submit(self, function: Callable[..., T], *arguments: object) -> Future[T]:
        """Run a call when all earlier ones have ended."""
        thread = ThreadPoolExecutor(1)
        future = thread.submit(_run_after, self._last, function, *arguments)
        thread.shutdown(wait=False)  # the thread ends after this call
        self._last = thread
        return future


def _run_after(before: ThreadPoolExecutor | None, function: Callable[..., T], *arguments: object) -> T:
    if before is not None:
        before.shutdown()
    return function(*arguments)


@contextmanager
def single_threaded() -> Iterator[None]:
    """Let torch compute in this thread alone: its sums round differently for each number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

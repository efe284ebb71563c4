"""Work beside the main thread's."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class SuccessiveThreads:
    """Does one call after the other, each in a thread of its own that ends with it; the end of ``with`` waits for all.

    A thread that has computed with torch keeps its OpenMP team until it ends. While there are more threads in all teams
    than cores, GNU's OpenMP lets those that wait for each other sleep at once, which made a network 8 % slower beside a
    thread that did nothing any more (docs/performance.md).
    """

    def __init__(self) -> None:
        self._last: ThreadPoolExecutor | None = None

    def __enter__(self) -> "SuccessiveThreads":
        return self

    def __exit__(self, *_: object) -> None:
        if self._last is not None:
            self._last.shutdown()

    def submit(self, function: Callable[..., T], *arguments: object) -> Future[T]:
        """Begin a call when all earlier ones have ended."""
        thread = ThreadPoolExecutor(1)
        future = thread.submit(_after, self._last, function, *arguments)
        thread.shutdown(wait=False)  # takes no other call
        self._last = thread
        return future


def _after(before: ThreadPoolExecutor | None, function: Callable[..., T], *arguments: object) -> T:
    if before is not None:
        before.shutdown()
    return function(*arguments)

"""Work beside the main thread's."""

from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any


class SuccessiveThreads(Executor):
    """Does one call after the other, each in a thread of its own that ends with it.

    A thread that has computed with torch keeps its OpenMP team until it ends. While there are more threads in all teams
    than cores, GNU's OpenMP lets those that wait for each other sleep at once, which made a network 8 % slower beside a
    thread that did nothing any more (docs/performance.md).
    """

    def __init__(self) -> None:
        self._last: ThreadPoolExecutor | None = None

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Begin a call when all earlier ones have ended."""
        before, self._last = self._last, ThreadPoolExecutor(1)
        future = self._last.submit(_after, before, fn, *args, **kwargs)
        self._last.shutdown(wait=False)  # takes no other call
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Wait for all calls."""
        if self._last is not None:
            self._last.shutdown(wait, cancel_futures=cancel_futures)


def _after(before: ThreadPoolExecutor | None, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if before is not None:
        before.shutdown()
    return fn(*args, **kwargs)

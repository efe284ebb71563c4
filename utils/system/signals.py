"""Signals that ask a program to end: schedulers send them before time runs out, and people press Ctrl-C."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from torch import nn

from utils.system.errors import Stopped

T = TypeVar("T")
R = TypeVar("R")

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# torchrun and schedulers hand one request to a process on several ways, seconds apart on a busy machine; of a person's
# Ctrl-C there is one copy at most, and then at once
ONE_REQUEST_SECONDS = {signal.SIGTERM: 5.0, signal.SIGUSR1: 5.0, signal.SIGINT: 0.2}


class StopRequest:
    """Whether one of :data:`SIGNALS` has arrived, and what becomes of it.

    It ends the program at once, unless in :meth:`deferred`, where it waits for the program to ask. A second request
    ends the program at once wherever it is.

    Attributes:
        number: the signal that arrived, or 0.
    """

    def __init__(self) -> None:
        self.number = 0
        self._arrival = 0.0
        self._deferred = False
        self._listening = multiprocessing.RawValue("b", 0)  # helper processes see it too

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Let the signals come here instead of killing the program."""
        with _handled_by(self._receive):
            self._listening.value = 1
            try:
                yield
            finally:
                self._listening.value = 0

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Leave it to the program when to end, as it has to be where threads wait for each other.

        An exception in the midst of :mod:`threading`, which is written in Python, can leave a lock taken, and the
        program would wait for ever for a thread that needs it.
        """
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before

    def map_in_threads(self, function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
        """What ``function`` makes of each item, in their order; a signal ends that before the next one is given.

        Args:
            threads: as many as work at a time; one where they are none.

        Raises:
            Stopped: after a signal, when the items that were begun are done.
        """
        with self.deferred():
            pool = ThreadPoolExecutor(max(1, threads))
            try:
                for result in pool.map(function, items):
                    self.raise_if_asked()
                    yield result
            finally:
                pool.shutdown(cancel_futures=True)
        self.raise_if_asked()

    @contextmanager
    def ending_before_each_forward(self, network: nn.Module) -> Iterator[None]:
        """Let ``network`` raise :class:`Stopped` where its next forward pass would begin after a signal."""
        hook = network.register_forward_pre_hook(lambda *_: self.raise_if_asked())
        try:
            yield
        finally:
            hook.remove()

    def raise_if_asked(self, number: int | None = None) -> None:
        """Raise :class:`Stopped` if a signal has arrived.

        Args:
            number: the signal, be it one that another process got, or 0; by default what this process knows of.

        Raises:
            Stopped: for the one who ends the program in good order.
        """
        number = self.number if number is None else number
        if number:
            if not self.number:  # this process's own is a copy when it comes
                self.number, self._arrival = number, time.monotonic()
            raise Stopped(number)

    def leave_to_parent(self, *_: object) -> None:
        """In a helper process: ignore the signals as long as the parent listens, which ends the helpers itself.

        Schedulers send a signal to all processes, and a helper that ended would take a step from the parent that is
        to end in good order.
        """
        for number in SIGNALS:
            signal.signal(number, self._ignore_while_parent_listens)

    def _ignore_while_parent_listens(self, *_: object) -> None:
        if not self._listening.value:
            os._exit(0)  # any other end of a worker counts as a crash with torch's loaders

    def _receive(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if not self.number:
            self.number, self._arrival = number, now
            if not self._deferred:
                raise Stopped(number)
        elif now - self._arrival > ONE_REQUEST_SECONDS[signal.Signals(number)]:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


@contextmanager
def forwarded_to(processes: list[int]) -> Iterator[None]:
    """Hand the signals on to the processes that do the work."""

    def hand_on(number: int, _: FrameType | None) -> None:
        for process in processes:
            try:
                os.kill(process, number)
            except ProcessLookupError:
                continue  # it has ended already

    with _handled_by(hand_on):
        yield


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)

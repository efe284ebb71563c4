"""Signals that ask a program to end, from a scheduler before time runs out or from Ctrl-C."""

import ctypes
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
# seconds in which a second signal counts as a copy of the first: torchrun and schedulers may send one in several ways,
# seconds apart on a busy machine; of Ctrl-C there is one copy at most, and it comes at once
DUPLICATE_SECONDS = {signal.SIGTERM: 5.0, signal.SIGUSR1: 5.0, signal.SIGINT: 0.2}
C_LIBRARY = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1  # of Linux's sys/prctl.h


class StopRequest:
    """Receives :data:`SIGNALS`.

    The first signal raises :class:`Stopped` at once; inside :meth:`deferred` it waits until the program calls
    :meth:`raise_if_requested`. A second one kills the program.

    Attributes:
        number: the signal that arrived, or 0.
    """

    def __init__(self) -> None:
        self.number = 0
        self._arrival = 0.0
        self._deferred = False
        self._listening = multiprocessing.RawValue("b", 0)  # shared with helper processes

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals, which would otherwise kill the program."""
        with _handled_by(self._receive):
            self._listening.value = 1
            try:
                yield
            finally:
                self._listening.value = 0

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let the program decide when to stop, which is needed wherever threads wait for each other.

        :mod:`threading` is written in Python: an exception inside it can leave a lock held, and a thread that needs
        the lock would wait for ever.
        """
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before

    def map_in_threads(self, function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
        """Yield ``function(item)`` for each item in order, computed in threads.

        Args:
            threads: their number; 0 counts as 1.

        Raises:
            Stopped: after a signal, when the calls that have begun are done.
        """
        with self.deferred():
            pool = ThreadPoolExecutor(max(1, threads))
            try:
                for result in pool.map(function, items):
                    self.raise_if_requested()
                    yield result
            finally:
                pool.shutdown(cancel_futures=True)
        self.raise_if_requested()

    @contextmanager
    def stop_before_forward(self, network: nn.Module) -> Iterator[None]:
        """After a signal, raise :class:`Stopped` when the network's next forward pass would begin."""
        hook = network.register_forward_pre_hook(lambda *_: self.raise_if_requested())
        try:
            yield
        finally:
            hook.remove()

    def raise_if_requested(self, number: int | None = None) -> None:
        """Raise :class:`Stopped` if a signal has arrived.

        Args:
            number: the signal that this or another process has received, or 0; by default this process's own.

        Raises:
            Stopped: if there was a signal.
        """
        number = self.number if number is None else number
        if number:
            if not self.number:  # its own signal, if it still comes, is a copy
                self.number, self._arrival = number, time.monotonic()
            raise Stopped(number)

    def leave_to_parent(self, *_: object) -> None:
        """In a helper process, ignore signals as long as the parent handles them and ends its helpers itself.

        Schedulers send a signal to all processes. A helper that ended at once would make the parent's step fail.
        """
        for number in SIGNALS:
            signal.signal(number, self._ignore_while_parent_listens)

    def _ignore_while_parent_listens(self, *_: object) -> None:
        if not self._listening.value:
            os._exit(0)  # the parent is ending, and needs it no more

    def _receive(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if not self.number:
            self.number, self._arrival = number, now
            if not self._deferred:
                raise Stopped(number)
        elif now - self._arrival > DUPLICATE_SECONDS[signal.Signals(number)]:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


def end_with_parent() -> None:
    """In a helper process: leave Ctrl-C to the parent, and end when it ends, however it does (on Linux)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal_at_parents_end(signal.SIGKILL)


def signal_at_parents_end(number: int) -> None:
    """Let this process get a signal when its parent ends, even by ``kill -9``; on Linux alone."""
    if hasattr(C_LIBRARY, "prctl"):
        C_LIBRARY.prctl(PR_SET_PDEATHSIG, int(number))


@contextmanager
def forwarded_to(processes: list[int]) -> Iterator[None]:
    """Forward the signals to other processes."""

    def forward(number: int, _: FrameType | None) -> None:
        for process in processes:
            try:
                os.kill(process, number)
            except ProcessLookupError:
                continue  # it has ended already

    with _handled_by(forward):
        yield


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)

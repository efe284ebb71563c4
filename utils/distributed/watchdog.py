"""Sees to it that several processes end together: when one fails, when one is lost, and when one never comes."""

import hashlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

from utils.distributed.rendezvous import Seat
from utils.system.errors import LostError, Stopped, ToldError

T = TypeVar("T")
Entries = dict[int, list[Any]]  # by rank: meetings, places passed in the last one, steps, and the place

GRACE_SECONDS = 10.0  # for a process to end by itself after another has failed
ANSWER_SECONDS = 10.0  # for the store to answer
# how the messages of torch's backends begin or what they name when a connection breaks
BROKEN = ("gloo", "nccl", "connection closed by peer", "connection reset", "broken pipe", "socket")


class Watch:
    """What a process tells the others about itself, and what it makes of what they tell.

    A thread writes to the store how far this process has come. Wherever processes wait for each other they pass a
    :meth:`meeting`, all of them the same ones in the same order. Who waits in one for longer than ``seconds`` looks up
    who hasn't come. One that has made headway meanwhile is waited for on; one that hasn't ends the run.

    Args:
        store: that of all processes, by a connection which is used for nothing else.
        seconds: the longest wait for a process that makes no headway.
    """

    def __init__(self, store: dist.Store, seat: Seat, seconds: float) -> None:
        self.store = store
        self.seat = seat
        self.seconds = seconds
        self._place = "starting"
        self._steps = 0
        self._meetings = 0
        self._passed = 0
        self._since: float | None = None  # when the meeting began in which this process waits
        self._written = ""
        self._over = threading.Event()
        self._parent = os.getppid()
        self._write()
        self._thread = threading.Thread(target=self._look_after, daemon=True)
        self._thread.start()

    def at(self, place: str) -> None:
        """Note where the program is, as messages name it."""
        self._place = place
        self._steps += 1
        self._passed += 1

    def step(self) -> None:
        """Note that the program makes headway where it is."""
        self._steps += 1

    @contextmanager
    def meeting(self) -> Iterator[None]:
        """Hold what waits for other processes.

        Raises:
            LostError: if the connection to one of them breaks.
        """
        self._meetings += 1
        self._passed = 0
        self._since = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, dist.DistError) and not any(word in str(error).lower() for word in BROKEN):
                raise
            # gloo begins with the line of its source and ends with advice that doesn't fit
            reason = re.sub(r"^\[\S+\] ", "", str(error).splitlines()[0]).partition(". ")[0]
            raise LostError(f"lost another process in {self._place} ({reason}).") from error
        finally:
            self._since = None

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Let one process alone tell what made all of them end, with its rank.

        Raises:
            ToldError: in place of what another process has told already, or of what is but its consequence.
        """
        try:
            yield
        except ToldError:
            raise
        except Stopped as stopped:
            if self._is_news(stopped):
                raise
            raise Stopped(stopped.number, "") from None
        except Exception as error:
            if not self._is_news(error):
                raise ToldError from error
            error.add_note(str(self.seat))
            raise

    def close(self) -> None:
        """End the watch."""
        self._over.set()
        self._thread.join()

    def _is_news(self, end: BaseException) -> bool:
        """Note that this process ends before its time; whether nobody has told why yet."""
        text = str(end)

        def ask() -> bool:
            first = self.store.add("ends", 1) == 1
            if isinstance(end, LostError):
                return first
            return not text or self.store.add(f"told/{hashlib.sha256(text.encode()).hexdigest()}", 1) == 1

        return answer(ask) is not False

    def _look_after(self) -> None:
        look = None
        while not self._over.wait(min(5.0, self.seconds / 20)):
            if answer(self._report) and not self._over.wait(GRACE_SECONDS):
                os._exit(1)  # another process tells why
            look = self._look_for_others(look)
            if os.getppid() != self._parent:  # whoever would start this process again, or end it, is gone
                self._parent = os.getppid()
                os.kill(os.getpid(), signal.SIGTERM)

    def _report(self) -> bool:
        """Write how far this process has come; whether one has ended before its time."""
        self._write()
        return self.store.check(["ends"])

    def _write(self) -> None:
        entry = json.dumps([self._meetings, self._passed, self._steps, self._place])
        if entry != self._written:
            self.store.set(f"at/{self.seat.rank}", entry)
            self._written = entry

    def _look_for_others(self, last: "_Look | None") -> "_Look | None":
        """End the run if those who haven't come to this process's meeting haven't moved since the look before."""
        since = self._since
        if since is None:
            return None
        if last is None or last.meeting != since:
            last = _Look(since, since, None)
        if time.monotonic() - last.time < self.seconds / 2:
            return last
        missing = answer(self._missing)
        if self._since != since:
            return None
        if missing is None:
            self._end(f"the store on rank 0's machine did not answer for {ANSWER_SECONDS:g} s")
        elif last.missing is not None:
            still = {rank: entry for rank, entry in missing.items() if last.missing.get(rank) == entry}
            if still:
                self._end(self._whom(still))
        return _Look(since, time.monotonic(), missing)

    def _missing(self) -> Entries:
        """By rank, the entries of those who haven't come to where this process waits; of all if all have come there.

        Of none if someone is ahead of this process and nobody behind: then the others wait for it.
        """
        entries: Entries = {}
        for rank in range(self.seat.world_size):
            if rank != self.seat.rank:
                there = self.store.check([f"at/{rank}"])
                entries[rank] = json.loads(self.store.get(f"at/{rank}")) if there else [0, 0, 0, "its start"]
        here = [self._meetings, self._passed]
        behind = {rank: entry for rank, entry in entries.items() if entry[:2] < here}
        return behind or (entries if all(entry[:2] == here for entry in entries.values()) else {})

    def _whom(self, missing: Entries) -> str:
        named = [f"rank {rank}, last heard from in {entry[3]}" for rank, entry in list(missing.items())[:4]]
        more = f"; and {len(missing) - 4} more" if len(missing) > 4 else ""
        return f"waited longer than {self.seconds:g} s (--dist_timeout) in {self._place} for {'; '.join(named)}{more}"

    def _end(self, text: str) -> None:
        if self._is_news(LostError(text)):
            print(f"error: {self.seat}: {text}. What was saved is kept.", file=sys.stderr, flush=True)
        os._exit(1)  # the program itself hangs


@dataclass(frozen=True)
class _Look:
    """What a look at the others showed.

    Attributes:
        meeting: when the meeting began in which this process waits.
        time: when it looked, or began to wait.
        missing: those who hadn't come; None where it hasn't looked yet.
    """

    meeting: float
    time: float
    missing: Entries | None


def answer(work: Callable[[], T]) -> T | None:
    """What ``work`` with a store returns; None where the store doesn't answer, or answers with an error."""
    answers: list[T] = []

    def ask() -> None:
        try:
            answers.append(work())
        except RuntimeError:
            return  # no answer

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    return answers[0] if answers else None

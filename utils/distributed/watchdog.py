"""Ends all processes of a run together when one of them fails, hangs or is lost."""

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
from typing import NamedTuple, TypeVar

import torch.distributed as dist

from utils.distributed.rendezvous import RankInfo
from utils.system.errors import LostError, ReportedElsewhereError, Spell, Stopped

T = TypeVar("T")

GRACE_SECONDS = 10.0  # for a process to end by itself after another has failed
STORE_SECONDS = 10.0  # for the store to answer
# parts of the messages of torch's backends when a connection breaks
BROKEN_CONNECTION = ("gloo", "nccl", "connection closed by peer", "connection reset", "broken pipe", "socket")


class Heartbeat(NamedTuple):
    """How far a process has come, as it writes it to the store.

    Attributes:
        collectives: how many it has entered.
        activities: how many it has begun since it entered the last one.
        steps: how often it has made progress.
        activity: what it does now, as messages name it.
    """

    collectives: int = 0
    activities: int = 0
    steps: int = 0
    activity: str = "its start"

    @property
    def position(self) -> tuple[int, int]:
        """Its place in the order of events that all processes share."""
        return self.collectives, self.activities


class Watchdog:
    """Watches the other processes of a run.

    All processes enter the same collectives in the same order. A thread writes this process's heartbeat to the store.
    If this process waits in a collective for longer than ``timeout``, the thread reads the heartbeats of the others. It
    goes on waiting for a straggler that has made progress since the last look, and ends the run for one that hasn't.

    Args:
        store: the store of all processes, by a connection that nothing else uses.
        timeout: seconds to wait for a process that makes no progress.
        spell: how the program spells the settings that a message names in backquotes.
    """

    def __init__(self, store: dist.Store, rank_info: RankInfo, timeout: float, spell: Spell = str) -> None:
        self.store = store
        self.rank_info = rank_info
        self.timeout = timeout
        self.spell = spell
        self._heartbeat = Heartbeat(activity="starting")
        self._sent: Heartbeat | None = None
        self._collective_start: float | None = None  # of the collective in which this process waits
        self._closed = threading.Event()
        self._parent = os.getppid()
        self._send_heartbeat()
        self._thread = threading.Thread(target=self._monitor, daemon=True)
        self._thread.start()

    def note_progress(self, activity: str | None = None) -> None:
        """Note that the program has moved on, and what it does from here if that is something else."""
        collectives, activities, steps, before = self._heartbeat
        activities += activity is not None
        self._heartbeat = Heartbeat(collectives, activities, steps + 1, before if activity is None else activity)

    @contextmanager
    def collective(self) -> Iterator[None]:
        """Put this around a call that waits for other processes.

        Raises:
            LostError: if the connection to one of them breaks.
        """
        self._heartbeat = self._heartbeat._replace(collectives=self._heartbeat.collectives + 1, activities=0)
        self._collective_start = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            broken = any(word in str(error).lower() for word in BROKEN_CONNECTION)
            if not isinstance(error, dist.DistError) and not broken:
                raise
            # gloo begins with a line of its source code and ends with general advice
            reason = re.sub(r"^\[\S+\] ", "", str(error).splitlines()[0]).partition(". ")[0]
            raise LostError(f"lost another process in {self._heartbeat.activity} ({reason}).") from error
        finally:
            self._collective_start = None

    @contextmanager
    def reported_once(self) -> Iterator[None]:
        """Let a single process, with its rank, report an error that ends all of them.

        Raises:
            ReportedElsewhereError: in place of an error that another process has reported, or that follows from one.
        """
        try:
            yield
        except ReportedElsewhereError:
            raise
        except Stopped as stopped:
            if self._is_first_report(stopped):
                raise
            raise Stopped(stopped.number, "") from None
        except Exception as error:
            if not self._is_first_report(error):
                raise ReportedElsewhereError from error
            error.add_note(str(self.rank_info))
            raise

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        self._thread.join()

    def _is_first_report(self, error: BaseException) -> bool:
        """Tell the others that this process fails; whether no other has reported the reason yet."""
        text = str(error)

        def request() -> bool:
            first = self.store.add("failures", 1) == 1
            if isinstance(error, LostError):  # the process that was lost knows better why
                return first
            return not text or self.store.add(f"reported/{hashlib.sha256(text.encode()).hexdigest()}", 1) == 1

        return ask_store(request) is not False

    def _monitor(self) -> None:
        last_check = None
        while not self._closed.wait(min(5.0, self.timeout / 20)):
            if ask_store(self._send_heartbeat) and not self._closed.wait(GRACE_SECONDS):
                os._exit(1)  # the process that failed reports why
            last_check = self._check_stragglers(last_check)
            if os.getppid() != self._parent:  # torchrun is gone, which would restart or end this process
                self._parent = os.getppid()
                os.kill(os.getpid(), signal.SIGTERM)

    def _send_heartbeat(self) -> bool:
        """Write the heartbeat to the store; whether a process has failed."""
        heartbeat = self._heartbeat
        if heartbeat != self._sent:
            self.store.set(f"heartbeat/{self.rank_info.rank}", json.dumps(heartbeat))
            self._sent = heartbeat
        return self.store.check(["failures"])

    def _check_stragglers(self, last: "_Check | None") -> "_Check | None":
        """End the run if a process that this one waits for has made no progress since the last check."""
        start = self._collective_start
        if start is None:
            return None
        if last is None or last.collective_start != start:
            last = _Check(start, start, None)
        if time.monotonic() - last.time < self.timeout / 2:
            return last
        stragglers = ask_store(self._stragglers)
        if self._collective_start != start:
            return None
        if stragglers is None:
            self._abort(f"the store on rank 0's machine did not answer for {STORE_SECONDS:g} s")
        elif last.stragglers is not None:
            stuck = {rank: beat for rank, beat in stragglers.items() if last.stragglers.get(rank) == beat}
            if stuck:
                self._abort(self._timeout_message(stuck))
        return _Check(start, time.monotonic(), stragglers)

    def _stragglers(self) -> dict[int, Heartbeat]:
        """By rank, the heartbeats of the processes that this one waits for.

        These are the ones behind it. If all are exactly where this process is, nobody moves, and it waits for all. If
        none is behind and some are ahead, those wait for this process, and it waits for none.
        """
        heartbeats = {}
        for rank in range(self.rank_info.world_size):
            if rank != self.rank_info.rank:
                key = f"heartbeat/{rank}"
                heartbeats[rank] = (
                    Heartbeat(*json.loads(self.store.get(key))) if self.store.check([key]) else Heartbeat()
                )
        here = self._heartbeat.position
        behind = {rank: beat for rank, beat in heartbeats.items() if beat.position < here}
        return behind or (heartbeats if all(beat.position == here for beat in heartbeats.values()) else {})

    def _timeout_message(self, stuck: dict[int, Heartbeat]) -> str:
        named = "; ".join(f"rank {rank}, last heard from in {beat.activity}" for rank, beat in list(stuck.items())[:4])
        more = f"; and {len(stuck) - 4} more" if len(stuck) > 4 else ""
        here = self._heartbeat.activity
        return f"waited longer than {self.timeout:g} s (`dist_timeout`) in {here} for {named}{more}"

    def _abort(self, reason: str) -> None:
        """End this process from the thread, since the main thread hangs."""
        if self._is_first_report(LostError(reason)):
            text = self.spell(f"error: {self.rank_info}: {reason}. What was saved is kept.")
            print(text, file=sys.stderr, flush=True)
        os._exit(1)


@dataclass(frozen=True)
class _Check:
    """What a look at the stragglers of a collective has shown.

    Attributes:
        collective_start: when this process entered the collective.
        time: when it looked, or entered the collective.
        stragglers: their heartbeats; None before the first look.
    """

    collective_start: float
    time: float
    stragglers: dict[int, Heartbeat] | None


def ask_store(request: Callable[[], T]) -> T | None:
    """The result of a request to a store; None if that fails or takes longer than :data:`STORE_SECONDS`."""
    answers: list[T] = []

    def ask() -> None:
        try:
            answers.append(request())
        except RuntimeError:
            return

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(STORE_SECONDS)
    return answers[0] if answers else None

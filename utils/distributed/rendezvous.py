"""How processes find each other before they can talk: over a store that all of them can reach."""

import json
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import urlparse

import torch.distributed as dist

from utils.system.errors import InputError, ToldError

SERVER_SECONDS = 60  # to start the store, and reach it on the same machine


@dataclass(frozen=True)
class Seat:
    """A process's number among all processes, and among those of its machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_size: int = 1

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.world_size}"


@dataclass(frozen=True)
class Address:
    """Where the store is to be found."""

    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> "Address":
        """From ``--dist-url``.

        Raises:
            InputError: if it isn't of the form tcp://HOST:PORT.
        """
        parts = urlparse(url)
        try:
            port = parts.port
        except ValueError:
            port = None
        if parts.scheme != "tcp" or not parts.hostname or not port:
            raise InputError(f"--dist-url {url}: is not of the form tcp://HOST:PORT, such as tcp://10.0.0.1:23456.")
        return cls(parts.hostname, port)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def serve(address: Address) -> dist.TCPStore:
    """Start the store that everyone at ``address`` is to find; it lives as long as what this returns.

    Raises:
        InputError: if the port is in use.
    """
    try:
        return dist.TCPStore(
            "localhost", address.port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=SERVER_SECONDS)
        )
    except RuntimeError as error:
        if "EADDRINUSE" in str(error):
            raise InputError(
                f"port {address.port} is in use on this machine, by another run or by rank 0 of this one. Give each "
                f"machine its own --rank; or another port, --dist-url tcp://{address.host}:{address.port + 1}, on all."
            ) from error
        raise InputError(f"port {address.port}: nobody can listen there: {str(error).splitlines()[0]}") from error


def connect(address: Address, seconds: float) -> dist.TCPStore:
    """The store at ``address``.

    Raises:
        InputError: if there is none within ``seconds``.
    """
    for _ in _patience(seconds):
        try:
            # torch's own attempts would fill the screen with traces
            socket.create_connection((address.host, address.port), timeout=seconds).close()
        except OSError as error:
            reason = error.strerror or "no answer"
            continue
        try:
            return dist.TCPStore(
                address.host, address.port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=seconds)
            )
        except RuntimeError as error:
            text = f"what answers at {address} isn't rank 0 of this program. Give a port that nothing else uses."
            raise InputError(text) from error
    raise InputError(
        f"nobody answers at {address} ({reason}), {seconds:g} s long (--dist_timeout). Is the program running on the "
        "machine of rank 0, and does the network lead there?"
    )


def meet(store: dist.Store, seat: Seat, seconds: float) -> str:
    """Wait until all processes are there, and agree on the name of a part of the store in which nothing is written yet.

    A store that torchrun keeps holds what the processes wrote that died in an earlier round, and nothing tells these
    rounds apart. So rank 0 opens a round under a name of its own, everyone signs up in the newest round that they
    see, and rank 0 lets each in by the nonce with which it signed up. While a round is open rank 0 counts on, so that
    a fault in one of the past is no fault.

    Raises:
        InputError: if someone doesn't come within ``seconds``, or counts other processes than the rest.
        ToldError: if another process of this machine has said so already.
    """
    return _open_round(store, seat, seconds) if seat.rank == 0 else _join_round(store, seat, seconds)


def _open_round(store: dist.Store, seat: Seat, seconds: float) -> str:
    name = uuid.uuid4().hex
    here = dist.PrefixStore(name, store)
    announcement = json.dumps([name, seat.world_size])
    store.set("round", announcement)
    signed_up: dict[int, str] = {}
    for _ in _patience(seconds):
        if store.get("round").decode() != announcement:
            _refuse(here, "two processes say that they are rank 0. Give each machine its own --rank, from 0 on.")
        _end_where_refused(here)
        here.add("open", 1)
        missing = [rank for rank in range(1, seat.world_size) if rank not in signed_up]
        signed_up |= {rank: here.get(f"nonce/{rank}").decode() for rank in missing if here.check([f"nonce/{rank}"])}
        if len(signed_up) == seat.world_size - 1:
            for rank, nonce in signed_up.items():
                here.set(f"admitted/{rank}", nonce)
            return name
    missing = [rank for rank in range(1, seat.world_size) if rank not in signed_up]
    numbers = ", ".join(map(str, missing[:8])) + (", …" if len(missing) > 8 else "")
    raise InputError(
        f"waited {seconds:g} s (--dist_timeout) for rank {numbers} to start. Was the program launched on every machine?"
    )


def _join_round(store: dist.Store, seat: Seat, seconds: float) -> str:
    nonce = uuid.uuid4().hex
    name, opened, fault = "", 0, None
    for _ in _patience(seconds):
        if not store.check(["round"]):
            continue
        newest, world_size = json.loads(store.get("round"))
        here = dist.PrefixStore(newest, store)
        if newest != name:
            name, opened, fault = newest, here.add("open", 0), None
            if world_size != seat.world_size:
                fault = (
                    f"rank {seat.rank} counts {seat.world_size} processes and rank 0 counts {world_size}. Give all "
                    "machines the same --world_size, and as many GPUs (CUDA_VISIBLE_DEVICES) each."
                )
            elif here.compare_set(f"nonce/{seat.rank}", "", nonce).decode() != nonce:
                fault = f"two processes say that they are rank {seat.rank}. Give each machine its own --rank."
        if fault is None:
            _end_where_refused(here)
            if here.check([f"admitted/{seat.rank}"]) and here.get(f"admitted/{seat.rank}").decode() == nonce:
                return name
        elif here.add("open", 0) > opened:  # or else the round is one of the past, and a new one will come
            _refuse(here, fault)
    raise InputError(fault or f"waited {seconds:g} s (--dist_timeout) for rank 0 to start, or for others beside it.")


def _patience(seconds: float) -> Iterator[None]:
    """A turn now and again, until ``seconds`` are over."""
    end, pause = time.monotonic() + seconds, 0.01
    while time.monotonic() < end:
        yield
        time.sleep(pause)
        pause = min(1.5 * pause, 0.5)


def _refuse(store: dist.Store, text: str) -> None:
    store.set("refused", text)
    _end_where_refused(store)


def _end_where_refused(store: dist.Store) -> None:
    if store.check(["refused"]):
        if store.add(f"told/{socket.gethostname()}", 1) > 1:
            raise ToldError
        raise InputError(store.get("refused").decode())

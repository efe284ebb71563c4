"""How processes find each other before they can communicate: over a store that all of them can reach."""

import json
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import urlparse

import torch.distributed as dist

from utils.system.errors import InputError, ReportedElsewhereError

SERVER_SECONDS = 60  # to start the store, and to reach it on the same machine


@dataclass(frozen=True)
class RankInfo:
    """A process's number among all processes, and among those of its machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_size: int = 1

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.world_size}"


@dataclass(frozen=True)
class Address:
    """The address of the store."""

    host: str
    port: int

    @classmethod
    def from_url(cls, url: str) -> "Address":
        """Parse ``dist_url``.

        Raises:
            InputError: if it isn't of the form tcp://HOST:PORT.
        """
        parts = urlparse(url)
        try:
            port = parts.port
        except ValueError:
            port = None
        if parts.scheme != "tcp" or not parts.hostname or not port:
            raise InputError(f"`dist_url` {url}: is not of the form tcp://HOST:PORT, such as tcp://10.0.0.1:23456.")
        return cls(parts.hostname, port)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def start_store(address: Address) -> dist.TCPStore:
    """Start the store at a port of this machine; it lives as long as the returned object.

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
                f"machine its own `rank`; or another port, `dist_url` tcp://{address.host}:{address.port + 1}, on all."
            ) from error
        raise InputError(f"port {address.port}: can't be listened on: {str(error).splitlines()[0]}") from error


def connect(address: Address, timeout: float) -> dist.TCPStore:
    """Connect to the store at ``address``.

    Raises:
        InputError: if none answers within ``timeout`` seconds.
    """
    for _ in _poll(timeout):
        try:
            # torch would print a stack trace for each attempt
            socket.create_connection((address.host, address.port), timeout=timeout).close()
        except OSError as error:
            reason = error.strerror or "no answer"
            continue
        try:
            return dist.TCPStore(
                address.host, address.port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout)
            )
        except RuntimeError as error:
            text = f"what answers at {address} isn't rank 0 of this program. Give a port that nothing else uses."
            raise InputError(text) from error
    raise InputError(
        f"nobody answers at {address} ({reason}), {timeout:g} s long (`dist_timeout`). Is the program running on the "
        "machine of rank 0, and can this machine reach it over the network?"
    )


def join_round(store: dist.Store, rank_info: RankInfo, timeout: float) -> str:
    """Wait until all processes have joined, and agree on a prefix for keys under which nothing is stored yet.

    A store that torchrun keeps still holds the keys of processes that died before a restart. So rank 0 opens a round
    with a new name. The others join the newest round that they see, each with a nonce, and rank 0 admits each by its
    nonce. While a round is open rank 0 counts up a number in it; an error in a round whose number stands still is of
    the past, and is ignored.

    Raises:
        InputError: if a process doesn't join within ``timeout`` seconds, or was given another number of processes.
        ReportedElsewhereError: if another process of this machine has reported that.
    """
    return _open_round(store, rank_info, timeout) if rank_info.rank == 0 else _enter_round(store, rank_info, timeout)


def _open_round(store: dist.Store, rank_info: RankInfo, timeout: float) -> str:
    name = uuid.uuid4().hex
    in_round = dist.PrefixStore(name, store)
    announcement = json.dumps([name, rank_info.world_size])
    store.set("round", announcement)
    joined: dict[int, str] = {}
    missing = list(range(1, rank_info.world_size))
    for _ in _poll(timeout):
        if store.get("round").decode() != announcement:
            _fail_round(
                in_round, "two processes say that they are rank 0. Give each machine its own `rank`, from 0 on."
            )
        _raise_if_failed(in_round)
        in_round.add("open", 1)
        joined |= {
            rank: in_round.get(f"nonce/{rank}").decode() for rank in missing if in_round.check([f"nonce/{rank}"])
        }
        missing = [rank for rank in missing if rank not in joined]
        if not missing:
            for rank, nonce in joined.items():
                in_round.set(f"admitted/{rank}", nonce)
            return name
    numbers = ", ".join(map(str, missing[:8])) + (", …" if len(missing) > 8 else "")
    raise InputError(
        f"waited {timeout:g} s (`dist_timeout`) for rank {numbers} to start. Was the program launched on every machine?"
    )


def _enter_round(store: dist.Store, rank_info: RankInfo, timeout: float) -> str:
    rank, nonce = rank_info.rank, uuid.uuid4().hex
    name, opened, fault = "", 0, None
    for _ in _poll(timeout):
        if not store.check(["round"]):
            continue
        newest, world_size = json.loads(store.get("round"))
        in_round = dist.PrefixStore(newest, store)
        if newest != name:
            name, opened, fault = newest, in_round.add("open", 0), None
            if world_size != rank_info.world_size:
                fault = (
                    f"rank {rank} counts {rank_info.world_size} processes and rank 0 counts {world_size}. Give all "
                    "machines the same `world_size`, and as many GPUs (CUDA_VISIBLE_DEVICES) each."
                )
            elif in_round.compare_set(f"nonce/{rank}", "", nonce).decode() != nonce:
                fault = f"two processes say that they are rank {rank}. Give each machine its own `rank`."
        if fault is None:
            _raise_if_failed(in_round)
            if in_round.check([f"admitted/{rank}"]) and in_round.get(f"admitted/{rank}").decode() == nonce:
                return name
        elif in_round.add("open", 0) > opened:  # else the round is of the past, and a new one will come
            _fail_round(in_round, fault)
    raise InputError(fault or f"waited {timeout:g} s (`dist_timeout`) for rank 0 to start, or for others beside it.")


def _poll(timeout: float) -> Iterator[None]:
    """Yield at growing intervals until ``timeout`` seconds have passed."""
    end, pause = time.monotonic() + timeout, 0.01
    while time.monotonic() < end:
        yield
        time.sleep(pause)
        pause = min(1.5 * pause, 0.5)


def _fail_round(in_round: dist.Store, fault: str) -> None:
    in_round.set("fault", fault)
    _raise_if_failed(in_round)


def _raise_if_failed(in_round: dist.Store) -> None:
    if in_round.check(["fault"]):
        if in_round.add(f"reported/{socket.gethostname()}", 1) > 1:
            raise ReportedElsewhereError
        raise InputError(in_round.get("fault").decode())

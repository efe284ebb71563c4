"""How processes find each other, and what they are told where they can't."""

import json
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from utils.distributed.rendezvous import Address, Seat, connect, meet, serve
from utils.system.errors import InputError, ToldError


@pytest.fixture
def store() -> Callable[[], dist.Store]:
    """Connections to one store."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20))
    address = Address("127.0.0.1", server.port)
    return lambda: connect(address, 20) if server else server


def outcomes(store: Callable[[], dist.Store], seats: list[Seat], seconds: float = 20) -> list[str]:
    """What :func:`meet` gives or raises for each of some processes."""

    def outcome(seat: Seat) -> str:
        try:
            return meet(store(), seat, seconds)
        except (InputError, ToldError) as error:
            return str(error)

    with ThreadPoolExecutor(len(seats)) as pool:
        return list(pool.map(outcome, seats))


def test_all_agree_on_a_round_of_their_own(store: Callable[[], dist.Store]) -> None:
    seats = [Seat(rank, 3) for rank in (2, 0, 1)]
    first, second = outcomes(store, seats), outcomes(store, seats)
    assert len(set(first)) == 1
    assert len(set(second)) == 1
    assert first[0] != second[0]


@pytest.mark.parametrize("size", [2, 4])
def test_a_round_of_the_past_harms_no_one(store: Callable[[], dist.Store], size: int) -> None:
    """After a restart the ranks find what others of their number wrote, of a group that may have been larger."""
    past = dist.PrefixStore("past", store())
    past.set("nonce/1", "another")
    past.set("admitted/1", "another")
    past.set("refused", "a fault of the past")
    past.add("open", 7)
    store().set("round", json.dumps(["past", size]))
    names = outcomes(store, [Seat(1, 2), Seat(0, 2)])
    assert names[0] == names[1] != "past"


def test_two_machines_of_one_number(store: Callable[[], dist.Store]) -> None:
    said = outcomes(store, [Seat(0, 3), Seat(1, 3), Seat(1, 3)])
    assert sorted(said) == ["", "", "two processes say that they are rank 1. Give each machine its own --rank."]


def test_world_sizes_that_do_not_add_up(store: Callable[[], dist.Store]) -> None:
    said = outcomes(store, [Seat(0, 2), Seat(1, 3)])
    assert sorted(said) == [
        "",
        "rank 1 counts 3 processes and rank 0 counts 2. Give all machines the same --world_size, and as many GPUs "
        "(CUDA_VISIBLE_DEVICES) each.",
    ]


def test_who_does_not_come_is_named(store: Callable[[], dist.Store]) -> None:
    said = outcomes(store, [Seat(0, 3), Seat(2, 3)], seconds=1)
    assert said[0].startswith("waited 1 s (--dist_timeout) for rank 1 to start.")
    assert said[1].startswith("waited 1 s (--dist_timeout) for rank 0 to start, or for others beside it.")


def test_nobody_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = Address("127.0.0.1", free.getsockname()[1])
    with pytest.raises(InputError, match=rf"nobody answers at {address} \(Connection refused\), 0.2 s long"):
        connect(address, 0.2)


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = Address("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(InputError, match=f"port {address.port} is in use on this machine, by another run or by"):
            serve(address)


@pytest.mark.parametrize("url", ["127.0.0.1:80", "tcp://127.0.0.1", "env://", "tcp://host:port", "tcp://:80"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(InputError, match="is not of the form tcp://HOST:PORT"):
        Address.of(url)

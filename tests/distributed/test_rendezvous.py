"""How processes find each other, and the errors if they can't."""

import json
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from utils.distributed.rendezvous import Address, RankInfo, connect, join_round, start_store
from utils.system.errors import InputError, ReportedElsewhereError


@pytest.fixture
def store() -> Callable[[], dist.Store]:
    """Connections to one store."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20))
    address = Address("127.0.0.1", server.port)
    return lambda: connect(address, 20) if server else server


def outcomes(store: Callable[[], dist.Store], rank_infos: list[RankInfo], seconds: float = 20) -> list[str]:
    """What :func:`join_round` returns or raises for each of some processes."""

    def outcome(rank_info: RankInfo) -> str:
        try:
            return join_round(store(), rank_info, seconds)
        except (InputError, ReportedElsewhereError) as error:
            return str(error)

    with ThreadPoolExecutor(len(rank_infos)) as pool:
        return list(pool.map(outcome, rank_infos))


def test_all_agree_on_a_new_round(store: Callable[[], dist.Store]) -> None:
    rank_infos = [RankInfo(rank, 3) for rank in (2, 0, 1)]
    first, second = outcomes(store, rank_infos), outcomes(store, rank_infos)
    assert len(set(first)) == 1
    assert len(set(second)) == 1
    assert first[0] != second[0]


@pytest.mark.parametrize("size", [2, 4])
def test_a_past_round_does_no_harm(store: Callable[[], dist.Store], size: int) -> None:
    """After a restart ranks find the keys of an earlier group, which may have had more processes."""
    past = dist.PrefixStore("past", store())
    past.set("nonce/1", "another")
    past.set("admitted/1", "another")
    past.set("fault", "a fault of the past")
    past.add("open", 7)
    store().set("round", json.dumps(["past", size]))
    names = outcomes(store, [RankInfo(1, 2), RankInfo(0, 2)])
    assert names[0] == names[1] != "past"


def test_two_machines_with_one_rank(store: Callable[[], dist.Store]) -> None:
    messages = outcomes(store, [RankInfo(0, 3), RankInfo(1, 3), RankInfo(1, 3)])
    assert sorted(messages) == ["", "", "two processes say that they are rank 1. Give each machine its own `rank`."]


def test_world_sizes_that_do_not_add_up(store: Callable[[], dist.Store]) -> None:
    messages = outcomes(store, [RankInfo(0, 2), RankInfo(1, 3)])
    assert sorted(messages) == [
        "",
        "rank 1 counts 3 processes and rank 0 counts 2. Give all machines the same `world_size`, and as many GPUs "
        "(CUDA_VISIBLE_DEVICES) each.",
    ]


def test_the_error_names_the_ranks_that_are_missing(store: Callable[[], dist.Store]) -> None:
    messages = outcomes(store, [RankInfo(0, 3), RankInfo(2, 3)], seconds=1)
    assert messages[0].startswith("waited 1 s (`dist_timeout`) for rank 1 to start.")
    assert messages[1].startswith("waited 1 s (`dist_timeout`) for rank 0 to start, or for others beside it.")


def test_nobody_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = Address("127.0.0.1", free.getsockname()[1])
    with pytest.raises(InputError, match=rf"nobody answers at {address} \(Connection refused\), 0.2 s long"):
        connect(address, 0.2)


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = Address("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(InputError, match=f"port {address.port} is in use on this machine, by another run or by"):
            start_store(address)


@pytest.mark.parametrize("url", ["127.0.0.1:80", "tcp://127.0.0.1", "env://", "tcp://host:port", "tcp://:80"])
def test_an_invalid_address(url: str) -> None:
    with pytest.raises(InputError, match="is not of the form tcp://HOST:PORT"):
        Address.from_url(url)

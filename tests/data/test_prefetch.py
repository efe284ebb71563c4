"""Batches that a thread makes ahead."""

import threading
import time
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from utils.data.prefetch import PrefetchingLoader


class Numbers(Dataset):
    """Ten numbers, each told when it is taken, and given some seconds later."""

    def __init__(self, broken: int | None = None, seconds: float = 0.0) -> None:
        self.broken = broken
        self.seconds = seconds
        self.taken = [threading.Event() for _ in range(10)]

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.taken[index].set()
        time.sleep(self.seconds)
        if index == self.broken:
            raise OSError("gone")
        return {"image": torch.tensor([float(index)]), "name": str(index)}


def loader(numbers: Numbers, device: str = "cpu") -> PrefetchingLoader:
    return PrefetchingLoader(numbers, batch_size=2, device=torch.device(device), pin_memory=device != "cpu")


def test_batches_come_in_order_as_often_as_asked_for() -> None:
    batches = loader(Numbers())
    for _ in range(2):
        assert [batch["name"] for batch in batches] == [["0", "1"], ["2", "3"], ["4", "5"], ["6", "7"], ["8", "9"]]


def test_one_batch_is_made_while_the_one_before_is_in_use() -> None:
    numbers = Numbers()
    batches = iter(loader(numbers))
    next(batches)
    assert numbers.taken[3].wait(10)
    assert not numbers.taken[4].wait(0.05)


def test_an_error_comes_with_its_batch() -> None:
    batches = iter(loader(Numbers(broken=3)))
    assert next(batches)["name"] == ["0", "1"]
    with pytest.raises(OSError, match="gone"):
        next(batches)


def test_what_is_being_made_is_waited_for_where_the_loop_is_left() -> None:
    numbers = Numbers(seconds=0.05)
    before = threading.active_count()
    batches = iter(loader(numbers))
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() <= before
    assert numbers.taken[3].is_set()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_are_brought_to_the_gpu() -> None:
    for number, batch in enumerate(loader(Numbers(), "cuda:0")):
        assert batch["image"].device == torch.device("cuda:0")
        assert batch["image"].flatten().tolist() == [2.0 * number, 2.0 * number + 1]

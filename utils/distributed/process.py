"""One process among others. Every question has a sensible answer where there is one process alone."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from networks.layers.sync_batch_norm import synchronise
from utils.distributed.rendezvous import Seat
from utils.distributed.watchdog import Watch
from utils.system.errors import InputError
from utils.system.files import fingerprint
from utils.system.signals import StopRequest

T = TypeVar("T")


@dataclass(frozen=True)
class Process:
    """One of the processes that work together.

    What is said of all processes holds for all of them: each has to call it, in the same order.

    Attributes:
        device: where its network lives.
        seat: its number among all processes, and among those of its machine.
        stop: whether a signal asks it to end.
        watch: ends a wait for others that lasts too long; None where there are no others.
    """

    device: torch.device
    seat: Seat = field(default_factory=Seat)
    stop: StopRequest = field(default_factory=StopRequest, compare=False)
    watch: Watch | None = field(default=None, compare=False)

    @property
    def rank(self) -> int:
        """Its number among the processes of all machines."""
        return self.seat.rank

    @property
    def world_size(self) -> int:
        """How many processes there are on all machines."""
        return self.seat.world_size

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that prints and writes."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """Print ``text`` once, however many processes there are."""
        if self.is_main:
            print(text, flush=True)

    def at(self, place: str) -> None:
        """Note where the program is, for the message that ends a run in which others wait for this process."""
        if self.watch is not None:
            self.watch.at(place)

    def meeting(self) -> AbstractContextManager[None]:
        """Hold what waits for all processes, where this class doesn't do it itself.

        Raises:
            LostError: if the connection to one of them breaks.
        """
        return nullcontext() if self.watch is None else self.watch.meeting()

    def bar(self, items: Iterable[T], desc: str, total: int | None = None) -> "tqdm[T]":
        """``items`` with a progress bar, shown once and only on a terminal."""
        self.at(desc)
        moved = self.watch.step if self.watch is not None else None
        return _Bar(moved, items, desc=desc, total=total, leave=False, disable=None if self.is_main else True)

    def place(self, network: nn.Module) -> nn.Module:
        """The network on this process's device, in the memory format in which 3D convolutions run fastest."""
        return network.to(self.device).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network as it is to be trained: gradients averaged, and batch normalised, over all processes."""
        if self.world_size == 1:
            return network
        synchronise(network)
        for parameter in network.parameters():
            if parameter.is_contiguous():
                # with one channel or one voxel it is in both memory formats, and its gradient may have the strides of
                # either; DDP wants those of the parameter
                parameter.data = _row_major(parameter.data)
                parameter.register_hook(_row_major)
        ids = [self.device.index] if self.device.type == "cuda" else None
        with self.meeting():
            return DistributedDataParallel(network, device_ids=ids, gradient_as_bucket_view=True)

    def keeping_gradients(self, wrapped: nn.Module) -> AbstractContextManager[None]:
        """Let gradients add up in a backward pass of :meth:`wrap`'s network, for a later one to average them."""
        return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) else nullcontext()

    def share(self, items: list[T]) -> list[T]:
        """This process's part of ``items``: every ``world_size``-th, none twice and none left out."""
        return items[self.rank :: self.world_size]

    def gather(self, items: list[Any]) -> list[Any]:
        """The items of all processes, in the order that :meth:`share` dealt them."""
        parts = self.collect(items)
        longest = max(len(part) for part in parts)
        return [part[place] for place in range(longest) for part in parts if place < len(part)]

    def collect(self, thing: T) -> list[T]:
        """What each process gives, by rank."""
        if self.world_size == 1:
            return [thing]
        parts: list[Any] = [None] * self.world_size
        with self.meeting():
            dist.all_gather_object(parts, thing)
        return parts

    def means(self, values: Sequence[float]) -> list[float]:
        """The means of some numbers over all processes."""
        return (self._reduced(values, torch.float64, dist.ReduceOp.SUM) / self.world_size).tolist()

    def greatest(self, *values: int) -> list[int]:
        """The greatest of each of some numbers over all processes."""
        return self._reduced(values, torch.int64, dist.ReduceOp.MAX).tolist()

    def _reduced(self, values: Sequence[float], dtype: torch.dtype, operation: Any) -> torch.Tensor:
        if self.world_size == 1:
            return torch.tensor(values, dtype=dtype)  # not on a GPU, which would be waited for
        tensor = torch.tensor(values, dtype=dtype, device=self.device)
        with self.meeting():
            dist.all_reduce(tensor, operation)
        return tensor

    def end_if_asked(self) -> None:
        """End all processes together where one of them was asked to.

        Raises:
            Stopped: if so.
        """
        self.stop.raise_if_asked(*self.greatest(self.stop.number))

    def ending_within(self, network: nn.Module) -> AbstractContextManager[None]:
        """Let a process that is alone end before a forward pass; several end together, where they meet next."""
        return self.stop.ending_before_each_forward(network) if self.world_size == 1 else nullcontext()

    def wait_for_all(self) -> None:
        """Return when every process has come here."""
        self.greatest(0)

    def main_first(self, doing: str, work: Callable[[], T]) -> T:
        """Do ``work`` in the main process alone and give every process its result.

        Args:
            doing: what that is, for messages.
        """
        self.at(doing)
        result = [work() if self.is_main else None]
        if self.world_size > 1:
            with self.meeting():
                dist.broadcast_object_list(result, src=0)
        return cast(T, result[0])

    def require_same(self, things: Mapping[str, Any], advice: str) -> None:
        """Check that all processes have the same.

        Args:
            things: by what messages call them, which may differ, as folders do; their order may not.
            advice: what to do where they differ.

        Raises:
            InputError: naming the first that differs, and whose.
        """
        everyones = self.collect(list(things.values()))
        for index, name in enumerate(things):
            for rank, theirs in enumerate(everyones):
                first, other = _short(everyones[0][index]), _short(theirs[index])
                if first != other:
                    raise InputError(f"{name}: is {first} for rank 0 and {other} for rank {rank}. {advice}")

    def require_same_files(self, paths: Iterable[Path]) -> None:
        """Check that all processes see the same files, or the same ones missing.

        Raises:
            InputError: naming the first that differs, and for whom.
        """
        if self.world_size > 1:  # large weights are read for it
            things = {str(path): fingerprint(path) for path in paths}
            self.require_same(things, "All machines have to see the same file.")


def _row_major(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that is contiguous, with the strides that say so in the plainest way."""
    return tensor.flatten().view(tensor.shape)


def _short(value: Any) -> str:
    return "not there" if value is None else str(value)


class _Bar(tqdm):  # type: ignore[type-arg]
    """A progress bar that tells the watch of each item."""

    def __init__(self, moved: Callable[[], None] | None, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.moved = moved

    def __iter__(self) -> Iterator[Any]:
        for item in super().__iter__():
            if self.moved is not None:
                self.moved()
            yield item

    def update(self, n: float | None = 1) -> bool | None:
        if self.moved is not None:
            self.moved()
        return super().update(n)

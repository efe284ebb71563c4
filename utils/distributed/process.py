"""One process of a program; every method also works in a single process."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from networks.layers.sync_batch_norm import synchronise
from utils.distributed.rendezvous import RankInfo
from utils.distributed.watchdog import Watchdog
from utils.system.errors import InputError, Spell, Stopped
from utils.system.files import content_hash
from utils.system.signals import StopRequest
from utils.system.text import few_names

T = TypeVar("T")


@dataclass(frozen=True)
class Process:
    """One of the processes of a program.

    Methods that speak of all processes are collectives: all processes must call them, in the same order.

    Attributes:
        device: where its network is.
        rank_info: its number among all processes, and among those of its machine.
        stop: whether a signal has asked it to end.
        watchdog: ends the run if others hang or are lost; None in a single process.
        spell: how the program spells the settings that a message names in backquotes.
    """

    device: torch.device
    rank_info: RankInfo = field(default_factory=RankInfo)
    stop: StopRequest = field(default_factory=StopRequest, compare=False)
    watchdog: Watchdog | None = field(default=None, compare=False)
    spell: Spell = field(default=str, compare=False)

    @property
    def rank(self) -> int:
        """Number among the processes of all machines, from 0."""
        return self.rank_info.rank

    @property
    def world_size(self) -> int:
        """Number of processes on all machines."""
        return self.rank_info.world_size

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which alone prints and writes files."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """Print ``text`` in the main process."""
        if self.is_main:
            print(self.spell(text), flush=True)

    def write(self, text: str) -> None:
        """Print ``text`` above a progress bar, in every process that calls this."""
        tqdm.write(self.spell(text))

    def note_progress(self, activity: str) -> None:
        """Note what the program does from here, for the message that others print if they wait in vain."""
        if self.watchdog is not None:
            self.watchdog.note_progress(activity)

    def collective(self) -> AbstractContextManager[None]:
        """Put this around a call that waits for all processes, unless it is a method of this class.

        Raises:
            LostError: if the connection to one of them breaks.
        """
        return nullcontext() if self.watchdog is None else self.watchdog.collective()

    def bar(self, items: Iterable[T], desc: str, total: int | None = None) -> "tqdm[T]":
        """A progress bar over ``items``, shown by the main process and only on a terminal."""
        self.note_progress(desc)
        on_item = self.watchdog.note_progress if self.watchdog is not None else lambda: None
        return _ProgressBar(on_item, items, desc=desc, total=total, leave=False, disable=None if self.is_main else True)

    def place(self, network: nn.Module) -> nn.Module:
        """Move a network to this process's device, in the memory format that is fastest for 3D convolutions."""
        network = network.to(self.device)
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.ndim == 5:  # torch's own conversion of a network would also try those of 2D layers, and fail
                tensor.data = tensor.data.to(memory_format=torch.channels_last_3d)
        return network

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network for training: gradients are averaged, and batch norm computed, over all processes."""
        if self.world_size == 1:
            return network
        synchronise(network)
        for parameter in network.parameters():
            if parameter.requires_grad and parameter.is_contiguous():
                # a parameter with one channel or one voxel is in both memory formats, and its gradient may have the
                # strides of either; DDP is fast only if they are those of the parameter
                parameter.data = _row_major(parameter.data)
                parameter.register_hook(_row_major)
        ids = [self.device.index] if self.device.type == "cuda" else None
        with self.collective():
            return _DataParallel(network, device_ids=ids, gradient_as_bucket_view=True)

    def no_sync(self, wrapped: nn.Module) -> AbstractContextManager[None]:
        """Add up gradients in a backward pass of :meth:`wrap`'s network without averaging them over the processes."""
        return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) else nullcontext()

    def shard(self, items: list[T]) -> list[T]:
        """This process's part of ``items``: every ``world_size``-th, none twice and none left out."""
        return items[self.rank :: self.world_size]

    def gather_shards(self, items: list[Any]) -> list[Any]:
        """The items of all processes, in the order from which :meth:`shard` took them."""
        parts = self.all_gather(items)
        longest = max(map(len, parts))
        return [part[index] for index in range(longest) for part in parts if index < len(part)]

    def all_gather(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        with self.collective():
            dist.all_gather_object(values, value)
        return values

    def all_reduce_mean(self, values: Sequence[float]) -> list[float]:
        """The mean of each number over all processes."""
        return (self._all_reduce(values, torch.float64, dist.ReduceOp.SUM) / self.world_size).tolist()

    def all_reduce_max(self, *values: int) -> list[int]:
        """The maximum of each number over all processes."""
        return self._all_reduce(values, torch.int64, dist.ReduceOp.MAX).tolist()

    def _all_reduce(self, values: Sequence[float], dtype: torch.dtype, operation: Any) -> torch.Tensor:
        if self.world_size == 1:
            return torch.tensor(values, dtype=dtype)  # on a GPU the caller would have to synchronise
        tensor = torch.tensor(values, dtype=dtype, device=self.device)
        with self.collective():
            dist.all_reduce(tensor, operation)
        return tensor

    def stop_together_if_requested(self) -> None:
        """Stop all processes if a signal has asked one of them to end.

        Raises:
            Stopped: in all processes.
        """
        self.stop.raise_if_requested(*self.all_reduce_max(self.stop.number))

    @contextmanager
    def stop_before_forward(self, network: nn.Module) -> Iterator[None]:
        """After a signal, leave the block before the network's next forward pass, and stop all processes at its end.

        Raises:
            Stopped: in all processes, if one of them has left the block.
        """
        stopped_by = 0
        try:
            with self.stop.stop_before_forward(network):
                yield
        except Stopped as stopped:
            stopped_by = stopped.number
        self.stop.raise_if_requested(*self.all_reduce_max(stopped_by))

    def barrier(self) -> None:
        """Wait for all processes."""
        self.all_reduce_max(0)

    def on_main_then_broadcast(self, activity: str, work: Callable[[], T]) -> T:
        """Call ``work`` in the main process, and return its result in all processes.

        Args:
            activity: what it does, for messages.
        """
        self.note_progress(activity)
        result = [work() if self.is_main else None]
        if self.world_size > 1:
            with self.collective():
                dist.broadcast_object_list(result, src=0)
        return cast(T, result[0])

    def require_same(self, values: Mapping[str, Any], advice: str) -> None:
        """Check that all processes have the same values.

        Args:
            values: by their name in messages. Names may differ between processes, as folders do, but not their order.
            advice: what to do if they differ.

        Raises:
            InputError: with the first value that differs, and the rank that has it.
        """
        by_rank = self.all_gather(list(values.values()))
        for index, name in enumerate(values):
            for rank, theirs in enumerate(by_rank):
                first, other = _text(by_rank[0][index]), _text(theirs[index])
                if first != other:
                    raise InputError(f"{name}: is {first} for rank 0 and {other} for rank {rank}. {advice}")

    def require_same_files(self, paths: Iterable[Path]) -> None:
        """Check that all processes see the same files; a file may also be missing for all.

        Raises:
            InputError: with the first file that differs, and the rank that has another.
        """
        if self.world_size > 1:  # hashing large weights takes a while
            hashes = {str(path): content_hash(path) for path in paths}
            self.require_same(hashes, "All machines have to see the same file.")


def _row_major(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous tensor with the strides of ``torch.contiguous_format``."""
    return tensor.flatten().view(tensor.shape)


def _text(value: Any) -> str:
    return "not there" if value is None else str(value)


class _DataParallel(DistributedDataParallel):
    """DDP that names the parameters that a loss doesn't depend on."""

    def forward(self, *inputs: Any, **options: Any) -> Any:
        try:
            return super().forward(*inputs, **options)
        except RuntimeError as error:
            if "Expected to have finished reduction" not in str(error):
                raise
            trained = [name for name, parameter in self.module.named_parameters() if parameter.requires_grad]
            numbers = re.search(r"for rank \d+: ([\d ]+)", str(error))
            unused = [trained[int(number)] for number in numbers[1].split()] if numbers else ["some parameters"]
            raise InputError(
                f"{type(self.module).__name__}: its loss doesn't depend on {few_names(unused)}, "
                "and several processes can't train such a network. Remove them, freeze them by requires_grad_(False), "
                "or train in one process."
            ) from error


class _ProgressBar(tqdm):  # type: ignore[type-arg]
    """A progress bar that also calls ``on_item`` for each item."""

    def __init__(self, on_item: Callable[[], None], *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.on_item = on_item

    def __iter__(self) -> Iterator[Any]:
        for item in super().__iter__():
            self.on_item()
            yield item

    def update(self, n: float | None = 1) -> bool | None:
        self.on_item()
        return super().update(n)

"""Processes and devices. Every question has a sensible answer where there is one process alone."""

import argparse
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from utils.errors import InputError, one_line_errors
from utils.stop_request import StopRequest, forwarded_to

T = TypeVar("T")


@dataclass(frozen=True)
class Process:
    """One of the processes that work together.

    Attributes:
        device: where its network lives.
        rank: its number among all processes of all machines.
        world_size: how many there are.
        stop: whether a signal asks it to end.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1
    stop: StopRequest = field(default_factory=StopRequest, compare=False)

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that prints and writes."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """Print ``text`` once, however many processes there are."""
        if self.is_main:
            print(text, flush=True)

    def bar(self, items: Iterable[T], desc: str, total: int | None = None) -> "tqdm[T]":
        """``items`` with a progress bar, shown once and only on a terminal."""
        return tqdm(items, desc=desc, total=total, leave=False, disable=None if self.is_main else True)

    def place(self, network: nn.Module) -> nn.Module:
        """The network on this process's device, in the memory format in which 3D convolutions run fastest."""
        return network.to(self.device).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network as it is to be trained: its gradients averaged over the processes."""
        if self.world_size == 1:
            return network
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids=ids)

    def share(self, items: list[T]) -> list[T]:
        """This process's part of ``items``: every ``world_size``-th, none twice and none left out."""
        return items[self.rank :: self.world_size]

    def gather(self, items: list[Any]) -> list[Any]:
        """The items of all processes, in the order that :meth:`share` dealt them."""
        if self.world_size == 1:
            return items
        parts: list[Any] = [None] * self.world_size
        dist.all_gather_object(parts, items)
        longest = max(len(part) for part in parts)
        return [part[place] for place in range(longest) for part in parts if place < len(part)]

    def means(self, values: Sequence[float]) -> list[float]:
        """The means of some numbers over all processes."""
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return (total / self.world_size).tolist()

    def end_if_asked(self) -> None:
        """End all processes together where one of them was asked to.

        Raises:
            Stopped: if so.
        """
        number = torch.tensor(self.stop.number, device=self.device)
        if self.world_size > 1:
            dist.all_reduce(number, dist.ReduceOp.MAX)
        self.stop.raise_if_asked(int(number))

    def ending_within(self, network: nn.Module) -> AbstractContextManager[None]:
        """Let a process that is alone end before a forward pass; several end together, where they meet next."""
        return self.stop.ending_before_each_forward(network) if self.world_size == 1 else nullcontext()

    def wait_for_all(self) -> None:
        """Return when every process has come here."""
        if self.world_size > 1:
            dist.barrier()

    def main_first(self, work: Callable[[], T]) -> T:
        """Do ``work`` in the main process alone and give every process its result."""
        result = [work() if self.is_main else None]
        if self.world_size > 1:
            dist.broadcast_object_list(result, src=0)
        return cast(T, result[0])


def choose_device(name: str | None, local_rank: int = 0) -> torch.device:
    """The device that ``--device`` names, or CUDA where there is one, else the CPU.

    Raises:
        InputError: if the device isn't there.
    """
    if name is None:
        return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name}: not a device of this program. Give cpu, cuda or cuda:N.")
    if device.type == "cpu":
        return torch.device("cpu")
    index = local_rank if device.index is None else device.index
    if index >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise InputError(f"--device {name}: CUDA devices on this machine: {count}. Give --device cpu, or leave it out.")
    return torch.device("cuda", index)


def launch(work: Callable[[Process, argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Run ``work`` in this process; with ``--distributed`` as torchrun says, else once on each GPU of this machine."""
    gpus = 0 if args.device == "cpu" else torch.cuda.device_count()
    if args.distributed and "RANK" not in os.environ and max(gpus, 1) * args.world_size > 1:
        group = torch.multiprocessing.spawn(_spawned, (work, args, max(gpus, 1)), nprocs=max(gpus, 1), join=False)
        try:
            with forwarded_to(group.pids()):
                while not group.join():
                    pass
        except torch.multiprocessing.ProcessExitedException as error:
            raise SystemExit(error.exit_code) from None  # the process itself has said why
        return
    if not args.distributed and "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            f"--distributed: wasn't given, though this is one of {os.environ['WORLD_SIZE']} processes that torchrun "
            "started, which would all do the same. Give it."
        )
    if not (args.distributed and "RANK" in os.environ):
        stop = StopRequest()
        with stop.listening():
            work(Process(choose_device(args.device), stop=stop), args)
        return
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    _work_in_group(work, args, local_rank, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), "env://")


def _spawned(
    local_rank: int, work: Callable[[Process, argparse.Namespace], None], args: argparse.Namespace, local_size: int
) -> None:
    with one_line_errors():
        rank = args.rank * local_size + local_rank
        _work_in_group(work, args, local_rank, rank, args.world_size * local_size, args.dist_url)


def _work_in_group(
    work: Callable[[Process, argparse.Namespace], None],
    args: argparse.Namespace,
    local_rank: int,
    rank: int,
    world_size: int,
    url: str,
) -> None:
    device = choose_device(args.device, local_rank)
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = args.dist_backend
    dist.init_process_group(backend, init_method=url, rank=rank, world_size=world_size)
    stop = StopRequest()
    try:
        with stop.listening():
            work(Process(device, rank, world_size, stop), args)
    finally:
        dist.destroy_process_group()

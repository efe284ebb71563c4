"""From a command line to processes: alone, by torchrun, or one for each GPU of this machine."""

import argparse
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.multiprocessing import ProcessExitedException

from utils.distributed.process import Process
from utils.distributed.rendezvous import Address, Seat, connect, meet, serve
from utils.distributed.watchdog import Watch, answer
from utils.system.allocator import keep_freed_memory
from utils.system.errors import InputError, ToldError, one_line_errors
from utils.system.signals import StopRequest, forwarded_to

Work = Callable[[Process, argparse.Namespace], None]

NEVER = timedelta(days=365)  # the watch ends waits, and knows more of them than torch's own timeout does
GRACE_SECONDS = 20.0  # for the other processes to end by themselves when one has
SETTLE_SECONDS = 0.2  # for gloo's threads to come to rest
STORE_SECONDS = 5.0  # for the store to outlive the process that keeps it, so that others hear what ended it


def launch(work: Work, args: argparse.Namespace) -> None:
    """Run ``work`` in this process; with ``--distributed`` as torchrun says, else once on each GPU of this machine.

    Raises:
        InputError: if the flags don't fit this machine, or the way in which the program was started.
    """
    keep_freed_memory()
    torchrun = "RANK" in os.environ
    if torchrun and not args.distributed and os.environ.get("WORLD_SIZE", "1") != "1":
        if os.environ.get("LOCAL_RANK", "0") != "0":
            raise ToldError
        raise InputError(
            f"--distributed: wasn't given, though this is one of {os.environ['WORLD_SIZE']} processes that torchrun "
            "started, which would all do the same. Give it."
        )
    if not args.distributed:
        stop = StopRequest()
        with stop.listening():
            work(Process(_enter(choose_device(args.device)), stop=stop), args)
    elif torchrun:
        seat, address = _seat_from_environment()
        if seat.local_size > 1:
            _refuse_one_gpu(args.device)
        # torchrun keeps the store itself; other starters leave that to rank 0
        keeps_store = seat.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        with _serving(address, seat) if keeps_store else nullcontext():
            _work_in_group(work, args, seat, address)
    else:
        _start_processes(work, args)


def choose_device(name: str | None, local_rank: int = 0) -> torch.device:
    """The device that ``--device`` names, or CUDA where there is one, else the CPU.

    Raises:
        InputError: if the device isn't there.
    """
    if name is None and not torch.cuda.is_available():
        return torch.device("cpu")
    try:
        device = torch.device(name or "cuda")
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name}: not a device of this program. Give cpu, cuda or cuda:N.")
    if device.type == "cpu":
        return torch.device("cpu")
    index = local_rank if device.index is None else device.index
    count = torch.cuda.device_count()
    if index >= count and local_rank > 0:
        raise InputError(
            f"process {local_rank + 1} of this machine finds no GPU for itself; CUDA devices here: {count}. Start as "
            f"many processes (--nproc_per_node={count}), or give --device cpu."
        )
    if index >= count:
        raise InputError(f"--device {name}: CUDA devices on this machine: {count}. Give --device cpu, or leave it out.")
    return torch.device("cuda", index)


def _enter(device: torch.device) -> torch.device:
    """Let what names no GPU, such as the recording of a step, be done on this one."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def _seat_from_environment() -> tuple[Seat, Address]:
    """What torchrun told this process by environment variables, or a cluster's script in its place.

    Raises:
        InputError: if something is missing or no number.
    """
    given = os.environ
    try:
        seat = Seat(
            int(given["RANK"]), int(given["WORLD_SIZE"]),
            int(given.get("LOCAL_RANK", "0")), int(given.get("LOCAL_WORLD_SIZE", "1")),
        )  # fmt: skip
        address = Address(given["MASTER_ADDR"], int(given["MASTER_PORT"]))
    except (KeyError, ValueError) as error:
        raise InputError(
            f"the environment variable RANK is set, but one of WORLD_SIZE, MASTER_ADDR and MASTER_PORT is missing or "
            f"no number ({error}). Start the program with torchrun, or unset RANK."
        ) from None
    if not 0 <= seat.rank < seat.world_size:
        raise InputError(f"the environment says RANK {seat.rank} of WORLD_SIZE {seat.world_size}; ranks count from 0.")
    return seat, address


def _refuse_one_gpu(device: str | None) -> None:
    if device is not None and ":" in device:
        raise InputError(f"--device {device}: with --distributed each process has a GPU of its own. Leave it out.")


def _start_processes(work: Work, args: argparse.Namespace) -> None:
    """Start a process for each GPU of this machine, or one where it is to train on its CPU beside other machines."""
    on_cpu = args.device == "cpu"
    count = 1 if on_cpu else torch.cuda.device_count()
    if count == 0 or (on_cpu and args.world_size == 1):
        raise InputError(
            f"--distributed: starts a process for each GPU, and {'--device cpu has none' if on_cpu else 'none is here'}"
            ". Leave it out to train in one process, or let torchrun start several on the CPU, which talk over gloo: "
            "torchrun --nproc_per_node=2 main.py --distributed --device cpu …"
        )
    _refuse_one_gpu(args.device)
    address = Address.of(args.dist_url)
    store = serve(address) if args.rank == 0 else None
    group = torch.multiprocessing.spawn(_work_as_spawned, (work, args, count, address), nprocs=count, join=False)
    try:
        with forwarded_to(group.pids()):
            while not group.join(grace_period=GRACE_SECONDS):
                pass
    except ProcessExitedException as error:
        if error.exit_code >= 0:
            raise SystemExit(error.exit_code) from None  # the process itself has said why
        number = signal.Signals(-error.exit_code)
        memory = " (is the machine out of memory?)" if number == signal.SIGKILL else ""
        rank = args.rank * count + error.error_index
        with one_line_errors():
            raise InputError(f"rank {rank} was killed by {number.name}{memory}. What was saved is kept.") from None
    finally:
        del store


def _work_as_spawned(local_rank: int, work: Work, args: argparse.Namespace, count: int, address: Address) -> None:
    keep_freed_memory()
    seat = Seat(args.rank * count + local_rank, args.world_size * count, local_rank, count)
    with one_line_errors():
        _work_in_group(work, args, seat, address)


def _work_in_group(work: Work, args: argparse.Namespace, seat: Seat, address: Address) -> None:
    """Do ``work`` as one of several processes, which end together."""
    stop = StopRequest()
    with stop.listening():
        with _noting(seat):
            store, watched = (connect(address, args.dist_timeout) for _ in range(2))
            name = meet(store, seat, args.dist_timeout)
        watch = Watch(dist.PrefixStore(name, watched), seat, args.dist_timeout)
        try:
            with watch.telling():
                device = _enter(choose_device(args.device, seat.local_rank))
                _join_group(dist.PrefixStore(name, store), seat, device, args.dist_backend, watch)
                work(Process(device, seat, stop, watch), args)
                _leave_group()
        finally:
            with stop.deferred():  # torchrun sends a signal to all when one has failed, and what failed is to be told
                watch.close()
                if dist.is_initialized() and dist.get_backend() == "gloo":  # nccl would wait for the others
                    _leave_group()  # tells them that this process is gone
                answer(lambda: store.add("gone", 1))


@contextmanager
def _serving(address: Address, seat: Seat) -> Iterator[None]:
    """Keep the store until all processes are gone, or should be."""
    server = serve(address)
    try:
        yield
    finally:
        end = time.monotonic() + STORE_SECONDS
        while server.add("gone", 0) < seat.world_size and time.monotonic() < end:
            time.sleep(0.05)


@contextmanager
def _noting(seat: Seat) -> Iterator[None]:
    """Add its rank to what a process says of a mistake."""
    try:
        yield
    except InputError as error:
        error.add_note(str(seat))
        raise
    except dist.DistError as error:
        raise InputError(f"{seat}: rank 0 ended before all processes had started. It says why.") from error


def _join_group(store: dist.Store, seat: Seat, device: torch.device, backend: str, watch: Watch) -> None:
    if device.type == "cpu":
        backend = "gloo"  # what --dist-backend names is for GPUs
    watch.at("the first connection (GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the network that is to be used)")
    with watch.meeting():
        dist.init_process_group(
            backend, store=store, rank=seat.rank, world_size=seat.world_size, timeout=NEVER,
            device_id=device if backend == "nccl" else None,
        )  # fmt: skip


def _leave_group() -> None:
    # gloo's threads may still be letting go of the last tensors, for which they need the interpreter's lock, and torch
    # before pytorch/pytorch#154976 waits for these threads while it holds that: 2.6 was seen to hang here
    time.sleep(SETTLE_SECONDS)
    dist.destroy_process_group()

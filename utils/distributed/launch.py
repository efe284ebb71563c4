"""Start the processes of a program: a single one, those of torchrun, or one for each GPU of this machine."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.multiprocessing import ProcessExitedException

from utils.distributed.process import Process
from utils.distributed.rendezvous import Address, RankInfo, connect, join_round, start_store
from utils.distributed.watchdog import Watchdog, ask_store
from utils.system.allocator import tune_malloc
from utils.system.errors import InputError, ReportedElsewhereError, Spell, one_line_errors
from utils.system.signals import StopRequest, forwarded_to

Work = Callable[[Process], None]

NEVER = timedelta(days=365)  # the watchdog ends waits, with a better message than torch's own timeout
GRACE_SECONDS = 20.0  # for the other processes to end by themselves when one has ended
SETTLE_SECONDS = 0.2  # for gloo's threads to finish
STORE_SECONDS = 5.0  # for the store to outlive the work of its process, so that the others learn why that ended


@dataclass(frozen=True)
class LaunchSettings:
    """How many processes a program has, where they run and how they communicate.

    Attributes:
        device: ``cpu``, ``cuda`` or ``cuda:N``; None for CUDA if there is a GPU, else the CPU.
        distributed: whether there may be several processes.
        world_size, rank: number of machines, and the number of this one.
        dist_url: tcp://HOST:PORT of machine 0.
        dist_backend: ``nccl`` or ``gloo``, for processes on GPUs.
        dist_timeout: seconds for which processes wait for one that makes no progress.
    """

    device: str | None = None
    distributed: bool = False
    world_size: int = 1
    rank: int = 0
    dist_url: str = "tcp://127.0.0.1:23456"
    dist_backend: str = "nccl"
    dist_timeout: float = 1800.0


def launch(work: Work, settings: LaunchSettings, spell: Spell = str) -> None:
    """Run ``work`` in this process, or with ``distributed`` in several.

    Under torchrun this is one of its processes; without it, one process starts for each GPU of this machine.

    Args:
        work: with ``distributed`` it must be picklable.
        spell: how the program spells the settings that a message names in backquotes; picklable as well.

    Raises:
        InputError: if the settings don't fit this machine, or the way in which the program was started.
    """
    tune_malloc()
    torchrun = "RANK" in os.environ
    if torchrun and not settings.distributed and os.environ.get("WORLD_SIZE", "1") != "1":
        if os.environ.get("LOCAL_RANK", "0") != "0":
            raise ReportedElsewhereError
        raise InputError(
            f"`distributed`: is off, though this is one of {os.environ['WORLD_SIZE']} processes that torchrun started, "
            "which would all do the same. Give it."
        )
    if not settings.distributed:
        stop = StopRequest()
        with stop.listening():
            work(Process(_select_gpu(choose_device(settings.device)), stop=stop, spell=spell))
    elif torchrun:
        rank_info, address = _rank_info_from_environment()
        if rank_info.local_size > 1:
            _refuse_gpu_number(settings.device)
        # torchrun hosts the store itself; other launchers leave that to rank 0
        hosts_store = rank_info.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        with _hosted_store(address, rank_info) if hosts_store else nullcontext():
            _run_in_group(work, settings, rank_info, address, spell)
    else:
        _spawn_processes(work, settings, spell)


def choose_device(name: str | None, local_rank: int = 0) -> torch.device:
    """The device of a name; without one CUDA if there is a GPU, else the CPU.

    Args:
        local_rank: the GPU of ``cuda`` without a number.

    Raises:
        InputError: if there is no such device.
    """
    if name is None and not torch.cuda.is_available():
        return torch.device("cpu")
    try:
        device = torch.device(name or "cuda")
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"`device` {name}: not a device of this program. Give cpu, cuda or cuda:N.")
    if device.type == "cpu":
        return torch.device("cpu")
    index = local_rank if device.index is None else device.index
    count = torch.cuda.device_count()
    if index >= count and local_rank > 0:
        raise InputError(
            f"process {local_rank + 1} of this machine has no GPU left; CUDA devices here: {count}. Start as many "
            f"processes (torchrun --nproc_per_node={count} …), or give `device` cpu."
        )
    if index >= count:
        raise InputError(f"`device` {name}: CUDA devices on this machine: {count}. Give `device` cpu, or leave it out.")
    return torch.device("cuda", index)


def _select_gpu(device: torch.device) -> torch.device:
    """Make a GPU the default of calls that name none, such as the recording of a CUDA graph."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def _rank_info_from_environment() -> tuple[RankInfo, Address]:
    """Rank and address of the store from the environment variables of torchrun or of a cluster's script.

    Raises:
        InputError: if a variable is missing or isn't a number.
    """
    given = os.environ
    try:
        rank_info = RankInfo(
            int(given["RANK"]), int(given["WORLD_SIZE"]),
            int(given.get("LOCAL_RANK", "0")), int(given.get("LOCAL_WORLD_SIZE", "1")),
        )  # fmt: skip
        address = Address(given["MASTER_ADDR"], int(given["MASTER_PORT"]))
    except (KeyError, ValueError) as error:
        raise InputError(
            f"the environment variable RANK is set, but one of WORLD_SIZE, MASTER_ADDR and MASTER_PORT is missing or "
            f"no number ({error}). Start the program with torchrun, or unset RANK."
        ) from None
    if not 0 <= rank_info.rank < rank_info.world_size:
        raise InputError(
            f"the environment says RANK {rank_info.rank} of WORLD_SIZE {rank_info.world_size}; ranks count from 0."
        )
    return rank_info, address


def _refuse_gpu_number(device: str | None) -> None:
    if device is not None and ":" in device:
        raise InputError(f"`device` {device}: with `distributed` each process has a GPU of its own. Leave it out.")


def _spawn_processes(work: Work, settings: LaunchSettings, spell: Spell) -> None:
    """Start a process for each GPU of this machine, or a single one if several machines compute on their CPUs."""
    on_cpu = settings.device == "cpu"
    count = 1 if on_cpu else torch.cuda.device_count()
    if count == 0 or (on_cpu and settings.world_size == 1):
        raise InputError(
            f"`distributed`: starts a process for each GPU, and {'`device` cpu has none' if on_cpu else 'none is here'}"
            ". Leave it out to train in one process, or start several on the CPU, which communicate over gloo: "
            "torchrun --nproc_per_node=2 main.py --distributed --device cpu …"
        )
    _refuse_gpu_number(settings.device)
    address = Address.from_url(settings.dist_url)
    store = start_store(address) if settings.rank == 0 else None
    arguments = (work, settings, count, address, spell)
    group = torch.multiprocessing.spawn(_run_spawned, arguments, nprocs=count, join=False)
    try:
        with forwarded_to(group.pids()):
            while not group.join(grace_period=GRACE_SECONDS):
                pass
    except ProcessExitedException as error:
        if error.exit_code >= 0:
            raise SystemExit(error.exit_code) from None  # the process itself has reported why
        number = signal.Signals(-error.exit_code)
        memory = " (is the machine out of memory?)" if number == signal.SIGKILL else ""
        rank = settings.rank * count + error.error_index
        with one_line_errors(spell):
            raise InputError(f"rank {rank} was killed by {number.name}{memory}. What was saved is kept.") from None
    finally:
        del store


def _run_spawned(
    local_rank: int, work: Work, settings: LaunchSettings, count: int, address: Address, spell: Spell
) -> None:
    tune_malloc()
    rank_info = RankInfo(settings.rank * count + local_rank, settings.world_size * count, local_rank, count)
    with one_line_errors(spell):
        _run_in_group(work, settings, rank_info, address, spell)


def _run_in_group(work: Work, settings: LaunchSettings, rank_info: RankInfo, address: Address, spell: Spell) -> None:
    """Run ``work`` as one of several processes, which end together."""
    stop = StopRequest()
    with stop.listening():
        with _rank_in_errors(rank_info):
            store, watchdog_store = (connect(address, settings.dist_timeout) for _ in range(2))
            prefix = join_round(store, rank_info, settings.dist_timeout)
        watchdog = Watchdog(dist.PrefixStore(prefix, watchdog_store), rank_info, settings.dist_timeout, spell)
        try:
            with watchdog.reported_once():
                device = _select_gpu(choose_device(settings.device, rank_info.local_rank))
                _join_group(dist.PrefixStore(prefix, store), rank_info, device, settings.dist_backend, watchdog)
                work(Process(device, rank_info, stop, watchdog, spell))
                _leave_group()
        finally:
            with stop.deferred():  # when a process fails torchrun sends a signal to all, also to the one that reports
                watchdog.close()
                if dist.is_initialized() and dist.get_backend() == "gloo":  # nccl would wait for the others
                    _leave_group()  # so that the others see at once that this process is gone
                ask_store(lambda: store.add("gone", 1))


@contextmanager
def _hosted_store(address: Address, rank_info: RankInfo) -> Iterator[None]:
    """Host the store until all processes are gone, at most :data:`STORE_SECONDS` longer than the ``with`` block."""
    server = start_store(address)
    try:
        yield
    finally:
        end = time.monotonic() + STORE_SECONDS
        while server.add("gone", 0) < rank_info.world_size and time.monotonic() < end:
            time.sleep(0.05)


@contextmanager
def _rank_in_errors(rank_info: RankInfo) -> Iterator[None]:
    """Add the rank to errors."""
    try:
        yield
    except InputError as error:
        error.add_note(str(rank_info))
        raise
    except dist.DistError as error:
        raise InputError(f"{rank_info}: rank 0 ended before all processes had started, and reports why.") from error


def _join_group(store: dist.Store, rank_info: RankInfo, device: torch.device, backend: str, watchdog: Watchdog) -> None:
    if device.type == "cpu":
        backend = "gloo"  # dist_backend is for GPUs
    watchdog.note_progress(
        "the first connection (GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the network that is to be used)"
    )
    with watchdog.collective():
        dist.init_process_group(
            backend, store=store, rank=rank_info.rank, world_size=rank_info.world_size, timeout=NEVER,
            device_id=device if backend == "nccl" else None,
        )  # fmt: skip


def _leave_group() -> None:
    # gloo's threads may still be freeing tensors, for which they need the interpreter's lock. Before
    # pytorch/pytorch#154976 torch holds that lock while it waits for these threads; torch 2.6 was seen to hang here
    time.sleep(SETTLE_SECONDS)
    dist.destroy_process_group()

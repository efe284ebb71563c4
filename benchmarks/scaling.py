"""Measure how training scales with the number of processes: ``python -m benchmarks.scaling``.

The reference network takes steps on noise of 96³: in one process for each GPU, or on a CPU in one or two processes with
one thread each. Steps that exchange gradients alternate with steps that don't. The difference is the cost of
communication.
"""

import argparse
import os
import statistics
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass

import torch
import torch.distributed as dist
from torch.multiprocessing import spawn

from benchmarks.reference import random_batch, reference_learner
from networks.precision import choose_precision
from networks.unetr import UNETRConfig
from utils.config.parser import Parser, count
from utils.distributed.launch import choose_device
from utils.distributed.process import Process
from utils.distributed.rendezvous import RankInfo
from utils.system.allocator import tune_malloc
from utils.system.errors import one_line_errors
from utils.system.hardware import processor

WARM_UP = 2  # steps; DDP orders its buckets in the second


@dataclass(frozen=True)
class Times:
    """Medians over steps, in seconds.

    Attributes:
        step: a training step.
        silent: a training step without the exchange of gradients.
        exchange: the exchange of all gradients in one piece, by itself.
        gradients: the size of the gradients in bytes.
    """

    step: float
    silent: float
    exchange: float
    gradients: int


def measure(device: str | None, processes: int, steps: int) -> Times:
    """Train in this number of processes."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_train, (processes, device, steps, folder), nprocs=processes)
        return Times(**torch.load(f"{folder}/times.pt", weights_only=True))


def _train(rank: int, processes: int, name: str | None, steps: int, folder: str) -> None:
    tune_malloc()
    device = choose_device(name, rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    backend = "gloo" if device.type == "cpu" else "nccl"
    dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=rank, world_size=processes)
    process = Process(device, RankInfo(rank, processes, rank, processes))
    learner = reference_learner(process)
    image, label = random_batch(1, device)
    gradients = torch.zeros(sum(parameter.numel() for parameter in learner.network.parameters()), device=device)

    def step(exchange: AbstractContextManager[None]) -> float:
        process.barrier()
        start = time.perf_counter()
        with exchange:
            learner.add_gradients(learner.loss(image, label), 1)
        learner.update()
        process.barrier()
        return time.perf_counter() - start

    def exchange_alone() -> float:
        process.barrier()
        start = time.perf_counter()
        dist.all_reduce(gradients)
        process.barrier()
        return time.perf_counter() - start

    for _ in range(WARM_UP):
        step(nullcontext())
    rows = [(step(nullcontext()), step(process.no_sync(learner.wrapped)), exchange_alone()) for _ in range(steps)]
    if process.is_main:
        with_exchange, silent, alone = (statistics.median(column) for column in zip(*rows, strict=True))
        size = gradients.numel() * gradients.element_size()
        torch.save(asdict(Times(with_exchange, silent, alone, size)), f"{folder}/times.pt")
    process.barrier()
    dist.destroy_process_group()


def machine(device: torch.device) -> str:
    """The hardware that the processes use, in words."""
    if device.type == "cuda":
        return f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}"
    return f"{os.cpu_count()} cores of {processor()}, one thread for each process"


def main(args: argparse.Namespace) -> None:
    """Print a row for each number of processes."""
    device = choose_device(args.device)
    most = torch.cuda.device_count() if device.type == "cuda" else 2
    numbers = args.processes or sorted({*(2**power for power in range(10) if 2**power <= most), most})
    print(f"{machine(device)}; torch {torch.__version__}, {choose_precision(device, True, UNETRConfig())}")
    print("processes  crops/s  ratio  step s  without exchange s  communication  exchange alone s  GB/s")
    first: float | None = None
    for processes in numbers:
        times = measure(args.device, processes, args.steps)
        rate = processes / times.step
        first = rate if first is None else first
        share = max(0.0, 1 - times.silent / times.step) if processes > 1 else 0.0
        # a ring all-reduce sends each gradient twice, apart from one process's part of them
        sent = 2 * (processes - 1) / processes * times.gradients
        print(
            f"{processes:>9}  {rate:>7.3f}  {rate / first:>5.2f}  {times.step:>6.3f}  {times.silent:>18.3f}  "
            f"{share:>13.1%}  {times.exchange if sent else 0:>16.3f}  {sent / times.exchange / 1e9:>4.1f}"
        )


if __name__ == "__main__":
    parser = Parser(prog="python -m benchmarks.scaling", description="Train in more and more processes, and compare.")
    parser.add_argument("--device", help="cpu or cuda (default: cuda if there is one, else cpu)")
    parser.add_argument(
        "--processes", type=count, nargs="+", help="numbers of processes (default: 1, 2, 4, … all GPUs)"
    )
    parser.add_argument("--steps", type=count, default=7, help="timed steps of each kind")
    with one_line_errors():
        main(parser.parse_args())

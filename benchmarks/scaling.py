"""How much more a machine trains with more processes: ``python -m benchmarks.scaling``.

The reference network takes steps on random crops of 96³, in one process for each GPU, or on a CPU with one thread each.
Steps that exchange gradients alternate with steps that don't; the difference is what communication takes.
"""

import argparse
import os
import statistics
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch.multiprocessing import spawn

from networks import build_network
from networks.precision import choose_precision
from optimizers import build_optimizer, build_scheduler, parameter_groups
from trainer import Learner
from utils.config.flags import network_options, parse_train
from utils.config.parser import Parser, count
from utils.distributed.launch import choose_device
from utils.distributed.process import Process
from utils.distributed.rendezvous import Seat
from utils.system.allocator import keep_freed_memory
from utils.system.hardware import processor
from utils.training.losses import dice_ce

WARM_UP = 2  # steps; DDP orders its buckets in the second


@dataclass(frozen=True)
class Times:
    """Seconds, each the median over steps of the slowest process.

    Attributes:
        step: of a training step.
        silent: of one without exchange of gradients.
        exchange: of the exchange by itself, of all gradients in one piece.
        gradients: bytes that are exchanged in a step.
    """

    step: float
    silent: float
    exchange: float
    gradients: int


def measure(device: str | None, processes: int, steps: int) -> Times:
    """Train in so many processes."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_train, (processes, device, steps, folder), nprocs=processes)
        return Times(**torch.load(f"{folder}/times.pt", weights_only=True))


def _train(rank: int, processes: int, name: str | None, steps: int, folder: str) -> None:
    keep_freed_memory()
    device = choose_device(name, rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    backend = "gloo" if device.type == "cpu" else "nccl"
    dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=rank, world_size=processes)
    process = Process(device, Seat(rank, processes, rank, processes))
    learner = reference_learner(process)
    image = torch.rand((1, 1, 96, 96, 96), device=device)
    label = torch.randint(0, 14, (1, 1, 96, 96, 96), device=device)

    def seconds(exchanging: AbstractContextManager[None]) -> float:
        process.wait_for_all()
        start = time.perf_counter()
        with exchanging:
            learner.add_gradients(learner.loss(image, label), 1)
        learner.update()
        process.wait_for_all()
        return time.perf_counter() - start

    gradients = torch.zeros(sum(parameter.numel() for parameter in learner.network.parameters()), device=device)

    def exchange() -> float:
        process.wait_for_all()
        start = time.perf_counter()
        dist.all_reduce(gradients)
        process.wait_for_all()
        return time.perf_counter() - start

    for _ in range(WARM_UP):
        seconds(nullcontext())
    rows = [
        (seconds(nullcontext()), seconds(process.keeping_gradients(learner.wrapped)), exchange()) for _ in range(steps)
    ]
    if process.is_main:
        step, silent, alone = (statistics.median(column) for column in zip(*rows, strict=True))
        size = gradients.numel() * gradients.element_size()
        torch.save(asdict(Times(step, silent, alone, size)), f"{folder}/times.pt")
    process.wait_for_all()
    dist.destroy_process_group()


def reference_learner(process: Process) -> Learner:
    """The reference network, as ``main.py`` trains it where no flag is given."""
    args = parse_train([])
    options = network_options(vars(args))
    network = process.place(build_network(args.model_name, **options))
    precision = choose_precision(process.device, True, (args.roi_x, args.roi_y, args.roi_z), args.model_name)
    groups = parameter_groups(network, args.vit_lr, args.vit_reg_weight)
    optimizer = build_optimizer(args.optim_name, groups, args.optim_lr, args.reg_weight, args.momentum)
    return Learner(
        network, process.wrap(network), partial(dice_ce, smooth_nr=args.smooth_nr, smooth_dr=args.smooth_dr), optimizer,
        build_scheduler(args.lrschedule, optimizer, args.max_epochs, args.warmup_epochs, 1, steps_done=0),
        precision.scaler(), precision,
    )  # fmt: skip


def machine(device: torch.device) -> str:
    """What the processes run on, in words."""
    if device.type == "cuda":
        return f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}"
    return f"{os.cpu_count()} cores of {processor()}, one thread for each process"


def main(args: argparse.Namespace) -> None:
    """Print a row for each number of processes."""
    device = choose_device(args.device)
    most = torch.cuda.device_count() if device.type == "cuda" else 2
    numbers = args.processes or sorted({*(2**power for power in range(10) if 2**power <= most), most})
    print(f"{machine(device)}; torch {torch.__version__}, {choose_precision(device, True, (96, 96, 96))}")
    print("processes  crops/s  ratio  step s  without exchange s  communication  exchange alone s  GB/s")
    first: float | None = None
    for processes in numbers:
        times = measure(args.device, processes, args.steps)
        rate = processes / times.step
        first = rate if first is None else first
        share = max(0.0, 1 - times.silent / times.step) if processes > 1 else 0.0
        # a ring sends each gradient on twice, but for one process's part of it
        sent = 2 * (processes - 1) / processes * times.gradients
        print(
            f"{processes:>9}  {rate:>7.3f}  {rate / first:>5.2f}  {times.step:>6.3f}  {times.silent:>18.3f}  "
            f"{share:>13.1%}  {times.exchange if sent else 0:>16.3f}  {sent / times.exchange / 1e9:>4.1f}"
        )


if __name__ == "__main__":
    parser = Parser(prog="python -m benchmarks.scaling", description="Train in more and more processes, and compare.")
    parser.add_argument("--device", help="cpu or cuda (default: cuda if there is one, else cpu)")
    parser.add_argument("--processes", type=count, nargs="+", help="how many (default: 1, 2, 4, … as there are GPUs)")
    parser.add_argument("--steps", type=count, default=7, help="steps of each kind that are timed")
    main(parser.parse_args())

"""Time a training step and a forward pass, ours and the peer's in turns: ``python -m benchmarks.network``.

The peer is MONAI's UNETR in float32, trained as in its tutorials. Each measurement runs in a new process, because the
way in which a process asks the system for memory is part of the comparison. Weights are random, with 14 classes and one
crop of 96³, or ``--crops``. With ``--weights`` and ``--scan`` it also prints on what share of the voxels the masks of
both sides agree.
"""

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from benchmarks.arguments import existing_file
from benchmarks.emulation import bfloat16
from benchmarks.peer import peers_network, peers_step
from benchmarks.reference import ROI, random_batch, reference_description, reference_learner
from networks.layers import optimize_for_cpu
from networks.precision import Precision, choose_precision
from networks.unetr import UNETRConfig
from utils.checkpoints import load_network
from utils.config.parser import Parser, count
from utils.data.preprocessing import to_network_grid
from utils.distributed.launch import choose_device
from utils.distributed.process import Process
from utils.inference.engines import place_networks
from utils.io.reader import read_scan
from utils.io.scan import Scan
from utils.system.allocator import tune_malloc
from utils.system.errors import one_line_errors
from utils.training import cuda_graph
from utils.training.blocks import recompute_activations

RECOMPUTED = "recomputed step"  # with --activation_checkpointing
# of the reference network; a multiply-add counts as two operations
GFLOP = {"step": 3 * 146.4, RECOMPUTED: 4 * 146.4, "forward": 146.4}
FORMATS = ("bfloat16", "float32")
WARM_UP = 2  # runs before those that are timed

Run = Callable[[Tensor, Tensor], object]  # of a batch of images and labels


def our_step(device: torch.device, recomputed: bool, crops: int) -> Run:
    """A training step as ``trainer.py`` takes it."""
    process = Process(device)
    learner = reference_learner(process)
    if recomputed:
        recompute_activations(learner.network)
    elif cuda_graph.obstacle(learner.network, process, 1, compiled=False, recomputed=False) is None:
        recorded = cuda_graph.record(learner.network, (crops, 1, *ROI), learner.precision)
        learner = replace(learner, wrapped=recorded)

    def step(image: Tensor, label: Tensor) -> None:
        learner.add_gradients(learner.loss(image, label), 1)
        learner.update()

    return step


def our_forward(engine: str, precision: Precision) -> Run:
    """A forward pass as ``test.py --engine`` does it."""
    description = reference_description()
    members = [(description.build(), description)]
    (placed, _), *_ = place_networks(engine, members, precision.dtype != torch.float32, Process(precision.device))[0]
    return forward(placed, precision)


def forward(network: nn.Module, precision: Precision) -> Run:
    """A forward pass without gradients."""

    @torch.inference_mode()
    def run(image: Tensor, label: Tensor) -> Tensor:
        with precision.autocast():
            logits: Tensor = network(image)
        return logits

    network.eval()
    return run


def measure(who: str, work: str, dtype: str, device: torch.device, times: int, crops: int) -> dict[str, float]:
    """Measure in this process.

    Args:
        who: ``peer``, or one of the engines of ``test.py``.
        work: a key of :data:`GFLOP`.

    Returns:
        The median ``seconds`` of a run, the peak memory in ``gib``, and the ``gflops`` of a matrix product.
    """
    if who != "peer":
        tune_malloc()
    torch.manual_seed(0)
    precision = Precision(device, getattr(torch, dtype))
    if work != "forward":
        run = peers_step(device) if who == "peer" else our_step(device, work == RECOMPUTED, crops)
    else:
        run = forward(peers_network().to(device), precision) if who == "peer" else our_forward(who, precision)
    image, label = random_batch(crops, device)
    seconds = [seconds_of(lambda: run(image, label), device) for _ in range(WARM_UP + times)][WARM_UP:]
    on_gpu = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    matrix = torch.rand(2048, 2048, device=device).to(precision.dtype)
    product = statistics.median(seconds_of(lambda: matrix @ matrix, device) for _ in range(9))
    return {"seconds": statistics.median(seconds), "gib": peak / 2**30, "gflops": 2 * 2048**3 / product / 1e9}


def measure_in_new_process(
    who: str, work: str, dtype: str, *, device: torch.device, times: int, crops: int
) -> dict[str, float]:
    """:func:`measure` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.network", f"--times={times}", f"--device={device}"]
    command += [f"--crops={crops}", "--one", who, work, dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"error: {' '.join(command)} failed:\n{done.stderr}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """The wall-clock time of one run."""
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


@dataclass(frozen=True)
class Row:
    """One kind of work, as medians over rounds.

    Attributes:
        work: a key of :data:`GFLOP`.
        engine: the engine of ours, as ``test.py --engine`` names it.
        dtype: the number format of ours.
        seconds, peer_seconds: the time of a run.
        gib, peer_gib: the peak memory of the process, on a GPU that of its tensors.
        share: our rate as a share of that of a matrix product in the same format.
    """

    work: str
    engine: str
    dtype: str
    seconds: float
    peer_seconds: float
    gib: float
    peer_gib: float
    share: float


def compare(device: torch.device, rounds: int, times: int, crops: int = 1) -> Iterator[Row]:
    """A row for each kind of work that this machine can do.

    Args:
        rounds: processes of each side, in turns.
        times: timed runs in each process.
        crops: the batch size.
    """
    mixed = str(choose_precision(device, True, UNETRConfig()))
    on_gpu = device.type == "cuda"
    forwards = [("forward", "torch", mixed), ("forward", "torch", "float32")]
    if importlib.util.find_spec("openvino") is not None and not on_gpu:
        forwards += [("forward", "openvino", mixed), ("forward", "openvino", "float32")]
    new_process = partial(measure_in_new_process, device=device, times=times, crops=crops)
    for kind, works in {"step": [("step", "torch", mixed), (RECOMPUTED, "torch", mixed)], "forward": forwards}.items():
        works = list(dict.fromkeys(works))  # mixed may be float32 as well
        sides: dict[tuple[str, str, str], list[dict[str, float]]] = {
            ("peer", kind, "float16" if on_gpu else "float32"): []
        }
        sides |= {(engine, work, dtype): [] for work, engine, dtype in works}
        for who, work, dtype in sides:
            if who == "openvino":
                new_process(who, work, dtype)  # compiles the network and caches it on disk
        for _ in range(rounds):
            for side, found in sides.items():
                found.append(new_process(*side))
        peer, *ours = (
            {name: statistics.median(figures[name] for figures in found) for name in ("seconds", "gib", "gflops")}
            for found in sides.values()
        )
        for (work, engine, dtype), figures in zip(works, ours, strict=True):
            share = crops * GFLOP[work] / figures["seconds"] / figures["gflops"]
            yield Row(work, engine, dtype, figures["seconds"], peer["seconds"], figures["gib"], peer["gib"], share)


def agreement(weights: Path, scan: Path, device: torch.device) -> dict[str, tuple[float, float]]:
    """Compare the peer's mask in float32 with ours in each of :data:`FORMATS`.

    Args:
        weights: a checkpoint of ``main.py``.
        scan: a scan to segment.

    Returns:
        For each format the share of voxels with equal labels: of all voxels, and of those that the peer labels.
    """
    network, description = load_network(weights)
    peer = peers_network(description.options, network.state_dict()).to(device)
    ours = Process(device).place(optimize_for_cpu(network))
    volume = read_scan(Scan(scan.name, (scan,), None), 1)
    image = to_network_grid(volume.voxels, volume.affine, None, description.preprocessing).image[None].to(device)
    roi = description.preprocessing.roi

    @torch.inference_mode()
    def mask(network: nn.Module, dtype: str) -> Tensor:
        with Precision(device, getattr(torch, dtype)).autocast(), bfloat16(device, description.config):
            logits = sliding_window_inference(image, roi, 1, network.eval(), 0.5, mode="gaussian")
        return torch.as_tensor(logits).argmax(1)  # (1, classes, D, H, W) -> (1, D, H, W)

    peers = mask(peer, "float32")
    equal = {dtype: mask(ours, dtype) == peers for dtype in FORMATS}
    return {dtype: (same.float().mean().item(), same[peers > 0].float().mean().item()) for dtype, same in equal.items()}


def main(args: argparse.Namespace) -> None:
    """Print a row for each kind of work."""
    device = choose_device(args.device)
    if args.one:
        who, work, dtype = args.one
        print(json.dumps(measure(who, work, dtype, device, args.times, args.crops)))
        return
    peers = "float16 by autocast" if device.type == "cuda" else "float32"
    print(f"on {device}, {os.cpu_count()} cores, torch {torch.__version__}; the peer is MONAI's UNETR in {peers}")
    print("work            engine   ours in    ours s  peer s  ratio  ours GiB  peer GiB  share of the matrix rate")
    for row in compare(device, args.rounds, args.times, args.crops):
        print(
            f"{row.work:<15} {row.engine:<8} {row.dtype:<8} {row.seconds:>8.3f} {row.peer_seconds:>7.3f} "
            f"{row.peer_seconds / row.seconds:>6.2f} {row.gib:>9.2f} {row.peer_gib:>9.2f} {row.share:>8.0%}",
            flush=True,
        )
    if args.weights and args.scan:
        for dtype, (every, organs) in agreement(args.weights, args.scan, device).items():
            print(f"masks in {dtype} agree on {every:.4%} of voxels, and on {organs:.4%} of the peer's organs")


if __name__ == "__main__":
    parser = Parser(
        prog="python -m benchmarks.network", description="Time a training step and a forward pass beside MONAI's."
    )
    parser.add_argument("--device", help="cpu or cuda (default: cuda if there is one, else cpu)")
    parser.add_argument("--rounds", type=count, default=2, help="processes of each side, in turns")
    parser.add_argument("--times", type=count, default=5, help="timed runs in each process")
    parser.add_argument("--crops", type=count, default=1, help="crops in a batch")
    parser.add_argument("--weights", type=existing_file, help="a trained checkpoint; with --scan masks are compared")
    parser.add_argument("--scan", type=existing_file, help="a NIfTI file to segment")
    parser.add_argument("--one", nargs=3, metavar=("WHO", "WORK", "DTYPE"), help=argparse.SUPPRESS)
    with one_line_errors():
        main(parser.parse_args())

"""A training step and a forward pass, ours and the peer's, in turns: ``python -m benchmarks.network``.

The peer is MONAI's UNETR in float32 as its tutorials train it. Each measurement is a process of its own, since how a
process asks the system for memory is part of what is compared. Random weights, 14 classes, one crop of 96³ or as many
as ``--crops`` says. With ``--weights`` and ``--scan`` it also tells on how many voxels the masks of both agree.
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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.networks import nets
from torch import Tensor, nn

from benchmarks.emulation import bfloat16
from benchmarks.scaling import reference_learner
from benchmarks.whole_scan import existing_file
from networks.precision import Precision, choose_precision
from utils.checkpoints.description import Description, describe
from utils.checkpoints.foreign_weights import COARSE_OUTPUT, load_weights
from utils.checkpoints.read import read_checkpoint
from utils.config.flags import network_options, parse_train, preprocessing
from utils.config.parser import Parser, count
from utils.data.preprocessing import to_network_grid
from utils.distributed.launch import choose_device
from utils.distributed.process import Process
from utils.inference.openvino import place_networks
from utils.io.reader import read_scan
from utils.io.scan import Scan
from utils.phantom import LABELS
from utils.system.allocator import keep_freed_memory
from utils.system.errors import InputError
from utils.training import cuda_graph
from utils.training.recomputation import recompute_activations

ROI = (96, 96, 96)
RECOMPUTED = "recomputed step"  # with --activation_checkpointing
# of the reference network, a multiply-add counted as two
GFLOP = {"step": 3 * 146.4, RECOMPUTED: 4 * 146.4, "forward": 146.4}
FORMATS = ("bfloat16", "float32")


def peers_network(options: Mapping[str, Any] | None = None, weights: Mapping[str, Tensor] | None = None) -> nn.Module:
    """MONAI's own.

    Args:
        options: of ours; those of the reference network unless given.
        weights: of ours; random ones unless given.

    Raises:
        InputError: if MONAI has no such network.
    """
    theirs = dict(network_options(vars(parse_train([]))) if options is None else options)
    if theirs.pop("patch_size", 16) != 16:
        raise InputError("MONAI's UNETR has patches of 16 voxels alone. Give weights of such a network.")
    for of_training in ("drop_path_rate", "deep_supervision"):
        theirs.pop(of_training, None)
    network = nets.UNETR(proj_type=theirs.pop("pos_embed"), **theirs)
    if weights is not None:
        known = {name: tensor for name, tensor in weights.items() if not COARSE_OUTPUT.fullmatch(name)}
        network.load_state_dict({**network.state_dict(), **known})  # which has some that no forward pass reads
    return network


def peers_step(device: torch.device) -> Callable[[Tensor, Tensor], object]:
    """A training step as MONAI's tutorials have it, on a GPU with the mixed precision of 2021."""
    network = peers_network().to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=1e-5)
    loss_function = DiceCELoss(to_onehot_y=True, softmax=True, squared_pred=True, smooth_nr=0, smooth_dr=1e-6)
    on_gpu = device.type == "cuda"
    scaler = torch.amp.GradScaler(device.type, enabled=on_gpu)

    def step(image: Tensor, label: Tensor) -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.float16, enabled=on_gpu):
            loss = loss_function(network(image), label)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def our_step(device: torch.device, recomputed: bool, crops: int) -> Callable[[Tensor, Tensor], object]:
    """A training step as ``trainer.py`` takes it."""
    process = Process(device)
    learner = reference_learner(process)
    if recomputed:
        recompute_activations(learner.network)
    elif cuda_graph.can_record(process, 1, "unetr"):
        recorded = cuda_graph.record(learner.network, (crops, 1, *ROI), learner.precision)
        learner = replace(learner, wrapped=recorded)

    def step(image: Tensor, label: Tensor) -> None:
        learner.add_gradients(learner.loss(image, label), 1)
        learner.update()

    return step


def our_forward(engine: str, precision: Precision) -> Callable[[Tensor, Tensor], object]:
    """A forward pass as ``test.py --engine`` does it."""
    args = parse_train([])
    options = network_options(vars(args))
    description = Description(args.model_name, options, preprocessing(vars(args)), LABELS, amp=True)
    members = [(description.build(), description)]
    (placed, _), *_ = place_networks(engine, members, precision.dtype != torch.float32, Process(precision.device))[0]
    return forward(placed, precision)


def forward(network: nn.Module, precision: Precision) -> Callable[[Tensor, Tensor], object]:
    """A forward pass without gradients."""

    @torch.inference_mode()
    def run(image: Tensor, label: Tensor) -> Tensor:
        with precision.autocast():
            logits: Tensor = network(image)
        return logits

    network.eval()
    return run


def measured(who: str, work: str, dtype: str, device: torch.device, times: int, crops: int) -> dict[str, float]:
    """In this process: seconds of a run, the median after two to warm up; peak memory; the rate of a matrix product.

    Args:
        who: ``peer``, or one of test.py's engines.
    """
    if who != "peer":
        keep_freed_memory()
    torch.manual_seed(0)
    precision = Precision(device, getattr(torch, dtype))
    if work != "forward":
        run = peers_step(device) if who == "peer" else our_step(device, work == RECOMPUTED, crops)
    else:
        run = forward(peers_network().to(device), precision) if who == "peer" else our_forward(who, precision)
    image = torch.rand(crops, 1, *ROI, device=device)
    label = torch.randint(0, 14, (crops, 1, *ROI), device=device)
    seconds = statistics.median([timed(lambda: run(image, label), device) for _ in range(times + 2)][2:])
    on_gpu = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    matrix = torch.rand(2048, 2048, device=device).to(precision.dtype)
    product = statistics.median(timed(lambda: matrix @ matrix, device) for _ in range(9))
    return {"seconds": seconds, "gib": peak / 2**30, "gflops": 2 * 2048**3 / product / 1e9}


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one run."""
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


@dataclass(frozen=True)
class Row:
    """Medians over rounds of ours and the peer in turns, each time in a new process.

    Attributes:
        engine: of ours, as ``test.py`` names it.
        dtype: in which ours computes.
        seconds, peer_seconds: of a run.
        gib, peer_gib: peak memory of the process, on a GPU of its tensors.
        share: of the rate that a matrix product in the same format has, in ours.
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
    """A row for each kind of work that can be done here."""
    shorter = str(choose_precision(device, True, ROI))
    on_gpu = device.type == "cuda"
    works = [("step", "torch", shorter), (RECOMPUTED, "torch", shorter), ("forward", "torch", shorter)]
    works += [("forward", "torch", "float32")]
    if importlib.util.find_spec("openvino") is not None and not on_gpu:
        works += [("forward", "openvino", shorter), ("forward", "openvino", "float32")]
    for work, engine, dtype in dict.fromkeys(works):  # once, where there is no shorter format
        sides = {engine: dtype, "peer": "float16" if on_gpu else "float32"}
        found: dict[str, list[dict[str, float]]] = {who: [] for who in sides}
        measure = partial(_in_own_process, device=device, times=times, crops=crops)
        if engine == "openvino":
            measure(engine, work, dtype)  # compiles the network, which then is on disk
        for _ in range(rounds):
            for who, one in sides.items():
                found[who].append(measure(who, work, one))
        ours, peer = (
            {name: statistics.median(one[name] for one in found[who]) for name in ("seconds", "gib", "gflops")}
            for who in sides
        )
        share = crops * GFLOP[work] / ours["seconds"] / ours["gflops"]
        yield Row(work, engine, dtype, ours["seconds"], peer["seconds"], ours["gib"], peer["gib"], share)


def _in_own_process(
    who: str, work: str, dtype: str, *, device: torch.device, times: int, crops: int
) -> dict[str, float]:
    """What :func:`measured` says in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.network", f"--times={times}", f"--device={device}"]
    command += [f"--crops={crops}", "--one", who, work, dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"error: {' '.join(command)} failed:\n{done.stderr}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def agreement(weights: Path, scan: Path, device: torch.device) -> dict[str, tuple[float, float]]:
    """The shares of voxels on which the peer's mask in float32 and ours are equal: of all, and of the peer's organs.

    Args:
        weights: a checkpoint of ``main.py``.
        scan: what all segment, on the network's grid.

    Returns:
        The shares for each of :data:`FORMATS` in which ours computes.
    """
    content: dict[str, Any] = read_checkpoint(weights)
    description = describe(content)
    if description is None:
        raise SystemExit(f"error: {weights}: doesn't describe its network. Give a checkpoint of main.py.")
    ours = description.build()
    load_weights(ours, content["state_dict"], str(weights))
    peer = peers_network(description.options, ours.state_dict())
    ours, peer = Process(device).place(ours), peer.to(device)
    volume = read_scan(Scan(scan.name, (scan,), None), 1)
    image = to_network_grid(volume.voxels, volume.affine, None, description.preprocessing).image[None].to(device)
    roi = description.preprocessing.roi

    @torch.inference_mode()
    def mask(network: nn.Module, dtype: str) -> Tensor:
        with Precision(device, getattr(torch, dtype)).autocast(), bfloat16(device, roi):
            logits = sliding_window_inference(image, roi, 1, network.eval(), 0.5, mode="gaussian")
        return torch.as_tensor(logits).argmax(1)

    peers = mask(peer, "float32")
    same = {dtype: mask(ours, dtype) == peers for dtype in FORMATS}
    return {
        dtype: (equal.float().mean().item(), equal[peers > 0].float().mean().item()) for dtype, equal in same.items()
    }


def main(args: argparse.Namespace) -> None:
    """Print a row for each kind of work."""
    device = choose_device(args.device)
    if args.one:
        who, work, dtype = args.one
        print(json.dumps(measured(who, work, dtype, device, args.times, args.crops)))
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
        prog="python -m benchmarks.network", description="Time a step and a forward pass beside the peer's."
    )
    parser.add_argument("--device", help="cpu or cuda (default: cuda if there is one, else cpu)")
    parser.add_argument("--rounds", type=count, default=2, help="turns of each")
    parser.add_argument("--times", type=count, default=5, help="runs in a turn")
    parser.add_argument("--crops", type=count, default=1, help="crops in a batch")
    parser.add_argument("--weights", type=existing_file, help="a trained checkpoint, to compare masks")
    parser.add_argument("--scan", type=existing_file, help="a NIfTI file to compare masks on")
    parser.add_argument("--one", nargs=3, metavar=("WHO", "WORK", "DTYPE"), help=argparse.SUPPRESS)
    main(parser.parse_args())

"""A training step and a forward pass, ours and the peer's, in turns: ``python -m benchmarks.network``.

The peer is MONAI's UNETR in float32 as its tutorials train it. Each measurement is a process of its own, since how a
process asks the system for memory is part of what is compared. Random weights, one crop of 96³, 14 classes. With
``--weights`` and ``--scan`` it also tells on how many voxels the masks of both agree.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.networks import nets
from torch import Tensor, nn

from benchmarks.scaling import reference_learner
from utils import checkpoint
from utils.allocator import keep_freed_memory
from utils.args import Parser, count
from utils.data_list import Scan
from utils.distributed import Process
from utils.precision import Precision, choose_precision
from utils.preprocessing import to_network_grid
from utils.volume import read_scan
from utils.weights import load_weights

ROI = (96, 96, 96)
GFLOP = {"step": 3 * 146.4, "forward": 146.4}  # of the reference network, a multiply-add counted as two
WORK = {"step": ("bfloat16",), "forward": ("bfloat16", "float32")}  # what of ours is compared with the peer's float32
CPU = torch.device("cpu")


def peers_network() -> nn.Module:
    """MONAI's own, with the reference network's options."""
    return nets.UNETR(1, 14, ROI, feature_size=16, norm_name="instance", proj_type="perceptron")


def peers_step() -> Callable[[], object]:
    """A training step as MONAI's tutorials have it."""
    network = peers_network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=1e-5)
    loss_function = DiceCELoss(to_onehot_y=True, softmax=True, squared_pred=True, smooth_nr=0, smooth_dr=1e-6)
    image, label = crop()

    def step() -> None:
        optimizer.zero_grad()
        loss = loss_function(network(image), label)
        loss.backward()
        optimizer.step()

    return step


def our_step() -> Callable[[], object]:
    """A training step as ``trainer.py`` takes it."""
    learner = reference_learner(Process(CPU))
    image, label = crop()

    def step() -> None:
        learner.add_gradients(learner.loss(image, label), 1)
        learner.update()

    return step


def forward(network: nn.Module, precision: Precision) -> Callable[[], object]:
    """A forward pass without gradients."""
    image = crop()[0]

    @torch.inference_mode()
    def run() -> Tensor:
        with precision.autocast():
            logits: Tensor = network(image)
        return logits

    network.eval()
    return run


def crop() -> tuple[Tensor, Tensor]:
    """An image and a label, (1, 1, 96, 96, 96) each."""
    return torch.rand(1, 1, *ROI), torch.randint(0, 14, (1, 1, *ROI))


def measured(who: str, work: str, dtype: str, times: int) -> dict[str, float]:
    """In this process: seconds of a run, the median after two to warm up; peak memory; the rate of a matrix product."""
    if who == "ours":
        keep_freed_memory()
    torch.manual_seed(0)
    if work == "step":
        run = our_step() if who == "ours" else peers_step()
    else:
        network = reference_learner(Process(CPU)).network if who == "ours" else peers_network()
        run = forward(network, Precision(CPU, getattr(torch, dtype)))
    seconds = statistics.median([timed(run) for _ in range(times + 2)][2:])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    matrix = torch.rand(2048, 2048).to(getattr(torch, dtype))
    product = statistics.median(timed(lambda: matrix @ matrix) for _ in range(9))
    return {"seconds": seconds, "gib": peak, "gflops": 2 * 2048**3 / product / 1e9}


def timed(run: Callable[[], object]) -> float:
    """Seconds of one run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(work: str, dtype: str, rounds: int, times: int) -> dict[str, dict[str, float]]:
    """Both in turns, each time in a new process; medians over the rounds."""
    formats = {"ours": dtype, "peer": "float32"}
    results: dict[str, list[dict[str, float]]] = {who: [] for who in formats}
    for _ in range(rounds):
        for who, one in formats.items():
            command = [sys.executable, "-m", "benchmarks.network", "--one", who, work, one, "--times", str(times)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise SystemExit(f"error: {' '.join(command)} failed:\n{done.stderr}")
            results[who].append(json.loads(done.stdout.splitlines()[-1]))
    return {
        who: {name: statistics.median(row[name] for row in rows) for name in rows[0]} for who, rows in results.items()
    }


def agreement(weights: Path, scan: Path) -> dict[str, tuple[float, float]]:
    """The shares of voxels on which the peer's mask in float32 and ours are equal: of all, and of the peer's organs.

    Args:
        weights: a checkpoint of the reference network.
        scan: what all segment, on the network's grid.

    Returns:
        The shares for each format of :data:`WORK` in which ours computes.
    """
    content: dict[str, Any] = checkpoint.read(weights)
    description = checkpoint.describe(content)
    if description is None:
        raise SystemExit(f"error: {weights}: doesn't describe its network. Give a checkpoint of main.py.")
    ours = description.build()
    load_weights(ours, content["state_dict"], str(weights))
    peer = peers_network()
    peer.load_state_dict({**peer.state_dict(), **ours.state_dict()})
    ours = Process(CPU).place(ours)
    volume = read_scan(Scan(scan.name, (scan,), None), 1)
    image = to_network_grid(volume.voxels, volume.affine, None, description.preprocessing).image[None]

    @torch.inference_mode()
    def mask(network: nn.Module, dtype: str) -> Tensor:
        with Precision(CPU, getattr(torch, dtype)).autocast():
            logits = sliding_window_inference(image, ROI, 1, network.eval(), 0.5, mode="gaussian")
        return torch.as_tensor(logits).argmax(1)

    peers = mask(peer, "float32")
    same = {dtype: mask(ours, dtype) == peers for dtype in WORK["forward"]}
    return {
        dtype: (equal.float().mean().item(), equal[peers > 0].float().mean().item()) for dtype, equal in same.items()
    }


def main(args: argparse.Namespace) -> None:
    """Print a row for each kind of work."""
    if args.one:
        who, work, dtype = args.one
        print(json.dumps(measured(who, work, dtype, args.times)))
        return
    print(f"{os.cpu_count()} cores, torch {torch.__version__}; the peer is MONAI's UNETR in float32")
    print("work     ours in   ours s  peer s  ratio  ours GiB  peer GiB  share of the matrix rate")
    for work, dtypes in WORK.items():
        for dtype in dtypes:
            if dtype == "bfloat16" and choose_precision(CPU, True, ROI).dtype != torch.bfloat16:
                print(f"{work:<8} {dtype:<8} not on this CPU, which would emulate it")
                continue
            rows = compare(work, dtype, args.rounds, args.times)
            ours, peer = rows["ours"], rows["peer"]
            share = GFLOP[work] / ours["seconds"] / ours["gflops"]
            print(
                f"{work:<8} {dtype:<8} {ours['seconds']:>7.3f} {peer['seconds']:>7.3f} "
                f"{peer['seconds'] / ours['seconds']:>6.2f} {ours['gib']:>9.2f} {peer['gib']:>9.2f} {share:>8.0%}",
                flush=True,
            )
    if args.weights and args.scan:
        for dtype, (every, organs) in agreement(Path(args.weights), Path(args.scan)).items():
            print(f"masks in {dtype} agree on {every:.4%} of voxels, and on {organs:.4%} of the peer's organs")


if __name__ == "__main__":
    parser = Parser(
        prog="python -m benchmarks.network", description="Time a step and a forward pass beside the peer's."
    )
    parser.add_argument("--rounds", type=count, default=2, help="turns of each")
    parser.add_argument("--times", type=count, default=5, help="runs in a turn")
    parser.add_argument("--weights", help="a trained checkpoint of the reference network, to compare masks")
    parser.add_argument("--scan", help="a NIfTI file to compare masks on")
    parser.add_argument("--one", nargs=3, metavar=("WHO", "WORK", "DTYPE"), help=argparse.SUPPRESS)
    main(parser.parse_args())

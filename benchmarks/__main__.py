"""All that is claimed of speed beside the peer, in one run: ``make bench``, or ``python -m benchmarks``.

Writes the table that stands in the README between two marks. Took 45 minutes on two cores with AVX2. What trains in
several processes, survives kills or follows a loss has commands of its own in this folder.
"""

import argparse
import datetime
import importlib.util
import multiprocessing
import os
import re
import statistics
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import monai
import torch

from benchmarks import loader, network, startup, whole_scan
from utils.config.parser import Parser, count
from utils.distributed.launch import choose_device
from utils.system.hardware import processor

README = Path(__file__).parent.parent / "README.md"
MARKS = "<!-- written by make bench -->", "<!-- end of what make bench wrote -->"
WORKS = {
    "step": "training step, a crop of 96³",
    network.RECOMPUTED: "the same with `--activation_checkpointing`",
    "forward": "forward pass, a window of 96³",
}


def table(device: torch.device, weights: Path | None, rounds: int) -> Iterator[str]:
    """The lines of the table beside the peer."""
    gpu = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    when = datetime.date.today().isoformat()
    yield f"{when}: {os.cpu_count()} cores of {processor()}{gpu}, torch {torch.__version__}, MONAI {monai.__version__}."
    yield ""
    yield "| work | ours | MONAI | ratio | peak GiB, ours and MONAI | share of the matrix rate |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for row in network.compare(device, rounds, times=5):
        yield (
            f"| {WORKS[row.work]}, {row.dtype}{_by(row.engine)} | {row.seconds:.3f} s | {row.peer_seconds:.3f} s "
            f"| {row.peer_seconds / row.seconds:.2f} | {row.gib:.2f} and {row.peer_gib:.2f} | {row.share:.0%} |"
        )
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as own:
        # since the peak of this process would be the least that others launched by it could have
        crops = own.submit(loader.measure, Path(folder), phantoms=4, copies=6, workers=(0, 2), passes=7).result()
    for rates in crops.rows:
        yield (
            f"| crops of 96³ from memory, `--workers {rates.workers}` | {rates.ours:.0f} a second "
            f"| {rates.peer:.0f} a second | {rates.ratio:.1f} | | |"
        )
    starts = {name: statistics.median(seconds) for name, seconds in startup.measure(rounds).items()}
    for name, words in {"first": "first launch", "later": "launch with a filled `--cache_dir`"}.items():
        yield (
            f"| {words}, to the end of the first step | {starts[name]:.1f} s | {starts['peer']:.1f} s "
            f"| {starts['peer'] / starts[name]:.1f} | | |"
        )
    ways: list[tuple[str, ...]] = [(), ("--fast",)]
    if device.type == "cpu" and importlib.util.find_spec("openvino") is not None:
        ways += [("--engine=openvino",), ("--engine=openvino", "--fast")]
    shape = whole_scan.LARGE
    of_host = "" if device.type == "cpu" else " (not the GPU's)"
    tissue = ", tissue everywhere" if weights is None else ""
    scans = whole_scan.compare(weights, shape, ways, rounds, 1 if device.type == "cpu" else 4, device.type)
    for scan in scans:
        yield (
            f"| {whole_scan.size(shape)} voxels{tissue}, file to mask{_by(*scan.flags)} | {scan.ours.seconds:.1f} s "
            f"| {scan.peer.seconds:.1f} s | {scan.peer.seconds / scan.ours.seconds:.2f} "
            f"| {scan.ours.peak / 2**30:.2f} and {scan.peer.peak / 2**30:.2f}{of_host} | |"
        )
    if weights is not None:
        yield ""
        for scan in [scan for scan in scans if scan.dice]:
            least = min(scan.dice, key=lambda organ: scan.dice[organ])
            yield (
                f"Dice between MONAI's mask and ours{_by(*scan.flags)}, {len(scan.dice)} organs of more than 1 ml: "
                f"at least {scan.dice[least]:.4f} ({least})."
            )


def growth_table(device: torch.device) -> Iterator[str]:
    """The lines of the table of what more voxels, classes and overlap cost."""
    yield "| voxels, tissue everywhere | classes | overlap | seconds | peak GiB |"
    yield "| --- | --- | --- | --- | --- |"
    for shape, classes, overlap, cost in whole_scan.growth(device.type):
        yield f"| {whole_scan.size(shape)} | {classes} | {overlap} | {cost.seconds:.1f} | {cost.peak / 2**30:.2f} |"


def _by(*flags: str) -> str:
    given = [flag for flag in flags if flag != "torch"]
    return f", `{' '.join(given)}`" if given else ""


def main(args: argparse.Namespace) -> None:
    """Print the tables line by line, and write them."""
    device = choose_device(args.device)
    weights: Path | None = args.weights
    lines = []
    for part in (table(device, weights, args.rounds), iter([""]), growth_table(device)):
        for line in part:
            print(line, flush=True)
            lines.append(line)
    before, after = MARKS
    text = README.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(before)}.*?{re.escape(after)}", re.DOTALL)
    written = "\n".join([before, "", *lines, "", after])
    text, places = pattern.subn(lambda _: written, text)
    if places != 1:
        raise SystemExit(f"error: {README}: has {places} places between '{before}' and '{after}', not one. Mend it.")
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    parser = Parser(
        prog="python -m benchmarks", description="Time everything beside the peer, and write README's table."
    )
    parser.add_argument("--device", help="cpu or cuda (default: cuda if there is one, else cpu)")
    parser.add_argument(
        "--weights",
        type=whole_scan.existing_file,
        help="a trained checkpoint of the reference network (default: random weights)",
    )
    parser.add_argument("--rounds", type=count, default=2, help="turns of each")
    main(parser.parse_args())

"""Time everything beside the peer in one run: ``make bench``, or ``python -m benchmarks``.

Writes the tables of this kind of machine into ``docs/performance.md``, beside those of others. The other commands of
this folder measure training in several processes, interrupted runs, and losses.
"""

import argparse
import datetime
import importlib.util
import multiprocessing
import os
import re
import statistics
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from pathlib import Path

import monai
import torch

from benchmarks import loader, network, startup, whole_scan
from benchmarks.arguments import existing_file
from utils.config.parser import Parser, count
from utils.distributed.launch import choose_device
from utils.system.errors import one_line_errors, size_text
from utils.system.hardware import instruction_set, processor

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
NEXT = "<!-- make bench adds the tables of another kind of machine here -->"
WORKS = {
    "step": "training step, a crop of 96³",
    network.RECOMPUTED: "the same with `--activation_checkpointing`",
    "forward": "forward pass, a window of 96³",
}


def table(device: torch.device, weights: Path | None, rounds: int) -> Iterator[str]:
    """The lines of the table that compares both sides."""
    when = datetime.date.today().isoformat()
    cpu = f"{os.cpu_count()} cores of {processor()} ({instruction_set()})"
    gpu = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    yield f"{when}: {cpu}{gpu}, torch {torch.__version__}, MONAI {monai.__version__}."
    yield ""
    yield "| work | ours | MONAI | ratio | peak GiB, ours and MONAI | share of the matrix rate |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for row in network.compare(device, rounds, times=5):
        yield (
            f"| {WORKS[row.work]}, {row.dtype}{_flags_text(row.engine)} | {row.seconds:.3f} s "
            f"| {row.peer_seconds:.3f} s | {row.peer_seconds / row.seconds:.2f} | {row.gib:.2f} and {row.peer_gib:.2f} "
            f"| {row.share:.0%} |"
        )
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        # in a process of its own: processes launched from here begin with the peak memory of this one
        crops = pool.submit(loader.measure, Path(folder), phantoms=4, copies=6, workers=(0, 2), passes=7).result()
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
    variants: list[tuple[str, ...]] = [(), ("--fast",)]
    if device.type == "cpu" and importlib.util.find_spec("openvino") is not None:
        variants.append(("--engine=torch",))
    shape = whole_scan.LARGE
    of_host = "" if device.type == "cpu" else " (not the GPU's)"
    tissue = ", tissue everywhere" if weights is None else ""
    scans = whole_scan.compare(weights, shape, variants, rounds, device.type)
    for scan in scans:
        yield (
            f"| {size_text(shape)} voxels{tissue}, file to mask{_flags_text(*scan.flags)} "
            f"| {scan.ours.seconds:.1f} s | {scan.peer.seconds:.1f} s | {scan.peer.seconds / scan.ours.seconds:.2f} "
            f"| {scan.ours.peak / 2**30:.2f} and {scan.peer.peak / 2**30:.2f}{of_host} | |"
        )
    if weights is not None:
        yield ""
        for scan in [scan for scan in scans if scan.dice]:
            lowest = min(scan.dice, key=lambda organ: scan.dice[organ])
            yield (
                f"Dice between MONAI's mask and ours{_flags_text(*scan.flags)}, {len(scan.dice)} organs of more than "
                f"1 ml: at least {scan.dice[lowest]:.4f} ({lowest})."
            )


def growth_table(device: torch.device) -> Iterator[str]:
    """The lines of the table of what more voxels, classes and overlap cost, with torch."""
    yield "| voxels, tissue everywhere | classes | overlap | seconds | peak GiB |"
    yield "| --- | --- | --- | --- | --- |"
    for shape, classes, overlap, cost in whole_scan.growth(device.type):
        yield f"| {size_text(shape)} | {classes} | {overlap} | {cost.seconds:.1f} | {cost.peak / 2**30:.2f} |"


def _flags_text(*flags: str) -> str:
    given = [flag for flag in flags if flag != "torch"]
    return f", `{' '.join(given)}`" if given else ""


def marks(machine: str) -> tuple[str, str]:
    """What stands before and behind the tables of a kind of machine."""
    return f"<!-- make bench: {machine} -->", f"<!-- end of make bench: {machine} -->"


def write_tables(page: Path, machine: str, lines: Iterable[str]) -> None:
    """Replace the tables of a kind of machine in a page; those of a new kind go before :data:`NEXT`."""
    before, after = marks(machine)
    written = "\n".join([before, "", *lines, "", after])
    text = page.read_text(encoding="utf-8")
    if text.count(NEXT) != 1 or (text.count(before), text.count(after)) not in ((0, 0), (1, 1)):
        raise SystemExit(f"error: {page}: must have '{NEXT}' once, and '{before}' with '{after}' at most once.")
    if before in text:
        pattern = re.compile(f"{re.escape(before)}.*?{re.escape(after)}", re.DOTALL)
        text = pattern.sub(lambda _: written, text)
    else:
        text = text.replace(NEXT, f"#### {machine}\n\n{written}\n\n{NEXT}")
    page.write_text(text, encoding="utf-8")


def main(args: argparse.Namespace) -> None:
    """Print the tables line by line, and write them into the page."""
    device = choose_device(args.device)
    lines = []
    for line in chain(table(device, args.weights, args.rounds), [""], growth_table(device)):
        print(line, flush=True)
        lines.append(line)
    write_tables(PAGE, torch.cuda.get_device_name(device) if device.type == "cuda" else instruction_set(), lines)


if __name__ == "__main__":
    parser = Parser(
        prog="python -m benchmarks", description="Time everything beside MONAI, and write docs/performance.md's tables."
    )
    parser.add_argument("--device", help="cpu or cuda (default: cuda if there is one, else cpu)")
    parser.add_argument(
        "--weights", type=existing_file, help="a trained checkpoint of the reference network (default: random weights)"
    )
    parser.add_argument("--rounds", type=count, default=2, help="launches of each, in turns")
    with one_line_errors():
        main(parser.parse_args())

"""All that is to be measured on a GPU, in ten minutes: ``python -m benchmarks.gpu --output gpu.md``.

Each part is a command of its own with a time limit. What it printed is written to the file at once, so that the file
has all that was done, however early the program ends. ``--device cpu`` rehearses it.

The parts: a step and a forward pass beside MONAI's, the tests that need a GPU, a whole scan beside MONAI's chain,
crops with strong augmentation by number of workers, and trainings side by side.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from utils.config.parser import Parser, count
from utils.distributed.launch import choose_device
from utils.phantom import write_phantoms
from utils.system.errors import one_line_errors
from utils.system.hardware import machine

EPOCH = re.compile(r"epoch \d+/\d+: .*, ([\d.]+) s$", re.MULTILINE)
EPOCHS = 4
TESTS = ["tests/training/test_cuda_graph.py", "tests/data/test_prefetch.py"]  # those marked for GPUs, and theirs beside


@dataclass(frozen=True)
class Part:
    """A command, and the seconds that it may take."""

    title: str
    command: list[str]
    seconds: int


def parts(device: str) -> Iterator[Part]:
    """The parts, the most wanted first."""
    python = [sys.executable, "-m"]
    rehearsed = device == "cpu"
    times = ["--rounds=1", "--times=1" if rehearsed else "--times=15"]
    yield Part("A step and a forward pass", [*python, "benchmarks.network", f"--device={device}", *times], 150)
    yield Part("Tests that need a GPU", [*python, "pytest", "-q", "-rs", *TESTS], 90)
    shape = ["--shape", "96", "96", "60"] if rehearsed else []
    scan = [*python, "benchmarks.whole_scan", f"--device={device}", "--rounds=1", *shape]
    yield Part("A whole scan, tissue everywhere", scan, 150)
    workers = [str(number) for number in (1, 2, 4, 8, 16) if number <= (os.cpu_count() or 1)]
    few = ["--phantoms=1", "--copies=2", "--passes=1"] if rehearsed else ["--phantoms=2", "--passes=2"]
    loader = [*python, "benchmarks.loader", "--augment=strong", *few, "--workers", *workers]
    yield Part("Crops with strong augmentation", loader, 120)
    for number in (1, 2) if rehearsed else (1, 2, 5):
        trainings = [*python, "benchmarks.gpu", f"--device={device}", f"--trainings={number}"]
        yield Part(f"Trainings side by side: {number}", trainings, 60)


def run(part: Part, file: Path, until: float) -> None:
    """Run a part, at most until a time of the monotonic clock, and append what it printed to a file."""
    limit = min(part.seconds, until - time.monotonic())
    text = f"## {part.title}\n\n`{' '.join(part.command[1:])}`\n\n"
    start = time.monotonic()
    if limit <= 0:
        text += "No time was left.\n\n"
    else:
        try:
            done = subprocess.run(
                part.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=limit, check=False
            )
            printed, ending = done.stdout, f"status {done.returncode}"
        except subprocess.TimeoutExpired as error:
            printed = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
            ending = f"ended after its {limit:.0f} s"
        text += f"```\n{printed.strip()}\n```\n\n{time.monotonic() - start:.0f} s, {ending}.\n\n"
    print(text, flush=True)
    with open(file, "a", encoding="utf-8") as page:
        page.write(text)


def train_side_by_side(number: int, device: str) -> list[float]:
    """The seconds of the fastest epoch of each of some trainings of the demo's recipe that run at once."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_phantoms(folder, {"training": 8, "validation": 1}, seed=0, spacing=(3.5, 3.5, 5.0))

        def train(which: int) -> float:
            command = [
                *(sys.executable, "main.py", "@recipes/demo.args", f"--data_dir={folder}", f"--device={device}"),
                *(f"--logdir={folder / str(which)}", f"--max_epochs={EPOCHS}", f"--val_every={EPOCHS}"),
                "--skip_data_check",
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            seconds = [float(found) for found in EPOCH.findall(done.stdout)]
            if done.returncode != 0 or not seconds:
                raise SystemExit(f"error: {' '.join(command)} failed:\n{done.stdout}{done.stderr}")
            return min(seconds)

        with ThreadPoolExecutor(number) as pool:
            return list(pool.map(train, range(number)))


def main(args: argparse.Namespace) -> None:
    """Run all parts, or the trainings alone."""
    device = choose_device(args.device).type
    if args.trainings:
        seconds = train_side_by_side(args.trainings, device)
        print("seconds of an epoch: " + ", ".join(f"{one:.2f}" for one in seconds))
        return
    until = time.monotonic() + args.minutes * 60
    head = f"# Measured on {machine(device == 'cuda')}, torch {torch.__version__}\n\n"
    args.output.write_text(head, encoding="utf-8")
    for part in parts(device):
        run(part, args.output, until)


if __name__ == "__main__":
    parser = Parser(prog="python -m benchmarks.gpu", description="Measure on a GPU what there is to measure.")
    parser.add_argument("--device", help="cpu or cuda (default: cuda if there is one, else cpu)")
    parser.add_argument("--output", type=Path, default=Path("gpu.md"), help="where results are written")
    parser.add_argument("--minutes", type=count, default=9, help="for all parts together")
    parser.add_argument("--trainings", type=count, help=argparse.SUPPRESS)
    with one_line_errors():
        main(parser.parse_args())

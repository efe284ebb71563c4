"""Train on more scans than memory should hold: ``python -m benchmarks.many_scans``.

Draws phantoms, and copies them until there are as many as asked for. A small network then trains on all of them, with
the prepared scans in memory and mapped from ``--cache_dir``, in turns. It prints how long the data check takes, the
first time and again; the time from launch to the first epoch's end, and of a later epoch; and the memory. What the
system can drop, such as mapped files, is not counted as held.
"""

import argparse
import contextlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.whole_scan import GIB
from utils.config.parser import Parser, count
from utils.data.check import check_scans
from utils.data.data_list import read_data_list
from utils.data.preprocessing import Preprocessing
from utils.distributed.process import Process
from utils.phantom import write_phantoms
from utils.system.errors import one_line_errors
from utils.system.files import read_json, write_json

SPACING = (2.5, 2.5, 3.0)  # mm, of scans and network: a prepared scan has some 1.5 million voxels
NETWORK = ["--feature_size=4", "--hidden_size=96", "--mlp_dim=192", "--num_heads=6", "--norm_name=batch"]
WINDOW = ["--roi_x=32", "--roi_y=32", "--roi_z=32", "--crops_per_scan=2"]
EPOCHS = 3
EPOCH = re.compile(r"epoch (\d+)/\d+: .*, ([\d.]+) s$")
HELD = re.compile(r"^(?:RssAnon|RssShmem):\s+(\d+) kB$", re.MULTILINE)
SECONDS_BETWEEN_LOOKS = 0.2


@dataclass(frozen=True)
class Training:
    """A training.

    Attributes:
        first: seconds from its launch to the end of the first epoch.
        epoch: seconds of the fastest later epoch.
        held: the most memory in bytes that it held and the system couldn't drop.
    """

    first: float
    epoch: float
    held: int


def write_scans(folder: Path, scans: int, drawn: int) -> int:
    """Draw phantoms, and copy them under other names. Returns the bytes of all files."""
    path = write_phantoms(folder, {"training": drawn, "validation": 1}, seed=0, spacing=SPACING)
    content = read_json(path)
    entries = content["training"]
    for number in range(len(entries), scans):
        original = entries[number % drawn]
        copies = {key: name.replace(".nii.gz", f"_{number}.nii.gz") for key, name in original.items()}
        for key, name in copies.items():
            shutil.copy(folder / original[key], folder / name)
        entries.append(copies)
    write_json(path, content)
    return sum(file.stat().st_size for file in folder.rglob("*.nii.gz"))


def train(folder: Path, launcher: Sequence[str], *flags: str) -> Training:
    """Train, and watch how much memory that takes.

    Args:
        launcher: a command that runs the one behind it in its own process.
    """
    spacing = [f"--space_{axis}={size}" for axis, size in zip("xyz", SPACING, strict=True)]
    command = [
        *launcher,
        *(sys.executable, "main.py", f"--data_dir={folder}", f"--logdir={folder / 'run'}", "--overwrite"),
        *(f"--max_epochs={EPOCHS}", "--warmup_epochs=1", f"--val_every={EPOCHS}", "--skip_data_check", "--device=cpu"),
        *(*spacing, *NETWORK, *WINDOW, *flags),
    ]
    start, times, held = time.monotonic(), {}, [0]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        watch = threading.Thread(target=_watch, args=(process, held))
        watch.start()
        assert process.stdout is not None
        printed = []
        for line in process.stdout:
            printed.append(line)
            if found := EPOCH.search(line):
                times[int(found[1])] = time.monotonic() - start if found[1] == "1" else float(found[2])
        watch.join()
    if process.returncode != 0 or len(times) < EPOCHS:
        raise SystemExit(f"error: {' '.join(command)} failed:\n{''.join(printed)}")
    return Training(times.pop(1), min(times.values()), held[0])


def _watch(process: "subprocess.Popen[str]", held: list[int]) -> None:
    """Note the most memory that a process holds until it ends."""
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        with contextlib.suppress(OSError):  # it ended just now
            held[0] = max(held[0], 1024 * sum(map(int, HELD.findall(status.read_text()))))
        time.sleep(SECONDS_BETWEEN_LOOKS)


def main(args: argparse.Namespace) -> None:
    """Print what the check and each training took."""
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        size = write_scans(folder, args.scans, min(args.drawn, args.scans))
        print(f"{args.scans} scans, {size / GIB:.2f} GiB of files", flush=True)
        data, process = read_data_list(str(folder), None, 0), Process(torch.device("cpu"))
        settings = Preprocessing(spacing=SPACING, roi=(32, 32, 32))
        for which in ("first", "second"):
            start = time.monotonic()
            check_scans(data.training, 1, 14, settings, args.workers, process, remembered_in=folder)
            print(f"{which} data check: {time.monotonic() - start:.1f} s", flush=True)
        cache = f"--cache_dir={folder / 'cache'}"
        print("scans              to the first epoch's end  a later epoch  memory held")
        held: tuple[list[str], list[str]] = ([], [])
        mapped = (shlex.split(args.launcher), [cache])
        for where, (launcher, flags) in {
            "in memory": held, "in --cache_dir": mapped, "in memory again": held, "there from before": mapped,
        }.items():  # fmt: skip
            found = train(folder, launcher, f"--workers={args.workers}", *flags)
            print(f"{where:<17} {found.first:>23.1f} s {found.epoch:>12.1f} s {found.held / GIB:>8.2f} GiB", flush=True)
        prepared = sum(file.stat().st_size for file in (folder / "cache").rglob("*.pt"))
        print(f"prepared scans: {prepared / GIB:.2f} GiB of files")


if __name__ == "__main__":
    parser = Parser(prog="python -m benchmarks.many_scans", description="Train on many scans, in memory and mapped.")
    parser.add_argument("--scans", type=count, default=1000, help="scans to train on")
    parser.add_argument("--drawn", type=count, default=40, help="phantoms that are drawn, and then copied")
    parser.add_argument("--workers", type=count, default=2, help="threads that read scans")
    parser.add_argument(
        "--launcher",
        default="",
        help="what runs the trainings from --cache_dir, such as 'systemd-run --scope -p MemoryMax=4G'",
    )
    parser.add_argument(
        "--folder", type=Path, help="where scans and prepared scans are kept meanwhile (default: TMPDIR)"
    )
    with one_line_errors():
        main(parser.parse_args())

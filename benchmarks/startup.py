"""Time a training from its launch to its first step, ours and the peer's: ``python -m benchmarks.startup``.

Both train on the same phantom with the spacing of BTCV's scans, four crops in a step. The peer is a script as in
MONAI's tutorials: it preprocesses the scan into memory, then takes a step. Ours is ``main.py``, which also checks the
scans. Its first launch finds nothing on disk; the later one finds a filled ``--cache_dir``.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from utils.config.parser import Parser, count
from utils.system.errors import one_line_errors

SPACING = (0.75, 0.75, 3.0)  # mm
READY = "first step"


def write_scans(folder: Path) -> None:
    """Draw one phantom to train on and one to validate on."""
    from utils.phantom import write_phantoms

    write_phantoms(folder, {"training": 1, "validation": 1}, seed=0, spacing=SPACING)


def run_peer(folder: Path) -> None:
    """Take the peer's first step."""
    import torch
    from monai.data import list_data_collate
    from torch.utils.data import DataLoader

    from benchmarks.peer import peers_crops, peers_step
    from utils.data.data_list import read_data_list
    from utils.data.preprocessing import Preprocessing

    scans = peers_crops(read_data_list(str(folder), None, 0).training, Preprocessing())
    step = peers_step(torch.device("cpu"))
    batch = next(iter(DataLoader(scans, batch_size=1, shuffle=True, collate_fn=list_data_collate)))
    step(batch["image"], batch["label"])
    print(READY, flush=True)


def our_command(folder: Path, run: str) -> list[str]:
    """``main.py`` with epochs of one step, since there is one scan."""
    return [
        *(sys.executable, "main.py", f"--data_dir={folder}", f"--cache_dir={folder / 'cache'}", "--device=cpu"),
        *(f"--logdir={folder / run}", "--max_epochs=2", "--warmup_epochs=1", "--val_every=2"),
    ]


def seconds_until(text: str, command: Sequence[str]) -> float:
    """Time a command from its launch until it prints a line with ``text``, then end it."""
    start = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        printed = []
        for line in process.stdout:
            printed.append(line)
            if text in line:
                seconds = time.monotonic() - start
                process.kill()
                return seconds
    raise SystemExit(f"error: {' '.join(command)} failed:\n{''.join(printed)}")


def measure(rounds: int) -> dict[str, list[float]]:
    """Launch times in seconds, a list for each of ``first``, ``later`` and ``peer``."""
    times: dict[str, list[float]] = {"first": [], "later": [], "peer": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_scans(folder)
            for which in ("first", "later"):
                times[which].append(seconds_until("epoch 1/", our_command(folder, which)))
            peer = [sys.executable, "-m", "benchmarks.startup", "--peer", name]
            times["peer"].append(seconds_until(READY, peer))
    return times


def main(args: argparse.Namespace) -> None:
    """Print the time of each launch."""
    if args.peer:
        run_peer(Path(args.peer))
        return
    for name, seconds in measure(args.rounds).items():
        print(f"{name:<6}" + "".join(f" {value:>6.1f} s" for value in seconds))


if __name__ == "__main__":
    parser = Parser(prog="python -m benchmarks.startup", description="Time the start of a training beside MONAI's.")
    parser.add_argument("--rounds", type=count, default=2, help="launches of each, in turns")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    with one_line_errors():
        main(parser.parse_args())

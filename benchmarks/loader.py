"""Measure how many crops a second the training loader gives, beside that of 2021: ``python -m benchmarks.loader``.

Both serve the same preprocessed scans from memory, in turns, while nothing trains. The scans are phantoms on the
network's grid, a little smaller than BTCV's. That favours the loader of 2021, which copies and searches the whole scan
for its crops.

``--augment strong`` times ours alone, with worker processes.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monai
import torch
from monai.data import list_data_collate
from torch.utils.data import DataLoader

from benchmarks.peer import CROPS_PER_SCAN, peers_crops
from utils.config.flags import AUGMENTATIONS
from utils.config.parser import Parser, count, whole
from utils.data.crops import Augmentation
from utils.data.data_list import read_data_list
from utils.data.loaders import Caching, EpochSampler, training_loader
from utils.data.preprocessing import Preprocessing
from utils.distributed.process import Process
from utils.phantom import write_phantoms
from utils.system.errors import one_line_errors


@dataclass(frozen=True)
class Row:
    """Crops per second with a number of worker processes, as medians over passes through all scans.

    Attributes:
        workers: worker processes; with 0 the main process cuts the crops.
        ours, peer: crops per second.
    """

    workers: int
    ours: float
    peer: float

    @property
    def ratio(self) -> float:
        """How many times as fast ours is."""
        return self.ours / self.peer


@dataclass(frozen=True)
class Measurement:
    """Both loaders on the same scans.

    Attributes:
        voxels: mean number of voxels of a scan on the network's grid.
        our_bytes, peer_bytes: mean size of a scan in the cache.
    """

    rows: tuple[Row, ...]
    voxels: float
    our_bytes: float
    peer_bytes: float


def measure(folder: Path, phantoms: int, copies: int, workers: Sequence[int], passes: int) -> Measurement:
    """Time both loaders on phantoms.

    Args:
        folder: where the phantoms are written.
        phantoms: how many are drawn.
        copies: how often each is cached; drawing one takes longer than loading it.
        workers: numbers of worker processes, a row for each.
        passes: timed passes of each loader through the cache, in turns, after one to warm up.
    """
    settings = Preprocessing()
    write_phantoms(folder, {"training": phantoms, "validation": 0}, seed=0, spacing=settings.spacing)
    scans = read_data_list(str(folder), None, 0).training * copies
    process = Process(torch.device("cpu"))
    peer_scans = peers_crops(scans, settings)
    rows = []
    for number in workers:
        ours = training_loader(
            scans, settings, Augmentation(), Caching(), process,
            batch_size=1, crops_per_scan=CROPS_PER_SCAN, workers=number, seed=0,
        )  # fmt: skip
        peer: DataLoader = DataLoader(
            peer_scans, batch_size=1, shuffle=True, num_workers=number, persistent_workers=number > 0,
            collate_fn=list_data_collate,
        )  # fmt: skip
        peer_rate, our_rate = _rates_in_turns([peer, ours], passes)
        rows.append(Row(number, our_rate, peer_rate))
    our_scans = ours.dataset.scans  # type: ignore[attr-defined]
    return Measurement(
        tuple(rows),
        statistics.mean(scan["label"].numel() for scan in our_scans),
        statistics.mean(map(_cached_bytes, our_scans)),
        statistics.mean(map(_cached_bytes, peer_scans._cache)),
    )


def measure_strong(folder: Path, phantoms: int, copies: int, workers: Sequence[int], passes: int) -> dict[int, float]:
    """By number of workers our crops per second with strong augmentation; the arguments are those of ``measure``."""
    settings = Preprocessing()
    write_phantoms(folder, {"training": phantoms, "validation": 0}, seed=0, spacing=settings.spacing)
    scans = read_data_list(str(folder), None, 0).training * copies
    loaders = [
        training_loader(
            scans, settings, Augmentation(strong=True), Caching(), Process(torch.device("cpu")),
            batch_size=1, crops_per_scan=CROPS_PER_SCAN, workers=number, seed=0,
        )
        for number in workers
    ]  # fmt: skip
    return dict(zip(workers, _rates_in_turns(loaders, passes), strict=True))


def _rates_in_turns(loaders: Sequence[DataLoader], passes: int) -> list[float]:
    """The crops per second of each loader."""
    times: list[list[float]] = [[] for _ in loaders]
    for number in range(passes + 1):
        for loader, seconds in zip(loaders, times, strict=True):
            if isinstance(loader.sampler, EpochSampler):
                loader.sampler.go_to(number, 0)
            start = time.perf_counter()
            crops = sum(len(batch["image"]) for batch in loader)
            if number > 0:
                seconds.append((time.perf_counter() - start) / crops)
    return [1 / statistics.median(seconds) for seconds in times]


def _cached_bytes(scan: dict[str, Any]) -> int:
    """The memory that a cached scan occupies."""
    return sum(value.untyped_storage().nbytes() for value in scan.values() if isinstance(value, torch.Tensor))


def main(args: argparse.Namespace) -> None:
    """Print a row for each number of workers, and the sizes of the caches."""
    print(f"{os.cpu_count()} cores; torch {torch.__version__}, MONAI {monai.__version__}; crops of 96³")
    with tempfile.TemporaryDirectory() as folder:
        if args.augment == "strong":
            rates = measure_strong(Path(folder), args.phantoms, args.copies, args.workers, args.passes)
            print("workers  crops/s with --augment strong")
            for number, rate in rates.items():
                print(f"{number:>7}  {rate:>12.1f}")
            return
        measured = measure(Path(folder), args.phantoms, args.copies, args.workers, args.passes)
    print("workers  ours crops/s  2021 crops/s  ratio")
    for row in measured.rows:
        print(f"{row.workers:>7}  {row.ours:>12.0f}  {row.peer:>12.1f}  {row.ratio:>5.1f}")
    print(
        f"a scan of {measured.voxels / 1e6:.1f} million voxels in the cache: ours {measured.our_bytes / 1e6:.1f} MB "
        f"({measured.our_bytes / measured.voxels:.1f} bytes a voxel), 2021 {measured.peer_bytes / 1e6:.1f} MB "
        f"({measured.peer_bytes / measured.voxels:.1f})"
    )


if __name__ == "__main__":
    parser = Parser(prog="python -m benchmarks.loader", description="Crops per second, ours and those of 2021.")
    parser.add_argument("--phantoms", type=count, default=4, help="phantoms to draw")
    parser.add_argument("--copies", type=count, default=6, help="how often each is cached")
    parser.add_argument("--workers", type=whole, nargs="+", default=[0, 2], help="worker processes, a row for each")
    parser.add_argument("--augment", choices=AUGMENTATIONS, default="published", help="published or strong")
    parser.add_argument("--passes", type=count, default=7, help="timed passes of each loader")
    with one_line_errors():
        main(parser.parse_args())

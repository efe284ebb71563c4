"""Crops per second of the training loader, ours and the 2021 pipeline's: ``python -m benchmarks.loader``.

Both serve the same preprocessed scans from memory, in turns within one run; nothing trains meanwhile. The scans are
phantoms on the network's grid, somewhat smaller than BTCV's, which favours the 2021 pipeline: it copies and searches
the whole scan for its crops.
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
from monai import transforms
from monai.data import CacheDataset, list_data_collate
from torch.utils.data import DataLoader

from utils.config.parser import Parser, count, whole
from utils.data.crops import Augmentation
from utils.data.data_list import read_data_list
from utils.data.loaders import Caching, EpochSampler, training_loader
from utils.data.preprocessing import KEYS, Preprocessing
from utils.distributed.process import Process
from utils.io.scan import Scan
from utils.phantom import write_phantoms

CROPS_PER_SCAN = 4


@dataclass(frozen=True)
class Row:
    """Medians over passes through all scans.

    Attributes:
        workers: processes that load, 0 where the process that takes the crops cuts them.
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
    """What both loaders did with the same scans.

    Attributes:
        voxels: of a scan on the network's grid, in the mean.
        our_bytes, peer_bytes: that the cache holds for a scan, in the mean.
    """

    rows: tuple[Row, ...]
    voxels: float
    our_bytes: float
    peer_bytes: float


def pipeline_of_2021(scans: Sequence[Scan], settings: Preprocessing) -> CacheDataset:
    """The training scans and crops that users know, with their order of transforms and their settings."""
    fixed = [
        transforms.LoadImaged(KEYS, ensure_channel_first=True),
        transforms.Orientationd(KEYS, axcodes="RAS", labels=None),
        transforms.Spacingd(KEYS, pixdim=settings.spacing, mode=("bilinear", "nearest")),
        transforms.ScaleIntensityRanged(
            "image", settings.a_min, settings.a_max, settings.b_min, settings.b_max, clip=True
        ),
        transforms.CropForegroundd(KEYS, source_key="image", allow_smaller=True),
    ]
    augmentation = Augmentation()
    random = [
        transforms.RandCropByPosNegLabeld(
            KEYS, label_key="label", spatial_size=settings.roi, pos=1, neg=1, num_samples=CROPS_PER_SCAN,
            image_key="image", image_threshold=0,
        ),
        *(transforms.RandFlipd(KEYS, prob=augmentation.flip, spatial_axis=axis) for axis in range(3)),
        transforms.RandRotate90d(KEYS, prob=augmentation.rotate90, max_k=3),
        transforms.RandScaleIntensityd("image", factors=0.1, prob=augmentation.scale_intensity),
        transforms.RandShiftIntensityd("image", offsets=0.1, prob=augmentation.shift_intensity),
        transforms.ToTensord(KEYS),
    ]  # fmt: skip
    items = [{"image": str(scan.image[0]), "label": str(scan.label)} for scan in scans]
    return CacheDataset(items, transforms.Compose([*fixed, *random]), progress=False, num_workers=2)


def measure(folder: Path, phantoms: int, copies: int, workers: Sequence[int], passes: int) -> Measurement:
    """Time both loaders on phantoms.

    Args:
        folder: gets the phantoms.
        phantoms: how many are drawn.
        copies: how often each is in the cache; to draw one takes longer than to load it.
        workers: a row for each of these numbers of processes that load.
        passes: through the whole cache, of each loader in turns, after one that isn't timed.
    """
    settings = Preprocessing()
    write_phantoms(folder, {"training": phantoms, "validation": 0}, seed=0, spacing=settings.spacing)
    scans = read_data_list(str(folder), None, 0).training * copies
    process = Process(torch.device("cpu"))
    peer_scans = pipeline_of_2021(scans, settings)
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
        peer_rate, our_rate = _in_turns([peer, ours], passes)
        rows.append(Row(number, our_rate, peer_rate))
    our_scans = ours.dataset.scans  # type: ignore[attr-defined]
    return Measurement(
        tuple(rows),
        statistics.mean(scan["label"].numel() for scan in our_scans),
        statistics.mean(map(_held, our_scans)),
        statistics.mean(map(_held, peer_scans._cache)),
    )


def _in_turns(loaders: Sequence[DataLoader], passes: int) -> list[float]:
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


def _held(scan: dict[str, Any]) -> int:
    """Bytes of the memory that a cached scan keeps in use."""
    return sum(value.untyped_storage().nbytes() for value in scan.values() if isinstance(value, torch.Tensor))


def main(args: argparse.Namespace) -> None:
    """Print a row for each number of workers, and what the caches hold."""
    print(f"{os.cpu_count()} cores; torch {torch.__version__}, MONAI {monai.__version__}; crops of 96³")
    with tempfile.TemporaryDirectory() as folder:
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
    parser = Parser(prog="python -m benchmarks.loader", description="Crops per second, ours and the 2021 pipeline's.")
    parser.add_argument("--phantoms", type=count, default=4, help="how many are drawn")
    parser.add_argument("--copies", type=count, default=6, help="how often each is in the caches")
    parser.add_argument("--workers", type=whole, nargs="+", default=[0, 2], help="processes that load, a row for each")
    parser.add_argument("--passes", type=count, default=7, help="passes through the caches that are timed, of each")
    main(parser.parse_args())

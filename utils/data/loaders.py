"""From a data list to batches: caching, seeded augmentation, loaders."""

import hashlib
import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from monai import transforms
from monai.data import PersistentDataset
from monai.data.utils import list_data_collate
from monai.transforms import Compose, Transform
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from utils.data.crops import Augmentation, RandomCrops
from utils.data.prefetch import PrefetchingLoader
from utils.data.preprocessing import KEYS, Preprocessing, read_transform, scan_transforms
from utils.distributed.process import Process
from utils.io.scan import Scan
from utils.system.errors import InputError, LostError, WriteError, brief


@dataclass(frozen=True)
class Caching:
    """Where preprocessed scans are kept: in memory, and on disk where ``folder`` is given."""

    in_memory: bool = True
    folder: str | None = None


class ReadableScans(Dataset):
    """Preprocessed scans; one that can't be read is named, which MONAI's own error doesn't do."""

    def __init__(self, scans: PersistentDataset) -> None:
        self.scans = scans

    def __len__(self) -> int:
        return len(self.scans)

    def __getitem__(self, index: int) -> Any:
        """The preprocessed scan ``index``.

        Raises:
            InputError: if it can't be preprocessed.
            WriteError: if there is a folder for what was, and it can't be written.
            LostError: if that folder is gone, as where a process that shares it has failed.
        """
        try:
            return self._read_or_made_anew(index)
        except FileNotFoundError as error:
            if self.scans.cache_dir is None or self.scans.cache_dir.is_dir():
                raise InputError(f"{error.filename}: is gone. Put it back, or mend the data list.") from error
            raise LostError(f"{self.scans.cache_dir}: was removed while scans were prepared.") from error
        except (RuntimeError, OSError) as error:
            in_writing = "inline_container" in str(error) or "PytorchStreamWriter" in str(error)  # of torch.save
            if isinstance(error, OSError) or in_writing:
                reason = error.strerror if isinstance(error, OSError) else "is the disk full?"
                raise WriteError(
                    f"{self.scans.cache_dir}: prepared scans can't be written there, or to the temporary folder "
                    f"{tempfile.gettempdir()} ({reason}). Make room, or name others by --cache_dir and TMPDIR."
                ) from error
            item, cause = self.scans.data[index], error.__cause__ or error
            raise InputError(
                f"{item['image']} with {item['label']}: can't be read ({brief(cause)}). "
                "Leave out --skip_data_check to see every fault."
            ) from error

    def _read_or_made_anew(self, index: int) -> Any:
        """The scan, also where a kill or another program's copying has left a part of its file."""
        file = None if self.scans.cache_dir is None else self.file(index)
        kept = file if file is not None and file.is_file() else None
        try:
            return self.scans[index]
        except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
            if kept is not None:
                kept.unlink(missing_ok=True)
            elif not isinstance(error, FileNotFoundError):
                raise
            # where nothing was kept another program may have removed what was being copied there
            return self.scans[index]

    def file(self, index: int) -> Path:
        """Where scan ``index`` lies when it was preprocessed."""
        assert self.scans.cache_dir is not None
        return self.scans.cache_dir / f"{_hash_files(self.scans.data[index]).decode()}.pt"


Scans = ReadableScans | list[Any]  # read at each use, or kept in memory


class CroppedScans(Dataset):
    """Random crops of preprocessed scans, asked for by (epoch, index).

    What is random about them is a function of the seed, the epoch and the scan, and of nothing that happened
    before: neither the number of workers nor a resumed run changes it.
    """

    def __init__(self, scans: Scans, crops: RandomCrops, seed: int) -> None:
        self.scans = scans
        self.crops = crops
        self.seed = seed

    def __len__(self) -> int:
        return len(self.scans)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """The crops of scan ``index`` in ``epoch``, as a batch."""
        epoch, index = key
        return self.crops(self.scans[index], np.random.default_rng((self.seed, epoch, index)))


class EpochSampler(DistributedSampler):
    """The scans of an epoch in an order that the seed and the epoch determine, each as (epoch, index).

    The processes deal out what is left of an epoch, whatever their number was before. Each scan is used once; only
    where they don't all get as many do some scans come again, since DDP needs equal counts.
    """

    done = 0  # scans of the epoch that all processes together have done already

    def go_to(self, epoch: int, scans: int) -> None:
        """Begin with what is left of ``epoch`` when all processes together have done ``scans`` of it."""
        self.set_epoch(epoch)
        self.done = scans

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self.dataset), generator=generator).tolist()  # type: ignore[arg-type]
        left = order[self.done :]
        missing = -len(left) % self.num_replicas
        left += islice(cycle(order), missing)
        return ((self.epoch, index) for index in left[self.rank :: self.num_replicas])


def training_loader(
    scans: Sequence[Scan],
    settings: Preprocessing,
    augmentation: Augmentation,
    caching: Caching,
    process: Process,
    *,
    batch_size: int,
    crops_per_scan: int,
    workers: int,
    seed: int,
) -> DataLoader:
    """Batches of ``batch_size · crops_per_scan`` augmented crops, each with the name of its scan.

    A scan smaller than the window is padded, as sliding windows pad it.
    """
    # a CT's background is tissue inside the window; an MR's zero is its mean, which tells nothing
    tissue_above = settings.b_min if settings.intensity == "ct" else None
    crops = RandomCrops(settings.roi, crops_per_scan, augmentation, tissue_above, settings.spacing, settings.padding)
    fixed = [
        read_transform(),
        *scan_transforms(settings),
        transforms.SpatialPadd("image", spatial_size=settings.roi, value=settings.padding),
        transforms.SpatialPadd("label", spatial_size=settings.roi),
        *_compact(),
        transforms.Lambda(crops.prepare),
    ]
    description = {**asdict(settings), "padded": True}
    cached: Scans
    if not caching.in_memory:
        cached = _prepared(scans, fixed, description, caching.folder)
    elif process.greatest(process.seat.local_size) == [1]:  # where they are more on any machine, all of them meet
        cached = _loaded(_prepared(scans, fixed, description, caching.folder), process, workers)
    else:
        with _folder_of_machine(caching.folder, process) as folder:
            cached = _mapped(_prepared(scans, fixed, description, folder), process, workers)
    dataset = CroppedScans(cached, crops, seed)
    sampler = EpochSampler(dataset, num_replicas=process.world_size, rank=process.rank, shuffle=True, seed=seed)
    options: dict[str, Any] = {"batch_size": batch_size, "collate_fn": _joined, "sampler": sampler}
    if caching.in_memory and workers > 0:
        return PrefetchingLoader(dataset, device=process.device, **_common(process), **options)
    return _loader(dataset, process, workers, **options)


def validation_loader(
    scans: Sequence[Scan], settings: Preprocessing, caching: Caching, process: Process, *, workers: int
) -> DataLoader:
    """This process's share of whole scans, one at a time, preprocessed and otherwise as they are."""
    fixed = [read_transform(), *scan_transforms(settings), *_compact()]
    shared = process.share(list(scans))
    prepared = _prepared(shared, fixed, {**asdict(settings), "padded": False}, caching.folder)
    cached = _loaded(prepared, process, workers) if caching.in_memory else prepared
    return _loader(cached, process, workers if not caching.in_memory else 0, collate_fn=list_data_collate, batch_size=1)


def _compact() -> list[Transform]:
    """Plain tensors without the history that MONAI keeps to invert a transform, in the smallest types without loss."""
    return [
        transforms.CastToTyped(KEYS, dtype=(np.float32, np.int16)),
        transforms.Lambdad("label", _in_a_byte),
        transforms.Lambdad(KEYS, _own_memory),
        transforms.ToTensord(KEYS, track_meta=False),  # last, since Lambdad makes MetaTensors of plain ones
        transforms.SelectItemsd((*KEYS, "name")),
    ]


def _in_a_byte(label: torch.Tensor) -> torch.Tensor:
    """The label in one byte a voxel where that holds its values."""
    return label.byte() if label.min() >= 0 and label.max() <= 255 else label


def _own_memory(volume: torch.Tensor) -> torch.Tensor:
    """The volume in memory of its own, since a crop would keep the whole that it was cut from."""
    return volume.clone(memory_format=torch.contiguous_format)


def _prepared(
    scans: Sequence[Scan], fixed: list[Transform], description: Mapping[str, Any], folder: str | None
) -> ReadableScans:
    """The scans after the transforms that aren't random, kept on disk where ``folder`` is given."""
    if folder is not None:
        # a folder for each set of settings: changed settings never meet scans that others made
        text = json.dumps({**description, "layout": 4, "monai": monai.__version__}, sort_keys=True)
        folder = os.path.join(folder, hashlib.sha256(text.encode()).hexdigest()[:16])
    items = [_item(scan) for scan in scans]
    return ReadableScans(PersistentDataset(items, Compose(fixed), folder, hash_func=_hash_files))


def _each(scans: ReadableScans, part: range, process: Process, workers: int) -> Iterable[Any]:
    """Some of the scans, read in threads."""
    # MONAI's CacheDataset leaves its threads running when a scan can't be read, and the program then ends in an abort
    loaded = process.stop.map_in_threads(scans.__getitem__, part, _at_most_cores(workers))
    return process.bar(loaded, "loading scans", total=len(part))


def _loaded(scans: ReadableScans, process: Process, workers: int) -> list[Any]:
    """The scans in this process's memory."""
    return list(_each(scans, range(len(scans)), process, workers))


def _mapped(scans: ReadableScans, process: Process, workers: int) -> list[Any]:
    """The scans as files that are mapped into memory, where the processes of a machine hold them once.

    Each process prepares a part of them.
    """
    part = range(process.seat.local_rank, len(scans), process.seat.local_size)
    for _ in _each(scans, part, process, workers):
        pass  # it is in its file
    process.wait_for_all()
    return [torch.load(scans.file(index), mmap=True, weights_only=True) for index in range(len(scans))]


@contextmanager
def _folder_of_machine(folder: str | None, process: Process) -> Iterator[str]:
    """``folder``, or where that is None one that the processes of this machine share for a while."""
    if folder is not None:
        yield folder
        process.wait_for_all()
        return
    temporary = None
    if process.seat.local_rank == 0:
        temporary = tempfile.mkdtemp(prefix="unetr-scans-")
        # if this process fails its folder goes when the others have heard of that, and don't take it for their fault
        remove = Finalize(None, shutil.rmtree, (temporary,), {"ignore_errors": True}, exitpriority=0)
    yield process.collect(temporary)[process.rank - process.seat.local_rank] or ""
    process.wait_for_all()
    if temporary is not None:
        remove()  # everyone has mapped what is there; files live on without their names


def _joined(batches: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The batches of several scans as one."""
    if len(batches) == 1:
        return batches[0]
    return {
        **{key: torch.cat([batch[key] for batch in batches]) for key in KEYS},
        "name": [name for batch in batches for name in batch["name"]],
    }


def _item(scan: Scan) -> dict[str, Any]:
    images = [str(path) for path in scan.image]
    return {"image": images if len(images) > 1 else images[0], "label": str(scan.label), "name": scan.name}


def _hash_files(item: Mapping[str, Any]) -> bytes:
    """Names a cached scan by its files and their state, so that a file that changed is read again."""
    images = item["image"] if isinstance(item["image"], list) else [item["image"]]
    state: list[Any] = [(path, os.stat(path).st_mtime_ns, os.stat(path).st_size) for path in [*images, item["label"]]]
    return hashlib.sha256(json.dumps([item["name"], state]).encode()).hexdigest().encode()


def _at_most_cores(workers: int) -> int:
    return min(workers, os.cpu_count() or 1)


def _loader(dataset: Any, process: Process, workers: int, **options: Any) -> DataLoader:
    count = _at_most_cores(workers)
    return DataLoader(
        dataset,
        num_workers=count,
        persistent_workers=count > 0,
        worker_init_fn=process.stop.leave_to_parent,
        **_common(process),
        **options,
    )


def _common(process: Process) -> dict[str, Any]:
    """What every loader of a process has."""
    return {
        "pin_memory": process.device.type == "cuda",
        "generator": torch.Generator(),  # its own, so that loading leaves the network's random numbers alone
    }

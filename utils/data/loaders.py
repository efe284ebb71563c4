"""From scans to batches: caching, seeded augmentation, loaders."""

import json
import os
import secrets
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from monai import transforms
from monai.data.utils import list_data_collate
from monai.transforms import Compose, Transform
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from utils.data.crops import Augmentation, RandomCrops
from utils.data.prefetch import PrefetchingLoader
from utils.data.preprocessing import FACTS, KEYS, Preprocessing, ReadScan, scan_transforms
from utils.data.workers import WorkerLoader
from utils.distributed.process import Process
from utils.io.reader import scan_files
from utils.io.scan import Scan
from utils.system.errors import UNREADABLE, InputError, LostError, WriteError, first_line
from utils.system.files import UNFINISHED, file_state, text_hash
from utils.system.tensors import save_tensors
from utils.system.threads import single_threaded


@dataclass(frozen=True)
class Caching:
    """Where preprocessed scans are kept: in memory, or where ``folder`` is given in files there.

    With ``in_memory`` these files are mapped into memory, so that the system keeps of them what it has room for.
    Without, each use reads its scan anew.
    """

    in_memory: bool = True
    folder: str | None = None


class PreprocessedScans(Dataset):
    """Preprocessed scans, made at each use, or kept in a folder that several programs may share.

    MONAI's ``PersistentDataset`` keeps some as well, but takes a folder that it can't write to for none, and copies
    files in while another program reads them.

    Args:
        transform: makes a scan.
        folder: where they are kept, if anywhere.

    Raises:
        WriteError: if the folder can't be made.
    """

    def __init__(self, scans: Sequence[Scan], transform: Compose, folder: Path | None) -> None:
        self.scans, self.transform, self.folder = scans, transform, folder
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise self._unwritable(error.strerror) from error

    def __len__(self) -> int:
        return len(self.scans)

    def __getitem__(self, index: int) -> Any:
        """The preprocessed scan ``index``.

        It is made again if its file isn't what was written, as after a kill or with a flipped bit.

        Raises:
            InputError: if it can't be read or preprocessed.
            WriteError: if the folder for preprocessed scans can't be written.
            LostError: if that folder is gone, as when a process that shares it has failed.
        """
        if self.folder is None:
            return self._made(index)
        file = self.file(index)
        try:
            if _is_as_written(file):
                return torch.load(file, weights_only=True)
        except FileNotFoundError:
            pass  # another program has removed it meanwhile
        scan = self._made(index)
        self._write(scan, file)
        return scan

    def _made(self, index: int) -> Any:
        try:
            return self.transform(self.scans[index], threading=True)  # which several threads may call at once
        except RuntimeError as error:
            cause = error.__cause__ or error  # MONAI names its transform, and the cause behind it
            if isinstance(cause, InputError):
                raise cause from None
            raise InputError(
                f"{self.scans[index].path}: can't be preprocessed ({first_line(cause)}). "
                "Without `skip_data_check` a run first lists every fault that it finds."
            ) from error

    def _write(self, scan: Any, file: Path) -> None:
        """Write a scan's file in one step, since others may be reading it, or writing the same.

        Unlike :func:`utils.system.files.atomic_write` it doesn't wait for the disk: a damaged file shows by its
        checksums, and is made again.
        """
        assert self.folder is not None
        temporary = file.with_name(f"{file.name}.{secrets.token_hex(4)}{UNFINISHED}")
        try:
            try:
                with open(temporary, "xb") as stream:
                    save_tensors(scan, stream)
                os.replace(temporary, file)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            if not self.folder.is_dir():
                raise LostError(f"{self.folder}: was removed while scans were prepared.") from error
            raise self._unwritable(error.strerror) from error

    def _unwritable(self, reason: str | None) -> WriteError:
        return WriteError(
            f"{self.folder}: prepared scans can't be written there ({reason}). Make room, or name another folder by "
            "`cache_dir`, or where none was given by TMPDIR."
        )

    def file(self, index: int) -> Path:
        """The file of scan ``index`` in the folder for preprocessed scans."""
        assert self.folder is not None
        return self.folder / f"{_hash_files(self.scans[index])}.pt"


def _is_as_written(file: Path) -> bool:
    """Whether a file of ``torch.save`` agrees with the checksums in it, and holds an image with a label.

    torch checks neither: it would train on what a disk made of the voxels.
    """
    try:
        if file.is_symlink():
            return False
        with zipfile.ZipFile(file) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                return False
            if archive.testzip() is not None:
                return False
        content = torch.load(file, mmap=True, weights_only=True)
        return all(isinstance(content[key], torch.Tensor) and content[key].ndim == 4 for key in KEYS)
    except UNREADABLE:
        return False


Scans = PreprocessedScans | list[Any]  # read at each use, or kept in memory


class CroppedScans(Dataset):
    """Random crops of preprocessed scans, by (epoch, index).

    They depend on the seed, the epoch and the scan alone: neither the number of workers nor resuming changes them.
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
        random = np.random.default_rng((self.seed, epoch, index))
        with single_threaded() if self.crops.augmentation.strong else nullcontext():
            return self.crops(self.scans[index], random)


class EpochSampler(DistributedSampler):
    """The scans of an epoch in an order that the seed and the epoch determine, each as (epoch, index).

    The processes share what is left of an epoch, whatever their number was before. Each scan is used once; only if
    the processes can't get equally many, as DDP requires, are some used again.
    """

    done = 0  # scans of the epoch that all processes together have done

    def go_to(self, epoch: int, scans: int) -> None:
        """Continue ``epoch`` where all processes together have done ``scans`` of it."""
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
    classes: int | None = None,
) -> DataLoader:
    """Batches of ``batch_size · crops_per_scan`` augmented crops, each with the name of its scan.

    A scan smaller than the window is padded, as sliding windows pad it. A label with other values than
    0 … ``classes`` - 1 is refused when its scan is prepared.
    """
    # a CT's background is tissue inside the window; an MR's zero is its mean, and says nothing about tissue
    tissue_above = settings.b_min if settings.intensity == "ct" else None
    crops = RandomCrops(settings.roi, crops_per_scan, augmentation, tissue_above, settings.spacing, settings.padding)
    fixed = [
        ReadScan(settings, classes),
        *scan_transforms(settings),
        transforms.SpatialPadd("image", spatial_size=settings.roi, value=settings.padding),
        transforms.SpatialPadd("label", spatial_size=settings.roi),
        *_compact_transforms(),
        transforms.Lambda(crops.prepare),
    ]
    description = {**asdict(settings), "padded": True}
    cached: Scans
    if not caching.in_memory:
        cached = _preprocessed(scans, fixed, description, caching.folder)
    # all processes take one way, as those of a machine with several wait for all others
    elif process.all_reduce_max(process.rank_info.local_size, caching.folder is not None) == [1, 0]:
        cached = _load(_preprocessed(scans, fixed, description, caching.folder), process, workers)
    else:
        with _machine_folder(caching.folder, process) as folder:
            preprocessed = _preprocessed(scans, fixed, description, folder)
            # each process of a machine writes its share
            part = range(process.rank_info.local_rank, len(scans), process.rank_info.local_size)
            _prepare(preprocessed, part, process, workers)
            process.barrier()
            cached = _memory_map(preprocessed)
    dataset = CroppedScans(cached, crops, seed)
    sampler = EpochSampler(dataset, num_replicas=process.world_size, rank=process.rank, shuffle=True, seed=seed)
    options: dict[str, Any] = {"batch_size": batch_size, "collate_fn": _concatenate, "sampler": sampler}
    # strong augmentation takes so long that several processes pay, although each batch comes through a socket
    if caching.in_memory and workers > 0 and not augmentation.strong:
        return PrefetchingLoader(dataset, device=process.device, **_loader_options(process), **options)
    return _loader(dataset, process, workers, **options)


def validation_loader(
    scans: Sequence[Scan],
    settings: Preprocessing,
    caching: Caching,
    process: Process,
    *,
    workers: int,
    classes: int | None = None,
) -> DataLoader:
    """This process's share of whole scans, one at a time, preprocessed and otherwise as they are."""
    fixed = [ReadScan(settings, classes), *scan_transforms(settings), *_compact_transforms()]
    shard = process.shard(list(scans))
    preprocessed = _preprocessed(shard, fixed, {**asdict(settings), "padded": False}, caching.folder)
    cached: Scans = preprocessed
    if caching.in_memory and caching.folder is None:
        cached = _load(preprocessed, process, workers)
    elif caching.in_memory:
        _prepare(preprocessed, range(len(preprocessed)), process, workers)
        cached = _memory_map(preprocessed)
    return _loader(cached, process, workers if not caching.in_memory else 0, collate_fn=list_data_collate, batch_size=1)


def _compact_transforms() -> list[Transform]:
    """Plain tensors in the smallest types without loss, without the history that MONAI keeps to invert transforms."""
    return [
        transforms.CastToTyped(KEYS, dtype=(np.float32, np.int16)),
        transforms.Lambdad("label", _to_uint8_if_lossless),
        transforms.Lambdad(KEYS, _clone),
        transforms.ToTensord(KEYS, track_meta=False),  # last, since Lambdad makes MetaTensors of plain ones
        transforms.SelectItemsd((*KEYS, *FACTS)),
    ]


def _to_uint8_if_lossless(label: torch.Tensor) -> torch.Tensor:
    return label.byte() if label.min() >= 0 and label.max() <= 255 else label


def _clone(volume: torch.Tensor) -> torch.Tensor:
    """A copy that doesn't keep alive the larger volume that it was cropped from."""
    return volume.clone(memory_format=torch.contiguous_format)


def _preprocessed(
    scans: Sequence[Scan], fixed: list[Transform], description: Mapping[str, Any], folder: str | None
) -> PreprocessedScans:
    """The scans after the transforms that aren't random, kept on disk if there is a ``folder``."""
    if folder is not None:
        # a subfolder for each set of settings, so that none gets the scans of another
        text = json.dumps({**description, "layout": 6, "monai": monai.__version__}, sort_keys=True)
        folder = os.path.join(folder, text_hash(text))
    return PreprocessedScans(scans, Compose(fixed), None if folder is None else Path(folder))


def _in_threads(scans: PreprocessedScans, indices: range, process: Process, workers: int) -> Iterable[Any]:
    """Some of the scans, read in threads."""
    # MONAI's CacheDataset leaves its threads running if a scan can't be read, and the program then ends in an abort
    loaded = process.stop.map_in_threads(scans.__getitem__, indices, _at_most_cores(workers))
    return process.bar(loaded, "loading scans", total=len(indices))


def _load(scans: PreprocessedScans, process: Process, workers: int) -> list[Any]:
    """The scans in this process's memory."""
    return list(_in_threads(scans, range(len(scans)), process, workers))


def _prepare(scans: PreprocessedScans, indices: range, process: Process, workers: int) -> None:
    """Write some of the scans into their files."""
    for _ in _in_threads(scans, indices, process, workers):
        pass  # it is in its file


def _memory_map(scans: PreprocessedScans) -> list[Any]:
    """The scans as memory-mapped files."""
    return [torch.load(scans.file(index), mmap=True, weights_only=True) for index in range(len(scans))]


@contextmanager
def _machine_folder(folder: str | None, process: Process) -> Iterator[str]:
    """``folder``, or a temporary one that the processes of this machine share."""
    temporary = None
    if folder is None and process.rank_info.local_rank == 0:
        temporary = tempfile.mkdtemp(prefix="unetr-scans-")
        # if this process fails, remove it at exit: the others know of the failure by then, and don't report the folder
        remove = Finalize(None, shutil.rmtree, (temporary,), {"ignore_errors": True}, exitpriority=0)
    # another machine may have a folder where this one has none
    shared = process.all_gather(temporary)[process.rank - process.rank_info.local_rank]
    yield folder or shared or ""
    process.barrier()
    if temporary is not None:
        remove()  # all processes have mapped its files, whose content stays until they end


def _concatenate(batches: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Join the batches of several scans."""
    if len(batches) == 1:
        return batches[0]
    return {
        **{key: torch.cat([batch[key] for batch in batches]) for key in KEYS},
        **{fact: [of_crop for batch in batches for of_crop in batch[fact]] for fact in FACTS},
    }


def _hash_files(scan: Scan) -> str:
    """The key of a cached scan: what its list says of it and the state of its files, so that a change is noticed."""
    state = [file_state(file) for file in scan_files(scan)]
    names = [scan.structures] if scan.structures else []
    return text_hash(json.dumps([scan.name, scan.not_annotated, scan.ignore, state, *names]))


def _at_most_cores(workers: int) -> int:
    return min(workers, os.cpu_count() or 1)


def _loader(dataset: Any, process: Process, workers: int, **options: Any) -> DataLoader:
    options |= _loader_options(process)
    count = _at_most_cores(workers)
    return WorkerLoader(dataset, owner=process, workers=count, **options) if count else DataLoader(dataset, **options)


def _loader_options(process: Process) -> dict[str, Any]:
    """What all loaders of a process have in common."""
    return {
        "pin_memory": process.device.type == "cuda",
        "generator": torch.Generator(),  # so that loading doesn't draw from the network's random numbers
    }

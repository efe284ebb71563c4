"""Batches: random crops that depend on (seed, epoch, scan) alone, caches that follow their settings."""

import errno
import itertools
import os
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Lambda

from tests.conftest import FileSizeLimit
from tests.io.series import write_series
from utils.data import loaders
from utils.data.crops import Augmentation
from utils.data.data_list import read_data_list
from utils.data.loaders import Caching, EpochSampler, training_loader, validation_loader
from utils.data.prefetch import PrefetchingLoader
from utils.data.preprocessing import Preprocessing
from utils.data.workers import WorkerLoader
from utils.distributed.process import Process
from utils.distributed.rendezvous import RankInfo
from utils.io.reader import read_scan
from utils.io.scan import Scan
from utils.system.errors import InputError, WriteError

SETTINGS = Preprocessing(spacing=(12, 12, 14), roi=(16, 16, 16))
ALL = Augmentation(flip=0.5, rotate90=0.5, scale_intensity=0.5, shift_intensity=0.5, strong=True)
CPU = Process(torch.device("cpu"))


def scans(phantoms: Path) -> list[Scan]:
    return read_data_list(str(phantoms), None, 0).training


def loader(phantoms: Path, **changes: Any) -> Any:
    options: dict[str, Any] = {"batch_size": 2, "crops_per_scan": 2, "workers": 0, "seed": 0}
    settings = changes.pop("settings", SETTINGS)
    caching = changes.pop("caching", Caching())
    process = changes.pop("process", CPU)
    augmentation = changes.pop("augmentation", ALL)
    return training_loader(scans(phantoms), settings, augmentation, caching, process, **{**options, **changes})


def epoch(loader: Any, number: int) -> list[dict[str, Any]]:
    loader.sampler.go_to(number, 0)
    return list(loader)


def same(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> bool:
    return all(
        x["name"] == y["name"] and torch.equal(x["image"], y["image"]) and torch.equal(x["label"], y["label"])
        for x, y in zip(a, b, strict=True)
    )


def test_a_batch_holds_the_crops_of_its_scans(phantoms: Path) -> None:
    batches = epoch(loader(phantoms), 0)
    assert len(batches) == 2
    for batch in batches:
        assert batch["image"].shape == batch["label"].shape == (4, 1, 16, 16, 16)
        assert batch["label"].min() >= 0
        assert batch["label"].max() <= 13
    assert sorted({name for batch in batches for name in batch["name"]}) == ["img0001", "img0002", "img0003", "img0004"]


def test_crops_depend_on_seed_and_epoch_and_not_on_workers_or_history(phantoms: Path) -> None:
    fresh, in_workers, other_seed = loader(phantoms), loader(phantoms, workers=2), loader(phantoms, seed=1)
    third = epoch(fresh, 3)
    assert same(third, epoch(in_workers, 3))
    epoch(fresh, 0)
    assert same(third, epoch(fresh, 3))
    assert not same(third, epoch(fresh, 4))
    assert not same(third, epoch(other_seed, 3))


def test_strong_augmentation_is_the_same_to_the_last_bit_for_any_number_of_processes(
    phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Crops of 48³ are large enough for torch to share its sums among threads."""
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    settings = replace(SETTINGS, spacing=(6.0, 6.0, 6.0), roi=(48, 48, 48))
    expected = epoch(loader(phantoms, settings=settings, crops_per_scan=4), 2)
    for workers in (1, 2, 3):
        batches = loader(phantoms, settings=settings, crops_per_scan=4, workers=workers)
        assert same(expected, epoch(batches, 2))
        assert isinstance(batches, WorkerLoader)
        assert batches.count == workers
    assert isinstance(loader(phantoms, workers=2, augmentation=Augmentation()), PrefetchingLoader)


def test_cropping_leaves_the_cache_as_it_was(phantoms: Path) -> None:
    batches = loader(phantoms)
    cached = batches.dataset.scans
    before = [cached[index]["image"].clone() for index in range(4)]
    for number in range(3):
        epoch(batches, number)
    for index, image in enumerate(before):
        assert torch.equal(cached[index]["image"], image)


def test_scans_in_a_folder_are_mapped_and_not_held(phantoms: Path, tmp_path: Path) -> None:
    """With the same crops; the system drops pages of files where it needs room."""
    held, mapped = loader(phantoms), loader(phantoms, caching=Caching(folder=str(tmp_path)))
    assert same(epoch(held, 1), epoch(mapped, 1))
    data = read_data_list(str(phantoms), None, 0)
    validation = validation_loader(data.validation, SETTINGS, Caching(folder=str(tmp_path)), CPU, workers=2)
    expected = validation_loader(data.validation, SETTINGS, Caching(), CPU, workers=2)
    assert same(list(validation), list(expected))
    maps = Path("/proc/self/maps").read_text()
    files = list(tmp_path.rglob("*.pt"))
    assert len(files) == 6
    assert all(str(file) in maps for file in files)


def test_half_of_the_crops_are_centred_on_an_organ(phantoms: Path) -> None:
    plain = Augmentation(0, 0, 0, 0)
    settings = replace(SETTINGS, spacing=(5.0, 5.0, 6.0))
    batches = epoch(loader(phantoms, settings=settings, augmentation=plain, crops_per_scan=40), 0)
    labels = torch.cat([batch["label"] for batch in batches])[:, 0]
    centred = (labels[:, 8, 8, 8] > 0).float().mean().item()
    # 160 crops; those centred on background are not on an organ unless the border moved them
    assert 0.38 < centred < 0.68


def test_the_cache_holds_little_more_than_five_bytes_a_voxel(phantoms: Path) -> None:
    for scan in loader(phantoms, settings=replace(SETTINGS, spacing=(10.0, 10.0, 12.0))).dataset.scans:
        assert (scan["image"].dtype, scan["label"].dtype) == (torch.float32, torch.uint8)
        held = [value.untyped_storage().nbytes() for value in scan.values() if isinstance(value, torch.Tensor)]
        voxels = scan["label"].numel()
        rows = voxels // scan["label"].shape[-1]
        assert sum(held) == 5 * voxels + 2 * 4 * rows


def test_labels_that_no_byte_holds_are_kept(phantoms: Path, tmp_path: Path) -> None:
    """One scan has labels up to 300 and one a label of -1; the others have 0 … 13."""
    folder = tmp_path / "phantoms"
    shutil.copytree(phantoms, folder)
    for number, value in ((1, 300), (2, -1)):
        path = folder / "labelsTr" / f"label000{number}.nii.gz"
        label = nib.load(path)
        voxels = np.asarray(label.dataobj).astype(np.int16)  # type: ignore[attr-defined]
        voxels[voxels == 6] = value
        nib.save(nib.Nifti1Image(voxels, label.affine), path)  # type: ignore[attr-defined]
    settings = replace(SETTINGS, spacing=(10.0, 10.0, 12.0))
    batches = loader(folder, settings=settings, batch_size=4, crops_per_scan=20)
    types = [scan["label"].dtype for scan in batches.dataset.scans]
    assert types == [torch.int16, torch.int16, torch.uint8, torch.uint8]
    (batch,) = epoch(batches, 0)
    by_scan: dict[str, set[int]] = {}
    for number, name in enumerate(batch["name"]):
        by_scan.setdefault(name, set()).update(batch["label"][number].unique().tolist())
    assert 300 in by_scan["img0001"]
    assert -1 in by_scan["img0002"]
    assert max(by_scan["img0003"] | by_scan["img0004"]) <= 13


@pytest.mark.parametrize("b_min", [0.0, -1.0])
def test_a_scan_smaller_than_the_window_is_padded_with_air(phantoms: Path, b_min: float) -> None:
    settings = replace(SETTINGS, spacing=(40.0, 40.0, 40.0), b_min=b_min)
    batch = epoch(loader(phantoms, settings=settings, augmentation=Augmentation(0, 0, 0, 0)), 0)[0]
    assert batch["image"].shape == (4, 1, 16, 16, 16)
    assert (batch["image"][:, :, 0] == b_min).all()
    assert (batch["label"][:, :, 0] == 0).all()


def test_a_window_that_is_not_square_in_the_plane_is_not_rotated(phantoms: Path) -> None:
    settings = replace(SETTINGS, roi=(16, 32, 16))
    batches = epoch(loader(phantoms, settings=settings, augmentation=Augmentation(0, 1.0, 0, 0)), 0)
    assert batches[0]["image"].shape == (4, 1, 16, 32, 16)


def test_validation_gives_whole_scans_in_order(phantoms: Path) -> None:
    data = read_data_list(str(phantoms), None, 0)
    batches = list(validation_loader(data.validation, SETTINGS, Caching(), CPU, workers=0))
    assert [batch["name"] for batch in batches] == [["img0005"], ["img0006"]]
    assert all(batch["image"].shape == batch["label"].shape for batch in batches)
    # MetaTensors would slow each operation of the network
    assert {type(batch[key]) for batch in batches for key in ("image", "label")} == {torch.Tensor}


def test_processes_share_the_validation_scans_with_none_twice(phantoms: Path) -> None:
    data = read_data_list(str(phantoms), None, 0)
    seen = []
    for rank in range(3):
        process = Process(torch.device("cpu"), RankInfo(rank, world_size=3))
        batches = validation_loader(data.training + data.validation, SETTINGS, Caching(), process, workers=0)
        seen += [name for batch in batches for name in batch["name"]]
    assert sorted(seen) == [f"img000{number}" for number in range(1, 7)]


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the scans that were read from their files."""
    read: list[str] = []
    original = loaders.scan_transforms

    class Spy:
        def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
            read.append(item["name"])
            return item

    def spied(settings: Preprocessing) -> list[Any]:
        return [Lambda(Spy()), *original(settings)]

    monkeypatch.setattr(loaders, "scan_transforms", spied)
    return iter([read])


def test_the_disk_cache_is_used_again_and_refreshed_when_something_changes(
    phantoms: Path, tmp_path: Path, loads: Iterator[list[str]]
) -> None:
    read = next(loads)
    caching = Caching(folder=str(tmp_path / "cache"))
    first = epoch(loader(phantoms, caching=caching), 0)
    assert len(read) == 4
    assert same(first, epoch(loader(phantoms, caching=caching), 0))
    assert len(read) == 4  # nothing was read again
    loader(phantoms, caching=caching, settings=replace(SETTINGS, a_max=300.0))
    assert len(read) == 8  # other settings
    image = scans(phantoms)[0].image[0]
    image.write_bytes(image.read_bytes())
    loader(phantoms, caching=caching)
    assert len(read) == 9  # one changed file


@pytest.mark.parametrize("size", [0, 100, 4096, -10])
def test_a_cached_scan_of_which_a_part_is_there_is_made_anew(
    size: int, phantoms: Path, tmp_path: Path, loads: Iterator[list[str]]
) -> None:
    read = next(loads)
    caching = Caching(folder=str(tmp_path / "cache"))
    first = epoch(loader(phantoms, caching=caching), 0)
    file = next((tmp_path / "cache").glob("*/*.pt"))
    whole = file.read_bytes()
    file.write_bytes(whole[:size])
    assert same(first, epoch(loader(phantoms, caching=caching), 0))
    assert len(read) == 5
    assert file.stat().st_size == len(whole)


def test_a_cached_scan_with_a_flipped_bit_is_made_anew(
    phantoms: Path, tmp_path: Path, loads: Iterator[list[str]]
) -> None:
    read = next(loads)
    caching = Caching(folder=str(tmp_path / "cache"))
    first = epoch(loader(phantoms, caching=caching), 0)
    file = next((tmp_path / "cache").glob("*/*.pt"))
    whole = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        voxels = max(archive.infolist(), key=lambda member: member.file_size)
    # behind a member's header of 30 bytes come its name, and what fills it up to a multiple of 64
    middle = voxels.header_offset + 30 + len(voxels.filename) + 64 + voxels.file_size // 2
    file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    assert same(first, epoch(loader(phantoms, caching=caching), 0))
    assert len(read) == 5
    assert file.read_bytes() == whole


def test_a_planted_link_in_the_cache_is_neither_read_nor_followed(phantoms: Path, tmp_path: Path) -> None:
    caching = Caching(folder=str(tmp_path / "cache"))
    first = epoch(loader(phantoms, caching=caching), 0)
    file = next((tmp_path / "cache").glob("*/*.pt"))
    file.rename(tmp_path / "victim.pt")
    torch.save({"image": "no scan"}, tmp_path / "victim.pt")
    victim = (tmp_path / "victim.pt").read_bytes()
    file.symlink_to(tmp_path / "victim.pt")
    assert same(first, epoch(loader(phantoms, caching=caching), 0))
    assert not file.is_symlink()
    assert (tmp_path / "victim.pt").read_bytes() == victim


def test_a_scan_that_another_program_removed_from_the_cache_is_made_again(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caching = Caching(folder=str(tmp_path / "cache"))
    expected = epoch(loader(phantoms, caching=caching), 0)
    original = loaders._is_as_written
    removed: list[Path] = []

    def removed_once(file: Path) -> bool:
        result = original(file)
        if result and not removed:
            file.unlink()
            removed.append(file)
        return result

    monkeypatch.setattr(loaders, "_is_as_written", removed_once)
    assert same(expected, epoch(loader(phantoms, caching=caching), 0))
    assert removed[0].is_file()


def test_two_programs_may_fill_a_cache_at_once(phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one begins with the same scan while this one's file is half written."""
    caching = Caching(folder=str(tmp_path / "cache"))
    expected = epoch(loader(phantoms), 0)
    original = loaders.save_tensors
    others: list[Any] = []

    def half_written(content: Any, file: Any) -> None:
        file.write(b"PK half of a file")
        file.flush()
        if not others:
            others.append(None)
            others[0] = epoch(loader(phantoms, caching=caching), 0)
        file.seek(0)
        original(content, file)

    monkeypatch.setattr(loaders, "save_tensors", half_written)
    assert same(expected, epoch(loader(phantoms, caching=caching), 0))
    assert same(expected, others[0])
    assert {file.suffix for file in (tmp_path / "cache").glob("*/*")} == {".pt"}


def test_a_cache_of_somebody_else_that_cannot_be_written_is_named(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(content: Any, file: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(loaders, "save_tensors", refused)
    with pytest.raises(WriteError, match=r"prepared scans can't be written there \(Permission denied\)"):
        loader(phantoms, caching=Caching(folder=str(tmp_path / "cache")))


def test_a_process_alone_on_its_machine_meets_those_that_are_several_on_theirs(
    phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them have to take the same way, or they wait for each other in different places."""
    expected = epoch(loader(phantoms), 0)
    met = []

    class Alone(Process):
        def all_reduce_max(self, *values: int) -> list[int]:
            return [2 if value == self.rank_info.local_size else value for value in values]

        def barrier(self) -> None:
            met.append("all")

    assert same(expected, epoch(loader(phantoms, process=Alone(torch.device("cpu"))), 0))
    assert met


def test_a_scan_that_is_gone_is_named_also_beside_a_cache(phantoms: Path, tmp_path: Path) -> None:
    image = scans(phantoms)[0].image[0]
    image.rename(image.with_name("elsewhere"))
    try:
        with pytest.raises(InputError, match=rf"{image}: can't be read \(No such file or directory\)\. Mend the path"):
            loader(phantoms, caching=Caching(folder=str(tmp_path / "cache")))
    finally:
        image.with_name("elsewhere").rename(image)


@pytest.mark.parametrize("kind", ["series", "pair"])
def test_a_cached_scan_is_read_again_when_any_of_its_files_changed(
    kind: str, phantoms: Path, tmp_path: Path, loads: Iterator[list[str]]
) -> None:
    read = next(loads)
    scan = scans(phantoms)[0]
    volume = read_scan(scan, 1)
    if kind == "series":
        write_series(tmp_path / "ct", volume.voxels[0].astype(np.int16), volume.affine)
        files = tuple(sorted((tmp_path / "ct").iterdir()))
        changed = replace(scan, image=files, is_series=True)
    else:
        nib.save(nib.Nifti1Pair(volume.voxels[0], volume.affine), tmp_path / "scan.img")
        files = (tmp_path / "scan.hdr", tmp_path / "scan.img")
        changed = replace(scan, image=files[:1])
    caching = Caching(folder=str(tmp_path / "cache"))
    for count in (1, 1):
        validation_loader([changed], SETTINGS, caching, CPU, workers=0)
        assert len(read) == count
    for number, file in enumerate((files[0], files[-1])):
        os.utime(file, ns=(0, number))
        validation_loader([changed], SETTINGS, caching, CPU, workers=0)
        assert len(read) == 2 + number


def test_a_damaged_scan_is_named_by_the_reader(phantoms: Path, tmp_path: Path) -> None:
    scan = replace(scans(phantoms)[0], image=(tmp_path / "scan.nii.gz",))
    scan.image[0].write_bytes(scans(phantoms)[0].image[0].read_bytes()[:5000])
    with pytest.raises(InputError, match=rf"^{scan.image[0]}: is cut off or damaged \(Compressed file ended"):
        validation_loader([scan], SETTINGS, Caching(), CPU, workers=0)


def test_without_a_memory_cache_scans_are_read_at_each_use(phantoms: Path, loads: Iterator[list[str]]) -> None:
    read = next(loads)
    batches = loader(phantoms, caching=Caching(in_memory=False))
    assert len(read) == 0
    epoch(batches, 0)
    epoch(batches, 1)
    assert len(read) == 8


def test_memory_cache_reads_each_scan_once(phantoms: Path, loads: Iterator[list[str]]) -> None:
    read = next(loads)
    batches = loader(phantoms)
    epoch(batches, 0)
    epoch(batches, 1)
    assert len(read) == 4


def test_intensities_change_only_when_asked(phantoms: Path) -> None:
    plain = epoch(loader(phantoms, augmentation=Augmentation(0, 0, 0, 0)), 0)[0]["image"]
    shifted = epoch(loader(phantoms, augmentation=Augmentation(0, 0, 0, 1.0)), 0)[0]["image"]
    scaled = epoch(loader(phantoms, augmentation=Augmentation(0, 0, 1.0, 0)), 0)[0]["image"]
    differences = (shifted - plain).flatten(1)
    torch.testing.assert_close(differences, differences[:, :1].expand_as(differences), atol=1e-5, rtol=0)
    assert 0 < float(differences[:, 0].abs().max()) <= 0.1
    factors = (scaled / plain)[plain > 0.1]
    assert float(factors.min()) >= 0.9 - 1e-6
    assert float(factors.max()) <= 1.1 + 1e-6
    assert (factors - 1).abs().max() > 1e-3


def test_a_full_disk_under_the_cache_is_named(phantoms: Path, tmp_path: Path, file_size_limit: FileSizeLimit) -> None:
    folder = tmp_path / "cache"
    with (
        pytest.raises(WriteError, match=rf"{folder}/\w+: prepared scans can't be written there"),
        file_size_limit(2000),
    ):
        loader(phantoms, caching=Caching(folder=str(folder)))


def dealt(scans: int, processes: int, done: int = 0) -> list[list[int]]:
    """The scans that each process gets of what is left of an epoch."""
    parts = []
    for rank in range(processes):
        sampler = EpochSampler(range(scans), num_replicas=processes, rank=rank, shuffle=True, seed=0)  # type: ignore[arg-type]
        sampler.go_to(3, done)
        parts.append([index for epoch, index in sampler if epoch == 3])
    return parts


def test_each_scan_is_used_once_an_epoch_and_some_again_where_counts_must_be_equal() -> None:
    assert sorted(itertools.chain(*dealt(8, 2))) == list(range(8))
    parts = dealt(7, 3)
    assert [len(part) for part in parts] == [3, 3, 3]
    used = list(itertools.chain(*parts))
    assert set(used) == set(range(7))
    assert len(used) == 9


def test_more_processes_than_scans() -> None:
    parts = dealt(2, 5)
    assert [len(part) for part in parts] == [1] * 5
    assert {part[0] for part in parts} == {0, 1}


@pytest.mark.parametrize("after", [1, 2, 3, 5])
def test_what_is_left_of_an_epoch_is_dealt_to_any_number_of_processes(after: int) -> None:
    """Four processes have taken two steps of an epoch of 13 scans."""
    order = [part[step] for step in range(4) for part in dealt(13, 4)]
    done, left = order[:8], order[8:13]
    parts = dealt(13, after, done=8)
    rest = [part[step] for step in range(len(parts[0])) for part in parts]
    assert rest[:5] == left
    assert not set(rest[:5]) & set(done)
    assert len(rest) == -(-5 // after) * after


def test_an_epoch_that_is_done_leaves_nothing() -> None:
    assert dealt(7, 2, done=8) == [[], []]

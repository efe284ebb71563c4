"""Programs that are killed, stopped or out of disk space end like uninterrupted ones."""

import gzip
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.interrupted_commands import (
    CrossValidationInjector,
    ExportInjector,
    SegmentationInjector,
    faulty_results,
    finished_scans,
    unlike_results,
)
from benchmarks.interrupted_training import TrainingInjector
from benchmarks.interruptions import Outcome


@pytest.fixture(scope="module")
def training(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingInjector:
    return TrainingInjector(tmp_path_factory.mktemp("training"), phantoms)


@pytest.fixture(scope="module")
def weights(training: TrainingInjector) -> Path:
    return training.results("uninterrupted") / "model.pt"


@pytest.fixture(scope="module")
def segmentation(phantoms: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> SegmentationInjector:
    return SegmentationInjector(tmp_path_factory.mktemp("segmentation"), phantoms, weights)


@pytest.fixture(scope="module")
def export(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportInjector:
    # ONNX takes long
    return ExportInjector(tmp_path_factory.mktemp("export"), weights, formats=("state_dict", "torchscript"))


def check(outcome: Outcome, times: int) -> None:
    assert outcome.problems == []
    assert (outcome.interruptions, outcome.lost) == (times, 0)
    assert outcome.at_work > 0


def test_kill_9_at_random_moments(training: TrainingInjector) -> None:
    """Few of them, for time's sake; ``benchmarks.reliability`` makes more."""
    check(training.signals(signal.SIGKILL, 10), 10)


def test_sigterm_at_random_moments_most_of_them_within_an_epoch(training: TrainingInjector) -> None:
    outcome = training.signals(signal.SIGTERM, 6)
    check(outcome, 6)
    assert outcome.halfway > 0


def test_writes_that_hit_the_file_size_limit(training: TrainingInjector) -> None:
    check(training.full_disks(3), 3)


def test_kill_9_of_one_of_two_processes_within_an_epoch_three_times_in_a_run(training: TrainingInjector) -> None:
    outcome = training.killed_workers(3)
    check(outcome, outcome.interruptions)
    assert (outcome.runs, outcome.halfway) == (1, 3)


def test_segmentations_are_killed_and_stopped_and_fill_the_disk(segmentation: SegmentationInjector) -> None:
    check(segmentation.signals(signal.SIGKILL, 5), 5)  # of fewer, all may hit the first scan
    check(segmentation.signals(signal.SIGTERM, 2), 2)
    outcome = segmentation.full_disks(2)
    assert (outcome.problems, outcome.lost) == ([], 0)


def test_exports_are_killed_and_fill_the_disk(export: ExportInjector) -> None:
    check(export.signals(signal.SIGKILL, 4), 4)
    outcome = export.full_disks(3)
    assert (outcome.problems, outcome.lost) == ([], 0)


def test_a_cross_validation_is_killed(phantoms: Path, tmp_path: Path) -> None:
    outcome = CrossValidationInjector(tmp_path, phantoms, folds=(0,)).signals(signal.SIGKILL, 1)  # two take long
    assert (outcome.problems, outcome.interruptions, outcome.lost) == ([], 1, 0)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def other_mask(path: Path) -> None:
    path.write_bytes(gzip.compress(b"another mask"))


def other_volume(path: Path) -> None:
    record = json.loads(path.read_text())
    record["organs"]["liver"]["volume_ml"] += 1
    path.write_text(json.dumps(record, indent=2) + "\n")


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("img0001.nii.gz", cut, "img0001.nii.gz: isn't the whole mask"),
        ("img0002_probabilities.nii.gz", other_mask, "img0002_probabilities.nii.gz: isn't the whole mask"),
        ("img0003/liver.nii.gz", Path.unlink, "calls img0003 finished, but liver.nii.gz is missing"),
        ("records/img0001.png", cut, "img0001.png: differs"),
        ("records/img0001.json", cut, "img0001.json: "),
        ("measurements.csv", cut, "measurements.csv: is cut off"),
        ("report.html", cut, "report.html: is cut off"),
        ("stray.nii.gz", Path.touch, "stray.nii.gz: nobody asked for it"),
    ],
)
def test_the_check_finds(
    name: str, change: Callable[[Path], None], words: str, segmentation: SegmentationInjector, tmp_path: Path
) -> None:
    whole = segmentation.results("uninterrupted")
    assert faulty_results(whole, whole) == []
    copy = shutil.copytree(whole, tmp_path / "copy")
    change(copy / name)
    assert any(words in fault for fault in faulty_results(whole, copy))


def test_the_comparison_finds_another_measurement(segmentation: SegmentationInjector, tmp_path: Path) -> None:
    whole = segmentation.results("uninterrupted")
    copy = shutil.copytree(whole, tmp_path / "copy")
    assert unlike_results(whole, copy) == []
    other_volume(copy / "records/img0001.json")
    assert unlike_results(whole, copy) == [f"{copy}/records/img0001.json: /organs/liver/volume_ml"]


def test_a_scan_that_is_done_again_counts_as_lost(segmentation: SegmentationInjector) -> None:
    segmentation.complete("again", Outcome())
    launch = segmentation.launch("again")
    (segmentation.results("again") / "records/img0001.json").touch()
    segmentation.finish(launch)
    outcome = Outcome()
    segmentation.find_losses(launch, outcome)
    assert (outcome.lost, len(finished_scans(segmentation.results("again")))) == (1, 7)

"""Postprocessing that the folds choose, on made-up predictions."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from utils.checkpoints.postprocessing import Postprocessing
from utils.data.preprocessing import Preprocessing
from utils.distributed.process import Process
from utils.io.scan import Scan
from utils.segmentation.after_folds import Findings, ScannedFold, judge_folds
from utils.segmentation.job import SegmentationJob
from utils.system.errors import InputError

LABELS = ("background", "liver", "kidneys")
ORGANS = {1: "liver", 2: "kidneys"}
SCANS = 10
CPU = Process(torch.device("cpu"))


def label_map() -> np.ndarray:
    """A liver of 4³ voxels, and two kidneys of 2³ under one label."""
    voxels = np.zeros((16, 8, 8), np.uint8)
    voxels[1:5, 1:5, 1:5] = 1
    voxels[7:9, 1:3, 1:3] = voxels[12:14, 1:3, 1:3] = 2
    return voxels


def with_islands(mask: np.ndarray, number: int) -> None:
    """Some voxels of liver far from it; in each scan another number of them."""
    mask[15, 7, : 1 + number % 4] = 1


def dice(mask: np.ndarray, label: np.ndarray, value: int) -> float:
    return float(2 * ((mask == value) & (label == value)).sum() / ((mask == value).sum() + (label == value).sum()))


def judged(
    folder: Path,
    spoil: Callable[[np.ndarray, int], None],
    soft_dice: Callable[[int], float] = lambda number: 0.9,
    mirrored: Callable[[int], float] | None = None,
    drawn: Callable[[int], np.ndarray] = lambda number: label_map(),
    record: Mapping[str, Any] = MappingProxyType({}),
    **scan_fields: Any,
) -> Findings:
    """Two folds of five scans whose masks are the labels, spoiled.

    Args:
        mirrored: by scan, the liver's Dice with mirrored passes.
        drawn: by scan, its label.
        record: what its record says beside its organs.
    """

    def write(path: Path, voxels: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)

    def job(name: str) -> SegmentationJob:
        return SegmentationJob(
            folder / name, LABELS, ORGANS, Postprocessing(), (), False, False, 1.0, 1, Preprocessing(), {}
        )

    scans, records, with_mirrored = [], {}, {}
    for number in range(SCANS):
        name = f"scan{number}"
        label = drawn(number)
        mask = label.copy()
        spoil(mask, number)
        write(folder / f"labels/{name}.nii.gz", label)
        for place in ("masks", "mirrored"):
            write(folder / f"{place}/{name}.nii.gz", mask)
        scans.append(Scan(name, (folder / f"{name}.nii.gz",), folder / f"labels/{name}.nii.gz", **scan_fields))
        organs: dict[str, dict[str, Any]] = {
            organ: {"dice": dice(mask, label, value), "soft_dice": soft_dice(number), "volume_ml": 1.0}
            for value, organ in ORGANS.items()
        }
        records[name] = {"organs": organs, **record}
        if mirrored is not None:
            with_mirrored[name] = {"organs": {**organs, "liver": {**organs["liver"], "dice": mirrored(number)}}}
    tried = None if mirrored is None else (job("mirrored"), with_mirrored)
    parts = enumerate((scans[:5], scans[5:]))
    return judge_folds([ScannedFold(number, folder, part, job("masks"), records, tried) for number, part in parts], CPU)


def test_islands_of_the_liver_go_and_the_second_kidney_stays(tmp_path: Path) -> None:
    found = judged(tmp_path, with_islands)
    liver, kidneys = found.components[1], found.components[2]
    assert liver is not None
    assert kidneys is not None
    assert liver.after == 1
    assert kidneys.before == 1
    assert kidneys.after == pytest.approx(2 * 8 / (8 + 16))  # one of two kidneys
    assert found.chosen.postprocessing == Postprocessing((1,))
    assert found.mirrored is None
    lines = found.lines(ORGANS)
    assert lines[0].startswith("largest component of liver: Dice 0.98")
    assert lines[0].endswith("kept")
    assert lines[1].startswith("largest component of kidneys: Dice 1.0000 -> 0.6667")
    assert lines[1].endswith("left out")


def test_what_is_predicted_is_the_dice_of_masks_without_their_islands(tmp_path: Path) -> None:
    models = judged(tmp_path, with_islands).chosen.models
    assert models["liver"].volumes == pytest.approx((0.064, 0.064))  # 4³ voxels of 1 mm³
    assert models["liver"].dice(0.9, 0.064) == pytest.approx(1)
    assert models["kidneys"].volumes == pytest.approx((0.016, 0.016))  # both of them: nothing is taken from these


def test_what_helps_in_one_scan_alone_is_left_out(tmp_path: Path) -> None:
    def one_island(mask: np.ndarray, number: int) -> None:
        if number == 3:
            with_islands(mask, number)

    found = judged(tmp_path, one_island)
    assert found.components[1] is not None
    assert found.components[1].after > found.components[1].before
    assert found.chosen.postprocessing == Postprocessing()


def test_an_organ_in_parts_by_nature_is_left_alone(tmp_path: Path) -> None:
    found = judged(tmp_path, lambda mask, number: None)
    assert found.chosen.postprocessing == Postprocessing()


def test_a_label_that_nobody_drew_tells_nothing(tmp_path: Path) -> None:
    found = judged(tmp_path, with_islands, not_annotated=(1,))
    assert found.components[1] is None
    assert found.chosen.postprocessing == Postprocessing()


@pytest.mark.parametrize(("higher", "kept"), [(0.01, True), (0.0, False), (-0.01, False)])
def test_mirrored_passes_are_kept_if_the_mean_rises(tmp_path: Path, higher: float, kept: bool) -> None:
    found = judged(tmp_path, lambda mask, number: None, mirrored=lambda number: 1 + higher + number / 1e4)
    assert found.mirrored is not None
    if higher:
        assert found.chosen.postprocessing.mirrored == kept
    assert found.mirrored.after - found.mirrored.before == pytest.approx((higher + 4.5e-4) / 2)


def test_the_dice_of_a_liver_is_predicted_from_its_soft_dice(tmp_path: Path) -> None:
    def shrunk(mask: np.ndarray, number: int) -> None:
        mask[1, 1 : 1 + number % 5, 1:5] = 0  # up to a quarter of the liver, so that its Dice is 1 … 0.86

    found = judged(tmp_path, shrunk, lambda number: 0.95 - 0.02 * (number % 5))
    model = found.chosen.models["liver"]
    assert model is not None
    assert model.per_soft_dice > 0  # what is less certain is less right
    assert model.dice(0.95, 1.0) > model.dice(0.87, 1.0)
    assert model.always_there
    record = found.record(ORGANS)
    assert record["predicted Dice"]["organs"]["liver"]["per_soft_dice"] == model.per_soft_dice
    assert record["predicted Dice"]["rank correlation"] > 0.5
    assert record["largest component"]["liver"]["kept"] is False
    assert "predicted Dice: off by 0.0" in found.lines(ORGANS)[-1]


def test_an_organ_that_some_labels_lack_may_be_absent_although_all_masks_have_it(tmp_path: Path) -> None:
    def without_liver(number: int) -> np.ndarray:
        label = label_map()
        label[(label == 1) & (number > 7)] = 0
        return label

    model = judged(tmp_path, with_islands, drawn=without_liver).chosen.models["liver"]
    assert not model.always_there


def test_a_mask_that_somebody_corrected_is_not_the_networks(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"scan0.nii.gz: was changed after it was written"):
        judged(tmp_path, with_islands, record={"mask": "0123456789ab"})

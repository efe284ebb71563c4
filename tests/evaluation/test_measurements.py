"""Measurements of boxes worked out by hand, and of random masks compared with other programs."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.distance import cdist
from surface_distance.metrics import compute_surface_dice_at_tolerance, compute_surface_distances

from utils.evaluation.measurements import agreement, measure, save_measurements, scores_of
from utils.evaluation.surface_distances import surface_scores
from utils.io.scan import Volume

ORGANS = {"spleen": (1,), "liver": (2,), "aorta": (3,)}


def box(shape: tuple[int, int, int], *slices: slice) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[slices] = True
    return mask


def test_a_box_by_hand() -> None:
    """4 × 3 × 2 voxels of 2 × 1 × 5 mm, x running to the Left: 24 · 10 mm³ = 0.24 ml."""
    affine = np.array([[-2.0, 0, 0, 100], [0, 1, 0, -50], [0, 0, 5, 20], [0, 0, 0, 1]])
    mask = np.zeros((10, 10, 10), np.uint8)
    mask[2:6, 3:6, 4:6] = 2
    mask[0, 0, 9] = 3
    voxels = np.zeros((10, 10, 10), np.int16)
    voxels[2:6, 3:6, 4] = 10
    voxels[2:6, 3:6, 5] = 30
    found = measure(mask, Volume(voxels[None], affine, voxels.shape), ORGANS)
    assert found["liver"]["volume_ml"] == pytest.approx(0.24)
    assert (found["liver"]["mean"], found["liver"]["std"]) == (20.0, 10.0)
    # x: voxels 2 … 5 lie at 96 … 90 mm, ± 1 mm; y: 3 … 5 at -47 … -45 mm, ± 0.5 mm; z: 4 … 5 at 40 … 45 mm, ± 2.5 mm
    assert found["liver"]["bounding_box_mm"] == [[89.0, -47.5, 37.5], [97.0, -44.5, 47.5]]
    assert not found["liver"]["touches_edge"]
    assert found["aorta"]["touches_edge"]
    assert found["spleen"] == {
        "volume_ml": 0.0, "mean": None, "std": None, "bounding_box_mm": None, "touches_edge": False,
    }  # fmt: skip


def test_the_first_channel_is_measured() -> None:
    voxels = np.stack([np.full((3, 3, 3), 7.0), np.full((3, 3, 3), 9.0)])
    found = measure(np.ones((3, 3, 3), np.uint8), Volume(voxels, np.eye(4), (3, 3, 3)), {"all": (1,)})
    assert found["all"]["mean"] == 7


@pytest.mark.parametrize(
    ("other", "distance", "near"),
    [
        (box((30, 30, 30), slice(5, 15), slice(5, 15), slice(5, 15)), 0.0, 1.0),
        # moved by two voxels of 3 mm: one face, which is more than 5 % of the surface, is 6 mm away
        (box((30, 30, 30), slice(7, 17), slice(5, 15), slice(5, 15)), 6.0, None),
        (box((30, 30, 30), slice(5, 15), slice(5, 15), slice(7, 17)), 2.0, None),
        (np.zeros((30, 30, 30), bool), None, 0.0),
    ],
)
def test_surfaces_of_boxes_by_hand(other: np.ndarray, distance: float | None, near: float | None) -> None:
    one = box((30, 30, 30), slice(5, 15), slice(5, 15), slice(5, 15))
    for pair in ((one, other), (other, one)):
        found = surface_scores(*pair, spacing=(3.0, 2.0, 1.0), tolerance=1.0)
        assert found[0] == distance
        if near is not None:
            assert found[1] == near


def test_without_the_organ_in_either_mask_there_are_no_scores() -> None:
    empty = np.zeros((4, 4, 4), bool)
    assert surface_scores(empty, empty, (1.0, 1.0, 1.0), 1.0) == (None, None)


def blobs(random: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    return ndimage.gaussian_filter(random.normal(size=shape), 2) > 0.03


def hausdorff_95(a: np.ndarray, b: np.ndarray, spacing: tuple[float, float, float]) -> float:
    """From the distances of all pairs of surface voxels (6 neighbours), without a distance transform."""
    edges = [np.argwhere(mask & ~ndimage.binary_erosion(mask)) * spacing for mask in (a, b)]
    between = cdist(*edges)
    return float(max(np.percentile(between.min(axis), 95) for axis in (0, 1)))


@pytest.mark.parametrize("seed", range(4))
def test_surface_scores_agree_with_independent_programs(seed: int) -> None:
    """DeepMind's surface-distance for the surface Dice, and all pairs of surface voxels for the distance."""
    random = np.random.default_rng(seed)
    spacing = (0.8, 1.3, 2.5)
    a, b = blobs(random, (24, 28, 16)), blobs(random, (24, 28, 16))
    b |= a & (random.random(a.shape) > 0.2)
    distance, near = surface_scores(a, b, spacing, 1.5)
    theirs = compute_surface_dice_at_tolerance(compute_surface_distances(a, b, spacing), 1.5)
    assert near == pytest.approx(theirs, abs=1e-4)
    assert distance == pytest.approx(hausdorff_95(np.pad(a, 1), np.pad(b, 1), spacing), abs=1e-4)


def test_agreement_by_organ() -> None:
    label, mask = np.zeros((8, 8, 8), np.int16), np.zeros((8, 8, 8), np.uint8)
    label[0:4], mask[2:6] = 1, 1  # 2 of 4 slices in common
    mask[7, 7, 7] = 2  # in the prediction alone
    found = agreement(mask, label, (1.0, 1.0, 1.0), ORGANS, 4, nsd_mm=1.0)
    assert found["spleen"]["dice"] == 0.5
    assert found["spleen"]["hd95_mm"] == 2.0
    assert found["liver"] == {"dice": 0.0, "hd95_mm": None, "nsd": 0.0}
    assert found["aorta"] == {"dice": None, "hd95_mm": None, "nsd": None}


def record(name: str, labelled: bool) -> dict[str, object]:
    values: dict[str, object] = {
        "volume_ml": 1.5, "mean": 2.0, "std": 0.5, "bounding_box_mm": [[0, 1, 2], [3, 4, 5]], "touches_edge": True,
    }  # fmt: skip
    if labelled:
        values |= {"dice": None, "hd95_mm": None, "nsd": None, "dice_network_grid": 0.25}
    return {"scan": name, "labelled": labelled, "organs": {"spleen": values}}


def test_tables_have_a_row_for_each_scan_and_organ(tmp_path: Path) -> None:
    records = [record("a", labelled=True), record("b", labelled=False)]
    save_measurements(tmp_path, records, {"weights": "model.pt"})
    with open(tmp_path / "measurements.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["scan"] for row in rows] == ["a", "b"]
    assert (rows[0]["x_min_mm"], rows[0]["z_max_mm"], rows[0]["touches_edge"]) == ("0", "5", "True")
    assert (rows[0]["dice"], rows[0]["dice_network_grid"], rows[1]["dice_network_grid"]) == ("", "0.25", "")


def test_scores_are_of_labelled_scans_only() -> None:
    scores = scores_of([record("a", labelled=True), record("b", labelled=False)], ("spleen",), "dice_network_grid")
    assert scores is not None
    assert (scores.scans, scores.mean) == (("a",), 0.25)
    absent = scores_of([record("a", labelled=True)], ("spleen",), "dice")
    assert absent is not None
    assert np.isnan(absent.dice[0, 0])
    assert scores_of([record("b", labelled=False)], ("spleen",), "dice") is None


def test_names_are_no_formulas(tmp_path: Path) -> None:
    values = record("=scan", labelled=True)
    values["organs"] = {"@organ": values["organs"]["spleen"]}  # type: ignore[index]
    save_measurements(tmp_path, [values, record("m\udcff", labelled=False)], {})
    with open(tmp_path / "measurements.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["scan"], row["organ"]) for row in rows] == [("'=scan", "'@organ"), ("m\\udcff", "spleen")]
    scans = json.loads((tmp_path / "measurements.json").read_text())["scans"]
    assert [(scan["scan"], *scan["organs"]) for scan in scans] == [("=scan", "@organ"), ("m\udcff", "spleen")]


def test_what_nobody_drew_has_no_scores_and_what_nobody_judged_counts_in_none() -> None:
    label, mask = np.zeros((8, 8, 8), np.int16), np.zeros((8, 8, 8), np.uint8)
    label[0:4], mask[2:8] = 1, 1
    label[6:] = -1  # of the prediction 4 slices are left, 2 of them in common
    found = agreement(mask, label, (1.0, 1.0, 1.0), ORGANS, 4, nsd_mm=1.0, not_annotated=(3,))
    assert found["spleen"]["dice"] == 0.5
    assert found["spleen"]["hd95_mm"] == 2.0
    assert found["aorta"] == {"dice": None, "hd95_mm": None, "nsd": None, "annotated": False}
    assert list(found) == list(ORGANS)


def test_a_region_is_the_union_of_its_labels_in_mask_and_label() -> None:
    label, mask = np.zeros((8, 8, 8), np.int16), np.zeros((8, 8, 8), np.uint8)
    label[0:2], label[2:4] = 1, 2
    mask[1:2], mask[2:3], mask[3:6] = 2, 1, 3  # of spleen and liver 2 of 4 slices are found, with their names swapped
    structures = {**ORGANS, "both": (1, 2), "all": (1, 2, 3)}
    found = agreement(mask, label, (1.0, 1.0, 1.0), structures, 4, nsd_mm=1.0)
    assert [found[name]["dice"] for name in structures] == [0.0, 0.0, 0.0, 2 * 2 / (2 + 4), 2 * 3 / (5 + 4)]
    assert found["both"]["hd95_mm"] == 1.0
    partly = agreement(mask, label, (1.0, 1.0, 1.0), structures, 4, nsd_mm=1.0, not_annotated=(3,))
    assert partly["both"] == found["both"]
    assert partly["all"] == {"dice": None, "hd95_mm": None, "nsd": None, "annotated": False}

    voxels = mask.astype(np.int16) * 10
    measured = measure(mask, Volume(voxels[None], np.diag([2.0, 1, 1, 1]), voxels.shape), structures)
    assert measured["both"]["volume_ml"] == pytest.approx(2 * 64 * 2 / 1000)
    assert (measured["both"]["mean"], measured["both"]["std"]) == (15.0, 5.0)
    assert measured["all"]["bounding_box_mm"] == [[1.0, -0.5, -0.5], [11.0, 7.5, 7.5]]
    assert measured["all"]["labels"] == [1, 2, 3]
    assert "labels" not in measured["spleen"]

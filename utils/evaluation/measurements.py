"""Volume, intensity and position of each organ in a mask, and the mask's agreement with a label."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from utils.evaluation.metrics import Scores, dice_per_structure, is_annotated, nan_to_none
from utils.evaluation.surface_distances import surface_scores
from utils.evaluation.tables import save_csv
from utils.io.scan import IGNORED, Volume
from utils.system.files import write_json

NUMBERS = ("volume_ml", "mean", "std")
BOX = ("x_min_mm", "y_min_mm", "z_min_mm", "x_max_mm", "y_max_mm", "z_max_mm")
SCORES = ("dice", "hd95_mm", "nsd", "dice_network_grid")
CONFIDENCE = ("predicted_dice", "soft_dice", "agreement")


def measure(mask: np.ndarray, volume: Volume, structures: Mapping[str, Sequence[int]]) -> dict[str, dict[str, Any]]:
    """Volume, intensity and position of each organ.

    Args:
        mask: (X, Y, Z), on the scan's own grid.
        structures: by name, the label of an organ, or the labels of a region.

    Returns:
        By name: ``volume_ml``; ``mean`` and ``std`` of the scan's first channel inside it; ``bounding_box_mm``, its
        lowest and highest coordinates toward Right, Anterior and Superior; and ``touches_edge``, whether it reaches
        the edge of the scan. An organ without voxels has the volume 0, and None for intensity and box. A region also
        has its ``labels``.
    """
    boxes = ndimage.find_objects(mask, max_label=max(label for labels in structures.values() for label in labels))
    measured = {}
    for name, labels in structures.items():
        box = _common_box([boxes[label - 1] for label in labels])
        measured[name] = _measure_one(mask, volume, labels, box)
        measured[name] |= {"labels": list(labels)} if len(labels) > 1 else {}
    return measured


def _common_box(boxes: Sequence[tuple[slice, slice, slice] | None]) -> tuple[slice, ...] | None:
    """The smallest box around some boxes; None if there are none."""
    found = [box for box in boxes if box is not None]
    axes = zip(*found, strict=True)
    return tuple(slice(min(a.start for a in axis), max(a.stop for a in axis)) for axis in axes) if found else None


def _measure_one(
    mask: np.ndarray, volume: Volume, labels: Sequence[int], box: tuple[slice, ...] | None
) -> dict[str, Any]:
    if box is None:
        return {"volume_ml": 0.0, "mean": None, "std": None, "bounding_box_mm": None, "touches_edge": False}
    inside = _inside(mask[box], labels)
    values = volume.voxels[0][box][inside].astype(np.float64)
    # an index is a voxel's centre, and the voxel reaches half its size beyond
    ends = [(axis.start - 0.5, axis.stop - 0.5) for axis in box]
    corners = np.array([[x, y, z, 1] for x in ends[0] for y in ends[1] for z in ends[2]]) @ volume.affine.T
    return {
        "volume_ml": float(inside.sum() * volume.voxel_ml),
        "mean": float(values.mean()),
        "std": float(values.std()),
        "bounding_box_mm": [corners[:, :3].min(0).tolist(), corners[:, :3].max(0).tolist()],
        "touches_edge": any(axis.start == 0 or axis.stop == size for axis, size in zip(box, mask.shape, strict=True)),
    }


def agreement(
    mask: np.ndarray,
    label: np.ndarray,
    spacing: tuple[float, float, float],
    structures: Mapping[str, Sequence[int]],
    classes: int,
    nsd_mm: float,
    not_annotated: Sequence[int] = (),
) -> dict[str, dict[str, Any]]:
    """Dice, 95 % Hausdorff distance and normalised surface Dice of each organ on the scan's own grid.

    Args:
        mask, label: (X, Y, Z). Voxels whose label is :data:`IGNORED` count as background in both.
        spacing: voxel size in mm.
        structures: by name, the label of an organ, or the labels of a region.
        classes: number of classes, the background included.
        nsd_mm: tolerance of the surface Dice in mm.
        not_annotated: labels that nobody drew; they, and regions with one of them, have no scores.
    """
    maps = torch.from_numpy(mask.astype(np.int16)), torch.from_numpy(label)
    dice = dice_per_structure(*maps, structures.values(), classes, not_annotated).tolist()
    mask = np.where(label == IGNORED, 0, mask)
    scores: dict[str, dict[str, Any]] = {}
    for (name, labels), overlap in zip(structures.items(), dice, strict=True):
        if not is_annotated(labels, not_annotated):
            scores[name] = {"dice": None, "hd95_mm": None, "nsd": None, "annotated": False}
            continue
        distance, surface_dice = surface_scores(_inside(mask, labels), _inside(label, labels), spacing, nsd_mm)
        scores[name] = {"dice": nan_to_none(overlap), "hd95_mm": distance, "nsd": surface_dice}
    return scores


def _inside(mask: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """Which voxels have one of some labels."""
    inside: np.ndarray = mask == labels[0] if len(labels) == 1 else np.isin(mask, labels)
    return inside


def scores_of(records: Sequence[Mapping[str, Any]], organs: Sequence[str], which: str) -> Scores | None:
    """One of the scores of the labelled scans; None if no scan has a label.

    Args:
        which: ``dice`` (on the scans' own grid), ``dice_network_grid``, ``nsd`` or ``hd95_mm``.
    """
    labelled = [record for record in records if record["labelled"]]
    if not labelled:
        return None
    values = _of_organs(labelled, organs, which)
    not_annotated = frozenset(
        (scan, place)
        for scan, record in enumerate(labelled)
        for place, organ in enumerate(organs)
        if not record["organs"][organ].get("annotated", True)
    )
    scans = tuple(record["scan"] for record in labelled)
    return Scores(scans, tuple(organs), np.array(values, dtype=float), not_annotated)


def predictions_of(records: Sequence[Mapping[str, Any]], organs: Sequence[str]) -> Scores | None:
    """The predicted Dice of some scans; None if nothing predicts it."""
    if not any("predicted_dice" in record["organs"][organ] for record in records for organ in organs):
        return None
    scans = tuple(record["scan"] for record in records)
    return Scores(scans, tuple(organs), np.array(_of_organs(records, organs, "predicted_dice"), dtype=float))


def _of_organs(records: Sequence[Mapping[str, Any]], organs: Sequence[str], which: str) -> list[list[float | None]]:
    return [[record["organs"][organ].get(which) for organ in organs] for record in records]


def save_measurements(folder: Path, records: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> None:
    """Write ``measurements.csv``, one row for each scan and organ, and ``measurements.json``.

    Args:
        facts: further entries of the JSON, such as the weights' files.
    """
    rows: list[list[Any]] = [["scan", "organ", *NUMBERS, *BOX, "touches_edge", *SCORES, *CONFIDENCE]]
    for record in records:
        for organ, values in record["organs"].items():
            box = values["bounding_box_mm"]
            corners = [""] * len(BOX) if box is None else [*box[0], *box[1]]
            scores = [values.get(name) for name in (*SCORES, *CONFIDENCE)]
            numbers = [values[name] for name in NUMBERS]
            rows.append([record["scan"], organ, *numbers, *corners, values["touches_edge"], *scores])
    save_csv(folder / "measurements.csv", rows)
    write_json(folder / "measurements.json", {**facts, "scans": list(records)})

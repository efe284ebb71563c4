"""What the out-of-fold masks of a cross-validation tell: which postprocessing helps, and how far a mask is right."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.checkpoints.postprocessing import DiceModel, FromFolds, Postprocessing
from utils.data.overlap import joint_counts
from utils.distributed.process import Process
from utils.evaluation.calibration import Gain, fit_dice_model, gain, rank_correlation
from utils.evaluation.metrics import dice_of_counts, is_annotated, nan_mean, nan_to_none
from utils.io.reader import read_file, read_label
from utils.io.scan import IGNORED, Scan
from utils.segmentation.job import SegmentationJob
from utils.segmentation.masks import keep_largest_component
from utils.segmentation.records import was_changed
from utils.system.errors import InputError
from utils.system.text import one_line

Records = Mapping[str, dict[str, Any]]


@dataclass(frozen=True)
class ScannedFold:
    """A fold's validation scans with their results, by a network that saw none of them.

    Attributes:
        run: the folder of the network's run.
        job: what ``test.py`` did with the scans.
        records: by the scan's name.
        mirrored: the same with mirrored passes, if these were tried.
    """

    number: int
    run: Path
    scans: Sequence[Scan]
    job: SegmentationJob
    records: Records
    mirrored: tuple[SegmentationJob, Records] | None = None


@dataclass(frozen=True)
class Findings:
    """What the folds tell.

    Attributes:
        mirrored: what mirrored passes do to the mean Dice; None if they weren't tried.
        components: by label, what keeping its largest component alone does to its Dice; None if too few scans have it.
        chosen: what goes into the networks.
        correlation: of predicted and true Dice over scans and organs, each predicted by a fit to the other scans.
    """

    mirrored: Gain | None
    components: Mapping[int, Gain | None]
    chosen: FromFolds
    correlation: float | None

    def record(self, organs: Mapping[int, str]) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "mirrored passes": _gain_record(self.mirrored),
            "largest component": {organs[label]: _gain_record(one) for label, one in self.components.items()},
            "predicted Dice": {
                "rank correlation": self.correlation,
                "organs": {organ: asdict(model) for organ, model in self.chosen.models.items()},
            },
        }

    def lines(self, organs: Mapping[int, str]) -> list[str]:
        """What was tried and kept, for people."""
        found = []
        if self.mirrored is not None:
            found.append(f"mirrored passes: mean Dice {_gain_text(self.mirrored)}")
        for label, one in self.components.items():
            if one is not None and one.before != one.after:
                found.append(f"largest component of {one_line(organs[label])}: Dice {_gain_text(one)}")
        if all(one is None or one.before == one.after for one in self.components.values()):
            found.append("largest component: changes no organ's Dice")
        errors = [model.error for model in self.chosen.models.values()]
        if errors:
            rank = "" if self.correlation is None else f", rank correlation {self.correlation:.2f}"
            found.append(f"predicted Dice: off by {float(nan_mean(errors)):.3f} in the mean over organs{rank}")
        return found


def _gain_record(one: Gain | None) -> dict[str, Any] | None:
    return None if one is None else {**asdict(one), "kept": one.helps}


def _gain_text(one: Gain) -> str:
    kept = "kept" if one.helps else "left out"
    return f"{one.before:.4f} -> {one.after:.4f} (noise {one.noise:.4f}): {kept}"


def judge_folds(folds: Sequence[ScannedFold], process: Process) -> Findings:
    """Find out what helps at test time, and how a mask's Dice follows from its probabilities.

    First it is decided on mirrored passes; largest components and predictions are of the masks that follow from it.

    Raises:
        InputError: if a mask or a label can't be read.
    """
    mirrored = _judge_mirrored(folds)
    is_mirrored = mirrored is not None and mirrored.helps
    if is_mirrored:
        folds = [_of_mirrored(fold) for fold in folds]
    pairs = [(scan, fold) for fold in folds for scan in fold.scans]
    masks = [_count(scan, fold) for scan, fold in process.bar(pairs, "largest components")]
    organs = folds[0].job.organs
    components = _judge_components(masks, organs)
    helping = tuple(label for label, one in components.items() if one is not None and one.helps)
    # what is predicted is the Dice of the masks that test.py will make
    to_come = [mask.organs_with(helping) if helping else mask.organs for mask in masks]
    structures = folds[0].job.structures
    always_there = {
        name
        for name, of in structures.items()
        if all(mask.has_label(of) for mask in masks if is_annotated(of, mask.not_annotated))
    }
    models, correlation = _fit_models(structures, to_come, always_there)
    return Findings(mirrored, components, FromFolds(Postprocessing(helping, is_mirrored), models), correlation)


def _of_mirrored(fold: ScannedFold) -> ScannedFold:
    """The fold with the results of its mirrored passes."""
    assert fold.mirrored is not None
    job, records = fold.mirrored
    return replace(fold, job=job, records=records, mirrored=None)


def _judge_mirrored(folds: Sequence[ScannedFold]) -> Gain | None:
    """What mirrored passes do to the scans' mean Dice; None if they weren't tried."""
    before, after = [], []
    for fold in folds:
        if fold.mirrored is None:
            return None
        _, mirrored = fold.mirrored
        before += [_mean_dice(fold.records[scan.name]) for scan in fold.scans]
        after += [_mean_dice(mirrored[scan.name]) for scan in fold.scans]
    return gain(before, after)


def _judge_components(masks: Sequence["_CountedMask"], organs: Mapping[int, str]) -> dict[int, Gain | None]:
    """By label, what keeping its largest component alone does to its Dice."""
    alone = [mask.organs_with(organs) for mask in masks]
    return {
        label: gain([one.organs[organ]["dice"] for one in masks], [one[organ]["dice"] for one in alone])
        for label, organ in organs.items()
    }


def _fit_models(
    names: Iterable[str], masks: Sequence[Mapping[str, Any]], always_there: Collection[str]
) -> tuple[dict[str, DiceModel], float | None]:
    """The models of those organs and regions that enough scans have; and the rank correlation of all their scans.

    Args:
        masks: of each scan by name, as its record has them.
        always_there: the names of those that every label has in which they were drawn.
    """
    models: dict[str, DiceModel] = {}
    predicted: list[float | None] = []
    true: list[float | None] = []
    for name in names:
        values = [mask[name] for mask in masks]
        soft_dice, volumes, dice = ([one[key] for one in values] for key in ("soft_dice", "volume_ml", "dice"))
        fitted = fit_dice_model(soft_dice, volumes, dice, name in always_there)
        if fitted is not None:
            models[name] = fitted[0]
            predicted += fitted[1]
            true += dice
    return models, rank_correlation(predicted, true)


def _mean_dice(record: Mapping[str, Any]) -> float:
    return float(nan_mean([organ["dice"] for organ in record["organs"].values()]))


@dataclass(frozen=True)
class _CountedMask:
    """How a finished scan's mask overlaps its label, from which follows what any largest components would do to it.

    Attributes:
        organs: what the scan's record says.
        structures: labels by name.
        not_annotated: labels that nobody drew.
        whole: :func:`joint_counts` of label and mask. Voxels that are :data:`IGNORED` make up the last row.
        largest: the same if each organ's largest component alone is kept.
        voxel_ml: the volume of a voxel.
    """

    organs: Mapping[str, Any]
    structures: Mapping[str, Sequence[int]]
    not_annotated: Sequence[int]
    whole: Tensor
    largest: Tensor
    voxel_ml: float

    def has_label(self, labels: Iterable[int]) -> bool:
        """Whether the scan's label has a voxel with one of some values."""
        return bool(self.whole[list(labels)].any())

    def organs_with(self, labels: Iterable[int]) -> dict[str, Any]:
        """What the record would say of its organs if the mask kept some labels' largest components alone.

        Dice, on the scan's own grid, and volume are made anew.
        """
        counts, chosen = self.whole.clone(), list(labels)
        counts[:, chosen] = self.largest[:, chosen]
        counts[:, 0] += (self.whole - self.largest)[:, chosen].sum(1)  # what goes becomes background
        dice = dice_of_counts(counts[:-1, :-1], self.structures.values(), self.not_annotated).tolist()
        voxels = counts.sum(0)
        return {
            name: {
                **self.organs[name],
                "dice": nan_to_none(one),
                "volume_ml": float(voxels[list(of)].sum()) * self.voxel_ml,
            }
            for (name, of), one in zip(self.structures.items(), dice, strict=True)
        }


def _count(scan: Scan, fold: ScannedFold) -> _CountedMask:
    """Read a finished scan's mask and label, and count their voxels.

    Raises:
        InputError: if one can't be read, or the mask isn't the network's any more.
    """
    assert scan.label is not None, "validation scans have labels"
    path, classes = fold.job.mask_file(scan.name), len(fold.job.labels)
    if was_changed(path, fold.records[scan.name]):
        raise InputError(
            f"{path}: was changed after it was written, so that its Dice isn't the network's. Move it elsewhere; the "
            "same command makes the network's anew."
        )
    volume = read_file(path)
    mask = read_label(path, path, volume, classes)
    label = torch.from_numpy(read_label(scan.label, path, volume, classes, scan.ignore, scan.structures))
    label[label == IGNORED] = classes
    whole = joint_counts(label, torch.from_numpy(mask), classes + 1)
    for value in fold.job.organs:
        keep_largest_component(mask, value)
    largest = joint_counts(label, torch.from_numpy(mask), classes + 1)
    organs = fold.records[scan.name]["organs"]
    return _CountedMask(organs, fold.job.structures, scan.not_annotated, whole, largest, volume.voxel_ml)

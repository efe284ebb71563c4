"""What the out-of-fold masks of a cross-validation tell: which postprocessing helps, and how far a mask is right."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from utils.checkpoints.postprocessing import DiceModel, FromFolds, Postprocessing
from utils.distributed.process import Process
from utils.evaluation.calibration import Gain, fit_dice_model, gain, rank_correlation
from utils.evaluation.metrics import dice_per_label, nan_mean, nan_to_none
from utils.io.reader import read_file, read_label
from utils.io.scan import Scan
from utils.segmentation.job import SegmentationJob
from utils.segmentation.masks import keep_largest_component
from utils.system.text import one_line

Records = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class ScannedFold:
    """A fold's validation scans with their results, by a network that saw none of them.

    Attributes:
        job: what ``test.py`` did with them.
        records: by the scan's name.
        mirrored: the same with mirrored passes, if these were tried.
    """

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
    mirrored = None
    if all(fold.mirrored is not None for fold in folds):
        passes = [(fold.records, fold.mirrored[1]) for fold in folds if fold.mirrored is not None]
        mirrored = gain(*([_mean_dice(some[scan.name]) for fold, pair in zip(folds, passes, strict=True)
                           for some in [pair[which]] for scan in fold.scans] for which in (0, 1)))  # fmt: skip
    if mirrored is not None and mirrored.helps:
        folds = [ScannedFold(fold.scans, *fold.mirrored) for fold in folds if fold.mirrored is not None]
    organs = folds[0].job.organs
    records = [fold.records[scan.name]["organs"] for fold in folds for scan in fold.scans]

    alone = [
        largest_component_dice(scan, fold.job)
        for fold in folds
        for scan in process.bar(fold.scans, "largest components")
    ]
    components = {
        label: gain([one[organ]["dice"] for one in records], [one[label] for one in alone])
        for label, organ in organs.items()
    }
    helping = tuple(label for label, one in components.items() if one is not None and one.helps)

    models: dict[str, DiceModel] = {}
    predicted: list[float | None] = []
    true: list[float | None] = []
    for name in folds[0].job.structures:
        values = [one[name] for one in records]
        dice = [one["dice"] for one in values]
        always_there = all(one["dice"] is not None for one in values if one.get("annotated", True))
        fitted = fit_dice_model(
            [one["soft_dice"] for one in values], [one["volume_ml"] for one in values], dice, always_there
        )
        if fitted is not None:
            models[name] = fitted[0]
            predicted += fitted[1]
            true += dice
    chosen = FromFolds(Postprocessing(helping, mirrored is not None and mirrored.helps), models)
    return Findings(mirrored, components, chosen, rank_correlation(predicted, true))


def _mean_dice(record: Mapping[str, Any]) -> float:
    return float(nan_mean([organ["dice"] for organ in record["organs"].values()]))


def largest_component_dice(scan: Scan, job: SegmentationJob) -> dict[int, float | None]:
    """The Dice of each organ of a finished scan, on its own grid, if the mask kept the largest component alone.

    Raises:
        InputError: if mask or label can't be read.
    """
    assert scan.label is not None, "validation scans have labels"
    path, classes = job.mask_file(scan.name), len(job.labels)
    volume = read_file(path)
    mask = read_label(path, path, volume, classes)
    label = read_label(scan.label, path, volume, classes, scan.ignore)
    for value in job.organs:
        keep_largest_component(mask, value)
    dice = dice_per_label(torch.from_numpy(mask), torch.from_numpy(label), classes, scan.not_annotated)
    return {value: nan_to_none(float(dice[value - 1])) for value in job.organs}

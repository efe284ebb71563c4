"""Score a network on whole scans, as training's validation does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import nn
from torch.utils.data import DataLoader

from networks.precision import Precision
from utils.data.channels import Region
from utils.data.regions import scored_structures
from utils.distributed.process import Process
from utils.evaluation.metrics import Scores, dice_per_structure
from utils.evaluation.pictures import Example, overlay
from utils.evaluation.tables import organ_table, score_record
from utils.inference.sliding_window import Ensemble, Predictor


@dataclass(frozen=True)
class Validation:
    """What a validation found.

    Attributes:
        score: the best network is that with the highest.
        record: what ``metrics.jsonl`` keeps of it.
        text: the same for the screen.
        picture: draws this process's first scan.
    """

    score: float
    record: dict[str, Any]
    text: str
    picture: Callable[[], Figure] | None


def score_scans(
    network: nn.Module,
    loader: DataLoader,
    predictor: Predictor,
    precision: Precision,
    labels: tuple[str, ...],
    spacing: tuple[float, float, float],
    process: Process,
    regions: Sequence[Region] = (),
) -> Validation:
    """Predict and score this process's scans, and gather the scores of all processes.

    Args:
        loader: gives one preprocessed scan at a time.
        labels: names of the classes, the background first.
        spacing: of their voxels in mm.
        regions: unions of labels, which are scored too.

    Returns:
        Dice of all processes' scans on the network's grid.

    Raises:
        Stopped: in all processes, if a signal came before the last forward pass of one.
    """
    network.eval()
    ensemble = Ensemble(((network, precision),))
    structures = scored_structures(labels, regions)
    results = []
    example = None
    with process.stop_before_forward(network):
        for batch in process.bar(loader, "validating"):
            probabilities = predictor(ensemble, batch["image"])  # (channels, D, H, W)
            prediction = predictor.output.label_map(probabilities)  # (D, H, W)
            label = batch["label"][0, 0].to(prediction.device)  # (1, 1, D, H, W) -> (D, H, W)
            not_annotated = [int(value) for value in batch["not_annotated"]]
            dice = dice_per_structure(prediction, label, structures.values(), len(labels), not_annotated)
            results.append((batch["name"][0], dice.numpy()))
            if example is None:
                example = Example(batch["name"][0], batch["image"][0, 0], label.cpu(), prediction.cpu())
    names, scores = zip(*process.gather_shards(results), strict=True)
    found = Scores(names, tuple(structures), np.stack(scores))
    picture = None if example is None else partial(overlay, example, labels, spacing)
    return Validation(found.mean, {"dice": score_record(found)}, organ_table(found), picture)

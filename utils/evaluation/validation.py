"""Score a network on whole scans, as training's validation does."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn
from torch.utils.data import DataLoader

from networks.precision import Precision
from utils.data.channels import Region
from utils.data.regions import scored_structures
from utils.distributed.process import Process
from utils.evaluation.metrics import Scores, dice_per_structure
from utils.inference.sliding_window import Ensemble, Predictor


@dataclass(frozen=True)
class Example:
    """A scan with its label and prediction, (D, H, W) each, for a picture."""

    name: str
    image: Tensor
    label: Tensor
    prediction: Tensor


def score_scans(
    network: nn.Module,
    loader: DataLoader,
    predictor: Predictor,
    precision: Precision,
    labels: tuple[str, ...],
    process: Process,
    regions: Sequence[Region] = (),
) -> tuple[Scores, Example | None]:
    """Predict and score this process's scans, and gather the scores of all processes.

    Args:
        loader: gives one preprocessed scan at a time.
        labels: names of the classes, the background first.
        regions: unions of labels, which are scored too.

    Returns:
        Dice of all processes' scans on the network's grid, and this process's first scan.
    """
    network.eval()
    ensemble = Ensemble(((network, precision),))
    structures = scored_structures(labels, regions)
    results = []
    example = None
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
    return Scores(names, tuple(structures), np.stack(scores)), example

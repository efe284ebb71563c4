"""From a preprocessed scan to its label map, the same in training's validation and in testing."""

from dataclasses import dataclass

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn
from torch.utils.data import DataLoader

from utils.distributed import Process
from utils.metrics import Scores, dice_per_label
from utils.precision import Precision


@dataclass(frozen=True)
class Predictor:
    """Sliding windows over a scan, weighted with a Gaussian where they overlap.

    Attributes:
        roi: the window in voxels.
        padding: what a scan smaller than the window is padded with.
        overlap: share of a window that its neighbour repeats.
        batch_size: windows in one forward pass.
        precision: device and number format.
    """

    roi: tuple[int, int, int]
    padding: float
    overlap: float
    batch_size: int
    precision: Precision

    @torch.inference_mode()
    def __call__(self, network: nn.Module, image: Tensor) -> Tensor:
        """(1, C, D, H, W) -> label map (D, H, W), integers. A scan smaller than the window is padded."""
        with self.precision.autocast():
            logits = sliding_window_inference(
                image.to(self.precision.device),
                self.roi,
                self.batch_size,
                network,
                overlap=self.overlap,
                mode="gaussian",
                cval=self.padding,
            )
        return logits[0].argmax(0)  # (1, classes, D, H, W) -> (D, H, W)


@dataclass(frozen=True)
class Example:
    """One scan with its label and prediction, (D, H, W) each, for a picture."""

    name: str
    image: Tensor
    label: Tensor
    prediction: Tensor


def score_scans(
    network: nn.Module, loader: DataLoader, predictor: Predictor, labels: tuple[str, ...], process: Process
) -> tuple[Scores, Example | None]:
    """Predict and score this process's scans, and collect the scores of all of them.

    Args:
        labels: names of the classes, the background first.

    Returns:
        The scores of all processes' scans on the network's grid, and this process's first scan.
    """
    network.eval()
    results = []
    example = None
    for batch in process.bar(loader, "validating"):
        prediction = predictor(network, batch["image"])
        label = batch["label"][0, 0].to(prediction.device)  # (1, 1, D, H, W) -> (D, H, W)
        results.append((batch["name"][0], dice_per_label(prediction, label, len(labels)).numpy()))
        if example is None:
            example = Example(batch["name"][0], batch["image"][0, 0], label.cpu(), prediction.cpu())
    names, dice = zip(*process.gather(results), strict=True)
    return Scores(names, labels[1:], np.stack(dice)), example

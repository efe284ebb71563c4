"""Score a masked autoencoder on scans that it isn't trained on."""

import math
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.transforms import ResizeWithPadOrCrop
from torch import Tensor, nn
from torch.utils.data import DataLoader

from networks.precision import Precision
from utils.distributed.process import Process
from utils.evaluation.pictures import reconstruction
from utils.evaluation.validation import Validation


def score_reconstructions(
    network: nn.Module, loader: DataLoader, padding: float, precision: Precision, process: Process
) -> Validation:
    """Reconstruct a window in the middle of each scan of this process, and gather the scores of all processes.

    The same patches are hidden each time. The score is the share of the hidden voxels' variance that is explained:
    1 for a perfect reconstruction, 0 for their mean.

    Args:
        loader: gives one preprocessed scan at a time.
        padding: value around a scan that is smaller than the window.

    Raises:
        Stopped: in all processes, if a signal came before the last forward pass of one.
    """
    network.eval()
    config: Any = network.config
    window = ResizeWithPadOrCrop(config.img_size, value=padding)
    patches = math.prod(config.grid)
    results, picture = [], None
    with process.stop_before_forward(network):
        for batch in process.bar(loader, "validating"):
            name, volume = batch["name"][0], torch.as_tensor(window(batch["image"][0]))[None].to(process.device)
            order = torch.randperm(patches, generator=torch.Generator().manual_seed(0))[None]  # (1, N)
            with torch.inference_mode(), precision.autocast():
                reconstructed, true, hidden = network(volume, order.to(process.device))
            results.append((name, explained(reconstructed[hidden].float(), true[hidden].float())))
            if picture is None:
                inside = network.in_voxels(hidden)[0, 0]  # type: ignore[operator]
                volumes = (volume[0, 0], inside, network.as_volume(reconstructed.float())[0, 0])  # type: ignore[operator]
                picture = partial(reconstruction, name, *(one.cpu() for one in volumes))
    scores = process.gather_shards(results)
    mean = float(np.mean([score for _, score in scores]))
    text = f"  explained variance of hidden voxels, mean of {len(scores)} scans  {mean:.4f}"
    return Validation(mean, {"explained": mean}, text, picture)


def explained(found: Tensor, true: Tensor) -> float:
    """1 less the squared error in units of the true values' variance."""
    variance = true.var(correction=0).clamp(min=1e-12)  # of a scan that is the same everywhere
    return 1 - float((found - true).square().mean() / variance)

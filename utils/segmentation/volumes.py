"""From a volume to its mask, wherever the volume is from and whatever becomes of the mask."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from utils.checkpoints.postprocessing import Postprocessing
from utils.data.channels import Channels
from utils.data.preprocessing import OnNetworkGrid, Preprocessing, size_fault, to_network_grid, window_fault
from utils.inference.confidence import Certainty, CertaintyCollector
from utils.inference.scan_grid import to_scan_grid
from utils.inference.sliding_window import Ensemble, Predictor
from utils.io.scan import Volume
from utils.segmentation.masks import keep_largest_component
from utils.system.errors import InputError, first_line, is_out_of_memory, no_memory


def on_network_grid(
    source: Path, volume: Volume, label: np.ndarray | None, settings: Preprocessing, volumes: float
) -> OnNetworkGrid:
    """Bring a volume, and its label (X, Y, Z) where it has one, to the network's grid.

    Args:
        source: where it is from, for messages.
        volumes: how many in float32 there will be at once on the network's grid.

    Raises:
        InputError: if there is nothing to see in it, or it would take more memory than there is.
    """
    low, high = volume.voxels.min(), volume.voxels.max()
    if low == high:
        raise InputError(f"{source}: every voxel is {low:g}; there is nothing to see in it.")
    if (fault := window_fault(source, low, high, settings)) is not None:
        raise InputError(fault)
    if (fault := size_fault(source, volume.shape, volume.affine, settings, volumes)) is not None:
        raise InputError(fault)
    try:
        found = to_network_grid(volume.voxels, volume.affine, label, settings)
    except (RuntimeError, ValueError) as error:
        cause = error.__cause__ or error  # MONAI's error names its transform; the cause says what is wrong
        raise InputError(f"{source}: can't be preprocessed ({first_line(cause)}).") from error
    if found.image.numel() == 0:
        raise InputError(f"{source}: every voxel is the same on the network's grid; there is nothing to see.")
    return found


def predict_probabilities(
    source: Path,
    image: Tensor,
    ensemble: Ensemble,
    predictor: Predictor,
    structures: Mapping[str, Sequence[int]],
    progress: Callable[[int], object] | None = None,
) -> tuple[Tensor, Certainty]:
    """The probabilities (channels, D, H, W) of an image (C, D, H, W), on the CPU, and how sure the networks are.

    Args:
        source: where it is from, for messages.
        structures: by name, the labels of each organ or region of which certainty is asked.
        progress: called with a number of windows when they are done.

    Raises:
        InputError: if they aren't finite, or the memory has no room for them.
    """
    collector = CertaintyCollector(structures, predictor.output)
    try:
        # to the CPU, which does the rest while the GPU works on the next scan
        probabilities = predictor(ensemble, image[None], progress, collector).cpu()  # (C, …) -> (1, C, …)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(no_memory(source)) from error
    # NaN or +inf in one class: the softmax gives NaN for all
    if (probabilities[0] if predictor.output.exclusive else probabilities).isnan().any():
        raise InputError(f"{source}: the network's output isn't finite. Give `noamp`, or weights that are sound.")
    return probabilities, collector.certainty()


def make_mask(
    probabilities: Tensor,
    grid: OnNetworkGrid,
    volume: Volume,
    output: Channels,
    postprocessing: Postprocessing,
    left_out: Collection[int],
) -> np.ndarray:
    """The mask (X, Y, Z) on a volume's own grid.

    Args:
        probabilities: (channels, D, H, W), on the network's grid.
        output: what the channels are.
        left_out: labels that become background.
    """
    mask = to_scan_grid(probabilities, grid.affine, volume.affine, volume.shape, output)
    postprocess(mask, postprocessing)
    for label in left_out:
        mask[mask == label] = 0
    return mask


def postprocess(mask: np.ndarray, postprocessing: Postprocessing) -> None:
    """Change a mask (three axes, on either grid) in place as the folds or flags say."""
    for label in postprocessing.largest_component:
        keep_largest_component(mask, label)

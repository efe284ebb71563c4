"""How much of a structure voxels of some size can hold: ``python -m benchmarks.coarse_voxels DATA …``.

Each structure of a data set's labels is averaged over coarser voxels and interpolated back, as a network's perfect
probabilities on these voxels would be. The Dice of what comes back is the best that a network can reach there. The
table has its mean by the number of voxels across the structure, which is its thickness divided by the voxels' size.
"""

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from benchmarks import markdown
from utils.config.parser import Parser, count
from utils.system.errors import InputError, one_line_errors

ACROSS = (3, 4, 6, 8, 12, 16, 24)
MARGIN = 8  # voxels around a structure


def highest_dice(structure: np.ndarray, spacing: np.ndarray, size: float) -> float | None:
    """The Dice of a structure (X, Y, Z) after it was averaged over voxels of a size in mm and interpolated back.

    Args:
        spacing: of its own voxels in mm; longer ones stay. None if none becomes longer.
    """
    coarse = np.maximum(spacing, size)
    if (coarse == spacing).all():
        return None
    volume = torch.from_numpy(structure.astype(np.float32))[None, None]  # (1, 1, X, Y, Z)
    shape = [max(1, round(edge)) for edge in np.array(structure.shape) * spacing / coarse]
    averaged = F.interpolate(volume, size=shape, mode="area")
    found = (F.interpolate(averaged, size=structure.shape, mode="trilinear") > 0.5)[0, 0].numpy()
    return float(2 * (found & structure).sum() / (found.sum() + structure.sum()))


def thickness(structure: np.ndarray, spacing: np.ndarray) -> float:
    """The diameter in mm of the largest ball inside a structure, to its outer voxels' centres."""
    return 2 * float(ndimage.distance_transform_edt(np.pad(structure, 1), sampling=spacing).max())


def of_data(folder: Path, scans: int) -> dict[int, list[float]]:
    """By number of voxels across, the highest Dice of each structure of the first scans of a folder.

    Raises:
        InputError: if it has no labels.
    """
    files = sorted((folder / "labelsTr").glob("*.nii*"))[:scans]
    if not files:
        raise InputError(f"{folder}: has no labels in labelsTr. Give another folder.")
    found: dict[int, list[float]] = defaultdict(list)
    for file in files:
        image: Any = nib.load(file)
        labels = np.asarray(image.dataobj)
        spacing = np.array(image.header.get_zooms()[:3], float)
        for label in np.unique(labels)[1:]:
            places = np.argwhere(labels == label)
            start, stop = np.maximum(places.min(0) - MARGIN, 0), places.max(0) + MARGIN + 1
            structure = labels[tuple(map(slice, start, stop))] == label
            across = thickness(structure, spacing)
            for number in ACROSS:
                dice = highest_dice(structure, spacing, across / number)
                if dice is not None:
                    found[number].append(dice)
    return found


def main(args: argparse.Namespace) -> None:
    """Print the table."""
    rows = []
    for folder in map(Path, args.data):
        found = of_data(folder, args.scans)
        rows.append([folder.name, *(f"{np.mean(found[number]):.3f}" if found[number] else "" for number in ACROSS)])
    print(markdown.table(["voxels across", *map(str, ACROSS)], rows))


if __name__ == "__main__":
    parser = Parser(prog="python -m benchmarks.coarse_voxels", description="What coarse voxels can hold.")
    parser.add_argument("data", nargs="+", help="folders of data sets with labelsTr")
    parser.add_argument("--scans", type=count, default=8, help="of each")
    with one_line_errors():
        main(parser.parse_args())

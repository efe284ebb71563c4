"""Pictures of a run: its curves, and label and prediction on a slice."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from utils.files import replacing
from utils.inference import Example

UNLABELLED = (0.0, 0.0, 0.0, 0.0)


def overlay(example: Example, labels: Sequence[str], spacing: tuple[float, float, float]) -> Figure:
    """Image, label and prediction on the middle axial slice of the labelled part, the patient's right on the left.

    Args:
        labels: names of the classes, the background first.
        spacing: voxel size in mm, for the picture's proportions.
    """
    planes = np.flatnonzero((example.label > 0).any(0).any(0).numpy())  # (D, H, W) -> axial planes with a label
    plane = int(planes[len(planes) // 2]) if len(planes) else example.label.shape[2] // 2
    colours = [UNLABELLED, *(colormaps["tab20"](value % 20) for value in range(len(labels) - 1))]
    colour_map = ListedColormap(colours)

    figure = Figure(figsize=(12, 4.6), layout="constrained")
    panels = figure.subplots(1, 3)
    titles = (example.name, "label", "prediction")
    for panel, title, volume in zip(panels, titles, (None, example.label, example.prediction), strict=True):
        look = {"origin": "lower", "aspect": spacing[1] / spacing[0]}
        panel.imshow(_axial(example.image, plane), cmap="gray", **look)
        if volume is not None:
            panel.imshow(
                _axial(volume, plane),
                cmap=colour_map,
                vmin=0,
                vmax=len(labels) - 1,
                alpha=0.6,
                interpolation="nearest",
                **look,
            )
        panel.set_title(title)
        panel.set_axis_off()
    patches = [Patch(color=colour, label=name) for colour, name in zip(colours[1:], labels[1:], strict=True)]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(7, len(patches)), frameon=False)
    return figure


def curves(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss of every epoch, and the mean Dice and each organ's at every validation, from a run's JSON lines."""
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    loss, dice = figure.subplots(1, 2)
    epochs = [record["epoch"] for record in records]
    loss.plot(epochs, [record["loss"] for record in records])
    loss.set(xlabel="epoch", title="training loss")
    validated = [record for record in records if "dice" in record]
    epochs = [record["epoch"] for record in validated]
    # a run that goes on with another data list may have other organs from there on
    organs = list(dict.fromkeys(organ for record in validated for organ in record["dice"]["organs"]))
    for number, organ in enumerate(organs):
        values = [_or_nan(record["dice"]["organs"].get(organ)) for record in validated]
        dice.plot(epochs, values, marker=".", linewidth=0.8, color=colormaps["tab20"](number % 20), label=organ)
    mean = [_or_nan(record["dice"]["mean"]) for record in validated]
    dice.plot(epochs, mean, marker="o", linewidth=2.5, color="black", label="mean")
    dice.set(xlabel="epoch", title="validation Dice", xlim=loss.get_xlim(), ylim=(0, 1))
    dice.legend(fontsize="small", ncols=2)
    for panel in (loss, dice):
        panel.grid(alpha=0.3)
    return figure


def pixels(figure: Figure) -> np.ndarray:
    """(height, width, 3), 0 … 255."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def save_picture(figure: Figure, path: Path) -> None:
    """Write a PNG in one step."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def _axial(volume: Tensor, plane: int) -> np.ndarray:
    """The axial slice of a volume whose axes run to Right, Anterior and Superior, as radiologists look at it."""
    return volume[:, :, plane].flip(0).T.numpy()  # (W, H): patient's right on the left, front on top


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value

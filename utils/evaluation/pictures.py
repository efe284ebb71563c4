"""Pictures: the curves of a run, and label and prediction on slices of a scan."""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap, hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from torch import Tensor

from utils.system.files import atomic_write
from utils.system.text import one_line

TRANSPARENT = (0.0, 0.0, 0.0, 0.0)
COLOURED = [number for number in range(20) if number not in (14, 15)]  # of tab20; these two are grey, as scans are
GOLDEN = 0.618  # of the circle of hues, from one colour to the next
LONGEST_CAPTION = 48
LEGEND_ROW = 0.28  # inches
LETTERS: dict[str, Any] = {"color": "white", "fontsize": 13}  # legible at half the size too
# white on a black rim, which is seen on any colour
FRAME: dict[str, Any] = {
    "fill": False,
    "edgecolor": "white",
    "linewidth": 1.8,
    "linestyle": (0, (5, 2)),
    "clip_on": False,
    "path_effects": [withStroke(linewidth=3.6, foreground="black")],
}

Colour = tuple[float, float, float, float]  # red, green, blue, opacity
Box = Sequence[tuple[float, float]]  # along X, Y and Z where it begins and ends, in voxels from the volume's lower end


@dataclass(frozen=True)
class Example:
    """A scan with its label and prediction, (D, H, W) each, for a picture."""

    name: str
    image: Tensor
    label: Tensor
    prediction: Tensor


def overlay(example: Example, labels: Sequence[str], spacing: tuple[float, float, float]) -> Figure:
    """Image, label and prediction on one axial slice, the middle one of those with a label.

    The patient's right is on the left.

    Args:
        labels: names of the classes, the background first.
        spacing: voxel size in mm.
    """
    planes = np.flatnonzero((example.label > 0).any(0).any(0).numpy())  # (D, H, W) -> axial planes with a label
    plane = int(planes[len(planes) // 2]) if len(planes) else example.label.shape[2] // 2
    colours = label_colours(labels)

    figure = Figure(figsize=(12, 4.1), layout="constrained")
    panels = figure.subplots(1, 3)
    titles = (caption(example.name), "label", "prediction")
    for panel, title, volume in zip(panels, titles, (None, example.label, example.prediction), strict=True):
        look = {"origin": "lower", "aspect": spacing[1] / spacing[0]}
        panel.imshow(section(example.image.numpy(), 2, plane), cmap="gray", **look)
        if volume is not None:
            panel.imshow(section(volume.numpy(), 2, plane), **_overlay_style(colours), **look)
        panel.set_title(title)
        panel.set_axis_off()
    seen = [section(volume.numpy(), 2, plane) for volume in (example.label, example.prediction)]
    _add_legend(figure, seen, colours, labels, 7)
    return figure


def orthogonal(
    image: np.ndarray,
    prediction: np.ndarray,
    label: np.ndarray | None,
    labels: Sequence[str],
    spacing: tuple[float, float, float],
    window: tuple[float, float],
    title: str,
) -> Figure:
    """Image, prediction and label on an axial, a coronal and a sagittal slice, as radiologists look at them.

    Each slice is the one with most voxels of prediction and label; the middle one if both are empty.

    Args:
        image, prediction, label: (X, Y, Z) each, axes to Right, Anterior and Superior; without a label, its row of
            pictures is left out.
        labels: names of the classes, the background first.
        spacing: voxel size in mm along X, Y and Z.
        window: the intensities that are drawn black and white.
    """
    masks = {"prediction": prediction} if label is None else {"prediction": prediction, "label": label}
    planes = fullest_planes(np.logical_or.reduce([mask > 0 for mask in masks.values()]))
    colours = label_colours(labels)
    rows = [Row(name, image, window, mask) for name, mask in {"image": None, **masks}.items()]
    figure = slices(rows, planes, colours, spacing)
    figure.set_figheight(figure.get_figheight() + 0.25)  # for the title
    figure.suptitle(caption(title), **LETTERS)
    seen = [section(mask, axis, plane) for mask in masks.values() for axis, plane in enumerate(planes)]
    _add_legend(figure, seen, colours, labels, 3, fontsize=LETTERS["fontsize"], labelcolor=LETTERS["color"])
    return figure


def _add_legend(
    figure: Figure,
    seen: Iterable[np.ndarray],
    colours: Sequence[Colour],
    labels: Sequence[str],
    columns: int,
    **look: Any,
) -> None:
    """Add a legend of the classes that are seen below a figure, which becomes higher by that.

    Args:
        seen: label maps, as far as they are drawn.
        columns: at most; fewer if names are long.
    """
    values = sorted({int(value) for one in seen for value in np.unique(one) if value > 0})
    if not values:
        return
    patches = [Patch(color=colours[value], label=caption(labels[value])) for value in values]
    inches = 0.6 + 0.1 * max(len(str(patch.get_label())) for patch in patches)
    columns = max(1, min(columns, int(figure.get_figwidth() / inches)))
    figure.set_figheight(figure.get_figheight() + LEGEND_ROW * math.ceil(len(patches) / columns))
    figure.legend(handles=patches, loc="outside lower center", ncols=columns, frameon=False, **look)


@dataclass(frozen=True)
class Row:
    """A row of :func:`slices`.

    Attributes:
        name: what stands beside it.
        image: (X, Y, Z), axes to Right, Anterior and Superior.
        window: the intensities that are drawn black and white.
        mask: the label map (X, Y, Z) to lay over it, or None.
    """

    name: str
    image: np.ndarray
    window: tuple[float, float]
    mask: np.ndarray | None = None


def slices(
    rows: Sequence[Row],
    planes: Sequence[int],
    colours: Sequence[Colour],
    spacing: Sequence[float],
    frame: Box | None = None,
) -> Figure:
    """Volumes on one grid, each in a row of an axial, a coronal and a sagittal slice, as radiologists look at them.

    The patient's right, or front, is on the left; the head is on top.

    Args:
        planes: the slice across X, Y and Z.
        colours: of the classes.
        spacing: voxel size in mm along X, Y and Z.
        frame: a box to draw on the rows with a mask, which may reach beyond the volumes.
    """
    shape = rows[0].image.shape
    lows, highs = zip(*(frame or [(0.0, 0.0)] * 3), strict=True)
    low, high = np.minimum(lows, 0), np.maximum(highs, shape)  # what is to be seen, in voxels
    width, depth, height = (high - low) * spacing  # in mm
    inches_per_mm = 9 / (width + width + depth)  # three panels side by side
    row_height = min(max(depth, height) * inches_per_mm, 5.0)  # else a scan of the whole body would fill many screens

    figure = Figure(figsize=(9, len(rows) * row_height + 0.5), layout="constrained", facecolor="black")
    panels = figure.subplots(len(rows), 3, squeeze=False, width_ratios=(width, width, depth))
    directions = (("axial", 2, "R"), ("coronal", 1, "R"), ("sagittal", 0, "A"))
    for column, (direction, axis, left) in enumerate(directions):
        across, up = (number for number in range(3) if number != axis)
        look = {"origin": "lower", "aspect": spacing[up] / spacing[across]}
        for panel, row in zip(panels[:, column], rows, strict=True):
            grey = section(row.image, axis, planes[axis])
            panel.imshow(grey, cmap="gray", vmin=row.window[0], vmax=row.window[1], **look)
            if row.mask is not None:
                panel.imshow(section(row.mask, axis, planes[axis]), **_overlay_style(colours), **look)
            if row.mask is not None and frame is not None:
                corner = (shape[across] - highs[across] - 0.5, lows[up] - 0.5)  # the first axis runs to the left
                sides = (highs[across] - lows[across], highs[up] - lows[up])
                panel.add_patch(Rectangle(corner, *sides, **FRAME))
            panel.text(0.02, 0.5, left, transform=panel.transAxes, va="center", **LETTERS)
            left_end, right_end = shape[across] - high[across], shape[across] - low[across]
            panel.set(xlim=(left_end - 0.5, right_end - 0.5), ylim=(low[up] - 0.5, high[up] - 0.5))
            panel.set(xticks=[], yticks=[], facecolor="black")
            panel.spines[:].set_visible(False)
            if column == 0:
                panel.set_ylabel(row.name, **LETTERS)
        panels[0, column].set_title(direction, **LETTERS)
    return figure


def reconstruction(name: str, image: Tensor, hidden: Tensor, reconstructed: Tensor) -> Figure:
    """A volume, what of it was visible, and its reconstruction, on the middle axial slice. The right is on the left.

    Args:
        image, reconstructed: (D, H, W).
        hidden: which voxels were hidden, (D, H, W).
    """
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    plane = image.shape[2] // 2
    low, high = float(image.min()), float(image.max())
    volumes = {
        name: image,
        "visible": image.masked_fill(hidden, low),
        "reconstruction": torch.where(hidden, reconstructed, image),
    }
    for panel, (title, volume) in zip(figure.subplots(1, 3), volumes.items(), strict=True):
        panel.imshow(volume[:, :, plane].T.numpy(), cmap="gray", vmin=low, vmax=high, origin="lower")
        panel.invert_xaxis()
        panel.set_title(caption(title))
        panel.axis("off")
    return figure


def curves(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Training loss and learning rate of every epoch, and the scores of every validation with the best one marked.

    The scores are Dice of each organ and their mean; in pre-training, the share of the variance of hidden voxels that
    was explained.

    Args:
        records: the lines of a run's ``metrics.jsonl``.
    """
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    loss, scores = figure.subplots(1, 2)
    epochs = [record["epoch"] for record in records]
    loss.plot(epochs, [record["loss"] for record in records])
    loss.set(xlabel="epoch", title="training loss and learning rate")
    loss.set_ylabel("loss", color="C0")
    rate = loss.twinx()
    rate.plot(epochs, [record["lr"] for record in records], color="C1", linewidth=0.8)
    rate.set_ylabel("learning rate", color="C1")
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    rate.set_ylim(bottom=0)
    if any("explained" in record for record in records):
        title, lowest, validated = "explained variance of hidden voxels", None, _with("explained", records)
        mean = _numbers(record["explained"] for record in validated)
    else:
        title, lowest, validated = "validation Dice", 0.0, _with("dice", records)
        mean = _numbers(record["dice"]["mean"] for record in validated)
    validations = [record["epoch"] for record in validated]
    # a run that was resumed with another data list may have other organs from there on
    organs = list(dict.fromkeys(organ for record in validated for organ in record.get("dice", {}).get("organs", {})))
    for number, organ in enumerate(organs):
        values = _numbers(record["dice"]["organs"].get(organ) for record in validated)
        colour = _colour(number)
        scores.plot(validations, values, marker=".", linewidth=0.8, color=colour, label=caption(organ))
    scores.plot(validations, mean, marker="o", linewidth=2.5, color="black", label="mean")
    if not np.isnan(mean).all():
        best = int(np.nanargmax(mean))
        label = f"best, epoch {validations[best]}: {mean[best]:.3f}"
        scores.axvline(validations[best], color="black", linestyle=":", linewidth=1.2, label=label)
    scores.set(xlabel="epoch", title=title, xlim=loss.get_xlim(), ylim=(lowest, 1))
    figure.legend(*scores.get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    for panel in (loss, scores):
        panel.grid(alpha=0.3)
    return figure


def _with(key: str, records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [record for record in records if key in record]


def _numbers(values: Iterable[float | None]) -> np.ndarray:
    """Numbers to plot, with NaN for None."""
    return np.array(list(values), dtype=float)


def pixels(figure: Figure) -> np.ndarray:
    """The figure drawn: (height, width, 3), 0 … 255."""
    canvas = FigureCanvasAgg(figure)
    # a box is drawn in a letter's place; to restore the filters afterwards isn't safe in threads
    warnings.filterwarnings("ignore", message="Glyph .* missing from font")
    canvas.draw()  # Figure.savefig would draw twice
    return np.asarray(canvas.buffer_rgba())[..., :3]


def save_picture(picture: np.ndarray, path: Path) -> None:
    """Write pixels (height, width, 3) as a PNG file.

    Raises:
        WriteError: if it can't be written.
    """
    with atomic_write(path) as temporary:
        imsave(temporary, picture, format="png")


def caption(name: str) -> str:
    """A name as it is drawn: in one line, shortened, and without formulas between dollar signs."""
    shown = one_line(name)
    if len(shown) > LONGEST_CAPTION:
        shown = f"{shown[: LONGEST_CAPTION - 1]}…"
    return shown.replace("$", r"\$")


def grey_window(image: np.ndarray) -> tuple[float, float]:
    """The intensities of a volume (X, Y, Z) to draw black and white where no CT window says so."""
    low, high = np.percentile(image[:: max(1, image.shape[0] // 64)], (1, 99))
    return float(low), float(high)


def section(volume: np.ndarray, axis: int, plane: int) -> np.ndarray:
    """A slice of a volume whose axes run to Right, Anterior and Superior, turned as radiologists look at it.

    Returns:
        (rows, columns), row 0 at the bottom. Axial (axis 2): the patient's right on the left, the front on top;
        coronal (1): the right on the left, the head on top; sagittal (0): the front on the left, the head on top.
    """
    return np.moveaxis(volume, axis, 0)[plane][::-1].T


def fullest_planes(voxels: np.ndarray) -> list[int]:
    """For each axis of a boolean volume, the plane across it with most True voxels; the middle one if all are False."""
    if not voxels.any():
        return [size // 2 for size in voxels.shape]
    return [int(voxels.sum(axis=others).argmax()) for others in ((1, 2), (0, 2), (0, 1))]


def label_colours(labels: Sequence[str]) -> list[Colour]:
    """A colour (red, green, blue, opacity) for each class; the background is transparent."""
    return [TRANSPARENT, *map(_colour, range(len(labels) - 1))]


def _colour(number: int) -> Colour:
    """The colours of tab20 but for grey; then others, each far from the one before in hue."""
    if number < len(COLOURED):
        return colormaps["tab20"](COLOURED[number])
    hue, saturation, value = number * GOLDEN % 1, 0.55 + 0.4 * (number % 2), 0.95 - 0.2 * (number % 3)
    red, green, blue = hsv_to_rgb((hue, saturation, value))
    return float(red), float(green), float(blue), 1.0


def _overlay_style(colours: Sequence[Colour]) -> dict[str, Any]:
    """The arguments of ``imshow`` that lay a label map over an image."""
    return {
        "cmap": ListedColormap(colours),
        "vmin": 0,
        "vmax": len(colours) - 1,
        "alpha": 0.6,
        "interpolation": "nearest",
    }

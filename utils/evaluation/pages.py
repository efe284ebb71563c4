"""What HTML pages share: one look, nothing from the network, and the same bytes for the same content."""

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imsave

from utils.evaluation.pictures import caption
from utils.system.text import one_line

# if the largest value is more than this many times the smallest, the axis is logarithmic
WIDE = 20.0
# from this many points on, a plot has them as pixels: as shapes they would be most of the page
MANY_POINTS = 3000
PHOTO_QUALITY = 85  # of 100, of WebP: a quarter of PNG's size, and no difference to be seen


def render(template: Path, **content: Any) -> str:
    """Fill in a template, which may include ``look.css``.

    Its text is escaped and printed in one line, but for :class:`Markup`.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.from_string(template.read_text(encoding="utf-8")).render(content)


def _printable(value: Any) -> Any:
    """What the page shows of a value: names have line breaks and the like in them."""
    return one_line(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def box_plot(names: Sequence[str], values: Sequence[Sequence[float]]) -> tuple[Figure, Axes]:
    """A line per name, top to bottom, with a box of its values and each value as a point."""
    figure = Figure(figsize=(5, 0.9 + 0.3 * len(names)), layout="constrained")
    panel = figure.subplots()
    lines = range(len(names))
    look: dict[str, Any] = {"showfliers": False, "medianprops": {"color": "black", "linewidth": 2}, "zorder": 1}
    panel.boxplot(values, orientation="horizontal", positions=lines, widths=0.6, **look)
    points: dict[str, Any] = {"color": colormaps["tab10"](0), "rasterized": sum(map(len, values)) >= MANY_POINTS}
    for line, row in zip(lines, values, strict=True):
        # shift the points up and down in turn, so that equal values are seen side by side
        heights = [line + 0.14 * (index % 3 - 1) for index in range(len(row))]
        panel.scatter(row, heights, s=12, alpha=0.8, linewidths=0, zorder=2, **points)
    panel.set_yticks(lines, [caption(name) for name in names])
    panel.invert_yaxis()
    panel.grid(axis="x", alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    return figure, panel


def label_axis(panel: Axes, text: str, values: Sequence[Sequence[float]]) -> None:
    """Name the x axis of a plot of positive values, and make it logarithmic if they are far apart."""
    panel.set(xlabel=text)
    flat = [value for row in values for value in row]
    if flat and max(flat) > WIDE * min(flat):
        panel.set(xscale="log", xlabel=f"{text}, logarithmic axis")
        panel.xaxis.set_major_formatter("{x:g}")


def svg_uri(figure: Figure) -> str:
    """The address of a figure as SVG without a background, its text as outlines."""
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "report", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return data_uri("image/svg+xml", buffer.getvalue())


def photo_uri(picture: np.ndarray) -> str:
    """The address of pixels (height, width, 3), 0 … 255, packed with a loss that nobody sees."""
    buffer = io.BytesIO()
    imsave(buffer, picture, format="webp", pil_kwargs={"quality": PHOTO_QUALITY})
    return data_uri("image/webp", buffer.getvalue())


def data_uri(kind: str, content: bytes) -> str:
    """An address that holds its content."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def decimals(value: float, digits: int) -> str:
    """A number as a cell shows it; a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:z.{digits}f}".replace("-", "−")


def scans_in_words(scans: int) -> str:
    """How many scans."""
    return "1 scan" if scans == 1 else f"{scans} scans"

"""What HTML pages share."""

import base64
from pathlib import Path

import numpy as np
from markupsafe import Markup

from utils.evaluation.pages import MANY_POINTS, box_plot, label_axis, render, svg_uri


def test_a_plot_of_many_points_is_small() -> None:
    def size(points: int) -> tuple[int, bool]:
        figure, _ = box_plot(["a"], [np.linspace(0, 1, points).tolist()])
        svg = base64.b64decode(svg_uri(figure).partition(",")[2])
        return len(svg), b"<image" in svg

    (few, few_as_pixels), (many, many_as_pixels) = size(MANY_POINTS - 1), size(10 * MANY_POINTS)
    assert (few_as_pixels, many_as_pixels) == (False, True)
    assert many < few


def test_values_that_are_far_apart_have_a_logarithmic_axis() -> None:
    for values, scale in (([[1.0, 20.0]], "linear"), ([[1.0], [21.0]], "log"), ([[]], "linear")):
        _, panel = box_plot(["a"] * len(values), values)
        label_axis(panel, "volume (ml)", values)
        assert panel.get_xscale() == scale


def test_text_is_escaped_in_one_line_but_markup_stays(tmp_path: Path) -> None:
    template = tmp_path / "page.html.j2"
    template.write_text("{{ text }}|{{ mark }}|{% include 'look.css' %}")
    shown, mark, look = render(template, text="a\n<b>", mark=Markup("<code>c</code>")).split("|")
    assert (shown, mark) == ("a &lt;b&gt;", "<code>c</code>")
    assert look.startswith(":root {")

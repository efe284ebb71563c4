"""Pictures show the right slice in the right orientation."""

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.patches import Rectangle

from utils.evaluation.pictures import Example, Row, caption, curves, label_colours, orthogonal, overlay, pixels, slices

LABELS = ("background", "liver", "spleen")


def test_the_overlay_shows_the_middle_labelled_slice_with_the_right_side_on_the_left() -> None:
    image, label, prediction = (torch.zeros(40, 30, 20) for _ in range(3))
    label[30:38, 10:20, 14:17] = 1  # on the patient's right; middle labelled plane: 15
    prediction[30:38, 10:20, 15] = 2
    figure = overlay(Example("scan", image, label.int(), prediction.int()), LABELS, (1.0, 1.0, 1.0))
    label_panel, prediction_panel = figure.axes[1].images[1], figure.axes[2].images[1]
    shown = np.asarray(label_panel.get_array())  # (rows, columns), row 0 at the bottom
    rows, columns = np.nonzero(shown == 1)
    assert (rows.min(), rows.max()) == (10, 19)  # posterior to anterior, bottom to top
    assert (columns.min(), columns.max()) == (2, 9)  # x 37 … 30, counted from the patient's right
    assert (np.asarray(prediction_panel.get_array()) == 2).sum() == 80
    picture = pixels(figure)
    assert picture.ndim == 3
    assert picture.std() > 10


def test_curves_show_every_epoch_and_every_validation() -> None:
    dice = {"mean": 0.5, "organs": {"liver": 0.5, "spleen": None}}
    worse = {"mean": 0.4, "organs": {"liver": 0.4, "spleen": None}}
    records: list[dict[str, Any]] = [
        {"epoch": 1, "loss": 2.0, "lr": 0.1},
        {"epoch": 2, "loss": 1.0, "lr": 0.2, "dice": dice},
        {"epoch": 3, "loss": 0.5, "lr": 0.0, "dice": worse},
    ]
    figure = curves(records)
    loss, validation, rate = figure.axes
    assert np.asarray(loss.lines[0].get_xydata()).tolist() == [[1, 2], [2, 1], [3, 0.5]]
    assert np.asarray(rate.lines[0].get_xydata()).tolist() == [[1, 0.1], [2, 0.2], [3, 0]]
    *organs, mean, best = validation.lines
    assert [line.get_label() for line in organs] == ["liver", "spleen"]
    assert np.asarray(mean.get_xydata()).tolist() == [[2, 0.5], [3, 0.4]]
    assert (best.get_label(), np.asarray(best.get_xdata()).tolist()) == ("best, epoch 2: 0.500", [2, 2])
    pixels(figure)  # lays it out
    legend, panel = figure.legends[0].get_window_extent(), validation.get_window_extent()
    assert legend.x0 > panel.x1  # beside the curves


def test_curves_of_pre_training_show_what_was_explained() -> None:
    records = [{"epoch": epoch, "loss": 1.0, "lr": 0.1, "explained": -1.0 + epoch / 2} for epoch in (1, 2)]
    validation = curves(records).axes[1]
    assert np.asarray(validation.lines[0].get_xydata()).tolist() == [[1, -0.5], [2, 0]]
    assert validation.lines[1].get_label() == "best, epoch 2: 0.000"


def test_orthogonal_slices_go_through_the_organs_as_radiologists_look_at_them() -> None:
    image, prediction = np.zeros((20, 16, 12)), np.zeros((20, 16, 12), np.uint8)
    prediction[15:18, 10:14, 7:11] = 1  # on the patient's right, in front, towards the head
    prediction[16, 11, 8] = 2
    prediction[15, 13, 7:11] = 0  # the fullest planes, the first of equals: x 16, y 10 and z 7
    figure = orthogonal(image, prediction, None, LABELS, (1.0, 2.0, 3.0), (-100.0, 200.0), "scan")
    axial, coronal, sagittal = (np.asarray(panel.images[1].get_array()) for panel in figure.axes[3:6])
    assert (axial.shape, coronal.shape, sagittal.shape) == ((16, 20), (12, 20), (12, 16))  # rows, columns
    rows, columns = np.nonzero(axial)
    assert (columns.min(), columns.max()) == (2, 4)  # x 17 … 15, counted from the patient's right: the left half
    assert (rows.min(), rows.max()) == (10, 13)  # y, the back at row 0, which is drawn at the bottom
    rows, columns = np.nonzero(coronal)
    assert (columns.min(), columns.max()) == (2, 4)
    assert (rows.min(), rows.max()) == (7, 10)  # z, the feet at row 0
    rows, columns = np.nonzero(sagittal)
    assert (columns.min(), columns.max()) == (2, 5)  # y 13 … 10, counted from the front
    assert (rows.min(), rows.max()) == (7, 10)
    assert (sagittal == 2).sum() == 1  # x 16
    assert all(panel.images[0].origin == "lower" for panel in figure.axes)
    assert [panel.get_aspect() for panel in figure.axes[:3]] == [2 / 1, 3 / 1, 3 / 2]
    assert figure.axes[0].images[0].get_clim() == (-100, 200)


def test_orthogonal_slices_have_a_row_for_the_label_and_a_legend_of_what_is_seen() -> None:
    image, prediction, label = (np.zeros((8, 8, 8)) for _ in range(3))
    label[6, 5, 4] = 2
    figure = orthogonal(image, prediction, label, LABELS, (1.0, 1.0, 1.0), (0.0, 1.0), "scan")
    assert [panel.get_ylabel() for panel in figure.axes[::3]] == ["image", "prediction", "label"]
    assert [int(np.asarray(panel.images[1].get_array()).sum()) for panel in figure.axes[3:]] == [0, 0, 0, 2, 2, 2]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["spleen"]
    shown = figure.axes[6].images[1].to_rgba(np.array([[2]]), alpha=1)[0, 0]
    assert legend.get_patches()[0].get_facecolor() == tuple(shown)


def test_orthogonal_slices_of_an_empty_prediction_are_the_middle_ones() -> None:
    image = np.zeros((8, 6, 4))
    image[4, 3, 2] = 1
    empty = np.zeros((8, 6, 4), np.uint8)
    figure = orthogonal(image, empty, None, LABELS, (1.0, 1.0, 1.0), (0.0, 1.0), "a $name^")
    assert [np.asarray(panel.images[0].get_array()).max() for panel in figure.axes] == [1] * 6
    assert figure.legends == []
    assert pixels(figure).std() > 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "name", ["a\tb\nc", r"$\foo$", "a$b", "x" * 300, "m\udcff", "\x1b[0m", "\u202ea", "_hidden", "肝臓"]
)
def test_any_name_can_be_drawn(name: str, random: np.random.Generator) -> None:
    mask = np.zeros((20, 16, 12), np.uint8)
    mask[4:9, 4:9, 4:9] = 1
    image, labels, spacing = random.random(mask.shape), ("background", name), (1.0, 1.0, 1.0)
    pixels(orthogonal(image, mask, None, labels, spacing, (0.0, 1.0), name))
    tensor = torch.from_numpy(mask).int()
    pixels(overlay(Example(name, torch.from_numpy(image), tensor, tensor), labels, spacing))
    dice = {"mean": 0.5, "organs": {name: 0.5}}
    pixels(curves([{"epoch": 1, "loss": 2.0, "lr": 0.1, "dice": dice}]))


def test_captions_are_one_short_line() -> None:
    assert caption("left\n\tkidney") == "left kidney"
    assert caption("x" * 300) == "x" * 47 + "…"
    assert caption(r"$\foo$") == r"\$\foo\$"  # how matplotlib draws dollar signs as such


def test_slices_show_a_frame_that_reaches_beyond_the_scan() -> None:
    image, mask = np.zeros((8, 6, 4)), np.ones((8, 6, 4), np.uint8)
    frame = [(-2.0, 10.0), (1.0, 4.0), (0.0, 4.0)]
    rows = [Row("image", image, (0.0, 1.0)), Row("labels", image, (0.0, 1.0), mask)]
    figure = slices(rows, (4, 3, 2), label_colours(LABELS), (1.0, 1.0, 1.0), frame)
    assert [len(panel.patches) for panel in figure.axes] == [0, 0, 0, 1, 1, 1]
    axial = figure.axes[3]
    assert (axial.get_xlim(), axial.get_ylim()) == ((-2.5, 9.5), (-0.5, 5.5))
    box = axial.patches[0]
    assert isinstance(box, Rectangle)
    assert box.get_bbox().bounds == (-2.5, 0.5, 12, 3)
    plain = slices(rows, (4, 3, 2), label_colours(LABELS), (1.0, 1.0, 1.0))
    assert [len(panel.patches) for panel in plain.axes] == [0] * 6


def test_a_legend_of_many_organs_leaves_the_slices_their_size() -> None:
    labels = ("background", *(f"vertebra number {number}" for number in range(1, 103)))
    image = np.zeros((32, 32, 32))
    few, many = np.zeros((2, *image.shape), np.uint8)
    few[:, :, 16] = 1
    many[...] = (np.arange(32)[:, None] + np.arange(32)).reshape(32, 32, 1) + 1  # 1 … 63 in each axial slice
    sizes = []
    for mask in (few, many):
        tensor = torch.from_numpy(mask).int()
        for figure in (
            orthogonal(image, mask, None, labels, (1.0, 1.0, 1.0), (0.0, 1.0), "scan"),
            overlay(Example("scan", torch.from_numpy(image), tensor, tensor), labels, (1.0, 1.0, 1.0)),
        ):
            pixels(figure)  # which lays it out
            sizes.append(figure.axes[0].get_window_extent().width)
            legend = figure.legends[0].get_window_extent()
            assert 0 <= legend.x0 < legend.x1 <= figure.bbox.width
            assert max(panel.get_window_extent().y0 for panel in figure.axes) > legend.y1 - 1
    assert sizes[2] > 0.9 * sizes[0]
    assert sizes[3] > 0.9 * sizes[1]


def test_no_organ_is_drawn_in_the_grey_of_scans_and_many_differ() -> None:
    colours = [colour[:3] for colour in label_colours(["background"] * 61)[1:]]
    assert min(max(colour) - min(colour) for colour in colours) > 0.1
    assert len(set(colours)) == 60

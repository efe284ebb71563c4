"""Pictures: the right slice, the right way round."""

from typing import Any

import numpy as np
import torch

from utils.inference import Example
from utils.pictures import curves, overlay, pixels

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
    records: list[dict[str, Any]] = [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0, "dice": dice}]
    loss, validation = curves(records).axes
    assert np.asarray(loss.lines[0].get_xydata()).tolist() == [[1, 2], [2, 1]]
    assert {line.get_label() for line in validation.lines} == {"liver", "spleen", "mean"}
    assert np.asarray(validation.lines[-1].get_xydata()).tolist() == [[2, 0.5]]

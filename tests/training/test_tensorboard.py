"""TensorBoard's curves are complete even if a run is killed or the disk is full."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import FileSizeLimit
from utils.system.errors import WriteError
from utils.training.tensorboard import EventFile


def history(epochs: int, loss: float = 1.0) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = [
        {"epoch": epoch, "loss": loss / epoch, "lr": 0.5, "seconds": 2.0} for epoch in range(1, epochs + 1)
    ]
    lines[-1]["dice"] = {"mean": 0.25, "organs": {"left kidney": 0.25, "spleen": None}}
    return lines


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in EventAccumulator(str(folder)).Reload().Scalars(tag)]


def test_the_curves_of_a_run(tmp_path: Path) -> None:
    events = EventFile(tmp_path, 0)
    events.write(history(1), None)
    events.write(history(2), np.zeros((4, 6, 3), np.uint8))
    assert curve(tmp_path, "train/loss") == [(1, 1.0), (2, 0.5)]  # on the disk before the file is closed
    assert curve(tmp_path, "validation_dice/left_kidney") == [(1, 0.25), (2, 0.25)]
    found = EventAccumulator(str(tmp_path)).Reload().Tags()
    assert "validation_dice/spleen" not in found["scalars"]  # absent everywhere
    assert found["images"] == ["validation/label_and_prediction"]


def test_repeated_epochs_replace_the_old_ones(tmp_path: Path) -> None:
    killed = EventFile(tmp_path, 0)
    for epochs in (1, 2, 3):
        killed.write(history(epochs), None)
    resumed = EventFile(tmp_path, 1)  # the checkpoint was of epoch 1
    for epochs in (2, 3, 4):
        resumed.write(history(epochs, loss=6.0), None)
    assert curve(tmp_path, "train/loss") == [(1, 1.0), (2, 3.0), (3, 2.0), (4, 1.5)]


def test_a_full_disk_leaves_no_gap(tmp_path: Path, file_size_limit: FileSizeLimit) -> None:
    events = EventFile(tmp_path, 0)
    events.write(history(1), None)
    (file,) = tmp_path.iterdir()
    with file_size_limit(file.stat().st_size + 30):  # room for a part of an event
        for epochs in (2, 3):
            with pytest.raises(WriteError, match=r"TensorBoard's events can't be written \(File too large\)"):
                events.write(history(epochs), np.zeros((40, 60, 3), np.uint8))
    events.write(history(4), None)
    assert curve(tmp_path, "train/loss") == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3)), (4, 0.25)]

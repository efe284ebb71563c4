"""TensorBoard's curves of a run, written so that a killed run or a full disk leaves no gap in them.

tensorboardX's own SummaryWriter hands events to a thread: those still in its queue are lost with a killed process, and
a thread that met a full disk blocks the training. Here an epoch's events are on the disk before its checkpoint is.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from utils.system.errors import WriteError


class EventFile:
    """The events of a run's epochs.

    Args:
        folder: where ``events.out.tfevents.…`` lie.
        plotted: epochs whose events are there already; those of later ones, from a run that went on from
            here before, are void.
    """

    def __init__(self, folder: Path, plotted: int) -> None:
        self.folder = folder
        self.plotted = plotted
        self._writer: EventsWriter | None = None

    def plot(self, history: Sequence[Mapping[str, Any]], picture: np.ndarray | None) -> None:
        """Write the curves of all epochs that aren't there yet, and a picture for the last one.

        Args:
            history: the JSON lines of all epochs so far.
            picture: (height, width, 3), 0 … 255.

        Raises:
            WriteError: if that can't be done; the next call will try the same epochs again.
        """
        try:
            if self._writer is None:
                self._writer = self._new_writer()
            for line in history[self.plotted :]:
                for name, value in _points(line).items():
                    self._write(line["epoch"], summary.scalar(name, value))
            if picture is not None:
                image = summary.image("validation/label_and_prediction", picture, dataformats="HWC")
                self._write(history[-1]["epoch"], image)
            self._writer.flush()
        except OSError as error:
            self._writer = None  # it may have written a part of an event; a new file goes on after the last whole one
            raise WriteError(f"{self.folder}: TensorBoard's events can't be written ({error.strerror})") from error
        self.plotted = len(history)

    def close(self) -> None:
        """Close the file; what was plotted is on the disk already."""
        if self._writer is not None:
            self._writer.close()

    def _new_writer(self) -> EventsWriter:
        # the epoch in the name keeps a run apart from one that was started in the same second and killed
        writer = EventsWriter(str(self.folder / "events"), f".{self.plotted:06d}")
        start = SessionLog(status=SessionLog.START)
        writer.write_event(Event(step=self.plotted + 1, session_log=start, wall_time=time.time()))
        return writer

    def _write(self, epoch: int, content: Any) -> None:
        assert self._writer is not None
        self._writer.write_event(Event(step=epoch, summary=content, wall_time=time.time()))


def _points(line: Mapping[str, Any]) -> dict[str, float]:
    """By curve, the points that an epoch's JSON line adds."""
    points = {f"train/{name}": line[name] for name in ("loss", "lr", "seconds")}
    if "dice" in line:
        dice = {"mean": line["dice"]["mean"], **line["dice"]["organs"]}
        points |= {f"validation_dice/{organ.replace(' ', '_')}": value for organ, value in dice.items()}
    return {name: value for name, value in points.items() if value is not None}

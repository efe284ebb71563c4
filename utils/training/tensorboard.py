"""TensorBoard's curves of a run.

This writes event files itself, without tensorboardX's ``SummaryWriter``, which hands events to a thread and whose
``flush`` doesn't wait for that thread. Measured with tensorboardX 2.6.5: of 50 scalars, a process that was killed right
after ``flush`` lost the last 1 to 4; on a full disk the thread ended, and the 16th ``add_scalar`` blocked for ever.
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
    """The event file of a run; events are on the disk when :meth:`write` returns.

    Args:
        folder: where ``events.out.tfevents.…`` lie.
        epochs_written: epochs that older event files there hold; TensorBoard drops later epochs in them.
    """

    def __init__(self, folder: Path, epochs_written: int) -> None:
        self.folder = folder
        self.epochs_written = epochs_written
        self._writer: EventsWriter | None = None

    def write(self, history: Sequence[Mapping[str, Any]], picture: np.ndarray | None) -> None:
        """Write the curves of all epochs that aren't in the file yet, and a picture for the last one.

        Args:
            history: one record per epoch since the run began, as in ``metrics.jsonl``.
            picture: (height, width, 3), 0 … 255.

        Raises:
            WriteError: if the disk refuses; the next call writes the same epochs again.
        """
        try:
            writer = self._writer = self._writer or self._new_writer()
            for record in history[self.epochs_written :]:
                for name, value in _points(record).items():
                    writer.write_event(_event(record["epoch"], summary=summary.scalar(name, value)))
            if picture is not None:
                image = summary.image("validation/label_and_prediction", picture, dataformats="HWC")
                writer.write_event(_event(history[-1]["epoch"], summary=image))
            writer.flush()
        except OSError as error:
            self._writer = None  # an event may be cut off, after which nothing is read; the next call takes a new file
            raise WriteError(f"{self.folder}: TensorBoard's events can't be written ({error.strerror})") from error
        self.epochs_written = len(history)

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._writer is not None:
            self._writer.close()

    def _new_writer(self) -> EventsWriter:
        # the epoch in the name, since a run that is killed and resumed within a second would take the same file again
        writer = EventsWriter(str(self.folder / "events"), f".{self.epochs_written:06d}")
        writer.write_event(_event(self.epochs_written + 1, session_log=SessionLog(status=SessionLog.START)))
        return writer


def _event(epoch: int, **content: Any) -> Event:
    return Event(step=epoch, wall_time=time.time(), **content)


def _points(record: Mapping[str, Any]) -> dict[str, float]:
    """By curve, the values of one epoch."""
    points = {f"train/{name}": record[name] for name in ("loss", "lr", "seconds")}
    if "dice" in record:
        dice = {"mean": record["dice"]["mean"], **record["dice"]["organs"]}
        points |= {f"validation_dice/{organ.replace(' ', '_')}": value for organ, value in dice.items()}
    if "explained" in record:
        points["validation/explained"] = record["explained"]
    return {name: value for name, value in points.items() if value is not None}

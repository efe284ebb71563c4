"""What a run leaves under ``runs/NAME/``."""

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tensorboardX import SummaryWriter

from utils.checkpoint import Description
from utils.errors import InputError
from utils.files import writable_folder, write_json
from utils.inference import Example
from utils.metrics import Scores
from utils.pictures import curves, overlay, pixels, save_picture
from utils.score_tables import score_record

RUNS = Path("runs")
OWN_FILES = (
    "model.pt",
    "model_final.pt",
    "args.json",
    "metrics.jsonl",
    "progress.png",
    "validation.png",
    "events.out.tfevents.*",
)


class RunFolder:
    """The folder of a run: its JSON lines, TensorBoard events, pictures and the places of its checkpoints.

    Args:
        path: the folder, from :func:`claim_folder`.
        description: the network, for the names and proportions in the pictures.
        flags: what ``args.json`` keeps.
        first_epoch: epochs that are done already; what the folder tells of later ones is forgotten.
    """

    def __init__(self, path: Path, description: Description, flags: Mapping[str, Any], first_epoch: int) -> None:
        self.path = path
        self.description = description
        self.metrics = path / "metrics.jsonl"
        self.records: list[dict[str, Any]] = []
        if first_epoch and self.metrics.exists():
            lines = self.metrics.read_text(encoding="utf-8").splitlines()
            self.records = [record for line in lines if (record := json.loads(line))["epoch"] <= first_epoch]
        else:
            for file in _own_files(path):
                os.remove(file)
        write_json(path / "args.json", flags)
        self.metrics.write_text("".join(json.dumps(record) + "\n" for record in self.records), encoding="utf-8")
        self.events = SummaryWriter(str(path), purge_step=first_epoch + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.events.close()

    @property
    def best(self) -> Path:
        """The checkpoint of the best validation."""
        return self.path / "model.pt"

    @property
    def latest(self) -> Path:
        """The checkpoint that a run continues from."""
        return self.path / "model_final.pt"

    def record(self, epoch: int, training: Mapping[str, float], scores: Scores | None, example: Example | None) -> None:
        """Add an epoch's JSON line and TensorBoard curves, and redraw the pictures where it was validated.

        Args:
            epoch: epochs that are done, this one included.
            training: ``loss``, ``lr`` and ``seconds``.
        """
        line: dict[str, Any] = {"epoch": epoch, **training}
        for name, value in training.items():
            self.events.add_scalar(f"train/{name}", value, epoch)
        if scores is not None:
            line["dice"] = score_record(scores)
            for organ, value in {"mean": scores.mean, **line["dice"]["organs"]}.items():
                if value is not None:
                    self.events.add_scalar(f"validation_dice/{organ.replace(' ', '_')}", value, epoch)
        self.records.append(line)
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if scores is not None:
            save_picture(curves(self.records), self.path / "progress.png")
        if example is not None:
            figure = overlay(example, self.description.labels, self.description.preprocessing.spacing)
            save_picture(figure, self.path / "validation.png")
            self.events.add_image("validation/label_and_prediction", pixels(figure), epoch, dataformats="HWC")
        self.events.flush()


def claim_folder(args: argparse.Namespace) -> Path:
    """Make ``runs/NAME/``; what may be in it stays until training starts.

    Raises:
        InputError: if another run lies there and isn't to be overwritten, or the folder can't be written.
    """
    path = writable_folder(RUNS / args.logdir, f"--logdir {args.logdir}")
    continued = args.checkpoint is not None and Path(args.checkpoint).resolve().parent == path.resolve()
    if _own_files(path) and not (args.overwrite or continued):
        raise InputError(
            f"--logdir {args.logdir}: {path} holds a run already. Give another name, --overwrite to replace it, "
            f"or --checkpoint {path / 'model_final.pt'} to continue it."
        )
    return path


def _own_files(path: Path) -> list[Path]:
    return [file for pattern in OWN_FILES for file in path.glob(pattern)]

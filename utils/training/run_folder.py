"""What a run leaves under ``runs/NAME/``."""

import argparse
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from torch import nn

from utils.checkpoints.description import Description
from utils.checkpoints.progress import Progress
from utils.checkpoints.read import read_checkpoint
from utils.checkpoints.resume import require_continuable, resume_state
from utils.checkpoints.save import save_checkpoint
from utils.evaluation.pictures import curves, overlay, pixels, save_picture
from utils.evaluation.validation import Example
from utils.system.errors import DamagedError, InputError, TrainingError, WriteError
from utils.system.files import UNFINISHED, lock, writable_folder, write_json, write_text
from utils.training.tensorboard import EventFile

RUNS = Path("runs")
BEST = "model.pt"
LATEST = "model_final.pt"
BEFORE_LATEST = "model_previous.pt"
SET_ASIDE = "set_aside"
OWN_FILES = (
    BEST,
    LATEST,
    BEFORE_LATEST,
    "args.json",
    "metrics.jsonl",
    "progress.png",
    "validation.png",
    "events.out.tfevents.*",
    f"*{UNFINISHED}",
)


class RunFolder:
    """The folder of a run: its JSON lines, TensorBoard events, pictures and checkpoints.

    What can't be written, as on a full disk, is said and doesn't stop the run.

    Args:
        path: the folder, from :func:`claim_folder`.
        description: the network, for checkpoints and pictures.
        flags: what ``args.json`` and the checkpoints keep.
        scans: the files that train and validate, which the checkpoints keep too.
        progress: how far the run has come; what the folder tells of later epochs is forgotten.

    Attributes:
        unsaved: by file, why the last try to write it failed.
    """

    def __init__(
        self,
        path: Path,
        description: Description,
        flags: Mapping[str, Any],
        scans: Mapping[str, list[list[str]]],
        progress: Progress,
    ) -> None:
        self.path = path
        self.description = description
        self.flags = flags
        self.scans = scans
        self.unsaved: dict[Path, str] = {}
        path.mkdir(parents=True, exist_ok=True)
        self.lock = _lock(path)
        if progress.at_start:
            for file in _own_files(path):
                os.remove(file)
        if not self.best.exists():
            progress.best_score = progress.best_epoch = None  # the next validation leaves the best model here
        there_already = progress.epoch if any(path.glob("events.out.tfevents.*")) else 0
        self.events = EventFile(path, there_already)
        write_json(path / "args.json", flags)
        write_text(path / "metrics.jsonl", _json_lines(progress))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.events.close()
        os.close(self.lock)

    @property
    def best(self) -> Path:
        """The checkpoint of the best validation."""
        return self.path / BEST

    @property
    def latest(self) -> Path:
        """The checkpoint that a run continues from."""
        return self.path / LATEST

    def record(self, progress: Progress, example: Example | None) -> None:
        """Add the epoch that ended to JSON lines and TensorBoard, and redraw the pictures where it was validated."""
        metrics, drawing, picture = (self.path / name for name in ("metrics.jsonl", "progress.png", "validation.png"))
        self._try(metrics, lambda: write_text(metrics, _json_lines(progress)))
        if "dice" in progress.history[-1]:
            self._try(drawing, lambda: save_picture(pixels(curves(progress.history)), drawing))
        image = None
        if example is not None:
            image = pixels(overlay(example, self.description.labels, self.description.preprocessing.spacing))
            self._try(picture, lambda: save_picture(image, picture))
        self._try(self.path, lambda: self.events.plot(progress.history, image))

    def save_best(self, network: nn.Module, progress: Progress) -> bool:
        """Keep the weights in ``model.pt``; whether that succeeded."""
        return self._try(self.best, lambda: save_checkpoint(self.best, self.description, network, progress))

    def save_latest(self, network: nn.Module, learner: Mapping[str, Any], progress: Progress) -> bool:
        """Keep all that continuing needs in ``model_final.pt``; whether that succeeded.

        Args:
            learner: from :func:`utils.checkpoints.resume.learner_state`.
        """
        state = resume_state(learner, progress, self.flags, self.scans)
        before = self.path / BEFORE_LATEST
        return self._try(
            self.latest, lambda: save_checkpoint(self.latest, self.description, network, progress, state, before)
        )

    def require_saved(self) -> None:
        """Check that the last try to write each file succeeded.

        Raises:
            TrainingError: listing those that couldn't be written.
        """
        if self.unsaved:
            faults = "; ".join(self.unsaved.values())
            raise TrainingError(f"the run has ended, but {faults}. Make room, and launch it again with --resume.")

    def _try(self, path: Path, write: Callable[[], None]) -> bool:
        try:
            write()
        except WriteError as error:
            self.unsaved[path] = str(error)
            print(f"not saved: {error}; the run goes on, and what was there is kept", flush=True)
            return False
        self.unsaved.pop(path, None)
        return True


def claim_folder(args: argparse.Namespace) -> Path:
    """The folder ``runs/NAME/``, which can be made and written to; what may be in it stays until training starts.

    Raises:
        InputError: if another run lies there and isn't to be overwritten, or the folder can't be written.
    """
    path = writable_folder(RUNS / args.logdir, f"--logdir {args.logdir}")
    continued = args.checkpoint is not None and Path(args.checkpoint).resolve().parent == path.resolve()
    if _own_files(path) and not (args.overwrite or args.resume or continued):
        raise InputError(
            f"--logdir {args.logdir}: {path} holds a run already. Give another name, --overwrite to replace it, "
            "or --resume to continue it."
        )
    if any(path.iterdir()):
        os.close(_lock(path))
    else:
        path.rmdir()  # a start that fails leaves nothing
    return path


@contextmanager
def claim_group(name: str) -> Iterator[Path]:
    """The folder ``runs/NAME/`` of several runs, locked against other programs as long as this lasts.

    Raises:
        InputError: if a run itself lies there, another program has locked it, or it can't be written.
    """
    path = writable_folder(RUNS / name, f"--logdir {name}")
    if _own_files(path):
        raise InputError(f"--logdir {name}: {path} holds a run of main.py. Give another name.")
    descriptor = _lock(path)
    try:
        yield path
    finally:
        os.close(descriptor)


def remove_run(path: Path) -> None:
    """Remove what a run has left in its folder, where there is one; other files stay.

    Raises:
        InputError: if another program is training there.
    """
    if path.is_dir():
        descriptor = _lock(path)
        for file in _own_files(path):
            file.unlink()
        os.close(descriptor)


def _lock(path: Path) -> int:
    """Lock a run's folder as :func:`utils.system.files.lock` does."""
    name = path.relative_to(RUNS) if path.is_relative_to(RUNS) else path
    return lock(
        path, f"--logdir {name}: another program is training into {path}. Wait for its end, or give another name."
    )


def find_checkpoint(args: argparse.Namespace, folder: Path) -> Path | None:
    """The checkpoint that a run goes on from.

    With ``--resume`` it is the latest good one in the run's folder; without, or where there is none, ``--checkpoint``.
    Files that can't be continued from are moved to ``set_aside/``, and with them all that a run has left which has no
    good one, so that a run that begins anew deletes nothing of it.

    Raises:
        InputError: if another version of this program made the file.
    """
    given = Path(args.checkpoint) if args.checkpoint is not None else None
    if not args.resume:
        return given
    damaged = False
    for path in (folder / LATEST, folder / BEFORE_LATEST):
        if not path.exists():
            continue
        try:
            require_continuable(path, read_checkpoint(path))
        except DamagedError as error:
            print(f"moved to {_set_aside(path)}: {error}", flush=True)
            damaged = True
            continue
        print(f"{folder}: goes on from {path}", flush=True)
        return path
    if damaged or (folder / BEST).exists():
        for file in _own_files(folder):
            print(f"moved to {_set_aside(file)}: no checkpoint is left to go on from", flush=True)
    print(f"{folder}: begins anew" if given is None else f"{folder}: begins from {given}", flush=True)
    return given


def _set_aside(file: Path) -> Path:
    place = file.parent / SET_ASIDE / file.name
    place.parent.mkdir(exist_ok=True)
    number = 1
    while place.exists():
        number += 1
        place = place.with_name(f"{file.name}.{number}")
    os.replace(file, place)
    return place


def _json_lines(progress: Progress) -> str:
    return "".join(json.dumps(line) + "\n" for line in progress.history)


def _own_files(path: Path) -> list[Path]:
    return [file for pattern in OWN_FILES for file in path.glob(pattern)]

"""What a run leaves under ``runs/NAME/``."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from torch import nn

from utils.checkpoints.description import Description
from utils.checkpoints.progress import Progress
from utils.checkpoints.read import read_checkpoint
from utils.checkpoints.resume import require_continuable, resume_state
from utils.checkpoints.save import save_checkpoint
from utils.checkpoints.schema import EPOCH
from utils.evaluation.pictures import curves, pixels, save_picture
from utils.evaluation.validation import Validation
from utils.system.errors import DamagedError, InputError, TrainingError, WriteError, first_line
from utils.system.files import (
    UNFINISHED,
    lock,
    make_folder,
    open_regular,
    parse_json,
    remove,
    writable_folder,
    write_bytes,
    write_json,
    write_text,
)
from utils.training.tensorboard import EventFile

Say = Callable[[str], None]

RUNS = Path("runs")
BEST = "model.pt"
LATEST = "model_final.pt"
BEFORE_LATEST = "model_previous.pt"
SET_ASIDE = "set_aside"
CHECKPOINTS = (BEST, LATEST, BEFORE_LATEST)
OWN_FILES = (
    *CHECKPOINTS,
    "args.json",
    "metrics.jsonl",
    "progress.png",
    "validation.png",
    "events.out.tfevents.*",
    f"*{UNFINISHED}",
)


class RunFolder:
    """The folder of a run: its JSON lines, TensorBoard events, pictures and checkpoints.

    A failed write, as on a full disk, is reported and doesn't stop the run.

    Args:
        path: the folder, from :func:`claim_folder`.
        description: the network, for checkpoints and pictures.
        flags: the run's settings, for ``args.json`` and the checkpoints.
        data: the scans that train and validate, as :meth:`DataList.recorded` gives them, for the checkpoints.
        progress: how far the run has come; records of later epochs are removed.
        say: prints a message.

    Attributes:
        unsaved: by file, why the last attempt to write it failed.

    Raises:
        InputError: if another program trains there, or has trained since the folder was claimed.
    """

    def __init__(
        self,
        path: Path,
        description: Description,
        flags: Mapping[str, Any],
        data: Mapping[str, Any],
        progress: Progress,
        say: Say,
    ) -> None:
        self.path = path
        self.description = description
        self.flags = flags
        self.data = data
        self.say = say
        self.unsaved: dict[Path, str] = {}
        path.mkdir(parents=True, exist_ok=True)
        self.lock = _lock(path)
        network_file = description.architecture.file
        if network_file is not None:
            _keep_copy(network_file, path / network_file.name)
        if progress.at_start:
            if not flags["overwrite"]:  # another program may have trained here since the folder was claimed
                _require_none(path, CHECKPOINTS if flags["resume"] else OWN_FILES)
            for file in _own_files(path):
                remove(file)
        progress.best_score, progress.best_epoch = _score_of(self.best)
        epochs_written = progress.epoch if any(path.glob("events.out.tfevents.*")) else 0
        self.events = EventFile(path, epochs_written)
        write_json(path / "args.json", flags)
        write_text(path / "metrics.jsonl", _json_lines(progress))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.events.close()
        os.close(self.lock)

    @property
    def best(self) -> Path:
        """The weights with the best validation score."""
        return self.path / BEST

    @property
    def latest(self) -> Path:
        """The checkpoint that a run continues from."""
        return self.path / LATEST

    def record(self, progress: Progress, found: Validation | None) -> None:
        """Add the last epoch to the JSON lines and TensorBoard, and redraw the pictures if it was validated."""
        metrics, plot, picture = (self.path / name for name in ("metrics.jsonl", "progress.png", "validation.png"))
        self._try(metrics, lambda: write_text(metrics, _json_lines(progress)))
        if found is not None:
            self._try(plot, lambda: save_picture(pixels(curves(progress.history)), plot))
        image = None
        if found is not None and found.picture is not None:
            image = pixels(found.picture())
            self._try(picture, lambda: save_picture(image, picture))
        self._try(self.path, lambda: self.events.write(progress.history, image))

    def save_best(self, network: nn.Module, progress: Progress) -> bool:
        """Write ``model.pt``; return whether that succeeded."""
        return self._try(self.best, lambda: save_checkpoint(self.best, self.description, network, progress))

    def save_latest(self, network: nn.Module, learner: Mapping[str, Any], progress: Progress) -> bool:
        """Write ``model_final.pt``, with all that resuming needs; return whether that succeeded.

        Args:
            learner: from :func:`utils.checkpoints.resume.learner_state`.
        """
        state = resume_state(learner, progress, self.flags, self.data)
        previous = self.path / BEFORE_LATEST
        return self._try(
            self.latest, lambda: save_checkpoint(self.latest, self.description, network, progress, state, previous)
        )

    def require_saved(self) -> None:
        """Check that the last attempt to write each file succeeded.

        Raises:
            TrainingError: listing the files that are missing or out of date.
        """
        if self.unsaved:
            faults = "; ".join(self.unsaved.values())
            raise TrainingError(f"the run has ended, but {faults}. Make room, and launch it again with `resume`.")

    def _try(self, path: Path, write: Callable[[], None]) -> bool:
        try:
            write()
        except WriteError as error:
            self.unsaved[path] = str(error)
            self.say(f"not saved: {error}; the run goes on, and the old file is kept")
            return False
        self.unsaved.pop(path, None)
        return True


def claim_folder(name: str, *, overwrite: bool, resume: bool, checkpoint: Path | None) -> Path:
    """Check that a run may be written to ``runs/NAME/``; nothing in it changes before training starts.

    Args:
        checkpoint: what the run continues from; one in the folder itself allows to continue there.

    Raises:
        InputError: if the folder holds a run that is neither overwritten nor continued, or can't be written to.
    """
    is_new = not (RUNS / name).exists()
    path = writable_folder(RUNS / name, f"`logdir` {name}")
    continues = resume or (checkpoint is not None and checkpoint.resolve().parent == path.resolve())
    if not (overwrite or continues):
        _require_none(path, OWN_FILES)
    if any(path.iterdir()):
        os.close(_lock(path))
    elif is_new:
        path.rmdir()  # so that a start that fails leaves nothing
    return path


@contextmanager
def claim_group(name: str) -> Iterator[Path]:
    """Lock ``runs/NAME/``, the parent folder of several runs, inside ``with``.

    Raises:
        InputError: if the folder is that of a single run, another program has locked it, or it can't be written to.
    """
    path = writable_folder(RUNS / name, f"`logdir` {name}")
    if _own_files(path):
        raise InputError(f"`logdir` {name}: {path} holds a run of main.py. Give another name.")
    descriptor = _lock(path)
    try:
        yield path
    finally:
        os.close(descriptor)


def training_seconds(path: Path) -> float | None:
    """How long a run's training steps took; None if its folder doesn't tell.

    Raises:
        InputError: if ``metrics.jsonl`` can't be read.
    """
    metrics = path / "metrics.jsonl"
    if not metrics.exists():
        return None
    try:
        with open_regular(metrics) as file:
            epochs = [EPOCH.validate_python(parse_json(line)) for line in file.read().decode().splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"{metrics}: isn't what main.py writes ({first_line(error)}). Remove it.") from error
    return round(sum(epoch["seconds"] for epoch in epochs), 1)


def remove_run(path: Path) -> None:
    """Remove a run's files from its folder, if it exists; other files stay.

    Raises:
        InputError: if another program is training there.
    """
    if path.is_dir():
        descriptor = _lock(path)
        for file in _own_files(path):
            remove(file)
        os.close(descriptor)


def _lock(path: Path) -> int:
    """Lock a run's folder; see :func:`utils.system.files.lock`."""
    return lock(
        path,
        f"`logdir` {_name(path)}: another program is training into {path}. Wait for its end, or give another name.",
    )


def find_checkpoint(folder: Path, *, resume: bool, checkpoint: Path | None, say: Say) -> Path | None:
    """The checkpoint that a run continues from; None if it starts anew.

    With ``resume`` this is the latest undamaged one in the run's folder. Without ``resume``, or if there is none, it
    is ``checkpoint``. Damaged checkpoints move to ``set_aside/``. If no undamaged one is left there, all files of the
    old run move, so that the new run deletes nothing.

    Raises:
        InputError: if another version of this program wrote the checkpoint.
    """
    if not resume:
        return checkpoint
    damaged = False
    for path in (folder / LATEST, folder / BEFORE_LATEST):
        if not path.exists():
            continue
        try:
            require_continuable(path, read_checkpoint(path))
        except DamagedError as error:
            say(f"moved to {_set_aside(path)}: {error}")
            damaged = True
            continue
        say(f"{folder}: continues from {path}")
        return path
    if damaged or (folder / BEST).exists():
        for file in _own_files(folder):
            say(f"moved to {_set_aside(file)}: no checkpoint is left to continue from")
    say(f"{folder}: starts anew" if checkpoint is None else f"{folder}: starts from {checkpoint}")
    return checkpoint


def _set_aside(file: Path) -> Path:
    """Move a file to ``set_aside/``, under a name that is free there.

    Raises:
        InputError: if that is a link, which could lead anywhere.
        WriteError: if it can't be made.
    """
    target = file.parent / SET_ASIDE / file.name
    if target.parent.is_symlink():
        raise InputError(f"{target.parent}: is a link, and files are moved within the run's folder alone. Remove it.")
    make_folder(target.parent)
    number = 1
    while target.exists():
        number += 1
        target = target.with_name(f"{file.name}.{number}")
    os.replace(file, target)
    return target


def _require_none(path: Path, files: Sequence[str]) -> None:
    """Check that a folder holds none of a run's files.

    Args:
        files: patterns.

    Raises:
        InputError: if it does.
    """
    if _own_files(path, files):
        raise InputError(
            f"`logdir` {_name(path)}: {path} holds a run already. Give another name, `overwrite` to replace it, "
            "or `resume` to continue it."
        )


def _score_of(best: Path) -> tuple[float | None, int | None]:
    """Mean Dice of a run's best model, and the epochs behind it; None of a file that isn't there or is damaged.

    After a kill these may be more epochs than the latest checkpoint has.
    """
    if not best.exists():
        return None, None
    try:
        content = read_checkpoint(best)
    except DamagedError:
        return None, None
    return content.get("score"), content.get("epoch")


def _name(path: Path) -> Path:
    """A run's folder as the ``logdir`` setting names it."""
    return path.relative_to(RUNS) if path.is_relative_to(RUNS) else path


def _keep_copy(file: Path, copy: Path) -> None:
    """Keep a network's file: a checkpoint is read with this very file alone, and its owner may change the original.

    Raises:
        WriteError: if the copy can't be written.
    """
    content = file.read_bytes()
    if not copy.exists() or copy.read_bytes() != content:
        write_bytes(copy, content)


def _json_lines(progress: Progress) -> str:
    return "".join(json.dumps(line) + "\n" for line in progress.history)


def _own_files(path: Path, patterns: Sequence[str] = OWN_FILES) -> list[Path]:
    return [file for pattern in patterns for file in path.glob(pattern)]

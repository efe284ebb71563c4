"""Writing files so that neither a crash nor a full disk leaves a part of one, or takes away the one before."""

import errno
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils.system.errors import InputError, WriteError

UNFINISHED = ".part"
LOCK = ".lock"


@contextmanager
def replacing(path: Path, previous: Path | None = None) -> Iterator[Path]:
    """A temporary name beside ``path``; what was written there takes the place of ``path`` in one step at the end.

    It does so when it is safe on the disk, so that whatever happens ``path`` is the old file or the new one.

    Args:
        previous: gets the file that was at ``path``.

    Raises:
        WriteError: if the disk is full or otherwise refuses; ``path`` and ``previous`` are then as they were.
    """
    temporary = path.with_name(path.name + UNFINISHED)
    try:
        yield temporary
        _flush_to_disk(temporary)
        if previous is not None and path.exists():
            _rename_beside(path, previous)
        os.replace(temporary, path)
        _flush_to_disk(path.parent)  # the folder's entry is a write of its own
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise WriteError(f"{path}: can't be written ({error.strerror or error})") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename_beside(path: Path, other: Path) -> None:
    """Let ``other`` be the file at ``path``, which keeps its own name too where the file system can do that."""
    link = other.with_name(other.name + UNFINISHED)
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:
        os.replace(path, other)
        return
    os.replace(link, other)
    link.unlink(missing_ok=True)  # where both are one file already, os.replace leaves both names


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step.

    Raises:
        WriteError: if it can't be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file in one step.

    Raises:
        WriteError: if it can't be written.
    """
    write_text(path, json.dumps(content, indent=2) + "\n")


def lock(folder: Path, taken: str) -> int:
    """Lock a folder against other programs; a file descriptor, and the lock goes when that is closed.

    Raises:
        InputError: with the text ``taken``, if another program has locked it.
    """
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        # this kind isn't passed on to the processes that load data, which may outlive a run that is killed
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            os.close(descriptor)
            raise InputError(taken) from None
        # a file system without locks: nothing can be told from it
    return descriptor


def fingerprint(path: Path) -> str | None:
    """A few characters that tell a file's content from another's; None where there is no file that can be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:12]
    except OSError:
        return None


def make_folder(path: Path) -> None:
    """Make a folder in one that is there, unless it is there too.

    Raises:
        WriteError: if that can't be done.
    """
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise WriteError(f"{path}: can't be made as a folder ({error.strerror})") from error


def remove(path: Path) -> None:
    """Remove a file, if it is there.

    Raises:
        WriteError: if that can't be done.
    """
    try:
        path.unlink()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise WriteError(f"{path}: can't be removed ({error.strerror})") from error


def writable_folder(path: Path, flag: str) -> Path:
    """Make a folder, and the ones above it, that files can be written to.

    Raises:
        InputError: naming ``flag`` if that can't be done.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(f"{flag}: can't write to {path} ({error.strerror}). Give another folder.") from error
    return path

"""Atomic writes, locks, fingerprints of files, and folders."""

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
HASH_DIGITS = 12

FileState = list[str | int]  # name, modification time in nanoseconds, size in bytes


@contextmanager
def atomic_write(path: Path, previous: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path to write to, which replaces ``path`` at the end.

    It is flushed to the disk before that, so that after a crash ``path`` is the whole old file or the whole new one.

    Args:
        previous: where the old file is kept.

    Raises:
        WriteError: if the disk is full or refuses for another reason; ``path`` and ``previous`` stay as they were.
    """
    temporary = path.with_name(path.name + UNFINISHED)
    try:
        yield temporary
        _flush_to_disk(temporary)
        if previous is not None and path.exists():
            _move(path, previous)
        os.replace(temporary, path)
        _flush_to_disk(path.parent)  # so that the new name is on the disk too
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


def _move(path: Path, target: Path) -> None:
    """Replace ``target`` by the file at ``path``, which keeps its old name too if the file system has hard links."""
    link = target.with_name(target.name + UNFINISHED)
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:
        os.replace(path, target)
        return
    os.replace(link, target)
    link.unlink(missing_ok=True)  # os.replace does nothing if both are the same file already


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically.

    Raises:
        WriteError: if it can't be written.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically.

    Raises:
        WriteError: if it can't be written.
    """
    write_text(path, json.dumps(content, indent=2) + "\n")


def lock(folder: Path, message: str) -> int:
    """Lock a folder against other programs until the returned file descriptor is closed.

    Raises:
        InputError: with ``message``, if another program has locked the folder.
    """
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        # processes that load data don't inherit this kind of lock; they may outlive a run that is killed
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            os.close(descriptor)
            raise InputError(message) from None
        # else the file system has no locks, and the folder counts as free
    return descriptor


def content_hash(path: Path) -> str | None:
    """First 12 hex digits of the file's SHA-256; None if there is no file that can be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:HASH_DIGITS]
    except OSError:
        return None


def text_hash(text: str) -> str:
    """First 12 hex digits of the text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS]


def file_state(file: Path) -> FileState:
    """Name, modification time and size, without reading the file; of a missing file the name alone."""
    try:
        status = file.stat()
    except OSError:
        return [str(file)]
    return [str(file), status.st_mtime_ns, status.st_size]


def make_folder(path: Path) -> None:
    """Make a folder unless it exists; its parent must exist.

    Raises:
        WriteError: if it can't be made.
    """
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise WriteError(f"{path}: can't be made as a folder ({error.strerror})") from error


def remove(path: Path) -> None:
    """Remove a file if it exists.

    Raises:
        WriteError: if it can't be removed.
    """
    try:
        path.unlink()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise WriteError(f"{path}: can't be removed ({error.strerror})") from error


def writable_folder(path: Path, setting: str) -> Path:
    """Make a folder with its parents unless it exists, and check that files can be written there.

    Raises:
        InputError: with the name of the ``setting``, if that fails.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(f"{setting}: can't write to {path} ({error.strerror}). Give another folder.") from error
    return path

"""Regular files and JSON, atomic writes, locks, fingerprints of files, and folders."""

import errno
import fcntl
import hashlib
import json
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from utils.system.errors import InputError, WriteError

UNFINISHED = ".part"
LOCK = ".lock"
HASH_DIGITS = 12
LONGEST_NAME = 255  # bytes, on nearly all file systems

FileState = list[str | int]  # name, modification time in nanoseconds, size in bytes


PIPE = "is a pipe, a socket or a device, not a file"


class PipeError(InputError):
    """A path is a pipe, a socket or a device, not a file."""


def open_regular(path: Path) -> IO[bytes]:
    """Open a regular file to read. A pipe would wait for its writer for ever, and a device has no end.

    Raises:
        PipeError: if it is a pipe, a socket or a device.
        OSError: if it can't be opened, or is a folder.
    """
    require_regular(path)
    # should a pipe have taken its place since then, opening doesn't wait for its writer
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise _not_regular(path)
    return file


def require_regular(path: Path) -> None:
    """Check that a path is a regular file, or a link to one.

    Raises:
        PipeError: if it is a pipe, a socket or a device.
        OSError: if it isn't there, or is a folder.
    """
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise _not_regular(path)


def _not_regular(path: Path) -> PipeError:
    return PipeError(f"{path}: {PIPE}. Give a file.")


def read_json(path: Path) -> Any:
    """The content of a JSON file in UTF-8; a byte order mark, as some editors write it, is passed over.

    Raises:
        InputError: if it is no regular file.
        OSError: if it can't be read.
        ValueError: if it holds something else than JSON.
    """
    with open_regular(path) as file:
        return parse_json(file.read().decode("utf-8-sig"))


def parse_json(text: str) -> Any:
    """The content of a JSON text.

    Raises:
        ValueError: if it isn't JSON, names something twice, or is nested deeper than Python can follow.
    """
    try:
        return json.loads(text, object_pairs_hook=_named_once)
    except RecursionError:
        raise ValueError("its lists are nested too deep") from None


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Python would take the last of two values of one name, and tell nobody."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has {next(name for name in found if names.count(name) > 1)!r} twice")
    return found


@contextmanager
def atomic_write(path: Path, previous: Path | None = None, *, shared: bool = False) -> Iterator[Path]:
    """Yield a temporary path to write to, which replaces ``path`` at the end.

    It is flushed to the disk before that, so that after a crash ``path`` is the whole old file or the whole new one.

    Args:
        previous: where the old file is kept.
        shared: whether several programs may write it at once; the last one's stays.

    Raises:
        WriteError: if the disk is full or refuses for another reason; ``path`` and ``previous`` stay as they were.
    """
    temporary = _unfinished(path, secrets.token_hex(4) if shared else "")
    if path.is_char_device() or path.is_block_device():  # root could replace /dev/null
        raise WriteError(f"{path}: is a device, and would be replaced by a file")
    try:
        # made anew: a link of that name, wherever it points, is removed and not followed
        temporary.unlink(missing_ok=True)
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        yield temporary
        _flush_to_disk(temporary)
        if previous is not None and path.exists():
            _move(path, previous)
        os.replace(temporary, path)
        _flush_to_disk(path.parent)  # so that the new name is on the disk too
    except BaseException as error:
        with suppress(OSError):  # a folder of that name, which the error tells of
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, WriteError):  # which names another file
            folder = error.filename2 or error.filename
            named = f"{folder}: " if isinstance(error, IsADirectoryError) and str(folder) != str(path) else ""
            raise WriteError(f"{path}: can't be written ({named}{error.strerror or error})") from error
        raise


def _unfinished(path: Path, writer: str = "") -> Path:
    """What a file is called until it is whole."""
    name = path.name + (f".{writer}" if writer else "") + UNFINISHED
    too_long = len(os.fsencode(name)) > LONGEST_NAME
    return path.with_name(f".{text_hash(path.name)}{UNFINISHED}" if too_long else name)


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move(path: Path, target: Path) -> None:
    """Replace ``target`` by the file at ``path``, which keeps its old name too if the file system has hard links."""
    link = _unfinished(target)
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:
        os.replace(path, target)
        return
    os.replace(link, target)
    link.unlink(missing_ok=True)  # os.replace does nothing if both are the same file already


def write_text(path: Path, text: str, *, shared: bool = False) -> None:
    """Write a text file atomically.

    Args:
        shared: whether several programs may write it at once; the last one's stays.

    Raises:
        WriteError: if it can't be written.
    """
    with atomic_write(path, shared=shared) as temporary:
        # a file's name that isn't UTF-8 has characters that UTF-8 can't hold
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically.

    Raises:
        WriteError: if it can't be written.
    """
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically.

    Raises:
        WriteError: if it can't be written.
    """
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_json_together(contents: Mapping[Path, Any]) -> None:
    """Write several JSON files, all or none.

    Raises:
        WriteError: if one can't be written; then all are as they were.
    """
    earlier = {path: path.with_name(f".{text_hash(path.name)}.earlier") for path in contents}
    new = [path for path in contents if not path.exists()]
    for kept in earlier.values():
        remove(kept)
    try:
        with ExitStack() as files:  # all are written and then, at its end, get their names
            for path, content in contents.items():
                temporary = files.enter_context(atomic_write(path, previous=earlier[path]))
                temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except BaseException:
        for path, kept in earlier.items():
            if kept.exists():
                os.replace(kept, path)
            elif path in new:
                path.unlink(missing_ok=True)
        raise
    finally:
        for kept in earlier.values():
            kept.unlink(missing_ok=True)


def lock(folder: Path, message: str) -> int:
    """Lock a folder against other programs until the returned file descriptor is closed.

    Raises:
        InputError: with ``message``, if another program has locked the folder; or if the lock is a link.
    """
    path = folder / LOCK
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        raise InputError(f"{path}: can't be opened ({error.strerror}). Remove it.") from error
    try:
        # processes that load data don't inherit this kind of lock; they may outlive a run that is killed
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            os.close(descriptor)
            raise InputError(message) from None
        # else the file system has no locks, and the folder counts as free
    return descriptor


def walk_files(folder: Path, note: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    """All files below a folder but hidden ones. Links to folders are followed, but never in circles.

    Args:
        note: called with the error where a folder can't be listed.
    """
    walked = {os.path.realpath(folder)}
    for place, folders, names in os.walk(folder, onerror=note, followlinks=True):
        inner = {os.path.realpath(Path(place, name)): name for name in sorted(folders) if not name.startswith(".")}
        folders[:] = [name for real, name in inner.items() if real not in walked]
        walked.update(inner)
        yield from (Path(place, name) for name in sorted(names) if not name.startswith("."))


def content_hash(path: Path) -> str | None:
    """First 12 hex digits of the file's SHA-256; None if there is no file that can be read."""
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:HASH_DIGITS]  # type: ignore[arg-type]
    except (OSError, PipeError):
        return None


def fitting_name(stem: str, ending: str = "") -> str:
    """A file's name that file systems take: of one that is too long a part, told apart by the stem's hash."""
    name = stem + ending
    if len(os.fsencode(name)) <= LONGEST_NAME:
        return name
    ending = f"_{text_hash(stem)}{ending}"
    return os.fsencode(stem)[: LONGEST_NAME - len(ending.encode())].decode(errors="ignore") + ending


def text_hash(text: str) -> str:
    """First 12 hex digits of the text's SHA-256."""
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:HASH_DIGITS]


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

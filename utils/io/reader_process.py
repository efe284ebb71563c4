"""Readers in processes of their own, which may crash: that costs the file that they read, and nothing else."""

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

from utils.system.errors import InputError
from utils.system.hardware import available_memory, total_memory

PROGRAM = Path(__file__).with_name("reader_child.py")
END_SECONDS = 5  # for a process that has broken off to be gone
READ_SECONDS = 20  # for one file, and as long again for every further 100 MB; it takes a share of that


class _Child:
    """A process that answers one request after the other."""

    def __init__(self) -> None:
        # -P: the modules beside the program aren't meant
        command = [sys.executable, "-P", str(PROGRAM), str(total_memory())]
        self.process = subprocess.Popen(
            command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray | None]:
        """The reply to a request, with voxels if it has some.

        Raises:
            EOFError: if the process ends before it has replied.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
        except BrokenPipeError:
            raise EOFError from None
        line = b""
        while not line.endswith(b"\n"):
            line += self._read(1)
        reply: dict[str, Any] = json.loads(line)
        if "shape" not in reply:
            return reply, None
        voxels = np.empty(reply["shape"], reply["dtype"])
        rest = voxels.reshape(-1).view(np.uint8).data  # complex numbers have no bytes otherwise
        while rest:
            count = self.process.stdout.readinto(rest)  # type: ignore[attr-defined]
            if not count:
                raise EOFError
            rest = rest[count:]
        return reply, voxels

    def _read(self, count: int) -> bytes:
        assert self.process.stdout is not None
        found = self.process.stdout.read(count)
        if not found:
            raise EOFError
        return found

    def end(self) -> None:
        """End the process, which waits for requests."""
        with self.process:  # closes its pipes, and waits
            pass

    def why_it_ended(self) -> str:
        """What ended the process, in words."""
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:  # it has closed its pipe, or sent nonsense
            self.process.kill()
        self.end()
        status = self.process.returncode
        if status == -signal.SIGALRM:
            return "its reader didn't come to an end"
        return f"its reader crashed ({signal.Signals(-status).name if status < 0 else f'status {status}'})"


_idle: list[_Child] = []
_at_work = threading.BoundedSemaphore(os.cpu_count() or 1)


def _end_idle() -> None:
    while _idle:
        _idle.pop().end()


atexit.register(_end_idle)


def _after_fork() -> None:
    """Leave the parent's processes alone, in a process that loads data."""
    global _at_work
    _idle.clear()
    _at_work = threading.BoundedSemaphore(os.cpu_count() or 1)


os.register_at_fork(after_in_child=_after_fork)


def start_ahead() -> None:
    """Start a process now, so that it is ready when a file needs one."""
    if not _idle:
        _idle.append(_Child())


def ask_itk_kind(path: Path) -> str:
    """The name of the ITK class that reads a file; empty if none does.

    Raises:
        InputError: if SimpleITK crashes on it, or can't open such a name.
    """
    _require_utf_8(path)
    return str(_ask(path, "itk_kind")[0].get("kind", ""))


def ask_itk_volume(path: Path, kind: str, size: int | None) -> tuple[dict[str, Any], np.ndarray | None]:
    """A volume that SimpleITK reads.

    Args:
        kind: the ITK class that is to read it.
        size: bytes of its voxels, which may lie in other files; None if only the header is wanted.

    Returns:
        ``size``, ``bytes`` of all voxels and ``item_bytes`` of a number; with voxels, if it is a 3D volume that
        fits into memory, also ``direction``, ``spacing``, ``origin``, and its voxels (Z, Y, X[, C]). Or ``error``
        alone, with ITK's text, if it can't be read.

    Raises:
        InputError: if SimpleITK crashes on it, or can't open such a name.
    """
    _require_utf_8(path)
    # the voxels are there twice for a moment, in that process and in this one, and then become float32
    room = 0 if size is None else available_memory() // 4
    return _ask(path, "itk_volume", size or 0, kind=kind, room=room)


def ask_dicom_pixels(path: Path) -> tuple[dict[str, Any], np.ndarray | None]:
    """The stored values of a DICOM file, ([frames,] rows, columns), or ``error`` with the decoder's text.

    Raises:
        InputError: if the decoder crashes on it.
    """
    return _ask(path, "dicom_pixels")


def _require_utf_8(path: Path) -> None:
    try:
        path.name.encode()
    except UnicodeEncodeError:
        raise InputError(f"{path}: has a name that isn't UTF-8, which SimpleITK can't open. Rename it.") from None


def _ask(path: Path, job: str, size: int = 0, **details: Any) -> tuple[dict[str, Any], np.ndarray | None]:
    seconds = READ_SECONDS * (1 + max(path.stat().st_size, size) // 100_000_000)
    request = {"job": job, "path": os.path.abspath(path), "details": details, "seconds": seconds}
    with _at_work:
        child = _idle.pop() if _idle else _Child()
        try:
            reply = child.ask(request)
        except (EOFError, json.JSONDecodeError):
            raise InputError(f"{path}: can't be read: {child.why_it_ended()}. Copy or convert it again.") from None
        except BaseException:
            child.process.kill()  # in the middle of a reply
            raise
        _idle.append(child)
    return reply

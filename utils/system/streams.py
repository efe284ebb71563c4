"""Standard streams that never fail: printing costs no result, whatever becomes of the terminal, pipe or file."""

import contextlib
import errno
import io
import os
import select
import sys
from typing import Any

NAMES = {1: "stdout", 2: "stderr"}
TITLES = {1: "standard output", 2: "standard error"}


def fill_closed_descriptors() -> None:
    """Open /dev/null for each standard stream that is closed, as by ``>&-`` in a shell.

    Otherwise the next file that is opened becomes descriptor 1 or 2, and gets the messages of C libraries and children.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:  # a thread was faster, or has closed a lower one
                os.dup2(null, descriptor)
                os.close(null)
            os.set_inheritable(descriptor, True)


def guard_streams() -> None:
    """Make ``sys.stdout`` and ``sys.stderr`` streams that never raise; call it at the start of a program.

    Characters that the encoding lacks are written as ``\\u2026``. A stream that can't be written any more, as after
    ``| head`` or on a full disk, is /dev/null from then on: the program goes on, and its status is that of its work.
    Streams that a notebook or pytest has put in place stay as they are.
    """
    fill_closed_descriptors()
    for descriptor, name in NAMES.items():
        stream: Any = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__") or isinstance(stream, _GuardedText):
            continue
        guarded = _guarded(stream, descriptor)
        setattr(sys, name, guarded)
        setattr(sys, f"__{name}__", guarded)


def _guarded(stream: Any, descriptor: int) -> "_GuardedText":
    """A stream like another, which is None if its descriptor was closed when Python started."""
    raw = _Descriptor(descriptor, "w", closefd=False)
    raw.name = f"<{NAMES[descriptor]}>"
    if stream is None:
        return _GuardedText(io.BufferedWriter(raw), "utf-8", "backslashreplace", line_buffering=True)
    with contextlib.suppress(OSError):  # the new stream meets the same fault
        stream.flush()
    return _GuardedText(
        raw if stream.write_through else io.BufferedWriter(raw),  # type: ignore[arg-type]
        stream.encoding,
        "backslashreplace",
        newline="\n",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _GuardedText(io.TextIOWrapper):
    """The text layer, as a class of its own to tell it by."""


class _Descriptor(io.FileIO):
    """Descriptor 1 or 2. After a failed write it is /dev/null."""

    def write(self, data: Any, /) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while left:
                written = super().write(left)
                if written is None:  # another program has made it non-blocking, and its reader is slow
                    select.select([], [self], [])
                else:
                    left = left[written:]
        except OSError as error:
            self._give_up(error)
        return size

    def _give_up(self, error: OSError) -> None:
        descriptor = self.fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, descriptor)
        os.close(null)
        if error.errno == errno.EPIPE:
            return  # its reader has seen enough
        text = f"note: {TITLES[descriptor]} can't be written ({error.strerror}); results are complete without it\n"
        with contextlib.suppress(OSError):  # nobody is left to be told
            os.write(3 - descriptor, text.encode("ascii", "backslashreplace"))

"""Errors that the user can mend, reported in one line without a traceback."""

import pickle
import signal
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from utils.system.streams import guard_streams

# what torch and zipfile raise on files that are damaged or of another kind
UNREADABLE = (
    *(RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError, MemoryError),
    *(ArithmeticError, struct.error, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error),
)

Spell = Callable[[str], str]  # how a program spells the settings that a message names in backquotes


class InputError(ValueError):
    """A setting or a file is wrong. The message names it, and says what is wrong and what to do."""


class DamagedError(InputError):
    """A file is damaged or isn't what it should be; an older version of it may do instead."""


class TrainingError(RuntimeError):
    """A run can't continue. The message says where it stopped and what was saved."""


class LostError(RuntimeError):
    """The connection to another process broke. The message says where."""


class ReportedElsewhereError(Exception):
    """The program ends with status 1, and another process reports why."""


class WriteError(OSError):
    """A file can't be written, for example on a full disk. The message gives its name and the reason."""


class Stopped(BaseException):
    """A signal asked the program to end. Like KeyboardInterrupt it isn't an ``Exception``.

    Args:
        number: the signal.
        message: what to print; the default is right while nothing has been done yet.
    """

    def __init__(self, number: int, message: str | None = None) -> None:
        default = f"stopped by {signal.Signals(number).name} before anything was done; launch the same command again"
        super().__init__(default if message is None else message)
        self.number = number


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class if it has none."""
    return str(error).splitlines()[0].rstrip(":") if str(error) else type(error).__name__


def is_out_of_memory(error: Exception) -> bool:
    """Whether the machine is out of memory; for that of a CPU torch raises a plain RuntimeError."""
    texts = ("can't allocate memory", "Cannot allocate memory")
    return isinstance(error, MemoryError) or any(text in str(error) for text in texts)


def no_memory(path: object) -> str:
    """What to say of a scan that the machine's memory doesn't hold."""
    return f"{path}: this machine has no memory for it. Free some, or take a larger machine."


def size_text(numbers: Sequence[int]) -> str:
    """A shape for messages: 96 × 96 × 96."""
    return " × ".join(map(str, numbers))


@contextmanager
def one_line_errors(spell: Spell = str) -> Iterator[None]:
    """End the program with one line after an error that the user can mend, or after a signal.

    The exit status is 1, or 128 + the signal. Other exceptions are bugs and keep their traceback. From here on printing
    never fails (:func:`utils.system.streams.guard_streams`).

    Args:
        spell: how the program spells the settings that a message names in backquotes.
    """
    guard_streams()
    try:
        yield
    except (InputError, TrainingError, LostError, WriteError) as error:
        rank = "".join(f"{note}: " for note in getattr(error, "__notes__", []))  # in a group of processes
        print(f"error: {rank}{spell(str(error))}", file=sys.stderr)
        raise SystemExit(1) from None
    except ReportedElsewhereError:
        raise SystemExit(1) from None
    except Stopped as stopped:
        if str(stopped):
            print(spell(str(stopped)), file=sys.stderr)
        raise SystemExit(128 + stopped.number) from None
    except KeyboardInterrupt:
        print("stopped by the keyboard", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None

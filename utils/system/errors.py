"""Errors that a person can mend, told in words and without a traceback."""

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class InputError(ValueError):
    """A flag or a file is wrong. The message names it, says what is wrong and what to do."""


class DamagedError(InputError):
    """A file is damaged, or holds something else than it should, so that one before it may serve."""


class TrainingError(RuntimeError):
    """A run can't go on. The message says where it stopped and what is left of it."""


class LostError(RuntimeError):
    """The connection to another process broke. The message says where."""


class ToldError(Exception):
    """The program ends with status 1, and another process has said why."""


class WriteError(OSError):
    """A file can't be written, as on a full disk. The message names it and the reason."""


class Stopped(BaseException):
    """A signal asked the program to end. Like KeyboardInterrupt no ``except Exception`` may catch it.

    Args:
        number: the signal.
        message: what to tell; by default the signal's name, and what holds before anything was done.
    """

    def __init__(self, number: int, message: str | None = None) -> None:
        default = f"stopped by {signal.Signals(number).name} before anything was done; launch the same command again"
        super().__init__(default if message is None else message)
        self.number = number


def brief(error: BaseException) -> str:
    """What another library says of an error, on one line."""
    return str(error).splitlines()[0].rstrip(":") if str(error) else type(error).__name__


def lacks_memory(error: Exception) -> bool:
    """Whether it tells that the machine has no memory left; torch has no class of its own for a CPU's."""
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def size_text(numbers: Sequence[int]) -> str:
    """A shape as messages have it: 96 × 96 × 96."""
    return " × ".join(map(str, numbers))


@contextmanager
def blame_flags() -> Iterator[None]:
    """Turn a ``ValueError`` of something built straight from flags into an :class:`InputError`."""
    try:
        yield
    except ValueError as error:
        raise InputError(str(error)) from error


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the program with one line where a person can mend what is wrong, or asked it to end.

    The status is 1, or 128 + the signal. Anything else keeps its traceback: it is our fault, and the traceback finds
    it.
    """
    try:
        yield
    except (InputError, TrainingError, LostError, WriteError) as error:
        # a loader's worker process wraps the message into its own traceback
        message = str(error).rsplit(f"{type(error).__name__}: ", 1)[-1].rstrip()
        whose = "".join(f"{note}: " for note in getattr(error, "__notes__", []))
        print(f"error: {whose}{message}", file=sys.stderr)
        raise SystemExit(1) from None
    except ToldError:
        raise SystemExit(1) from None
    except Stopped as stopped:
        if str(stopped):
            print(stopped, file=sys.stderr)
        raise SystemExit(128 + stopped.number) from None
    except KeyboardInterrupt:
        print("stopped by the keyboard", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None

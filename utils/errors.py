"""Errors that a person can mend, told in words and without a traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """A flag or a file is wrong. The message names it, says what is wrong and what to do."""


class TrainingError(RuntimeError):
    """A run can't go on. The message says where it stopped and what is left of it."""


@contextmanager
def blame_flags() -> Iterator[None]:
    """Turn a ``ValueError`` of something built straight from flags into an :class:`InputError`."""
    try:
        yield
    except ValueError as error:
        raise InputError(str(error)) from error


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the program with status 1 and the message alone where a person can mend what is wrong.

    Anything else keeps its traceback: it is our fault, and the traceback finds it.
    """
    try:
        yield
    except (InputError, TrainingError) as error:
        # a loader's worker process wraps the message into its own traceback
        message = str(error).rsplit(f"{type(error).__name__}: ", 1)[-1].rstrip()
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("stopped by the keyboard", file=sys.stderr)
        raise SystemExit(130) from None

"""The parser that all commands share, and the types of their flags."""

import argparse
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to a flag's help where there is one to tell."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        hidden = action.default is None or action.default is False or action.default == []
        return action.help if hidden else super()._get_help_string(action)


# in a line of a file of flags; what is in quotes is none
COMMENT = re.compile(r"""(?P<quoted>"[^"]*"|'[^']*')|(?:^|(?<=\s))#.*""")


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line, and takes no shortened flags."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Formatter, **options)
        self.places: dict[str, str] = {}  # where in a file a flag was, the last of several

    def with_files(self, argv: Sequence[str]) -> list[str]:
        """A command line with the flags of a file in place of each ``@FILE``.

        A line has as many as it likes, in quotes where a shell wants them, and ``#`` before a comment. ``@OTHER`` in a
        file is another one, named from its folder.
        """
        flags: list[str] = []
        for argument in argv:
            flags += self._of_file(argument[1:], ()) if argument.startswith("@") else [argument]
        return flags

    def _of_file(self, path: str, around: tuple[str, ...]) -> list[str]:
        """The flags in a file that others ``around`` it have named."""
        place = f"@{path}"
        if os.path.realpath(path) in map(os.path.realpath, around):
            self.error(f"{place}: comes back to itself by way of the files that it names. Take it out of one of them")
        try:
            with open(path, encoding="utf-8-sig") as file:  # as some editors mark a text file
                lines = file.read().splitlines()
            words = []
            for number, line in enumerate(lines, 1):
                place = f"@{path}, line {number}"
                found = shlex.split(COMMENT.sub(lambda match: match["quoted"] or "", line))
                self.places |= {word.partition("=")[0]: place for word in found if word.startswith("--")}
                words += found
        except (OSError, ValueError) as error:  # the latter of what isn't text, or a quote without end
            reason = error.strerror if isinstance(error, OSError) else error
            named = f", which @{around[-1]} names," if around else ":"
            self.error(
                f"{place}{named} can't be read as flags ({reason}). Give a text file of flags, as recipes/ has them"
            )
        flags: list[str] = []
        for word in words:
            if word.startswith("@"):
                other = os.path.join(os.path.dirname(path), word[1:])
                flags += self._of_file(other, (*around, path))
            else:
                flags.append(word)
        return flags

    def error(self, message: str) -> NoReturn:
        """Print the message alone, once on a machine, and exit with status 2."""
        program = self.prog if self.prog.startswith("python") else f"python {self.prog}"
        if re.match(r"unrecognized arguments:.*\.args\b", message):
            message += "; a file of flags is named with an @ before it"
        places: dict[str, list[str]] = {}
        for flag in dict.fromkeys(re.findall(r"--[\w-]+", message)):
            if flag in self.places:
                places.setdefault(self.places[flag], []).append(flag)
        message += "".join(f"; {place} has {', '.join(flags)}" for place, flags in places.items())
        if os.environ.get("LOCAL_RANK", "0") == "0":  # torchrun gives all of its processes the same flags
            print(f"error: {message} ({program} --help lists the flags)", file=sys.stderr)
        raise SystemExit(2)


def _number(kind: type, least: float, most: float = math.inf, above: bool = False) -> Callable[[str], Any]:
    """A type for argparse: a finite ``kind`` between ``least`` (or above it) and ``most``."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            noun = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"must be {noun}, not {text!r}") from None
        if not math.isfinite(value) or value < least or value > most or (above and value == least):
            lower = "" if least == -math.inf else f"{'above' if above else 'at least'} {least:g}"
            upper = "" if most == math.inf else f"at most {most:g}"
            bounds = " and ".join(bound for bound in (lower, upper) if bound) or "finite"
            raise argparse.ArgumentTypeError(f"must be {bounds}, not {text}")
        return value

    return parse


count = _number(int, 1)


whole = _number(int, 0)


real = _number(float, -math.inf)


positive = _number(float, 0, above=True)


not_negative = _number(float, 0)


probability = _number(float, 0, 1)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"must be names with commas between, not {text!r}")
    return names

"""The parser that all commands share: flags from files, short help, the nearest flag for a mistyped one."""

import argparse
import difflib
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any, NoReturn

from utils.system.text import one_line

# what is a number rather than a flag, also in scientific notation
NEGATIVE_NUMBER = re.compile(r"-(\d[\d_]*\.?\d*|\.\d+)(e[+-]?\d+)?$", re.IGNORECASE)
# a comment in a file of flags; the first part keeps a # in quotes
COMMENT = re.compile(r"""(?P<quoted>"[^"]*"|'[^']*')|(?:^|(?<=\s))#.*""", re.MULTILINE)


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to a flag's help where there is one to tell."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=29)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        hidden = action.default is None or action.default is False or action.default == []
        return action.help if hidden else super()._get_help_string(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """``--flag X`` without the list of choices, which the help text names."""
        if isinstance(action, argparse.BooleanOptionalAction):
            return f"--[no-]{action.dest}"
        if action.choices is not None and action.metavar is None:
            return f"{action.option_strings[0]} {action.dest.rsplit('_', 1)[-1].upper()}"
        return super()._format_action_invocation(action)


class Extend(argparse.Action):
    """Values of a flag that takes several are added to those that it was given before.

    Elsewhere the last ones count, so that a command line can change what a file of flags says.
    """

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        """Add the values."""
        known = getattr(namespace, self.dest)
        setattr(namespace, self.dest, values if known is self.default else [*known, *values])


class _HelpAll(argparse.Action):
    def __call__(self, parser: Any, *_: object, **__: object) -> None:
        print(parser.format_help(rare=True), end="")
        parser.exit()


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line, and takes no shortened flags.

    Flags that were added with :func:`rare` are listed by ``--help-all`` alone.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Formatter, **options)
        self._negative_number_matcher = NEGATIVE_NUMBER
        self.known_elsewhere: Collection[str] = ()  # flags of another program, which are no misspellings
        if self.add_help:
            self.add_argument("--help-all", action=_HelpAll, nargs=0, help=argparse.SUPPRESS)  # the last line names it
            self._actions[0].help = argparse.SUPPRESS

    def add_argument_group(self, title: str, **options: Any) -> Any:  # type: ignore[override]
        """The group of this title, be it new or there already."""
        known = [group for group in self._action_groups if group.title == title]
        return known[0] if known else super().add_argument_group(title, **options)

    def format_help(self, rare: bool = False) -> str:
        """The help text.

        Args:
            rare: whether rare flags are in it.
        """
        hidden = [] if rare else [action for action in self._actions if getattr(action, "rare", False)]
        texts = [action.help for action in hidden]
        for action in hidden:
            action.help = argparse.SUPPRESS
        text = super().format_help()
        for action, help_text in zip(hidden, texts, strict=True):
            action.help = help_text
        shown = sum(help_text != argparse.SUPPRESS for help_text in texts)
        return f"{text}\n--help-all lists {shown} more flags.\n" if shown else text

    def with_files(self, argv: Sequence[str], folder: str = "", inside: tuple[str, ...] = ()) -> list[str]:
        """A command line with the flags of a file in place of each ``@FILE``.

        A file has flags as a shell takes them, on any number of lines, and ``#`` before a comment. ``@OTHER`` in a file
        is another one beside it.
        """
        flags: list[str] = []
        for word in argv:
            if not word.startswith("@"):
                flags.append(word)
                continue
            path = os.path.join(folder, word[1:])
            if os.path.realpath(path) in inside:
                self.error(f"@{path}: names itself by way of the files that it names. Take it out of one of them")
            try:
                with open(path, encoding="utf-8-sig") as file:  # as some editors mark a text file
                    without_comments = COMMENT.sub(lambda match: match["quoted"] or "", file.read())
                    words = shlex.split(without_comments.replace("\\\n", " "))  # as a shell joins lines
            except (OSError, ValueError) as error:  # the latter of what isn't text, or a quote without end
                reason = error.strerror if isinstance(error, OSError) else error
                self.error(
                    f"@{path}: can't be read as flags ({reason}). Give a text file of flags, as recipes/ has them"
                )
            flags += self.with_files(words, os.path.dirname(path), (*inside, os.path.realpath(path)))
        return flags

    def error(self, message: str) -> NoReturn:
        """Print the message alone, once on a machine, and exit with status 2."""
        program = self.prog if self.prog.startswith("python") else f"python {self.prog}"
        if message.startswith("unrecognized arguments:"):
            if re.search(r"\.args\b", message):
                message += "; a file of flags is named with an @ before it"
            message += self._nearest(re.findall(r"--[\w-]+", message))
        if os.environ.get("LOCAL_RANK", "0") == "0":  # torchrun gives all of its processes the same flags
            print(f"error: {message} ({program} --help lists the flags)", file=sys.stderr)
        raise SystemExit(2)

    def _nearest(self, mistyped: Sequence[str]) -> str:
        known = [flag[2:] for flag in self._option_string_actions if flag.startswith("--")]
        unknown = [flag[2:] for flag in mistyped if flag not in self.known_elsewhere]
        found = {}
        for name in unknown:
            if name not in known:
                near, nearest = (difflib.get_close_matches(name, known, n=1, cutoff=cutoff) for cutoff in (0.7, 0.9))
                ends = [flag for flag in known if flag.endswith(f"_{name}")]
                starts = [flag for flag in known if flag.startswith(name)]
                found[name] = nearest or ends or starts or near
        return "".join(f"; did you mean --{near[0]} for --{name}?" for name, near in found.items() if near)


def rare(action: argparse.Action) -> argparse.Action:
    """Leave a flag to ``--help-all``."""
    action.rare = True  # type: ignore[attr-defined]
    return action


def number(
    kind: type, least: float = -math.inf, most: float = math.inf, above: bool = False, below: bool = False
) -> Callable[[str], Any]:
    """A type for argparse: a finite ``kind`` between ``least`` (or above it) and ``most`` (or below it)."""

    def parse(text: str) -> Any:
        value = parse_number(kind, text)
        at_a_bound = (above and value == least) or (below and value == most)
        is_finite = kind is int or math.isfinite(value)  # which takes no whole number beyond floats
        if not is_finite or value < least or value > most or at_a_bound:
            lower = "" if least == -math.inf else f"{'above' if above else 'at least'} {least:g}"
            upper = "" if most == math.inf else f"{'below' if below else 'at most'} {most:g}"
            bounds = " and ".join(bound for bound in (lower, upper) if bound) or "finite"
            raise argparse.ArgumentTypeError(f"must be {bounds}, not {text}")
        return value

    return parse


def parse_number(kind: type, text: str) -> Any:
    """A number from a word of the command line.

    Raises:
        argparse.ArgumentTypeError: if it is none.
    """
    try:
        return kind(text)
    except ValueError:
        noun = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"must be {noun}, not {text!r}") from None


count = number(int, 1)
whole = number(int, 0)
real = number(float)
positive = number(float, 0, above=True)
not_negative = number(float, 0)
probability = number(float, 0, 1)


def file_path(text: str) -> str:
    """The path of a file or folder. A ``~`` before it is the user's home, which no shell knows behind a ``=``."""
    if not text:
        raise argparse.ArgumentTypeError("names no file or folder")
    return os.path.expanduser(text)


def names(text: str) -> tuple[str, ...]:
    """Names with commas between them."""
    found = tuple(map(one_line, text.split(",")))  # as the names in a data list
    if not all(found):
        raise argparse.ArgumentTypeError(f"must be names with commas between, not {text!r}")
    return found

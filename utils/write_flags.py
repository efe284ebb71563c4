"""Write what is made from the parsers: ``docs/flags.md`` and ``utils/config/help_text.json``.

``python -m utils.write_flags --check`` says whether one of them is stale.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from networks import NETWORKS
from utils.config.flags import crossval_parser, pretrain_parser, test_parser, train_parser
from utils.config.help_text import FILE as HELP_TEXT
from utils.config.help_text import describe_parser, hash_of_sources
from utils.config.parser import Parser
from utils.system.errors import InputError, one_line_errors
from utils.system.files import write_text

PAGE = Path(__file__).parent.parent / "docs" / "flags.md"
HEAD = """# Flags

Every flag of `main.py`, `test.py`, `python -m utils.crossval` and `python -m utils.pretrain`, written by
`python -m utils.write_flags`.

`@FILE` on a command line stands for the flags in a file. `--help` shows those that most people need, `--help-all` all
of them. A flag of another network than that of `--model_name` is an error.

Without `--in_channels` a network of `main.py` takes as many channels as the scans have. Without `--out_channels` it has
as many classes as the data list names labels, the background included, or 14 where the list names none.

`test.py` finds network and preprocessing in a checkpoint. Their flags are for weights that describe nothing, with the
defaults of `main.py` (1 channel, 14 classes); a flag that contradicts a checkpoint is an error."""


def help_text() -> str:
    """The file from which the scripts print their help, as it should be: a line for each flag."""
    programs = {"main": describe_parser(train_parser()), "test": describe_parser(test_parser(None))}
    text = json.dumps({"sources": hash_of_sources(), "programs": programs}, ensure_ascii=False)
    return text.replace('{"group": ', '\n{"group": ') + "\n"


def page() -> str:
    """The page as it should be."""
    known = train_parser()._actions
    parts = [HEAD, "## main.py", *_tables(train_parser())]
    for name, architecture in NETWORKS.items():
        if name != "unetr":
            parts += [
                f"### network with --model_name {name}",
                *_rows(train_parser(architecture), "network", [one for one in known if one.dest == "model_name"]),
            ]
    parts += ["## test.py", "These beside those of `main.py` for data, network, preprocessing, windows and machine:"]
    parts += _tables(test_parser(None), without=known)
    parts += ["## python -m utils.crossval", "The flags of `main.py`, but for those of a single run, and:"]
    parts += _tables(crossval_parser(), without=known)
    parts += [
        "## python -m utils.pretrain",
        "Flags of `main.py` for data, network and training, with other defaults, and:",
    ]
    parts += _tables(pretrain_parser(), without=known)
    return "\n\n".join(parts) + "\n"


def _tables(parser: Parser, without: Sequence[argparse.Action] = ()) -> Iterator[str]:
    for group in parser._action_groups:
        rows = list(_rows(parser, str(group.title), without))
        if rows and group.title != "options":
            yield f"### {group.title}"
            yield from rows


def _rows(parser: Parser, title: str, without: Sequence[argparse.Action] = ()) -> Iterator[str]:
    """The table of one group, if it has a flag to show."""
    group = next(group for group in parser._action_groups if group.title == title)
    shown = [action for action in group._group_actions if action.help != argparse.SUPPRESS]
    lines = [_row(action) for action in shown if not any(_says(one, action) for one in without)]
    if lines:
        yield "\n".join(["| flag | default | what |", "| --- | --- | --- |", *lines])


def _says(known: argparse.Action, action: argparse.Action) -> bool:
    """Whether the row of a flag says all of another program's flag, which may leave its default to a checkpoint."""
    alike = action.default is None or (action.default, action.help) == (known.default, known.help)
    return known.option_strings == action.option_strings and alike


def _row(action: argparse.Action) -> str:
    default = action.default
    shown = "" if default is None or default is False or default == [] else f"`{_text(default)}`"
    flags = ", ".join(f"`{flag}`" for flag in action.option_strings)
    return f"| {flags} | {shown} | {str(action.help).replace('|', '/')} |"


def _text(default: object) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    return " ".join(map(str, default)) if isinstance(default, list) else str(default)


def main(args: argparse.Namespace) -> None:
    """Write both files, or compare them."""
    for path, text in ((PAGE, page()), (HELP_TEXT, help_text())):
        if not args.check:
            write_text(path, text)
            print(f"{path} written")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            raise InputError(f"{path}: is stale. Run python -m utils.write_flags.")


if __name__ == "__main__":
    parser = Parser(
        prog="python -m utils.write_flags",
        description="Write what is made from the flags' parsers.",
    )
    parser.add_argument("--check", action="store_true", help="write nothing; fail if one is stale")
    with one_line_errors():
        main(parser.parse_args())

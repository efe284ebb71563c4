"""Help texts without torch, which takes two seconds to import: ``help_text.json`` has what the parsers know.

``python -m utils.write_flags`` writes the file. If the sources of the flags changed since, it isn't used.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from utils.config.parser import Parser, rare
from utils.system.errors import one_line_errors

FILE = Path(__file__).with_name("help_text.json")
REPOSITORY = FILE.parents[2]
SOURCES = (
    "networks/**/*.py",
    "optimizers/*.py",
    "utils/config/*.py",
    "utils/training/losses.py",
    # constants that help texts name
    "utils/checkpoints/load.py",
    "utils/data/mirroring.py",
    "utils/data/preprocessing.py",
    "utils/evaluation/metrics.py",
    "utils/inference/engines.py",
    "utils/inference/sliding_window.py",
)
ASKED = ("-h", "--help", "--help-all")
OF_A_PARSER = ("usage", "description", "epilog")
OF_A_FLAG = ("dest", "nargs", "choices", "default", "metavar", "help")
DEFAULT = " (default: %(default)s)"  # which Python before 3.13 adds to the help of a flag that has a --no- form


def show_help(program: str) -> None:
    """Print a program's help and end it, if that is all its command line asks for."""
    if len(sys.argv) == 2 and sys.argv[1] in ASKED and FILE.exists():
        known = json.loads(FILE.read_text(encoding="utf-8"))
        if known["sources"] == hash_of_sources():
            with one_line_errors():
                read_parser(known["programs"][program]).parse_args()


def hash_of_sources() -> str:
    """The SHA-256 of all files that declare flags."""
    found = hashlib.sha256()
    for path in sorted(path for pattern in SOURCES for path in REPOSITORY.glob(pattern)):
        found.update(path.relative_to(REPOSITORY).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


def describe_parser(parser: Parser) -> dict[str, Any]:
    """What a parser's help texts consist of, as JSON holds it: ``read_parser`` makes it a parser again."""
    flags = []
    for group in parser._action_groups:
        for action in group._group_actions:
            if action.help == argparse.SUPPRESS:
                continue
            known = {name: getattr(action, name) for name in OF_A_FLAG}
            known = {name: value for name, value in known.items() if value is not None and value is not False}
            if "choices" in known:
                known["choices"] = list(known["choices"])
            if isinstance(action, argparse.BooleanOptionalAction):
                known |= {"boolean": True, "help": known["help"].removesuffix(DEFAULT)}
            if getattr(action, "rare", False):
                known["rare"] = True
            flags.append({"group": group.title, "names": action.option_strings, **known})
    return {**{name: getattr(parser, name) for name in OF_A_PARSER}, "flags": flags}


def read_parser(described: dict[str, Any]) -> Parser:
    """A parser whose help texts are those of the parser that was described; it is good for nothing else."""
    parser = Parser(**{name: described[name] for name in OF_A_PARSER})
    for flag in described["flags"]:
        known = {name: flag[name] for name in OF_A_FLAG if name in flag}
        if known.get("nargs") == 0:
            del known["nargs"]
            known["action"] = argparse.BooleanOptionalAction if flag.get("boolean") else "store_true"
        names = [name for name in flag["names"] if not (flag.get("boolean") and name.startswith("--no-"))]
        action = parser.add_argument_group(flag["group"]).add_argument(*names, **known)
        if flag.get("rare"):
            rare(action)
    return parser

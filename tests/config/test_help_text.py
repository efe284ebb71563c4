"""The scripts' help without torch says what their parsers say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from utils import write_flags
from utils.config import help_text
from utils.config.flags import test_parser as parser_of_test
from utils.config.flags import train_parser
from utils.config.help_text import describe_parser, read_parser
from utils.config.parser import Parser

PARSERS = {"main": train_parser(), "test": parser_of_test(None)}


def test_the_file_is_what_the_parsers_say() -> None:
    """Else run ``python -m utils.write_flags``."""
    assert help_text.FILE.read_text(encoding="utf-8") == write_flags.help_text()


@pytest.mark.parametrize("columns", [50, 80, 200])
@pytest.mark.parametrize("program", PARSERS)
def test_a_parser_that_is_read_has_the_help_of_its_original(
    program: str, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    original = PARSERS[program]
    read = read_parser(json.loads(json.dumps(describe_parser(original))))
    assert read.format_help() == original.format_help()
    assert read.format_help(rare=True) == original.format_help(rare=True)


@pytest.mark.parametrize("asked", ["-h", "--help", "--help-all"])
@pytest.mark.parametrize("program", PARSERS)
def test_help_needs_no_torch(program: str, asked: str, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('torch is not for help')")
    found = subprocess.run(
        [sys.executable, f"{program}.py", asked],
        capture_output=True, text=True, cwd=REPOSITORY, env={"PYTHONPATH": str(tmp_path), "COLUMNS": "80"}, check=True,
    )  # fmt: skip
    assert found.stdout.startswith(f"usage: python {program}.py")
    assert ("--nsd_mm" in found.stdout or "--use_normal_dataset" in found.stdout) == (asked == "--help-all")


def test_no_help_is_shown_of_flags_that_changed_since(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["main.py", "--help"])
    with pytest.raises(SystemExit):
        help_text.show_help("main")
    monkeypatch.setattr(help_text, "hash_of_sources", lambda: "another")
    help_text.show_help("main")  # which leaves it to the parser


@pytest.mark.parametrize("argv", [[], ["--help", "--model_name=primus"], ["--max_epochs=5"]])
def test_other_command_lines_go_on(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["main.py", *argv])
    help_text.show_help("main")


def test_a_source_that_changes_changes_the_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "optimizers").mkdir()
    monkeypatch.setattr(help_text, "REPOSITORY", tmp_path)
    found = set()
    for content in ("a = 1\n", "a = 2\n"):
        (tmp_path / "optimizers" / "one.py").write_text(content)
        found.add(help_text.hash_of_sources())
    assert len(found) == 2


def test_the_kinds_of_flags(capsys: pytest.CaptureFixture[str]) -> None:
    """The help of a parser of every kind of flag, once written by hand."""
    described = {
        "usage": "x", "description": "What it does.", "epilog": "The end.",
        "flags": [
            {"group": "one", "names": ["--count"], "dest": "count", "default": 0, "metavar": "N", "help": "how many"},
            {"group": "one", "names": ["--stem", "--no-stem"], "dest": "stem", "nargs": 0, "default": True,
             "help": "a stem", "boolean": True},
            {"group": "one", "names": ["--kind"], "dest": "kind", "choices": ["a", "b"], "help": "a or b"},
            {"group": "two", "names": ["--now"], "dest": "now", "nargs": 0, "help": "at once", "rare": True},
        ],
    }  # fmt: skip
    read = read_parser(described)
    shown = " ".join(read.format_help().split())
    assert shown.startswith("usage: x What it does. one: --count N how many (default: 0) --[no-]stem a stem (default:")
    assert shown.endswith("--kind KIND a or b The end. --help-all lists 1 more flags.")
    assert "two: --now at once" in " ".join(read.format_help(rare=True).split())
    assert isinstance(read, Parser)

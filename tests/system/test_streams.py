"""Printing never fails, and closed standard streams are filled."""

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from utils.system.errors import one_line_errors

# prints more than a pipe holds, and writes its result last
PROGRAM = """
import sys
from pathlib import Path
from utils.system.errors import one_line_errors

with one_line_errors():
    print("three … scans", flush=True)
    print("x" * 200_000)
    print("y" * 200_000, flush=True)
    print("ein Z\\u00e4hler, \\u2026 \\udcff", file=sys.stderr)
    Path("result").write_text("whole")
    sys.stdout.write("not flushed")
"""


def shell(command: str, folder: Path, encoding: str = "utf-8", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of bash, where ``program`` is the program above."""
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": encoding, **environment}
    program = 'set -o pipefail; program() { exec python -c "$CODE"; }; '
    variables |= {"CODE": PROGRAM, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", "-c", program + command],
        cwd=folder,
        env=variables,
        capture_output=True,
        encoding=encoding,
        check=False,
    )


OWN = "ein Zähler, … \\udcff\n"
FULL = "note: standard output can't be written (No space left on device); results are complete without it\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("command", "out", "err"),
    [
        ("program | head -c 4", "thre", OWN),
        ("program > /dev/full", "", FULL + OWN),
        ("program >&-", "", OWN),
        ("program < /dev/null > /dev/full 2> /dev/full", "", ""),
        ("program 2>&- | tail -c 11", "not flushed", ""),
        ("program <&- >&- 2>&-", "", ""),
        ("program 2>&1 | head -c 4", "thre", ""),
    ],
)
def test_printing_costs_no_result(command: str, out: str, err: str, unbuffered: str, tmp_path: Path) -> None:
    done = shell(command, tmp_path, PYTHONUNBUFFERED=unbuffered)
    assert (tmp_path / "result").read_text() == "whole"
    assert (done.returncode, done.stdout, done.stderr) == (0, out, err)


@pytest.mark.parametrize(("encoding", "dots"), [("ascii", "\\u2026"), ("latin-1", "\\u2026"), ("utf-8", "…")])
def test_characters_that_an_encoding_lacks_are_escaped(encoding: str, dots: str, tmp_path: Path) -> None:
    done = shell("program", tmp_path, encoding)
    assert done.returncode == 0
    assert done.stdout.startswith(f"three {dots} scans\nxxx")
    assert done.stdout.endswith("yyy\nnot flushed")


def test_a_full_pipe_that_does_not_block_gets_everything(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    program = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=writing, cwd=tmp_path, env=environment)
    os.close(writing)
    time.sleep(0.5)  # the pipe is full by then
    with open(reading, "rb") as pipe:
        text = pipe.read()
    assert program.wait() == 0
    assert text.count(b"x") == text.count(b"y") == 200_000


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    """Else what a library writes to standard error would come to lie in a result."""
    program = "import os, utils; file = open('mask', 'w'); os.write(2, b'a warning'); os.system('echo again >&2')"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = f'exec {sys.executable} -c "{program}" <&- >&- 2>&-'
    assert subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, check=False).returncode == 0
    assert (tmp_path / "mask").read_text() == ""


def test_a_stream_that_a_notebook_has_put_in_place_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = io.StringIO()
    monkeypatch.setattr(sys, "stdout", theirs)
    with one_line_errors():
        print("to the notebook")
    assert theirs.getvalue() == "to the notebook\n"

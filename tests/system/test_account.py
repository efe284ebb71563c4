"""Users without a name or a home, as in containers."""

import getpass
import os
import pwd
import shutil
import subprocess
import sys
from typing import NoReturn

import pytest

from tests.conftest import REPOSITORY
from utils.system.account import name_user

NOBODY = 54321
NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")


def as_nobody(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a user without an entry in /etc/passwd, without a home."""
    become = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "HOME": "/dev/null"}
    return subprocess.run([*become, *command], env=environment, cwd="/", capture_output=True, text=True, check=False)


def test_a_user_without_a_name_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(number: int) -> NoReturn:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises((KeyError, OSError)):
        getpass.getuser()
    monkeypatch.setenv("LOGNAME", "")  # so that it is removed afterwards
    name_user()
    assert getpass.getuser() == f"uid{os.getuid()}"


def test_a_user_with_a_name_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("USER", "anna")
    name_user()
    assert "LOGNAME" not in os.environ
    assert getpass.getuser() == "anna"


@pytest.mark.skipif(os.getuid() != 0 or shutil.which("setpriv") is None, reason="only root can become another user")
@pytest.mark.parametrize(
    "command",
    [[str(REPOSITORY / "test.py"), "--help"], ["-c", "import networks, matplotlib.pyplot, torch._dynamo"]],
    ids=["program", "library"],
)
def test_such_a_user_runs_programs_and_imports_the_library(command: list[str]) -> None:
    if as_nobody(sys.executable, "-c", f"import numpy; open({str(REPOSITORY / 'test.py')!r})").returncode != 0:
        pytest.skip("another user may not run this Python")
    done = as_nobody(sys.executable, *command)
    assert (done.returncode, done.stderr) == (0, "")

"""Groups of training processes, forked from a server that has imported everything, so that they start fast."""

import contextlib
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch

import main as training_program
from tests.conftest import load_test_program

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.processes", "torch._dynamo"])  # which torch's optimizers import
TOO_LONG = 120  # seconds


@dataclass
class Group:
    """The processes of one command, each with a log file of its output."""

    processes: list[ForkServerProcess]
    logs: list[Path]

    def wait(self) -> list[int]:
        """Wait for the processes; their exit statuses, negative for a signal that killed one."""
        for process in self.processes:
            process.join(TOO_LONG)
            if process.exitcode is None:
                for other in self.processes:
                    other.kill()
                raise AssertionError(f"did not end within {TOO_LONG} s:\n" + "\n".join(self.texts))
        return [int(process.exitcode) for process in self.processes if process.exitcode is not None]

    @property
    def texts(self) -> list[str]:
        """The output of each process."""
        return [log.read_text() if log.exists() else "" for log in self.logs]


def start_group(
    size: int,
    argv: Sequence[str] | Callable[[int], Sequence[str]],
    *,
    program: str = "main",
    before: Callable[[], object] | None = None,
    environment: dict[str, str] | None = None,
) -> Group:
    """Start ``size`` processes on one machine in the current folder, as torchrun or a cluster's script does.

    Args:
        argv: the flags beside --distributed and --device, or a function of the rank that returns them.
        program: main or test.
        before: called in each process before the program.
        environment: more environment variables.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    processes, logs = [], []
    for rank in range(size):
        variables = {
            "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **(environment or {}),
        }  # fmt: skip
        flags = [*(argv(rank) if callable(argv) else argv), "--distributed", "--device=cpu"]
        log = Path(f"rank{rank}-{port}.log").absolute()
        process = CONTEXT.Process(target=_run, args=(program, flags, variables, log, Path.cwd(), before))
        process.start()
        processes.append(process)
        logs.append(log)
    return Group(processes, logs)


def _run(
    program: str,
    argv: list[str],
    variables: dict[str, str],
    log: Path,
    folder: Path,
    before: Callable[[], object] | None,
) -> None:
    os.chdir(folder)
    os.environ.update(variables)
    multiprocessing.set_start_method("fork", force=True)  # as in a program that is launched from a shell
    torch.set_num_threads(1)
    with open(log, "a", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            if before is not None:
                before()
            (training_program.run if program == "main" else load_test_program())(argv)
    sys.exit(0)

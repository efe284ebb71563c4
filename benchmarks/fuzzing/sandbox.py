"""Where programs get hostile inputs: with limits, watched, and with files around them that have to stay as they are."""

import faulthandler
import hashlib
import multiprocessing
import os
import resource
import runpy
import signal
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

REPOSITORY = Path(__file__).parents[2]
HANG = 30.0  # seconds in which a program neither prints nor writes; a scan takes some hundredths
MEMORY, FILE = 12 << 30, 1 << 30  # bytes that a program may take, and that a file may have
GRACE = 2.0  # seconds for a program that hangs to print where
PRINT_STACKS = signal.SIGUSR2  # makes a program print the stack of each thread
VICTIM_FILE = "voxels.raw"
# forks the programs from a server that has imported everything, which saves seconds in each
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([
    *("main", "torch._dynamo", "benchmarks.fuzzing.sandbox", "utils.export", "utils.make_data_list", "highdicom"),
    *("utils.segmentation.pipeline", "utils.segmentation.results", "utils.io.simpleitk_formats", "utils.io.dicom_seg"),
])  # fmt: skip

State = dict[str, tuple[str | int, ...]]  # of files by their paths

# what multiprocessing gives where its server's word about a process is lost, which was seen 4 times in 2,000
LOST_STATUS = 255
STATUS = "status"  # the file in which a program's process notes its own


@dataclass(frozen=True)
class Command:
    """A command line.

    Attributes:
        program: a script, or a module such as ``utils.export``.
        arguments: behind it.
        writes: the paths below the sandbox that it may write to.
    """

    program: str
    arguments: Sequence[str]
    writes: Sequence[str] = ("out",)

    def __str__(self) -> str:
        given = (f"-m {self.program}", self.program)[self.program.endswith(".py")]
        return " ".join(["python", given, *self.arguments])


@dataclass(frozen=True)
class Ended:
    """How a program ended.

    Attributes:
        status: its exit status, negative for a signal that killed it; None if it hung.
        output: what it printed, and on stderr.
        touched: files outside what it may write to that it changed, made or removed, a line each.
        memory: bytes that it took at most.
    """

    status: int | None
    output: str
    errors: str
    touched: tuple[str, ...] = ()


class Sandbox:
    """A folder with a place for inputs, the working directory of the programs, and a victim, which nothing may touch.

    Args:
        folder: is made.
        hang: the seconds without any sign of life after which a program counts as hanging.
    """

    def __init__(self, folder: Path, hang: float = HANG) -> None:
        self.folder = folder
        self.hang = hang
        self.victim = folder / "victim"
        self.out = folder / "out"
        for name in ("victim", "inputs", "tmp"):
            (folder / name).mkdir(parents=True)
        (self.victim / VICTIM_FILE).write_bytes(bytes(range(256)) * 256)
        (self.victim / "keep").mkdir()
        (self.victim / "keep" / "notes.txt").write_text("precious")

    def run(self, command: Command) -> Ended:
        """Run a command in the folder, and wait for its end."""
        before = state_of(self.folder, (*command.writes, "tmp"))
        logs = [self.folder / "tmp" / name for name in ("stdout", "stderr")]
        process = CONTEXT.Process(target=_run, args=(command, self.folder, *logs))
        process.start()
        assert process.pid is not None
        status = process.exitcode if self._waited(process, logs, command) else None
        _kill_group(process.pid)
        process.join()
        noted = self.folder / "tmp" / STATUS
        if status == LOST_STATUS and noted.exists():
            status = int(noted.read_text())
        output, errors = (log.read_bytes().decode(errors="replace") if log.exists() else "" for log in logs)
        touched = tuple(differences(before, state_of(self.folder, (*command.writes, "tmp"))))
        process.close()
        return Ended(status, output, errors, touched)

    def _waited(self, process: multiprocessing.process.BaseProcess, logs: Sequence[Path], command: Command) -> bool:
        """Wait for the end of a program. Returns whether it came before the program showed no life for too long."""
        life, since = self._life(logs, command), time.monotonic()
        while process.exitcode is None:
            process.join(0.5)
            now = self._life(logs, command)
            if now != life:
                life, since = now, time.monotonic()
            elif time.monotonic() - since > self.hang:
                assert process.pid is not None
                os.kill(process.pid, PRINT_STACKS)
                process.join(GRACE)
                return False
        return True

    def _life(self, logs: Sequence[Path], command: Command) -> tuple[int, ...]:
        """What changes while a program works: how much it has printed, and which files it has written."""
        written = sum(len(names) for name in command.writes for *_, names in os.walk(self.folder / name))
        return written, *(log.stat().st_size for log in logs if log.exists())


def _run(command: Command, folder: Path, output: Path, errors: Path) -> None:
    os.setsid()  # so that what it starts can be ended with it
    os.chdir(folder)
    for stream, path in ((sys.stdout, output), (sys.stderr, errors)):
        with open(path, "wb") as log:
            os.dup2(log.fileno(), stream.fileno())
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.environ.update(TMPDIR=str(folder / "tmp"), OMP_NUM_THREADS="1", PYTHONPATH=str(REPOSITORY))
    multiprocessing.set_start_method("fork", force=True)  # the default when a program is launched from a shell
    torch.set_num_threads(1)
    faulthandler.register(PRINT_STACKS)
    for what, limit in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_FSIZE, FILE), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(what, (limit, limit))
    sys.argv = [command.program, *command.arguments]
    try:
        if command.program.endswith(".py"):
            runpy.run_path(str(REPOSITORY / command.program), run_name="__main__")
        else:
            runpy.run_module(command.program, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        (folder / "tmp" / STATUS).write_text(str(end.code or 0))
        raise


def start_server() -> None:
    """Start the server that the programs are forked from, or else the first one would wait for its imports."""
    server = CONTEXT.Process(target=int)
    server.start()
    server.join()


def _kill_group(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return  # it and all that it started have ended


def state_of(folder: Path, without: Sequence[str] = ()) -> State:
    """What tells whether a file below a folder was touched; links aren't followed.

    Args:
        without: paths below the folder that are left out, with all below them.
    """
    return dict(_states(folder, {folder / name for name in without}, folder))


def _states(folder: Path, without: set[Path], top: Path) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    for entry in os.scandir(folder):
        path = Path(entry.path)
        if path in without:
            continue
        name = str(path.relative_to(top))
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            yield name, ("link", os.readlink(path))
        elif stat.S_ISDIR(status.st_mode):
            yield name, ("folder",)
            yield from _states(path, without, top)
        elif stat.S_ISREG(status.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            yield name, ("file", status.st_mtime_ns, status.st_size, status.st_mode, content)
        else:
            yield name, ("other", status.st_mode)


def differences(before: State, after: State) -> list[str]:
    """What happened to files between two states, a line each."""
    gone = [f"{name} is gone" for name in before if name not in after]
    made = [f"{name} was made" for name in after if name not in before]
    changed = [f"{name} was changed" for name, state in before.items() if name in after and after[name] != state]
    return gone + made + changed

"""Hand hostile inputs to the programs, and count what comes of them: ``python -m benchmarks.fuzz --inputs 5000``.

Headers of scans, checkpoints, data lists and records of an output folder are changed at random, and given to the
programs through their command lines, with sound scans beside them. Whatever is in an input, a program has to end by
itself, with right results or with a line that says what is wrong; sound scans have to get their masks, and no file
outside the output folder may change. docs/reliability.md tells what is changed and how it is counted.
"""

import argparse
import shutil
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tqdm import tqdm

from benchmarks.fuzzing.checkpoints import Checkpoints
from benchmarks.fuzzing.kind import Kind, Workplace
from benchmarks.fuzzing.lists import DataLists, Folders
from benchmarks.fuzzing.records import Records
from benchmarks.fuzzing.sandbox import Command, Ended, Sandbox, differences, start_server, state_of
from benchmarks.fuzzing.scans import scan_kinds
from benchmarks.fuzzing.verdicts import FAULTS, Verdict, table
from utils.config.parser import Parser, count

AT_ONCE = 2  # commands
SHOWN_LINES = 10  # of what a program printed


@dataclass(frozen=True)
class Found:
    """An input that a program couldn't cope with.

    Attributes:
        name: of its kind, with its number.
        what: was changed.
    """

    name: str
    what: str
    verdict: Verdict
    command: Command
    ended: Ended

    def __str__(self) -> str:
        lines = self.ended.errors.splitlines()
        lines = lines[:SHOWN_LINES] if self.ended.status is None else lines[-SHOWN_LINES:]  # a hang's stack: the inside
        printed = "\n".join(f"    {line[:300]}" for line in lines)
        touched = "".join(f"    {line}\n" for line in self.ended.touched)
        status = "hung" if self.ended.status is None else f"status {self.ended.status}"
        return f"{self.name}: {self.verdict.value}: {self.what}\n    {self.command}\n    {status}\n{touched}{printed}"


class Fuzzer:
    """Gives inputs to programs, and counts.

    Args:
        folder: where the inputs are written, and removed again.
        seed: determines the inputs, each by itself.
        keep: where offending inputs are kept; None to keep none.
    """

    def __init__(self, folder: Path, seed: int = 0, keep: Path | None = None) -> None:
        self.folder = folder
        self.seed = seed
        self.keep = keep
        self.found: list[Found] = []
        self.counts: dict[str, Counter[Verdict]] = defaultdict(Counter)

    def run(self, kind: Kind, numbers: Sequence[int]) -> None:
        """Give inputs of a kind to one command; if it fails, each to one of its own."""
        verdicts, found = self.attempt(kind, numbers)
        if len(numbers) == 1 or not set(verdicts) & set(FAULTS):
            self.counts[kind.name].update(verdicts)
            self.found += found
            return
        alone: list[Verdict] = []
        faults: list[Found] = []
        for number in numbers:
            (verdict,), found_alone = self.attempt(kind, [number])
            alone.append(verdict)
            faults += found_alone
        if not faults:  # it takes several inputs to make it fail
            alone[0] = found[0].verdict
            faults = found[:1]
        self.counts[kind.name].update(alone)
        self.found += faults

    def attempt(self, kind: Kind, numbers: Sequence[int]) -> tuple[list[Verdict], list[Found]]:
        """Give inputs of a kind to one command. Returns what came of each, and the offending ones."""
        name = f"{kind.name.replace(' ', '-')}-{numbers[0]}" + (f"-{numbers[-1]}" if len(numbers) > 1 else "")
        sandbox = Sandbox(self.folder / name)
        inputs, command = kind.prepare([Random(f"{self.seed} {kind.name} {number}") for number in numbers], sandbox)
        ended = sandbox.run(command)
        verdicts = kind.judge(inputs, ended, sandbox)
        found = [
            Found(name, given.what, verdict, command, ended)
            for given, verdict in zip(inputs, verdicts, strict=True)
            if verdict in (*FAULTS, Verdict.UNFORESEEN)
        ]
        if self.keep is not None and found:
            self._keep(sandbox, name, found)
        shutil.rmtree(sandbox.folder)
        return verdicts, found

    def _keep(self, sandbox: Sandbox, name: str, found: Sequence[Found]) -> None:
        """Keep the inputs of a command, and what it printed."""
        assert self.keep is not None
        target = self.keep / name
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        ended = found[0].ended
        shutil.move(sandbox.folder, target)
        sandbox.folder.mkdir()
        (target / "found.txt").write_text("\n\n".join(map(str, found)) + "\n", errors="backslashreplace")
        (target / "stdout").write_text(ended.output, errors="backslashreplace")
        (target / "stderr").write_text(ended.errors, errors="backslashreplace")


def share_out(inputs: int, kinds: Sequence[Kind]) -> list[tuple[Kind, list[int]]]:
    """The numbers of the inputs of each command, by kind; the longest commands come first."""
    total = sum(kind.share for kind in kinds)
    commands = []
    for kind in kinds:
        numbers = list(range(max(1, round(inputs * kind.share / total))))
        commands += [(kind, numbers[start : start + kind.batch]) for start in range(0, len(numbers), kind.batch)]
    return commands


def fuzz(folder: Path, inputs: int, names: Sequence[str] = (), seed: int = 0, keep: Path | None = None) -> Fuzzer:
    """Give hostile inputs to the programs.

    Args:
        names: of the kinds; by default all.
    """
    start_server()
    workplace = Workplace(folder / "workplace")
    kinds = [kind for kind in all_kinds(workplace) if not names or kind.name in names]
    if unknown := set(names) - {kind.name for kind in kinds}:
        raise SystemExit(f"error: --kinds {', '.join(sorted(unknown))}: no row of the table.")
    before = state_of(workplace.folder)
    fuzzer = Fuzzer(folder / "sandboxes", seed, keep)
    commands = share_out(inputs, kinds)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures = [pool.submit(fuzzer.run, *command) for command in commands]
        for future in tqdm(futures, desc="commands", disable=None):
            future.result()
    if changes := differences(before, state_of(workplace.folder)):
        raise SystemExit(f"error: files that all commands share have changed: {', '.join(changes)}")
    return fuzzer


def all_kinds(workplace: Workplace) -> list[Kind]:
    """All kinds of inputs, in the order of the table."""
    return [*scan_kinds(workplace), *(kind(workplace) for kind in (Checkpoints, DataLists, Folders, Records))]


def main(args: argparse.Namespace) -> None:
    """Print the table, and describe each input that a program couldn't cope with."""
    warnings.simplefilter("ignore")  # of torch, about the odd tensors that checkpoints get
    with tempfile.TemporaryDirectory(prefix="fuzz") as name:
        fuzzer = fuzz(Path(name), args.inputs, args.kinds, args.seed, args.keep)
    for found in fuzzer.found:
        print(f"{found}\n")
    for line in table(fuzzer.counts):
        print(line)
    if any(found.verdict in FAULTS for found in fuzzer.found):
        raise SystemExit(1)


if __name__ == "__main__":
    parser = Parser(prog="python -m benchmarks.fuzz", description="Hand hostile inputs to the programs, and count.")
    parser.add_argument("--inputs", type=count, default=5000, help="how many, over all kinds")
    parser.add_argument("--seed", type=int, default=0, help="seed of the changes")
    parser.add_argument("--kinds", nargs="+", default=[], help="only these rows of the table")
    parser.add_argument("--keep", type=Path, help="folder in which offending inputs are kept")
    main(parser.parse_args())

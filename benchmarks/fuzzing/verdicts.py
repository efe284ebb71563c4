"""What is made of a program's end."""

import re
from collections import Counter
from collections.abc import Iterable
from enum import Enum
from pathlib import Path

from benchmarks.fuzzing.sandbox import Ended

TRACEBACK = "Traceback (most recent call last):"
REFUSAL = re.compile(r"^(?:.*: )?error: ", re.MULTILINE)
CHAINED = ("During handling of the above exception", "was the direct cause of the following exception")
OURS = ("InputError", "DamagedError", "WriteError", "MemoryError", "TrainingError")
LONGEST_REFUSAL = 3000  # characters; a longer one isn't read


class Verdict(Enum):
    """What came of an input, in the order of the table's columns."""

    RIGHT = "right results"
    REFUSED = "one-line refusals"
    LEFT_OUT = "left out"
    UNFORESEEN = "unforeseen"
    WRONG = "wrong results"
    TRACEBACK = "tracebacks"
    HANG = "hangs"
    DEATH = "deaths"
    TOUCHED = "files touched outside"


FAULTS = (Verdict.WRONG, Verdict.TRACEBACK, Verdict.HANG, Verdict.DEATH, Verdict.TOUCHED)


def crash(ended: Ended) -> Verdict | None:
    """What is wrong with a program's end, whatever it was given; None if it ended as programs should."""
    if ended.touched:
        return Verdict.TOUCHED
    if ended.status is None:
        return Verdict.HANG
    if ended.status < 0:
        return Verdict.DEATH
    if TRACEBACK in ended.errors or TRACEBACK in ended.output:
        return Verdict.TRACEBACK
    if ended.status not in (0, 1, 2) or (ended.status != 0 and not REFUSAL.search(ended.errors)):
        return Verdict.TRACEBACK  # no line says why
    return None


def refusal(text: str) -> Verdict:
    """Whether what a program says of an input can be read as a line."""
    unreadable = len(text) > LONGEST_REFUSAL or any(ord(char) < 32 and char not in "\n\r\t" for char in text)
    return Verdict.UNFORESEEN if unreadable else Verdict.REFUSED


def unforeseen(log: Path) -> list[str]:
    """The exceptions in a log of tracebacks that no code of ours raised: what names the scan, and the exception."""
    if not log.is_file() or log.is_symlink():
        return []
    found, name = [], ""
    head, *bodies = log.read_text(errors="replace").split(TRACEBACK)
    for body in bodies:
        name = name or head
        lines = [line for line in body.splitlines() if line[:1].strip()]  # those of the stack are indented
        raised, head = lines[0] if lines else "", "\n".join(lines[1:])
        if not any(text in body for text in CHAINED):
            if raised.partition(":")[0].rsplit(".", 1)[-1] not in OURS:
                found.append(f"{name}\n{raised}")
            name = ""
    return found


def table(counts: dict[str, Counter[Verdict]]) -> Iterable[str]:
    """A row for each kind of input and their sum, as Markdown."""
    heads = ["", "inputs", *(verdict.value for verdict in Verdict)]
    yield "| " + " | ".join(heads) + " |"
    yield "| --- |" + " ---: |" * (len(heads) - 1)
    rows = {**counts, "all": sum(counts.values(), Counter())}
    for name, count in rows.items():
        yield "| " + " | ".join([name, str(count.total()), *(str(count[verdict]) for verdict in Verdict)]) + " |"

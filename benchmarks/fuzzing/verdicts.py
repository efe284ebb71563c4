"""What is made of a program's end."""

import re
from collections import Counter
from collections.abc import Iterable
from enum import Enum
from pathlib import Path

from benchmarks.fuzzing.sandbox import Ended

TRACEBACK = "Traceback (most recent call last):"
REFUSAL = re.compile(r"^(?:.*: )?error: ", re.MULTILINE)
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
    """The entries of a log of tracebacks whose exceptions nobody turned into errors of ours."""
    if not log.is_file() or log.is_symlink():
        return []
    entries = []
    for entry in re.split(
        r"\n(?=\S[^\n]*\n+(?:[^\n]*\n)?" + re.escape(TRACEBACK) + ")", log.read_text(errors="replace")
    ):
        raised = re.findall(r"^([A-Za-z_][\w.]*)(?::|$)", entry.rsplit(TRACEBACK, 1)[-1], re.MULTILINE)
        if TRACEBACK in entry and raised and raised[0].rsplit(".", 1)[-1] not in OURS:
            entries.append(entry)
    return entries


def table(counts: dict[str, Counter[Verdict]]) -> Iterable[str]:
    """A row for each kind of input and their sum, as Markdown."""
    heads = ["", "inputs", *(verdict.value for verdict in Verdict)]
    yield "| " + " | ".join(heads) + " |"
    yield "| --- |" + " ---: |" * (len(heads) - 1)
    rows = {**counts, "all": sum(counts.values(), Counter())}
    for name, count in rows.items():
        yield "| " + " | ".join([name, str(count.total()), *(str(count[verdict]) for verdict in Verdict)]) + " |"

"""Scores as tables for the screen, as CSV and as JSON."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.evaluation.metrics import FoldScores, Scores, nan_to_none
from utils.system.files import atomic_write, write_json
from utils.system.text import one_line

NOT_DRAWN, ABSENT = "not drawn", "absent"  # in the place of a score
FORMULAS = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # a spreadsheet computes a cell that begins with one of these


def organ_table(scores: Scores) -> str:
    """One line per organ with its mean Dice over the scans, then the mean over scans."""
    names = [one_line(name) for name in scores.organs]
    width = max(map(len, (*names, "mean")))
    rows = [f"  {name:<{width}}  {_text(value)}" for name, value in zip(names, scores.organ_means, strict=True)]
    return "\n".join([*rows, f"  {'mean':<{width}}  {_text(scores.mean)}"])


def scan_table(scores: Scores, found: Sequence[Sequence[bool]] | None = None) -> str:
    """One line per scan with its mean and the Dice of each organ, then the means.

    Args:
        found: by scan and organ, whether it was found: then it isn't absent, even if it has no Dice.
    """
    cells = [list(map(_text, dice)) for dice in scores.dice]
    for scan, organ in scores.not_annotated:
        cells[scan][organ] = NOT_DRAWN
    for row, organs in zip(cells, found or (), strict=False):
        row[:] = ["–" if cell == ABSENT and there else cell for cell, there in zip(row, organs, strict=True)]
    rows = [[scan, _text(mean), *row] for scan, mean, row in zip(scores.scans, scores.scan_means, cells, strict=True)]
    means = ["–" if math.isnan(value) else f"{value:.4f}" for value in (scores.mean, *scores.organ_means)]
    rows.append(["mean", *means])
    return _table(["scan", "mean", *scores.organs], rows)


def volume_table(records: Sequence[Mapping[str, Any]]) -> str:
    """One line per scan with the volume of each organ in ml; a dash for one that wasn't found."""
    rows = [
        [record["scan"], *(volume_text(one["volume_ml"]) or "–" for one in record["organs"].values())]
        for record in records
    ]
    return _table(["scan", *records[0]["organs"]], rows)


def volume_text(volume: float) -> str:
    """A volume in ml with a decimal, or with as many as a smaller one needs to be seen; empty for none at all."""
    if volume == 0:
        return ""
    return f"{volume:.1f}" if volume >= 1 else f"{volume:.{1 - math.floor(math.log10(volume))}f}"


def fold_table(scores: FoldScores) -> str:
    """One line per fold with its mean and each organ, then means and standard deviations over folds and over scans."""
    rows = [
        [name, *(f"{value:.4f}" if math.isfinite(value) else "–" for value in values)] for name, values in _rows(scores)
    ]
    rows.append(["scans counted", *map(str, scores.counted)])
    return _table(["fold", "mean", *scores.organs], rows)


def fold_record(scores: FoldScores) -> dict[str, Any]:
    """The lines of :func:`fold_table` for JSON: each has ``mean`` and, by organ, ``organs``."""
    rows = {
        name: {"mean": nan_to_none(mean), "organs": _by_organ(scores, organs)}
        for name, (mean, *organs) in _rows(scores)
    }
    mean, *organs = scores.counted.tolist()
    return {**rows, "scans counted": {"mean": mean, "organs": dict(zip(scores.organs, organs, strict=True))}}


def save_fold_scores(path: Path, tables: Mapping[str, FoldScores]) -> None:
    """Write a CSV with the lines of :func:`fold_table`, one table after the other. An undefined value is empty.

    Args:
        tables: by the name of the score.

    Raises:
        WriteError: if it can't be written.
    """
    organs = next(iter(tables.values())).organs
    rows: list[list[Any]] = [["score", "fold", "mean", *organs]]
    for score, scores in tables.items():
        for fold, row in fold_record(scores).items():
            rows.append([score, fold.removeprefix("fold "), row["mean"], *row["organs"].values()])
    save_csv(path, rows)


def save_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file. Text that a spreadsheet would take for a formula gets an apostrophe before it.

    Raises:
        WriteError: if it can't be written.
    """
    with (
        atomic_write(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        csv.writer(file).writerows([_cell(value) for value in row] for row in rows)


def _cell(value: object) -> object:
    if isinstance(value, str) and (value.startswith(("\t", "\r", "\n")) or value.lstrip().startswith(FORMULAS)):
        return f"'{value}"
    return value


def _rows(scores: FoldScores) -> list[tuple[str, np.ndarray]]:
    folds = [(f"fold {fold}", values) for fold, values in zip(scores.folds, scores.by_fold, strict=True)]
    return [*folds, *scores.summary.items()]


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows below titles, whose words are stacked to save width."""
    words = [one_line(title).split() for title in titles]
    rows = [[one_line(cell) for cell in row] for row in rows]
    depth = max(map(len, words))
    head = [[([""] * (depth - len(title)) + title)[line] for title in words] for line in range(depth)]
    widths = [max(len(row[column]) for row in [*head, *rows]) for column in range(len(titles))]
    return "\n".join(_line(row, widths) for row in [*head, *rows])


def score_record(scores: Scores) -> dict[str, Any]:
    """The means for JSON: ``mean`` and, by organ, ``organs``."""
    return {"mean": nan_to_none(scores.mean), "organs": _by_organ(scores, scores.organ_means)}


def save_scores(folder: Path, scores: Scores, facts: Mapping[str, Any]) -> None:
    """Write ``scores.csv`` and ``scores.json``: Dice of each scan and organ, and the means.

    An organ in neither label nor prediction is an empty cell in the CSV and null in the JSON.

    Args:
        facts: further entries of the JSON, such as the weights' file.
    """
    scans = [
        {"scan": scan, "mean": nan_to_none(mean), "organs": _by_organ(scores, dice)}
        for scan, mean, dice in zip(scores.scans, scores.scan_means, scores.dice, strict=True)
    ]
    means = score_record(scores)
    rows = [[row["scan"], row["mean"], *row["organs"].values()] for row in [*scans, {"scan": "mean", **means}]]
    save_csv(folder / "scores.csv", [["scan", "mean", *scores.organs], *rows])
    write_json(folder / "scores.json", {**facts, **means, "scans": scans})


def _by_organ(scores: Scores | FoldScores, values: Any) -> dict[str, float | None]:
    return {name: nan_to_none(value) for name, value in zip(scores.organs, values, strict=True)}


def _text(value: float) -> str:
    return ABSENT if math.isnan(value) else f"{value:.4f}"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    others = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
    return "  ".join([cells[0].ljust(widths[0]), *others]).rstrip()

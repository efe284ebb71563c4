"""Tables stay tables, whatever scans and organs are called."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest

from utils.evaluation.metrics import FoldScores, Scores
from utils.evaluation.tables import (
    fold_table,
    organ_table,
    save_csv,
    save_fold_scores,
    save_scores,
    scan_table,
    volume_text,
)

NOT_UTF_8 = os.fsdecode(b"m\xff")
ODD = ("a\nb", "c\td\r\n", "\x1b[31mred", "x" * 300, "\u202eabc", "شعب", NOT_UTF_8, "☃")
SHOWN = ("a b", "c d", "[31mred", "x" * 300, "abc", "شعب", "m\\udcff", "☃")


def scores(scans: tuple[str, ...], organs: tuple[str, ...]) -> Scores:
    return Scores(scans, organs, np.full((len(scans), len(organs)), 0.25))


def read(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_printed_tables_have_a_line_for_each_row() -> None:
    lines = organ_table(scores(("scan",), ODD)).split("\n")
    assert [line.split("  ")[1].strip() for line in lines] == [*SHOWN, "mean"]
    head, *rows, mean = scan_table(scores(ODD, ("left\n\tkidney",))).split("\n")[1:]
    assert head.split() == ["scan", "mean", "kidney"]  # the line above has the word left
    assert [row.removesuffix("  0.2500  0.2500").strip() for row in rows] == list(SHOWN)
    assert mean.split() == ["mean", "0.2500", "0.2500"]
    folds = FoldScores({0: scores(("a",), ("liver\r",)), 1: scores(("b",), ("liver\r",))})
    assert len(fold_table(folds).splitlines()) == 8  # titles, two folds, means and deviations, number of scans
    for table in (organ_table(scores(("scan",), ODD)), scan_table(scores(ODD, ODD))):
        assert table.replace("\n", "").isprintable()
        table.encode()


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "＝1", "=HYPERLINK(1)"]
)
def test_text_that_a_spreadsheet_would_compute_has_an_apostrophe(tmp_path: Path, text: str) -> None:
    save_csv(tmp_path / "a.csv", [[text, -1.5, None, True], ["a=1", "1-2", "", "mean"]])
    assert read(tmp_path / "a.csv") == [[f"'{text}", "-1.5", "", "True"], ["a=1", "1-2", "", "mean"]]


def test_scores_of_oddly_named_scans_and_organs_are_written(tmp_path: Path) -> None:
    save_scores(tmp_path, scores(("=cmd", *ODD), ("-organ", "liver")), {"made": "today"})
    rows = read(tmp_path / "scores.csv")
    assert rows[0] == ["scan", "mean", "'-organ", "liver"]
    # CSV keeps line breaks in quotes; what UTF-8 can't hold becomes its escape
    assert [row[0] for row in rows[1:]] == ["'=cmd", *(name.replace("\udcff", "\\udcff") for name in ODD), "mean"]
    assert all(row[1:] == ["0.25", "0.25", "0.25"] for row in rows[1:])
    content = json.loads((tmp_path / "scores.json").read_text())
    assert [scan["scan"] for scan in content["scans"]] == ["=cmd", *ODD]
    assert list(content["organs"]) == ["-organ", "liver"]


def test_scores_of_folds_are_written(tmp_path: Path) -> None:
    folds = FoldScores({0: scores(("a",), ("=liver",)), 1: scores(("b",), ("=liver",))})
    save_fold_scores(tmp_path / "crossval.csv", {"dice": folds})
    rows = read(tmp_path / "crossval.csv")
    assert rows[:3] == [
        ["score", "fold", "mean", "'=liver"],
        ["dice", "0", "0.25", "0.25"],
        ["dice", "1", "0.25", "0.25"],
    ]
    assert len(rows) == 8


@pytest.mark.parametrize(
    ("volume", "text"),
    [(0.0, ""), (0.03, "0.030"), (0.0042, "0.0042"), (0.95, "0.95"), (1.0, "1.0"), (1523.04, "1523.0")],
)
def test_a_small_volume_has_as_many_decimals_as_it_needs(volume: float, text: str) -> None:
    assert volume_text(volume) == text


def test_what_was_found_is_not_absent_for_want_of_a_prediction() -> None:
    scores = Scores(("a", "b"), ("liver", "cyst"), np.array([[0.9, np.nan], [0.8, np.nan]]))
    lines = scan_table(scores, found=[[True, True], [True, False]]).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["a", "0.9000", "0.9000", "–"], ["b", "0.8000", "0.8000", "absent"], ["mean", "0.8500", "0.8500", "–"],
    ]  # fmt: skip

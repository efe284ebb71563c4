"""Measure how far the predicted Dice is off: ``python -m benchmarks.confidence RESULTS``.

RESULTS is what ``test.py`` wrote for labelled scans with the networks of a cross-validation. None of them may have seen
the scans.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks import markdown
from utils.config.parser import Parser
from utils.evaluation.calibration import rank_correlation
from utils.evaluation.metrics import nan_mean
from utils.evaluation.pictures import label_colours, pixels, save_picture
from utils.system.errors import InputError, one_line_errors
from utils.system.files import read_json

Pairs = dict[str, np.ndarray]  # by name, (2, scans): predicted and true Dice


def pairs_of(records: list[dict[str, Any]]) -> tuple[Pairs, np.ndarray]:
    """Predicted and true Dice by organ, and of the scans' means (2, scans) over the organs that have both."""
    organs = {
        organ: np.array(
            [[record["organs"][organ].get(which) for record in records] for which in ("predicted_dice", "dice")],
            dtype=float,
        )
        for organ in records[0]["organs"]
    }
    stacked = np.stack(list(organs.values()))  # (organs, 2, scans)
    both = np.isfinite(stacked).all(1, keepdims=True)
    return organs, nan_mean(np.where(both, stacked, np.nan), axis=0)


def row(name: str, pairs: np.ndarray) -> list[str]:
    """A line of the table: number of pairs, means, rank correlation and mean absolute error."""
    known = pairs[:, np.isfinite(pairs).all(0)]
    rank = rank_correlation(*known.tolist())
    means = [f"{value:.3f}" for value in known.mean(1)]
    error = float(np.abs(known[0] - known[1]).mean())
    return [name, str(known.shape[1]), *means, "–" if rank is None else f"{rank:.2f}", f"{error:.3f}"]


def plot(organs: Pairs) -> Figure:
    """True over predicted Dice, a point for each scan and organ."""
    figure = Figure(figsize=(5, 5), dpi=110, layout="constrained")
    panel = figure.subplots()
    panel.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for (organ, (predicted, true)), colour in zip(organs.items(), label_colours(["", *organs])[1:], strict=True):
        panel.scatter(predicted, true, s=14, color=colour, label=organ)
    panel.set(xlabel="predicted Dice", ylabel="Dice", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    panel.legend(loc="upper left", frameon=False)
    return figure


def main(args: argparse.Namespace) -> None:
    """Print a table, and draw the plot."""
    path = Path(args.results) / "measurements.json"
    try:
        records = [record for record in read_json(path)["scans"] if record["labelled"]]
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror}). Give a folder that test.py wrote.") from error
    if not any("predicted_dice" in organ for record in records for organ in record["organs"].values()):
        raise InputError(f"{path}: has no scan with a label and a predicted Dice. Segment a data list's scans.")
    organs, scans = pairs_of(records)
    rows = [row(organ, pairs) for organ, pairs in organs.items()]
    rows += [row("all organs", np.concatenate(list(organs.values()), axis=1)), row("mean of each scan", scans)]
    print(markdown.table(["", "number", "predicted", "Dice", "rank correlation", "mean absolute error"], rows))
    if args.plot is not None:
        save_picture(pixels(plot(organs)), Path(args.plot))


if __name__ == "__main__":
    parser = Parser(prog="python -m benchmarks.confidence", description="Compare predicted with true Dice.")
    parser.add_argument("results", metavar="RESULTS", help="a folder that test.py wrote")
    parser.add_argument("--plot", metavar="FILE", help="draw the pairs into this PNG file")
    with one_line_errors():
        main(parser.parse_args())

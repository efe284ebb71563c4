"""Measure what an ensemble gains on unseen scans: ``python -m benchmarks.ensemble --data_dir DATA``.

The validation scans of fold 0 are the test set. ``python -m utils.crossval`` splits the training scans into five folds
and trains a network on each four of them. Then ``test.py`` segments the test set with each network and with all five
together. Launched again, it skips what is finished.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import markdown
from utils.config.parser import Parser, count
from utils.data.data_list import find_data_list
from utils.evaluation.measurements import scores_of
from utils.evaluation.metrics import Scores
from utils.system.errors import TrainingError, one_line_errors
from utils.system.files import read_json, write_json
from utils.system.hardware import machine
from utils.training.run_folder import LATEST, RUNS

RECIPE = "@recipes/hippocampus.args"
FOLDS = 5


def split(data_dir: str) -> dict[str, Any]:
    """Fold 0 as a data list for cross-validation: training scans have folds, validation scans become the test set.

    Raises:
        InputError: if there is no data list.
    """
    content: dict[str, Any] = read_json(find_data_list(data_dir, None, 0))
    training = [{**entry, "fold": number % FOLDS} for number, entry in enumerate(content["training"])]
    return {"labels": content["labels"], "training": training, "test": content["validation"]}


def run(command: str, *flags: str) -> None:
    """Run a program of this repository.

    Raises:
        TrainingError: if it fails; its own output says why.
    """
    status = subprocess.run([sys.executable, *shlex.split(command), *flags]).returncode
    if status != 0:
        raise TrainingError(f"{command} ended with status {status}. Launch again to go on.")


def own_grid_dice(folder: Path) -> Scores:
    """The Dice on the scans' own grids, as ``test.py`` measured it."""
    records = json.loads((folder / "measurements.json").read_text(encoding="utf-8"))["scans"]
    scores = scores_of(records, tuple(records[0]["organs"]), "dice")
    assert scores is not None, "the scans have labels"
    return scores


def main(args: argparse.Namespace) -> None:
    """Train, test, and print a Markdown table of Dice."""
    content = split(args.data_dir)
    group = RUNS / args.logdir
    group.mkdir(parents=True, exist_ok=True)
    data_list = group / "data_list.json"
    write_json(data_list, content)
    data = [f"--data_dir={args.data_dir}", f"--json_list={data_list}"]
    epochs = [f"--max_epochs={args.epochs}", f"--val_every={args.epochs}"]
    run("-m utils.crossval", RECIPE, *data, *epochs, f"--logdir={args.logdir}", "--skip_data_check")

    singles = [f"fold {fold}" for fold in range(FOLDS)]
    tested = {}
    for name in [*singles, "all five"]:
        pattern = "fold*" if name == "all five" else name.replace(" ", "")
        folder = group / f"tested_{name.replace(' ', '_')}"
        weights = [f"--pretrained_dir={group}", f"--pretrained_model_name={pattern}/{LATEST}"]
        run("test.py", *data, "--split=test", *weights, f"--output_dir={folder}")
        tested[name] = own_grid_dice(folder)

    organs = tested["all five"].organs
    rows = {name: [scores.mean, *scores.organ_means] for name, scores in tested.items()}
    means = [statistics.fmean(column) for column in zip(*(rows[name] for name in singles), strict=True)]
    single = np.mean([tested[name].scan_means for name in singles], axis=0)
    better = int((tested["all five"].scan_means > single).sum())
    print(f"{machine(gpu=True)}; {args.epochs} epochs; {len(single)} scans that none saw, Dice on their own grid")
    cells = [[name, *(f"{value:.4f}" for value in dice)] for name, dice in {**rows, "mean of the five": means}.items()]
    print(markdown.table(["network", "mean", *organs], cells))
    print(f"the five together are above the mean of the five on {better} of {len(single)} scans")


if __name__ == "__main__":
    parser = Parser(prog="python -m benchmarks.ensemble", description="Compare an ensemble with its networks.")
    parser.add_argument("--data_dir", required=True, help="the hippocampus scans with their lists")
    parser.add_argument("--epochs", type=count, default=10, help="epochs of each network")
    parser.add_argument("--logdir", default="ensemble", help="folder of the runs, below runs/")
    with one_line_errors():
        main(parser.parse_args())

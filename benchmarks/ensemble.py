"""What an ensemble gains on scans that none of its networks saw: ``python -m benchmarks.ensemble --data_dir DATA``.

Fold 0's validation scans are kept aside. Its training scans are split in five, and five networks each train on four of
these parts, as ``python -m utils.crossval`` has it. Then ``test.py`` segments the scans that were kept aside by each
network and by all five together. What is finished is passed over.
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
from utils.system.files import write_json
from utils.system.hardware import machine
from utils.training.run_folder import LATEST, RUNS

RECIPE = "@recipes/hippocampus.args"
FOLDS = 5


def split(data_dir: str) -> dict[str, Any]:
    """Fold 0 as one list whose training scans name a fold each, and whose validation scans are a part of their own.

    Raises:
        InputError: if there is no such list.
    """
    content: dict[str, Any] = json.loads(find_data_list(data_dir, None, 0).read_text(encoding="utf-8"))
    training = [{**entry, "fold": number % FOLDS} for number, entry in enumerate(content["training"])]
    return {"labels": content["labels"], "training": training, "test": content["validation"]}


def run(command: str, *flags: str) -> None:
    """Run a program of this repository to its end.

    Raises:
        TrainingError: if it fails; its output says why.
    """
    status = subprocess.run([sys.executable, *shlex.split(command), *flags]).returncode
    if status != 0:
        raise TrainingError(f"{command} ended with status {status}. What is finished is kept.")


def own_grid_dice(folder: Path) -> Scores:
    """What ``test.py`` measured."""
    records = json.loads((folder / "measurements.json").read_text(encoding="utf-8"))["scans"]
    scores = scores_of(records, tuple(records[0]["organs"]), "dice")
    assert scores is not None, "the scans have labels"
    return scores


def main(args: argparse.Namespace) -> None:
    """Train, test, and print a Markdown table."""
    content = split(args.data_dir)
    group = RUNS / args.logdir
    group.mkdir(parents=True, exist_ok=True)
    data_list = group / "data_list.json"
    write_json(data_list, content)
    data = [f"--data_dir={args.data_dir}", f"--json_list={data_list}"]
    epochs = [f"--max_epochs={args.epochs}", f"--val_every={args.epochs}"]
    run("-m utils.crossval", RECIPE, *data, *epochs, f"--logdir={args.logdir}", "--skip_data_check")

    tested = {}
    for name, pattern in {**{f"fold {fold}": f"fold{fold}" for fold in range(FOLDS)}, "all five": "fold*"}.items():
        folder = group / f"tested_{name.replace(' ', '_')}"
        weights = [f"--pretrained_dir={group}", f"--pretrained_model_name={pattern}/{LATEST}"]
        run("test.py", *data, "--split=test", *weights, f"--output_dir={folder}")
        tested[name] = own_grid_dice(folder)

    singles = [scores for name, scores in tested.items() if name != "all five"]
    organs = tested["all five"].organs
    rows = {name: [scores.mean, *scores.organ_means] for name, scores in tested.items()}
    means = [statistics.fmean(column) for column in zip(*(rows[f"fold {fold}"] for fold in range(FOLDS)), strict=True)]
    single = np.mean([scores.scan_means for scores in singles], axis=0)
    better = int((tested["all five"].scan_means > single).sum())
    print(f"{machine(gpu=True)}; {args.epochs} epochs; {len(single)} scans that none saw, Dice on their own grid")
    cells = [[name, *(f"{value:.4f}" for value in dice)] for name, dice in {**rows, "mean of the five": means}.items()]
    print(markdown.table(["network", "mean", *organs], cells))
    print(f"the five together are above the mean of the five on {better} of {len(single)} scans")


if __name__ == "__main__":
    parser = Parser(prog="python -m benchmarks.ensemble", description="Compare an ensemble with its networks.")
    parser.add_argument("--data_dir", required=True, help="the hippocampus scans with their lists")
    parser.add_argument("--epochs", type=count, default=10)
    parser.add_argument("--logdir", default="ensemble")
    with one_line_errors():
        main(parser.parse_args())

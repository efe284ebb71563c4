"""Measure what partly annotated scans are worth: ``python -m benchmarks.partly_annotated --data_dir DATA``.

DATA has data lists and ``partial.json``, whose ``entries`` are further scans with the organs that nobody drew there. Of
each seed three networks train for the same number of steps: on the scans of the fold alone; with the further scans; and
with them as if what isn't drawn were absent. All are tested on the fold's validation scans. Launched again, it goes on
where it stopped.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import markdown
from benchmarks.ensemble import own_grid_dice, run
from benchmarks.planned import planning_folder, train_and_test
from utils.config.flags import parse_train
from utils.config.parser import Parser, positive, whole
from utils.system.errors import one_line_errors
from utils.system.files import read_json, write_json
from utils.system.hardware import machine
from utils.training.run_folder import RUNS

Entry = dict[str, Any]


def absent(entry: Entry) -> Entry:
    """The entry as if all were annotated, so that what isn't drawn counts as background."""
    return {key: value for key, value in entry.items() if key != "not_annotated"}


ARMS: dict[str, Callable[[list[Entry]], list[Entry]]] = {
    "fully annotated alone": lambda entries: [],
    "with partly annotated": lambda entries: entries,
    "taken as absent": lambda entries: [absent(entry) for entry in entries],
}


def make_recipe(arm: str, data_dir: Path, work: Path, fold: int, hours: float) -> Path:
    """A recipe for an arm, whose folder has its data list; all arms have the plan of the first.

    The epochs are so many that each arm takes as many steps, but for less than an epoch.
    """
    first = planning_folder(data_dir, work, next(iter(ARMS)).replace(" ", "_"))
    plan = first / "plan.args"
    if not plan.exists():
        run("-m utils.plan", f"--data_dir={first}", f"--hours={hours}", f"--fold={fold}")
    folder = planning_folder(data_dir, work, arm.replace(" ", "_"))
    path = folder / f"dataset_{fold}.json"
    content = read_json(path)
    scans = len(content["training"])
    content["training"] += ARMS[arm](read_json(data_dir / "partial.json")["entries"])
    write_json(path, content)
    planned, share = parse_train([f"@{plan}"]), scans / len(content["training"])
    epochs, warmup = (max(1, round(number * share)) for number in (planned.max_epochs, planned.warmup_epochs))
    recipe = folder / "arm.args"
    flags = {"data_dir": folder, "max_epochs": epochs, "warmup_epochs": warmup, "val_every": epochs}
    recipe.write_text(f"@{plan.resolve()} {' '.join(f'--{name}={value}' for name, value in flags.items())}\n")
    return recipe


def main(args: argparse.Namespace) -> None:
    """Train and test what isn't done; print a row for each run, and the means over the seeds."""
    means: dict[str, list[list[float]]] = {arm: [] for arm in ARMS}
    rows, organs = [], []
    for seed in args.seeds:
        for arm in ARMS:
            recipe = make_recipe(arm, Path(args.data_dir), Path(args.work), args.fold, args.hours)
            name = f"{args.logdir}/{arm.replace(' ', '_')}_fold{args.fold}_seed{seed}"
            train_and_test(recipe, name, args.fold, seed)
            dice = own_grid_dice(RUNS / name / "scores")
            means[arm].append([dice.mean, *dice.organ_means])
            organs = list(dice.organs)
            epochs = str(parse_train([f"@{recipe}"]).max_epochs)
            rows.append([arm, str(seed), epochs, *(f"{value:.4f}" for value in means[arm][-1])])
    for arm, values in means.items():
        rows.append([f"**{arm}**", "mean", "", *(f"**{value:.4f}**" for value in np.mean(values, axis=0))])
    print(f"{machine(gpu=False)}; fold {args.fold}, {json.dumps(args.hours)} hours a run")
    print(markdown.table(["trained on", "seed", "epochs", "mean Dice", *organs], rows))


if __name__ == "__main__":
    parser = Parser(prog="python -m benchmarks.partly_annotated", description="Train with partly annotated scans.")
    parser.add_argument("--data_dir", required=True, help="folder of the scans, with data lists and partial.json")
    parser.add_argument("--fold", type=whole, default=0, help="which fold validates")
    parser.add_argument("--seeds", type=whole, nargs="+", default=[0, 1, 2], help="a run of each arm for each seed")
    parser.add_argument("--hours", type=positive, default=0.15, help="for each run")
    parser.add_argument("--work", default=RUNS / "partly_annotated" / "plans", help="folder for the plans")
    parser.add_argument("--logdir", default="partly_annotated", help="folder of the runs, below runs/")
    with one_line_errors():
        main(parser.parse_args())

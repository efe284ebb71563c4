"""Plan, train and score networks on a folder of scans: ``python -m benchmarks.planned --data_dir DATA --hours 0.5``.

For each network it plans with no further flag, and for each fold and seed it trains and tests as a user would:
``python -m utils.plan``, ``python main.py @plan.args``, ``python test.py`` with the weights after the last epoch. The
folder stays as it is: the plan is made in one that leads to its scans. Launched again, it goes on where it stopped.
"""

import argparse
import json
import os
import time
from pathlib import Path

from benchmarks import markdown
from benchmarks.ablation import epochs_and_dice
from benchmarks.ensemble import own_grid_dice, run
from utils.config.flags import parse_train
from utils.config.parser import Parser, positive, whole
from utils.system.errors import InputError, one_line_errors
from utils.system.hardware import machine
from utils.training.run_folder import LATEST, RUNS

SECONDS = "seconds_in_all.json"  # of main.py, in its run's folder


def planning_folder(data_dir: Path, work: Path, network: str) -> Path:
    """A folder with the data lists, which leads to the scans, for one network's plan.

    Raises:
        InputError: if there are no data lists.
    """
    folder = work / f"{data_dir.resolve().name}_{network}"
    folder.mkdir(parents=True, exist_ok=True)
    lists = sorted(data_dir.glob("dataset_*.json"))
    if not lists:
        raise InputError(f"--data_dir {data_dir}: has no dataset_0.json. Plan there once, which writes it.")
    for path in lists:
        (folder / path.name).write_bytes(path.read_bytes())
    for path in data_dir.iterdir():
        if path.is_dir() and not (folder / path.name).exists():
            (folder / path.name).symlink_to(path.resolve())
    return folder


def train_and_test(recipe: Path, run_name: str, fold: int, seed: int) -> None:
    """Train and test with one fold and seed, unless that is done."""
    folder = RUNS / run_name
    flags = [f"@{recipe}", f"--fold={fold}", f"--seed={seed}", f"--logdir={run_name}", "--resume"]
    if not (folder / SECONDS).exists():
        start = time.perf_counter()
        run("main.py", *flags)
        (folder / SECONDS).write_text(json.dumps(time.perf_counter() - start))
    if not (folder / "scores" / "measurements.json").exists():
        data_dir = parse_train([f"@{recipe}"]).data_dir
        run("test.py", f"--data_dir={data_dir}", f"--fold={fold}", f"--pretrained_dir={folder}",
            f"--pretrained_model_name={LATEST}")  # fmt: skip


def row(network: str, recipe: Path, run_name: str, fold: int, seed: int) -> list[str]:
    """The cells of a finished run in the table."""
    flags = parse_train([f"@{recipe}"])
    folder = RUNS / run_name
    epochs, _ = epochs_and_dice(run_name)
    dice = own_grid_dice(folder / "scores")
    seconds = sum(epoch["seconds"] for epoch in epochs)
    in_all = json.loads((folder / SECONDS).read_text())
    window = f"{flags.roi_x} × {flags.roi_y} × {flags.roi_z}"
    organs = [f"{mean:.3f}" for mean in dice.organ_means]
    return [network, str(fold), str(seed), window, str(flags.max_epochs), f"{seconds:.0f}", f"{in_all:.0f}",
            f"**{dice.mean:.4f}**", *organs]  # fmt: skip


def main(args: argparse.Namespace) -> None:
    """Plan, train and test what isn't done, and print a table with a row for each run."""
    rows, organs = [], []
    for network in args.networks:
        data_dir = planning_folder(Path(args.data_dir), Path(args.work), network)
        recipe = data_dir / "plan.args"
        if not recipe.exists():
            run("-m utils.plan", f"--data_dir={data_dir}", f"--hours={args.hours}", f"--model_name={network}")
        for fold in args.folds:
            for seed in args.seeds:
                run_name = f"{args.logdir}/{data_dir.name}_fold{fold}_seed{seed}"
                train_and_test(recipe, run_name, fold, seed)
                rows.append(row(network, recipe, run_name, fold, seed))
                organs = list(own_grid_dice(RUNS / run_name / "scores").organs)
    print(f"{machine(gpu=False)}, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'all')}, {args.hours:g} hours")
    heads = ["network", "fold", "seed", "window", "epochs", "seconds of steps", "of main.py", "mean Dice"]
    print(markdown.table([*heads, *organs], rows))


if __name__ == "__main__":
    parser = Parser(prog="python -m benchmarks.planned", description="Plan, train and score networks on a folder.")
    parser.add_argument("--data_dir", required=True, help="folder of the scans with their data lists")
    parser.add_argument("--networks", nargs="+", default=["unetr", "dynunet"], help="that are planned, one by one")
    parser.add_argument("--folds", type=whole, nargs="+", default=[0], help="a run for each fold")
    parser.add_argument("--seeds", type=whole, nargs="+", default=[0], help="a run for each seed")
    parser.add_argument("--hours", type=positive, default=0.5, help="for each run")
    parser.add_argument("--work", default=RUNS / "planned" / "plans", help="folder for the plans")
    parser.add_argument("--logdir", default="planned", help="folder of the runs, below runs/")
    with one_line_errors():
        main(parser.parse_args())

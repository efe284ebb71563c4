"""Measure what pre-training is worth with few labels: ``python -m benchmarks.few_labels --data_dir DATA``.

A few of the fold's training scans keep their labels, and the others are unlabelled. ``utils.pretrain`` trains an
encoder on all of them. For each number of labels and each seed two networks train for the same number of steps, one
from random weights and one from this encoder. All are tested on the fold's validation scans. Launched again, it goes on
where it stopped.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from benchmarks import markdown
from benchmarks.ensemble import own_grid_dice, run
from benchmarks.planned import planning_folder, train_and_test
from utils.checkpoints.progress import steps_for
from utils.config.flags import parse_train
from utils.config.parser import Parser, count, positive, whole
from utils.system.errors import InputError, one_line_errors
from utils.system.files import read_json, write_json
from utils.system.hardware import machine
from utils.training.run_folder import LATEST, RUNS

SCRATCH, PRETRAINED = "from random weights", "pre-trained"


def folder_of(labelled: int, args: argparse.Namespace) -> Path:
    """A folder whose data list has labels for so many training scans; the others are unlabelled.

    Raises:
        InputError: if the list has fewer scans.
    """
    folder = planning_folder(Path(args.data_dir), Path(args.work), f"{labelled}_labels")
    path = folder / f"dataset_{args.fold}.json"
    content = read_json(path)
    training = content["training"]
    if labelled > len(training):
        raise InputError(f"--labelled {labelled}: {path.name} has only {len(training)} training scans. Give fewer.")
    content["training"] = training[:labelled]
    content["unlabelled"] = [entry["image"] for entry in training[labelled:]]
    write_json(path, content)
    return folder


def make_recipes(args: argparse.Namespace) -> dict[int, Path]:
    """A recipe for each number of labels. All have the plan of the largest, and its number of steps."""
    most = max(args.labelled)
    plan = folder_of(most, args) / "plan.args"
    if not plan.exists():
        run("-m utils.plan", f"--data_dir={plan.parent}", f"--hours={args.hours}", f"--fold={args.fold}")
    planned = parse_train([f"@{plan}"])
    recipes = {}
    for labelled in args.labelled:
        folder = folder_of(labelled, args)
        in_plan, here = (steps_for(scans, 1, planned.batch_size, planned.accumulate) for scans in (most, labelled))
        epochs = planned.max_epochs * in_plan // here
        warmup = max(1, epochs // 20)
        recipes[labelled] = folder / "recipe.args"
        recipes[labelled].write_text(
            f"@{plan.resolve()} --data_dir={folder} --max_epochs={epochs} --warmup_epochs={warmup}\n"
            f"--val_every={epochs} --save_every={-(-epochs // 10)}\n"
        )
    return recipes


def pretrain(recipe: Path, args: argparse.Namespace) -> Path:
    """Pre-train on all scans, unless that is done. Returns the weights."""
    name = f"{args.logdir}/pretrained_fold{args.fold}"
    run(
        "-m utils.pretrain", f"@{recipe}", f"--fold={args.fold}", f"--logdir={name}", "--resume",
        f"--max_epochs={args.pretrain_epochs}", f"--val_every={args.pretrain_epochs}",
        f"--warmup_epochs={max(1, args.pretrain_epochs // 20)}", "--optim_lr=3e-4",
    )  # fmt: skip
    return RUNS / name / LATEST


def main(args: argparse.Namespace) -> None:
    """Train and test what isn't done; print a row for each run, and the means over the seeds."""
    recipes = make_recipes(args)
    encoder = pretrain(recipes[max(args.labelled)], args).resolve()
    runs: list[list[str]] = []
    means: list[list[str]] = []
    organs: list[str] = []
    for labelled, recipe in recipes.items():
        for how, flags in {SCRATCH: "", PRETRAINED: f"--vit_weights={encoder}"}.items():
            arm = recipe.with_name(f"{how.replace(' ', '_')}.args")
            arm.write_text(f"@{recipe.resolve()} {flags}\n")
            found = []
            for seed in args.seeds:
                name = f"{args.logdir}/{labelled}_labels_{arm.stem}_fold{args.fold}_seed{seed}"
                train_and_test(arm, name, args.fold, seed)
                dice = own_grid_dice(RUNS / name / "scores")
                organs = list(dice.organs)
                found.append([dice.mean, *dice.organ_means])
                runs.append([str(labelled), how, str(seed), *(f"{value:.4f}" for value in found[-1])])
            means.append([str(labelled), how, "mean", *(f"**{value:.4f}**" for value in np.mean(found, axis=0))])
    print(f"{machine(gpu=False)}; fold {args.fold}, {json.dumps(args.hours)} hours a run")
    print(markdown.table(["labelled scans", "weights", "seed", "mean Dice", *organs], [*runs, *means]))


if __name__ == "__main__":
    parser = Parser(prog="python -m benchmarks.few_labels", description="Train with few labels, and pre-trained.")
    parser.add_argument("--data_dir", required=True, help="folder of the scans, with data lists")
    parser.add_argument("--labelled", type=count, nargs="+", default=[4, 8, 16], help="scans that keep their labels")
    parser.add_argument("--fold", type=whole, default=0, help="which fold validates")
    parser.add_argument("--seeds", type=whole, nargs="+", default=[0, 1, 2], help="two runs for each seed")
    parser.add_argument("--hours", type=positive, default=0.15, help="for each run that is planned")
    parser.add_argument("--pretrain_epochs", type=count, default=100, help="passes over all training scans")
    parser.add_argument("--work", default=RUNS / "few_labels" / "plans", help="folder for the plans")
    parser.add_argument("--logdir", default="few_labels", help="folder of the runs, below runs/")
    with one_line_errors():
        main(parser.parse_args())

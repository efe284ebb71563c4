"""What each option of the hippocampus recipe does: ``python -m benchmarks.ablation --data_dir DATA``.

One option at a time is left out of the recipe or added to it, and each network trains on fold 0 for about the same
seconds, with several seeds. The runs are ordinary ones, ``runs/NAME/OPTION_seedN``, on one thread each; those that are
finished are passed over. The table has the mean over seeds, and how far seeds lie apart.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from utils.args import Parser, count
from utils.machine import machine
from utils.run_folder import RUNS

TASK = "@recipes/hippocampus_task.args"
NETWORK = "--feature_size 8 --hidden_size 192 --mlp_dim 384 --num_heads 6"
# what recipes/hippocampus.args has beyond the two above, each to be left out
CHOSEN = {
    "patches": "--patch_size 8",
    "supervision": "--deep_supervision",
    "augmentation": "--augment strong",
    "rate": "--optim_lr 4e-3",
}


@dataclass(frozen=True)
class Option:
    """A recipe to train.

    Attributes:
        title: what the table calls it.
        name: what its runs are called.
        flags: of ``main.py``.
        pace: epochs in the time in which the recipe takes one.
    """

    title: str
    name: str
    flags: str
    pace: float = 1.0


def without(part: str, instead: str = "", title: str = "", pace: float = 1.0) -> Option:
    """The recipe without one of its parts, or with another in its place."""
    others = " ".join(flags for name, flags in CHOSEN.items() if name != part)
    return Option(title or f"without `{CHOSEN[part]}`", f"without_{part}", f"{others} {instead}", pace)


def with_(name: str, flags: str, pace: float = 1.0) -> Option:
    """The recipe with something more."""
    return Option(f"with `{flags}`", f"with_{name}", f"{' '.join(CHOSEN.values())} {flags}", pace)


OPTIONS = (
    Option("the recipe", "recipe", " ".join(CHOSEN.values())),
    without("patches", pace=1.1),
    without("supervision"),
    without("augmentation"),
    without("rate", "--optim_lr 2e-3", "`--optim_lr 2e-3` instead of 4e-3"),
    with_("ema", "--ema_decay 0.99"),
    with_("clip", "--clip_grad_norm 1"),
    with_("drop_path", "--drop_path_rate 0.1"),
    with_("vit_lr", "--vit_lr 1e-3"),
    with_("vit_decay", "--vit_reg_weight 1e-2"),
    with_("flips", "--flips anatomical --RandFlipd_prob 0.5"),
    with_("features", "--feature_size 16", pace=0.4),
    with_("steps", "--batch_size 1"),
    with_("one_crop", "--crops_per_scan 1", pace=2),
    with_("whole", "--roi_x 40 --roi_y 56 --roi_z 40 --crops_per_scan 1"),
)


def run_folder(name: str, option: Option, seed: int) -> str:
    """What ``--logdir`` calls a run."""
    return f"{name}/{option.name}_seed{seed}"


def epochs_and_dice(folder: str) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Each epoch's line in a run's record, and the Dice by organ of the last, ``mean`` among them; empty if none."""
    path = RUNS / folder / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    dice = lines[-1].get("dice") if lines else None
    return lines, {"mean": dice["mean"], **dice["organs"]} if dice else {}


def train(args: argparse.Namespace, option: Option, seed: int) -> None:
    """Train one option with one seed, unless that is done.

    Raises:
        CalledProcessError: if ``main.py`` fails; ``runs/…`` and its output say why.
    """
    epochs = round(args.epochs * option.pace)
    folder = run_folder(args.logdir, option, seed)
    if epochs_and_dice(folder)[1]:
        return
    flags = [TASK, *shlex.split(NETWORK), *shlex.split(option.flags), f"--data_dir={args.data_dir}", "--fold=0"]
    flags += [f"--seed={seed}", f"--max_epochs={epochs}", f"--val_every={epochs}", "--workers=1", "--skip_data_check"]
    flags += [f"--logdir={folder}", "--overwrite"]
    print(f"{folder}: {epochs} epochs", flush=True)
    subprocess.run(
        [sys.executable, "main.py", *flags], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip


def table(args: argparse.Namespace, options: Sequence[Option]) -> str:
    """A Markdown table with a line for each option."""
    rows = []
    for option in options:
        runs = [epochs_and_dice(run_folder(args.logdir, option, seed)) for seed in args.seeds]
        organs = list(runs[0][1])
        means = [statistics.fmean(dice[organ] for _, dice in runs) for organ in organs]
        apart = statistics.stdev(dice["mean"] for _, dice in runs) if len(runs) > 1 else float("nan")
        seconds = statistics.fmean(sum(line["seconds"] for line in lines) for lines, _ in runs)
        cells = [option.title, str(len(runs[0][0])), f"{seconds:.0f}", *(f"{mean:.4f}" for mean in means)]
        rows.append([*cells, f"{apart:.4f}"])
    heads = ["option", "epochs", "seconds", *organs, "sd over seeds"]
    return "\n".join(f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(heads), *rows])


def main(args: argparse.Namespace) -> None:
    """Train what isn't trained, and print the table."""
    options = [option for option in OPTIONS if args.options is None or option.name in args.options]
    with ThreadPoolExecutor(args.jobs) as pool:  # seed by seed, so that an interruption leaves whole rounds
        for done in [pool.submit(train, args, option, seed) for seed in args.seeds for option in options]:
            done.result()
    print(f"{machine(gpu=False)}, {args.jobs} runs at a time on one thread each, seeds {args.seeds}")
    print(table(args, options))


if __name__ == "__main__":
    parser = Parser(prog="python -m benchmarks.ablation", description="Train with and without each option.")
    parser.add_argument("--data_dir", required=True, help="the hippocampus scans with their lists")
    parser.add_argument("--options", nargs="+", choices=[option.name for option in OPTIONS], help="these alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=count, default=6, help="of the recipe; others have as many as the time allows")
    parser.add_argument("--jobs", type=count, default=2, help="runs at a time")
    parser.add_argument("--logdir", default="ablation")
    main(parser.parse_args())

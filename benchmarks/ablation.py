"""What each option of the hippocampus recipe does: ``python -m benchmarks.ablation --data_dir DATA``.

One option of the recipe at a time is changed, and each network trains on fold 0 for about the same seconds, with
several seeds. The runs are ordinary ones, ``runs/NAME/OPTION_seedN``, on one thread each; those that are finished are
passed over. The table has the mean over seeds, and how far seeds lie apart.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from benchmarks import markdown
from utils.config.flags import parse_train
from utils.config.parser import Parser, count
from utils.system.errors import InputError, TrainingError, one_line_errors
from utils.system.hardware import machine
from utils.training.run_folder import RUNS

RECIPE = "@recipes/hippocampus.args"


@dataclass(frozen=True)
class Option:
    """A recipe to train.

    Attributes:
        name: what its runs are called.
        flags: of ``main.py``, beside the recipe's.
        pace: epochs in the time in which the recipe takes one.
    """

    name: str
    flags: str = ""
    pace: float = 1.0

    @property
    def title(self) -> str:
        """What the table calls it."""
        return f"`{self.flags}`" if self.flags else "the recipe"


OPTIONS = (
    Option("recipe"),
    # what the recipe has, left out
    Option("patches", "--patch_size 16", pace=1.1),
    Option("supervision", "--no-deep_supervision"),
    Option("augmentation", "--augment published"),
    Option("rate", "--optim_lr 2e-3"),
    # what it doesn't have
    Option("ema", "--ema_decay 0.99"),
    Option("clip", "--clip_grad_norm 1"),
    Option("drop_path", "--drop_path_rate 0.1"),
    Option("vit_lr", "--vit_lr 1e-3"),
    Option("vit_decay", "--vit_reg_weight 1e-2"),
    Option("flips", "--flips anatomical --RandFlipd_prob 0.5"),
    Option("two_crops", "--crops_per_scan 2", pace=0.5),
    Option("features", "--feature_size 8", pace=2),
    Option("transformer", "--hidden_size 192 --mlp_dim 384", pace=0.9),
)


def run_folder(name: str, option: Option, seed: int) -> str:
    """What ``--logdir`` calls a run."""
    return f"{name}/{option.name}_seed{seed}"


def epochs_and_dice(folder: str) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Each epoch's line in a run's record, and the Dice by organ of the last, ``mean`` among them."""
    lines = [json.loads(line) for line in (RUNS / folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return lines, {"mean": lines[-1]["dice"]["mean"], **lines[-1]["dice"]["organs"]}


def finished(folder: str, flags: Sequence[str]) -> bool:
    """Whether a run with these flags came to its end.

    Raises:
        InputError: if one with others did, which a new one would replace.
    """
    record, metrics = RUNS / folder / "args.json", RUNS / folder / "metrics.jsonl"
    if not record.exists() or not metrics.exists():
        return False
    asked, had = vars(parse_train(flags)), json.loads(record.read_text(encoding="utf-8"))
    if len(metrics.read_text(encoding="utf-8").splitlines()) < had["max_epochs"]:
        return False
    differing = [name for name in asked if _plain(name, had.get(name)) != _plain(name, asked[name])]
    if differing:
        raise InputError(
            f"{RUNS / folder}: holds a run with other flags ({', '.join(f'--{name}' for name in differing)}). Give "
            "another --logdir, or remove it."
        )
    return True


def _plain(name: str, value: Any) -> Any:
    return os.path.realpath(value) if name == "data_dir" else value


def train(args: argparse.Namespace, option: Option, seed: int) -> None:
    """Train one option with one seed, unless that is done.

    Raises:
        InputError: if a run with other flags is there.
        TrainingError: if ``main.py`` fails; its output says why.
    """
    epochs = max(1, round(args.epochs * option.pace))
    folder = run_folder(args.logdir, option, seed)
    flags = [RECIPE, *shlex.split(option.flags), f"--data_dir={args.data_dir}", "--fold=0", f"--seed={seed}"]
    flags += [f"--max_epochs={epochs}", f"--val_every={epochs}", "--workers=1", "--skip_data_check", "--device=cpu"]
    flags += [f"--logdir={folder}", "--overwrite"]
    if finished(folder, flags):
        return
    print(f"{folder}: {epochs} epochs", flush=True)
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    status = subprocess.run([sys.executable, "main.py", *flags], env=one_thread, stdout=subprocess.DEVNULL).returncode
    if status != 0:
        raise TrainingError(f"{folder}: main.py ended with status {status}. What is finished is kept.")


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
    return markdown.table(heads, rows)


def main(args: argparse.Namespace) -> None:
    """Train what isn't trained, and print the table."""
    options = [option for option in OPTIONS if args.options is None or option.name in args.options]
    with ThreadPoolExecutor(args.jobs) as pool:  # seed by seed, so that an interruption leaves whole rounds
        runs = [pool.submit(train, args, option, seed) for seed in args.seeds for option in options]
        try:
            for done in as_completed(runs):
                done.result()
        except BaseException:  # else those that wait would be trained before it gets out of here
            pool.shutdown(cancel_futures=True)
            raise
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
    with one_line_errors():
        main(parser.parse_args())

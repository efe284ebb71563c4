"""Measure the effect of each option of the hippocampus recipe: ``python -m benchmarks.ablation --data_dir DATA``.

Each network trains on fold 0 with one option changed, with several seeds. The runs are ordinary ones of ``main.py`` on
one thread each, ``runs/LOGDIR/OPTION_seedN``. Launched again, it skips finished runs. The table has the mean over seeds
and their standard deviation.
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
from utils.config.flags import FROM_THE_DATA, parse_train
from utils.config.parser import Parser, count
from utils.system.errors import InputError, TrainingError, one_line_errors
from utils.system.hardware import machine
from utils.training.run_folder import RUNS

RECIPE = "@recipes/hippocampus.args"


@dataclass(frozen=True)
class Option:
    """A variant of the recipe.

    Attributes:
        name: the name of its runs.
        flags: flags of ``main.py`` after the recipe's.
    """

    name: str
    flags: str = ""

    @property
    def title(self) -> str:
        """Its name in the table."""
        return f"`{self.flags}`" if self.flags else "the recipe"


OPTIONS = (
    Option("recipe"),
    # without something that the recipe has
    Option("patches", "--patch_size 16"),
    Option("supervision", "--no-deep_supervision"),
    Option("augmentation", "--augment published"),
    Option("rate", "--optim_lr 2e-3"),
    # with something that it lacks
    Option("ema", "--ema_decay 0.99"),
    Option("clip", "--clip_grad_norm 1"),
    Option("drop_path", "--drop_path_rate 0.1"),
    Option("vit_lr", "--vit_lr 1e-3"),
    # parts of Primus's encoder; SwiGLU's three layers of two thirds the width are as large as two
    Option("tokenizer", "--pos_embed residual"),
    Option("heads", "--num_heads 4"),
    Option("rotary", "--num_heads 4 --rotary"),
    Option("swiglu", "--swiglu --mlp_dim 128"),
    Option("attn_norm", "--attn_norm"),
    Option("layer_scale", "--layer_scale 0.1"),
)


def run_folder(name: str, option: Option, seed: int) -> str:
    """The run's ``--logdir``."""
    return f"{name}/{option.name}_seed{seed}"


def epochs_and_dice(folder: str) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The lines of a run's ``metrics.jsonl``, and the last Dice: ``mean`` and that of each organ."""
    lines = [json.loads(line) for line in (RUNS / folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return lines, {"mean": lines[-1]["dice"]["mean"], **lines[-1]["dice"]["organs"]}


def finished(folder: str, flags: Sequence[str]) -> bool:
    """Whether a run with these flags has finished.

    Raises:
        InputError: if a run with other flags has finished there, which a new one would replace.
    """
    record, metrics = RUNS / folder / "args.json", RUNS / folder / "metrics.jsonl"
    if not record.exists() or not metrics.exists():
        return False
    given, recorded = vars(parse_train(flags)), json.loads(record.read_text(encoding="utf-8"))
    # those that no flag gives are left to the data
    given |= {name: recorded.get(name) for name in FROM_THE_DATA if given[name] is None}
    if len(metrics.read_text(encoding="utf-8").splitlines()) < recorded["max_epochs"]:
        return False
    for values in (given, recorded):
        values["data_dir"] = os.path.realpath(values["data_dir"])
    differing = [f"--{name}" for name in given if recorded.get(name) != given[name]]
    if differing:
        raise InputError(
            f"{RUNS / folder}: holds a run with other flags ({', '.join(differing)}). Give another --logdir, or "
            "remove it."
        )
    return True


def train(args: argparse.Namespace, option: Option, seed: int) -> None:
    """Train one option with one seed, unless that run has finished.

    Raises:
        InputError: if a run with other flags is there.
        TrainingError: if ``main.py`` fails; its own output says why.
    """
    folder = run_folder(args.logdir, option, seed)
    flags = [RECIPE, *shlex.split(option.flags), f"--data_dir={args.data_dir}", "--fold=0", f"--seed={seed}"]
    flags += [f"--max_epochs={args.epochs}", f"--val_every={args.epochs}", f"--logdir={folder}", "--overwrite"]
    flags += ["--workers=1", "--skip_data_check", "--device=cpu"]
    if finished(folder, flags):
        return
    print(f"{folder}: {args.epochs} epochs", flush=True)
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    status = subprocess.run([sys.executable, "main.py", *flags], env=one_thread, stdout=subprocess.DEVNULL).returncode
    if status != 0:
        raise TrainingError(f"{folder}: main.py ended with status {status}. Launch again to go on.")


def table(args: argparse.Namespace, options: Sequence[Option]) -> str:
    """A Markdown table with a row for each option."""
    rows = []
    for option in options:
        runs = [epochs_and_dice(run_folder(args.logdir, option, seed)) for seed in args.seeds]
        organs = list(runs[0][1])
        means = [statistics.fmean(dice[organ] for _, dice in runs) for organ in organs]
        deviation = statistics.stdev(dice["mean"] for _, dice in runs) if len(runs) > 1 else float("nan")
        seconds = statistics.fmean(sum(line["seconds"] for line in lines) for lines, _ in runs)
        cells = [option.title, str(len(runs[0][0])), f"{seconds:.0f}", *(f"{mean:.4f}" for mean in means)]
        rows.append([*cells, f"{deviation:.4f}"])
    heads = ["option", "epochs", "seconds", *organs, "sd over seeds"]
    return markdown.table(heads, rows)


def main(args: argparse.Namespace) -> None:
    """Train what hasn't finished, and print the table."""
    options = [option for option in OPTIONS if args.options is None or option.name in args.options]
    with ThreadPoolExecutor(args.jobs) as pool:  # seed by seed, so that an interruption leaves complete seeds
        runs = [pool.submit(train, args, option, seed) for seed in args.seeds for option in options]
        try:
            for done in as_completed(runs):
                done.result()
        except BaseException:  # or the pool would train the waiting runs first
            pool.shutdown(cancel_futures=True)
            raise
    print(f"{machine(gpu=False)}, {args.jobs} runs at a time on one thread each, seeds {args.seeds}")
    print(table(args, options))


if __name__ == "__main__":
    parser = Parser(prog="python -m benchmarks.ablation", description="Train the recipe with one option changed.")
    parser.add_argument("--data_dir", required=True, help="the hippocampus scans with their lists")
    names = [option.name for option in OPTIONS]
    parser.add_argument("--options", nargs="+", choices=names, help=f"only these of {', '.join(names)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="a run of each option for each seed")
    parser.add_argument("--epochs", type=count, default=6, help="epochs of each run")
    parser.add_argument("--jobs", type=count, default=2, help="runs at a time")
    parser.add_argument("--logdir", default="ablation", help="folder of the runs, below runs/")
    with one_line_errors():
        main(parser.parse_args())

"""Plan a training for a folder of scans: ``python -m utils.plan --data_dir DIR``.

It reads every scan once, chooses all settings by stated rules (docs/planning.md), and writes into the folder
``plan.args``, a recipe with a reason for each flag, ``fingerprint.json``, what the scans are, and ``plan.html``, a page
that shows both. ``python main.py @DIR/plan.args`` then trains.
"""

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from networks.registry import find_architecture
from utils.checkpoints.description import preprocessing_from
from utils.config.messages import name_flags
from utils.config.parser import Parser, file_path, names, positive, whole
from utils.config.recipe import write_recipe
from utils.data.data_list import clean_labels, find_data_list, find_folds, read_data_list
from utils.distributed.launch import LaunchSettings, launch
from utils.distributed.process import Process
from utils.planning.choices import Value
from utils.planning.costs import faster_step
from utils.planning.data_lists import require_labels, say_unlisted, write_missing_lists
from utils.planning.facts import require_sizes
from utils.planning.fingerprint_file import FILE, FingerprintFile
from utils.planning.oddities import oddities
from utils.planning.page import write_page
from utils.planning.planner import Budget, Planner
from utils.system.errors import InputError, Stopped, one_line_errors
from utils.system.files import content_hash, fitting_name, remove, writable_folder
from utils.system.hardware import machine, memory_limit
from utils.system.text import one_line

RECIPE, PAGE = "plan.args", "plan.html"
GOES_ON = "what has been read and timed is kept, and the same command goes on from there"
MEMORY_SHARE = 0.8  # of the machine's, that a plan may take by default


def main(process: Process, args: argparse.Namespace, command: str) -> None:
    """Plan as the flags say, and write recipe, fingerprint and page."""
    data_dir = Path(args.data_dir)
    for setting in ("data_dir", "json_list", "model_name"):
        require_fit_for_a_recipe(setting, getattr(args, setting) or "")
    require_writable(data_dir)
    architecture = find_architecture(args.model_name)
    written = [] if args.json_list is not None else write_missing_lists(data_dir, args.fold, args.labels, process)
    with removed_after_faults(written):
        data = read_data_list(args.data_dir, args.json_list, args.fold)
        require_labels(data, args.labels)
        data.require("training", "validation")
        facts = FingerprintFile(data_dir)
        if facts.note is not None:
            process.say(f"note: {facts.note}")
        fingerprint = facts.fingerprint(data, args.workers, process, f"`data_dir` {data_dir}" if written else data.path)
    if written:
        scans = len(fingerprint.scans)
        process.say(f"{scans} labelled scans in {len(written)} folds: {written[0]} … {written[-1].name}")
    elif args.json_list is None:
        say_unlisted(data_dir, process)

    budget = budget_from_args(args, process)
    measure = partial(faster_step, architecture, timings=facts.timings, process=process)
    try:
        plan = Planner(fingerprint, architecture, budget, measure).plan()
    finally:  # times are worth keeping in any case
        facts.save(fingerprint)
    with removed_after_faults(written):
        require_sizes(data.training + data.validation, fingerprint.scans, preprocessing_from(plan.settings))
    plan = replace(plan, remarks=(*plan.remarks, *oddities(fingerprint)))

    recipe = data_dir / RECIPE
    flags = shlex.quote(f"@{recipe}")
    train = f"python main.py {flags}" + f" --fold {args.fold}" * (args.fold > 0)
    settings = settings_of_the_folder(args)
    trains = f"{train} trains fold {args.fold}"
    if has_folds(args):
        logdir = shlex.quote(f"{settings['logdir']}_folds")
        trains += f"; python -m utils.crossval {flags} --logdir={logdir} trains all folds"
    keep_edited(recipe, facts, process)
    head = [f"Written by {command}", f"{trains}."]
    write_recipe(recipe, plan, head, settings)
    facts.recipe = content_hash(recipe)
    facts.save(fingerprint)
    page_facts = {"Scans": str(data_dir), "Command": command, "Machine": machine(gpu=process.device.type == "cuda")}
    write_page(data_dir / PAGE, fingerprint, plan, data.training + data.validation, page_facts)
    for text in plan.remarks:
        process.say(f"note: {text}")
    for text in plan.questions:
        process.say(f"please check: {text}")
    process.say(f"{recipe} has the plan, {data_dir / PAGE} shows it, {facts.path} has what the scans are")
    process.say(f"train with: {train}")


@contextmanager
def removed_after_faults(written: Sequence[Path]) -> Iterator[None]:
    """Remove data lists if scans or labels have faults: they would outlast what has to be mended."""
    try:
        yield
    except InputError:
        for path in written:
            remove(path)
        raise


def has_folds(args: argparse.Namespace) -> bool:
    """Whether ``utils.crossval`` finds the folds that it needs."""
    try:
        find_folds(args.data_dir, args.json_list)
    except InputError:
        return False
    return True


def keep_edited(recipe: Path, facts: FingerprintFile, process: Process) -> None:
    """Keep a recipe that somebody has changed since it was written, under another name."""
    found = content_hash(recipe)
    if found is not None and found != facts.recipe:
        kept = recipe.with_suffix(f".{found}.args")
        recipe.rename(kept)
        process.say(f"note: {recipe} was changed by hand, and is kept as {kept}")


def require_writable(data_dir: Path) -> None:
    """Check that the plan can be written, before scans are read for it.

    Raises:
        InputError: if there is no such folder, or it takes no files.
    """
    if not data_dir.is_dir():
        raise InputError(f"`data_dir` {data_dir}: no such folder. Give the folder that holds the scans.")
    writable_folder(data_dir, "`data_dir`")
    for path in (data_dir / name for name in (RECIPE, PAGE, FILE)):
        if path.is_dir():
            raise InputError(f"{path}: is a folder, where a file of the plan is to be written. Remove it.")


def require_fit_for_a_recipe(setting: str, name: str) -> None:
    """Check that a text file can hold the name of a file.

    Raises:
        InputError: if it can't.
    """
    try:
        is_fit = "\r" not in name.encode().decode()  # whoever reads a text file takes it for the end of a line
    except UnicodeEncodeError:
        is_fit = False
    if not is_fit:
        raise InputError(
            f"`{setting}` {one_line(name)}: has a carriage return, or isn't UTF-8, so that no recipe can name it. "
            "Rename it."
        )


def settings_of_the_folder(args: argparse.Namespace) -> dict[str, Value]:
    """The settings that tell ``main.py`` where the scans are and where it may save, from whatever folder it runs in."""
    folder = os.path.abspath(args.data_dir)
    name = f"{os.path.basename(folder)}_{Path(args.model_name).stem}"  # of a file that defines a network, its stem
    settings: dict[str, Value] = {"data_dir": folder, "logdir": fitting_name(name)}
    if args.json_list is not None:
        settings["json_list"] = os.path.abspath(find_data_list(args.data_dir, args.json_list, args.fold))
    return settings


def budget_from_args(args: argparse.Namespace, process: Process) -> Budget:
    """What the training may take; without ``--memory`` most of what the machine has, whoever else uses it now."""
    here = MEMORY_SHARE * memory_limit()
    given = None if args.memory is None else args.memory * 1e9
    if process.device.type == "cuda":
        total = torch.cuda.get_device_properties(process.device).total_memory
        return Budget(args.hours, given or MEMORY_SHARE * total, here)
    return Budget(args.hours, given or here)


def label_names(text: str) -> tuple[str, ...]:
    """Names with commas between them, no two the same."""
    try:
        return clean_labels(names(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}: {text!r}") from error


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m utils.plan",
        description="Choose all settings for a folder of scans, and write a recipe that gives a reason for each.",
    )
    parser.add_argument(
        "--data_dir", type=file_path, required=True, help="folder of the scans; the plan is written there"
    )
    parser.add_argument(
        "--json_list", type=file_path, help="data list (default: dataset_FOLD.json, written if there is none)"
    )
    parser.add_argument("--fold", type=whole, default=0, help="the fold that trains and validates")
    parser.add_argument("--labels", type=label_names, help="names of the labels 0, 1, …, with commas between: "
                        "background,liver,… (default: those in dataset.json)")  # fmt: skip
    parser.add_argument("--hours", type=positive, help="how long main.py may take on this machine, with everything "
                        "(default: a fixed number of steps)")  # fmt: skip
    parser.add_argument("--memory", type=positive, metavar="GB", help="what training may take (default: four fifths "
                        "of what is there)")  # fmt: skip
    parser.add_argument(
        "--model_name", type=file_path, default="unetr", metavar="NAME", help="the network, as main.py knows it"
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda if there)")
    parser.add_argument("--workers", type=whole, default=8, help="threads that read scans")
    return parser.parse_args(argv)


def run(argv: Sequence[str] | None = None) -> None:
    """Run the command line; an error that the user can mend ends the program with one line."""
    with one_line_errors(name_flags):
        args = _parse(argv)
        command = shlex.join(["python", "-m", "utils.plan", *(sys.argv[1:] if argv is None else argv)])
        try:
            launch(partial(main, args=args, command=command), LaunchSettings(device=args.device), name_flags)
        except Stopped as stopped:
            name = signal.Signals(stopped.number).name
            raise Stopped(stopped.number, f"stopped by {name}; {GOES_ON}") from None


if __name__ == "__main__":
    run()

"""Plan a training for a folder of scans: ``python -m utils.plan --data_dir DIR``.

It reads every scan once, chooses all settings by stated rules (docs/planning.md), and writes into the folder
``plan.args``, a recipe with a reason for each flag, ``fingerprint.json``, what the scans are, and ``plan.html``, a page
that shows both. ``python main.py @DIR/plan.args`` then trains.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch

from networks.precision import choose_precision
from networks.registry import Architecture, NetworkConfig, find_architecture
from utils.config.messages import name_flags
from utils.config.parser import Parser, names, positive, whole
from utils.config.recipe import write_recipe
from utils.data.data_list import DataList, clean_labels, numbered_labels, read_data_list
from utils.data.folders import (
    DESCRIPTION,
    label_value_faults,
    label_values,
    list_paths,
    read_folder,
    write_data_lists,
)
from utils.distributed.launch import LaunchSettings, launch
from utils.distributed.process import Process
from utils.planning.choices import Value
from utils.planning.costs import StepCost, measure_step, number_formats
from utils.planning.fingerprint import Fingerprint, check_fingerprint
from utils.planning.fingerprint_file import FILE, FingerprintFile
from utils.planning.oddities import oddities
from utils.planning.page import write_page
from utils.planning.planner import Budget, Planner
from utils.system.errors import InputError, one_line_errors, size_text
from utils.system.files import text_hash, writable_folder
from utils.system.hardware import available_memory, machine

RECIPE, PAGE = "plan.args", "plan.html"
MOST_FOLDS = 5
MEMORY_SHARE = 0.8  # of what is free, that a plan may take by default


def main(process: Process, args: argparse.Namespace, command: str) -> None:
    """Plan as the flags say, and write recipe, fingerprint and page."""
    data_dir = Path(args.data_dir)
    require_writable(data_dir)
    architecture = find_architecture(args.model_name)
    data = data_lists(args, process)
    data.require("training", "validation")
    facts = FingerprintFile(data_dir)
    if facts.note is not None:
        process.say(f"note: {facts.note}")
    scans = facts.gather(data.training + data.validation, args.workers, process)
    numbered = numbered_labels(1 + max((value for scan in scans for value in scan.structures), default=1))
    fingerprint = Fingerprint(
        scans=scans,
        labels=numbered if data.labels is None else data.labels,
        labels_are_named=data.labels not in (None, numbered),
        modalities=data.modalities,
        training=len(data.training),
        validation=len(data.validation),
    )
    try:
        check_fingerprint(fingerprint)
    except InputError as error:
        raise InputError(f"{data.path}: {error}") from error

    budget = budget_from_args(args, process)
    measure = partial(timed, facts=facts, architecture=architecture, process=process)
    try:
        plan = Planner(fingerprint, architecture, budget, measure).plan()
    finally:  # times are worth keeping in any case
        facts.save(fingerprint)
    plan = replace(plan, remarks=(*plan.remarks, *oddities(fingerprint)))

    recipe = data_dir / RECIPE
    fixed: dict[str, Value] = {"data_dir": args.data_dir, "logdir": f"{data_dir.resolve().name}_{architecture.name}"}
    if args.json_list is not None:
        fixed["json_list"] = args.json_list
    fold = f" --fold {args.fold}" * (args.fold > 0)
    train = f"python main.py {shlex.quote(f'@{recipe}')}{fold}"
    head = [
        f"Written by {command}",
        f"{train} trains fold {args.fold}; python -m utils.crossval {shlex.quote(f'@{recipe}')} trains all folds.",
    ]
    write_recipe(recipe, plan, head, fixed)
    page_facts = {"Scans": str(data_dir), "Command": command, "Machine": machine(gpu=process.device.type == "cuda")}
    write_page(data_dir / PAGE, fingerprint, plan, data.training + data.validation, page_facts)
    for text in plan.remarks:
        process.say(f"note: {text}")
    for text in plan.questions:
        process.say(f"please check: {text}")
    process.say(f"{recipe} has the plan, {data_dir / PAGE} shows it, {facts.path} has what the scans are")
    process.say(f"train with: {train}")


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


def data_lists(args: argparse.Namespace, process: Process) -> DataList:
    """The data list of the fold; lists are written where there are none.

    Raises:
        InputError: if the folder holds no pairs of images and labels, labels and their names disagree, or a list can't
            be read.
    """
    data_dir = Path(args.data_dir)
    if args.json_list is None and not any(data_dir.glob("dataset_[0-9]*.json")):
        write_lists(data_dir, args.labels, process)
    data = read_data_list(args.data_dir, args.json_list, args.fold)
    if args.labels is not None and args.labels != data.labels:
        raise InputError(f'`labels`: {data.path} is there already. Give the names under "labels" there, or remove it.')
    return data


def write_lists(data_dir: Path, labels: tuple[str, ...] | None, process: Process) -> None:
    """Write data lists for a folder, unless the labels' names and values disagree.

    Raises:
        InputError: if they do, or the folder holds no pairs of images and labels.
    """
    notes: list[str] = []
    try:
        folder = read_folder(data_dir, notes, labels)
    finally:  # what was left out may be what is missing
        for note in notes:
            process.say(f"note: {note}")
    folds = min(MOST_FOLDS, max(2, len(folder.training)))
    list_paths(data_dir, folder, folds)  # before all labels are read
    values = label_values(data_dir, (entry["label"] for entry in folder.training))
    names = folder.labels or numbered_labels(max(1, *map(max, values.values())) + 1)
    if faults := label_value_faults(names, values):
        named_in = data_dir / DESCRIPTION if folder.labels is not None else data_dir
        raise InputError(f"{named_in if labels is None else '`labels`'}: {' '.join(faults)}")
    paths = write_data_lists(data_dir, folder, folds, 0, names)
    process.say(f"{len(folder.training)} labelled scans in {folds} folds: {paths[0]} … {paths[-1].name}")


def budget_from_args(args: argparse.Namespace, process: Process) -> Budget:
    """What the training may take; without ``--memory`` most of what the machine has free."""
    free = MEMORY_SHARE * available_memory()
    given = None if args.memory is None else args.memory * 1e9
    if process.device.type == "cuda":
        total = torch.cuda.get_device_properties(process.device).total_memory
        return Budget(args.hours, given or MEMORY_SHARE * total, free)
    return Budget(args.hours, given or free)


def timed(
    config: NetworkConfig, crops: int, lr: float, facts: FingerprintFile, architecture: Architecture, process: Process
) -> StepCost:
    """The cost of a step, with mixed precision or without, whichever is faster.

    It is measured once on each kind of machine, and kept in ``fingerprint.json``.
    """
    here = [machine(gpu=process.device.type == "cuda"), torch.get_num_threads(), torch.__version__]
    title = f"{architecture.name}, {crops} × {size_text(config.img_size)} voxels"
    costs = []
    for amp in number_formats(process.device, config):
        key = f"{title} {text_hash(json.dumps([here, asdict(config), architecture.sha256, amp]))[:12]}"
        if f"{key} step" not in facts.timings or f"{key} window" not in facts.timings:
            process.say(f"timing {title}, in {choose_precision(process.device, amp, config)} on {process.device}")
            cost = measure_step(architecture, config, crops, lr, process.device, amp)
            facts.timings[f"{key} step"], facts.timings[f"{key} window"] = cost.step_seconds, cost.window_seconds
        costs.append(StepCost(facts.timings[f"{key} step"], facts.timings[f"{key} window"], amp))
    return min(costs, key=lambda cost: cost.step_seconds)


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
    parser.add_argument("--data_dir", required=True, help="folder of the scans; the plan is written there")
    parser.add_argument("--json_list", help="data list (default: dataset_FOLD.json, written if there is none)")
    parser.add_argument("--fold", type=whole, default=0, help="the fold that trains and validates")
    parser.add_argument("--labels", type=label_names, help="names of the labels 0, 1, …, with commas between: "
                        "background,liver,… (default: those in dataset.json)")  # fmt: skip
    parser.add_argument("--hours", type=positive, help="how long main.py may take on this machine, with everything "
                        "(default: a fixed number of steps)")  # fmt: skip
    parser.add_argument("--memory", type=positive, metavar="GB", help="what training may take (default: most of what "
                        "is free)")  # fmt: skip
    parser.add_argument("--model_name", default="unetr", metavar="NAME", help="the network, as main.py knows it")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda if there)")
    parser.add_argument("--workers", type=whole, default=8, help="threads that read scans")
    return parser.parse_args(argv)


def run(argv: Sequence[str] | None = None) -> None:
    """Run the command line; an error that the user can mend ends the program with one line."""
    with one_line_errors(name_flags):
        args = _parse(argv)
        command = shlex.join(["python", "-m", "utils.plan", *(sys.argv[1:] if argv is None else argv)])
        launch(partial(main, args=args, command=command), LaunchSettings(device=args.device), name_flags)


if __name__ == "__main__":
    run()

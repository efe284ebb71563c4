"""Cross-validation: ``python -m utils.crossval`` trains all folds and scores each on the scans that it didn't see.

It takes the flags of ``main.py``. For each fold, ``main.py`` trains an ordinary run, ``runs/NAME/foldN``, and
``test.py`` segments and scores that fold's validation scans. All masks go to ``runs/NAME/out_of_fold``; in the end it
holds every scan's mask, each by the network that didn't see the scan. ``crossval.csv`` and ``crossval.json`` have means
and standard deviations over folds and over scans. Finished work is skipped, so the same command continues after an
interruption.

Then it finds out what helps at test time, and from what a mask's Dice can be predicted, on the scans that each network
didn't see (:mod:`utils.segmentation.fold_results`). ``postprocessing.json`` has what it found. It is written into the
networks, so that ``test.py`` does the same.

Scored are the weights after the last epoch, ``model_final.pt``. ``model.pt`` was chosen by its score on these very
scans, so its scores would be too high.
"""

import argparse
import hashlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import monai
import torch
from pydantic import TypeAdapter

import utils
from networks.registry import find_architecture
from utils.checkpoints.description import Description, refuse_contradictions
from utils.checkpoints.read import read_checkpoint
from utils.checkpoints.resume import is_annotated_otherwise, require_continuable
from utils.config.flags import flags_of_a_network, parse_crossval, parse_test, testing_flags, train_parser
from utils.config.messages import name_flags
from utils.config.settings import complete_flags, description_from_args, job_from_args
from utils.data.check import check_scans
from utils.data.data_list import DataList, find_folds, read_data_list
from utils.distributed.process import Process
from utils.io.scan import Scan
from utils.segmentation.after_folds import Records, ScannedFold
from utils.segmentation.fold_results import knows_mirrored_scans, postprocess, write_fold_tables
from utils.segmentation.job import SegmentationJob
from utils.segmentation.records import finished, require_replaceable
from utils.system.errors import DamagedError, InputError, Stopped, TrainingError, first_line, one_line_errors
from utils.system.files import file_state, read_json, writable_folder, write_json
from utils.system.hardware import machine
from utils.system.signals import StopRequest, forwarded_to, signal_at_parents_end
from utils.system.typed import STRICT
from utils.training.run_folder import LATEST, RUNS, claim_group, remove_run, training_seconds

Execute = Callable[[Sequence[str]], int]

REPOSITORY = Path(__file__).parent.parent
OUT_OF_FOLD, MIRRORED = "out_of_fold", "out_of_fold_mirrored"
MACHINES = "machines.json"
MACHINES_BY_FOLD = TypeAdapter(dict[str, list[str]], config=STRICT)
GOES_ON = "what is finished is kept, and the same command (without --overwrite) goes on from there"


@dataclass(frozen=True)
class Fold:
    """One fold.

    Attributes:
        number: its value of ``--fold``.
        folder: the folder of its run.
        training: the flags of ``main.py``.
        testing: the flags of ``test.py``, but for ``--output_dir``.
    """

    number: int
    data: DataList
    folder: Path
    training: list[str]
    testing: list[str]

    def __str__(self) -> str:
        return f"fold {self.number}"


def main(args: argparse.Namespace, flags: Sequence[str], command: str, execute: Execute, process: Process) -> None:
    """Train and score the folds, and write the tables.

    Args:
        flags: the flags of ``main.py`` that all folds share.
        command: the command line, for ``crossval.json``.
        execute: runs a command and returns its exit status.

    Raises:
        InputError: if a flag, a data list or an earlier run doesn't fit.
        TrainingError: if a fold's training ended early.
        Stopped: after a signal.
    """
    if "RANK" in os.environ:
        raise InputError(
            "utils.crossval starts main.py itself. Launch it without torchrun; --distributed takes all GPUs."
        )
    folds = plan(args, flags)
    for note in check_folds(folds, args.out_channels):
        process.say(f"note: {note}")
    planned = plan_network(folds, args)
    with claim_group(args.logdir) as folder:
        trained = {} if args.overwrite else {fold.number: find_trained(fold, args, planned) for fold in folds}
        untrained = [fold for fold in folds if trained.get(fold.number) is None]
        if not args.skip_data_check:  # all scans now, so that the last fold doesn't fail days later
            scans = [scan for fold in untrained for scan in fold.data.training + fold.data.validation]
            config, settings = planned.config, planned.preprocessing
            labels_in = None if folds[0].data.labels is None else folds[0].data.path
            cache = None if args.cache_dir is None else writable_folder(Path(args.cache_dir), "--cache_dir")
            check_scans(
                scans, config.in_channels, len(planned.labels), settings, args.workers, process,
                labels_in=labels_in, remembered_in=cache,
            )  # fmt: skip
        if args.overwrite:
            for fold in folds:
                remove_run(fold.folder)

        networks: list[Description] = []
        scanned: list[ScannedFold] = []
        for fold in folds:
            with _named_if_stopped(fold):
                network = trained.get(fold.number) or train(fold, args, planned, folder, execute, process)
                networks.append(network)
                results = score(fold, network, folder / OUT_OF_FOLD, execute, process)
                scanned.append(ScannedFold(fold.number, fold.folder, fold.data.validation, *results))
        write_fold_tables(scanned, folder, describe_run(folds, folder, args, planned, command), process)
        here = {fold.folder.name for fold in folds}
        if others := sorted(path.name for path in folder.glob("fold*") if path.name not in here):
            process.say(f"note: the tables leave out {', '.join(others)}; without --folds they are of all")
        process.say(f"{folder} holds crossval.csv and crossval.json, and {OUT_OF_FOLD} masks, tables and report.html")

        if not args.no_postprocessing:
            if knows_mirrored_scans(planned):
                for place, (fold, network) in enumerate(zip(folds, networks, strict=True)):
                    with _named_if_stopped(fold):
                        mirrored = score(fold, network, folder / MIRRORED, execute, process, "--tta")
                        scanned[place] = replace(scanned[place], mirrored=mirrored)
            postprocess(scanned, folder, process)


@contextmanager
def _named_if_stopped(fold: Fold) -> Iterator[None]:
    """Name the fold at which a signal stopped the work."""
    try:
        yield
    except Stopped as stopped:
        name = signal.Signals(stopped.number).name
        raise Stopped(stopped.number, f"stopped by {name} in {fold}; {GOES_ON}") from None


def plan(args: argparse.Namespace, flags: Sequence[str]) -> list[Fold]:
    """The folds that the flags ask for.

    Raises:
        InputError: if a data list is missing or can't be read.
    """
    group = RUNS / args.logdir
    folds = []
    for number in args.folds if args.folds is not None else find_folds(args.data_dir, args.json_list):
        data = read_data_list(args.data_dir, args.json_list, number)
        data.require("training", "validation")
        name = f"fold{number}"
        place = [f"--fold={number}", f"--logdir={args.logdir}/{name}"]
        run = [*place, "--save_checkpoint", "--resume", "--skip_data_check"]
        shared = testing_flags({**vars(args), "fold": number})
        weights = [f"--pretrained_dir={group / name}", f"--pretrained_model_name={LATEST}"]
        testing = [*shared, *weights, "--no_postprocessing"]
        folds.append(Fold(number, data, group / name, [*flags, *run], testing))
    return folds


def check_folds(folds: Sequence[Fold], out_channels: int | None) -> list[str]:
    """Check that no network is scored on a scan that it trained on, and no scan is scored twice.

    Args:
        out_channels: as given; by default each list tells.

    Returns:
        A note if some scans are scored by no fold.

    Raises:
        InputError: naming the first scan for which that doesn't hold, or the folds whose labels differ.
    """

    def names(fold: Fold) -> tuple[str, ...] | None:
        return fold.data.labels if out_channels is None else fold.data.label_names(out_channels)

    validates: dict[tuple[str, ...], Fold] = {}
    named: dict[str, Path] = {}
    first = folds[0]
    for fold in folds:
        if names(fold) != names(first):
            raise InputError(f"{fold.data.path}: names other labels than {first.data.path}. Mend one of them.")
        if (fold.data.regions, fold.data.output) != (first.data.regions, first.data.output):
            raise InputError(f"{fold.data.path}: names other regions than {first.data.path}. Mend one of them.")
        trains = set(map(_files, fold.data.training))
        for scan in fold.data.validation:
            if _files(scan) in trains:
                raise InputError(f"{fold.data.path}: {scan.name} trains and validates in {fold}. Mend the list.")
            if _files(scan) in validates:
                other = validates[_files(scan)]
                raise InputError(
                    f"{fold.data.path}: {scan.name} validates in {other} and in {fold}. Mend the lists, or "
                    "remove lists of an earlier deal."
                )
            if scan.name in named:
                raise InputError(
                    f"{fold.data.path}: {scan.image[0]} and {named[scan.name]} would both be called {scan.name}. "
                    "Rename one of them."
                )
            validates[_files(scan)] = fold
            named[scan.name] = scan.image[0]
    unseen = {_files(scan): scan.name for fold in folds for scan in fold.data.training if _files(scan) not in validates}
    if not unseen:
        return []
    some = ", ".join(sorted(unseen.values())[:3]) + ", …" * (len(unseen) > 3)
    numbers = ", ".join(str(fold.number) for fold in folds)
    return [f"none of folds {numbers} validates {len(unseen)} of the scans that train ({some})"]


def _files(scan: Scan) -> tuple[str, ...]:
    return tuple(os.path.realpath(path) for path in scan.image)


def plan_network(folds: Sequence[Fold], args: argparse.Namespace) -> Description:
    """What all folds train.

    Raises:
        InputError: if the flags can't make a network, or the folds' scans have different numbers of channels.
    """
    first, *others = (description_from_args(args, fold.data) for fold in folds)
    for fold, other in zip(folds[1:], others, strict=True):
        if other.config != first.config:
            raise InputError(
                f"{fold.data.path}: its scans have another number of channels ({other.config.in_channels}) than those "
                f"of {folds[0].data.path} ({first.config.in_channels}). Mend one of them, or give `in_channels`."
            )
    return first


def find_trained(fold: Fold, args: argparse.Namespace, planned: Description) -> Description | None:
    """The network of a fold whose training is complete, else None.

    Args:
        planned: what all folds train.

    Raises:
        InputError: if the fold's run so far had other flags, scans or labels.
    """
    latest = fold.folder / LATEST
    if not latest.exists():
        return None
    try:
        content = read_checkpoint(latest)
        description = require_continuable(latest, content)
    except DamagedError:
        return None  # main.py continues from the previous checkpoint
    remedy = "Give the flags of its run, another --logdir, or --overwrite to train all folds anew."
    state = content["resume"]
    architecture = description.architecture
    flags = complete_flags(vars(args), planned)
    given = {name: flags[name] for name in flags_of_a_network(architecture)}
    if args.resume_ckpt or args.resume_jit:
        given["pretrained_model_name"] = args.pretrained_model_name
    # flags that are newer than the run had their defaults
    recorded = {**vars(train_parser(architecture).parse_args([])), **state["flags"]}
    # a network's file may have moved since
    given["model_name"] = find_architecture(args.model_name).title
    recorded["model_name"] = architecture.title
    refuse_contradictions(latest, given, recorded, remedy)
    meaning = (description.labels, description.output)
    if state["scans"] != fold.data.files() or meaning != (planned.labels, planned.output):
        raise InputError(f"{latest}: its run had other scans or labels than {fold.data.path}. {remedy}")
    if is_annotated_otherwise(fold.data, state):
        raise InputError(f'{latest}: its run had another "ignore" or "not_annotated" than {fold.data.path}. {remedy}')
    if content["epoch"] > args.max_epochs:
        raise InputError(f"{latest}: has {content['epoch']} epochs, but --max_epochs is {args.max_epochs}. {remedy}")
    if content["epoch"] < args.max_epochs:
        return None
    if recorded["max_epochs"] > args.max_epochs:
        raise InputError(f"{latest}: stopped after {content['epoch']} of {recorded['max_epochs']} epochs. {remedy}")
    return replace(description, regions=planned.regions or description.regions)  # as test.py takes them


def train(
    fold: Fold, args: argparse.Namespace, planned: Description, group: Path, execute: Execute, process: Process
) -> Description:
    """Start or continue a fold's run; return the trained network's description.

    Raises:
        TrainingError: if the checkpoint of the last epoch is missing.
    """
    known = _machines(group)
    here = machine(gpu=args.device is None or args.device.startswith("cuda"))
    earlier = known.get(str(fold.number), []) if (fold.folder / LATEST).exists() else []
    write_json(group / MACHINES, {**known, str(fold.number): list(dict.fromkeys([*earlier, here]))})
    process.say(f"{fold}: main.py trains {fold.folder}")
    _require(fold, "main.py", fold.training, execute)
    description = find_trained(fold, args, planned)
    if description is None:
        raise TrainingError(f"{fold}: main.py ended, but {fold.folder} lacks the last epoch. Launch it again.")
    return description


def score(
    fold: Fold, description: Description, folder: Path, execute: Execute, process: Process, *flags: str
) -> tuple[SegmentationJob, Records]:
    """Segment and score a fold's validation scans, unless that is done; return the job and each scan's record.

    Args:
        folder: for the masks.
        flags: further ones of ``test.py``.

    Raises:
        InputError: if a mask would replace that of another scan or a changed one, or a record is missing afterwards.
    """
    testing = [*fold.testing, f"--output_dir={folder}", *flags]
    job = job_from_args(parse_test(testing), [file_state(fold.folder / LATEST)], [description])
    unfinished = [scan for scan in fold.data.validation if finished(scan, job) is None]
    for scan in unfinished:  # test.py would advise flags that crossval lacks
        require_replaceable(scan, job, f"Move {folder} elsewhere; the same command makes it anew.")
    if unfinished:
        process.say(" ".join([f"{fold}: test.py segments {len(fold.data.validation)} scans", *flags]))
        _require(fold, "test.py", testing, execute)
    else:
        process.say(f"{fold}: already trained and scored")
    records = {scan.name: finished(scan, job) for scan in fold.data.validation}
    missing = [name for name, record in records.items() if record is None]
    if missing:
        raise InputError(f"{fold}: {job.folder} lacks {', '.join(missing)}. Launch the same command again.")
    return job, {name: record for name, record in records.items() if record is not None}


def _require(fold: Fold, program: str, flags: Sequence[str], execute: Execute) -> None:
    """Run ``main.py`` or ``test.py``. If it fails, exit with its status."""
    status = execute([sys.executable, str(REPOSITORY / program), *flags])
    if status != 0:
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        print(f"error: {fold}: {program} {how}; {GOES_ON}", file=sys.stderr)
        raise SystemExit(status if status > 0 else 128 - status)


def describe_run(
    folds: Sequence[Fold], group: Path, args: argparse.Namespace, planned: Description, command: str
) -> dict[str, Any]:
    """What ``crossval.json`` says beside the scores."""
    known = _machines(group)
    flags = complete_flags(vars(args), planned)
    return {
        "command": command,
        "flags": {name: value for name, value in flags.items() if name not in ("fold", "logdir", "overwrite")},
        "made": datetime.now().astimezone().isoformat(sep=" ", timespec="minutes"),
        "versions": {
            "unetr": utils.__version__, "torch": str(torch.__version__), "monai": monai.__version__,
            "python": sys.version.split()[0],
        },
        "seed": args.seed,
        "epochs": args.max_epochs,
        "weights": f"{LATEST}, after the last epoch",
        "folds": [
            {
                "fold": fold.number,
                "data_list": str(fold.data.path),
                "sha256": hashlib.sha256(fold.data.path.read_bytes()).hexdigest(),
                "training": len(fold.data.training),
                "validation": len(fold.data.validation),
                # None if only the checkpoints were copied from the machine that trained the fold
                "seconds of training steps": training_seconds(fold.folder),
                "machines": known.get(str(fold.number)),  # None if main.py was launched by hand
            }
            for fold in folds
        ],
    }  # fmt: skip


def _machines(group: Path) -> dict[str, list[str]]:
    """The machines that trained each fold."""
    path = group / MACHINES
    try:
        return MACHINES_BY_FOLD.validate_python(read_json(path)) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: isn't what this program writes ({first_line(error)}). Remove it.") from error


def run_command(stop: StopRequest, command: Sequence[str]) -> int:
    """Run a command, pass signals on to it, and return its exit status.

    On Linux it gets SIGTERM if this process dies, even by ``kill -9``. A training that went on would keep its folder
    locked, so that the same command couldn't go on.

    Raises:
        Stopped: after a signal, once the command has ended.
    """
    child = None
    try:
        with stop.deferred():  # a signal between these two would leave a child that nobody waits for
            child = subprocess.Popen(command, preexec_fn=partial(signal_at_parents_end, signal.SIGTERM))
        stop.raise_if_requested()
        return child.wait()
    except Stopped as stopped:
        if child is not None:
            with forwarded_to([child.pid]):
                child.send_signal(stopped.number)
                child.wait()
        raise


def run(argv: Sequence[str] | None = None) -> None:
    """Run the command line; an error that the user can mend ends the program with one line."""
    stop = StopRequest()
    with one_line_errors(name_flags), stop.listening():
        args, flags = parse_crossval(argv)
        command = shlex.join(["python", "-m", "utils.crossval", *(sys.argv[1:] if argv is None else argv)])
        main(
            args, flags, command, partial(run_command, stop), Process(torch.device("cpu"), stop=stop, spell=name_flags)
        )


if __name__ == "__main__":
    run()

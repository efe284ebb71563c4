"""Train an encoder on scans without labels: ``python -m utils.pretrain --data_dir DATA --logdir NAME``.

The scans are those that train in a data list, labelled or not, and those under its ``"unlabelled"``; or all below the
folders of ``--input``. A masked autoencoder (:mod:`networks.masked_autoencoder`) hides three quarters of the patches
and learns to reconstruct them. ``main.py --vit_weights runs/NAME/model_final.pt`` then starts from its encoder.

Its run is recorded, goes on and is spread over processes as one of ``main.py`` is.
"""

import argparse
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from networks.layers import optimize_for_cpu
from networks.masked_autoencoder import autoencoder_of
from networks.precision import choose_precision
from networks.registry import find_architecture
from optimizers import averaged, build_optimizer, build_scheduler
from trainer import Learner, Plan, Run, run_training
from utils.checkpoints.description import Description, config_from, preprocessing_from
from utils.checkpoints.progress import steps_for
from utils.checkpoints.resume import StartSettings, initial_state
from utils.config.flags import idle_in_pretraining, parse_pretrain, run_flags, training_flags
from utils.config.messages import name_flags
from utils.config.settings import augmentation_from_args, complete_flags, launch_settings
from utils.data.check import check_scans
from utils.data.data_list import DataList, read_data_list, unlisted
from utils.data.loaders import Caching, training_loader, validation_loader
from utils.distributed.launch import launch
from utils.distributed.process import Process
from utils.evaluation.reconstruction import score_reconstructions
from utils.io.find_scans import find_scans
from utils.io.scan import Scan
from utils.system.errors import InputError, one_line_errors
from utils.system.files import writable_folder
from utils.training.blocks import recompute_activations
from utils.training.losses import reconstruction_loss
from utils.training.run_folder import LATEST, RunFolder, claim_folder, find_checkpoint

VALIDATED = 20  # of so many scans in folders one validates


def main(process: Process, args: argparse.Namespace) -> None:
    """Pre-train as the flags say, in this process of one or many."""
    torch.manual_seed(args.seed)
    claim = partial(claim_folder, args.logdir, overwrite=args.overwrite, resume=args.resume, checkpoint=None)
    folder = process.on_main_then_broadcast("claiming the run's folder", claim)
    data = scans_of_folders(args.input, args.in_channels) if args.input else scans_of_list(args)
    process.require_same(
        {**run_flags(vars(args)), str(data.path): data.content_hash()}, "Give every machine the same command and scans."
    )
    description = description_of_autoencoder(args, data)
    settings = description.preprocessing
    network = description.build()
    find = partial(find_checkpoint, folder, resume=args.resume, checkpoint=None, say=process.say)
    continued = process.on_main_then_broadcast("looking for a checkpoint", find)
    process.require_same_files([continued or folder / LATEST] if args.resume else [])
    flags = complete_flags(vars(args), description)
    start = initial_state(
        StartSettings(settings=flags, changeable=training_flags()), continued, description, data, network
    )
    cache = None if args.cache_dir is None else Path(args.cache_dir)
    if cache is not None:
        process.on_main_then_broadcast("making --cache_dir", partial(writable_folder, cache, "--cache_dir"))
    if not args.skip_data_check:
        scans, channels = data.training + data.validation, description.config.in_channels
        classes = len(description.labels)
        check = partial(check_scans, scans, channels, classes, settings, args.workers, process, remembered_in=cache)
        process.on_main_then_broadcast("checking scans", check)
    caching = Caching(in_memory=not args.use_normal_dataset, folder=args.cache_dir)
    warnings.filterwarnings("ignore", message=".*: all crops are centred on background")  # no scan has a label here
    train_loader = training_loader(
        data.training, settings, augmentation_from_args(args, description.labels), caching, process,
        batch_size=args.batch_size, crops_per_scan=args.crops_per_scan, workers=args.workers, seed=args.seed,
    )  # fmt: skip
    val_loader = validation_loader(data.validation, settings, caching, process, workers=args.workers)

    network = process.place(optimize_for_cpu(network))
    average = None if args.ema_decay is None else averaged(network, args.ema_decay)
    if args.activation_checkpointing:
        recompute_activations(network)
    precision = choose_precision(process.device, description.amp, description.config)
    scaler = precision.scaler()
    groups = [{"params": list(network.parameters())}]
    optimizer = build_optimizer(args.optim_name, groups, args.optim_lr, args.reg_weight, args.momentum, args.betas)
    start.restore(network, average, optimizer, scaler)
    progress = start.progress
    sizes = (len(data.training), process.world_size, args.batch_size, args.accumulate)
    scheduler = build_scheduler(
        args.lrschedule, optimizer, args.max_epochs, args.warmup_epochs,
        steps_for(*sizes), steps_done=progress.steps_done(*sizes),
    )  # fmt: skip
    learner = Learner(
        network, process.wrap(network), reconstruction_loss, optimizer, scheduler, scaler, precision,
        clip_grad_norm=args.clip_grad_norm, average=average,
    )  # fmt: skip
    validate = partial(
        score_reconstructions, loader=val_loader, padding=settings.padding, precision=precision, process=process
    )

    process.say(f"{len(data.training)} scans train and {len(data.validation)} validate, without labels")
    process.say(
        f"{description.network} with {sum(p.numel() for p in network.parameters()):,} parameters, {start.source}"
    )
    process.say(f"on {process.device} in {precision}, {process.world_size} process{'es' * (process.world_size > 1)}")
    idle = idle_in_pretraining(args)
    notes = [f"{', '.join(idle)} {'do' if len(idle) > 1 else 'does'} nothing without labels"] if idle else []
    for note in [*start.notes, *notes]:
        process.say(f"note: {note}")
    plan = Plan(args.max_epochs, args.val_every, True, args.save_every, args.seed, args.accumulate)
    record = partial(RunFolder, folder, description, flags, data.recorded(), progress, process.say)
    with record() if process.is_main else nullcontext() as run_folder:
        run_training(Run(plan, learner, train_loader, validate, process, folder / LATEST, run_folder), progress)
    process.say(f"done; main.py --vit_weights {folder / LATEST} starts from its encoder")


def scans_of_list(args: argparse.Namespace) -> DataList:
    """The scans of a data list that train and validate, and the unlabelled ones, all without their labels.

    Raises:
        InputError: if the list can't be read, or has no such scans.
    """
    data = read_data_list(args.data_dir, args.json_list, args.fold)
    data = replace(data, training=[*data.training, *data.unlabelled])
    data.require("training", "validation")
    return replace(data, training=without_labels(data.training), validation=without_labels(data.validation))


def scans_of_folders(paths: Sequence[str], in_channels: int | None) -> DataList:
    """All scans below some folders, of which every :data:`VALIDATED` th validates.

    Raises:
        InputError: if one can't be read, or there are fewer than two.
    """
    found = find_scans(paths, in_channels or 1)
    if found.faults:
        raise InputError("; ".join(found.faults.values()))
    if len(found.scans) < 2:
        raise InputError(f"`input` {', '.join(paths)}: holds one scan. Give two or more: one validates.")
    validation = found.scans[::VALIDATED]
    training = [scan for scan in found.scans if scan not in validation]
    return replace(unlisted(None), folder=Path.cwd(), training=training, validation=validation)


def without_labels(scans: Sequence[Scan]) -> list[Scan]:
    """The same scans, as if nobody had labelled them."""
    return [replace(scan, label=None, structures=(), not_annotated=()) for scan in scans]


def description_of_autoencoder(args: argparse.Namespace, data: DataList) -> Description:
    """What is trained, as its checkpoints will describe it.

    Raises:
        InputError: if the flags can't make a network, or its class declares no encoder.
    """
    preprocessing = preprocessing_from(vars(args))
    channels = args.in_channels if args.in_channels is not None else 1 if args.input else data.channels()
    classes = args.out_channels or data.classes()
    if args.input and classes is not None:
        classes = max(classes, 2)  # a recipe's one region, of which folders tell nothing
    settings = {**vars(args), "in_channels": channels, "out_channels": classes}
    config = config_from(autoencoder_of(find_architecture(args.model_name)), settings, preprocessing)
    labels = data.label_names(config.out_channels)
    flips = args.flips if args.RandFlipd_prob > 0 else "none"
    return Description(
        config, preprocessing, labels, amp=not args.noamp, flips=flips, regions=data.regions, output=data.output
    )


def run(argv: Sequence[str] | None = None) -> None:
    """Pre-train as a command line says; a mistake in it ends the program with one line."""
    with one_line_errors(name_flags):
        args = parse_pretrain(argv)
        launch(partial(main, args=args), launch_settings(args), name_flags)


if __name__ == "__main__":
    run()

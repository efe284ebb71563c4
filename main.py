"""Train a segmentation network. ``python main.py --help`` lists the flags, the README tells how to use them."""

from utils.config.help_text import show_help

if __name__ == "__main__":
    show_help("main")  # before torch is imported, which takes two seconds

import gc

gc.disable()  # while importing: looking for garbage in what stays takes 0.7 s, and as long again at the end

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch

from networks.layers import optimize_for_cpu
from networks.precision import choose_precision
from optimizers import averaged, build_optimizer, build_scheduler, parameter_groups
from trainer import Learner, Plan, Run, run_training
from utils.checkpoints.load import require_shapes
from utils.checkpoints.progress import steps_for
from utils.checkpoints.resume import initial_state
from utils.config.flags import parse_train, run_flags
from utils.config.messages import name_flags
from utils.config.notes import training_notes
from utils.config.settings import (
    augmentation_from_args,
    complete_flags,
    description_from_args,
    group_settings,
    launch_settings,
    start_settings,
)
from utils.data.check import check_scans
from utils.data.data_list import read_data_list
from utils.data.loaders import Caching, training_loader, validation_loader
from utils.distributed.launch import launch
from utils.distributed.process import Process
from utils.evaluation.validation import score_scans
from utils.inference.sliding_window import Predictor
from utils.system.errors import InputError, one_line_errors
from utils.system.files import writable_folder
from utils.system.text import one_line
from utils.training import cuda_graph
from utils.training.blocks import compile_blocks, recompute_activations
from utils.training.losses import build_loss
from utils.training.run_folder import LATEST, RunFolder, claim_folder, find_checkpoint

gc.freeze()
gc.enable()


def main(process: Process, args: argparse.Namespace) -> None:
    """Train as the flags say, in this process of one or many."""
    torch.manual_seed(args.seed)
    checkpoint = None if args.checkpoint is None else Path(args.checkpoint)
    claim = partial(claim_folder, args.logdir, overwrite=args.overwrite, resume=args.resume, checkpoint=checkpoint)
    folder = process.on_main_then_broadcast("claiming the run's folder", claim)
    data = read_data_list(args.data_dir, args.json_list, args.fold)
    process.require_same(
        {**run_flags(vars(args)), str(data.path): data.content_hash()}, "Give every machine the same command and list."
    )
    data.require("training", "validation")
    description = description_from_args(args, data)
    channels, classes = description.config.in_channels, len(description.labels)
    process.require_same({"`in_channels`": channels}, "Give every machine the same scans.")
    settings = description.preprocessing
    network = description.build()
    if description.architecture.file is not None:
        require_shapes(network, description, description.architecture.file)
    find = partial(find_checkpoint, folder, resume=args.resume, checkpoint=checkpoint, say=process.say)
    continued = process.on_main_then_broadcast("looking for a checkpoint", find)
    process.require_same_files(files_to_start_from(args, folder, continued))
    start = initial_state(start_settings(args, description), continued, description, data, network)
    cache = None if args.cache_dir is None else Path(args.cache_dir)
    if cache is not None:
        process.on_main_then_broadcast("making --cache_dir", partial(writable_folder, cache, "--cache_dir"))
    if not args.skip_data_check:
        scans = data.training + data.validation
        labels_in = None if data.labels is None else data.path
        check = partial(
            check_scans, scans, channels, classes, settings, args.workers, process,
            labels_in=labels_in, remembered_in=cache,
        )  # fmt: skip
        process.on_main_then_broadcast("checking scans", check)

    caching = Caching(in_memory=not args.use_normal_dataset, folder=args.cache_dir)
    augmentation = augmentation_from_args(args, description.labels)
    train_loader = training_loader(
        data.training, settings, augmentation, caching, process,
        batch_size=args.batch_size, crops_per_scan=args.crops_per_scan, workers=args.workers, seed=args.seed,
        classes=classes,
    )  # fmt: skip
    val_loader = validation_loader(data.validation, settings, caching, process, workers=args.workers, classes=classes)

    network = process.place(optimize_for_cpu(network))
    average = None if args.ema_decay is None else averaged(network, args.ema_decay)
    if args.compile:
        compile_blocks(network)
    if args.activation_checkpointing:  # around what is compiled, which is then computed twice as well
        recompute_activations(network)
    precision = choose_precision(process.device, description.amp, description.config)
    scaler = precision.scaler()
    groups = parameter_groups(network, group_settings(args, description.architecture))
    optimizer = build_optimizer(args.optim_name, groups, args.optim_lr, args.reg_weight, args.momentum, args.betas)
    start.restore(network, average, optimizer, scaler)
    progress = start.progress
    sizes = (len(data.training), process.world_size, args.batch_size, args.accumulate)
    scheduler = build_scheduler(
        args.lrschedule, optimizer, args.max_epochs, args.warmup_epochs,
        steps_for(*sizes), steps_done=progress.steps_done(*sizes),
    )  # fmt: skip
    obstacle = cuda_graph.obstacle(
        network, process, args.accumulate, compiled=args.compile, recomputed=args.activation_checkpointing
    )
    if args.cuda_graph and obstacle is not None:
        raise InputError(f"--cuda_graph: {obstacle}. Leave it out.")
    if obstacle is None and not args.nocuda_graph:
        crops = min(args.batch_size, len(data.training)) * args.crops_per_scan
        wrapped = cuda_graph.record(network, (crops, channels, *settings.roi), precision)
    else:
        wrapped = process.wrap(network)
    deep_supervision = getattr(description.config, "deep_supervision", False)
    loss_function = build_loss(args.loss, args.smooth_nr, args.smooth_dr, deep_supervision, description.output)
    learner = Learner(
        network, wrapped, loss_function, optimizer, scheduler, scaler, precision,
        compiling=args.compile, clip_grad_norm=args.clip_grad_norm, average=average,
    )  # fmt: skip
    predictor = Predictor(
        settings.roi, settings.padding, args.infer_overlap, args.sw_batch_size, process.device,
        output=description.output,
    )  # fmt: skip
    validate = partial(
        score_scans,
        loader=val_loader, predictor=predictor, precision=precision, labels=description.labels,
        spacing=settings.spacing, process=process, regions=description.regions,
    )  # fmt: skip

    process.say(f"{len(data.training)} scans train and {len(data.validation)} validate, as {data.path} says")
    process.say(f"they have {channels} channel{'s' * (channels > 1)} and {classes} classes, the background included")
    if not description.output.exclusive:
        process.say(f"trained are the regions {', '.join(map(one_line, description.output.names(description.labels)))}")
    process.say(
        f"{description.network} with {sum(p.numel() for p in network.parameters()):,} parameters, {start.source}"
    )
    process.say(f"on {process.device} in {precision}, {process.world_size} process{'es' * (process.world_size > 1)}")
    if process.device.type == "cuda" and obstacle is not None and not args.nocuda_graph:
        process.say(f"note: steps aren't recorded as a CUDA graph: {obstacle}")
    notes = training_notes(args, data, description.labels, augmentation, progress.epoch, len(train_loader))
    for note in [*start.notes, *notes]:
        process.say(f"note: {note}")
    plan = Plan(args.max_epochs, args.val_every, args.save_checkpoint, args.save_every, args.seed, args.accumulate)
    flags = complete_flags(vars(args), description)
    record = partial(RunFolder, folder, description, flags, data.recorded(), progress, process.say)
    with record() if process.is_main else nullcontext() as run_folder:
        run_training(Run(plan, learner, train_loader, validate, process, folder / LATEST, run_folder), progress)
    process.say(f"done; {folder} holds the run")


def files_to_start_from(args: argparse.Namespace, folder: Path, continued: Path | None) -> list[Path]:
    """The files that decide where a run begins, there or not."""
    if continued is not None:
        return [continued]
    files = [folder / LATEST] if args.resume else []
    if args.resume_ckpt or args.resume_jit:
        files.append(Path(args.pretrained_dir) / args.pretrained_model_name)
    if args.vit_weights is not None:
        files.append(Path(args.vit_weights))
    return files


def run(argv: Sequence[str] | None = None) -> None:
    """Train as a command line says; a mistake in it ends the program with one line."""
    with one_line_errors(name_flags):
        args = parse_train(argv)
        launch(partial(main, args=args), launch_settings(args), name_flags)


if __name__ == "__main__":
    run()

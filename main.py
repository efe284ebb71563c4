"""Train a segmentation network. ``python main.py --help`` lists the flags, the README tells how to use them."""

import gc

gc.disable()  # while importing: to look for garbage in what stays takes 0.4 s, and as long again at the end

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch

from networks.precision import choose_precision
from optimizers import averaged, build_optimizer, build_scheduler, parameter_groups
from trainer import Learner, Loss, Plan, Run, run_training
from utils.checkpoints.description import Description
from utils.checkpoints.progress import steps_for
from utils.checkpoints.resume import initial_state
from utils.config.flags import network_options, parse_train, preprocessing, run_flags
from utils.data.check import check_scans
from utils.data.crops import Augmentation
from utils.data.data_list import DataList, read_data_list
from utils.data.loaders import Caching, training_loader, validation_loader
from utils.data.mirroring import trained_mirrorings
from utils.distributed.launch import launch
from utils.distributed.process import Process
from utils.evaluation.validation import score_scans
from utils.inference.sliding_window import Predictor
from utils.system.errors import blame_flags, one_line_errors
from utils.system.files import writable_folder
from utils.training import cuda_graph
from utils.training.compilation import compile_blocks
from utils.training.losses import at_each_resolution, dice_ce
from utils.training.recomputation import recompute_activations
from utils.training.run_folder import LATEST, RunFolder, claim_folder, find_checkpoint

gc.freeze()
gc.enable()


def main(process: Process, args: argparse.Namespace) -> None:
    """Train as the flags say, in this process of one or many."""
    torch.manual_seed(args.seed)
    folder = process.main_first("claiming the run's folder", partial(claim_folder, args))
    data = read_data_list(args.data_dir, args.json_list, args.fold)
    process.require_same(
        {**run_flags(vars(args)), str(data.path): data.fingerprint()}, "Give every machine the same command and list."
    )
    data.require("training", "validation")
    description = Description(
        network=args.model_name,
        options=network_options(vars(args)),
        preprocessing=preprocessing(vars(args)),
        labels=data.label_names(args.out_channels),
        amp=not (args.noamp or args.resume_jit),
        flips=args.flips if args.RandFlipd_prob > 0 else "none",
    )
    settings = description.preprocessing
    with blame_flags():
        network = description.build()
    continued = process.main_first("looking for a checkpoint", partial(find_checkpoint, args, folder))
    process.require_same_files(files_to_start_from(args, folder, continued))
    start = initial_state(args, continued, description, data, network)
    if not args.skip_data_check:
        scans = data.training + data.validation
        check = partial(check_scans, scans, args.in_channels, args.out_channels, settings, args.workers, process)
        process.main_first("checking scans", check)

    if args.cache_dir is not None:
        process.main_first("making --cache_dir", partial(writable_folder, Path(args.cache_dir), "--cache_dir"))
    caching = Caching(in_memory=not args.use_normal_dataset, folder=args.cache_dir)
    augmentation = Augmentation(
        flip=args.RandFlipd_prob,
        rotate90=args.RandRotate90d_prob,
        scale_intensity=args.RandScaleIntensityd_prob,
        shift_intensity=args.RandShiftIntensityd_prob,
        mirroring=trained_mirrorings(args.flips, description.labels)[-1],  # along all axes that may be
        strong=args.augment == "strong",
    )
    train_loader = training_loader(
        data.training, settings, augmentation, caching, process,
        batch_size=args.batch_size, crops_per_scan=args.crops_per_scan, workers=args.workers, seed=args.seed,
    )  # fmt: skip
    val_loader = validation_loader(data.validation, settings, caching, process, workers=args.workers)

    network = process.place(network)
    average = None if args.ema_decay is None else averaged(network, args.ema_decay)
    if args.compile:
        compile_blocks(network)
    if args.activation_checkpointing:  # around what is compiled, which is then computed twice as well
        recompute_activations(network)
    precision = choose_precision(process.device, description.amp, settings.roi, description.network)
    scaler = precision.scaler()
    groups = parameter_groups(network, args.vit_lr, args.vit_reg_weight)
    optimizer = build_optimizer(args.optim_name, groups, args.optim_lr, args.reg_weight, args.momentum)
    start.restore(network, average, optimizer, scaler)
    progress = start.progress
    sizes = (len(data.training), process.world_size, args.batch_size, args.accumulate)
    scheduler = build_scheduler(
        args.lrschedule, optimizer, args.max_epochs, args.warmup_epochs,
        steps_for(*sizes), steps_done=progress.steps_done(*sizes),
    )  # fmt: skip
    otherwise = args.compile, args.activation_checkpointing, args.nocuda_graph
    if cuda_graph.can_record(process, args.accumulate, args.model_name, *otherwise):
        crops = min(args.batch_size, len(data.training)) * args.crops_per_scan
        wrapped = cuda_graph.record(network, (crops, args.in_channels, *settings.roi), precision)
    else:
        wrapped = process.wrap(network)
    loss_function: Loss = partial(dice_ce, smooth_nr=args.smooth_nr, smooth_dr=args.smooth_dr)
    if args.deep_supervision:
        loss_function = at_each_resolution(loss_function)
    learner = Learner(
        network, wrapped, loss_function, optimizer, scheduler, scaler, precision,
        compiling=args.compile, clip_grad_norm=args.clip_grad_norm, average=average,
    )  # fmt: skip
    predictor = Predictor(settings.roi, settings.padding, args.infer_overlap, args.sw_batch_size, process.device)
    validate = partial(
        score_scans,
        loader=val_loader, predictor=predictor, precision=precision, labels=description.labels, process=process,
    )  # fmt: skip

    process.say(f"{len(data.training)} scans train and {len(data.validation)} validate, as {data.path} says")
    process.say(f"{args.model_name} with {sum(p.numel() for p in network.parameters()):,} parameters, {start.source}")
    process.say(f"on {process.device} in {precision}, {process.world_size} process{'es' * (process.world_size > 1)}")
    for note in [*start.notes, *notes(args, data, augmentation, progress.epoch, len(train_loader))]:
        process.say(f"note: {note}")
    plan = Plan(args.max_epochs, args.val_every, args.save_checkpoint, args.save_every, args.seed, args.accumulate)
    record = RunFolder(folder, description, vars(args), data.files(), progress) if process.is_main else nullcontext()
    with record as run_folder:
        run_training(Run(plan, learner, train_loader, validate, process, folder / LATEST, run_folder), progress)
    process.say(f"done; {folder} holds the run")


def files_to_start_from(args: argparse.Namespace, folder: Path, continued: Path | None) -> list[Path]:
    """The files that decide where a run begins, there or not."""
    if args.resume_ckpt or args.resume_jit:
        return [Path(args.pretrained_dir) / args.pretrained_model_name]
    files = [continued or folder / LATEST] if args.resume or args.checkpoint else []
    return files if args.vit_weights is None or continued is not None else [*files, Path(args.vit_weights)]


def notes(
    args: argparse.Namespace, data: DataList, augmentation: Augmentation, epochs_done: int, batches: int
) -> list[str]:
    """What is allowed and may still surprise."""
    fixed = [axis for number, axis in enumerate("xyz") if number not in augmentation.mirroring.axes]
    both = sum(scan in data.training for scan in data.validation)
    anatomical = args.flips == "anatomical" and args.RandFlipd_prob > 0
    sided = ", ".join(augmentation.mirroring.pairs(data.label_names(args.out_channels)))
    remarks = {
        "weights from TorchScript train in float32, without mixed precision": args.resume_jit and not args.noamp,
        "no weights will be kept; --save_checkpoint keeps them": not args.save_checkpoint,
        f'--fold {args.fold} changes nothing, since no entry of {data.path} has a "fold"': data.ignores(args.fold),
        f"{both} of the validation scans train as well; their Dice tells nothing about other scans": both > 0,
        f"the run ends within its {args.warmup_epochs} epochs of warm-up; --warmup_epochs shortens them": (
            args.lrschedule == "warmup_cosine" and args.warmup_epochs >= args.max_epochs
        ),
        "crops are not rotated by 90°, since --roi_x and --roi_y differ": (
            args.roi_x != args.roi_y and args.RandRotate90d_prob > 0
        ),
        f"crops are not flipped along {' and '.join(fixed)}, which would mix labels up": (
            bool(fixed) and args.RandFlipd_prob > 0
        ),
        "crops are not rotated by 90°, which would mix labels up": (
            not augmentation.mirroring.allows_turns and args.RandRotate90d_prob > 0
        ),
        f"{data.path} names no labels, so that --flips anatomical can't tell left from right": (
            anatomical and data.labels is None
        ),
        f"flips along x swap {sided}": anatomical and bool(sided),
        "no label has a side by its name, and flips along x swap none": (
            anatomical and data.labels is not None and 0 in augmentation.mirroring.axes and not sided
        ),
        "--flips anatomical does nothing, since --RandFlipd_prob is 0": (
            args.flips == "anatomical" and args.RandFlipd_prob == 0
        ),
        f"an epoch is one step, since it has fewer batches of each process ({batches}) than --accumulate": (
            args.accumulate > batches
        ),
        f"nothing is left to train: {epochs_done} epochs are done; a higher --max_epochs goes on": (
            epochs_done >= args.max_epochs
        ),
    }
    return [remark for remark, holds in remarks.items() if holds]


def run(argv: Sequence[str] | None = None) -> None:
    """Train as a command line says; a mistake in it ends the program with one line."""
    with one_line_errors():
        launch(main, parse_train(argv))


if __name__ == "__main__":
    run()

"""Every flag of ``main.py``, ``test.py`` and ``utils.crossval``, declared once; the checks that need no file."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from networks import NETWORKS
from networks.unetr import NORMS, PATCH_SIZE, PATCH_SIZES
from networks.vit import POSITION_EMBEDDINGS
from optimizers import OPTIMIZERS, SCHEDULES
from utils.config.parser import Parser, _names, _number, count, not_negative, positive, probability, real, whole
from utils.data.preprocessing import INTENSITIES, Preprocessing

ENGINES = ("torch", "openvino", "auto")


AUGMENTATIONS = ("published", "strong")


FLIPS = ("published", "anatomical")


SPLITS = ("validation", "test", "training")


FAST_OVERLAP = 0.25


FILES = "@FILE stands for the flags in a file, as recipes/ has some for main.py."


def _run_name(text: str) -> str:
    """What a run is called: a folder of its own, below runs/ or by an absolute path."""
    if os.path.normpath(text).split(os.sep)[0] in (".", ".."):
        raise argparse.ArgumentTypeError(f"must be a name below runs/, not {text!r}")
    return text


def _flag_name(text: str) -> str:
    """The name of a flag that :func:`recorded_flags` or the data list stands for, with dashes before it or without."""
    name = text.lstrip("-")
    names = [*(name for name in recorded_flags() if name != "model_name"), "json_list"]
    if name not in names:
        raise argparse.ArgumentTypeError(f"must be among {', '.join(names)}, not {text!r}")
    return name


def _add_data_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument("--data_dir", default="/dataset/dataset0/", help="folder that holds the scans")
    group.add_argument(
        "--json_list", help="data list, below --data_dir or a path of its own (default: dataset_FOLD.json)"
    )
    group.add_argument("--fold", type=whole, default=0, help="which fold validates")
    group.add_argument(
        "--workers",
        type=whole,
        default=8,
        help="threads or processes that load data, at most one per core; 0 prepares nothing ahead",
    )


def _add_network_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("network (flags with names behind them are for these networks alone)")
    group.add_argument("--model_name", choices=tuple(NETWORKS), default="unetr", help="which network")
    group.add_argument("--in_channels", type=count, default=1, help="channels of a scan")
    group.add_argument("--out_channels", type=count, default=14, help="classes, the background included")
    group.add_argument(
        "--feature_size",
        type=count,
        default=16,
        help="channels at full resolution; by default 24 for swin_unetr, 32 for segresnet and dynunet",
    )
    group.add_argument("--hidden_size", type=count, default=768, help="length of a token (unetr)")
    group.add_argument("--mlp_dim", type=count, default=3072, help="width of the transformer's perceptron (unetr)")
    group.add_argument("--num_heads", type=count, default=12, help="attention heads (unetr)")
    group.add_argument("--pos_embed", choices=POSITION_EMBEDDINGS, default="perceptron", help="patch embedding (unetr)")
    group.add_argument(
        "--norm_name", choices=tuple(NORMS), default="instance", help="the decoder's normalisation (unetr)"
    )
    boolean = argparse.BooleanOptionalAction
    group.add_argument("--conv_block", action=boolean, default=True, help="convolutions in the skip paths (unetr)")
    group.add_argument("--res_block", action=boolean, default=True, help="residual connections in the blocks (unetr)")
    group.add_argument(
        "--dropout_rate", type=probability, default=0.0, help="dropout in the transformer (unetr, swin_unetr)"
    )
    group.add_argument(
        "--patch_size", type=int, choices=PATCH_SIZES, default=PATCH_SIZE, help="edge of a patch in voxels (unetr)"
    )
    group.add_argument(
        "--drop_path_rate",
        type=probability,
        default=0.0,
        help="how often training leaves out a branch of the last transformer block; less often in earlier ones (unetr)",
    )
    group.add_argument(
        "--deep_supervision",
        action=boolean,
        default=False,
        help="also train the decoder's coarser resolutions by the labels (unetr)",
    )


def _add_preprocessing_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("preprocessing")
    group.add_argument(
        "--intensity",
        choices=INTENSITIES,
        default="ct",
        help="ct: the window a_min … a_max becomes b_min … b_max; zscore: mean 0 and deviation 1 per scan (MR)",
    )
    group.add_argument("--a_min", type=real, default=-175.0, help="lower end of the CT window")
    group.add_argument("--a_max", type=real, default=250.0, help="upper end of the CT window")
    group.add_argument("--b_min", type=real, default=0.0, help="what a_min becomes")
    group.add_argument("--b_max", type=real, default=1.0, help="what a_max becomes")
    group.add_argument("--space_x", type=positive, default=1.5, help="voxel size in mm, left to right")
    group.add_argument("--space_y", type=positive, default=1.5, help="voxel size in mm, back to front")
    group.add_argument("--space_z", type=positive, default=2.0, help="voxel size in mm, feet to head")
    group.add_argument("--roi_x", type=count, default=96, help="window in voxels, left to right")
    group.add_argument("--roi_y", type=count, default=96, help="window in voxels, back to front")
    group.add_argument("--roi_z", type=count, default=96, help="window in voxels, feet to head")


def _add_augmentation_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("augmentation (probabilities; testing augments nothing)")
    group.add_argument("--RandFlipd_prob", type=probability, default=0.2, help="flip, along each axis")
    group.add_argument("--RandRotate90d_prob", type=probability, default=0.2, help="rotate by 90° in the x-y plane")
    group.add_argument("--RandScaleIntensityd_prob", type=probability, default=0.1, help="scale by 0.9 … 1.1")
    group.add_argument("--RandShiftIntensityd_prob", type=probability, default=0.1, help="shift by -0.1 … 0.1")


def _add_flips_flag(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("flips")
    group.add_argument(
        "--flips",
        choices=FLIPS,
        default="published",
        help="published: along every axis, labels as they are; anatomical: left and right labels swap along x, and an "
        "axis that mixes labels up, or a rotation, is left out",
    )


def _add_augment_flag(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("further augmentation")
    group.add_argument(
        "--augment",
        choices=AUGMENTATIONS,
        default="published",
        help="published: the changes above alone; strong: also rotations up to 15° and scaling before them, and noise, "
        "blur, brightness, contrast, low resolution and gamma about a crop's mean after them, as nnU-Net has them",
    )


def _add_optimization_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("optimization")
    group.add_argument("--max_epochs", type=count, default=5000, help="passes over the training scans")
    group.add_argument("--batch_size", type=count, default=1, help="scans in a step, of each process")
    group.add_argument("--accumulate", type=count, default=1, help="batches of each process in a step")
    group.add_argument("--optim_name", choices=tuple(OPTIMIZERS), default="adamw", help="optimizer")
    group.add_argument("--optim_lr", type=positive, default=1e-4, help="highest learning rate")
    group.add_argument("--reg_weight", type=not_negative, default=1e-5, help="weight decay")
    group.add_argument(
        "--vit_lr", type=positive, help="highest learning rate of the transformer (default: that of --optim_lr)"
    )
    group.add_argument(
        "--vit_reg_weight", type=not_negative, help="weight decay of the transformer (default: that of --reg_weight)"
    )
    group.add_argument("--momentum", type=probability, default=0.99, help="momentum of sgd")
    group.add_argument("--lrschedule", choices=tuple(SCHEDULES), default="warmup_cosine", help="schedule")
    group.add_argument("--warmup_epochs", type=whole, default=50, help="epochs of rising learning rate")
    group.add_argument(
        "--clip_grad_norm", type=positive, help="longest gradient of all weights together; longer ones are shortened"
    )
    group.add_argument(
        "--ema_decay",
        type=_number(float, 0, 1, above=True),
        help="keep a running average of the weights: this share of it, such as 0.999, and the rest of each step",
    )
    group.add_argument("--smooth_nr", type=not_negative, default=0.0, help="added to the Dice loss's numerator")
    group.add_argument("--smooth_dr", type=not_negative, default=1e-6, help="added to its denominator")
    group.add_argument("--crops_per_scan", type=count, default=4, help="crops taken from a scan at each use")
    group.add_argument("--seed", type=_number(int, 0, 2**63 - 1), default=0, help="seed of all that is random")


def _add_inference_flags(parser: argparse.ArgumentParser, fast: bool = False) -> None:
    group = parser.add_argument_group("sliding windows")
    overlap = group.add_mutually_exclusive_group()
    overlap.add_argument("--infer_overlap", type=probability, default=0.5, help="how far windows overlap, 0 to below 1")
    if fast:
        overlap.add_argument(
            "--fast", action="store_const", dest="infer_overlap", const=FAST_OVERLAP,
            help=f"--infer_overlap {FAST_OVERLAP}: fewer windows, at some cost in Dice",
        )  # fmt: skip
    group.add_argument("--sw_batch_size", type=count, default=1, help="windows in one forward pass")


def _add_mirroring_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument_group("mirroring").add_argument(
        "--tta",
        action="store_true",
        help="also predict windows mirrored as crops were flipped in training, and average",
    )


def _add_engine_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument_group("engine").add_argument(
        "--engine",
        choices=ENGINES,
        default="torch",
        help="what computes the forward passes; openvino: on CPUs alone, a package of its own; auto: the faster one",
    )


def _add_machine_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("machine")
    group.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda if there is one, else cpu)")
    group.add_argument("--noamp", action="store_true", help="float32 throughout, no mixed precision")
    group.add_argument("--distributed", action="store_true", help="one process per GPU, or as torchrun starts them")
    group.add_argument(
        "--dist_timeout",
        type=positive,
        default=1800.0,
        help="seconds for which processes wait for one that makes no headway",
    )


def _add_several_machines_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("several machines without torchrun")
    group.add_argument("--world_size", type=count, default=1, help="number of machines")
    group.add_argument("--rank", type=whole, default=0, help="number of this machine")
    group.add_argument("--dist-url", default="tcp://127.0.0.1:23456", help="address of machine 0")
    group.add_argument(
        "--dist-backend", choices=("nccl", "gloo"), default="nccl", help="backend on GPUs; on CPUs it is gloo"
    )


def _add_weights_flags(parser: argparse.ArgumentParser, several: bool = False) -> None:
    group = parser.add_argument_group("weights")
    group.add_argument("--pretrained_dir", default="./pretrained_models/", help="folder of the weights")
    name = "UNETR_model_best_acc.pth"
    if several:
        group.add_argument(
            "--pretrained_model_name",
            nargs="+",
            default=[name],
            help="files of the weights, or patterns such as 'fold*.pt', whose probabilities are averaged",
        )
    else:
        group.add_argument("--pretrained_model_name", default=name, help="file of the weights")


def _add_result_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("results")
    group.add_argument("--output_dir", help="where masks, tables and report go (default: PRETRAINED_DIR/scores)")
    group.add_argument("--overwrite", action="store_true", help="do scans again that are finished")
    group.add_argument("--organs", type=_names, help="only these, with commas between: spleen,liver (default: all)")
    group.add_argument("--one_file_per_organ", action="store_true", help="also write each organ as a mask of its own")
    group.add_argument("--save_probabilities", action="store_true", help="also write the classes' probabilities")
    group.add_argument(
        "--largest_component", type=_names, help="organs of which only the largest component stays in the mask, or all"
    )
    group.add_argument("--nsd_mm", type=positive, default=2.0, help="tolerance of the normalised surface Dice in mm")


def train_parser() -> Parser:
    """The parser of ``main.py``."""
    parser = Parser(description="Train a network on the scans of a data list.", epilog=FILES)
    _add_data_flags(parser)
    check = parser.add_argument_group("check")
    check.add_argument("--skip_data_check", action="store_true", help="start without reading every file first")
    data = parser.add_argument_group("caching")
    data.add_argument("--cache_dir", help="keep preprocessed scans on disk between runs, in this folder")
    data.add_argument("--use_normal_dataset", action="store_true", help="keep no preprocessed scan in memory")
    _add_preprocessing_flags(parser)
    _add_augmentation_flags(parser)
    _add_flips_flag(parser)
    _add_augment_flag(parser)

    _add_network_flags(parser)

    _add_weights_flags(parser)
    start = parser.add_argument_group("start")
    start.add_argument("--resume_ckpt", action="store_true", help="start from the weights file (a state dict)")
    start.add_argument("--resume_jit", action="store_true", help="start from the weights file (TorchScript)")
    start.add_argument(
        "--adapt_weights", action="store_true", help="fit them to other classes, another window or other channels"
    )
    start.add_argument(
        "--vit_weights", metavar="FILE", help="start the encoder from a ViT that was trained elsewhere, the rest anew"
    )
    start.add_argument("--checkpoint", help="continue the run that saved this file (model_final.pt)")
    start.add_argument(
        "--resume",
        action="store_true",
        help="continue the run of this name where it stopped; begin it (or --checkpoint) where there is none",
    )
    start.add_argument(
        "--allow_change",
        nargs="+",
        default=[],
        metavar="FLAG",
        type=_flag_name,
        help="flags that may differ from the run that goes on, such as a_min a_max; json_list stands for the data list",
    )

    _add_optimization_flags(parser)

    run = parser.add_argument_group("run")
    run.add_argument("--logdir", type=_run_name, default="test", help="name of the run: its folder below runs/")
    run.add_argument("--overwrite", action="store_true", help="replace a run of that name")
    run.add_argument("--save_checkpoint", action="store_true", help="keep the weights: model.pt and model_final.pt")
    run.add_argument("--save_every", type=count, default=10, help="epochs between saves of model_final.pt")
    run.add_argument("--val_every", type=count, default=100, help="epochs between validations; the last always is one")
    _add_inference_flags(parser)

    cost = parser.add_argument_group("memory and time")
    cost.add_argument(
        "--activation_checkpointing",
        action="store_true",
        help="compute activations again in the backward pass instead of keeping them: less memory, longer steps",
    )
    cost.add_argument(
        "--compile", action="store_true", help="train with torch.compile: a long first step, then perhaps shorter ones"
    )
    cost.add_argument(
        "--nocuda_graph", action="store_true", help="launch a step's kernels one by one, as with several GPUs"
    )
    _add_machine_flags(parser)
    _add_several_machines_flags(parser)
    return parser


def _add_folds_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument_group("cross-validation").add_argument(
        "--folds", type=whole, nargs="+", metavar="FOLD", help="folds to train and score (default: all that are listed)"
    )


def crossval_parser() -> Parser:
    """The parser of ``utils.crossval``: that of ``main.py``, and the folds in place of one. It saves in any case."""
    parser = train_parser()
    parser.prog = "python -m utils.crossval"
    parser.description = "Train every fold of a task, score each on the scans that it didn't see, and sum up."
    _add_folds_flag(parser)
    for action in parser._actions:
        # two always hold, and of the others one is an error
        if action.dest in ("save_checkpoint", "resume", "fold", "checkpoint", "allow_change", "world_size", "rank"):
            action.help = argparse.SUPPRESS
    parser.set_defaults(fold=None, save_checkpoint=True)
    return parser


def test_parser() -> Parser:
    """The parser of ``test.py``. What a checkpoint knows is None here unless it was given."""
    parser = Parser(
        description="Segment scans with a trained network, and score them where they have labels.",
        epilog="A checkpoint tells its network and preprocessing. Their flags are for weights that tell nothing. "
        + FILES,
    )
    _add_weights_flags(parser, several=True)
    parser.add_argument_group("format").add_argument(
        "--saved_checkpoint",
        choices=("ckpt", "torchscript", "any"),
        default="ckpt",
        help="what the weights files are; any: some are checkpoints and some TorchScript",
    )
    scans = parser.add_argument_group("scans")
    scans.add_argument(
        "--input", nargs="+", metavar="PATH", help="files, DICOM folders, or folders of both, instead of a data list"
    )
    _add_data_flags(parser)
    scans.add_argument("--split", choices=SPLITS, default="validation", help="part of the data list to segment")
    _add_result_flags(parser)
    _add_inference_flags(parser, fast=True)
    _add_mirroring_flag(parser)
    _add_engine_flag(parser)
    _add_machine_flags(parser)
    _add_network_flags(parser)
    _add_preprocessing_flags(parser)
    _add_augmentation_flags(parser)
    parser.set_defaults(**dict.fromkeys(recorded_flags()), **_defaults(_add_several_machines_flags))
    return parser


def parse_train(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check the flags of ``main.py``; a fault ends the program with one line."""
    parser = train_parser()
    args = _parsed(parser, parser.with_files(sys.argv[1:] if argv is None else argv))
    faults = _train_faults(args)
    if faults:
        parser.error("; ".join(faults))
    return args


def parse_crossval(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Parse and check the flags of ``utils.crossval``; a fault ends the program with one line.

    Returns:
        The flags by name, and as a command line those that ``main.py`` gets for every fold.
    """
    parser = crossval_parser()
    given = parser.with_files(sys.argv[1:] if argv is None else argv)
    args = _parsed(parser, given)
    faults = _train_faults(args)
    if args.fold is not None:
        faults.append("--fold is for one run of main.py; give --folds, or leave it out for all of them")
    if args.folds is not None and len(set(args.folds)) < len(args.folds):
        faults.append("--folds names a fold twice")
    if args.checkpoint or args.allow_change:
        faults.append("--checkpoint and --allow_change are for one run of main.py; every fold goes on by itself")
    if args.world_size > 1:
        faults.append("--world_size: folds are trained on one machine; train them with main.py on several")
    if faults:
        parser.error("; ".join(faults))
    own = Parser(add_help=False)
    _add_folds_flag(own)
    own.add_argument("--overwrite", action="store_true")
    return args, own.parse_known_args(given)[1]


def _parsed(parser: Parser, flags: Sequence[str]) -> argparse.Namespace:
    """The flags by name, those that were not given with the defaults of the network that is named."""
    parser.set_defaults(**recorded_flags(parser.parse_args(flags).model_name))
    return parser.parse_args(flags)


def _train_faults(args: argparse.Namespace) -> list[str]:
    """What is wrong with the flags of ``main.py``."""
    faults = _faults(vars(args))
    ways = ("resume_ckpt", "resume_jit", "vit_weights", "checkpoint")
    starts = [f"--{name}" for name in ways if getattr(args, name)]
    if len(starts) > 1:
        faults.append(f"{' and '.join(starts)} exclude each other")
    of_a_vit = [f"--{name}" for name in ("vit_lr", "vit_reg_weight", "vit_weights") if getattr(args, name) is not None]
    if of_a_vit and args.model_name != "unetr":
        faults.append(f"{' and '.join(of_a_vit)}: {args.model_name} has no ViT; leave it out")
    goes_on = "--checkpoint" if args.checkpoint else "--resume" if args.resume else None
    if goes_on and args.overwrite:
        faults.append(f"{goes_on} continues a run and --overwrite deletes one; give one of them")
    if args.resume and not args.save_checkpoint:
        faults.append("--resume needs --save_checkpoint, without which a run leaves nothing to continue from")
    if args.adapt_weights and not (args.resume_ckpt or args.resume_jit):
        faults.append("--adapt_weights needs weights to adapt: --resume_ckpt or --resume_jit")
    if args.allow_change and not goes_on:
        faults.append("--allow_change is for a run that goes on: --checkpoint or --resume")
    if args.world_size > 1 and not args.distributed:
        faults.append("--world_size is for --distributed; give both, or neither")
    if args.rank >= args.world_size:
        faults.append(f"--rank {args.rank} must be below --world_size {args.world_size}: machines count from 0")
    if args.overwrite and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0:
        faults.append("--overwrite would delete the run at each of torchrun's --max-restarts; give --resume")
    return faults


def parse_test(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check the flags of ``test.py``; a fault ends the program with one line."""
    parser = test_parser()
    args, unknown = parser.parse_known_args(parser.with_files(sys.argv[1:] if argv is None else argv))
    if unknown:
        flags = {word.partition("=")[0] for word in unknown if word.startswith("--")}
        of_training = flags and flags <= train_parser()._option_string_actions.keys()
        advice = "; main.py takes them, and what test.py needs of them is in the weights: leave them out"
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{advice if of_training else ''}")
    faults = _faults(vars(args))
    if args.input is not None and args.output_dir is None:
        faults.append("--input needs --output_dir, where the masks go")
    if faults:
        parser.error("; ".join(faults))
    return args


def _faults(flags: Mapping[str, Any]) -> list[str]:
    """What is wrong between flags; those that are left to a checkpoint (None) are not judged."""
    given = {name: value for name, value in flags.items() if value is not None}
    faults = network_faults(given)
    for low, high in (("a_min", "a_max"), ("b_min", "b_max")):
        if {low, high} <= given.keys() and given[high] <= given[low]:
            faults.append(f"--{high} {given[high]:g} must be above --{low} {given[low]:g}")
    if given.get("out_channels") == 1:
        faults.append("--out_channels must be at least 2: the background and one label")
    if {"hidden_size", "num_heads"} <= given.keys() and given["hidden_size"] % given["num_heads"]:
        faults.append(f"--num_heads {given['num_heads']} must divide --hidden_size {given['hidden_size']}")
    for name in ("infer_overlap", "dropout_rate", "drop_path_rate", "ema_decay"):
        if given.get(name) == 1:
            faults.append(f"--{name} must be below 1")
    return faults


def network_faults(given: Mapping[str, Any]) -> list[str]:
    """What is wrong with flags for the network that they name; nothing where they name none.

    Args:
        given: the flags by name, without those that were not given.
    """
    network = given.get("model_name")
    if network is None:
        return []
    foreign = [name for name, default in recorded_flags(network).items() if default is None and name in given]
    faults = [f"--{name} is not for {network}; leave it out" for name in foreign]
    rois, spaces = ([f"{name}_{axis}" for axis in "xyz"] for name in ("roi", "space"))
    if {*rois, *spaces} <= given.keys():
        window = [given[name] for name in rois]
        grid = {"img_size": window, "spacing": [given[name] for name in spaces]}
        try:
            steps = NETWORKS[network].steps_of({**NETWORKS[network].defaults, **given, **grid})
        except ValueError as error:
            return [*faults, f"{', '.join(f'--{name} {given[name]}' for name in rois)}: {error}"]
        faults += [
            f"--{name} must be a multiple of {step}, not {edge} ({network})"
            for name, edge, step in zip(rois, window, steps, strict=True)
            if edge % step
        ]
    return faults


def network_options(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The network's own keywords, from the flags by name."""
    settings = preprocessing(flags)
    of_the_window = {"img_size": settings.roi, "spacing": settings.spacing}
    return {
        name: of_the_window[name] if name in of_the_window else flags[name]
        for name in NETWORKS[flags["model_name"]].keywords
    }


def preprocessing(flags: Mapping[str, Any]) -> Preprocessing:
    """The preprocessing, from the flags by name."""
    return Preprocessing(
        intensity=flags["intensity"],
        a_min=flags["a_min"],
        a_max=flags["a_max"],
        b_min=flags["b_min"],
        b_max=flags["b_max"],
        spacing=(flags["space_x"], flags["space_y"], flags["space_z"]),
        roi=(flags["roi_x"], flags["roi_y"], flags["roi_z"]),
    )


def as_flags(network: str, options: Mapping[str, Any], settings: Preprocessing) -> dict[str, Any]:
    """The flags that :func:`network_options` and :func:`preprocessing` were made from."""
    own = {name: value for name, value in options.items() if name not in ("img_size", "spacing")}
    return {"model_name": network, **own, **preprocessing_flags(settings)}


def preprocessing_flags(settings: Preprocessing) -> dict[str, Any]:
    """The flags that :func:`preprocessing` was made from."""
    flags = {name: getattr(settings, name) for name in ("intensity", "a_min", "a_max", "b_min", "b_max")}
    flags |= {f"space_{axis}": value for axis, value in zip("xyz", settings.spacing, strict=True)}
    flags |= {f"roi_{axis}": value for axis, value in zip("xyz", settings.roi, strict=True)}
    return flags


def training_flags() -> tuple[str, ...]:
    """The flags that a run may change where it goes on, and that change what comes out of it."""
    augmentation = (_add_augmentation_flags, _add_flips_flag, _add_augment_flag)
    return (*_defaults(*augmentation, _add_optimization_flags, _add_inference_flags), "noamp")


def flags_of_a_network() -> tuple[str, ...]:
    """The flags that networks have to share to be of one cross-validation; their epochs may grow."""
    apart = {"max_epochs", *_defaults(_add_inference_flags)}
    starts = ("resume_ckpt", "resume_jit", "adapt_weights", "vit_weights")
    return ("model_name", *starts, *recorded_flags(), *(name for name in training_flags() if name not in apart))


def testing_flags(flags: Mapping[str, Any]) -> list[str]:
    """As a command line, the flags of ``main.py`` that ``test.py`` has too and no checkpoint knows."""
    shared = _defaults(_add_data_flags, _add_inference_flags, _add_machine_flags)
    given = {name: flags[name] for name in shared if flags[name] is not None and flags[name] is not False}
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items()]


def run_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """By name, the flags that have to be the same for all processes of a run."""
    of_a_machine = {*_defaults(_add_data_flags), "cache_dir", "pretrained_dir", "device", "rank", "dist_url"}
    return {f"--{name}": value for name, value in flags.items() if name not in of_a_machine}


def recorded_flags(network: str = "unetr") -> dict[str, Any]:
    """The flags that a checkpoint records, with the defaults that hold for weights that record nothing.

    A flag that is no keyword of the network is None.
    """
    made, flags = NETWORKS[network], _defaults(_add_network_flags)
    own = {name: default for name, default in flags.items() if name in made.keywords} | made.defaults
    return {**dict.fromkeys(flags), **own, "model_name": network, **_defaults(_add_preprocessing_flags)}


def _defaults(*groups: Callable[[argparse.ArgumentParser], None]) -> dict[str, Any]:
    """What the flags of some groups are where none is given."""
    parser = Parser()
    for add in groups:
        add(parser)
    return vars(parser.parse_args([]))

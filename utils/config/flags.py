"""Every flag of ``main.py``, ``test.py`` and ``utils.crossval``, declared once, and the checks that need no file.

A network's flags are the fields of its config (:mod:`networks.registry`).
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from networks import NETWORKS
from networks.masked_autoencoder import autoencoder_of
from networks.registry import Architecture, find_architecture, value_fault
from optimizers import BETAS, OPTIMIZERS, SCHEDULES
from utils.checkpoints.description import config_from, preprocessing_from
from utils.checkpoints.load import FORMATS
from utils.config.messages import name_flags
from utils.config.parser import (
    Extend,
    Parser,
    count,
    file_path,
    names,
    not_negative,
    number,
    parse_number,
    positive,
    probability,
    rare,
    real,
    whole,
)
from utils.data.mirroring import SIDES_ONLY
from utils.data.preprocessing import INTENSITIES
from utils.evaluation.metrics import TOLERANCE_MM
from utils.inference.engines import ENGINES
from utils.inference.sliding_window import OVERLAP
from utils.system.errors import InputError
from utils.system.files import LONGEST_NAME
from utils.training.losses import LOSSES

AUGMENTATIONS = ("published", "strong")
FLIPS = ("published", "anatomical", SIDES_ONLY)
SPLITS = ("validation", "test", "training")
FAST_OVERLAP = 0.25
# flags of every network, and what they are where they aren't given
FROM_THE_DATA = {
    "in_channels": "as in the scans",
    "out_channels": "as listed",
}
FILES = "@FILE stands for the flags in a file; recipes/ has some for main.py."
# what differs in pre-training: the schedule of Primus, with the crops of one scan in a step
PRETRAINING = {
    "optim_lr": 3e-4, "reg_weight": 0.05, "betas": [0.9, 0.98], "clip_grad_norm": 1.0, "lrschedule": "warmup_poly",
    "max_epochs": 1000,
}  # fmt: skip
# where the published weights belong, and their name
WEIGHTS_FOLDER, WEIGHTS_FILE = "./pretrained_models/", "UNETR_model_best_acc.pth"
Groups = Callable[[argparse.ArgumentParser], None]
FindFaults = Callable[[argparse.Namespace, Architecture], list[str]]


def _run_name(text: str) -> str:
    """What a run is called: a folder of its own, below runs/ or by an absolute path."""
    parts = os.path.normpath(text).split(os.sep)
    if parts[0] in (".", ".."):
        raise argparse.ArgumentTypeError(f"must be a name below runs/, not {text!r}")
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in parts):
        raise argparse.ArgumentTypeError(f"must have no part of more than {LONGEST_NAME} bytes")
    return os.path.expanduser(text)


def _add_list_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument("--data_dir", type=file_path, default="/dataset/dataset0/", help="folder of the scans")
    group.add_argument("--json_list", type=file_path, help="data list (default: dataset_FOLD.json)")
    group.add_argument("--fold", type=whole, default=0, help="which fold validates")
    rare(group.add_argument("--workers", type=whole, default=8, help="threads or processes that load data, at most one "
                            "per core; 0 prepares nothing ahead"))  # fmt: skip


def _add_caching_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("check and caching")
    rare(group.add_argument("--skip_data_check", action="store_true", help="start without reading every file first"))
    rare(group.add_argument("--cache_dir", type=file_path, help="keep preprocessed scans in this folder between runs"))
    rare(group.add_argument("--use_normal_dataset", action="store_true", help="keep no preprocessed scan in memory"))


def _add_model_flag(parser: argparse.ArgumentParser, default: str | None = "unetr") -> None:
    known = ", ".join(sorted(NETWORKS, key=lambda name: name != "unetr"))
    parser.add_argument_group("network").add_argument(
        "--model_name", type=file_path, default=default, metavar="NAME", help=f"{known}, or a .py file"
    )


def _add_network_flags(
    parser: argparse.ArgumentParser, architecture: Architecture | None, from_checkpoint: bool = False
) -> None:
    """The flags of a network; those of others are known and hidden.

    Args:
        from_checkpoint: whether a checkpoint says which network it is: then the flags of all are shown, none has a
            default, and values are checked where the network is built.
    """
    group = parser.add_argument_group("network")
    taken: set[str] = set(parser._option_string_actions)
    for one in dict.fromkeys([*([architecture] if architecture else []), *NETWORKS.values()]):
        own = one is architecture and not from_checkpoint
        for name, field in one.flags.items():
            if f"--{name}" in taken:
                continue
            taken.add(f"--{name}")
            kind, rules = one.types[name], field.metadata
            shown = rules.get("help") if own or from_checkpoint else argparse.SUPPRESS
            options: dict[str, Any] = {"default": field.default if own else None, "help": shown}
            if own and name in FROM_THE_DATA:
                options = {"default": None, "help": f"{shown or name} (default: {FROM_THE_DATA[name]})"}
            if kind is bool:
                action = group.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, **options)
            else:
                if rules.get("choices") and shown != argparse.SUPPRESS:
                    options["help"] = f"{options['help']}: {', '.join(map(str, rules['choices']))}"
                checks = {} if from_checkpoint else rules  # networks have different ones for a flag of the same name
                action = group.add_argument(f"--{name}", type=_setting_type(kind, checks), metavar="X", **options)
            if rules.get("rare") or not own:
                rare(action)


def _setting_type(kind: type, rules: Mapping[str, Any]) -> Callable[[str], Any]:
    """A type for argparse, with the checks of a config's field."""

    def parse(text: str) -> Any:
        value = text if kind is str else parse_number(kind, text)
        fault = value_fault(value, rules)
        if fault is not None:
            raise argparse.ArgumentTypeError(fault)
        return value

    return parse


def _add_preprocessing_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("preprocessing")
    group.add_argument("--intensity", choices=INTENSITIES, default="ct", help="ct (the window below) or zscore (MR)")
    group.add_argument("--a_min", type=real, default=-175.0, metavar="HU", help="lower end of the CT window")
    group.add_argument("--a_max", type=real, default=250.0, metavar="HU", help="upper end of the CT window")
    rare(group.add_argument("--b_min", type=real, default=0.0, metavar="X", help="what a_min becomes"))
    rare(group.add_argument("--b_max", type=real, default=1.0, metavar="X", help="what a_max becomes"))
    group.add_argument("--space_x", type=positive, default=1.5, metavar="MM", help="voxel size, left to right")
    group.add_argument("--space_y", type=positive, default=1.5, metavar="MM", help="voxel size, back to front")
    group.add_argument("--space_z", type=positive, default=2.0, metavar="MM", help="voxel size, feet to head")
    group.add_argument("--roi_x", type=count, default=96, metavar="N", help="window in voxels, left to right")
    group.add_argument("--roi_y", type=count, default=96, metavar="N", help="window in voxels, back to front")
    group.add_argument("--roi_z", type=count, default=96, metavar="N", help="window in voxels, feet to head")


def _add_augmentation_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("augmentation")
    chance: dict[str, Any] = {"type": probability, "metavar": "P"}
    group.add_argument("--RandFlipd_prob", default=0.2, help="how often to flip each axis", **chance)
    group.add_argument("--RandRotate90d_prob", default=0.2, help="how often to rotate by 90°", **chance)
    rare(
        group.add_argument("--RandScaleIntensityd_prob", default=0.1, help="how often to scale by 0.9 … 1.1", **chance)
    )
    rare(
        group.add_argument("--RandShiftIntensityd_prob", default=0.1, help="how often to shift by -0.1 … 0.1", **chance)
    )


def _add_further_augmentation_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("augmentation")
    group.add_argument(
        "--flips",
        choices=FLIPS,
        default="published",
        help="anatomical: sides swap; left_right: along x alone",
    )
    group.add_argument("--augment", choices=AUGMENTATIONS, default="published", help="strong: as in nnU-Net")


def _add_optimization_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument("--max_epochs", type=count, default=5000, metavar="N", help="passes over the training scans")
    group.add_argument("--batch_size", type=count, default=1, metavar="N", help="scans in a step, of each process")
    group.add_argument("--crops_per_scan", type=count, default=4, metavar="N", help="crops of a scan at each use")
    rare(group.add_argument("--accumulate", type=count, default=1, metavar="N", help="batches of a process in a step"))
    group.add_argument("--optim_lr", type=positive, default=1e-4, metavar="LR", help="highest learning rate")
    group.add_argument("--warmup_epochs", type=whole, default=50, metavar="N", help="epochs of rising learning rate")
    rare(group.add_argument("--lrschedule", choices=tuple(SCHEDULES), default="warmup_cosine",
                            help=", ".join(SCHEDULES)))  # fmt: skip
    rare(group.add_argument("--optim_name", choices=tuple(OPTIMIZERS), default="adamw", help=", ".join(OPTIMIZERS)))
    rare(group.add_argument("--reg_weight", type=not_negative, default=1e-5, metavar="X", help="weight decay"))
    rare(group.add_argument("--momentum", type=probability, default=0.99, metavar="X", help="momentum of sgd"))
    rare(group.add_argument("--betas", type=number(float, 0, 1, below=True), nargs=2, default=list(BETAS), metavar="X",
                            help="shares that adamw and adam keep of the averages of gradients and of their "
                            "squares"))  # fmt: skip
    rare(group.add_argument("--clip_grad_norm", type=positive, metavar="X",
                            help="longest gradient of all weights together; longer ones are shortened"))  # fmt: skip
    rare(group.add_argument("--ema_decay", type=number(float, 0, 1, above=True, below=True), metavar="X",
                            help="validate and save a running average of the weights: this share of it, such as 0.999, "
                            "and the rest of each step"))  # fmt: skip
    group.add_argument("--seed", type=number(int, 0, 2**63 - 1), default=0, metavar="N", help="seed of all randomness")


def _add_loss_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument("--loss", choices=tuple(LOSSES), default="dice_ce", help=", ".join(LOSSES))
    rare(group.add_argument("--smooth_nr", type=not_negative, default=0.0, metavar="X",
                            help="added to the Dice loss's numerator"))  # fmt: skip
    rare(group.add_argument("--smooth_dr", type=not_negative, default=1e-6, metavar="X",
                            help="added to the Dice loss's denominator"))  # fmt: skip


def _group_flags(architecture: Architecture) -> dict[str, str]:
    """By flag, the group of the network's parameters that it gives a rate or a decay of its own."""
    return {f"{group}_{what}": group for group in architecture.groups for what in ("lr", "reg_weight")}


def _add_group_flags(parser: argparse.ArgumentParser, architecture: Architecture) -> None:
    """A learning rate and a weight decay for each group of parameters that the network declares."""
    group = parser.add_argument_group("training")
    for name, part in _group_flags(architecture).items():
        what, kind, of = ("highest learning rate", positive, "optim_lr")
        if name.endswith("_reg_weight"):
            what, kind, of = ("weight decay", not_negative, "reg_weight")
        rare(group.add_argument(f"--{name}", type=kind, metavar="X", help=f"{what} of its {part} (default: --{of})"))
    for one in NETWORKS.values():  # the flags of other networks are known, and refused
        for name in _group_flags(one):
            if f"--{name}" not in parser._option_string_actions:
                group.add_argument(f"--{name}", type=not_negative, help=argparse.SUPPRESS)


def _add_window_flags(parser: argparse.ArgumentParser, fast: bool = False) -> None:
    group = parser.add_argument_group("sliding windows")
    overlap = group.add_mutually_exclusive_group()
    action = overlap.add_argument("--infer_overlap", type=number(float, 0, 1, below=True), default=OVERLAP, metavar="P",
                                  help="share of a window that its neighbour repeats, 0 to below 1")  # fmt: skip
    if fast:
        overlap.add_argument("--fast", action="store_const", dest="infer_overlap", const=FAST_OVERLAP,
                             help=f"--infer_overlap {FAST_OVERLAP}: fewer windows, at some cost in Dice")  # fmt: skip
    else:
        rare(action)
    rare(group.add_argument("--sw_batch_size", type=count, default=1, metavar="N", help="windows in a forward pass"))


def _add_machine_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("machine")
    group.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda if there)")
    group.add_argument("--noamp", action="store_true", help="float32 throughout, no mixed precision")
    group.add_argument("--distributed", action="store_true", help="a process per GPU, or as torchrun starts them")
    rare(group.add_argument("--dist_timeout", type=positive, default=1800.0, metavar="S",
                            help="seconds for which processes wait for one that makes no headway"))  # fmt: skip


def _add_several_machines_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("several machines without torchrun")
    rare(group.add_argument("--world_size", type=count, default=1, metavar="N", help="number of machines"))
    rare(group.add_argument("--rank", type=whole, default=0, metavar="N", help="number of this machine"))
    rare(group.add_argument("--dist-url", default="tcp://127.0.0.1:23456", help="address of machine 0"))
    rare(group.add_argument("--dist-backend", choices=("nccl", "gloo"), default="nccl",
                            help="nccl or gloo, on GPUs; on CPUs it is gloo"))  # fmt: skip


def _add_start_flags(parser: argparse.ArgumentParser, architecture: Architecture) -> None:
    group = parser.add_argument_group("weights to start from")
    group.add_argument("--resume_ckpt", action="store_true", help="start from the weights file (a state dict)")
    group.add_argument("--pretrained_dir", type=file_path, default=WEIGHTS_FOLDER, metavar="DIR", help="folder")
    group.add_argument("--pretrained_model_name", default=WEIGHTS_FILE, metavar="F", help="file")
    group.add_argument("--adapt_weights", action="store_true", help="fit them to other classes, channels or windows")
    rare(group.add_argument("--resume_jit", action="store_true", help="start from the weights file (TorchScript)"))
    rare(group.add_argument("--vit_weights", type=file_path, metavar="FILE",
                            help="start the encoder from a ViT that was trained elsewhere, the rest anew"))  # fmt: skip
    rare(group.add_argument("--checkpoint", type=file_path, metavar="FILE",
                            help="continue the run that saved this model_final.pt"))  # fmt: skip
    allowed = [*architecture.flags, *_defaults(_add_preprocessing_flags), "json_list"]

    def setting(text: str) -> str:
        name = text.lstrip("-")
        if name not in allowed:
            raise argparse.ArgumentTypeError(f"must be among {', '.join(allowed)}, not {text!r}")
        return name

    rare(group.add_argument("--allow_change", nargs="+", action=Extend, default=[], metavar="FLAG", type=setting,
                            help="flags that may differ from the run that goes on, such as a_min a_max; json_list "
                            "stands for the data list"))  # fmt: skip


def _add_run_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("run")
    group.add_argument("--logdir", type=_run_name, default="test", metavar="NAME", help="the run's folder below runs/")
    group.add_argument("--save_checkpoint", action="store_true", help="keep the weights: model.pt and model_final.pt")
    group.add_argument("--resume", action="store_true", help="go on where this run stopped, or begin it")
    group.add_argument("--overwrite", action="store_true", help="replace a run of this name")
    group.add_argument("--val_every", type=count, default=100, metavar="N", help="epochs between validations")
    rare(group.add_argument("--save_every", type=count, default=10, metavar="N",
                            help="epochs between saves of model_final.pt"))  # fmt: skip


def _add_recomputing_flag(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("memory and time")
    rare(group.add_argument("--activation_checkpointing", action="store_true",
                            help="recompute activations in the backward pass: less memory, longer steps"))  # fmt: skip


def _add_cost_flags(parser: argparse.ArgumentParser) -> None:
    _add_recomputing_flag(parser)
    group = parser.add_argument_group("memory and time")
    rare(group.add_argument("--compile", action="store_true",
                            help="train with torch.compile: a long first step, then perhaps shorter ones"))  # fmt: skip
    graph = group.add_mutually_exclusive_group()
    rare(
        graph.add_argument(
            "--cuda_graph",
            action="store_true",
            help="record a step as a CUDA graph, or end where that can't be (default: where it can)",
        )
    )
    rare(graph.add_argument("--nocuda_graph", action="store_true", help="launch a step's kernels one by one"))


def _add_result_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("results")
    group.add_argument(
        "--output_dir",
        type=file_path,
        metavar="DIR",
        help="where masks, tables and report go (default: PRETRAINED_DIR/scores)",
    )
    group.add_argument("--overwrite", action="store_true", help="do finished scans again")
    group.add_argument("--organs", type=names, help="only these, with commas between: spleen,liver (default: all)")
    group.add_argument("--one_file_per_organ", action="store_true", help="also write each organ as a mask of its own")
    group.add_argument("--largest_component", type=names, metavar="ORGANS",
                       help="organs of which only the largest component stays, or all")  # fmt: skip
    group.add_argument("--save_probabilities", action="store_true", help="also write the classes' probabilities")
    rare(group.add_argument("--rtstruct", action="store_true",
                            help="also write RTSTRUCT, for planning systems, if scans are DICOM series"))  # fmt: skip
    rare(group.add_argument("--no_postprocessing", action="store_true",
                            help="leave out what utils.crossval found to help and wrote into the weights"))  # fmt: skip
    rare(group.add_argument("--nsd_mm", type=positive, default=TOLERANCE_MM, metavar="MM",
                            help="tolerance of the normalised surface Dice"))  # fmt: skip


def _architecture(name: str) -> Architecture:
    """The network of that name, whose file, if it is one, declares no flag that a program has.

    Raises:
        InputError: if there is none.
    """
    architecture = find_architecture(name)
    if architecture.file is not None:
        flags = {flag for parser in (crossval_parser(), test_parser(None)) for flag in parser._option_string_actions}
        shared = {f"--{field}" for one in NETWORKS.values() for field in one.flags}
        for field in architecture.flags:
            if f"--{field}" in flags - shared:
                raise InputError(f"`model_name` {architecture.file}: its field {field} is a flag of ours. Rename it.")
    return architecture


def _model_name(flags: Sequence[str], default: str | None) -> str | None:
    parser = Parser(add_help=False)
    _add_model_flag(parser, default)
    return parser.parse_known_args(flags)[0].model_name  # type: ignore[no-any-return]


def train_parser(architecture: Architecture | None = None) -> Parser:
    """The parser of ``main.py`` for a network, by default ``unetr``."""
    architecture = architecture or NETWORKS["unetr"]
    parser = Parser(
        description="Train a network on the scans of a data list.",
        usage="python main.py [@FILE] --data_dir DIR --logdir NAME --save_checkpoint [flags]",
        epilog=f"{FILES} With --model_name, --help shows that network's flags.",
    )
    _add_list_flags(parser)
    _add_run_flags(parser)
    _add_model_flag(parser)
    _add_network_flags(parser, architecture)
    _add_preprocessing_flags(parser)
    _add_optimization_flags(parser)
    _add_loss_flags(parser)
    _add_group_flags(parser, architecture)
    _add_augmentation_flags(parser)
    _add_further_augmentation_flags(parser)
    _add_start_flags(parser, architecture)
    _add_machine_flags(parser)
    _add_window_flags(parser)
    _add_caching_flags(parser)
    _add_cost_flags(parser)
    _add_several_machines_flags(parser)
    return parser


def _add_crossval_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument_group("cross-validation").add_argument(
        "--folds",
        type=whole,
        nargs="+",
        action=Extend,
        metavar="FOLD",
        help="folds to train and score (default: all that are listed)",
    )
    rare(
        parser.add_argument_group("cross-validation").add_argument(
            "--no_postprocessing",
            action="store_true",
            help="don't try out what helps at test time, and don't write it into the networks",
        )
    )


def crossval_parser(architecture: Architecture | None = None) -> Parser:
    """The parser of ``utils.crossval``: that of ``main.py``, and the folds in place of one. It saves in any case."""
    parser = train_parser(architecture)
    parser.prog = "python -m utils.crossval"
    parser.usage = "python -m utils.crossval [@FILE] --data_dir DIR --logdir NAME [flags]"
    parser.description = "Train every fold of a task, score each on the scans that it didn't see, and sum up."
    _add_crossval_flags(parser)
    for action in parser._actions:
        # two always hold, and of the others one is an error
        if action.dest in ("save_checkpoint", "resume", "fold", "checkpoint", "allow_change", "world_size", "rank"):
            action.help = argparse.SUPPRESS
    parser.set_defaults(fold=None, save_checkpoint=True)
    return parser


def pretrain_parser(architecture: Architecture | None = None) -> Parser:
    """The parser of ``utils.pretrain``: flags of ``main.py`` with other defaults, and those of the autoencoder."""
    autoencoder = autoencoder_of(architecture or NETWORKS["unetr"])
    parser = Parser(
        prog="python -m utils.pretrain",
        description="Train a network's encoder on scans without labels, as a masked autoencoder.",
        usage="python -m utils.pretrain [@FILE] --data_dir DIR --logdir NAME [flags]",
        epilog="main.py --vit_weights runs/NAME/model_final.pt goes on from it. " + FILES,
    )
    _add_list_flags(parser)
    parser.add_argument_group("data").add_argument(
        "--input",
        type=file_path,
        nargs="+",
        action=Extend,
        metavar="PATH",
        help="files, DICOM folders, or folders of both, instead of a data list",
    )
    _add_run_flags(parser)
    _add_model_flag(parser)
    _add_network_flags(parser, autoencoder)
    _add_preprocessing_flags(parser)
    _add_optimization_flags(parser)
    _add_augmentation_flags(parser)
    _add_further_augmentation_flags(parser)
    _add_machine_flags(parser)
    _add_caching_flags(parser)
    _add_recomputing_flag(parser)
    _add_several_machines_flags(parser)
    shown = len(parser._actions)
    # of a recipe, which trains with labels afterwards; here they do nothing
    _add_loss_flags(parser)
    _add_window_flags(parser)
    _add_group_flags(parser, architecture or NETWORKS["unetr"])
    for place, action in enumerate(parser._actions):
        if place >= shown or action.dest == "save_checkpoint":  # which always holds
            action.help = argparse.SUPPRESS
    parser.set_defaults(save_checkpoint=True, **PRETRAINING)
    return parser


def parse_pretrain(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check the flags of ``utils.pretrain``; a fault ends the program with one line."""
    return _parsed(pretrain_parser, argv, _pretrain_faults)[0]


def _pretrain_faults(args: argparse.Namespace, architecture: Architecture) -> list[str]:
    faults = _foreign(args, autoencoder_of(architecture), _group_flags(architecture))
    try:
        config_from(autoencoder_of(architecture), vars(args), preprocessing_from(vars(args)))
    except InputError as error:
        faults.append(_in_flags(error))
    return faults + _launch_faults(args, "--resume" if args.resume else None)


def idle_in_pretraining(args: argparse.Namespace) -> list[str]:
    """The flags that were given to ``utils.pretrain`` and are for training with labels alone."""
    idle = _defaults(_add_loss_flags, _add_window_flags)
    idle |= dict.fromkeys(name for one in NETWORKS.values() for name in _group_flags(one))
    return [f"--{name}" for name, default in idle.items() if getattr(args, name, default) != default]


def idle_in_training(args: argparse.Namespace) -> dict[str, list[str]]:
    """By the flag that decides it, the flags that were given to ``main.py`` and do nothing beside that one."""
    defaults = _defaults(_add_preprocessing_flags, _add_optimization_flags)
    needed: dict[str, dict[str, tuple[str, ...]]] = {
        "intensity": {"ct": ("a_min", "a_max", "b_min", "b_max")},
        "optim_name": {"sgd": ("momentum",), "adam": ("betas",), "adamw": ("betas",)},
        "lrschedule": {"warmup_cosine": ("warmup_epochs",), "warmup_poly": ("warmup_epochs",)},
    }
    idle = {}
    for flag, users in needed.items():
        value = getattr(args, flag)
        others = {name for names in users.values() for name in names} - set(users.get(value, ()))
        given = sorted(f"--{name}" for name in others if getattr(args, name) != defaults[name])
        if given:
            idle[f"--{flag} {value}"] = given
    return idle


def _launch_faults(args: argparse.Namespace, goes_on: str | None) -> list[str]:
    """What is wrong with how a run and its processes are to start.

    Args:
        goes_on: the flag by which it continues a run, if it does.
    """
    faults = []
    if goes_on and args.overwrite:
        faults.append(f"{goes_on} continues a run and --overwrite deletes one; give one of them")
    if args.world_size > 1 and not args.distributed:
        faults.append("--world_size is for --distributed; give both, or neither")
    if args.rank >= args.world_size:
        faults.append(f"--rank {args.rank} must be below --world_size {args.world_size}: machines count from 0")
    if args.overwrite and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0:
        faults.append("--overwrite would delete the run at each of torchrun's --max-restarts; give --resume")
    return faults


def test_parser(architecture: Architecture | None) -> Parser:
    """The parser of ``test.py``. What a checkpoint knows is None here unless it was given."""
    parser = Parser(
        description="Segment scans with a trained network, and score them where they have labels.",
        usage="python test.py --input PATH … --output_dir DIR --pretrained_dir runs/NAME --pretrained_model_name FILE",
        epilog="A checkpoint knows its network and preprocessing. Their flags are for weights that don't. " + FILES,
    )
    weights = parser.add_argument_group("weights")
    weights.add_argument("--pretrained_dir", type=file_path, default=WEIGHTS_FOLDER, metavar="DIR", help="their folder")
    weights.add_argument(
        "--pretrained_model_name",
        nargs="+",
        default=[WEIGHTS_FILE],
        metavar="FILE",
        help="their files, or patterns such as 'fold*.pt', whose probabilities are averaged",
    )
    weights.add_argument("--saved_checkpoint", choices=FORMATS, default="ckpt",
                         help="ckpt, torchscript, or any: some are checkpoints and some TorchScript")  # fmt: skip
    scans = parser.add_argument_group("scans")
    scans.add_argument("--input", type=file_path, nargs="+", action=Extend, metavar="PATH",
                       help="files, DICOM folders, or folders of both, instead of a data list")  # fmt: skip
    scans.add_argument("--split", choices=SPLITS, default="validation", help="part of the data list to segment")
    _add_list_flags(parser)
    _add_result_flags(parser)
    _add_window_flags(parser, fast=True)
    parser.add_argument_group("mirroring and engine").add_argument(
        "--tta",
        action="store_true",
        help="also predict windows mirrored as crops were flipped in training, and average",
    )
    parser.add_argument_group("mirroring and engine").add_argument(
        "--engine", choices=ENGINES, default="auto", help="auto: the faster of torch and, on CPUs, openvino"
    )
    _add_machine_flags(parser)
    _add_model_flag(parser, default=None)
    _add_network_flags(parser, architecture, from_checkpoint=True)
    for add in (_add_preprocessing_flags, _add_augmentation_flags):
        before = set(parser._actions)
        add(parser)
        for action in set(parser._actions) - before:
            rare(action)
    given_by_a_checkpoint = dict.fromkeys(_defaults(_add_preprocessing_flags))
    parser.set_defaults(**given_by_a_checkpoint, **_defaults(_add_several_machines_flags))
    return parser


def parse_train(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check the flags of ``main.py``; a fault ends the program with one line."""
    return _parsed(train_parser, argv, _train_faults)[0]


def parse_crossval(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Parse and check the flags of ``utils.crossval``; a fault ends the program with one line.

    Returns:
        The flags by name, and as a command line those that ``main.py`` gets for every fold.
    """
    args, given, parser = _parsed(crossval_parser, argv, _train_faults)
    faults = []
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
    _add_crossval_flags(own)
    own.add_argument("--overwrite", action="store_true")
    return args, own.parse_known_args(given)[1]


def _parsed(
    make: Callable[[Architecture], Parser], argv: Sequence[str] | None, find_faults: FindFaults
) -> tuple[argparse.Namespace, list[str], Parser]:
    """The flags by name, as a command line without files, and the parser for the network that they name."""
    plain = make(NETWORKS["unetr"])
    given = plain.with_files(sys.argv[1:] if argv is None else argv)
    try:
        architecture = _architecture(str(_model_name(given, "unetr")))
        parser = make(architecture)
    except InputError as error:
        plain.error(_in_flags(error))
    args = parser.parse_args(given)
    faults = find_faults(args, architecture)
    if faults:
        parser.error("; ".join(faults))
    return args, given, parser


def _foreign(args: argparse.Namespace, architecture: Architecture, allowed: Iterable[str] = ()) -> list[str]:
    """The flags of other networks that were given, but for those that are allowed."""
    own = {*architecture.flags, *_group_flags(architecture), *allowed}
    others = {name for one in NETWORKS.values() for name in (*one.flags, *_group_flags(one))} - own
    given = sorted(name for name in others if getattr(args, name, None) is not None)
    return [f"--{name} is not for {architecture.name}; leave it out" for name in given]


def _train_faults(args: argparse.Namespace, architecture: Architecture) -> list[str]:
    """What is wrong with the flags of ``main.py``."""
    faults = _foreign(args, architecture)
    try:
        config_from(architecture, vars(args), preprocessing_from(vars(args)))
    except InputError as error:
        faults.append(_in_flags(error))
    ways = ("resume_ckpt", "resume_jit", "vit_weights", "checkpoint")
    starts = [f"--{name}" for name in ways if getattr(args, name)]
    if len(starts) > 1:
        faults.append(f"{' and '.join(starts)} exclude each other")
    if args.vit_weights is not None and not architecture.declared("vit_encoder"):
        faults.append(f"--vit_weights: {architecture.name} has no ViT; leave it out")
    needs = {
        "compile": ("blocks", "compiled"),
        "activation_checkpointing": ("blocks", "recomputed"),
        "adapt_weights": ("output_layers", "adapted to another task"),
        "cuda_graph": ("cuda_graph", "recorded as a CUDA graph"),
    }
    for flag, (declared, what) in needs.items():
        if getattr(args, flag):
            try:
                architecture.require(declared, flag, what)
            except InputError as error:
                faults.append(_in_flags(error))
    goes_on = "--checkpoint" if args.checkpoint else "--resume" if args.resume else None
    if args.resume and not args.save_checkpoint:
        faults.append("--resume needs --save_checkpoint, without which a run leaves nothing to continue from")
    if args.adapt_weights and not (args.resume_ckpt or args.resume_jit):
        faults.append("--adapt_weights needs weights to adapt: --resume_ckpt or --resume_jit")
    if args.allow_change and not goes_on:
        faults.append("--allow_change is for a run that goes on: --checkpoint or --resume")
    return faults + _launch_faults(args, goes_on)


def parse_test(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check the flags of ``test.py``; a fault ends the program with one line."""
    parser = test_parser(None)
    given = parser.with_files(sys.argv[1:] if argv is None else argv)
    name = _model_name(given, None)
    try:
        if name is not None:
            parser = test_parser(_architecture(name))
    except InputError as error:
        parser.error(_in_flags(error))
    args, unknown = parser.parse_known_args(given)
    if unknown:
        flags = {word.partition("=")[0] for word in unknown if word.startswith("--")}
        parser.known_elsewhere = train_parser()._option_string_actions.keys()
        of_training = flags and flags <= parser.known_elsewhere
        advice = "; main.py takes them, and what test.py needs of them is in the weights: leave them out"
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{advice if of_training else ''}")
    if args.input is not None and args.output_dir is None:
        parser.error("--input needs --output_dir, where the masks go")
    return args


def _in_flags(error: InputError) -> str:
    """An error about settings in terms of flags, without its full stop."""
    return name_flags(str(error)).rstrip(".")


def recorded_flags() -> list[str]:
    """The flags of networks and preprocessing, which a checkpoint records."""
    of_networks = dict.fromkeys(name for one in NETWORKS.values() for name in one.flags)
    return ["model_name", *of_networks, *_defaults(_add_preprocessing_flags)]


def training_flags() -> tuple[str, ...]:
    """The flags that a run may change where it goes on, and that change what comes out of it."""
    augmentation = (_add_augmentation_flags, _add_further_augmentation_flags)
    of_groups = dict.fromkeys(name for one in NETWORKS.values() for name in _group_flags(one))
    groups = (_add_optimization_flags, _add_loss_flags, _add_window_flags)
    return (*_defaults(*augmentation, *groups), *of_groups, "noamp")


def flags_of_a_network(architecture: Architecture) -> tuple[str, ...]:
    """The flags that networks have to share to be of one cross-validation; their epochs may grow."""
    apart = {"max_epochs", *_defaults(_add_window_flags)}
    own = (*architecture.flags, *_defaults(_add_preprocessing_flags), *_group_flags(architecture))
    starts = ("resume_ckpt", "resume_jit", "adapt_weights", "vit_weights")
    return ("model_name", *starts, *dict.fromkeys((*own, *(one for one in training_flags() if one not in apart))))


def testing_flags(flags: Mapping[str, Any]) -> list[str]:
    """As a command line, the flags of ``main.py`` that ``test.py`` has too and no checkpoint knows."""
    shared = _defaults(_add_list_flags, _add_window_flags, _add_machine_flags)
    given = {name: flags[name] for name in shared if flags[name] is not None and flags[name] is not False}
    if flags["model_name"].endswith(".py"):  # which a checkpoint doesn't bring
        given["model_name"] = flags["model_name"]
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items()]


def run_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """By name, the flags that have to be the same for all processes of a run."""
    of_a_machine = {*_defaults(_add_list_flags), "cache_dir", "pretrained_dir", "device", "rank", "dist_url"}
    return {f"--{name}": value for name, value in flags.items() if name not in of_a_machine}


def _defaults(*groups: Groups) -> dict[str, Any]:
    """What the flags of some groups are where none is given."""
    parser = Parser(add_help=False)
    for add in groups:
        add(parser)
    return vars(parser.parse_args([]))

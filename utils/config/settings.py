"""Typed settings from parsed flags."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from networks.registry import Architecture, find_architecture
from utils.checkpoints.description import Description, config_from, preprocessing_from
from utils.checkpoints.load import LoadSettings
from utils.checkpoints.postprocessing import Postprocessing, common
from utils.checkpoints.resume import StartSettings
from utils.config.flags import FROM_THE_DATA, recorded_flags, training_flags
from utils.data.crops import Augmentation
from utils.data.data_list import DataList
from utils.data.mirroring import trained_mirrorings
from utils.data.regions import regions_as_json
from utils.distributed.launch import LaunchSettings
from utils.segmentation.job import SegmentationJob, labels_of
from utils.system.files import FileState


def launch_settings(args: argparse.Namespace) -> LaunchSettings:
    """How the program is spread over processes."""
    return LaunchSettings(
        device=args.device,
        distributed=args.distributed,
        world_size=args.world_size,
        rank=args.rank,
        dist_url=args.dist_url,
        dist_backend=args.dist_backend,
        dist_timeout=args.dist_timeout,
    )


def description_from_args(args: argparse.Namespace, data: DataList) -> Description:
    """What ``main.py`` trains, as its checkpoints will describe it.

    Channels and classes, or regions, that no flag gives are those of the data.

    Raises:
        InputError: if the flags can't make a network, or the data list names another number of labels.
    """
    preprocessing = preprocessing_from(vars(args))
    classes = data.classes()
    settings = {
        **vars(args),
        "in_channels": data.channels() if args.in_channels is None else args.in_channels,
        "out_channels": classes if args.out_channels is None else args.out_channels,
    }
    config = config_from(find_architecture(args.model_name), settings, preprocessing)
    return Description(
        config=config,
        preprocessing=preprocessing,
        labels=data.label_names(config.out_channels),
        amp=not (args.noamp or args.resume_jit),
        flips=args.flips if args.RandFlipd_prob > 0 else "none",
        regions=data.regions,
        output=data.output,
    )


def complete_flags(flags: Mapping[str, Any], description: Description) -> dict[str, Any]:
    """Flags by name, with the channels and classes of the network also where they came from the data."""
    return {**flags, **{name: description.options[name] for name in FROM_THE_DATA}}


def start_settings(args: argparse.Namespace, description: Description) -> StartSettings:
    """Where the weights of ``main.py`` come from."""
    weights = Path(args.pretrained_dir) / args.pretrained_model_name
    return StartSettings(
        weights=weights if args.resume_ckpt or args.resume_jit else None,
        torchscript=args.resume_jit,
        adapt=args.adapt_weights,
        vit_weights=None if args.vit_weights is None else Path(args.vit_weights),
        settings=complete_flags(vars(args), description),
        changeable=training_flags(),
        allow_change=args.allow_change,
    )


def group_settings(args: argparse.Namespace, architecture: Architecture) -> dict[str, dict[str, float | None]]:
    """Learning rate and weight decay of each group of parameters that a network declares."""
    return {
        group: {"lr": getattr(args, f"{group}_lr"), "weight_decay": getattr(args, f"{group}_reg_weight")}
        for group in architecture.groups
    }


def augmentation_from_args(args: argparse.Namespace, labels: Sequence[str]) -> Augmentation:
    """The random changes to crops; flips as far as the labels allow them."""
    return Augmentation(
        flip=args.RandFlipd_prob,
        rotate90=args.RandRotate90d_prob,
        scale_intensity=args.RandScaleIntensityd_prob,
        shift_intensity=args.RandShiftIntensityd_prob,
        mirroring=trained_mirrorings(args.flips, labels)[-1],  # the last one mirrors all axes that may be
        strong=args.augment == "strong",
    )


def load_settings(args: argparse.Namespace) -> LoadSettings:
    """How ``test.py`` reads weights files."""
    given = {name: value for name in recorded_flags() if (value := getattr(args, name)) is not None}
    if args.model_name is not None:  # a network of one's own may have flags that no other has
        own = find_architecture(args.model_name).flags
        given |= {name: value for name in own if (value := getattr(args, name)) is not None}
    scored = args.split if args.input is None else None
    # an ensemble's networks are mirrored alike
    return LoadSettings(args.saved_checkpoint, given, same_flips=args.tta, scored=scored)


def postprocessing_from_args(args: argparse.Namespace, networks: Sequence[Description]) -> Postprocessing:
    """What ``test.py`` does with windows and masks: what flags say, else what a cross-validation wrote into networks.

    Raises:
        InputError: if a flag names an organ that the networks don't know.
    """
    found = common([one.from_folds for one in networks], [one.flips for one in networks])
    if args.no_postprocessing:
        found = Postprocessing()
    labels = networks[0].labels
    given = args.largest_component
    return Postprocessing(
        largest_component=found.largest_component if given is None else labels_of("largest_component", given, labels),
        mirrored=args.tta or found.mirrored,
    )


def job_from_args(
    args: argparse.Namespace, weights: Sequence[FileState], networks: Sequence[Description]
) -> SegmentationJob:
    """What ``test.py`` does with each scan.

    Args:
        weights: the state of each weights file before it was read.
        networks: what each file says of its network.

    Raises:
        InputError: if a flag names an organ that the networks don't know.
    """
    description, postprocessing = networks[0], postprocessing_from_args(args, networks)
    labels = description.labels
    component = [labels[label] for label in postprocessing.largest_component]
    models = tuple(one.from_folds.models for one in networks)
    flags = ("infer_overlap", "noamp", "engine", "organs", "nsd_mm")
    more = ("one_file_per_organ", "save_probabilities")
    return SegmentationJob(
        folder=Path(args.output_dir) if args.output_dir is not None else Path(args.pretrained_dir) / "scores",
        labels=labels,
        organs={label: labels[label] for label in labels_of("organs", args.organs or ("all",), labels)},
        postprocessing=postprocessing,
        dice_models=models if all(models) and not args.no_postprocessing else (),
        one_file_per_organ=args.one_file_per_organ,
        save_probabilities=args.save_probabilities,
        nsd_mm=args.nsd_mm,
        in_channels=description.options["in_channels"],
        preprocessing=description.preprocessing,
        made_with={
            "weights": list(weights),
            **{name: getattr(args, name) for name in (*flags, *more)},
            "tta": postprocessing.mirrored,
            "largest_component": component or None,
            # weights that describe nothing have these from flags and a data list
            "labels": list(labels),
            **regions_as_json(description.regions, description.output),
            "network": [description.network, description.options],
            "preprocessing": asdict(description.preprocessing),
        },
        regions=description.regions,
        output=description.output,
        rtstruct=args.rtstruct,
    )

"""Notes that ``main.py`` prints about flags that are allowed and may still surprise."""

import argparse
from collections.abc import Sequence

from utils.config.flags import WEIGHTS_FILE, WEIGHTS_FOLDER, idle_in_training
from utils.data.crops import Augmentation
from utils.data.data_list import DataList
from utils.data.mirroring import SIDES_ONLY


def training_notes(
    args: argparse.Namespace,
    data: DataList,
    labels: Sequence[str],
    augmentation: Augmentation,
    epochs_done: int,
    batches: int,
) -> list[str]:
    """What is allowed and may still surprise, a sentence each.

    Args:
        labels: names of the classes, by the data list or else by number.
    """
    asked = "x" if args.flips == SIDES_ONLY else "xyz"
    fixed = [axis for number, axis in enumerate(asked) if number not in augmentation.mirroring.axes]
    both = sum(scan in data.training for scan in data.validation)
    swapping = args.flips != "published" and args.RandFlipd_prob > 0
    sided = ", ".join(augmentation.mirroring.pairs(labels))
    named = (args.pretrained_dir, args.pretrained_model_name) != (WEIGHTS_FOLDER, WEIGHTS_FILE)
    remarks = {
        "the weights of --pretrained_model_name are read with --resume_ckpt or --resume_jit alone": (
            named and not (args.resume_ckpt or args.resume_jit)
        ),
        "weights from TorchScript train in float32, without mixed precision": args.resume_jit and not args.noamp,
        "no weights will be kept; --save_checkpoint keeps them": not args.save_checkpoint,
        f'--fold {args.fold} changes nothing, since no entry of {data.path} has a "fold"': data.ignores(args.fold),
        f"{both} of the validation scans train as well; their Dice tells nothing about other scans": both > 0,
        f"the run ends within its {args.warmup_epochs} epochs of warm-up; --warmup_epochs shortens them": (
            args.lrschedule.startswith("warmup") and args.warmup_epochs >= args.max_epochs
        ),
        "crops are not rotated by 90°, since --roi_x and --roi_y differ": (
            args.roi_x != args.roi_y and args.RandRotate90d_prob > 0
        ),
        f"crops are not flipped along {' and '.join(fixed)}, which would mix labels up": (
            bool(fixed) and args.RandFlipd_prob > 0
        ),
        "crops are not rotated by 90°, which would mix labels up": (
            not augmentation.mirroring.allows_rotate90 and args.RandRotate90d_prob > 0
        ),
        f"{data.path} names no labels, so that --flips {args.flips} can't tell left from right": (
            swapping and data.labels is None
        ),
        f"flips along x swap {sided}": swapping and bool(sided),
        "no label has a side by its name, and flips along x swap none": (
            swapping and data.labels is not None and 0 in augmentation.mirroring.axes and not sided
        ),
        f"--flips {args.flips} does nothing, since --RandFlipd_prob is 0": (
            args.flips != "published" and args.RandFlipd_prob == 0
        ),
        f"an epoch is one step, since it has fewer batches of each process ({batches}) than --accumulate": (
            args.accumulate > batches
        ),
        f"nothing is left to train: {epochs_done} epochs are done; a higher --max_epochs goes on": (
            epochs_done >= args.max_epochs
        ),
    }
    idle = [f"{', '.join(flags)} does nothing with {why}" for why, flags in idle_in_training(args).items()]
    return idle + [remark for remark, holds in remarks.items() if holds]

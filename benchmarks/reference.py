"""Our side of the comparisons: the reference network, as ``main.py`` builds and trains it without any flag."""

import torch
from torch import Tensor

from networks.layers import optimize_for_cpu
from networks.precision import choose_precision
from networks.unetr import UNETRConfig
from optimizers import build_optimizer, build_scheduler, parameter_groups
from trainer import Learner
from utils.checkpoints.description import Description
from utils.config.flags import parse_train
from utils.data.preprocessing import Preprocessing
from utils.distributed.process import Process
from utils.phantom import LABELS
from utils.training.losses import build_loss

ROI = (96, 96, 96)
CLASSES = len(LABELS)


def reference_description(classes: int = CLASSES) -> Description:
    """The description that a checkpoint of the reference network has. With 14 classes these are the phantoms'."""
    labels = LABELS if classes == CLASSES else ("background", *(f"label {number}" for number in range(1, classes)))
    return Description(UNETRConfig(out_channels=classes), Preprocessing(), labels, amp=True)


def reference_learner(process: Process) -> Learner:
    """The reference network with its loss, optimizer and schedule, on the process's device."""
    args = parse_train([])
    description = reference_description()
    network = process.place(optimize_for_cpu(description.build()))
    precision = choose_precision(process.device, description.amp, description.config)
    optimizer = build_optimizer(
        args.optim_name, parameter_groups(network), args.optim_lr, args.reg_weight, args.momentum
    )
    return Learner(
        network,
        process.wrap(network),
        build_loss(args.loss, args.smooth_nr, args.smooth_dr, deep_supervision=False),
        optimizer,
        build_scheduler(args.lrschedule, optimizer, args.max_epochs, args.warmup_epochs, steps_per_epoch=1),
        precision.scaler(),
        precision,
    )


def random_batch(crops: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Noise (crops, 1, 96, 96, 96), and a random class for each voxel, in a byte as in crops of scans."""
    shape = (crops, 1, *ROI)
    return torch.rand(shape, device=device), torch.randint(0, CLASSES, shape, device=device, dtype=torch.uint8)

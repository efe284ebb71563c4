"""Compare training losses in bfloat16, in float32 and of the peer: ``python -m benchmarks.curves``.

Four runs start from the same weights: ours in both formats and the peer's in float32 on the same crops, and ours in
bfloat16 on other crops. The peer computes what ours computes in float32, in another order. So its distance from ours
shows the effect of rounding, and that of the run on other crops shows the effect of chance. It takes half an hour on
two cores with bfloat16 in hardware, and about 90 minutes on two cores that emulate it.
"""

import argparse
import itertools
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.emulation import bfloat16
from benchmarks.peer import peers_loss, peers_network
from benchmarks.reference import reference_learner
from networks.precision import Precision
from networks.unetr import UNETRConfig
from optimizers import build_scheduler
from trainer import Learner
from utils.config.flags import parse_train
from utils.config.parser import Parser, count
from utils.data.crops import Augmentation
from utils.data.data_list import read_data_list
from utils.data.loaders import Caching, training_loader
from utils.data.preprocessing import Preprocessing
from utils.distributed.launch import choose_device
from utils.distributed.process import Process
from utils.io.scan import Scan
from utils.phantom import write_phantoms
from utils.system.allocator import tune_malloc
from utils.system.errors import one_line_errors
from utils.system.hardware import machine
from utils.training.losses import of_what_is_annotated

MEAN_OF = 20  # steps


def crops(scans: list[Scan], seed: int, process: Process) -> Iterator[tuple[Tensor, Tensor]]:
    """Image and label of one crop after the other, without end."""
    loader = training_loader(
        scans, Preprocessing(), Augmentation(), Caching(), process,
        batch_size=1, crops_per_scan=1, workers=0, seed=seed,
    )  # fmt: skip
    for epoch in itertools.count():
        loader.sampler.go_to(epoch, 0)  # type: ignore[attr-defined]
        for batch in loader:
            yield batch["image"].to(process.device), batch["label"].to(process.device)


def our_learner(process: Process, dtype: torch.dtype) -> Learner:
    """The reference network as ``main.py`` trains it, always from the same weights."""
    torch.manual_seed(0)
    return replace(reference_learner(process), precision=Precision(process.device, dtype))


def peers_learner(process: Process) -> Learner:
    """MONAI's network and loss with torch's plain AdamW, at our learning rates and from our weights."""
    ours = our_learner(process, torch.float32)
    network = peers_network(weights=ours.network.state_dict()).to(process.device)
    args = parse_train([])
    optimizer = torch.optim.AdamW(network.parameters(), lr=args.optim_lr, weight_decay=args.reg_weight)
    scheduler = build_scheduler(args.lrschedule, optimizer, args.max_epochs, args.warmup_epochs, 1)
    loss = of_what_is_annotated(peers_loss())  # all is
    return replace(ours, network=network, wrapped=network, optimizer=optimizer, scheduler=scheduler, loss_function=loss)


def curve(name: str, learner: Learner, batches: Iterator[tuple[Tensor, Tensor]], steps: int) -> list[float]:
    """Train, and return the loss in means of :data:`MEAN_OF` steps."""
    learner.wrapped.train()
    losses = []
    for number, (image, label) in enumerate(itertools.islice(batches, steps), 1):
        losses.append(learner.add_gradients(learner.loss(image, label), 1))
        learner.update()
        if number % MEAN_OF == 0:
            print(f"{name}, step {number}: {statistics.fmean(losses[-MEAN_OF:]):.4f}", flush=True)
    return [statistics.fmean(losses[first : first + MEAN_OF]) for first in range(0, steps, MEAN_OF)]


def main(args: argparse.Namespace) -> None:
    """Print the curves side by side, and the largest distance of each from ours in float32."""
    tune_malloc()
    process = Process(choose_device(args.device))
    with tempfile.TemporaryDirectory() as folder, bfloat16(process.device, UNETRConfig()) as emulated:
        how = "emulated" if emulated else "by the hardware"
        print(f"{machine(gpu=process.device.type == 'cuda')}, torch {torch.__version__}; bfloat16 {how}", flush=True)
        write_phantoms(Path(folder), {"training": 4, "validation": 0}, seed=0, spacing=Preprocessing().spacing)
        scans = read_data_list(folder, None, 0).training
        learners = {
            "ours float32": (our_learner(process, torch.float32), 0),
            "ours bfloat16": (our_learner(process, torch.bfloat16), 0),
            "peer float32": (peers_learner(process), 0),
            "ours bfloat16, other crops": (our_learner(process, torch.bfloat16), 1),
        }
        curves = {
            name: curve(name, learner, crops(scans, seed, process), args.steps)
            for name, (learner, seed) in learners.items()
        }
    print(f"means of {MEAN_OF} steps, up to step  " + "  ".join(curves))
    for place, losses in enumerate(zip(*curves.values(), strict=True), 1):
        row = (f"{loss:>{len(name)}.4f}" for name, loss in zip(curves, losses, strict=True))
        print(f"{min(place * MEAN_OF, args.steps):>30}  " + "  ".join(row))
    exact = curves["ours float32"]
    for name, found in list(curves.items())[1:]:
        most = max(abs(loss - other) for loss, other in zip(found, exact, strict=True))
        print(f"{name}: at most {most:.4f} from ours float32")


if __name__ == "__main__":
    parser = Parser(prog="python -m benchmarks.curves", description="Compare the losses of training, step by step.")
    parser.add_argument("--device", help="cpu or cuda (default: cuda if there is one, else cpu)")
    parser.add_argument("--steps", type=count, default=200, help=f"steps of each run, printed as means of {MEAN_OF}")
    with one_line_errors():
        main(parser.parse_args())

"""Peak memory of segmenting one large scan, ours and MONAI's: ``python -m benchmarks.memory``.

The scan is the worst of its size: tissue everywhere, so that nothing is cropped, and a network with random weights, so
that every class is everywhere. Each way runs in a process of its own; this one stays small, since a process begins with
the peak of the one that launched it. Takes some minutes.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

GIB = 2**30
SHAPE, SPACING = (512, 512, 200), (0.75, 0.75, 2.5)


def prepare(folder: Path) -> None:
    """Write the scan, and a checkpoint of the reference network."""
    import nibabel as nib
    import numpy as np
    import torch

    from utils import checkpoint
    from utils.args import network_options, parse_train, preprocessing
    from utils.checkpoint import Description, Progress
    from utils.phantom import LABELS

    voxels = np.random.default_rng(0).integers(-150, 240, SHAPE, dtype=np.int16)
    nib.save(nib.Nifti1Image(voxels, np.diag([*SPACING, 1.0])), folder / "scan.nii.gz")
    torch.manual_seed(0)
    flags = vars(parse_train([]))
    description = Description("unetr", network_options(flags), preprocessing(flags), LABELS, amp=True)
    checkpoint.save(folder / "model.pt", description, description.build(), Progress())


def load_weights(folder: Path) -> None:
    """Import everything and load the weights, which both ways have to."""
    from utils import checkpoint
    from utils.results import write_results  # noqa: F401

    content = checkpoint.read(folder / "model.pt")
    description = checkpoint.describe(content)
    assert description is not None
    description.build().load_state_dict(content["state_dict"])


def monai_chain(folder: Path) -> None:
    """As MONAI's tutorials do it: sliding windows, and Invertd on the probabilities of all classes."""
    import torch
    from monai import transforms
    from monai.data import decollate_batch, list_data_collate
    from monai.inferers import sliding_window_inference

    from utils import checkpoint
    from utils.precision import choose_precision
    from utils.preprocessing import KEYS, scan_transforms

    content = checkpoint.read(folder / "model.pt")
    description = checkpoint.describe(content)
    assert description is not None
    network = description.build().eval().to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    network.load_state_dict(content["state_dict"])
    del content
    settings = description.preprocessing
    before = transforms.Compose(
        [
            transforms.LoadImaged(KEYS[:1], reader="NibabelReader", ensure_channel_first=True),
            *scan_transforms(settings, KEYS[:1]),
        ]
    )
    after = transforms.Compose(
        [
            transforms.Activationsd("pred", softmax=True),
            transforms.Invertd("pred", transform=before, orig_keys="image", nearest_interp=False, to_tensor=True),
            transforms.AsDiscreted("pred", argmax=True),
            transforms.SaveImaged("pred", output_dir=str(folder / "monai"), output_postfix="", print_log=False),
        ]
    )
    batch = list_data_collate([before({"image": str(folder / "scan.nii.gz")})])
    precision = choose_precision(torch.device("cpu"), description.amp, settings.roi)
    with torch.inference_mode(), precision.autocast():
        batch["pred"] = sliding_window_inference(batch["image"], settings.roi, 1, network, 0.5, mode="gaussian")
    for item in decollate_batch(batch):
        after(item)


STEPS: dict[str, Callable[[Path], None]] = {
    "prepare": prepare,
    "weights": load_weights,
    "monai": monai_chain,
}


def run(command: Sequence[str]) -> tuple[float, float]:
    """Run a command; its peak resident memory in bytes, and its seconds."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"error: {' '.join(command)} ended with status {os.waitstatus_to_exitcode(status)}")
    return usage.ru_maxrss * 1024, time.monotonic() - start


def main(args: argparse.Namespace) -> None:
    """Print what both ways took."""
    if args.step is not None:
        STEPS[args.step](Path(args.folder))
        return
    with tempfile.TemporaryDirectory() as folder:

        def step(name: str) -> list[str]:
            return [sys.executable, "-m", "benchmarks.memory", "--step", name, "--folder", folder]

        run(step("prepare"))
        weights, _ = run(step("weights"))
        ours = [sys.executable, "test.py", "--input", f"{folder}/scan.nii.gz", "--output_dir", f"{folder}/ours"]
        ways = {
            "test.py": [*ours, "--device=cpu", "--pretrained_dir", folder, "--pretrained_model_name=model.pt"],
            "MONAI Invertd": step("monai"),
        }
        size = " × ".join(map(str, SHAPE))
        print(f"{size} voxels, 14 classes; loading the weights alone peaks at {weights / GIB:.2f} GiB")
        print(f"{'':<14}  GiB above that  minutes")
        for name, command in ways.items():
            peak, seconds = run(command)
            print(f"{name:<14}  {(peak - weights) / GIB:>14.2f}  {seconds / 60:>7.1f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description="Peak memory of one large scan.")
    parser.add_argument("--step", choices=tuple(STEPS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    main(parser.parse_args())

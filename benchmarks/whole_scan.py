"""Time one scan from file to mask, by ours and the peer in turns: ``python -m benchmarks.whole_scan --weights FILE``.

The peer is MONAI's UNETR with MONAI's transforms and sliding windows, composed as in MONAI's bundle for BTCV:
``LoadImaged`` … ``sliding_window_inference``, softmax, ``Invertd`` on the probabilities of all classes, ``SaveImaged``.
On a CPU it computes in float32, one window at a time, which is 6 % faster than the bundle's four. On a GPU it computes
by float16 autocast, four windows at a time. Flags of ``test.py`` for ours come last, behind ``--``: ``-- --fast``.

The scan is a phantom. Without ``--weights`` it is the worst case of its size: tissue everywhere, so that nothing is
cropped, and random weights, so that every class is everywhere.

Each turn is a new process, timed from its launch to its end. A process begins with the peak memory of its parent, so
this module imports nothing large: what the processes need is imported within the functions that they run.
"""

import argparse
import gc
import importlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.arguments import existing_file
from utils.config.parser import Parser, count
from utils.system.errors import one_line_errors, size_text

Shape = tuple[int, int, int]

GIB = 2**30
FIELD_MM = (384.0, 384.0, 240.0)  # size of the phantom's scan, with air around the body
LARGE, WORST = (512, 512, 150), (512, 512, 200)
WORST_SPACING = (0.75, 0.75, 2.5)  # mm
# a basic case, then more voxels, more classes, more overlap
GROWTH = [
    ((256, 256, 100), 14, 0.5),
    ((512, 512, 100), 14, 0.5),
    ((512, 512, 200), 14, 0.5),
    ((256, 256, 100), 2, 0.5),
    ((256, 256, 100), 105, 0.5),
    ((256, 256, 100), 14, 0.25),
    ((256, 256, 100), 14, 0.75),
]
# the functions that --pieces times, by the module whose name for them test.py's code calls
PIECES = {
    "utils.checkpoints.load": ("load_ensemble",),
    "utils.segmentation.pipeline": ("predict",),
    "utils.segmentation.volumes": ("to_network_grid", "to_scan_grid"),
    "utils.segmentation.steps": (
        *("read_scan", "write_mask", "measure"),
        *("_picture", "pixels", "save_picture", "write_view"),
    ),
    "utils.segmentation.results": ("write_report",),
}


@dataclass(frozen=True)
class Cost:
    """What a process took: seconds from launch to end, and its peak resident memory in bytes."""

    seconds: float
    peak: int


@dataclass(frozen=True)
class Row:
    """Both sides on one scan.

    Attributes:
        flags: the flags of ``test.py`` for ours.
        ours, peer: medians over the rounds.
        dice: Dice between both masks by organ, for organs of more than 1 ml in the peer's mask.
    """

    flags: tuple[str, ...]
    ours: Cost
    peer: Cost
    dice: dict[str, float]


# run in the processes


def write_phantom(folder: Path, shape: Sequence[int]) -> None:
    """Write a phantom as ``scan.nii.gz``, cropped or padded with air to ``shape``."""
    import nibabel as nib
    import numpy as np

    from utils.phantom import AIR, draw_abdomen

    x, y, z = (field / size for field, size in zip(FIELD_MM, shape, strict=True))
    image, _ = draw_abdomen(4242, (x, y, z))
    voxels = np.full(shape, AIR, np.int16)
    drawn = np.asarray(image.dataobj)
    common = [min(sizes) for sizes in zip(shape, drawn.shape, strict=True)]
    voxels[_centre(shape, common)] = drawn[_centre(drawn.shape, common)]
    nib.save(nib.Nifti1Image(voxels, image.affine), folder / "scan.nii.gz")


def _centre(shape: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    """The central part of ``size`` in an array of ``shape``."""
    return tuple(slice((n - part) // 2, (n - part) // 2 + part) for n, part in zip(shape, size, strict=True))


def write_worst(folder: Path, shape: Sequence[int]) -> None:
    """Write noise in the range of tissue as ``scan.nii.gz``."""
    import nibabel as nib
    import numpy as np

    voxels = np.random.default_rng(0).integers(-150, 240, shape, dtype=np.int16)
    nib.save(nib.Nifti1Image(voxels, np.diag([*WORST_SPACING, 1.0])), folder / "scan.nii.gz")


def write_random_weights(folder: Path, classes: int) -> None:
    """Write a checkpoint of the untrained reference network as ``model.pt``."""
    import torch

    from benchmarks.reference import reference_description
    from utils.checkpoints.progress import Progress
    from utils.checkpoints.save import save_checkpoint

    torch.manual_seed(0)
    description = reference_description(classes)
    save_checkpoint(folder / "model.pt", description, description.build(), Progress())


def run_peer(folder: Path, weights: Path, device: str) -> None:
    """Segment with MONAI, to ``peer/scan.nii.gz``."""
    import numpy as np
    import torch
    from monai import transforms
    from monai.data import decollate_batch, list_data_collate
    from monai.inferers import sliding_window_inference

    from benchmarks.peer import peers_network

    content = torch.load(weights, weights_only=True)
    network = peers_network(content["network"]["options"], content["state_dict"]).to(device).eval()
    settings = content["preprocessing"]
    del content
    before = transforms.Compose(
        [
            transforms.LoadImaged("image", reader="NibabelReader", ensure_channel_first=True),
            transforms.Orientationd("image", axcodes="RAS", labels=None),
            transforms.Spacingd("image", pixdim=settings["spacing"], mode="bilinear"),
            transforms.ScaleIntensityRanged(
                "image", settings["a_min"], settings["a_max"], settings["b_min"], settings["b_max"], clip=True
            ),
            transforms.CropForegroundd(
                "image", source_key="image", select_fn=lambda image: image > image.min(), allow_smaller=True
            ),
        ]
    )
    after = transforms.Compose(
        [
            transforms.Activationsd("pred", softmax=True),
            transforms.Invertd("pred", transform=before, orig_keys="image", nearest_interp=False, to_tensor=True),
            transforms.AsDiscreted("pred", argmax=True),
            transforms.SaveImaged(
                "pred", output_dir=str(folder / "peer"), output_postfix="", separate_folder=False,
                output_dtype=np.uint8, print_log=False,
            ),
        ]
    )  # fmt: skip
    batch = list_data_collate([before({"image": str(folder / "scan.nii.gz")})])
    windows = 4 if device == "cuda" else 1  # in a forward pass
    with torch.no_grad(), torch.autocast(device, torch.float16, enabled=device == "cuda"):
        batch["pred"] = sliding_window_inference(
            batch["image"].to(device), settings["roi"], windows, network, overlap=0.5, mode="gaussian"
        )
    for item in decollate_batch(batch):
        after(item)


def print_agreement(folder: Path) -> None:
    """Print the Dice between both masks, a line for each organ of more than 1 ml in the peer's."""
    import nibabel as nib
    import numpy as np
    import torch

    from utils.evaluation.metrics import dice_per_label
    from utils.phantom import LABELS

    peer_image, our_image = (nib.Nifti1Image.from_filename(folder / who / "scan.nii.gz") for who in ("peer", "ours"))
    peer, ours = (np.asarray(image.dataobj).astype(np.int16) for image in (peer_image, our_image))
    dice = dice_per_label(torch.from_numpy(ours), torch.from_numpy(peer), len(LABELS)).tolist()
    voxel_ml = abs(np.linalg.det(peer_image.affine[:3, :3])) / 1000
    for label, name in enumerate(LABELS[1:], start=1):
        if (peer == label).sum() * voxel_ml > 1:
            print(f"{name}\t{dice[label - 1]}")


def print_pieces(folder: Path, weights: Path, device: str, *flags: str) -> None:
    """Run ``test.py`` in this process, and print how long each of :data:`PIECES` took and when it ended."""
    launched = time.perf_counter()

    def report(name: str, start: float) -> None:
        now = time.perf_counter()
        print(f"{name:<24} {now - start:>7.2f} s, done at {now - launched:>6.2f} s")

    gc.disable()  # as test.py does
    import torch  # noqa: F401

    report("importing torch", launched)
    start = time.perf_counter()
    import monai  # noqa: F401

    report("importing MONAI", start)
    start = time.perf_counter()
    modules = {name: importlib.import_module(name) for name in PIECES}
    import runpy

    report("importing the rest", start)

    def timed(name: str, function: Callable[..., object]) -> Callable[..., object]:
        def run_and_report(*args: object, **options: object) -> object:
            start = time.perf_counter()
            result = function(*args, **options)
            report(name.strip("_").replace("_", " "), start)
            return result

        return run_and_report

    for module, names in PIECES.items():
        for name in names:
            setattr(modules[module], name, timed(name, getattr(modules[module], name)))
    sys.argv = our_command(folder, weights, device, *flags)[1:]
    runpy.run_path("test.py", run_name="__main__")


STEPS: dict[str, Callable[..., None]] = {
    "phantom": lambda folder, *shape: write_phantom(Path(folder), [int(size) for size in shape]),
    "worst": lambda folder, *shape: write_worst(Path(folder), [int(size) for size in shape]),
    "weights": lambda folder, classes: write_random_weights(Path(folder), int(classes)),
    "peer": lambda folder, weights, device: run_peer(Path(folder), Path(weights), device),
    "agreement": lambda folder: print_agreement(Path(folder)),
    "pieces": lambda folder, weights, device, *flags: print_pieces(Path(folder), Path(weights), device, *flags),
}


# run in the parent


def step(name: str, *arguments: object) -> list[str]:
    """The command that runs one of :data:`STEPS` in a new process."""
    return [sys.executable, "-m", "benchmarks.whole_scan", "--step", name, *map(str, arguments)]


def our_command(folder: Path, weights: Path, device: str, *flags: str) -> list[str]:
    """``test.py`` on the folder's scan, to ``ours/scan.nii.gz``."""
    return [
        *(sys.executable, "test.py", f"--input={folder / 'scan.nii.gz'}", f"--output_dir={folder / 'ours'}"),
        *(f"--device={device}", "--overwrite", f"--pretrained_dir={weights.parent}"),
        *(f"--pretrained_model_name={weights.name}", *flags),
    ]


def run(command: Sequence[str]) -> Cost:
    """Run a command without its output. If it fails, its errors end this program too."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start
    if status != 0:
        raise SystemExit(f"error: {' '.join(command)} failed:\n{errors.decode()}")
    return Cost(seconds, usage.ru_maxrss * 1024)


def prepare(folder: Path, weights: Path | None, shape: Shape) -> Path:
    """Write the scan, and random weights where none are given. Returns the path of the weights."""
    run(step("worst" if weights is None else "phantom", folder, *shape))
    if weights is None:
        run(step("weights", folder, 14))
    return folder / "model.pt" if weights is None else weights


def median(costs: Sequence[Cost]) -> Cost:
    """The medians of seconds and of peaks."""
    return Cost(
        statistics.median(cost.seconds for cost in costs), round(statistics.median(cost.peak for cost in costs))
    )


def compare(
    weights: Path | None, shape: Shape, variants: Sequence[tuple[str, ...]], rounds: int, device: str
) -> list[Row]:
    """Time both sides in turns on a phantom, or without weights on the worst case.

    Args:
        weights: a checkpoint of ``main.py``.
        shape: the scan's, in voxels.
        variants: flags of ``test.py``, a row for each. OpenVINO may compile in a launch that isn't timed.
        rounds: launches of each.
        device: ``cpu`` or ``cuda``.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        used = prepare(folder, weights, shape)
        ours: list[list[Cost]] = [[] for _ in variants]
        peer = []
        dice: list[dict[str, float]] = [{} for _ in variants]
        for flags in variants:
            if device == "cpu" and "--engine=torch" not in flags:
                run(our_command(folder, used, device, *flags))  # may compile the network and cache it on disk
        for _ in range(rounds):
            peer.append(run(step("peer", folder, used, device)))
            for flags, costs, organs in zip(variants, ours, dice, strict=True):
                costs.append(run(our_command(folder, used, device, *flags)))
                output = subprocess.run(step("agreement", folder), capture_output=True, text=True, check=True).stdout
                for line in output.splitlines():
                    organ, value = line.split("\t")
                    organs[organ] = float(value)
        return [
            Row(flags, median(costs), median(peer), organs)
            for flags, costs, organs in zip(variants, ours, dice, strict=True)
        ]


def growth(device: str) -> Iterator[tuple[Shape, int, float, Cost]]:
    """Time ours on the worst cases of :data:`GROWTH`. Yields shape, classes, overlap and cost."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for shape, classes, overlap in GROWTH:
            run(step("worst", folder, *shape))
            run(step("weights", folder, classes))
            flags = (
                "--engine=torch",
                f"--infer_overlap={overlap}",
            )  # OpenVINO would compile for each number of classes
            cost = run(our_command(folder, folder / "model.pt", device, *flags))
            yield shape, classes, overlap, cost


def main(args: argparse.Namespace) -> None:
    """Print what both sides took, or with ``--pieces`` where our time goes."""
    if args.step:
        STEPS[args.step[0]](*args.step[1:], *args.flags)
        return
    weights: Path | None = args.weights
    shape: Shape = tuple(args.shape or (LARGE if weights else WORST))  # type: ignore[assignment]
    if args.pieces:
        with tempfile.TemporaryDirectory() as name:
            command = step("pieces", name, prepare(Path(name), weights, shape), args.device)
            subprocess.run([*command, "--", *args.flags], check=True)
        return
    (row,) = compare(weights, shape, [tuple(args.flags)], args.rounds, args.device)
    ours, peer = row.ours, row.peer
    scan = "a phantom" if weights else "tissue everywhere, random weights"
    print(f"{size_text(shape)} voxels, {scan}, on {args.device}")
    print("         seconds  peak GiB")
    print(f"ours     {ours.seconds:>7.1f}  {ours.peak / GIB:>8.2f}")
    print(f"peer     {peer.seconds:>7.1f}  {peer.peak / GIB:>8.2f}")
    print(f"ratio    {peer.seconds / ours.seconds:>7.2f}  {ours.peak / peer.peak:>8.2f}")
    for organ, dice in row.dice.items():
        print(f"Dice between both masks, {organ}: {dice:.4f}")


if __name__ == "__main__":
    parser = Parser(prog="python -m benchmarks.whole_scan", description="Time a scan from file to mask beside MONAI's.")
    parser.add_argument(
        "--weights", type=existing_file, help="a trained checkpoint of the reference network (default: random weights)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where both compute, cpu or cuda")
    parser.add_argument("--shape", type=count, nargs=3, metavar=("X", "Y", "Z"), help="size of the scan in voxels")
    parser.add_argument("--rounds", type=count, default=2, help="launches of each, in turns")
    parser.add_argument("--pieces", action="store_true", help="print where our time goes, instead")
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("flags", nargs="*", metavar="FLAG", help="flags of test.py for ours, behind --")
    with one_line_errors():
        main(parser.parse_args())

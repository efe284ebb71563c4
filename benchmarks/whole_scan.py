"""One scan from file to mask, ours and the peer's chain, in turns: ``python -m benchmarks.whole_scan --weights FILE``.

The peer is MONAI's UNETR in float32 with MONAI's transforms and sliding windows, put together as MONAI's bundle for
BTCV does it: ``LoadImaged`` … ``sliding_window_inference``, softmax, ``Invertd`` on the probabilities of all classes,
``SaveImaged``; on a GPU by float16 autocast. The bundle takes four windows at a time, which on the CPU that was
measured is 6 % slower than the one that the peer takes here. Flags for ours come last, behind ``--``: ``-- --fast``.

The scan is a phantom. Without ``--weights`` it is the worst of its size: tissue everywhere, so that nothing is cropped,
and random weights, so that every class is everywhere.

Each turn is a process of its own, timed from its launch to its end. This one imports little and stays small, since a
process begins with the peak of the one that launched it.
"""

import argparse
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

GIB = 2**30
FIELD_MM = (384.0, 384.0, 240.0)  # of the phantom's scan, air around the body included
LARGE, WORST = (512, 512, 150), (512, 512, 200)
WORST_SPACING = (0.75, 0.75, 2.5)
# the first as a whole, then with more voxels, more classes, more overlap
GROWTH = [
    ((256, 256, 100), 14, 0.5),
    ((512, 512, 100), 14, 0.5),
    ((512, 512, 200), 14, 0.5),
    ((256, 256, 100), 2, 0.5),
    ((256, 256, 100), 105, 0.5),
    ((256, 256, 100), 14, 0.25),
    ((256, 256, 100), 14, 0.75),
]


@dataclass(frozen=True)
class Cost:
    """What a process took: seconds from launch to end, and its peak resident memory in bytes."""

    seconds: float
    peak: int


@dataclass(frozen=True)
class Row:
    """Both chains on one scan.

    Attributes:
        flags: of ``test.py``.
        ours, peer: medians over the rounds.
        dice: between both masks, for organs that have more than 1 ml in the peer's.
    """

    flags: tuple[str, ...]
    ours: Cost
    peer: Cost
    dice: dict[str, float]


# what the processes do


def write_phantom(folder: Path, shape: Sequence[int]) -> None:
    """Write a phantom as ``scan.nii.gz``, cut or filled with air to exactly ``shape``."""
    import nibabel as nib
    import numpy as np

    from utils.phantom import AIR, draw_abdomen

    x, y, z = (field / size for field, size in zip(FIELD_MM, shape, strict=True))
    image, _ = draw_abdomen(4242, (x, y, z))
    voxels = np.full(shape, AIR, np.int16)
    drawn = np.asarray(image.dataobj)
    common = [min(size, there) for size, there in zip(shape, drawn.shape, strict=True)]
    source = tuple(slice((n - size) // 2, (n - size) // 2 + size) for n, size in zip(drawn.shape, common, strict=True))
    target = tuple(slice((n - size) // 2, (n - size) // 2 + size) for n, size in zip(shape, common, strict=True))
    voxels[target] = drawn[source]
    nib.save(nib.Nifti1Image(voxels, image.affine), folder / "scan.nii.gz")


def write_worst(folder: Path, shape: Sequence[int]) -> None:
    """Write noise in the range of tissue as ``scan.nii.gz``."""
    import nibabel as nib
    import numpy as np

    voxels = np.random.default_rng(0).integers(-150, 240, shape, dtype=np.int16)
    nib.save(nib.Nifti1Image(voxels, np.diag([*WORST_SPACING, 1.0])), folder / "scan.nii.gz")


def write_random_weights(folder: Path, classes: int) -> None:
    """Write a checkpoint of the reference network, untrained, as ``model.pt``."""
    import torch

    from utils.checkpoints.description import Description
    from utils.checkpoints.progress import Progress
    from utils.checkpoints.save import save_checkpoint
    from utils.config.flags import network_options, parse_train, preprocessing
    from utils.phantom import LABELS

    torch.manual_seed(0)
    flags = {**vars(parse_train([])), "out_channels": classes}
    labels = LABELS if classes == len(LABELS) else ("background", *(f"label {number}" for number in range(1, classes)))
    description = Description("unetr", network_options(flags), preprocessing(flags), labels, amp=True)
    save_checkpoint(folder / "model.pt", description, description.build(), Progress())


def run_peer(folder: Path, weights: Path, batch_size: int, device: str) -> None:
    """MONAI's chain, to ``peer/scan.nii.gz``."""
    import numpy as np
    import torch
    from monai import transforms
    from monai.data import decollate_batch, list_data_collate
    from monai.inferers import sliding_window_inference

    from benchmarks.network import peers_network

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
    with torch.no_grad(), torch.autocast(device, torch.float16, enabled=device == "cuda"):
        batch["pred"] = sliding_window_inference(
            batch["image"].to(device), settings["roi"], batch_size, network, overlap=0.5, mode="gaussian"
        )
    for item in decollate_batch(batch):
        after(item)


def print_agreement(folder: Path) -> None:
    """Print the Dice between both masks, a line for each organ of more than 1 ml."""
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
    """Segment with ``test.py`` in this process, and print what its pieces took and when they were done."""
    start = time.perf_counter()

    def told(name: str, seconds: float) -> None:
        print(f"{name:<24} {seconds:>7.2f} s, done at {time.perf_counter() - start:>6.2f} s")

    gc.disable()  # as test.py does
    import torch  # noqa: F401

    told("importing torch", time.perf_counter() - start)
    begun = time.perf_counter()
    import monai  # noqa: F401

    told("importing MONAI", time.perf_counter() - begun)
    begun = time.perf_counter()
    import runpy

    from utils.checkpoints import load
    from utils.segmentation import pipeline, results

    told("importing the rest", time.perf_counter() - begun)

    def watch(module: object, name: str) -> None:
        function = getattr(module, name)

        def watched(*args: object, **options: object) -> object:
            begun = time.perf_counter()
            result = function(*args, **options)
            told(name.strip("_").replace("_", " "), time.perf_counter() - begun)
            return result

        setattr(module, name, watched)

    watch(load, "load_ensemble")
    for name in ("read_scan", "to_network_grid", "_predict", "to_scan_grid", "write_mask", "measure"):
        watch(pipeline, name)
    for name in ("_picture", "pixels", "save_picture"):
        watch(pipeline, name)
    watch(results, "write_report")
    sys.argv = our_command(folder, weights, device, *flags)[1:]
    runpy.run_path("test.py", run_name="__main__")


STEPS: dict[str, Callable[..., None]] = {
    "phantom": lambda folder, *shape: write_phantom(Path(folder), [int(size) for size in shape]),
    "worst": lambda folder, *shape: write_worst(Path(folder), [int(size) for size in shape]),
    "weights": lambda folder, classes: write_random_weights(Path(folder), int(classes)),
    "peer": lambda folder, weights, batch_size, device: run_peer(Path(folder), Path(weights), int(batch_size), device),
    "agreement": lambda folder: print_agreement(Path(folder)),
    "pieces": lambda folder, weights, device, *flags: print_pieces(Path(folder), Path(weights), device, *flags),
}


# what this process does


def step(name: str, *arguments: object) -> list[str]:
    """The command that does one of :data:`STEPS` in a process of its own."""
    return [sys.executable, "-m", "benchmarks.whole_scan", "--step", name, *map(str, arguments)]


def our_command(folder: Path, weights: Path, device: str, *flags: str) -> list[str]:
    """``test.py`` on the folder's scan, to ``ours/scan.nii.gz``."""
    return [
        *(sys.executable, "test.py", f"--input={folder / 'scan.nii.gz'}", f"--output_dir={folder / 'ours'}"),
        *(f"--device={device}", "--overwrite", f"--pretrained_dir={weights.parent}"),
        *(f"--pretrained_model_name={weights.name}", *flags),
    ]


def run(command: Sequence[str]) -> Cost:
    """What a command takes; it prints nothing unless it fails, which ends this program too."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start
    if status != 0:
        raise SystemExit(f"error: {' '.join(command)} failed:\n{errors.decode()}")
    return Cost(seconds, usage.ru_maxrss * 1024)


def median(costs: Sequence[Cost]) -> Cost:
    """Of seconds and of peaks."""
    return Cost(
        statistics.median(cost.seconds for cost in costs), round(statistics.median(cost.peak for cost in costs))
    )


def compare(
    weights: Path | None,
    shape: tuple[int, int, int],
    ways: Sequence[tuple[str, ...]],
    rounds: int,
    batch_size: int,
    device: str,
) -> list[Row]:
    """Both chains in turns on a phantom, or where there are no weights on the worst scan of that shape.

    Args:
        ways: flags of ``test.py``; a row for each. One with ``--engine`` is launched once more, before it is timed.
        batch_size: windows in a forward pass of the peer.
        device: ``cpu`` or ``cuda``.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(step("worst" if weights is None else "phantom", folder, *shape))
        if weights is None:
            run(step("weights", folder, 14))
        used = folder / "model.pt" if weights is None else weights
        ours: list[list[Cost]] = [[] for _ in ways]
        peer = []
        dice: list[dict[str, float]] = [{} for _ in ways]
        for flags in ways:
            if any(flag.startswith("--engine") for flag in flags):
                run(our_command(folder, used, device, *flags))  # compiles the network, which then is on disk
        for _ in range(rounds):
            peer.append(run(step("peer", folder, used, batch_size, device)))
            for flags, costs, organs in zip(ways, ours, dice, strict=True):
                costs.append(run(our_command(folder, used, device, *flags)))
                told = subprocess.run(step("agreement", folder), capture_output=True, text=True, check=True).stdout
                organs.update(
                    (organ, float(value)) for organ, value in (line.split("\t") for line in told.splitlines())
                )
        return [
            Row(flags, median(costs), median(peer), organs)
            for flags, costs, organs in zip(ways, ours, dice, strict=True)
        ]


def growth(device: str) -> Iterator[tuple[tuple[int, int, int], int, float, Cost]]:
    """What ours takes for the worst scans: shape, classes, overlap, and the cost."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for shape, classes, overlap in GROWTH:
            run(step("worst", folder, *shape))
            run(step("weights", folder, classes))
            cost = run(our_command(folder, folder / "model.pt", device, f"--infer_overlap={overlap}"))
            yield shape, classes, overlap, cost


def size(shape: Sequence[int]) -> str:
    """A shape in words."""
    return " × ".join(map(str, shape))


def existing_file(text: str) -> Path:
    """The file that a benchmark's flag names, which is looked for before anything is timed."""
    path = Path(text).absolute()
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text} is no file; give the path of one")
    return path


def main(args: argparse.Namespace) -> None:
    """Print what both chains took, and what more the flags ask for."""
    if args.step:
        STEPS[args.step[0]](*args.step[1:], *args.flags)
        return
    weights: Path | None = args.weights
    shape: tuple[int, int, int] = tuple(args.shape or (LARGE if weights else WORST))  # type: ignore[assignment]
    if args.pieces:
        with tempfile.TemporaryDirectory() as name:
            run(step("phantom" if weights else "worst", name, *shape))
            if weights is None:
                run(step("weights", name, 14))
            command = step("pieces", name, weights or Path(name) / "model.pt", args.device)
            subprocess.run([*command, "--", *args.flags], check=True)
        return
    if args.growth:
        print("voxels           classes  overlap  seconds  GiB")
        for grown, classes, overlap, cost in growth(args.device):
            print(
                f"{size(grown):<16} {classes:>7}  {overlap:>7}  {cost.seconds:>7.1f}  {cost.peak / GIB:>4.2f}",
                flush=True,
            )
        return
    (row,) = compare(weights, shape, [tuple(args.flags)], args.rounds, args.peer_batch_size, args.device)
    ours, peer = row.ours, row.peer
    print(f"{size(shape)} voxels, {'a phantom' if weights else 'tissue everywhere, random weights'}, on {args.device}")
    print("         seconds  peak GiB")
    print(f"ours     {ours.seconds:>7.1f}  {ours.peak / GIB:>8.2f}")
    print(f"peer     {peer.seconds:>7.1f}  {peer.peak / GIB:>8.2f}")
    print(f"ratio    {peer.seconds / ours.seconds:>7.2f}  {ours.peak / peer.peak:>8.2f}")
    for organ, dice in row.dice.items():
        print(f"Dice between both masks, {organ}: {dice:.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.whole_scan", description="Time a scan beside the peer.")
    parser.add_argument(
        "--weights", type=existing_file, help="a trained checkpoint of the reference network (default: random weights)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where both compute")
    parser.add_argument("--shape", type=int, nargs=3, metavar=("X", "Y", "Z"), help="of the scan in voxels")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each")
    parser.add_argument("--peer_batch_size", type=int, default=1, help="windows in a forward pass of the peer")
    parser.add_argument("--pieces", action="store_true", help="instead tell what the pieces of ours take")
    parser.add_argument("--growth", action="store_true", help="instead tell how ours grows with the scan")
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("flags", nargs="*", metavar="FLAG", help="more of test.py's, behind --")
    args = parser.parse_args()
    if min(args.rounds, args.peer_batch_size, *(args.shape or ())) < 1:
        parser.error("--rounds, --peer_batch_size and --shape must be at least 1")
    main(args)

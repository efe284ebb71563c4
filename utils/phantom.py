"""Write synthetic CT-like abdomens, to try the software without scans: ``python -m utils.phantom --output_dir DIR``.

The phantoms have BTCV's 13 organs with BTCV's labels, in roughly the real places and shapes. Voxels are in Hounsfield
units with noise; size and pose vary. They are drawings, not patients: a network's Dice on them shows that the software
works, and nothing about its accuracy on real scans.

Lengths are in mm. Body coordinates point to the patient's Right, Anterior and Superior. Their origin lies in front of
the first lumbar vertebra.
"""

import argparse
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from utils.config.messages import name_flags
from utils.config.parser import Parser, count, file_path, number, whole
from utils.system.errors import InputError, WriteError, one_line_errors
from utils.system.files import read_json, write_json
from utils.system.signals import end_with_parent

LABELS = (
    "background",
    "spleen",
    "right kidney",
    "left kidney",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior vena cava",
    "portal and splenic veins",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
)
NOTICE = "synthetic phantoms, not patients"
# axis orders that scanners and converters write
ORIENTATIONS = ("RAS", "LAS", "LPS")
AIR, LUNG, FAT, MUSCLE, BONE, BOWEL = -1000.0, -820.0, -95.0, 55.0, 320.0, 25.0

Points = np.ndarray  # (3, X, Y, Z), body coordinates in mm
Shape = Callable[[Points], np.ndarray]  # (X, Y, Z), about the distance to the surface in mm, negative inside


def ellipsoid(centre: Sequence[float], semi_axes: Sequence[float], tilt: Sequence[float] = (0, 0, 0)) -> Shape:
    """An ellipsoid, rotated by ``tilt`` degrees about the x, y and z axes."""
    rotation = Rotation.from_euler("xyz", tilt, degrees=True).as_matrix().T
    size = np.asarray(semi_axes, dtype=float)

    def distance(points: Points) -> np.ndarray:
        local = np.einsum("ij,jxyz->ixyz", rotation, points - np.reshape(centre, (3, 1, 1, 1)))
        return (np.sqrt(np.sum((local / size.reshape(3, 1, 1, 1)) ** 2, axis=0)) - 1) * size.min()

    return distance


def tube(path: Sequence[Sequence[float]], radii: Sequence[float]) -> Shape:
    """A tube along a polyline. Its radius changes linearly between the points."""
    nodes = np.asarray(path, dtype=float)

    def distance(points: Points) -> np.ndarray:
        nearest = np.full(points.shape[1:], np.inf)
        for start, end, radius, next_radius in zip(nodes, nodes[1:], radii, radii[1:], strict=False):
            along = end - start
            offset = points - start.reshape(3, 1, 1, 1)
            place = np.clip(np.einsum("i,ixyz->xyz", along, offset) / (along @ along), 0, 1)
            gap = np.linalg.norm(offset - along.reshape(3, 1, 1, 1) * place, axis=0)
            nearest = np.minimum(nearest, gap - (radius + (next_radius - radius) * place))
        return nearest

    return distance


def union(*shapes: Shape) -> Shape:
    """The union of the shapes."""
    return lambda points: np.minimum.reduce([shape(points) for shape in shapes])


def without(shape: Shape, hole: Shape) -> Shape:
    """The part of ``shape`` outside ``hole``."""
    return lambda points: np.maximum(shape(points), -hole(points))


@dataclass(frozen=True)
class Organ:
    """An organ.

    Attributes:
        label: its value in the label map.
        intensity: its mean in Hounsfield units, in the portal venous phase.
        shape: its surface in body coordinates.
    """

    label: int
    intensity: float
    shape: Shape


# drawn in this order: where two organs overlap, the later one wins
ORGANS = (
    Organ(6, 110, union(
        ellipsoid((84, 2, 42), (62, 76, 78), tilt=(0, -12, 0)),
        ellipsoid((14, 42, 62), (66, 40, 34), tilt=(0, 14, 0)),
    )),
    Organ(7, 35, tube(
        [(-62, -8, 84), (-72, 18, 52), (-60, 44, 12), (-22, 54, -8), (14, 46, 0)], [30, 33, 28, 21, 13]
    )),
    Organ(1, 125, ellipsoid((-104, -34, 52), (27, 46, 54), tilt=(15, -15, 0))),
    Organ(2, 185, without(
        ellipsoid((62, -46, -26), (30, 28, 56), tilt=(8, 10, 0)), ellipsoid((34, -38, -26), (16, 12, 16))
    )),
    Organ(3, 185, without(
        ellipsoid((-62, -46, -8), (30, 28, 57), tilt=(8, -10, 0)), ellipsoid((-34, -38, -8), (16, 12, 16))
    )),
    Organ(11, 90, tube(
        [(32, 12, -26), (26, 18, -4), (4, 24, 8), (-30, 16, 16), (-74, -14, 30)], [14, 15, 11, 12, 10]
    )),
    Organ(4, 8, ellipsoid((52, 50, -8), (15, 17, 30), tilt=(-25, 0, 0))),
    Organ(5, 40, tube([(-2, -8, 150), (-8, -6, 108), (-30, -4, 84)], [10, 10, 9])),
    Organ(12, 70, union(
        tube([(40, -24, 44), (44, -38, 26)], [5, 6]), tube([(40, -24, 44), (30, -34, 26)], [5, 5])
    )),
    Organ(13, 70, union(
        tube([(-38, -18, 46), (-48, -32, 30)], [5, 6]), tube([(-38, -18, 46), (-30, -30, 28)], [5, 5])
    )),
    Organ(10, 165, union(
        tube([(52, 10, 46), (30, 4, 30), (12, 8, 14), (-30, 0, 24), (-84, -22, 42)], [8, 8, 9, 7, 6]),
        tube([(12, 8, 14), (10, 14, -40)], [8, 7]),
    )),
    Organ(9, 145, tube([(22, -18, -160), (22, -18, -20), (24, -12, 60), (20, 0, 112)], [12, 12, 13, 13])),
    Organ(8, 175, tube([(-8, -20, -160), (-10, -18, 0), (-14, -22, 80), (-18, -30, 160)], [9, 11, 12, 13])),
)  # fmt: skip


def draw_abdomen(seed: int, spacing: tuple[float, float, float]) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """Draw one phantom.

    Args:
        seed: the same seed draws the same body and noise.
        spacing: voxel size in mm: left to right, back to front, feet to head.

    Returns:
        The image in Hounsfield units (int16), and the labels 0 … 13 (uint8) on the same grid.
    """
    random = np.random.default_rng(seed)
    extent = np.array([352, 262, 246]) + random.uniform(-12, 12, 3)
    shape = np.round(extent / spacing).astype(int)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -(shape - 1) * spacing / 2  # puts the body's origin at the centre of the grid
    points = _body_coordinates(random, shape, affine, spacing)

    labels = np.zeros(shape, np.uint8)
    intensity = _surroundings(random, points)
    for organ in ORGANS:
        shift = random.uniform(-4, 4, 3).reshape(3, 1, 1, 1)
        growth = random.uniform(-0.05, 0.08)
        inside = _grown(organ.shape(points - shift), growth)
        labels[inside] = organ.label
        intensity[inside] = organ.intensity + random.normal(0, 8)
    texture = gaussian_filter(random.normal(0, 1, shape), 1.5)
    intensity = gaussian_filter(intensity, 0.5) + 8 * texture / texture.std() + random.normal(0, 12, shape)
    voxels = np.clip(np.round(intensity), -1024, 3071).astype(np.int16)

    code = ORIENTATIONS[random.integers(len(ORIENTATIONS))]
    offset = random.uniform(-200, 200, 3)  # a scanner's origin can be anywhere
    affine[:3, 3] += offset
    return _stored(voxels, affine, code), _stored(labels, affine, code)


def _grown(distance: np.ndarray, growth: float) -> np.ndarray:
    """The voxels inside a shape after its surface moves out by ``growth`` times the depth of its deepest voxel."""
    depth = -float(distance.min())
    return distance < growth * max(depth, 0.0)


def _body_coordinates(
    random: np.random.Generator, shape: np.ndarray, affine: np.ndarray, spacing: tuple[float, float, float]
) -> Points:
    """The body coordinates of each voxel (3, X, Y, Z), for a body that is rotated, shifted, scaled and bent."""
    grid = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij")).astype(float)
    world = grid * np.reshape(spacing, (3, 1, 1, 1)) + affine[:3, 3].reshape(3, 1, 1, 1)
    rotation = Rotation.from_euler("xyz", random.uniform(-5, 5, 3), degrees=True).as_matrix()
    scale = random.uniform(0.93, 1.07, 3).reshape(3, 1, 1, 1)
    shift = random.uniform(-8, 8, 3).reshape(3, 1, 1, 1)
    points = np.einsum("ij,jxyz->ixyz", rotation, world - shift) / scale
    smoothness = [35 / step for step in spacing]  # in voxels: bends extend over about 35 mm
    for axis in range(3):
        bend = gaussian_filter(random.normal(0, 1, shape), smoothness)
        points[axis] += 4 * bend / bend.std()
    return points


def _surroundings(random: np.random.Generator, points: Points) -> np.ndarray:
    """The unlabelled parts in Hounsfield units (X, Y, Z): air, fat, muscle, spine, ribs, lungs and bowel."""
    x, y, z = points
    rim = random.uniform(8, 26)  # mm of fat under the skin
    wall = np.sqrt((x / 148) ** 2 + (y / 100) ** 2)
    intensity = np.full(x.shape, AIR)
    intensity[np.sqrt((x / (148 + rim)) ** 2 + (y / (100 + rim)) ** 2) < 1] = FAT
    intensity[wall < 1] = MUSCLE
    intensity[wall < 0.92] = FAT
    for side in (-1, 1):
        psoas = tube([(side * 32, -52, 20), (side * 46, -48, -160)], [10, 24])
        intensity[psoas(points) < 0] = MUSCLE
        back = tube([(side * 34, -82, 160), (side * 34, -82, -160)], [22, 22])
        intensity[back(points) < 0] = MUSCLE
    for _ in range(9):
        start = random.uniform((-95, 5, -120), (95, 65, -50))
        loop = tube([start.tolist(), (start + random.uniform(-35, 35, 3)).tolist()], [14, 14])
        intensity[loop(points) < 0] = BOWEL + random.normal(0, 10)
    dome = 96 - 0.006 * (np.abs(x) - 70) ** 2 - 0.006 * y**2  # the two domes of the diaphragm
    intensity[(wall < 0.9) & (z > dome)] = LUNG
    ribs = (np.abs(wall - 0.95) < 0.035) & (np.mod(z + 0.3 * y, 32) < 9) & (z > -20) & (y < 70)
    intensity[ribs] = BONE
    spine = tube([(0, -56, -160), (0, -52, 0), (0, -56, 160)], [21, 20, 19])
    intensity[spine(points) < 0] = 0.7 * BONE
    intensity[tube([(0, -84, -160), (0, -84, 160)], [8, 8])(points) < 0] = BONE
    return intensity


def _stored(voxels: np.ndarray, affine: np.ndarray, code: str) -> nib.Nifti1Image:
    """The volume with its axes stored in the order ``code``, such as LPS. World coordinates stay the same."""
    reorder = ornt_transform(io_orientation(affine), axcodes2ornt(code))
    image = nib.Nifti1Image(nib.apply_orientation(voxels, reorder), affine @ inv_ornt_aff(reorder, voxels.shape))
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = NOTICE
    return image


def write_phantoms(folder: Path, parts: dict[str, int], seed: int, spacing: tuple[float, float, float]) -> Path:
    """Write phantoms and their data list in BTCV's layout.

    Args:
        folder: where ``imagesTr/img0001.nii.gz``, ``labelsTr/label0001.nii.gz`` and so on are written.
        parts: the number of phantoms in each part of the data list, such as ``{"training": 24, "validation": 6}``.
        seed: phantom number ``n`` is drawn with seed ``100000 * seed + n``.
        spacing: voxel size in mm, as in :func:`draw_abdomen`.

    Returns:
        The path of the data list, ``dataset_0.json``.

    Raises:
        InputError: if a file that isn't a phantom would be replaced.
    """
    path, total = folder / "dataset_0.json", sum(parts.values())
    files = [folder / name for number in range(1, total + 1) for name in _entry(number).values()]
    foreign = [file for file in (path, *files) if file.exists() and not _is_phantom(file)]
    if foreign:
        raise InputError(f"{foreign[0]}: is there already, and is no phantom. Give another `output_dir`.")
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    content: dict[str, object] = {
        "name": "Phantoms",
        "description": f"{NOTICE}; written by utils/phantom.py with seed {seed}",
        "modality": {"0": "CT"},
        "labels": {str(value): name for value, name in enumerate(LABELS)},
    }
    # without the initializer, processes of a program that is killed would wait for work for ever
    with ProcessPoolExecutor(initializer=end_with_parent) as pool:
        written = pool.map(partial(_write_phantom, folder, seed, spacing), range(1, total + 1))
        entries = list(tqdm(written, total=total, desc="phantoms", leave=False, disable=None))
    for part, size in parts.items():
        content[part], entries = entries[:size], entries[size:]
    write_json(path, content)
    return path


def _write_phantom(folder: Path, seed: int, spacing: tuple[float, float, float], number: int) -> dict[str, str]:
    image, label = draw_abdomen(seed * 100_000 + number, spacing)
    entry = _entry(number)
    nib.save(image, folder / entry["image"])
    nib.save(label, folder / entry["label"])
    return entry


def _entry(number: int) -> dict[str, str]:
    """What the data list says of a phantom."""
    return {"image": f"imagesTr/img{number:04d}.nii.gz", "label": f"labelsTr/label{number:04d}.nii.gz"}


def _is_phantom(path: Path) -> bool:
    """Whether a file is from this program: its list, an image or a label."""
    try:
        if path.suffix == ".json":
            content = read_json(path)
            return isinstance(content, dict) and str(content.get("description")).startswith(NOTICE)
        header = nib.Nifti1Image.from_filename(path).header
        return bool(header["descrip"].item().decode(errors="replace") == NOTICE)
    except (OSError, EOFError, ValueError, nib.filebasedimages.ImageFileError):
        return False


def _parse() -> argparse.Namespace:
    parser = Parser(prog="python -m utils.phantom", description="Write synthetic CT-like abdomens with 13 organs.")
    parser.add_argument("--output_dir", type=file_path, required=True, help="folder to write to")
    parser.add_argument("--training", type=count, default=24, help="phantoms to train on")
    parser.add_argument("--validation", type=count, default=6, help="phantoms to validate on")
    parser.add_argument("--test", type=whole, default=6, help="phantoms to test on")
    parser.add_argument("--seed", type=whole, default=0, help="seed of the drawings")
    size = number(float, 0.1, 50)
    parser.add_argument("--space_x", type=size, default=2.5, help="voxel size in mm, left to right")
    parser.add_argument("--space_y", type=size, default=2.5, help="voxel size in mm, back to front")
    parser.add_argument("--space_z", type=size, default=4.0, help="voxel size in mm, feet to head")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    """Write the phantoms.

    Raises:
        InputError: if the folder can't be written, or a process that draws is killed.
    """
    folder = Path(args.output_dir)
    parts = {"training": args.training, "validation": args.validation, "test": args.test}
    try:
        path = write_phantoms(folder, parts, args.seed, (args.space_x, args.space_y, args.space_z))
    except WriteError:
        raise
    except OSError as error:
        raise InputError(f"--output_dir {folder}: can't write there ({error.strerror}). Give another.") from error
    except (BrokenProcessPool, MemoryError):
        raise InputError(
            "a process that draws phantoms was killed, or had no memory. Free memory, or give a larger --space_x, "
            "--space_y or --space_z."
        ) from None
    print(f"{sum(parts.values())} {NOTICE}; {path} lists them")


if __name__ == "__main__":
    with one_line_errors(name_flags):
        main(_parse())

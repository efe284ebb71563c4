"""Read our RTSTRUCT back with other programs: ``python -m benchmarks.rtstruct --python VENV/bin/python``.

That Python has the readers, which don't go with our requirements: ``pip install rt-utils dcmrtstruct2nii platipy
plastimatch SimpleITK 'pydicom<3'``. A reader that is missing is left out. The series lie in the 48 ways in which axes
can run along the body's, oblique, and with a tilted gantry; their pixels are square, because rt-utils takes the two
sides of others for each other. Masks are compared where they lie in the patient, on the grid of the reader.
"""

import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.io.series import oblique, only_series, phantom, write_series
from utils.config.parser import Parser
from utils.io.dicom_rtstruct import write_structure_set
from utils.io.dicom_series import read_series
from utils.system.errors import one_line_errors

SHAPE = (48, 48, 12)
NAMES = {1: "ball", 2: "ring", 3: "parts", 4: "voxel", 5: "walls"}
STEP, DISTANCE, TILT = 0.7, 2.5, 0.9  # mm: of pixels, of slices, and by which the gantry shifts each slice


def shapes() -> np.ndarray:
    """A ball, a ring around an island, two parts, a voxel, and walls one voxel thick with specks between them."""
    x, y, z = np.indices(SHAPE)
    mask = np.zeros(SHAPE, np.uint8)
    mask[np.hypot(np.hypot(x - 12, y - 11), (z - 5) * DISTANCE / STEP) < 9] = 1
    radius = np.hypot(x - 34, y - 12)
    mask[(radius < 10) & (radius >= 5) & (z > 1) & (z < 9)] = 2
    mask[(radius < 2.5) & (z > 3) & (z < 8)] = 2
    mask[(np.hypot(x - 8, y - 34) < 5) & (z < 6)] = mask[(np.hypot(x - 19, y - 40) < 4) & (z > 3)] = 3
    mask[40, 40, 5] = 4
    mask[25:38, 24, 3:9] = mask[25, 24:38, 3:9] = mask[27:36:2, 26:36:2, 4] = 5
    return mask


def affines() -> dict[str, np.ndarray]:
    """The affine of each series, by its name."""
    found = {}
    for order, signs in itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)):
        affine = np.eye(4)
        affine[:3, :3] = np.eye(3)[:, order] @ np.diag(signs)
        affine[:3, 3] = 30, -20, 110
        found["upright " + "".join("xyz"[axis] + "-+"[sign > 0] for axis, sign in zip(order, signs, strict=True))] = (
            affine
        )
    found |= {"oblique": oblique(), "tilted": found["upright x+y+z+"].copy(), "tilted oblique": oblique()}
    for name, affine in found.items():
        affine[:3, :3] *= np.array([STEP, STEP, DISTANCE]) / np.linalg.norm(affine[:3, :3], axis=0)
        affine[:3, 2] += ("tilted" in name) * TILT * affine[:3, 1] / STEP
    return found


def write_cases(folder: Path) -> None:
    """Write a folder for each case: ``ct``, ``rt.dcm``, and the mask that was drawn, on the series' grid."""
    colours = dict.fromkeys(NAMES, (255, 0, 0))
    for name, affine in affines().items():
        case = folder / name.replace(" ", "_")
        write_series(case / "ct", phantom(SHAPE), affine)
        volume = read_series(only_series(case / "ct"))
        # slices are stacked along their normal, which may be the other way than they were written
        mask = shapes() if np.allclose(volume.affine[:3, 2], affine[:3, 2]) else shapes()[..., ::-1]
        write_structure_set(case / "rt.dcm", mask, NAMES, colours, list(volume.datasets))
        np.save(case / "mask.npy", mask)


def run(argv: Sequence[str] | None = None) -> None:
    """Print the lowest Dice of each reader for each shape, over the upright, oblique and tilted series."""
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="a Python with the readers (default: this one)")
    args = parser.parse_args(argv)
    with one_line_errors(), tempfile.TemporaryDirectory() as folder:
        write_cases(Path(folder))
        command = [args.python, str(Path(__file__).with_name("rtstruct_readers.py")), folder]
        reply = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        found: dict[str, dict[str, dict[str, float] | str]] = json.loads(reply.splitlines()[-1])
    print(f"{'reader':16} {'series':8} {'cases':>5}", *(f"{name:>6}" for name in NAMES.values()))
    for reader, by_case in found.items():
        for kind in ("upright", "oblique", "tilted"):
            scores = [scores for case, scores in by_case.items() if case.startswith(kind)]
            if fault := next((one for one in scores if isinstance(one, str)), None):
                print(f"{reader:16} {kind:8} {len(scores):5} {fault}")
                continue
            lowest = [min(one[name] for one in scores if not isinstance(one, str)) for name in NAMES.values()]
            print(f"{reader:16} {kind:8} {len(scores):5}", *(f"{value:6.3f}" for value in lowest))


if __name__ == "__main__":
    run()

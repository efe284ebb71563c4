"""The scans of a results folder in a browser: ``view.html``, and what it loads from the folder ``view/``.

A page from the disk can't fetch files, but it can load scripts. So each scan is a script that calls a function of the
page with its volumes. The page loads that of the chosen scan only.
"""

import base64
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nibabel as nib
import numpy as np
from isal import igzip
from matplotlib.colors import to_hex

from utils.evaluation.pages import render
from utils.evaluation.pictures import fullest_planes, label_colours
from utils.io.geometry import ras_affine, ras_spacing, to_ras
from utils.system.files import fitting_name, make_folder, write_bytes, write_text
from utils.system.text import one_line

TEMPLATE = Path(__file__).with_suffix(".html.j2")
PROGRAM = Path(__file__).with_suffix(".js")
NIIVUE = Path(__file__).with_name("niivue")

PAGE = "view.html"
FOLDER = "view"
ENDING = ".scan.js"  # no other file there has it

MOST_IN_PLANE = 256  # voxels along an axis of a slice: what a third of a screen shows
MOST_VOXELS = 256**3  # what a browser draws smoothly
MOST_BYTES = 15_000_000  # of a scan's script
# organs; NiiVue mixes the colours of more, unless the file says that it holds labels: then it draws them less opaque
MOST_MIXED = 60


def view_file(folder: Path, stem: str) -> Path:
    """The script of a scan in a results folder."""
    return folder / FOLDER / fitting_name(stem, ENDING)


def view_address(scan: str) -> str:
    """The address of a scan's view, as a page beside ``view.html`` links to it."""
    return f"{PAGE}#{quote(scan, safe='', errors='backslashreplace')}"


def write_view(
    path: Path,
    image: np.ndarray,
    masks: Mapping[str, np.ndarray | None],
    affine: np.ndarray,
    labels: Sequence[str],
    window: tuple[float, float],
    most_bytes: int = MOST_BYTES,
) -> None:
    """Write a scan's script, with its volumes reduced to what a screen needs.

    Image and masks lie on one coarser grid: along each axis, as many voxels are taken together as needed for 256 voxels
    in a slice, 256³ in all, and a script of 15 MB. The image is their mean in 8 bits between the ends of the window, a
    mask the value of the one in their middle.

    Args:
        image: (X, Y, Z).
        masks: ``prediction`` and ``label``, (X, Y, Z) each; None where there is none. Values below 1 aren't shown.
        affine: from voxels to mm toward Right, Anterior and Superior.
        labels: names of the classes, the background first.
        window: the intensities that are drawn black and white.
        most_bytes: of the script.

    Raises:
        WriteError: if it can't be written.
    """
    turned = {name: to_ras(mask, affine) for name, mask in masks.items() if mask is not None}
    grid, spacing = ras_affine(affine, image.shape), ras_spacing(affine)
    image = to_ras(image, affine)
    factors = first_factors(image.shape, spacing)
    while True:
        content = _reduced(image, turned, grid, labels, window, factors)
        script = f"showScan({json.dumps(content)});\n"
        if len(script) <= most_bytes or factors == image.shape:
            break
        most_voxels = math.prod(content["shape"]) * most_bytes / len(script)
        factors = coarser(factors, image.shape, spacing, most_voxels)
    make_folder(path.parent)
    write_text(path, script)


def first_factors(shape: Sequence[int], spacing: Sequence[float]) -> tuple[int, ...]:
    """How many voxels to take together along each axis for at most 256 in a slice and 256³ in all.

    Slices lie across the axis with the largest spacing, of equal ones the last.
    """
    across = max(range(3), key=lambda axis: (round(spacing[axis], 3), axis))
    factors = tuple(1 if axis == across else math.ceil(size / MOST_IN_PLANE) for axis, size in enumerate(shape))
    return coarser(factors, shape, spacing, MOST_VOXELS)


def coarser(
    factors: Sequence[int], shape: Sequence[int], spacing: Sequence[float], most_voxels: float
) -> tuple[int, ...]:
    """Larger factors for at most so many voxels: that of the finest axis grows, one by one."""
    found = list(factors)
    while math.prod(_shape(shape, found)) > most_voxels and found != list(shape):
        open_axes = [axis for axis in range(3) if found[axis] < shape[axis]]
        finest = min(open_axes, key=lambda axis: found[axis] * spacing[axis])
        found[finest] += 1
    return tuple(found)


def _shape(shape: Sequence[int], factors: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.ceil(size / factor) for size, factor in zip(shape, factors, strict=True))


def _reduced(
    image: np.ndarray,
    masks: Mapping[str, np.ndarray],
    affine: np.ndarray,
    labels: Sequence[str],
    window: tuple[float, float],
    factors: Sequence[int],
) -> dict[str, Any]:
    """What the page needs of a scan whose axes run to Right, Anterior and Superior, ready for JSON."""
    small = {name: np.maximum(_middles(mask, factors), 0) for name, mask in masks.items()}
    counts = [np.bincount(mask.ravel(), minlength=len(labels)) for mask in small.values()]
    found: list[int] = (1 + np.flatnonzero(np.sum(counts, axis=0)[1:])).tolist()
    numbers = np.zeros(len(labels), np.min_scalar_type(len(found)))  # 1, 2, … for the labels that are there
    numbers[found] = np.arange(1, len(found) + 1)
    colours = label_colours(labels)
    grid = affine @ _from_blocks(factors)
    low, high = window
    step = (high - low) / 255 or 1.0
    grey = np.rint((np.clip(_means(image, factors), low, high) - low) / step).astype(np.uint8)
    many = len(found) > MOST_MIXED
    volumes = {name: _nifti(numbers[mask], grid, as_labels=many) for name, mask in small.items()}
    return {
        "image": _nifti(grey, grid, slope=step, intercept=low),
        "window": [low, high],
        "prediction": None,
        "label": None,
        **volumes,
        "organs": [{"name": one_line(labels[value]), "colour": to_hex(colours[value])} for value in found],
        "start": fullest_planes(np.logical_or.reduce([mask > 0 for mask in small.values()])),
        "shape": list(grey.shape),
        "full_shape": list(image.shape),
    }


def _means(volume: np.ndarray, factors: Sequence[int]) -> np.ndarray:
    """The mean of each block of voxels; those at the upper ends may be smaller."""
    for axis, factor in enumerate(factors):
        if factor > 1:
            along = np.moveaxis(volume, axis, 0)
            sums = along[::factor].astype(np.float32)
            for offset in range(1, factor):  # seconds faster than np.add.reduceat
                part = along[offset::factor]
                sums[: len(part)] += part
            counts = np.diff(np.arange(0, len(along), factor), append=len(along)).astype(np.float32)
            volume = np.moveaxis(sums / counts[:, None, None], 0, axis)
    return volume


def _middles(volume: np.ndarray, factors: Sequence[int]) -> np.ndarray:
    """The voxel in the middle of each block; of two in the middle the lower one."""
    places = [
        np.minimum(np.arange(0, size, factor) + (factor - 1) // 2, size - 1)
        for size, factor in zip(volume.shape, factors, strict=True)
    ]
    return volume[np.ix_(*places)]


def _from_blocks(factors: Sequence[int]) -> np.ndarray:
    """From the index of a block to that of the voxel in its middle, as an affine (4, 4)."""
    affine = np.diag([*factors, 1.0])
    affine[:3, 3] = [(factor - 1) / 2 for factor in factors]
    return affine


def _nifti(
    voxels: np.ndarray, affine: np.ndarray, as_labels: bool = False, slope: float = 1.0, intercept: float = 0.0
) -> str:
    """A packed NIfTI file in base64."""
    header = nib.Nifti1Header()
    header.set_data_shape(voxels.shape)
    header.set_data_dtype(voxels.dtype)
    header.set_sform(affine, 1)
    header.set_zooms(np.linalg.norm(affine[:3, :3], axis=0))  # which tell NiiVue how long the axes are
    header.set_xyzt_units("mm")
    if as_labels:
        header.set_intent("label")
    header.set_slope_inter(slope, intercept)
    file = io.BytesIO()
    header.write_to(file)
    file.write(voxels.tobytes(order="F"))
    return base64.b64encode(igzip.compress(file.getvalue(), mtime=0)).decode("ascii")


def write_viewer(folder: Path, views: Mapping[str, Path]) -> None:
    """Write ``view.html``, and beside the scans' scripts what else it loads.

    Args:
        folder: that of the results.
        views: each scan's script by name, in the order of the page's list.

    Raises:
        WriteError: if something can't be written.
    """
    make_folder(folder / FOLDER)
    files = {"view.js": PROGRAM, "niivue.js": NIIVUE / "niivue.umd.js", "LICENSE": NIIVUE / "LICENSE"}
    for name, source in files.items():
        write_bytes(folder / FOLDER / name, source.read_bytes())
    scans = [
        {
            "name": one_line(scan),
            "hash": view_address(scan).partition("#")[2],
            "script": f"{FOLDER}/{quote(path.name, errors='surrogateescape')}",
        }
        for scan, path in views.items()
    ]
    version = re.search(r"NiiVue\]\(\S+\) (\S+)", (NIIVUE / "README.md").read_text(encoding="utf-8"))
    assert version is not None
    write_text(folder / PAGE, render(TEMPLATE, scans=scans, niivue=version[1]))

"""Masks and probabilities as NIfTI files with the geometry of their scan, and label tables for viewers."""

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import cc3d
import nibabel as nib
import numpy as np
from isal import igzip

from utils.evaluation.pictures import label_colours
from utils.io.geometry import affine_faults
from utils.io.nifti import is_rotation
from utils.io.scan import Volume
from utils.system.files import atomic_write, write_text
from utils.system.text import one_line

# probabilities are stored as unsigned 16-bit integers: NIfTI has no float16, which would be less exact anyway
LARGEST_UINT16 = 65535
FAST = 1  # level of compression: masks get as small as by gzip's 5
SCANNER, MILLIMETRES = 1, "mm"  # NIfTI's code for scanner coordinates, and its unit of length
PERPENDICULAR = 0.01  # cosine between axes; DICOM's may be off by as much


def keep_largest_component(mask: np.ndarray, label: int) -> None:
    """Set all of a label but its largest connected component to background, in place.

    Voxels that share a corner are connected (26 neighbours). Of equally large components the first in scan order stays.

    Args:
        mask: (X, Y, Z).
    """
    organ = np.ascontiguousarray(mask == label)  # in this memory layout cc3d numbers components in scan order
    components, count = cc3d.connected_components(organ, connectivity=26, return_N=True)
    if count > 1:
        sizes = np.bincount(components.ravel())
        largest = sizes[1:].argmax() + 1  # 0 is what isn't the organ
        mask[organ & (components != largest)] = 0


def write_mask(path: Path, mask: np.ndarray, volume: Volume, labels: Mapping[int, str]) -> None:
    """Write :func:`mask_image` as a NIfTI file.

    Raises:
        WriteError: if it can't be written.
    """
    image = mask_image(mask, volume, labels)
    with atomic_write(path) as temporary, igzip.open(temporary, "wb", FAST) as file:
        image.to_stream(file)


def mask_image(mask: np.ndarray, volume: Volume, labels: Mapping[int, str]) -> nib.Nifti1Image:
    """A mask (X, Y, Z) as an image of nibabel, with the shape, affine, coordinate codes and units of its scan's file.

    A header extension holds the labels' names as JSON.
    """
    # keep the file's dimensions of length one, but not the one of the channels
    header = _header(volume, volume.file_shape if np.prod(volume.file_shape) == mask.size else mask.shape)
    header.set_data_dtype(mask.dtype)
    header.set_intent("label", name="UNETR")
    names = json.dumps({"labels": {str(label): name for label, name in labels.items()}})
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", names.encode()))
    voxels = mask.reshape(header.get_data_shape())
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    return kind(voxels, header.get_best_affine(), header)  # which leaves its codes as they are


def write_probabilities(
    path: Path, volume: Volume, labels: Mapping[int, str], probability: Callable[[int], np.ndarray]
) -> None:
    """Write class probabilities as NIfTI (X, Y, Z, classes) with 16 bits each, one class at a time to save memory.

    Args:
        labels: names by class, the background included.
        probability: gives the probability (X, Y, Z) of a class.

    Raises:
        WriteError: if it can't be written.
    """
    header = _header(volume, (*volume.shape, len(labels)))
    header.set_data_dtype(np.uint16)
    header.set_slope_inter(1 / LARGEST_UINT16, 0)
    names = json.dumps({"classes": list(labels.values())})
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", names.encode()))
    with atomic_write(path) as temporary, igzip.open(temporary, "wb", FAST) as file:
        header.write_to(file)
        for label in labels:
            values = np.rint(probability(label) * LARGEST_UINT16).astype(header.endianness + "u2")
            file.write(values.tobytes(order="F"))


def label_rgb(labels: Collection[int]) -> dict[int, list[int]]:
    """The colour of each label in the report's pictures: red, green and blue from 0 to 255."""
    colours = label_colours([""] * (max(labels) + 1))
    return {label: [round(255 * channel) for channel in colours[label][:3]] for label in labels}


def write_label_tables(folder: Path, labels: Mapping[int, str]) -> None:
    """Write ``labels_slicer.ctbl`` for 3D Slicer and ``labels_itksnap.txt`` for ITK-SNAP, a line for each label.

    Raises:
        WriteError: if they can't be written.
    """
    colours = label_rgb(labels)
    slicer, snap = "", ""
    for label, name in labels.items():
        r, g, b = colours[label]
        name = one_line(name)
        slicer += f"{label} {name.replace(' ', '_')} {r} {g} {b} 255\n"
        quoted = name.replace('"', "'")
        snap += f'{label:5d} {r:5d} {g:4d} {b:4d}        1  1  1    "{quoted}"\n'
    write_text(folder / "labels_slicer.ctbl", f"# colours of the labels\n0 background 0 0 0 0\n{slicer}")
    clear = '    0     0    0    0        0  0  0    "Clear Label"\n'
    write_text(folder / "labels_itksnap.txt", f"# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL\n{clear}{snap}")


def _header(volume: Volume, shape: tuple[int, ...]) -> nib.Nifti1Header:
    """A header with the geometry of the scan's file, and nothing else of it."""
    if volume.header is None:
        header = nib.Nifti1Header()
        header.set_sform(volume.affine, SCANNER)
        header.set_qform(_without_shear(volume.affine), SCANNER, strip_shears=True)
        header.set_xyzt_units(MILLIMETRES)
    else:
        kind = nib.Nifti2Header if isinstance(volume.header, nib.Nifti2Header) else nib.Nifti1Header
        header = kind.from_header(volume.header)
        header.extensions.clear()
        header["descrip"] = header["aux_file"] = b""
        header["cal_min"] = header["cal_max"] = 0
        # a form that can't place voxels, and wasn't taken, would make the mask unreadable elsewhere
        if header["qform_code"] != 0 and affine_faults(Path(), header.get_sform()):
            header["sform_code"] = 0
        if header["sform_code"] != 0 and not is_rotation(header):
            header["qform_code"] = 0
    header.set_data_shape(shape)
    return header


def _without_shear(affine: np.ndarray) -> np.ndarray:
    """An affine (4, 4) whose third axis is turned to stand upright on the first two, if these are perpendicular.

    nibabel would turn all three, and ITK, which takes the qform where the sform shears, would show the slices of a
    tilted gantry in another plane.
    """
    x, y, z = affine[:3, :3].T
    if abs(x @ y) > PERPENDICULAR * np.linalg.norm(x) * np.linalg.norm(y):
        return affine
    normal = np.cross(x, y)
    upright = affine.copy()
    upright[:3, 2] = normal * np.sign(normal @ z) * np.linalg.norm(z) / np.linalg.norm(normal)
    return upright

"""The part of :mod:`benchmarks.rtstruct` that reads, by a Python of its own, which knows nothing of this repository."""

import contextlib
import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813

NAMES = {1: "ball", 2: "ring", 3: "parts", 4: "voxel", 5: "walls"}
Read = dict[str, tuple[np.ndarray, np.ndarray]]  # by name: a mask (X, Y, Z), and from its index to mm in LPS (4, 4)


def slices(folder: Path) -> list[Any]:
    """The headers of a series, along the normal of its slices."""
    found = [pydicom.dcmread(path, stop_before_pixels=True) for path in folder.iterdir()]
    normal = np.cross(*np.reshape(found[0].ImageOrientationPatient, (2, 3)))
    return sorted(found, key=lambda one: float(np.dot(normal, one.ImagePositionPatient)))


def of_image(image: Any) -> tuple[np.ndarray, np.ndarray]:
    """A mask of SimpleITK's with its affine."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).T > 0, affine


def by_rt_utils(case: Path) -> Read:
    """Its masks have no geometry: they lie on an upright grid that begins with the first slice."""
    from rt_utils import RTStructBuilder

    ordered = slices(case / "ct")
    row, column = np.reshape(ordered[0].ImageOrientationPatient, (2, 3))
    normal, first, last = np.cross(row, column), ordered[0].ImagePositionPatient, ordered[-1].ImagePositionPatient
    distance = np.dot(normal, np.subtract(last, first)) / (len(ordered) - 1)
    affine = np.eye(4)
    affine[:3] = np.c_[row * ordered[0].PixelSpacing[1], column * ordered[0].PixelSpacing[0], normal * distance, first]
    read = RTStructBuilder.create_from(str(case / "ct"), str(case / "rt.dcm"))
    return {name: (read.get_roi_mask_by_name(name).transpose(1, 0, 2), affine) for name in NAMES.values()}


def by_dcmrtstruct2nii(case: Path) -> Read:
    """It writes a NIfTI file for each ROI."""
    from dcmrtstruct2nii import dcmrtstruct2nii

    with tempfile.TemporaryDirectory() as folder:
        dcmrtstruct2nii(str(case / "rt.dcm"), str(case / "ct"), folder, convert_original_dicom=False)
        return {name: of_image(sitk.ReadImage(f"{folder}/mask_{name}.nii.gz")) for name in NAMES.values()}


def by_plastimatch(case: Path) -> Read:
    """It writes a NIfTI file for each ROI."""
    program = Path(sys.executable).with_name("plastimatch")
    with tempfile.TemporaryDirectory() as folder:
        command = [str(program), "convert", "--input", str(case / "rt.dcm"), "--referenced-ct", str(case / "ct")]
        more = ["--output-prefix", f"{folder}/rois", "--prefix-format", "nii.gz"]
        subprocess.run([*command, *more], capture_output=True, check=True)
        return {name: of_image(sitk.ReadImage(f"{folder}/rois/{name}.nii.gz")) for name in NAMES.values()}


def by_platipy(case: Path) -> Read:
    """It gives images of SimpleITK."""
    from platipy.dicom.io.rtstruct_to_nifti import transform_point_set_from_dicom_struct

    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(case / "ct")))
    masks, names = transform_point_set_from_dicom_struct(image, pydicom.dcmread(case / "rt.dcm"))
    return {name: of_image(mask) for name, mask in zip(names, masks, strict=True)}


READERS: dict[str, Callable[[Path], Read]] = {
    "rt-utils": by_rt_utils,
    "dcmrtstruct2nii": by_dcmrtstruct2nii,
    "plastimatch": by_plastimatch,
    "platipy": by_platipy,
}


def on_grid(case: Path, shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """What was drawn, on another grid (X, Y, Z): the nearest voxel of the nearest slice, which lies where it says."""
    mask, ordered = np.load(case / "mask.npy"), slices(case / "ct")
    row, column = np.reshape(ordered[0].ImageOrientationPatient, (2, 3))
    normal, positions = np.cross(row, column), np.array([one.ImagePositionPatient for one in ordered], float)
    places = np.indices(shape).reshape(3, -1).T @ affine[:3, :3].T + affine[:3, 3]
    at = np.abs((places @ normal)[:, None] - positions @ normal).argmin(1)
    away = places - positions[at]
    row_step, column_step = ordered[0].PixelSpacing
    x, y = (np.rint(away @ along / step).astype(int) for along, step in ((row, column_step), (column, row_step)))
    is_inside = (x >= 0) & (x < mask.shape[0]) & (y >= 0) & (y < mask.shape[1])
    found = np.zeros(len(places), mask.dtype)
    found[is_inside] = mask[x[is_inside], y[is_inside], at[is_inside]]
    return found.reshape(shape)


def scores(case: Path, reader: Callable[[Path], Read]) -> dict[str, float] | str:
    """Dice by name, or why there is none."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            read = reader(case)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    dice = {}
    for value, name in NAMES.items():
        mask, affine = read[name]
        drawn = on_grid(case, mask.shape, affine) == value
        dice[name] = float(2 * (mask & drawn).sum() / (mask.sum() + drawn.sum()))
    return dice


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sitk.ProcessObject_SetGlobalWarningDisplay(False)
    cases = sorted(Path(sys.argv[1]).iterdir())
    print(json.dumps({name: {case.name: scores(case, reader) for case in cases} for name, reader in READERS.items()}))

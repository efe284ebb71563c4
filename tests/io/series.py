"""Synthetic DICOM series, whose voxels and place are known."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from utils.io.dicom_series import Series, find_series, read_series

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
AXIAL = np.array([[-0.7, 0, 0, 90], [0, -0.8, 0, 60], [0, 0, 2.5, -40], [0, 0, 0, 1.0]])


def write_series(folder: Path, voxels: np.ndarray, affine: np.ndarray, **changes: Any) -> list[pydicom.Dataset]:
    """Write a synthetic CT series, one uncompressed file for each slice, whose names say nothing about its place.

    Args:
        folder: is made if it isn't there.
        voxels: (X, Y, Z) int16 in Hounsfield units.
        affine: (4, 4) from voxel index to mm in RAS+; its first two columns are perpendicular.
        changes: attributes of every file, such as ``SeriesNumber=3``; None takes an attribute away.

    Returns:
        What was written, in the order of the slices; ``filename`` is each one's file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :2], axis=0)
    order = np.random.default_rng(5).permutation(voxels.shape[2])
    common = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid()}
    common["FrameOfReferenceUID"] = generate_uid()
    written = []
    for index in range(voxels.shape[2]):
        slice_ = pydicom.Dataset()
        slice_.file_meta = FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_.SOPClassUID, slice_.SOPInstanceUID = CTImageStorage, generate_uid()
        slice_.Modality, slice_.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
        slice_.PatientName, slice_.PatientID, slice_.StudyDate = "Phantom^None", "phantom", "20240229"
        slice_.Columns, slice_.Rows = voxels.shape[:2]
        slice_.PixelSpacing = [round(float(step), 10) for step in spacing[::-1]]
        slice_.ImageOrientationPatient = [round(float(value), 12) for value in (lps[:3, :2] / spacing).T.ravel()]
        slice_.ImagePositionPatient = [round(float(value), 10) for value in (lps @ [0, 0, index, 1])[:3]]
        slice_.SliceThickness = round(float(np.linalg.norm(lps[:3, 2])), 10)
        slice_.RescaleSlope, slice_.RescaleIntercept = 1, -1024
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
        slice_.PixelData = (voxels[..., index] + 1024).astype("<i2").T.tobytes()
        for keyword, value in {**common, **changes}.items():
            if value is not None:
                setattr(slice_, keyword, value)
            elif keyword in slice_:
                delattr(slice_, keyword)
        slice_.filename = folder / f"IM{order[index]:04d}"
        save(slice_)
        written.append(slice_)
    return written


def save(dataset: pydicom.Dataset) -> None:
    dataset.save_as(Path(dataset.filename), enforce_file_format=True, overwrite=True)


def phantom(shape: tuple[int, int, int] = (12, 10, 7)) -> np.ndarray:
    """Differs from each of its mirror images and transposes."""
    x, y, z = np.indices(shape)
    return (-1000 + 3 * x + 40 * y + 300 * z + (x > 6) * (y < 3) * 17).astype(np.int16)


def oblique(tilt_mm: float = 0.0) -> np.ndarray:
    """Turned about all three axes; ``tilt_mm`` shifts each slice along its columns, as a tilted gantry does."""
    a, b, c = 0.3, -0.4, 0.2
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_x @ about_y @ about_z @ np.diag([-0.7, -0.8, 2.5])
    affine[:3, 2] += tilt_mm * affine[:3, 1] / 0.8
    affine[:3, 3] = 30, -20, 110
    return affine


def only_series(folder: Path) -> Series:
    (series,), remarks = find_series([path for path in folder.rglob("*") if path.is_file()])
    assert remarks == []
    return series


def sitk_affine(image: sitk.Image) -> np.ndarray:
    """Voxel index -> mm in RAS+ by SimpleITK's origin, spacing and direction, which are in LPS."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return LPS @ affine


def write_enhanced(folder: Path, voxels: np.ndarray, affine: np.ndarray) -> pydicom.Dataset:
    """The series of :func:`write_series` as one enhanced CT file, its frames shuffled."""
    slices = write_series(folder / "slices", voxels, affine)
    shuffled = [slices[index] for index in np.random.default_rng(2).permutation(len(slices))]
    whole = copy.deepcopy(slices[0])
    for keyword in ("PixelSpacing", "SliceThickness", "RescaleSlope", "RescaleIntercept"):
        delattr(whole, keyword)
    del whole.ImagePositionPatient, whole.ImageOrientationPatient
    whole.SOPClassUID, whole.NumberOfFrames = "1.2.840.10008.5.1.4.1.1.2.1", len(slices)
    shared, measures, orientation, scale = (pydicom.Dataset() for _ in range(4))
    measures.PixelSpacing, measures.SliceThickness = slices[0].PixelSpacing, slices[0].SliceThickness
    orientation.ImageOrientationPatient = slices[0].ImageOrientationPatient
    scale.RescaleSlope, scale.RescaleIntercept, scale.RescaleType = 1, -1024, "HU"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    shared.PixelValueTransformationSequence = [scale]
    whole.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for one in shuffled:
        group, position = pydicom.Dataset(), pydicom.Dataset()
        position.ImagePositionPatient = one.ImagePositionPatient
        group.PlanePositionSequence = [position]
        groups.append(group)
    whole.PerFrameFunctionalGroupsSequence = groups
    whole.PixelData = b"".join(one.PixelData for one in shuffled)
    whole.filename = folder / "enhanced.dcm"
    whole.file_meta.MediaStorageSOPClassUID = whole.SOPClassUID
    save(whole)
    return whole


def read_tuple(series: Series) -> tuple[np.ndarray, np.ndarray, list[pydicom.Dataset], list[str]]:
    """The voxels (X, Y, Z), the affine, the headers and the remarks of a series."""
    volume = read_series(series)
    assert volume.voxels.shape == (1, *volume.file_shape)
    return volume.voxels[0], volume.affine, list(volume.datasets), volume.remarks

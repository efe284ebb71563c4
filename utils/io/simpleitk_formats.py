"""Files that SimpleITK reads: NRRD, MetaImage and others."""

import re
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813

from utils.io.dicom_series import is_dicom
from utils.io.geometry import LPS_TO_RAS
from utils.io.scan import Volume, volume_from_array
from utils.system.errors import InputError, first_line

META_IMAGE = "MetaImageIO"
META_DATA_FILE = re.compile(rb"^ElementDataFile *= *(?P<name>[^\r\n]+?) *\r?\n", re.MULTILINE)
META_PACKED_SIZE = re.compile(rb"^CompressedDataSize *= *(\d+)", re.MULTILINE)

sitk.ProcessObject.SetGlobalWarningDisplay(False)  # it would print lines of its own beside ours


def image_kind(path: Path) -> str:
    """The name of the ITK class that reads a file; empty if none does."""
    kind: str = sitk.ImageFileReader.GetImageIOFromFileName(str(path))
    if not kind and path.name.lower().endswith((".mha", ".mhd")):  # which ITK knows in small letters alone
        with open(path, "rb") as file:
            kind = META_IMAGE if b"NDims" in file.read(1 << 10) else ""
    return kind


def read_with_simpleitk(path: Path) -> Volume:
    """The volume of a file of a format that ITK knows, but for NIfTI and DICOM.

    Raises:
        InputError: if it is damaged, or no 3D volume.
        OSError: if it can't be opened.
    """
    if is_dicom(path):
        raise InputError(f"{path}: is a single DICOM file. Give the folder of its series.")
    kind = image_kind(path)
    if not kind:
        raise InputError(f"{path}: is no volume: neither NIfTI, DICOM, nor another file that SimpleITK reads.")
    if kind == "GDCMImageIO":  # which would make a scan of a slice
        raise InputError(f"{path}: is DICOM without the preamble that its files begin with. Export the series again.")
    if kind == "NiftiImageIO":
        raise InputError(f"{path}: is Analyze 7.5, which doesn't tell left from right. Convert it to NIfTI.")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(kind)
    try:
        reader.ReadImageInformation()
        if kind == META_IMAGE:
            _require_meta_data(path, reader)
        image = reader.Execute()
    except RuntimeError as error:
        raise InputError(f"{path}: can't be read ({_itk_reason(error)}). Copy or convert it again.") from error
    dimensions = image.GetDimension()
    if dimensions == 4 and image.GetSize()[3] == 1:
        image = image[..., 0]
    if image.GetDimension() != 3:
        raise InputError(f"{path}: has {dimensions} dimensions; a scan has 3.")
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    voxels = np.moveaxis(sitk.GetArrayFromImage(image), (0, 2), (2, 0))  # (Z, Y, X[, C]) -> (X, Y, Z[, C])
    return volume_from_array(path, voxels, LPS_TO_RAS @ affine)


def _require_meta_data(path: Path, reader: sitk.ImageFileReader) -> None:
    """Raise InputError unless a MetaImage's voxels are all there; ITK would tell it on stderr, and only half of it."""
    with open(path, "rb") as file:
        head = file.read(1 << 16)
    named = META_DATA_FILE.search(head)
    if named is None or named["name"].startswith(b"LIST") or b"%" in named["name"]:
        return  # a file for each slice
    local = named["name"].upper() == b"LOCAL"
    data = path if local else path.with_name(named["name"].decode(errors="replace"))
    voxel = sitk.Image([1] * reader.GetDimension(), reader.GetPixelID(), reader.GetNumberOfComponents())
    packed = META_PACKED_SIZE.search(head)
    needed = int(packed[1]) if packed else int(np.prod(reader.GetSize())) * sitk.GetArrayViewFromImage(voxel).nbytes
    if packed is None and re.search(rb"^CompressedData *= *True", head, re.MULTILINE):
        needed = 1  # older files don't tell how many
    found = data.stat().st_size - (named.end() if local else 0)
    if found < needed:
        raise InputError(
            f"{path}: is cut off or damaged ({found} of {needed} bytes of its voxels are there). Copy it again."
        )


def _itk_reason(error: RuntimeError) -> str:
    """The reason in an error of ITK, whose text also says where in ITK's code it is."""
    lines = str(error).strip().splitlines()
    if lines and lines[-1].startswith("[nrrd]"):  # from the outermost function to the one that found the fault
        return lines[-1].split(": ", 1)[-1].strip()
    reason = next((line for line in lines if "ERROR: " in line), first_line(error))
    return reason.split("): ")[-1].partition(" Refusing")[0].strip(" .")

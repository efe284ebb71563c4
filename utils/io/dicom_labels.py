"""Labels that are DICOM files: RTSTRUCT, with contours, and SEG, with voxels."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.filereader import read_file_meta_info

from utils.io.dicom_series import quiet_pydicom, read_dicom
from utils.io.rtstruct import RtStruct
from utils.io.scan import Volume
from utils.io.segments import Segmentation
from utils.io.structures import DicomLabel, match_structures
from utils.system.errors import InputError, first_line
from utils.system.text import few_names

LABEL_CLASSES: dict[str, Callable[[Path, Dataset], DicomLabel]] = {
    "1.2.840.10008.5.1.4.1.1.481.3": RtStruct,
    "1.2.840.10008.5.1.4.1.1.66.4": Segmentation,
    "1.2.840.10008.5.1.4.1.1.66.7": Segmentation,  # a label map
}
LARGE_OVERLAP = 0.05  # of the smaller of two structures


@quiet_pydicom()
def is_dicom_label(path: Path) -> bool:
    """Whether a DICOM file is an RTSTRUCT or a SEG; False if its header can't be read."""
    try:
        kind = read_file_meta_info(path).get("MediaStorageSOPClassUID")
        if not kind:
            kind = read_dicom(path, stop_before_pixels=True, specific_tags=["SOPClassUID"]).get("SOPClassUID")
    except Exception:  # damaged bytes raise whatever they happen to break in pydicom; reading it will tell
        return False
    return kind in LABEL_CLASSES


@quiet_pydicom()
def open_dicom_label(path: Path) -> DicomLabel:
    """What an RTSTRUCT or a SEG names, and where it belongs.

    Raises:
        InputError: if it can't be read, or is another kind of file.
    """
    try:
        dataset = read_dicom(path)
        kind = dataset.get("SOPClassUID")
        if kind not in LABEL_CLASSES:
            raise InputError(f"{path}: is DICOM, but neither RTSTRUCT nor SEG, the kinds that labels are.")
        return LABEL_CLASSES[kind](path, dataset)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path}: can't be read ({first_line(error)}). Copy or export it again.") from error


@quiet_pydicom()
def read_dicom_label(
    path: Path, image_path: Path, image: Volume, names: Sequence[Sequence[str]], not_annotated: Collection[int] = ()
) -> Volume:
    """The label map of an RTSTRUCT or a SEG on the grid of its scan, in int16.

    Where structures overlap, the one with the highest value has the voxels.

    Args:
        names: that structures of each class may have; none for the background.
        not_annotated: classes that may be missing without a remark.

    Raises:
        InputError: if it can't be read, belongs to another scan, has none of the names, or its pixels aren't those of
            the scan.
    """
    if not any(names):
        raise InputError(
            f'{path}: tells structures by their names, and no labels are named. Give the data list "labels".'
        )
    label = open_dicom_label(path)
    _require_its_scan(label, image_path, image)
    matches, others = match_structures(label.structures, names)
    drawn = {value: [one for one in found if one.is_drawn] for value, found in matches.items()}
    drawn = {value: found for value, found in sorted(drawn.items()) if found}
    left_out = few_names([one.name for one in others]) or "no others"
    if not drawn:
        raise InputError(
            f"{path}: has none of the structures {few_names([of[0] for of in names if of])}; it has {left_out}. Name "
            'them in "also_called".'
        )
    remarks = [
        f'{path}: has no {of_class[0]}, which is taken to be absent. Name it under "not_annotated" if nobody drew it, '
        f'or give its name under "also_called": the file has {left_out}.'
        for value, of_class in enumerate(names)
        if of_class and value not in drawn and value not in not_annotated
    ]
    voxels = np.zeros(image.shape, np.int16, order="F")
    sizes: dict[int, int] = {}
    for value, found in drawn.items():
        mask, told = label.mask(found, image)
        remarks += told
        if len(found) > 1:
            remarks.append(f"{path}: {few_names([one.name for one in found])} make up {names[value][0]} together.")
        sizes[value] = int(np.count_nonzero(mask))
        shared = np.bincount(voxels[mask], minlength=value)
        remarks += [
            f"{path}: {names[other][0]} and {names[value][0]} overlap; {names[value][0]} gets the voxels."
            for other in range(1, value)
            if shared[other] > LARGE_OVERLAP * min(sizes.get(other, 0), sizes[value])
        ]
        voxels[mask] = value
    return Volume(voxels[None], image.affine, image.shape, remarks=remarks)


def _require_its_scan(label: DicomLabel, image_path: Path, image: Volume) -> None:
    """Check that a label names the series of the scan, or else its frame of reference, as far as both have one.

    Raises:
        InputError: if it doesn't.
    """
    if not image.datasets:
        return  # a scan in another format, which has no identifiers
    header = image.datasets[0]
    its = {"series": str(header.get("SeriesInstanceUID") or ""), "frame": str(header.get("FrameOfReferenceUID") or "")}
    series, frames = label.series - {""}, label.frames - {""}
    if its["series"] in series or its["frame"] in frames:
        return
    if (series and its["series"]) or (frames and its["frame"]):
        raise InputError(
            f"{label.path}: was drawn on another series than {image_path}, in another frame of reference. Give the "
            "label of this series."
        )

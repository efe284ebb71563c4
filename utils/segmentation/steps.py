"""The steps of one scan: read, predict, segment, write."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from utils.data.preprocessing import OnNetworkGrid, intensity_remarks, size_fault, to_network_grid, window_fault
from utils.distributed.process import Process
from utils.evaluation.measurements import agreement, measure
from utils.evaluation.metrics import dice_per_label, nan_to_none
from utils.evaluation.pictures import grey_window, orthogonal, pixels, save_picture
from utils.inference.scan_grid import class_on_scan_grid, to_scan_grid
from utils.inference.sliding_window import Ensemble, Predictor
from utils.io.dicom_seg import write_segmentation
from utils.io.geometry import ras_spacing, to_ras
from utils.io.reader import read_label, read_scan
from utils.io.scan import Scan, Volume
from utils.segmentation.job import SegmentationJob
from utils.segmentation.masks import keep_largest_component, write_mask, write_probabilities
from utils.segmentation.records import provenance, source_of, start_record
from utils.system.errors import InputError, first_line
from utils.system.files import content_hash, make_folder, write_json


@dataclass(frozen=True)
class PreparedScan:
    """A scan that was read and preprocessed.

    Attributes:
        provenance: what its results are made with, for the record.
        volume: the scan on its own grid.
        label: (X, Y, Z), on the scan's own grid, where it has one.
        preprocessed: image and label on the network's grid.
    """

    scan: Scan
    provenance: Mapping[str, Any]
    volume: Volume
    label: np.ndarray | None
    preprocessed: OnNetworkGrid


@dataclass(frozen=True)
class SegmentedScan:
    """A scan with its mask.

    Attributes:
        mask: (X, Y, Z), on the scan's own grid.
        dice: (classes - 1,), on the network's grid, where the scan has a label.
        seconds: how long predicting took.
    """

    prepared: PreparedScan
    mask: np.ndarray
    dice: np.ndarray | None
    seconds: float


def prepare(scan: Scan, job: SegmentationJob) -> PreparedScan:
    """Read a scan and bring it to the network's grid.

    Raises:
        InputError: if the scan or its label can't be used.
    """
    made_with = provenance(scan, job)  # before reading, so that the next launch notices a change from now on
    volume = read_scan(scan, job.in_channels)
    label = None
    if scan.label is not None:
        label = read_label(scan.label, scan.image[0], volume, len(job.labels), scan.ignore, scan.structures)
    low, high = volume.voxels.min(), volume.voxels.max()
    if low == high:
        raise InputError(f"{scan.image[0]}: every voxel is {low:g}; there is nothing to see in it.")
    if (fault := window_fault(scan.image[0], low, high, job.preprocessing)) is not None:
        raise InputError(fault)
    volumes = len(volume.voxels) + len(job.labels)  # the image, and the probability of each class
    if (fault := size_fault(scan.image[0], volume.shape, volume.affine, job.preprocessing, volumes)) is not None:
        raise InputError(fault)
    volume.remarks.extend(intensity_remarks(scan.image[0], volume.voxels, job.preprocessing))
    try:
        preprocessed = to_network_grid(volume.voxels, volume.affine, label, job.preprocessing)
    except (RuntimeError, ValueError) as error:
        cause = error.__cause__ or error  # MONAI's error names its transform; the cause says what is wrong
        raise InputError(f"{scan.image[0]}: can't be preprocessed ({first_line(cause)}).") from error
    if preprocessed.image.numel() == 0:
        raise InputError(f"{scan.image[0]}: every voxel is the same on the network's grid; there is nothing to see.")
    return PreparedScan(scan, made_with, volume, label, preprocessed)


def predict(prepared: PreparedScan, ensemble: Ensemble, predictor: Predictor, process: Process) -> Tensor:
    """A scan's class probabilities (classes, D, H, W), on the network's grid and the CPU.

    Raises:
        InputError: if they aren't finite, or the GPU has no room.
        Stopped: if a signal asks the process to end.
    """
    image = prepared.preprocessed.image[None]  # (C, D, H, W) -> (1, C, D, H, W)
    total = len(predictor.windows(image.shape[2:])) * len(ensemble.passes)
    with process.bar((), prepared.scan.name, total=total) as bar:

        def progress(windows: int) -> None:
            bar.update(windows)
            process.stop.raise_if_requested()

        # to the CPU, which does the rest while the GPU works on the next scan
        probabilities = predictor(ensemble, image, progress).cpu()
    if probabilities[0].isnan().any():  # NaN or +inf in one class: the softmax gives NaN for all
        raise InputError(
            f"{prepared.scan.image[0]}: the network's output isn't finite. Give `noamp`, or weights that are sound."
        )
    return probabilities


def segment(prepared: PreparedScan, probabilities: Tensor, seconds: float, job: SegmentationJob) -> SegmentedScan:
    """Make a scan's mask on its own grid, and write the probabilities if the job wants them.

    Args:
        probabilities: (classes, D, H, W), on the network's grid and the CPU.
        seconds: how long predicting them took.

    Raises:
        WriteError: if something can't be written.
    """
    scan, volume, preprocessed = prepared.scan, prepared.volume, prepared.preprocessed
    start_record(scan, job)
    mask = to_scan_grid(probabilities, preprocessed.affine, volume.affine, volume.shape)
    for label in job.largest_component:
        keep_largest_component(mask, label)
    for label in range(1, len(job.labels)):
        if label not in job.organs:
            mask[mask == label] = 0
    if job.save_probabilities:
        names = dict(enumerate(job.labels))
        write_probabilities(job.probability_file(scan.name), volume, names, partial(_on_scan, prepared, probabilities))
    dice = None
    if preprocessed.label is not None:
        prediction = probabilities.argmax(0)
        dice = dice_per_label(prediction, preprocessed.label, len(job.labels), scan.not_annotated).numpy()
    return SegmentedScan(prepared, mask, dice, seconds)


def write_scan(segmented: SegmentedScan, job: SegmentationJob) -> dict[str, Any]:
    """Measure a scan's mask, write its files, and return its record.

    Raises:
        WriteError: if something can't be written.
    """
    prepared, mask = segmented.prepared, segmented.mask
    scan, volume = prepared.scan, prepared.volume
    write_mask(job.mask_file(scan.name), mask, volume, job.organs)
    remarks = list(volume.remarks)
    modality = volume.datasets[0].get("Modality") if volume.datasets else None
    if modality not in (None, "CT") and job.preprocessing.intensity == "ct":
        remarks.append(f"{source_of(scan)}: is {modality}, but the network knows the intensities of CT.")
    if volume.datasets:
        try:
            write_segmentation(job.dicom_file(scan.name), mask, job.organs, volume.datasets)
        except InputError as error:
            remarks.append(str(error))  # the headers don't allow one; the other files are complete
    if job.one_file_per_organ:
        for label, name in job.organs.items():
            path = job.organ_file(scan.name, name)
            make_folder(path.parent)
            write_mask(path, (mask == label).astype(np.uint8), volume, {1: name})

    organs = measure(mask, volume, job.organs)
    if prepared.label is not None and segmented.dice is not None:
        on_scan = agreement(
            mask, prepared.label, volume.spacing, job.organs, len(job.labels), job.nsd_mm, scan.not_annotated
        )
        for label, name in job.organs.items():
            organs[name] |= on_scan[name] | {"dice_network_grid": nan_to_none(segmented.dice[label - 1])}
            if label in scan.not_annotated:
                organs[name]["annotated"] = False
    record = {
        "scan": scan.name,
        "source": source_of(scan),
        "shape": list(volume.shape),
        "spacing_mm": [round(size, 4) for size in volume.spacing],
        "labelled": prepared.label is not None,
        "seconds": round(segmented.seconds, 2),
        "remarks": remarks,
        "organs": organs,
        "made_with": prepared.provenance,
        "mask": content_hash(job.mask_file(scan.name)),
    }
    save_picture(pixels(_picture(prepared, mask, job)), job.picture_file(scan.name))
    write_json(job.record_file(scan.name), record)  # last: it says that the scan is finished
    return record


def _on_scan(prepared: PreparedScan, probabilities: Tensor, label: int) -> np.ndarray:
    """One class's probability (X, Y, Z) on the scan's own grid; outside the network's grid all is background."""
    volume, outside = prepared.volume, 1.0 if label == 0 else 0.0
    return class_on_scan_grid(probabilities[label], prepared.preprocessed.affine, volume.affine, volume.shape, outside)


def _picture(prepared: PreparedScan, mask: np.ndarray, job: SegmentationJob) -> Figure:
    """Image, mask and label in three directions, with the scan's axes turned to Right, Anterior and Superior."""
    volume, settings = prepared.volume, job.preprocessing
    image = to_ras(volume.voxels[0], volume.affine)
    label = None if prepared.label is None else to_ras(prepared.label, volume.affine)
    window = (settings.a_min, settings.a_max) if settings.intensity == "ct" else grey_window(image)
    turned, spacing = to_ras(mask, volume.affine), ras_spacing(volume.affine)
    return orthogonal(image, turned, label, job.labels, spacing, window, prepared.scan.name)

"""The steps of one scan: read, predict, segment, write."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from utils.checkpoints.postprocessing import predicted_dice
from utils.data.preprocessing import OnNetworkGrid, scan_remarks
from utils.distributed.process import Process
from utils.evaluation.measurements import agreement, measure
from utils.evaluation.metrics import dice_per_structure, nan_mean, nan_to_none
from utils.evaluation.pictures import grey_window, orthogonal, pixels, save_picture
from utils.evaluation.view import write_view
from utils.inference.confidence import Certainty
from utils.inference.scan_grid import class_on_scan_grid
from utils.inference.sliding_window import Ensemble, Predictor
from utils.io.dicom_rtstruct import write_structure_set
from utils.io.dicom_seg import write_segmentation
from utils.io.geometry import ras_spacing, to_ras
from utils.io.reader import read_label, read_scan
from utils.io.scan import Scan, Volume
from utils.segmentation.job import SegmentationJob
from utils.segmentation.masks import label_rgb, write_mask, write_probabilities
from utils.segmentation.records import hashes_of_results, provenance, source_of, start_record
from utils.segmentation.volumes import make_mask, on_network_grid, postprocess, predict_probabilities
from utils.system.errors import InputError
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
        dice: of each of the job's structures, on the network's grid, where the scan has a label.
        seconds: how long predicting took.
    """

    prepared: PreparedScan
    mask: np.ndarray
    dice: np.ndarray | None
    certainty: Certainty
    seconds: float


def prepare(scan: Scan, job: SegmentationJob, ensemble: Ensemble) -> PreparedScan:
    """Read a scan and bring it to the network's grid.

    Args:
        ensemble: what will predict it, which takes memory too.

    Raises:
        InputError: if the scan or its label can't be used.
    """
    made_with = provenance(scan, job)  # before reading, so that the next launch notices a change from now on
    volume = read_scan(scan, job.in_channels)
    label = None
    if scan.label is not None:
        label = read_label(
            scan.label, scan.image[0], volume, len(job.labels), scan.ignore, scan.structures, scan.not_annotated,
            remarks=volume.remarks,
        )  # fmt: skip
    source = scan.image[0]
    volumes = ensemble.volumes(job.in_channels, len(job.output.names(job.labels)))
    preprocessed = on_network_grid(source, volume, label, job.preprocessing, volumes)
    volume.remarks.extend(scan_remarks(source, volume.voxels, volume.affine, job.preprocessing))
    return PreparedScan(scan, made_with, volume, label, preprocessed)


def predict(
    prepared: PreparedScan, ensemble: Ensemble, predictor: Predictor, job: SegmentationJob, process: Process
) -> tuple[Tensor, Certainty]:
    """A scan's probabilities (channels, D, H, W), on the network's grid and the CPU, and how sure the networks are.

    Raises:
        InputError: if they aren't finite, or the GPU has no room.
        Stopped: if a signal asks the process to end.
    """
    image = prepared.preprocessed.image
    total = len(predictor.windows(image.shape[1:])) * ensemble.passes
    with process.bar((), prepared.scan.name, total=total) as bar:

        def progress(windows: int) -> None:
            bar.update(windows)
            process.stop.raise_if_requested()

        source = prepared.scan.image[0]
        return predict_probabilities(source, image, ensemble, predictor, job.structures, progress)


def segment(
    prepared: PreparedScan, probabilities: Tensor, certainty: Certainty, seconds: float, job: SegmentationJob
) -> SegmentedScan:
    """Make a scan's mask on its own grid, and write the probabilities if the job wants them.

    Args:
        probabilities: (channels, D, H, W), on the network's grid and the CPU.
        seconds: how long predicting them took.

    Raises:
        WriteError: if something can't be written.
    """
    scan, volume, preprocessed = prepared.scan, prepared.volume, prepared.preprocessed
    start_record(scan, job)
    left_out = [label for label in range(1, len(job.labels)) if label not in job.organs]
    mask = make_mask(probabilities, preprocessed, volume, job.output, job.postprocessing, left_out)
    if job.save_probabilities:
        names = dict(enumerate(job.output.names(job.labels)))
        on_scan = partial(_on_scan, prepared, probabilities, job)
        write_probabilities(job.probability_file(scan.name), volume, names, on_scan)
    dice = None
    if preprocessed.label is not None:
        prediction, structures = job.output.label_map(probabilities), job.structures.values()
        postprocess(prediction.numpy(), job.postprocessing)
        classes = len(job.labels)
        dice = dice_per_structure(prediction, preprocessed.label, structures, classes, scan.not_annotated).numpy()
    return SegmentedScan(prepared, mask, dice, certainty, seconds)


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
        files = [partial(write_segmentation, job.dicom_file(scan.name), mask, job.organs)]
        if job.rtstruct:
            path, colours = job.rtstruct_file(scan.name), label_rgb(job.organs)
            files.append(partial(write_structure_set, path, mask, job.organs, colours))
        for write in files:
            try:
                write(volume.datasets)
            except InputError as error:
                remarks.append(str(error))  # the headers don't allow one; the other files are complete
    if job.one_file_per_organ:
        for label, name in job.organs.items():
            path = job.organ_file(scan.name, name)
            make_folder(path.parent)
            write_mask(path, (mask == label).astype(np.uint8), volume, {1: name})

    organs = measure(mask, volume, job.structures)
    if prepared.label is not None and segmented.dice is not None:
        on_scan = agreement(
            mask, prepared.label, volume.spacing, job.structures, len(job.labels), job.nsd_mm, scan.not_annotated
        )
        for name, dice in zip(job.structures, segmented.dice, strict=True):
            organs[name] |= on_scan[name] | {"dice_network_grid": nan_to_none(dice)}
    for name, values in organs.items():
        values |= _confidence(segmented.certainty, name, values["volume_ml"], job)
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
        "results": hashes_of_results(scan, job),
    }
    if job.dice_models:
        record["predicted_dice"] = nan_to_none(float(nan_mean([one["predicted_dice"] for one in organs.values()])))
    save_picture(pixels(_picture(prepared, mask, job)), job.picture_file(scan.name))
    _write_view(scan, volume, mask, prepared.label, job)
    write_json(job.record_file(scan.name), record)  # last: it says that the scan is finished
    return record


def add_view(scan: Scan, job: SegmentationJob) -> None:
    """Write the view of a finished scan from its files: earlier versions wrote none.

    Raises:
        InputError: if the scan, its mask or its label can't be read.
        WriteError: if it can't be written.
    """
    volume, number = read_scan(scan, job.in_channels), len(job.labels)
    mask = read_label(job.mask_file(scan.name), scan.image[0], volume, number)
    label = None
    if scan.label is not None:
        label = read_label(scan.label, scan.image[0], volume, number, scan.ignore, scan.structures)
    _write_view(scan, volume, mask, label, job)


def _confidence(certainty: Certainty, name: str, volume: float, job: SegmentationJob) -> dict[str, float | None]:
    """A structure's soft Dice and agreement for the record and, where a cross-validation tells, its predicted Dice."""
    soft_dice, agreement = certainty.soft_dice[name], certainty.agreement[name]
    values = {"soft_dice": nan_to_none(float(nan_mean(soft_dice))), "agreement": nan_to_none(agreement)}
    if job.dice_models:
        models = [by_name.get(name) for by_name in job.dice_models]
        values["predicted_dice"] = predicted_dice(models, soft_dice, agreement, volume)
    return values


def _on_scan(prepared: PreparedScan, probabilities: Tensor, job: SegmentationJob, channel: int) -> np.ndarray:
    """A channel's probability (X, Y, Z) on the scan's own grid; outside the network's grid all is background."""
    volume, affine, outside = prepared.volume, prepared.preprocessed.affine, job.output.outside(channel)
    return class_on_scan_grid(probabilities[channel], affine, volume.affine, volume.shape, outside)


def _picture(prepared: PreparedScan, mask: np.ndarray, job: SegmentationJob) -> Figure:
    """Image, mask and label in three directions, with the scan's axes turned to Right, Anterior and Superior."""
    volume = prepared.volume
    image = to_ras(volume.voxels[0], volume.affine)
    label = None if prepared.label is None else to_ras(prepared.label, volume.affine)
    turned, spacing = to_ras(mask, volume.affine), ras_spacing(volume.affine)
    return orthogonal(image, turned, label, job.labels, spacing, _window(volume, job), prepared.scan.name)


def _write_view(scan: Scan, volume: Volume, mask: np.ndarray, label: np.ndarray | None, job: SegmentationJob) -> None:
    masks = {"prediction": mask, "label": label}
    path, window = job.view_file(scan.name), _window(volume, job)
    write_view(path, volume.voxels[0], masks, volume.affine, job.labels, window)


def _window(volume: Volume, job: SegmentationJob) -> tuple[float, float]:
    """The intensities that are drawn black and white."""
    settings = job.preprocessing
    if settings.intensity == "ct":
        return settings.a_min, settings.a_max
    return grey_window(to_ras(volume.voxels[0], volume.affine))

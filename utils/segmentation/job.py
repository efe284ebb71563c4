"""What to do with each scan, and the names of the files it gets."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.checkpoints.postprocessing import DiceModel, Postprocessing
from utils.data.channels import CLASSES, Channels, Region
from utils.data.preprocessing import Preprocessing
from utils.data.regions import scored_structures
from utils.evaluation.view import view_file
from utils.io.find_scans import folder_around
from utils.io.scan import Scan
from utils.system.errors import InputError
from utils.system.files import fitting_name

RECORDS = "records"


@dataclass(frozen=True)
class SegmentationJob:
    """What to do with each scan.

    Attributes:
        folder: the output folder.
        labels: names of the classes, the background first.
        organs: names by label of the organs that the mask keeps.
        postprocessing: what is done with windows and mask.
        dice_models: of each network, by structure; empty if a network has none.
        one_file_per_organ: whether each organ also gets a mask file of its own.
        save_probabilities: whether class probabilities are written.
        nsd_mm: tolerance of the normalised surface Dice in mm.
        in_channels: channels of the network's input.
        preprocessing: how a scan becomes the network's input.
        made_with: weights and settings, ready for JSON. A scan that was finished with others is done again.
        regions: unions of labels, which are measured and scored too.
        output: what the channels of the network's output are.
        rtstruct: whether a DICOM series also gets contours.
    """

    folder: Path
    labels: tuple[str, ...]
    organs: Mapping[int, str]
    postprocessing: Postprocessing
    dice_models: Sequence[Mapping[str, DiceModel]]
    one_file_per_organ: bool
    save_probabilities: bool
    nsd_mm: float
    in_channels: int
    preprocessing: Preprocessing
    made_with: Mapping[str, Any]
    regions: tuple[Region, ...] = ()
    output: Channels = CLASSES
    rtstruct: bool = False

    @property
    def structures(self) -> dict[str, tuple[int, ...]]:
        """What is measured and scored, by name, with its labels: the organs, and the regions that the mask keeps."""
        every = scored_structures(self.labels, self.regions)
        return {name: labels for name, labels in every.items() if set(labels) <= self.organs.keys()}

    def mask_file(self, name: str) -> Path:
        """The mask of a scan."""
        return self.folder / fitting_name(_stem(name), ".nii.gz")

    def record_file(self, name: str) -> Path:
        """The record of a scan: see :mod:`utils.segmentation.records`."""
        return self.folder / RECORDS / fitting_name(_stem(name), ".json")

    def picture_file(self, name: str) -> Path:
        """The picture of a scan for the report."""
        return self.folder / RECORDS / fitting_name(_stem(name), ".png")

    def view_file(self, name: str) -> Path:
        """The script of a scan for ``view.html``."""
        return view_file(self.folder, _stem(name))

    def probability_file(self, name: str) -> Path:
        """The probabilities of classes, or of regions, in a scan."""
        return self.folder / fitting_name(_stem(name), "_probabilities.nii.gz")

    def dicom_file(self, name: str) -> Path:
        """The DICOM segmentation of a series."""
        return self.folder / fitting_name(_stem(name), ".dcm")

    def rtstruct_file(self, name: str) -> Path:
        """The contours of a series."""
        return self.folder / fitting_name(_stem(name), "_rtstruct.dcm")

    def organ_folder(self, name: str) -> Path:
        """The folder with one mask per organ of a scan."""
        return self.folder / fitting_name(_stem(name))

    def organ_file(self, name: str, organ: str) -> Path:
        """The mask of one organ of a scan."""
        stem = "".join("_" if letter in " /" or not letter.isprintable() else letter for letter in organ)
        return self.organ_folder(name) / fitting_name(stem, ".nii.gz")

    @property
    def error_log(self) -> Path:
        """The tracebacks of the scans that failed."""
        return self.folder / "errors.log"

    def result_files(self, scan: Scan) -> list[Path]:
        """All files that a scan can get, except those in the folders of records and views."""
        paths = [self.mask_file(scan.name)]
        if scan.is_series:
            paths.append(self.dicom_file(scan.name))
        if self.writes_rtstruct(scan):
            paths.append(self.rtstruct_file(scan.name))
        if self.save_probabilities:
            paths.append(self.probability_file(scan.name))
        if self.one_file_per_organ:
            paths += [self.organ_file(scan.name, organ) for organ in self.organs.values()]
        return paths

    def writes_rtstruct(self, scan: Scan) -> bool:
        """Whether a scan gets contours, if its headers allow them."""
        return self.rtstruct and scan.is_series

    def require_no_scan_replaced(self, scans: Sequence[Scan], searched: Sequence[str] = ()) -> None:
        """Check that no result would replace a scan, a label or another result, or lie in a folder of scans.

        Args:
            searched: files and folders that were searched for scans.

        Raises:
            InputError: naming the first file in the way.
        """
        folders = [path for path in searched if os.path.isdir(path)]
        results: dict[str, str] = {}  # the scan's name by the real path of its result
        for scan in scans:
            for path in self.result_files(scan):
                real_path = os.path.realpath(path)
                if folder_around(path, folders) is not None:
                    raise InputError(
                        f"`output_dir` {self.folder}: {path} would lie in `input`, and be taken for a scan the next "
                        "time. Give another folder."
                    )
                if real_path in results:
                    raise InputError(
                        f"{path}: would be written for {results[real_path]} and for {scan.name}. Rename one of them, "
                        "or one of two organs."
                    )
                results[real_path] = scan.name
        for scan in scans:
            for path in scan.image if scan.label is None else (*scan.image, scan.label):
                if os.path.realpath(path) in results:
                    raise InputError(
                        f"`output_dir` {self.folder}: {path} would be replaced by a mask. Give another folder."
                    )


def _stem(name: str) -> str:
    """The first part of a scan's file names. Names of scans that share a file name have folders in them."""
    return "_".join(part for part in Path(name).parts if part != "..")


def labels_of(setting: str, names: Sequence[str], labels: Sequence[str]) -> tuple[int, ...]:
    """The labels of the named organs, in any case; of all organs for ``all``.

    Args:
        setting: the field that has the names, for the message.
        labels: names of the classes, the background first.

    Raises:
        InputError: if there is no such organ.
    """
    if tuple(names) == ("all",):
        return tuple(range(1, len(labels)))
    known = {name.lower(): label for label, name in enumerate(labels) if label > 0}
    unknown = [name for name in names if name.lower() not in known]
    if unknown:
        raise InputError(f"`{setting}` {','.join(unknown)}: not among the network's organs: {', '.join(labels[1:])}.")
    return tuple(known[name.lower()] for name in names)

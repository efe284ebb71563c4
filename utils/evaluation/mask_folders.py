"""Two folders of masks, predictions and labels, of any program: pairs by name, each scored and measured."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from utils.data.channels import Region
from utils.data.regions import scored_structures
from utils.evaluation.measurements import agreement, measure
from utils.evaluation.pictures import grey_window, orthogonal, pixels, save_picture
from utils.evaluation.view import view_file, write_view
from utils.io.find_scans import is_volume
from utils.io.geometry import ras_spacing, to_ras
from utils.io.reader import LABELS, content_faults, header_file, read_file, read_label
from utils.io.scan import Volume, is_dicom, without_endings
from utils.io.structures import names_by_class
from utils.system.errors import InputError
from utils.system.files import fitting_name
from utils.system.text import few_names, printable

PROBABILITIES = "_probabilities"  # how test.py calls what lies beside its masks and is none
PICTURES = "pictures"
FIRST_CHANNEL = "_0000"  # behind the name of an image of nnU-Net, and of what test.py makes of it
NO_IMAGE = (0.0, 1.0)  # window of a black background


@dataclass(frozen=True)
class MaskPair:
    """A prediction with its label, and the scan of both where that is given.

    Attributes:
        name: what tables call it.
        not_annotated: labels that nobody drew in the scan.
    """

    name: str
    prediction: Path
    label: Path
    image: Path | None = None
    not_annotated: tuple[int, ...] = ()


@dataclass(frozen=True)
class Classes:
    """What the values of masks and labels mean.

    Attributes:
        names: of the values 0, 1, …
        ignore: the value of voxels that nobody judged, if there may be some.
        regions: unions of values, which are scored too.
        also_called: further names that structures have in DICOM labels.
        scored: the values that are scored; None for all that have names.
    """

    names: tuple[str, ...]
    ignore: int | None = None
    regions: tuple[Region, ...] = ()
    also_called: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    scored: frozenset[int] | None = None

    @property
    def structures(self) -> dict[str, tuple[int, ...]]:
        """What is scored, by name, with its values."""
        every = scored_structures(self.names, self.regions)
        return {name: values for name, values in every.items() if self.scored is None or self.scored.issuperset(values)}


def find_pairs(
    predictions: Path, labels: Path, images: Path | None = None
) -> tuple[list[MaskPair], list[str], list[str]]:
    """Pair the volumes of two folders off by their names, or if none are alike by the numbers in them.

    The name of a prediction may have nnU-Net's number of the first channel behind it.

    Args:
        images: a folder with the scans, for pictures and intensities.

    Returns:
        The pairs in order of their names; a sentence for each label without a prediction; and notes on what else has no
        partner.

    Raises:
        InputError: if a folder isn't there or holds no volume, or nothing pairs off.
    """
    masks, references = volumes_in(predictions, dicom=False), volumes_in(labels)
    if not masks.keys() & references.keys():
        without_channel = {stem.removesuffix(FIRST_CHANNEL): path for stem, path in masks.items()}
        if without_channel.keys() & references.keys():
            masks = without_channel
        else:
            masks, references = _by_number(masks), _by_number(references)
    common = masks.keys() & references.keys()
    if not common:
        raise InputError(
            f"{predictions} and {labels}: no two files have one name, or the same numbers in their names: "
            f"{_names(masks)}; {_names(references)}. Rename them."
        )
    scans = {} if images is None else volumes_in(images)
    pairs = [
        MaskPair(printable(without_endings(masks[key].name)), masks[key], references[key], _scan_of(masks[key], scans))
        for key in sorted(common)
    ]
    faults = [
        f"{references[key]}: has no prediction in {predictions}." for key in sorted(references.keys() - masks.keys())
    ]
    notes = []
    if alone := [masks[key].name for key in sorted(masks.keys() - references.keys())]:
        notes.append(f"without a label in {labels}, and not scored: {few_names(alone)}")
    if scans and (without := [pair.name for pair in pairs if pair.image is None]):
        notes.append(f"without a scan in {images}: {few_names(without)}")
    return pairs, faults, notes


def _names(files: Mapping[str, Path]) -> str:
    return few_names([path.name for path in files.values()])


def volumes_in(folder: Path, dicom: bool = True) -> dict[str, Path]:
    """The volumes in a folder by their names without endings.

    Args:
        dicom: whether files of DICOM count. Beside each mask of a DICOM series ``test.py`` writes one with the same.

    Raises:
        InputError: if there is no such folder, it holds no volume, or one name twice.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder. Give one that holds masks.")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_file() or header_file(path) != path or not _is_mask(path, dicom):
            continue
        stem = without_endings(path.name)
        if stem in found:
            raise InputError(f"{found[stem]} and {path.name}: have one name. Remove one.")
        found[stem] = path
    if not found:
        raise InputError(f"{folder}: holds no volume. Give a folder of masks: NIfTI, NRRD, MetaImage, …")
    return found


def _is_mask(path: Path, dicom: bool) -> bool:
    try:
        if without_endings(path.name).endswith(PROBABILITIES) or (not dicom and is_dicom(path)):
            return False
        return is_volume(path)
    except (InputError, OSError, EOFError):  # reading it will say what is wrong, if it has a partner
        return True


def _by_number(files: Mapping[str, Path]) -> dict[str, Path]:
    """The same by the numbers in their names, where these differ."""
    numbers = {stem: "-".join(re.findall(r"\d+", stem)) for stem in files}
    if len(set(numbers.values())) < len(files) or "" in numbers.values():
        return dict(files)
    return {numbers[stem]: path for stem, path in files.items()}


def _scan_of(mask: Path, scans: Mapping[str, Path]) -> Path | None:
    """The scan of a mask: of its name, or with nnU-Net's number of the first channel behind."""
    stem = without_endings(mask.name)
    return scans.get(stem, scans.get(f"{stem}{FIRST_CHANNEL}"))


def values_in(paths: Iterable[Path]) -> frozenset[int]:
    """The values of some masks but for the background's. One that can't be read has none; scoring it tells why."""
    found: set[int] = set()
    for path in paths:
        with suppress(InputError):
            found.update(np.unique(read_label(path, path, read_file(path), LABELS.max + 1)).tolist())
    return frozenset(found - {0})


def score_pair(pair: MaskPair, classes: Classes, nsd_mm: float, folder: Path) -> dict[str, Any]:
    """Score and measure a prediction, and draw it: the record of a scan, as ``test.py`` writes it.

    Args:
        nsd_mm: tolerance of the surface Dice in mm.
        folder: for the picture and the view.

    Raises:
        InputError: if a file can't be read, the two lie on different grids, or have values without a name.
        WriteError: if one of these can't be written.
    """
    number = len(classes.names)
    prediction = _read_sound(pair.prediction)
    mask = read_label(pair.prediction, pair.prediction, prediction, number)
    names = _dicom_names(pair.label, classes)
    label = read_label(
        pair.label, pair.prediction, prediction, number, classes.ignore, names, pair.not_annotated,
        remarks=prediction.remarks,
    )  # fmt: skip
    volume = prediction
    if pair.image is not None:
        volume = _read_sound(pair.image)
        read_label(pair.prediction, pair.image, volume, number)  # refuses another grid
    organs = measure(mask, volume, classes.structures)
    scores = agreement(mask, label, prediction.spacing, classes.structures, number, nsd_mm, pair.not_annotated)
    for name in classes.structures:
        organs[name] |= scores[name]
        if pair.image is None:
            organs[name] |= {"mean": None, "std": None}
    image = volume.voxels[0] if pair.image is not None else np.zeros(mask.shape, np.float32)
    window = NO_IMAGE if pair.image is None else grey_window(to_ras(image, volume.affine))
    seen, turned, reference = (to_ras(one, volume.affine) for one in (image, mask, label))
    picture = orthogonal(seen, turned, reference, classes.names, ras_spacing(volume.affine), window, pair.name)
    save_picture(pixels(picture), picture_file(folder, pair.name))
    masks = {"prediction": mask, "label": label}
    write_view(view_file(folder, pair.name), image, masks, volume.affine, classes.names, window)
    return {
        "scan": pair.name,
        "source": str(pair.prediction),
        "label": str(pair.label),
        "shape": list(prediction.shape),
        "spacing_mm": [round(size, 4) for size in prediction.spacing],
        "labelled": True,
        "remarks": [*prediction.remarks],
        "organs": organs,
    }


def _read_sound(path: Path) -> Volume:
    """A volume of finite voxels that can be placed in space.

    Raises:
        InputError: if it is none.
    """
    volume = read_file(path)
    if faults := content_faults(path, volume):
        raise InputError(faults[0])
    return volume


def _dicom_names(label: Path, classes: Classes) -> tuple[tuple[str, ...], ...]:
    """The names that each class may have in a label that is a DICOM file; none for another.

    Raises:
        InputError: if two classes have one name.
    """
    try:
        if not is_dicom(label):
            return ()
    except (OSError, InputError):  # reading it will tell
        return ()
    try:
        return names_by_class(classes.names, classes.also_called)
    except ValueError as error:
        raise InputError(f"{label}: {error} in DICOM labels. Give them different names.") from error


def picture_file(folder: Path, name: str) -> Path:
    """The picture of a pair."""
    return folder / PICTURES / fitting_name(name, ".png")


def with_annotation(pairs: Sequence[MaskPair], not_annotated: Mapping[str, tuple[int, ...]]) -> Iterator[MaskPair]:
    """The pairs with the labels that nobody drew.

    Args:
        not_annotated: these, by the name of the label's file without its ending.
    """
    for pair in pairs:
        yield replace(pair, not_annotated=not_annotated.get(without_endings(pair.label.name), ()))

"""What a folder's scans are: the facts about each, and over all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from utils.data.channels import CLASSES, Channels
from utils.system.errors import InputError
from utils.system.text import SHOWN, few_names

# in Hounsfield units air is -1000, fat -100, water 0; scans of other kinds have no voxels this far below 0
AIR = -300.0
QUANTILES = 200  # steps between a volume's lowest and its highest value


@dataclass(frozen=True)
class StructureFacts:
    """One label in one scan.

    Attributes:
        voxels: how many it has on the scan's own grid.
        volume_ml: their volume.
        extent_mm: edges of the box around it along x, y, z.
        thickness_mm: diameter of the largest ball inside it.
        centre: its centre of mass along x, y, z, from 0 at the scan's left, back or lower end to 1 at the other.
    """

    voxels: int
    volume_ml: float
    extent_mm: tuple[float, float, float]
    thickness_mm: float
    centre: tuple[float, float, float]


@dataclass(frozen=True)
class ScanFacts:
    """One labelled scan. Axes are x (to the patient's right), y (to the front) and z (to the head).

    Attributes:
        name: as results call it.
        shape: voxels along each axis.
        spacing: mm along each axis.
        orientation: axis codes of the file's array, such as LPS.
        body_mm: edges of the box around all voxels above the lowest value and above :data:`AIR`.
        quantiles: of each channel, QUANTILES + 1 values from the lowest to the highest, of all voxels.
        labelled_quantiles: the same of the labelled voxels; empty if there are none.
        structures: by label value, those that the scan has; the background is none.
        remarks: what is odd about its files, a sentence each.
        ignore: the value of its label's voxels that nobody judged and no number here counts, if there is one.
    """

    name: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    orientation: str
    body_mm: tuple[float, float, float]
    quantiles: tuple[tuple[float, ...], ...]
    labelled_quantiles: tuple[tuple[float, ...], ...]
    structures: dict[int, StructureFacts]
    remarks: tuple[str, ...] = ()
    ignore: int | None = None

    @property
    def channels(self) -> int:
        """How many volumes it has."""
        return len(self.quantiles)


@dataclass(frozen=True)
class Fingerprint:
    """All labelled scans of a folder.

    Attributes:
        scans: in the order of their names.
        labels: names of the values 0, 1, …
        labels_are_named: whether somebody gave these names; else they are "label 1", …
        modalities: what the data list says of each channel, such as CT; None if it says nothing.
        training: how many of the scans train in the first fold.
        validation: how many validate in it.
        not_annotated: by a scan's name, the labels that nobody drew in it.
        output: what the channels of a network's output are: the labels, or the regions if the data list says so.
    """

    scans: tuple[ScanFacts, ...]
    labels: tuple[str, ...]
    labels_are_named: bool
    modalities: tuple[str, ...] | None
    training: int
    validation: int
    not_annotated: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    output: Channels = CLASSES

    @property
    def channels(self) -> int:
        """How many volumes each scan has."""
        return self.scans[0].channels

    def percentile(self, channel: int, percent: float) -> float:
        """A percentile of a channel's labelled voxels over all scans, each counting the same."""
        return pooled_percentile([scan.labelled_quantiles[channel] for scan in self.scans if scan.structures], percent)

    def scans_with(self, value: int) -> list[ScanFacts]:
        """The scans that have a label."""
        return [scan for scan in self.scans if value in scan.structures]


def pooled_values(quantiles: Sequence[Sequence[float]]) -> np.ndarray:
    """Values that stand for several volumes' voxels, each for as many, and each volume counting the same.

    They are the middles between quantiles, since between two quantiles lie as many voxels as between any others.

    Args:
        quantiles: of each volume, as :class:`ScanFacts` has them; of one at least.
    """
    ends = np.array(quantiles)
    return (ends[:, 1:] + ends[:, :-1]) / 2


def pooled_percentile(quantiles: Sequence[Sequence[float]], percent: float) -> float:
    """A percentile of several volumes' voxels, each volume counting the same.

    Args:
        quantiles: of each volume, as :class:`ScanFacts` has them.
    """
    return float(np.percentile(pooled_values(quantiles), percent))


def check_fingerprint(fingerprint: Fingerprint) -> None:
    """Check that one network can learn from all scans.

    Raises:
        InputError: if they differ in channels, or their labels and the labels' names disagree.
    """
    _check_channels(fingerprint)
    _check_labels(fingerprint)


def _check_channels(fingerprint: Fingerprint) -> None:
    names: dict[int, list[str]] = {}
    for scan in fingerprint.scans:
        names.setdefault(scan.channels, []).append(scan.name)
    if len(names) > 1:
        kinds = "; ".join(f"{count} in {few_names(names[count])}" for count in sorted(names))
        raise InputError(
            f"the scans' numbers of channels differ: {kinds}. A network takes one number: give all scans the same "
            "channels, or leave the others out of the data list."
        )
    modalities = fingerprint.modalities
    if modalities is not None and len(modalities) != fingerprint.channels:
        raise InputError(
            f"the data list names {len(modalities)} channel{'s' * (len(modalities) > 1)} ({', '.join(modalities)}), "
            f'but the scans have {fingerprint.channels}. Mend the list\'s "modality" or "channel_names", or add the '
            "missing files."
        )


def _check_labels(fingerprint: Fingerprint) -> None:
    labels = fingerprint.labels
    unnamed: dict[int, list[str]] = {}
    for scan in fingerprint.scans:
        for value in scan.structures:
            if value >= len(labels):
                unnamed.setdefault(value, []).append(scan.name)
    if unnamed:
        values = "; ".join(f"{value} in {few_names(unnamed[value])}" for value in sorted(unnamed)[:SHOWN])
        values += f"; and {len(unnamed) - SHOWN} more values" if len(unnamed) > SHOWN else ""
        raise InputError(
            f"label values that the data list doesn't name: {values}. It names 0 … {len(labels) - 1}: name them in "
            'its "labels", or remap them.'
        )
    if not any(scan.structures for scan in fingerprint.scans):
        raise InputError("no scan has a labelled voxel: there is nothing to learn. Are these the label maps?")
    absent = [value for value in range(1, len(labels)) if not fingerprint.scans_with(value)]
    if not absent:
        return
    if fingerprint.labels_are_named:
        missing = few_names([f"{labels[value]} ({value})" for value in absent])
        todo = 'Take them out of the list\'s "labels" and number the others one by one, or add scans that have them.'
        raise InputError(f"labels that the data list names and no scan has: {missing}. {todo}")
    raise InputError(
        f"label values that no scan has, although some have {len(labels) - 1}: {few_names([*map(str, absent)])}. Remap "
        'the labels to 0, 1, 2, … without gaps, or name them all in a list\'s "labels" and add scans that have them.'
    )

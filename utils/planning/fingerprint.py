"""What a folder's scans are: the facts about each, and over all of them."""

from dataclasses import dataclass

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
        body_mm: edges of the box around all voxels above the lowest value.
        quantiles: of each channel, QUANTILES + 1 values from the lowest to the highest, of all voxels.
        labelled_quantiles: the same of the labelled voxels; empty if there are none.
        structures: by label value, those that the scan has; the background is none.
        remarks: what is odd about its files, a sentence each.
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
    """

    scans: tuple[ScanFacts, ...]
    labels: tuple[str, ...]
    labels_are_named: bool
    modalities: tuple[str, ...] | None
    training: int
    validation: int

    @property
    def channels(self) -> int:
        """How many volumes each scan has."""
        return self.scans[0].channels

"""What is odd about a folder's scans: what a person should look at before a network learns from it."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Sized

import numpy as np

from utils.data.check import summary
from utils.data.mirroring import side_pairs
from utils.planning.fingerprint import QUANTILES, Fingerprint, ScanFacts
from utils.system.text import SHOWN, few_names

FEWEST = 5  # scans, of which one can be unlike the others
FAR_SIZE = 3.0  # times the median
FAR_VOLUME = 10.0
RARE = 10  # more than one scan in so many isn't odd: tumours have all sizes, and MRs all scales
FAR_SPREADS, FAR_DEVIATIONS = 1.5, 10.0  # of an intensity, see _intensities
RARE_LABEL = 0.05  # of all scans; or fewer than three
SIDE, SAME_SIDE = 0.6, 0.8  # a structure beyond SIDE of the scan's width lies on that side; as most of them must


def oddities(fingerprint: Fingerprint) -> tuple[str, ...]:
    """What is odd about the scans, a sentence or two each."""
    return tuple(
        sentence
        for kind in (_files, _copies, _sizes, _orientations, _unlabelled, _labels, _sides, _volumes, _intensities)
        for sentence in kind(fingerprint)
    )


def _files(fingerprint: Fingerprint) -> Iterator[str]:
    yield from summary(remark for scan in fingerprint.scans for remark in scan.remarks)


def _copies(fingerprint: Fingerprint) -> Iterator[str]:
    """Scans that agree in all facts: a copy that trains makes the validation of its original too good."""
    same: dict[object, list[str]] = {}
    for scan in fingerprint.scans:
        facts = (scan.shape, scan.spacing, scan.quantiles, scan.labelled_quantiles, tuple(scan.structures))
        same.setdefault(facts, []).append(scan.name)
    for names in same.values():
        if len(names) > 1:
            yield (
                f"{few_names(names)}: have the same voxels and labels. A copy that trains makes validation look too "
                "good."
            )


def _sizes(fingerprint: Fingerprint) -> Iterator[str]:
    for axis, letter in enumerate("xyz"):
        spacings = {scan.name: scan.spacing[axis] for scan in fingerprint.scans}
        lengths = {scan.name: scan.shape[axis] * scan.spacing[axis] for scan in fingerprint.scans}
        yield from _far(spacings, FAR_SIZE, f"the voxel size along {letter}", "mm")
        yield from _far(lengths, FAR_SIZE, f"the scan's length along {letter}", "mm")


def _few(scans: Sized) -> int:
    """How many of the scans may be unlike the others for that to be odd."""
    return max(1, len(scans) // RARE)


def _far(values: Mapping[str, float], factor: float, what: str, unit: str, most: int | None = None) -> Iterator[str]:
    """A sentence about the scans whose value is far above the median, and one about those far below it.

    Args:
        most: how many they may be for them to be odd; by default any number.
    """
    median = float(np.median(list(values.values())))
    above = {name: value for name, value in values.items() if value > factor * median}
    below = {name: value for name, value in values.items() if value * factor < median}
    if most is not None and len(above) + len(below) > most:
        return
    for group, limit, farthest in ((above, "up to ", max), (below, "down to ", min)):
        if group:
            value = f"{limit if len(group) > 1 else ''}{farthest(group.values()):.3g} {unit}"
            names = few_names(list(group))
            yield f"{names}: {what} is far from the others': {value}, where the median is {median:.3g}."


def _orientations(fingerprint: Fingerprint) -> Iterator[str]:
    counts = Counter(scan.orientation for scan in fingerprint.scans)
    if len(counts) > 1:
        kinds = ", ".join(f"{code} in {count}" for code, count in sorted(counts.items()))
        yield f"The files' axes run in {len(counts)} ways ({kinds}); all scans are turned to one."


def _unlabelled(fingerprint: Fingerprint) -> Iterator[str]:
    names = [scan.name for scan in fingerprint.scans if not scan.structures]
    if names:
        yield f"{few_names(names)}: no voxel is labelled, so that all count as background. Or was nothing ever drawn?"


def _labels(fingerprint: Fingerprint) -> Iterator[str]:
    total = len(fingerprint.scans)
    for value, label in enumerate(fingerprint.labels[1:], start=1):
        names = [scan.name for scan in fingerprint.scans_with(value)]
        if 0 < len(names) < total and (len(names) < 3 or len(names) < RARE_LABEL * total):
            few = f"{len(names)} of {total} scans alone ({few_names(names)})"
            yield f"{label} ({value}) is in {few}: little to learn from."


def _sides(fingerprint: Fingerprint) -> Iterator[str]:
    labels = fingerprint.labels
    wrong: dict[str, tuple[int, int]] = {}
    pairs = [pair for pair in side_pairs(labels) if 0 not in pair]
    for left, right in pairs:
        for scan in fingerprint.scans_with(left):
            if right in scan.structures and scan.structures[left].centre[0] > scan.structures[right].centre[0]:
                wrong.setdefault(scan.name, (left, right))
    if wrong:
        left, right = next(iter(wrong.values()))
        yield (
            f"{few_names(list(wrong))}: labels of the left lie to the right of those of the right, such as "
            f"{labels[left]} and {labels[right]}. Is the header's left wrong, or the labels' order?"
        )
    paired = {value for pair in pairs for value in pair}
    for value, label in enumerate(labels):
        if value not in paired:
            yield from _other_side(fingerprint.scans_with(value), value, label)


def _other_side(scans: Sequence[ScanFacts], value: int, label: str) -> Iterator[str]:
    """A sentence if a structure lies on one side in nearly all scans, and on the other in a few."""
    places = {scan.name: scan.structures[value].centre[0] for scan in scans}
    right = [name for name, place in places.items() if place > SIDE]
    left = [name for name, place in places.items() if place < 1 - SIDE]
    usual, few, side = (right, left, "left") if len(right) > len(left) else (left, right, "right")
    if few and len(places) >= FEWEST and len(usual) >= SAME_SIDE * len(places):
        others = f"in {len(usual)} scans on the other side"
        yield f"{few_names(few)}: {label} lies to the {side}, and {others}. Is it mirrored?"


def _volumes(fingerprint: Fingerprint) -> Iterator[str]:
    for value, label in enumerate(fingerprint.labels):
        volumes = {scan.name: scan.structures[value].volume_ml for scan in fingerprint.scans_with(value)}
        if len(volumes) >= FEWEST:
            yield from _far(volumes, FAR_VOLUME, f"the volume of {label}", "ml", _few(volumes))


def _intensities(fingerprint: Fingerprint) -> Iterator[str]:
    """Scans whose labelled voxels look like no other's, as those of a CT whose values aren't Hounsfield units.

    Their median is far from the scans' median: by FAR_SPREADS times what half of a scan's labelled voxels span, and by
    FAR_DEVIATIONS times what is usual between scans, since MRs have no common scale.
    """
    scans = [scan for scan in fingerprint.scans if scan.structures]
    if len(scans) < FEWEST:
        return
    for channel in range(fingerprint.channels):
        quantiles = np.array([scan.labelled_quantiles[channel] for scan in scans])
        lower, medians, upper = quantiles[:, [QUANTILES // 4, QUANTILES // 2, QUANTILES * 3 // 4]].T
        distances = np.abs(medians - np.median(medians))
        limit = max(FAR_SPREADS * np.median(upper - lower), FAR_DEVIATIONS * np.median(distances))
        far = {scan.name: median for scan, median, far in zip(scans, medians, distances > limit, strict=True) if far}
        if 0 < len(far) <= _few(scans):
            of = f" of channel {channel}" if fingerprint.channels > 1 else ""
            values = ", ".join(f"{value:.4g}" for value in list(far.values())[:SHOWN])
            yield (
                f"{few_names(list(far))}: intensities{of} are far from the others': the median of the labelled voxels "
                f"is {values}, and {np.median(medians):.4g} in most scans. Are they of one kind?"
            )

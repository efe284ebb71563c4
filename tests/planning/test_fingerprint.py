"""What all scans have in common, and what one network can't learn from."""

from dataclasses import replace

import numpy as np
import pytest

from utils.planning.fingerprint import (
    QUANTILES,
    Fingerprint,
    ScanFacts,
    StructureFacts,
    check_fingerprint,
    pooled_percentile,
)
from utils.planning.oddities import oddities
from utils.system.errors import InputError

Box = tuple[float, float, float]


def ramp(low: float, high: float) -> tuple[float, ...]:
    return tuple(float(value) for value in np.linspace(low, high, QUANTILES + 1))


def structure(volume_ml: float = 10.0, x: float = 0.5) -> StructureFacts:
    return StructureFacts(int(volume_ml * 1000), volume_ml, (20.0, 20.0, 20.0), 20.0, (x, 0.5, 0.5))


def make_facts(
    number: int,
    structures: dict[int, StructureFacts] | None = None,
    spacing: Box = (1.0, 1.0, 1.0),
    shape: tuple[int, int, int] = (50, 60, 70),
    labelled: tuple[float, float] = (40.0, 60.0),
    channels: int = 1,
) -> ScanFacts:
    structures = {1: structure()} if structures is None else structures
    return ScanFacts(
        name=f"img{number}",
        shape=shape,
        spacing=spacing,
        orientation="RAS",
        body_mm=(50.0, 60.0, 70.0),
        quantiles=(ramp(-1000 - number, 500),) * channels,  # no two scans are the same
        labelled_quantiles=(ramp(*labelled),) * channels if structures else (),
        structures=structures,
    )


def fingerprint(*scans: ScanFacts, labels: tuple[str, ...] = ("background", "organ"), named: bool = True,
                modalities: tuple[str, ...] | None = None) -> Fingerprint:  # fmt: skip
    return Fingerprint(scans, labels, named, modalities, len(scans) - 1, 1)


def usual(*others: ScanFacts) -> tuple[ScanFacts, ...]:
    """Ten scans of one kind, and others."""
    return (*(make_facts(number) for number in range(100, 110)), *others)


def test_scans_of_one_kind_are_neither_wrong_nor_odd() -> None:
    found = fingerprint(*usual(), modalities=("CT",))
    check_fingerprint(found)
    assert oddities(found) == ()


def test_percentiles_of_scans_that_count_the_same() -> None:
    assert pooled_percentile([ramp(0, 100)], 50) == pytest.approx(50)
    assert pooled_percentile([ramp(0, 100), ramp(100, 200)], 75) == pytest.approx(150, abs=0.5)
    found = fingerprint(make_facts(1, labelled=(0, 100)), make_facts(2, labelled=(0, 100)), make_facts(3, {}))
    assert found.percentile(0, 50) == pytest.approx(50)


FAULTS = {
    "unlike channels": (
        fingerprint(make_facts(1), make_facts(2, channels=2), make_facts(3)),
        "numbers of channels differ: 1 in img1 and img3; 2 in img2",
    ),
    "fewer channels than names": (
        fingerprint(make_facts(1), modalities=("T1", "FLAIR")),
        "names 2 channels (T1, FLAIR), but the scans have 1",
    ),
    "a class that no scan has": (
        fingerprint(make_facts(1), labels=("background", "organ", "tumour")),
        "labels that the data list names and no scan has: tumour (2)",
    ),
    "values without names": (
        fingerprint(make_facts(1), make_facts(2, {1: structure(), 4: structure()})),
        "doesn't name: 4 in img2. It names 0 … 1",
    ),
    "a gap among values": (
        fingerprint(
            make_facts(1, {1: structure(), 4: structure()}),
            labels=("background", "label 1", "label 2", "label 3", "label 4"),
            named=False,
        ),
        "label values that no scan has, although some have 4: 2 and 3. Remap",
    ),
    "nothing labelled": (fingerprint(make_facts(1, {}), make_facts(2, {})), "no scan has a labelled voxel"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_no_network_can_learn_from(name: str) -> None:
    found, message = FAULTS[name]
    with pytest.raises(InputError) as raised:
        check_fingerprint(found)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


SIDED = ("background", "left kidney", "right kidney")


def kidneys(number: int, left: float, right: float) -> ScanFacts:
    return make_facts(number, {1: structure(x=left), 2: structure(x=right)})


ODD = {
    "thick slices": (
        fingerprint(*usual(make_facts(1, spacing=(1.0, 1.0, 5.0), shape=(50, 60, 14)))),
        "img1: the voxel size along z is far from the others': 5 mm, where the median is 1.",
    ),
    "short scans": (
        fingerprint(*usual(make_facts(1, shape=(50, 60, 10)), make_facts(2, shape=(50, 60, 12)))),
        "img1 and img2: the scan's length along z is far from the others': down to 10 mm, where the median is 70.",
    ),
    "mixed orientations": (
        fingerprint(*usual(replace(make_facts(1), orientation="LPS"))),
        "The files' axes run in 2 ways (LPS in 1, RAS in 10)",
    ),
    "no labels": (fingerprint(*usual(make_facts(1, {}))), "img1: no voxel is labelled"),
    "a rare class": (
        fingerprint(*usual(make_facts(1, {1: structure(), 2: structure()})), labels=("background", "organ", "stone")),
        "stone (2) is in 1 of 11 scans alone (img1)",
    ),
    "a small organ": (
        fingerprint(*usual(make_facts(1, {1: structure(0.5)}))),
        "img1: the volume of organ is far from the others': 0.5 ml, where the median is 10.",
    ),
    "other units": (
        fingerprint(*usual(make_facts(1, labelled=(1064, 1084)))),
        "img1: intensities are far from the others': the median of the labelled voxels is 1074, and 50 in most scans",
    ),
    "left and right exchanged": (
        fingerprint(*(kidneys(number, 0.3, 0.7) for number in range(2, 6)), kidneys(1, 0.7, 0.3), labels=SIDED),
        "img1: labels of the left lie to the right of those of the right, such as left kidney and right kidney",
    ),
    "an organ on the other side": (
        fingerprint(
            *(make_facts(number, {1: structure(x=0.7)}) for number in range(2, 8)),
            make_facts(1, {1: structure(x=0.3)}),
            labels=("background", "liver"),
        ),
        "img1: liver lies to the left, and in 6 scans on the other side",
    ),
    "copies": (
        fingerprint(*usual(make_facts(1), replace(make_facts(1), name="img2"))),
        "img1 and img2: have the same voxels and labels",
    ),
    "remarks about files": (
        fingerprint(*usual(*(replace(make_facts(n), remarks=(f"img{n}.nii: has no qform.",)) for n in (1, 2)))),
        "img1.nii and 1 more: has no qform.",
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd(name: str) -> None:
    found, text = ODD[name]
    sentences = oddities(found)
    assert len(sentences) == 1
    assert text in sentences[0]


def test_tumours_of_all_sizes_and_scans_without_a_scale_are_not_odd() -> None:
    sizes = [structure(volume) for volume in (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)]
    scans = [
        make_facts(n, {1: size}, labelled=(10.0 * 4**n, 20.0 * 4**n)) for n, size in enumerate(sizes)
    ]  # fmt: skip
    assert oddities(fingerprint(*scans)) == ()


def test_kidneys_that_lie_right_in_all_scans_and_tumours_on_any_side_are_not_odd() -> None:
    assert oddities(fingerprint(*(kidneys(n, 0.3, 0.7) for n in range(6)), labels=SIDED)) == ()
    tumours = [make_facts(n, {1: structure(x=0.3 if n % 2 else 0.7)}) for n in range(8)]
    assert oddities(fingerprint(*tumours)) == ()

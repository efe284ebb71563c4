"""Size of a voxel, and the window: what a person would choose for data sets of a few kinds."""

import itertools
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from networks import NETWORKS
from networks.registry import Architecture, NetworkConfig
from tests.planning.made_up import ball, make_fingerprint, make_scan
from utils.planning.grid import (
    SMALLEST_SHARE,
    VOXELS_ACROSS,
    Spacing,
    Triple,
    coarser_spacing,
    coarsest_spacing,
    fit_window,
    make_config,
    native_spacing,
    thickness,
    wanted_share,
)
from utils.system.errors import InputError

UNETR = NETWORKS["unetr"]
PATCH_8: dict[str, Any] = {"patch_size": 8, "hidden_size": 96, "num_heads": 6}


def spacing_of(*scans: tuple[tuple[int, int, int], Triple]) -> Spacing:
    return native_spacing(make_fingerprint([make_scan(shape, mm) for shape, mm in scans]))


def test_scans_of_one_spacing_keep_it() -> None:
    found = spacing_of(*[((100, 100, 80), (0.9, 0.9, 1.2))] * 3)
    assert found.mm == (0.9, 0.9, 1.2)
    assert "none has to be resampled" in found.reason


def test_of_mixed_spacings_the_median_is_taken_along_each_axis() -> None:
    found = spacing_of(
        ((100, 100, 100), (0.5, 0.5, 1.0)), ((100, 100, 100), (0.7, 0.7, 2.0)), ((100, 100, 100), (1.1, 0.9, 1.5))
    )
    assert found.mm == (0.7, 0.7, 1.5)
    assert "0.5 × 0.5 × 1 to 1.1 × 0.9 × 2 mm" in found.reason


def test_a_hundredth_of_a_difference_is_small() -> None:
    found = spacing_of(((100, 100, 100), (1.0, 1.0, 1.0)), ((100, 100, 100), (1.005, 1.0, 1.0)))
    assert "nearly this spacing" in found.reason


def test_a_spacing_that_all_scans_have_keeps_its_digits() -> None:
    # 540 mm in 512 voxels; at 1.05 mm they would be resampled by a factor of 1.0045
    found = spacing_of(*[((512, 512, 300), (1.0546875, 1.0546875, 1.0))] * 3)
    assert found.mm == (1.05469, 1.05469, 1.0)
    assert "none has to be resampled" in found.reason


def test_thick_slices_stay_thick() -> None:
    found = spacing_of(*[((512, 512, 60), (0.8, 0.8, 5.0))] * 5)
    assert found.mm == (0.8, 0.8, 5.0)
    assert "along z are thick, and stay so" in found.reason


def test_of_thick_slices_that_differ_the_finer_ones_count() -> None:
    # eleven scans: the tenth percentile is the second finest
    thick = [((512, 512, 60), (0.8, 0.8, mm)) for mm in (3.0, 4.0, *[5.0] * 7, 6.0, 6.0)]
    found = spacing_of(*thick)
    assert found.mm == (0.8, 0.8, 4.0)
    assert "10th percentile" in found.reason


def test_finer_slices_are_never_finer_than_the_other_axes() -> None:
    thick = [((512, 512, 60), (0.8, 0.8, mm)) for mm in (0.2, 0.2, 0.2, *[5.0] * 6)]
    assert spacing_of(*thick).mm == (0.8, 0.8, 0.8)


@pytest.mark.parametrize(
    ("shape", "mm"),
    [
        ((100, 100, 90), (1.0, 1.0, 5.0)),  # as many slices as a fine scan has
        ((512, 512, 60), (1.0, 1.0, 2.9)),  # not three times as long
    ],
)
def test_what_is_not_anisotropic_has_the_median(shape: tuple[int, int, int], mm: Triple) -> None:
    x, y, z = mm
    assert spacing_of((shape, (x, y, z / 2)), (shape, mm), (shape, mm)).mm == mm


def test_thickness_is_the_median_of_the_scans_that_have_a_structure() -> None:
    scans = [make_scan(structures={1: ball(mm)}) for mm in (10.0, 20.0, 60.0)]
    scans.append(make_scan(structures={2: ball(VOXELS_ACROSS * 1.0)}))
    found = make_fingerprint(scans, ("background", "large", "small"))
    assert thickness(found) == {1: 20.0, 2: VOXELS_ACROSS}
    assert coarsest_spacing(found) == 1.0  # of the thinner one


def test_a_window_that_holds_enough_changes_no_spacing() -> None:
    spacing = Spacing((1.0, 1.0, 1.0), "as they are")
    assert coarser_spacing(spacing, (100.0, 100.0, 100.0), SMALLEST_SHARE * 100**3, math.inf) is spacing


def test_the_fewer_crops_the_more_of_the_scan_a_window_holds() -> None:
    assert [wanted_share(crops) for crops in (1_000, 2_000, 4_000, 8_000, 100_000)] == [1, 1, 0.5, 0.25, 0.25]


def test_a_window_of_the_whole_scan() -> None:
    # 320 × 320 × 240 mm in 128 × 128 × 32 voxels, with slices of 7.5 mm
    found = coarser_spacing(Spacing((1.25, 1.25, 7.5), ""), (320.0, 320.0, 240.0), 128 * 128 * 32, 10.0, wanted=1.0)
    assert found.mm == pytest.approx((2.5, 2.5, 7.5), rel=0.03)


def test_voxels_become_as_long_as_the_window_needs() -> None:
    # 64³ voxels are a quarter of 101.6³
    found = coarser_spacing(Spacing((1.0, 1.0, 1.0), ""), (400.0, 400.0, 400.0), 64**3, math.inf)
    assert found.mm == pytest.approx((3.94,) * 3, rel=0.03)
    assert "The scans' own spacing would be 1 × 1 × 1 mm." in found.reason


def test_the_finest_axes_become_coarser_first() -> None:
    found = coarser_spacing(Spacing((0.5, 0.8, 5.0), ""), (400.0, 400.0, 400.0), 128 * 128 * 80 * SMALLEST_SHARE, 100.0)
    x, y, z = found.mm
    assert z == 5.0
    assert x == pytest.approx(400 / 128, rel=0.05)
    assert x == pytest.approx(y, rel=0.05)


def test_no_voxel_becomes_longer_than_the_thinnest_structure_allows() -> None:
    found = coarser_spacing(Spacing((0.5, 0.5, 3.0), ""), (400.0, 400.0, 400.0), 32**3, 1.0)
    assert found.mm == pytest.approx((1.0, 1.0, 3.0), rel=0.04)
    assert max(found.mm[:2]) <= 1.0


def test_thin_structures_keep_the_spacing_though_the_window_holds_little() -> None:
    found = coarser_spacing(Spacing((0.5, 0.5, 0.5), "as they are."), (400.0, 400.0, 400.0), 32**3, 0.5)
    assert found.mm == (0.5, 0.5, 0.5)
    assert found.reason.startswith("as they are. The window holds 0% of the median scan")
    assert f"{VOXELS_ACROSS} voxels thick" in found.reason


def window(spacing: Triple, body: Triple, voxels: float, name: str = "unetr") -> tuple[int, int, int]:
    return fit_window(NETWORKS[name], PATCH_8 if name == "unetr" else {}, spacing, body, voxels)


WINDOWS: dict[str, tuple[Triple, Triple, float, tuple[int, int, int]]] = {
    "a cube": ((1.0, 1.0, 1.0), (200.0, 200.0, 200.0), 64**3, (64, 64, 64)),
    "a cube in mm": ((1.0, 1.0, 2.0), (200.0, 200.0, 200.0), 64 * 64 * 32, (64, 64, 32)),
    "as long as the scan": ((1.0, 1.0, 1.0), (48.0, 64.0, 40.0), 1e9, (48, 64, 40)),
    "a flat scan": ((1.0, 1.0, 1.0), (128.0, 128.0, 16.0), 128 * 128 * 16, (128, 128, 16)),
    "no larger than allowed": ((1.0, 1.0, 1.0), (200.0, 200.0, 200.0), 64**3 - 1, (56, 56, 56)),
    "a scan smaller than a patch": ((1.0, 1.0, 1.0), (6.0, 5.0, 4.0), 1e9, (8, 8, 8)),
    "a single slice": ((1.0, 1.0, 5.0), (64.0, 64.0, 5.0), 1e9, (64, 64, 8)),
    "less than the smallest": ((1.0, 1.0, 1.0), (100.0, 100.0, 100.0), 10.0, (8, 8, 8)),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_of_unetr(name: str) -> None:
    spacing, body, voxels, expected = WINDOWS[name]
    assert window(spacing, body, voxels) == expected


def test_the_smallest_window_of_swin_unetr() -> None:
    assert window((1.0, 1.0, 1.0), (100.0, 100.0, 100.0), 48**3, "swin_unetr") == (64, 64, 64)
    assert window((1.0, 1.0, 1.0), (20.0, 12.0, 9.0), 1e9, "swin_unetr") == (64, 64, 64)


def test_a_window_of_thick_slices_halves_along_z_less_often() -> None:
    x, y, z = window((1.0, 1.0, 5.0), (300.0, 300.0, 100.0), 96 * 96 * 20, "dynunet")
    assert (x % 16, y % 16, z % 4) == (0, 0, 0)
    assert z < 32


def refuses(config: NetworkConfig) -> tuple[int, ...]:
    raise ValueError("no window is good enough")


def test_a_network_that_takes_no_window() -> None:
    architecture = Architecture("picky", OfNoWindow, nn.Identity, refuses)
    with pytest.raises(InputError, match="`model_name` picky: takes no window that fits scans of 10 × 10 × 10 voxels"):
        fit_window(architecture, {}, (1.0, 1.0, 1.0), (10.0, 10.0, 10.0), 1e6)


class OfNoWindow(NetworkConfig):
    """Refuses every window."""

    def faults(self) -> list[str]:
        return ["`img_size` is none"]


lengths = st.floats(3.0, 500.0)
voxel = st.floats(0.3, 6.0)


@pytest.mark.parametrize("name", NETWORKS)
@given(spacing=st.tuples(voxel, voxel, voxel), body=st.tuples(lengths, lengths, lengths), edge=st.floats(4.0, 128.0))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_windows_are_ones_that_the_network_takes(name: str, spacing: Triple, body: Triple, edge: float) -> None:
    voxels = edge**3
    found = window(spacing, body, voxels, name)
    make_config(NETWORKS[name], PATCH_8 if name == "unetr" else {}, spacing, found)  # or it would raise
    if math.prod(found) > voxels:
        assert found == window(spacing, body, 1.0, name)  # it is the smallest
    step = 64 if name == "swin_unetr" else 32
    assert all(edge < length / mm + step for edge, length, mm in zip(found, body, spacing, strict=True))


@given(
    spacing=st.tuples(voxel, voxel, voxel), body=st.tuples(lengths, lengths, lengths), edge=st.floats(16.0, 128.0),
    coarsest=st.floats(0.5, 20.0),
)  # fmt: skip
@settings(max_examples=50, deadline=None, derandomize=True)
def test_coarser_spacings(spacing: Triple, body: Triple, edge: float, coarsest: float) -> None:
    found = coarser_spacing(Spacing(spacing, ""), body, edge**3, coarsest).mm
    held = edge**3 / math.prod(max(1.0, length / mm) for length, mm in zip(body, found, strict=True))
    changed = [new for new, old in zip(found, spacing, strict=True) if new > 1.01 * old]
    assert all(new >= 0.99 * old for new, old in zip(found, spacing, strict=True))
    assert all(mm <= 1.01 * coarsest for mm in changed)
    assert all(mm <= 1.04 * other for mm, other in itertools.product(changed, found))  # none passes a finer one
    # held is what the rule asked for, unless structures are too thin
    assert held >= 0.98 * SMALLEST_SHARE or 1.04 * min(found) > coarsest
    assert not changed or held < 1.2 * SMALLEST_SHARE

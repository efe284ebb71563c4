"""Which networks know mirrored scans; all else that a cross-validation writes is in ``tests/commands``."""

from dataclasses import replace

import pytest

from tests.checkpoints.conftest import DESCRIPTION
from utils.data.channels import CLASSES, Region, RegionChannels
from utils.segmentation.fold_results import knows_mirrored_scans


@pytest.mark.parametrize(
    ("flips", "labels", "regions", "knows"),
    [
        ("none", ("background", "liver"), (), False),
        ("published", ("background", "liver"), (), True),
        ("left_right", ("background", "left kidney", "right kidney"), (), True),
        ("left_right", ("background", "left kidney"), (), False),  # a side without the other
        ("left_right", ("background", "left kidney", "right kidney"), ((1, 2), (1,)), False),  # (2,) is no region
    ],
)
def test_mirrored_passes_are_tried_where_networks_know_them(
    flips: str, labels: tuple[str, ...], regions: tuple[tuple[int, ...], ...], knows: bool
) -> None:
    channels = tuple(Region(f"region {values}", values) for values in regions)
    output = RegionChannels(channels, tuple(values[-1] for values in regions)) if regions else CLASSES
    description = replace(DESCRIPTION, flips=flips, labels=labels, regions=channels, output=output)
    assert knows_mirrored_scans(description) == knows

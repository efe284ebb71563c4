"""What a checkpoint says of its network."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints.conftest import DESCRIPTION
from utils.checkpoints.description import describe, preprocessing_from, preprocessing_settings, setting_text
from utils.checkpoints.read import read_checkpoint
from utils.data.channels import CLASSES, Region, RegionChannels
from utils.data.preprocessing import Preprocessing
from utils.system.errors import DamagedError, InputError

FIELDS: dict[str, Any] = {
    "intensity": "ct",
    "a_min": -175.0,
    "a_max": 250.0,
    "b_min": 0.0,
    "b_max": 1.0,
    "spacing": [1.5, 1.5, 3.0],
    "roi": [32, 32, 64],
    "orientation": "RAS",
}


def content(network: str, **options: Any) -> dict[str, Any]:
    """As version 0.2.0 wrote it, with lists, as JSON has them."""
    return {
        "format": 2,
        "network": {"name": network, "options": {"in_channels": 1, "out_channels": 14, **options}},
        "preprocessing": FIELDS,
        "labels": [f"label {value}" for value in range(14)],
        "amp": True,
    }


def test_a_checkpoint_describes_itself(saved: Path) -> None:
    assert describe(read_checkpoint(saved)) == DESCRIPTION


@pytest.mark.parametrize(
    "others", [{"network": "unetr"}, {"network": {"name": "unetr"}}, {"format": "pt"}, {"format": 7, "network": "vnet"}]
)
def test_what_other_programs_call_network_or_format_is_not_ours(others: dict[str, Any], tmp_path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(1)}, **others}, tmp_path / "weights.pt")
    assert describe(read_checkpoint(tmp_path / "weights.pt")) is None


@pytest.mark.parametrize(
    ("network", "options"),
    [
        ("unetr", {"img_size": [32, 32, 64]}),  # without its spacing
        ("dynunet", {"img_size": [32, 32, 64], "spacing": [1.5, 1.5, 3.0]}),
        ("swin_unetr", {"feature_size": 12}),  # with neither
        ("segresnet", {"feature_size": 8}),
    ],
)
def test_the_window_comes_from_the_preprocessing_where_an_older_version_did_not_record_it(
    network: str, options: dict[str, Any]
) -> None:
    description = describe(content(network, **options))
    assert description is not None
    assert description.network == network
    assert (description.config.img_size, description.config.spacing) == ((32, 32, 64), (1.5, 1.5, 3.0))
    assert description.preprocessing == Preprocessing(spacing=(1.5, 1.5, 3.0), roi=(32, 32, 64))
    assert description.flips is None  # not recorded then


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"feature_size": 0}, "x.pt: its network can't be built: `feature_size` must be at least 1, not 0."),
        ({"width": 3}, "x.pt: its network can't be built: `width` is not for unetr; leave it out."),
    ],
)
def test_a_network_that_cannot_be_built_is_an_error_that_names_the_file(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as error:
        describe(content("unetr", **options), "x.pt")
    assert str(error.value) == words


def test_settings_have_the_names_of_flags() -> None:
    settings = DESCRIPTION.settings()
    assert settings["model_name"] == "unetr"
    assert [settings[name] for name in ("out_channels", "feature_size", "num_heads")] == [3, 2, 2]
    assert [settings[f"roi_{axis}"] for axis in "xyz"] == [16, 16, 32]
    assert [settings[f"space_{axis}"] for axis in "xyz"] == [1.0, 1.0, 2.5]
    assert not {"img_size", "spacing", "roi", "orientation"} & settings.keys()


def test_preprocessing_from_its_settings_and_back() -> None:
    given = Preprocessing(intensity="zscore", a_min=-1.0, spacing=(1.0, 2.0, 3.0), roi=(16, 32, 48))
    assert preprocessing_from(preprocessing_settings(given)) == given
    assert preprocessing_from({"roi_y": 48, "feature_size": 3}) == Preprocessing(roi=(96, 48, 96))


def test_a_setting_in_words() -> None:
    texts = [setting_text(value) for value in (None, False, True, 0.5, 1e-5, 3, "adamw")]
    assert texts == ["off", "off", "on", "0.5", "1e-05", "3", "adamw"]


REGIONS = (Region("hippocampus", (1, 2)), Region("a", (1,)), Region("p", (2,)))
OF_REGIONS = replace(DESCRIPTION, regions=REGIONS, output=RegionChannels(REGIONS, (2, 1, 2)))


def test_a_checkpoint_tells_its_regions() -> None:
    for description in (replace(DESCRIPTION, regions=REGIONS), OF_REGIONS):
        assert describe(description.content()) == description
    old = describe({key: value for key, value in DESCRIPTION.content().items() if "region" not in key})
    assert old is not None
    assert (old.regions, old.output) == ((), CLASSES)
    # a version before this one reads 2, and would take channels of regions for labels
    assert (DESCRIPTION.content()["format"], OF_REGIONS.content()["format"]) == (2, 3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"regions": {"hippocampus": [1, 3]}}, 'the region "hippocampus" has 3, and labels are 1 … 2'),
        ({"regions": {"hippocampus": "all"}}, "isn't what this program writes: regions.hippocampus should be a valid"),
        ({"regions_class_order": [1, 2]}, '"regions_class_order" has 2 values, and there are 3 regions'),
        ({"regions": {"hippocampus": [1, 2], "a": [1]}, "regions_class_order": [2, 1]}, "names 2 regions for 3 channe"),
        ({"regions": {}}, '"regions_class_order" needs regions'),
    ],
)
def test_regions_that_can_not_be_are_a_damaged_checkpoint(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DamagedError) as error:
        describe({**OF_REGIONS.content(), **changes})
    assert words in str(error.value)

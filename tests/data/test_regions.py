"""Regions in data lists and in nnU-Net's ``dataset.json``, and what can be none."""

import json
from pathlib import Path
from typing import Any

import pytest

from utils.data.channels import CLASSES, Region, RegionChannels
from utils.data.data_list import DataList, read_data_list, read_meaning
from utils.data.folders import Folder, write_data_lists
from utils.data.regions import scored_structures
from utils.system.errors import InputError

WHOLE, CORE, ENHANCING = Region("whole tumor", (1, 2, 3)), Region("tumor core", (2, 3)), Region("enhancing tumor", (3,))
# as in the documentation of nnU-Net
BRATS: dict[str, Any] = {
    "labels": {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": 3},
    "regions_class_order": [1, 2, 3],
}
NAMES = {"0": "background", "1": "oedema", "2": "necrosis", "3": "enhancing tumor"}
OWN: dict[str, Any] = {"labels": NAMES, "regions": {"whole tumor": [1, 2, 3], "tumor core": [3, 2]}}


def listed(folder: Path, **content: Any) -> DataList:
    entry = {"image": "a.nii.gz", "label": "b.nii.gz"}
    (folder / "dataset_0.json").write_text(json.dumps({"training": [entry], "validation": [entry], **content}))
    return read_data_list(str(folder), None, 0)


def test_regions_of_a_list_are_scored_beside_its_labels(tmp_path: Path) -> None:
    data = listed(tmp_path, **OWN)
    assert data.regions == (WHOLE, CORE)
    assert data.output == CLASSES
    assert data.classes() == 4
    assert data.labels is not None
    assert scored_structures(data.labels, data.regions) == {
        "oedema": (1,), "necrosis": (2,), "enhancing tumor": (3,), "whole tumor": (1, 2, 3), "tumor core": (2, 3),
    }  # fmt: skip


def test_an_order_makes_regions_the_channels(tmp_path: Path) -> None:
    regions = {**OWN["regions"], "enhancing tumor": 3}
    data = listed(tmp_path, labels=NAMES, regions=regions, regions_class_order=[1, 2, 3])
    assert data.output == RegionChannels((WHOLE, CORE, ENHANCING), (1, 2, 3))
    assert data.classes() == 3
    assert data.label_names(3) == tuple(NAMES.values())
    with pytest.raises(InputError, match=r"trains 3 regions \(whole tumor, .*\), but `out_channels` is 4. Give"):
        data.label_names(4)
    # a region of one label is scored as that label
    assert data.labels is not None
    assert list(scored_structures(data.labels, data.regions))[2:] == ["enhancing tumor", "whole tumor", "tumor core"]


def test_labels_of_nnunet_become_values_and_regions() -> None:
    meaning = read_meaning({**BRATS, "labels": {**BRATS["labels"], "ignore": 4}})
    assert meaning.labels == ("background", "label 1", "label 2", "enhancing tumor")
    assert meaning.ignore == 4
    assert meaning.regions == (WHOLE, CORE, ENHANCING)
    assert meaning.output == RegionChannels((WHOLE, CORE, ENHANCING), (1, 2, 3))
    # without an order, regions are scored and not trained; nnU-Net always wants one
    assert read_meaning({"labels": BRATS["labels"]})[2:4] == ((WHOLE, CORE), CLASSES)
    # a list of one value is that value, in nnU-Net too
    assert read_meaning({"labels": {"background": 0, "liver": [1]}})[:3] == (("background", "liver"), None, ())


@pytest.mark.parametrize("content", [BRATS, OWN, {"labels": NAMES}])
def test_written_lists_have_the_regions_of_the_folder(tmp_path: Path, content: dict[str, Any]) -> None:
    meaning = read_meaning(content)
    entries = [{"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"} for name in "ab"]
    folder = Folder(entries, [], meaning.labels, None, None, meaning.regions, meaning.output)
    write_data_lists(tmp_path, folder, 2, 0, meaning.labels)
    data = read_data_list(str(tmp_path), None, 1)
    assert (data.labels, data.regions, data.output) == (meaning.labels, meaning.regions, meaning.output)


def test_another_hash_tells_that_the_regions_have_changed(tmp_path: Path) -> None:
    plain = listed(tmp_path, labels=NAMES).content_hash()
    assert listed(tmp_path, labels=NAMES, regions={}).content_hash() == plain
    regions = {"a": [1, 2, 3], "b": [2, 3], "c": [3]}
    scored = listed(tmp_path, labels=NAMES, regions=regions).content_hash()
    trained = listed(tmp_path, labels=NAMES, regions=regions, regions_class_order=[1, 2, 3]).content_hash()
    assert len({plain, listed(tmp_path, **OWN).content_hash(), scored, trained}) == 4


ORDERED: dict[str, Any] = {
    "labels": ["background", "a", "b", "c"],
    "regions": {"all": [1, 2, 3], "inner": [2, 3], "core": [3]},
}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown label": ({**OWN, "regions": {"x": [1, 4, 9]}}, 'the region "x" has 4, 9, and labels are 1 … 3'),
    "the background": ({**OWN, "regions": {"x": [0, 1]}}, 'the region "x" has 0, and labels are 1 … 3'),
    "no labels": ({**OWN, "regions": {"x": []}}, 'the region "x" has no labels'),
    "no labels, in nnU-Net's way": ({"labels": {"background": 0, "a": 1, "x": []}}, 'the region "x" has no labels'),
    "names of labels": ({**OWN, "regions": {"x": ["oedema"]}}, 'the region "x" must be a list of label values, not ['),
    "a list": ({**OWN, "regions": [[1, 2]]}, '"regions" must name label values, as in {"whole tumour": [1, 2, 3]}'),
    "the name of a label": ({**OWN, "regions": {"oedema": [1, 2]}}, 'the region "oedema" has the name of another'),
    "the name of what is ignored": ({**OWN, "regions": {"ignore": [1]}}, 'the region "ignore" has the name of another'),
    "one name twice": ({**OWN, "regions": {"x": [1], "x\n": [2]}}, '"regions" has a name twice'),
    "no name": ({**OWN, "regions": {" ": [1]}}, '"regions" has an empty name'),
    "values without names": ({"regions": {"x": [1, 2]}}, '"regions" needs "labels" that name the values'),
    "two places": ({**BRATS, "regions": {"x": [1]}}, '"labels" has regions, and so has "regions". Name all in one'),
    "an order of nothing": ({"labels": NAMES, "regions_class_order": [1]}, '"regions_class_order" needs regions'),
    "an order of words": ({**ORDERED, "regions_class_order": ["all"]}, '"regions_class_order" must be a list of label'),
    "a short order": (
        {**ORDERED, "regions_class_order": [1, 2]},
        '"regions_class_order" has 2 values, and there are 3 regions (all, inner and core)',
    ),
    "an order of unknown labels": (
        {**ORDERED, "regions_class_order": [1, 2, 7]},
        '"regions_class_order" lets the region "core" write 7, and its labels are 3',
    ),
    "a region under a larger one": (
        {"labels": ORDERED["labels"], "regions": {"core": [3], "all": [1, 2, 3], "inner": [2, 3]},
         "regions_class_order": [3, 1, 2]},
        '"regions_class_order": where the label is 3 (c), a mask would have 2. Name large regions before',
    ),
    "a label that none writes": (
        {"labels": ORDERED["labels"], "regions": {"all": [1, 2, 3], "inner": [2, 3]}, "regions_class_order": [1, 2]},
        '"regions_class_order": where the label is 3 (c), a mask would have 2.',
    ),
    "a label in no region": (
        {"labels": ORDERED["labels"], "regions": {"outer": [1, 2], "inner": [2]}, "regions_class_order": [1, 2]},
        '"regions_class_order": the label 3 (c) is in no region. Add one that has it',
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_can_be_no_region_is_named_in_one_line(name: str, tmp_path: Path) -> None:
    content, words = BAD[name]
    with pytest.raises(InputError) as error:
        listed(tmp_path, **content)
    assert str(error.value).startswith(f"{tmp_path}/dataset_0.json: {words}")
    assert "\n" not in str(error.value)


def test_a_scan_of_which_no_region_is_known_is_named(tmp_path: Path) -> None:
    entry = {"image": "a.nii.gz", "label": "b.nii.gz", "not_annotated": ["c"]}
    content = {"labels": ORDERED["labels"], "regions": {"all": [1, 2, 3], "b or c": [2, 3], "c": [3]}}
    assert listed(tmp_path, training=[entry], **content).training[0].not_annotated == (3,)
    with pytest.raises(InputError, match='entry 0: "not_annotated" has a label of every region, so that there is noth'):
        listed(tmp_path, training=[entry], **content, regions_class_order=[1, 2, 3])

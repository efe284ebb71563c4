"""Folders as people have them: nnU-Net, the decathlon, BTCV, plain ones; names, channels and data lists."""

import json
import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from utils.data.data_list import read_data_list
from utils.data.folders import (
    Folder,
    absent_classes,
    label_value_faults,
    label_values,
    list_paths,
    read_folder,
    split_folds,
    unlisted_scans,
    unnamed_values,
    write_data_lists,
)
from utils.system.errors import InputError
from utils.system.text import few_names


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def describe(folder: Path, content: Any) -> None:
    (folder / "dataset.json").write_text(content if isinstance(content, str) else json.dumps(content))


def pairs(folder: Path, *names: str) -> None:
    touch(folder, *(f"{part}/{name}.nii.gz" for name in names for part in ("imagesTr", "labelsTr")))


def entry(name: str) -> dict[str, str]:
    return {"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"}


# ---- layouts


def test_nnunet_with_two_channels(tmp_path: Path) -> None:
    for name in ("brain_001", "brain_002"):
        touch(tmp_path, f"imagesTr/{name}_0000.nii.gz", f"imagesTr/{name}_0001.nii.gz", f"labelsTr/{name}.nii.gz")
    touch(tmp_path, "imagesTs/brain_003_0000.nii.gz", "imagesTs/brain_003_0001.nii.gz")
    describe(
        tmp_path,
        {
            "channel_names": {"0": "T1", "1": "FLAIR"},
            "labels": {"air": 0, "tumour": 2, "edema": 1},
            "numTraining": 2,
            "file_ending": ".nii.gz",
        },
    )
    notes: list[str] = []
    folder = read_folder(tmp_path, notes)
    assert folder == Folder(
        [
            {
                "image": [f"imagesTr/{name}_0000.nii.gz", f"imagesTr/{name}_0001.nii.gz"],
                "label": f"labelsTr/{name}.nii.gz",
            }
            for name in ("brain_001", "brain_002")
        ],
        [{"image": ["imagesTs/brain_003_0000.nii.gz", "imagesTs/brain_003_0001.nii.gz"]}],
        ("air", "edema", "tumour"),
        ("T1", "FLAIR"),
    )
    assert notes == []


def test_nnunet_with_one_channel_of_nrrd(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/liver_0_0000.nrrd", "labelsTr/liver_0.nrrd", "imagesTs/liver_1_0000.nrrd")
    describe(tmp_path, {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "file_ending": ".nrrd"})
    assert read_folder(tmp_path, []) == Folder(
        [{"image": "imagesTr/liver_0_0000.nrrd", "label": "labelsTr/liver_0.nrrd"}],
        [{"image": "imagesTs/liver_1_0000.nrrd"}],
        ("background", "liver"),
        ("CT",),
    )


DECATHLON = {
    "name": "BRATS",
    "tensorImageSize": "4D",
    "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
    "labels": {"0": "background", "1": "edema", "2": "non-enhancing tumor"},
    "training": [
        {"image": f"./imagesTr/BRATS_00{n}.nii.gz", "label": f"./labelsTr/BRATS_00{n}.nii.gz"} for n in (1, 2)
    ],
    "test": ["./imagesTs/BRATS_003.nii.gz"],
}


def test_the_decathlon_with_channels_in_one_file_and_hidden_files(tmp_path: Path) -> None:
    pairs(tmp_path, "BRATS_001", "BRATS_002", "._BRATS_001", "._BRATS_002")
    touch(tmp_path, "imagesTs/BRATS_003.nii.gz", "imagesTs/._BRATS_003.nii.gz", "._dataset.json")
    describe(tmp_path, DECATHLON)
    notes: list[str] = []
    assert read_folder(tmp_path, notes) == Folder(
        [entry("BRATS_001"), entry("BRATS_002")],
        [{"image": "imagesTs/BRATS_003.nii.gz"}],
        ("background", "edema", "non-enhancing tumor"),
        ("FLAIR", "T1w", "t1gd", "T2w"),
    )
    assert notes == []


def test_the_folders_count_where_the_lists_of_the_decathlon_differ(tmp_path: Path) -> None:
    pairs(tmp_path, "BRATS_001", "BRATS_004")
    describe(tmp_path, DECATHLON)
    notes: list[str] = []
    assert read_folder(tmp_path, notes).training == [entry("BRATS_001"), entry("BRATS_004")]
    file = tmp_path / "dataset.json"
    assert notes == [
        f"{file}: lists 2 scans that aren't there (BRATS_002 and BRATS_003). Those in the folders are taken.",
        f"{file}: doesn't list 1 scans (imagesTr/BRATS_004.nii.gz). They are taken, too.",
    ]


def test_the_first_version_of_nnunet_lists_scans_without_their_channels(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/hip_1_0000.nii.gz", "imagesTr/hip_2_0000.nii.gz", "imagesTs/hip_3_0000.nii.gz")
    touch(tmp_path, "labelsTr/hip_1.nii.gz", "labelsTr/hip_2.nii.gz")
    listed = [{"image": f"./imagesTr/hip_{n}.nii.gz", "label": f"./labelsTr/hip_{n}.nii.gz"} for n in (1, 2)]
    labels = {"0": "background", "1": "Anterior"}
    describe(
        tmp_path,
        {"modality": {"0": "MRI"}, "labels": labels, "training": listed, "test": ["./imagesTs/hip_3.nii.gz"]},
    )
    notes: list[str] = []
    folder = read_folder(tmp_path, notes)
    assert [one["image"] for one in folder.training] == ["imagesTr/hip_1_0000.nii.gz", "imagesTr/hip_2_0000.nii.gz"]
    assert (folder.labels, folder.modalities, notes) == (("background", "Anterior"), ("MRI",), [])


@pytest.mark.parametrize("images", ["images", "RawData/Training/img", "Training/img"])
def test_layouts_without_a_description(tmp_path: Path, images: str) -> None:
    labels = images.replace("images", "labels").replace("img", "label")
    touch(tmp_path, f"{images}/img0001.mha", f"{images}/img0002.mha")
    touch(tmp_path, f"{labels}/label0001.mha", f"{labels}/label0002.mha")
    found = read_folder(tmp_path, [])
    assert found.training == [
        {"image": f"{images}/img0001.mha", "label": f"{labels}/label0001.mha"},
        {"image": f"{images}/img0002.mha", "label": f"{labels}/label0002.mha"},
    ]
    assert (found.unlabelled, found.labels, found.modalities) == ([], None, None)


def test_channels_need_no_order_of_their_endings(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/a_0001.NRRD", "imagesTr/a_0000.nii", "labelsTr/a.nii.gz")
    assert read_folder(tmp_path, []).training[0]["image"] == ["imagesTr/a_0000.nii", "imagesTr/a_0001.NRRD"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"`data_dir` .*/nowhere: no such folder\."):
        read_folder(tmp_path / "nowhere", [])


# ---- scans that no list has


def write_list(path: Path, **parts: Any) -> Path:
    path.write_text(json.dumps(parts))
    return path


def test_a_scan_that_came_later_is_in_no_list(tmp_path: Path) -> None:
    pairs(tmp_path, "a", "b", "c", "d", "e")
    touch(tmp_path, "imagesTs/f.nii.gz")  # has no label
    lists = [
        write_list(tmp_path / "dataset_0.json", training=[entry("a")], validation=[entry("b")]),
        write_list(tmp_path / "dataset_1.json", training=[entry("a")], test=["./imagesTr/c.nii.gz"]),
    ]
    assert unlisted_scans(tmp_path, lists) == ["imagesTr/d.nii.gz", "imagesTr/e.nii.gz"]
    assert unlisted_scans(tmp_path, lists[:1]) == [f"imagesTr/{name}.nii.gz" for name in "cde"]


def test_scans_of_several_channels_are_found_in_lists(tmp_path: Path) -> None:
    for name in ("a_1", "a_2"):
        touch(tmp_path, *(f"imagesTr/{name}_000{n}.nii.gz" for n in range(2)), f"labelsTr/{name}.nii.gz")
    images = [f"imagesTr/a_1_000{n}.nii.gz" for n in range(2)]
    lists = [write_list(tmp_path / "dataset_0.json", training=[{"image": images, "label": "labelsTr/a_1.nii.gz"}])]
    assert unlisted_scans(tmp_path, lists) == ["imagesTr/a_2_0000.nii.gz"]


def test_a_folder_of_another_layout_and_a_list_that_is_none_say_nothing(tmp_path: Path) -> None:
    touch(tmp_path, "scans/a.nii.gz", "masks/a.nii.gz")
    assert unlisted_scans(tmp_path, [write_list(tmp_path / "dataset_0.json", training=[])]) == []
    pairs(tmp_path, "a")
    (tmp_path / "dataset_1.json").write_text("no list")
    assert unlisted_scans(tmp_path, [tmp_path / "dataset_1.json"]) == []
    assert unlisted_scans(tmp_path, [write_list(tmp_path / "dataset_2.json", training="all")]) == ["imagesTr/a.nii.gz"]


# ---- pairs and channels


def test_an_empty_folder_of_labels(tmp_path: Path) -> None:
    touch(tmp_path, *(f"imagesTr/ct_{number:02}.nii.gz" for number in range(12)))
    (tmp_path / "labelsTr").mkdir()
    with pytest.raises(InputError) as error:
        read_folder(tmp_path, [])
    shown = ", ".join(f"imagesTr/ct_{number:02}.nii.gz" for number in range(5))
    words = f"`data_dir` {tmp_path}: 12 files have no partner: {shown} and 7 more. Rename or remove them."
    assert str(error.value) == words


def test_the_scan_without_a_label_is_named_not_its_neighbour(tmp_path: Path) -> None:
    """``a`` has a label of its name, and needs no number."""
    pairs(tmp_path, "a")
    touch(tmp_path, "imagesTr/b.nii.gz")
    with pytest.raises(InputError, match="imagesTr/b has neither a partner of its name nor a number"):
        read_folder(tmp_path, [])


@pytest.mark.parametrize("other", [("b_0000",), ("b",), ("b_0000", "b_0002"), ("b_0000", "b_0001", "b_0002")])
def test_scans_of_unlike_channels(tmp_path: Path, other: tuple[str, ...]) -> None:
    touch(tmp_path, *(f"imagesTr/{name}.nii" for name in ("a_0000", "a_0001", "c_0000", "c_0001", *other)))
    touch(tmp_path, "labelsTr/a.nii", "labelsTr/b.nii", "labelsTr/c.nii")
    with pytest.raises(InputError) as error:
        read_folder(tmp_path, [])
    shown = few_names([f"imagesTr/{name}.nii" for name in other])
    assert str(error.value) == (
        f"`data_dir` {tmp_path}: scans have unlike channels: 2 like imagesTr/a_0000.nii and imagesTr/a_0001.nii; 1 "
        f"like {shown}. Add the files that are missing, or move the scans that lack them and their labels elsewhere."
    )


def test_an_unlabelled_scan_that_lacks_a_channel_is_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/a_0000.nii", "imagesTr/a_0001.nii", "labelsTr/a.nii")
    touch(tmp_path, "imagesTs/b_0000.nii", "imagesTs/b_0001.nii", "imagesTs/c_0000.nii")
    notes: list[str] = []
    assert read_folder(tmp_path, notes).unlabelled == [{"image": ["imagesTs/b_0000.nii", "imagesTs/b_0001.nii"]}]
    assert notes == ["imagesTs/c_0000.nii: left out (of a scan without the channels of the labelled ones)."]


def test_a_channel_that_is_there_twice(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/a.nii", "imagesTr/a_0000.nii", "imagesTr/a_0001.nii", "labelsTr/a.nii")
    with pytest.raises(InputError, match=r"imagesTr/a\.nii and imagesTr/a_0000\.nii are one scan twice\. Remove one\."):
        read_folder(tmp_path, [])


def test_years_are_no_channels(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/scan1_2023.nii", "imagesTr/scan2_2024.nii", "labelsTr/seg1.nii", "labelsTr/seg2.nii")
    assert read_folder(tmp_path, []).training == [
        {"image": "imagesTr/scan1_2023.nii", "label": "labelsTr/seg1.nii"},
        {"image": "imagesTr/scan2_2024.nii", "label": "labelsTr/seg2.nii"},
    ]


@pytest.mark.parametrize(
    ("channels", "files"), [({"0": "T1"}, ("a_0000", "a_0001")), ({"0": "T1", "1": "FLAIR"}, ("a_0000",))]
)
def test_names_for_another_number_of_channels(tmp_path: Path, channels: dict[str, str], files: tuple[str, ...]) -> None:
    touch(tmp_path, *(f"imagesTr/{name}.nii" for name in files), "labelsTr/a.nii")
    describe(tmp_path, {"channel_names": channels})
    words = rf"dataset\.json: names {len(channels)} channels \(T1.*, but each scan has {len(files)} \(imagesTr/a_0000"
    with pytest.raises(InputError, match=words):
        read_folder(tmp_path, [])


def test_names_that_are_given_go_before_those_of_the_description(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/a_0000.nii", "imagesTr/a_0001.nii", "labelsTr/a.nii")
    describe(tmp_path, {"channel_names": {"0": "T1"}, "labels": {"background": 0, "whole": [1, 2]}})
    folder = read_folder(tmp_path, [], ("background", "edema", "core"), ("MR",))
    assert (folder.labels, folder.modalities) == (("background", "edema", "core"), ("MR", "MR"))
    with pytest.raises(InputError, match=r"`modality`: names 3 channels \(T1, T2 and CT\), but each scan has 2"):
        read_folder(tmp_path, [], ("background", "edema", "core"), ("T1", "T2", "CT"))


# ---- dataset.json


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not readable as JSON ("),
        ("[" * 100_000, "not readable as JSON (its lists are nested too deep)"),
        ("[]", 'describes no data set: it needs "labels" and "channel_names". Mend or remove it.'),
        ({"labels": 3}, '"labels" must name the values 0, 1, 2, … one by one'),
        ({"labels": {"background": 0, "liver": 2}}, '"labels" must name the values 0, 1, 2, … one by one'),
        ({"labels": {"background": 0, "liver": "one"}}, '"labels" must name the values 0, 1, 2, … one by one'),
        ({"labels": {"0": "background", "1": ""}}, '"labels" has an empty name. Mend the file.'),
        (
            {"labels": {"background": 0, "whole tumour": [1, "2"]}},
            '"labels" must name the values 0, 1, 2, … one by one',
        ),
        ({"labels": {"background": 0, "whole tumour": [0, 1]}}, 'the region "whole tumour" has 0, and labels are 1'),
        ({"labels": {"ignore": 0, "liver": 1}}, '"labels" must call one value "ignore", and not the background'),
        ({"modality": {"0": 5}}, '"modality" or "channel_names" must name the channels'),
        ({"channel_names": {"1": "CT"}}, '"modality" or "channel_names" must name the channels'),
    ],
)
def test_odd_descriptions_are_named_in_one_line(tmp_path: Path, content: Any, words: str) -> None:
    pairs(tmp_path, "a")
    describe(tmp_path, content)
    with pytest.raises(InputError) as error:
        read_folder(tmp_path, [])
    assert str(error.value).startswith(f"{tmp_path}/dataset.json: {words}")
    assert "\n" not in str(error.value)


def test_the_value_of_voxels_that_nobody_judged_comes_into_the_lists(tmp_path: Path) -> None:
    pairs(tmp_path, "a", "b")
    describe(tmp_path, {"labels": {"background": 0, "liver": 1, "ignore": 2}})
    folder = read_folder(tmp_path, [])
    assert (folder.labels, folder.ignore) == (("background", "liver"), 2)
    told = read_folder(tmp_path, [], ("background", "liver", "cyst", "ignore"))
    assert (told.labels, told.ignore) == (("background", "liver", "cyst"), 3)
    (path, _) = write_data_lists(tmp_path, folder, 2, 0, folder.labels)
    assert json.loads(path.read_text())["labels"] == {"0": "background", "1": "liver", "2": "ignore"}
    assert read_data_list(str(tmp_path), None, 0).ignore == 2


def test_a_pipe_in_the_place_of_a_description(tmp_path: Path) -> None:
    pairs(tmp_path, "a")
    os.mkfifo(tmp_path / "dataset.json")
    with pytest.raises(InputError, match=r"dataset\.json: is a pipe"):
        read_folder(tmp_path, [])


def test_a_description_of_something_else_is_left_alone(tmp_path: Path) -> None:
    pairs(tmp_path, "a")
    describe(tmp_path, {"license": "CC0", "files": 3})
    notes: list[str] = []
    assert read_folder(tmp_path, notes) == Folder([entry("a")], [], None, None)
    assert notes == [f"{tmp_path}/dataset.json: left alone; it names neither labels nor channels."]


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.sampled_from(["0", "a", "../a"])
)
JSON = st.recursive(SCALARS, lambda some: st.lists(some) | st.dictionaries(st.text() | SCALARS.map(str), some))
KEYS = st.sampled_from(["labels", "modality", "channel_names", "training", "test", "file_ending"])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(KEYS, JSON | st.lists(st.fixed_dictionaries({"image": JSON}))))
def test_any_description_is_understood_or_an_error_in_one_line(tmp_path: Path, content: Any) -> None:
    pairs(tmp_path, "a")
    describe(tmp_path, content)
    notes: list[str] = []
    try:
        assert read_folder(tmp_path, notes).training == [entry("a")]
    except InputError as error:
        notes.append(str(error))
    for text in notes:
        assert text.startswith(f"{tmp_path}/dataset.json: ")
        assert "\n" not in text


# ---- names against values


def test_values_of_labels_without_a_name() -> None:
    values = {"labelsTr/a.nii": {0, 1}, "labelsTr/b.nii": {0, 4}, "labelsTr/c.nii": {0, 2}}
    assert unnamed_values(("background", "liver"), values) == [
        "names 2 labels, but the files have the values 0 … 4 (labelsTr/b.nii has 4, and 1 more files go beyond the "
        "names). Name each value, the background included, or remap the files."
    ]
    assert unnamed_values(("background", "liver", "x", "y", "z"), values) == []


def test_a_value_beside_an_ignore_label_that_was_given() -> None:
    hint = ' "ignore" is the value 2 here; dataset.json can give it another, as 255.'
    (fault,) = unnamed_values(("background", "liver"), {"a.nii": {0, 1, 255}, "b.nii": {255}}, ignore=2)
    assert fault.endswith(f"Name each value, the background included, or remap the files.{hint}")
    (fault,) = unnamed_values(("background", "liver"), {"a.nii": {0, 3, 255}}, ignore=2)  # which of the two?
    assert fault.endswith("remap the files.")


def test_classes_that_no_scan_has() -> None:
    values = {"labelsTr/a.nii": {1}, "labelsTr/b.nii": {1, 3}}  # without background, which is no structure
    assert absent_classes(("background", "liver", "spleen", "aorta"), values) == [
        "none of the 2 label files has the value 2 (spleen). Add a scan that has it, or remap the files' values to 0, "
        "1, 2, … and name those alone."
    ]
    assert absent_classes(("background", "liver"), values) == []


def test_both_faults_of_names_and_values() -> None:
    first, second = label_value_faults(("background", "liver"), {"labelsTr/a.nii": {0, 2}})
    assert first.startswith("names 2 labels, but the files have the values 0 … 2 (labelsTr/a.nii has 2)")
    assert second.startswith("none of the 1 label files has the value 1 (liver)")


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int64, np.float32, np.float64])
def test_values_of_files_of_any_type(tmp_path: Path, kind: type) -> None:
    label: np.ndarray = np.zeros((2, 3, 4), kind)
    label[0, 1, 2], label[1, 2, 3] = 7, 100
    nib.save(nib.Nifti1Image(label, np.eye(4), dtype=kind), tmp_path / "a.nii")
    assert label_values(tmp_path, ["a.nii"]) == {"a.nii": {0, 7, 100}}


# ---- data lists


def test_lists_with_names_of_labels_and_channels(tmp_path: Path) -> None:
    folder = Folder([entry(name) for name in "abcde"], [{"image": "imagesTs/x.nii.gz"}], None, ("T1", "FLAIR"))
    paths = write_data_lists(tmp_path, folder, 2, 0, ("background", "liver"))
    assert paths == [tmp_path / "dataset_0.json", tmp_path / "dataset_1.json"]
    lists = [read_data_list(str(tmp_path), None, fold) for fold in range(2)]
    assert [(one.labels, one.modalities) for one in lists] == [(("background", "liver"), ("T1", "FLAIR"))] * 2
    assert sorted(scan.name for one in lists for scan in one.validation) == list("abcde")
    assert [sorted(scan.name for scan in one.training + one.validation) for one in lists] == [list("abcde")] * 2
    assert [scan.name for one in lists for scan in one.test] == ["x", "x"]


def test_lists_of_what_nobody_named_name_nothing(tmp_path: Path) -> None:
    write_data_lists(tmp_path, Folder([entry("a"), entry("b")], [], None, None), 2, 0, None)
    content = json.loads((tmp_path / "dataset_0.json").read_text())
    assert sorted(content) == ["description", "test", "training", "validation"]


@pytest.mark.parametrize(
    ("scans", "words"),
    [
        (
            1,
            "`data_dir` .*: has 1 labelled scan, and there have to be two or more: one to validate, the others",
        ),
        (3, "`folds` 5: there are only 3 labelled scans in .*. Give `folds` 3, or add scans."),
    ],
)
def test_too_few_scans_for_the_folds(tmp_path: Path, scans: int, words: str) -> None:
    folder = Folder([entry(str(number)) for number in range(scans)], [], None, None)
    with pytest.raises(InputError, match=words):
        list_paths(tmp_path, folder, 5)


def test_scans_of_one_subject_stay_in_one_fold(tmp_path: Path) -> None:
    names = [f"sub-{subject}_ses-{visit}" for subject in ("01", "02", "03") for visit in (1, 2)] + ["sub-04", "x", "y"]
    pairs(tmp_path, *names)
    folder = read_folder(tmp_path, [])
    assert [len(group) for group in folder.by_patient()] == [2, 2, 2, 1, 1, 1]
    for seed in range(20):
        folds = split_folds(folder.by_patient(), 3, seed)
        assert [len(fold) for fold in folds] == [3, 3, 3]
        subjects = [{folder.patients.get(one["image"], one["image"]) for one in fold} for fold in folds]
        assert sum(map(len, subjects)) == len(set().union(*subjects)) == 6
    assert len({str(split_folds(folder.by_patient(), 3, seed)) for seed in range(20)}) > 1


def test_single_scans_are_dealt_as_ever() -> None:
    dealt = split_folds([[entry(name)] for name in "abcdefg"], 3, seed=0)
    order = np.random.default_rng(0).permutation(7)
    assert dealt == [[entry("abcdefg"[index]) for index in sorted(order[fold::3])] for fold in range(3)]


def test_fewer_subjects_than_folds(tmp_path: Path) -> None:
    pairs(tmp_path, "sub-1_a", "sub-1_b", "sub-2_a")
    with pytest.raises(InputError, match=r"`folds` 3: the 3 labelled scans .* of 2 patients .*Give `folds` 2, or add"):
        list_paths(tmp_path, read_folder(tmp_path, []), 3)


def test_lists_that_are_there_stay(tmp_path: Path) -> None:
    (tmp_path / "dataset_1.json").write_text("mine")
    folder = Folder([entry("a"), entry("b")], [], None, None)
    with pytest.raises(InputError, match=r"dataset_1\.json: there already\. Give `overwrite` to replace them\."):
        write_data_lists(tmp_path, folder, 2, 0, None)
    assert [path.name for path in tmp_path.iterdir()] == ["dataset_1.json"]
    assert (tmp_path / "dataset_1.json").read_text() == "mine"

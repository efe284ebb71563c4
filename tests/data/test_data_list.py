"""Data lists: the meaning of --fold, label names, and BTCV's published split."""

import json
import os
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import REPOSITORY
from utils.data.data_list import DataList, find_folds, read_data_list, unlisted
from utils.system.errors import InputError

BTCV = REPOSITORY / "dataset" / "btcv"


def write(folder: Path, content: Any, name: str = "dataset_0.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def entry(number: int, **more: Any) -> dict[str, Any]:
    return {"image": f"imagesTr/img{number}.nii.gz", "label": f"labelsTr/label{number}.nii.gz", **more}


def names(scans: list[Any]) -> list[str]:
    return [scan.name for scan in scans]


def test_a_list_without_folds_is_used_as_it_is(tmp_path: Path) -> None:
    write(tmp_path, {"training": [entry(1), entry(2)], "validation": [entry(3)], "test": ["imagesTs/img9.nii.gz"]})
    data = read_data_list(str(tmp_path), None, fold=0)
    assert (names(data.training), names(data.validation), names(data.test)) == (["img1", "img2"], ["img3"], ["img9"])
    assert data.training[0].image == (tmp_path / "imagesTr/img1.nii.gz",)
    assert data.training[0].label == tmp_path / "labelsTr/label1.nii.gz"


@pytest.mark.parametrize(("fold", "validation"), [(0, ["img1", "img3"]), (1, ["img2"])])
def test_entries_with_folds_are_split_by_them(tmp_path: Path, fold: int, validation: list[str]) -> None:
    write(tmp_path, {"training": [entry(1, fold=0), entry(2, fold=1), entry(3, fold=0)]}, "folds.json")
    data = read_data_list(str(tmp_path), "folds.json", fold)
    assert names(data.validation) == validation
    assert sorted(names(data.training) + validation) == ["img1", "img2", "img3"]


def test_a_fold_that_no_entry_has_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, {"training": [entry(1, fold=0), entry(2, fold=1)]}, "folds.json")
    with pytest.raises(InputError, match=r'no entry has "fold": 7; `fold` can be one of 0, 1'):
        read_data_list(str(tmp_path), "folds.json", 7)


def test_a_fold_changes_nothing_in_a_list_without_folds_unless_its_name_has_it(tmp_path: Path) -> None:
    """Five runs by hand, --fold 0 to 4, would all be of one split."""
    write(tmp_path, {"training": [entry(1)], "validation": [entry(2)]}, "split.json")
    write(tmp_path, {"training": [entry(1)], "validation": [entry(2)]}, "dataset_3.json")
    write(tmp_path, {"training": [entry(1, fold=0), entry(2, fold=3)]}, "folds.json")
    data = {name: read_data_list(str(tmp_path), f"{name}.json", fold=3) for name in ("split", "dataset_3", "folds")}
    assert {name: one.ignores(3) for name, one in data.items()} == {"split": True, "dataset_3": False, "folds": False}
    assert not data["split"].ignores(0)
    assert [scan.name for scan in data["split"].validation] == ["img2"]


def test_the_default_list_is_named_after_the_fold(tmp_path: Path) -> None:
    write(tmp_path, {"training": [entry(1)], "validation": [entry(2)]}, "dataset_3.json")
    assert read_data_list(str(tmp_path), None, fold=3).path.name == "dataset_3.json"
    with pytest.raises(InputError, match=r"dataset_7.json: no such data list. `fold` can be one of 3\."):
        read_data_list(str(tmp_path), None, fold=7)


def test_a_list_may_lie_outside_the_data_folder(tmp_path: Path) -> None:
    path = write(tmp_path, {"training": [entry(1)], "validation": [entry(2)]}, "mine.json")
    (tmp_path / "scans").mkdir()
    data = read_data_list(str(tmp_path / "scans"), str(path), fold=0)
    assert data.training[0].image[0].parent == tmp_path / "scans" / "imagesTr"


def test_scans_of_one_file_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    scans = [{"image": f"case{number}/ct.nii.gz", "label": f"case{number}/organs.nii.gz"} for number in (1, 2)]
    write(tmp_path, {"training": scans, "validation": [entry(3)]})
    data = read_data_list(str(tmp_path), None, 0)
    assert names(data.training + data.validation) == ["case1/ct", "case2/ct", "img3"]


@pytest.mark.parametrize(
    "labels",
    [{"0": "background", "1": "liver"}, {"1": "liver"}, {"background": 0, "liver": 1}, ["background", "liver"]],
)
def test_label_names_in_every_known_form(tmp_path: Path, labels: Any) -> None:
    write(tmp_path, {"training": [entry(1)], "labels": labels})
    data = read_data_list(str(tmp_path), None, 0)
    assert data.label_names(2) == ("background", "liver")
    with pytest.raises(InputError, match=r"names 2 labels.*`out_channels` is 14\. Give `out_channels` 2"):
        data.label_names(14)


def test_unnamed_labels_are_numbered(tmp_path: Path) -> None:
    write(tmp_path, {"training": [entry(1)]})
    assert read_data_list(str(tmp_path), None, 0).label_names(3) == ("background", "label 1", "label 2")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not readable as JSON"),
        ([1, 2], "not a data list"),
        ({"scans": []}, "not a data list"),
        ({"training": {"a": 1}}, '"training" must be a list'),
        ({"training": [{"label": "a"}]}, '"training" entry 0: needs an "image"'),
        ({"training": [entry(1), {"image": "a"}]}, '"training" entry 1: needs a "label"'),
        ({"training": [{"image": "a", "label": ""}]}, '"training" entry 0: needs a "label"'),
        ({"training": [entry(1)], "labels": {"1": "liver", "2": "liver"}}, '"labels" has a name twice'),
        ({"training": [{"image": 3, "label": "a"}]}, "must be file names"),
        ({"training": [entry(1, fold="one")]}, "must be a whole number, not 'one'"),
        ({"training": [entry(1)], "labels": {"1": "liver", "3": "spleen"}}, '"labels" must name the values'),
        ({"training": [entry(1)], "labels": {"liver": "x"}}, '"labels" must name the values'),
    ],
)
def test_what_is_no_data_list_is_named(tmp_path: Path, content: Any, words: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(InputError, match=words) as error:
        read_data_list(str(tmp_path), None, 0)
    assert str(path) in str(error.value)


def test_missing_folders_files_and_parts_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"`data_dir` .*nowhere: no such folder"):
        read_data_list(str(tmp_path / "nowhere"), None, 0)
    with pytest.raises(InputError, match=r"dataset_0\.json: no such data list"):
        read_data_list(str(tmp_path), None, 0)
    write(tmp_path, {"training": [entry(1)], "validation": []})
    with pytest.raises(InputError, match='lists no scans under "validation"'):
        read_data_list(str(tmp_path), None, 0).require("training", "validation")


@pytest.mark.parametrize(
    ("fold", "validation"),
    [
        (0, [35, 36, 37, 38, 39, 40]),
        (1, [29, 30, 31, 32, 33, 34]),
        (2, [23, 24, 25, 26, 27, 28]),
        (3, [7, 8, 9, 10, 21, 22]),
        (4, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_btcv_folds_are_the_published_ones(tmp_path: Path, fold: int, validation: list[int]) -> None:
    data = read_data_list(str(tmp_path), str(BTCV / f"dataset_{fold}.json"), fold)
    every = {f"img{number:04d}" for number in [*range(1, 11), *range(21, 41)]}
    expected = [f"img{number:04d}" for number in validation]
    assert names(data.validation) == expected
    assert set(names(data.training)) == every - set(expected)
    assert names(data.test) == [f"img{number:04d}" for number in range(61, 81)]
    assert data.label_names(14)[1] == "spleen"
    for scan in data.training + data.validation:
        assert scan.label is not None
        assert scan.label.name == scan.image[0].name.replace("img", "label")


def test_a_list_for_the_names_of_labels_alone_has_to_name_them(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text('{"labels": {"0": "background", "1": "liver"}}')
    assert unlisted(str(path)).labels == ("background", "liver")
    path.write_text("{}")
    with pytest.raises(InputError, match=r"list\.json: names no labels\. Give one with"):
        unlisted(str(path))


def test_a_scan_is_called_by_its_file_without_the_ending(tmp_path: Path) -> None:
    content = {"training": [{"image": "a.nii.gz", "label": "l.nii"}], "test": ["b.nrrd", "c.mha"]}
    (tmp_path / "dataset_0.json").write_text(json.dumps(content))
    data = read_data_list(str(tmp_path), None, 0)
    assert [scan.name for scan in (*data.training, *data.test)] == ["a", "b", "c"]


def test_an_image_may_be_the_folder_of_a_dicom_series(tmp_path: Path) -> None:
    for name in ("1/a/IM1", "1/a/IM0", "1/.cache/x", "2/IM0", "2/.hidden"):
        (tmp_path / "imagesTr" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "imagesTr" / name).touch()
    content = {"training": [{"image": f"imagesTr/{number}", "label": f"labelsTr/{number}.nrrd"} for number in "12"]}
    write(tmp_path, {**content, "validation": [entry(3)]})
    data = read_data_list(str(tmp_path), None, 0)
    one, two = data.training
    assert (one.name, one.is_series, one.path) == ("1", True, tmp_path / "imagesTr/1/a")
    assert one.image == (tmp_path / "imagesTr/1/a/IM0", tmp_path / "imagesTr/1/a/IM1")
    assert two.image == (tmp_path / "imagesTr/2/IM0",)
    assert data.files()["training"] == [["imagesTr/1/a", "labelsTr/1.nrrd"], ["imagesTr/2", "labelsTr/2.nrrd"]]
    assert not data.validation[0].is_series


def test_folders_are_no_channels(tmp_path: Path) -> None:
    for name in ("t1", "t2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "IM0").touch()
    write(tmp_path, {"training": [{"image": ["t1", "t2"], "label": "a"}]})
    with pytest.raises(InputError, match='"training" entry 0: "image" must be one folder of a DICOM series, or files'):
        read_data_list(str(tmp_path), None, 0)


def test_folds_of_files_and_of_entries(tmp_path: Path) -> None:
    for name in ("dataset_10.json", "dataset_2.json", "dataset_0.json", "dataset_old.json", "dataset_01.json"):
        (tmp_path / name).write_text("{}")
    assert find_folds(str(tmp_path), None) == [0, 2, 10]
    entries = [{"image": str(number), "fold": fold} for number, fold in enumerate((1, 0, 1, 3))]
    (tmp_path / "one.json").write_text(json.dumps({"training": [*entries, {"image": "5"}]}))
    assert find_folds(str(tmp_path), "one.json") == [0, 1, 3]


def test_a_fold_that_is_no_number_is_an_error_for_all_of_them_too(tmp_path: Path) -> None:
    write(tmp_path, {"training": [entry(1, fold="0"), entry(2, fold="1")]}, "folds.json")
    with pytest.raises(InputError, match=r'folds.json: "fold" must be a whole number, not \'[01]\''):
        find_folds(str(tmp_path), "folds.json")


def test_fewer_than_two_folds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "dataset_0.json").write_text(json.dumps({"training": [{"image": "a"}]}))
    with pytest.raises(InputError, match=r"dataset_0.json, dataset_1.json, … there give 1 folds"):
        find_folds(str(tmp_path), None)
    with pytest.raises(InputError, match=r'dataset_0\.json: its "training" entries name 0 folds'):
        find_folds(str(tmp_path), "dataset_0.json")
    with pytest.raises(InputError, match="no such folder"):
        find_folds(str(tmp_path / "nothing"), None)


ODD_NAMES = ["", ".", "..", "/", "a\0b", "\ud800", "a\udcff.nii.gz", "x" * 5000, "a/" * 3000, "a\nb", "\u202eb"]
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(ODD_NAMES),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=4), values, max_size=3),
    max_leaves=6,
)
SOUND: dict[str, Any] = {
    "labels": {"0": "background", "1": "liver", "2": "spleen"},
    "training": [entry(1, fold=0), entry(2, fold=1), {"image": ["t1.nii", "t2.nii"], "label": "l.nii"}],
    "validation": [entry(3)],
    "test": ["imagesTs/img9.nii.gz", {"image": "imagesTs/img8.nii.gz"}],
}


def places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The path of keys to each value inside a JSON value, and to itself."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, one in inner for place in places(one, (*path, key)))]


def put(content: Any, place: Sequence[str | int], value: Any) -> Any:
    """A copy of ``content`` with another value, or another key, at a place."""
    if not place:
        return value
    changed = json.loads(json.dumps(content))
    holder = changed
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    return changed


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.sampled_from(places(SOUND)), value=JSON_VALUES, key=st.none() | st.sampled_from(["1.5", "-1", "9" * 9]))
def test_any_value_at_any_place_is_a_list_or_one_line(tmp_path: Path, place: Any, value: Any, key: str | None) -> None:
    """Whatever a list says, all that reads it gives a result or an InputError of one line."""
    content = put(SOUND, place, value)
    if key is not None and isinstance(content, dict) and isinstance(content.get("labels"), dict):
        content = {**content, "labels": {**content["labels"], key: value}}
    write(tmp_path, content)
    for read in (
        lambda: read_data_list(str(tmp_path), None, 0),
        lambda: find_folds(str(tmp_path), "dataset_0.json"),
        lambda: unlisted(str(tmp_path / "dataset_0.json")),
    ):
        try:
            found = read()
        except InputError as error:
            assert str(error).splitlines() == [str(error)]  # noqa: PT017
            continue
        if isinstance(found, DataList):
            labels = found.labels or ("background",)
            assert not any(unicodedata.category(letter) in ("Cc", "Zl", "Zp", "Cs") for letter in "".join(labels))
            assert all(labels)
            assert len(set(labels)) == len(labels)
            for scan in (*found.training, *found.validation, *found.test):
                for path in (*scan.image, *([scan.label] if scan.label else [])):
                    path.exists()  # the system takes its name


def test_label_names_are_one_line_each(tmp_path: Path) -> None:
    labels = {
        "0": " back\tground",
        "1": "left\r\n kidney",
        "2": "\x1b[31mliver\x07",
        "3": "a\u2028b\u202ec",
        "4": "\udcff",
    }
    write(tmp_path, {"training": [entry(1)], "labels": labels})
    expected = ("back ground", "left kidney", "[31mliver", "a b c", "\\udcff")
    assert read_data_list(str(tmp_path), None, 0).labels == expected
    assert unlisted(str(tmp_path / "dataset_0.json")).labels == expected


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"1": "\n\t"}, '"labels" has an empty name'),
        ({"1": "left kidney", "2": "left\nkidney"}, '"labels" has a name twice'),
        ({"1": "liver", "01": "spleen"}, '"labels" must name the values'),
        ({"1": "liver", "-1": "spleen"}, '"labels" must name the values'),
        ({"999999999": "liver"}, '"labels" must name the values'),
        ({"1": ["liver"]}, '"labels" must name the values'),
        ({"1": None}, '"labels" must name the values'),
        ({"liver": True}, '"labels" must name the values'),
        (["background", 1], '"labels" must name the values'),
        ("liver", '"labels" must name the values'),
    ],
)
def test_labels_that_name_no_values_are_named(tmp_path: Path, labels: Any, words: str) -> None:
    path = write(tmp_path, {"training": [entry(1)], "labels": labels})
    for read in (lambda: read_data_list(str(tmp_path), None, 0), lambda: unlisted(str(path))):
        with pytest.raises(InputError, match=words):
            read()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"image": {"a": 1}}, '"image" and "label" must be file names'),
        ({"image": ""}, '"image" and "label" must be file names'),
        ({"image": ["a.nii", 1]}, '"image" and "label" must be file names'),
        ({"label": 0}, '"image" and "label" must be file names'),
        ({"image": "a\0b"}, r"'a\\x00b' can't be a file's name"),
        ({"label": "\ud800"}, "can't be a file's name"),
        ({"image": "x" * 300}, "'xxx.*' is too long for a file's name"),
        ({"image": ["a.nii", "a/" * 5000]}, "is too long for a file's name"),
        ({"fold": 1e99}, r'"fold" must be a whole number, not 1e\+99'),
        ({"fold": -1}, '"fold" must be a whole number, not -1'),
        ({"fold": float("nan")}, '"fold" must be a whole number, not nan'),
    ],
)
def test_an_entry_of_wrong_types_or_names_is_named(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    write(tmp_path, {"training": [entry(1), {**entry(2), **changed}]})
    with pytest.raises(InputError, match=f'dataset_0.json: "training" entry 1: .*{words}'):
        read_data_list(str(tmp_path), None, 0)


def test_a_folder_around_all_data_is_no_series(tmp_path: Path) -> None:
    """Else all files of the machine would be looked at."""
    folder = tmp_path / "data"
    folder.mkdir()
    for image in ("..", "/"):
        write(folder, {"training": [{**entry(1), "image": image}]})
        with pytest.raises(InputError, match="is a folder around all data"):
            read_data_list(str(folder), None, 0)


def test_a_file_name_that_is_not_utf_8_is_kept(tmp_path: Path) -> None:
    write(tmp_path, {"training": [{**entry(1), "image": os.fsdecode(b"m\xff.nii.gz")}]})
    (scan,) = read_data_list(str(tmp_path), None, 0).training
    assert os.fsencode(scan.image[0].name) == b"m\xff.nii.gz"


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    content = {"labels": {"1": "liver"}, "training": [entry(1, fold=0), entry(2, fold=1)]}
    path = tmp_path / "dataset_0.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(content).encode())
    assert names(read_data_list(str(tmp_path), None, 0).validation) == ["img1"]
    assert find_folds(str(tmp_path), "dataset_0.json") == [0, 1]
    assert unlisted(str(path)).labels == ("background", "liver")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_text("[" * 100_000 + "]" * 100_000), "its lists are nested too deep"),
        (lambda path: path.write_text('{"training": ' + "[" * 100_000), "its lists are nested too deep"),
        (lambda path: path.write_text(json.dumps(SOUND), encoding="utf-16"), "isn't text in UTF-8"),
        (lambda path: path.write_bytes(b'{"training": "\xff"}'), "isn't text in UTF-8"),
        (lambda path: path.write_bytes(b""), "not readable as JSON"),
        (lambda path: path.write_text('{"training": ' + "9" * 5000 + "}"), "not readable as JSON"),
        (os.mkfifo, "is a pipe, a socket or a device"),
        (Path.mkdir, "not readable as JSON (Is a directory)"),
    ],
)
def test_a_file_that_holds_no_list_is_one_line(tmp_path: Path, make: Callable[[Path], object], words: str) -> None:
    path = tmp_path / "list.json"
    make(path)
    for read in (
        lambda: read_data_list(str(tmp_path), "list.json", 0),
        lambda: find_folds(str(tmp_path), "list.json"),
        lambda: unlisted(str(path)),
    ):
        with pytest.raises(InputError) as error:
            read()
        assert str(error.value).startswith(f"{path}: ")
        assert words in str(error.value)
        assert "\n" not in str(error.value)


def of_channels(folder: Path, *channels: int) -> list[dict[str, Any]]:
    """Entries of scans with so many channels in a file."""
    entries = []
    for number, count in enumerate(channels, start=1):
        nib.save(nib.Nifti1Image(np.zeros((2, 2, 2, count), np.uint8), np.eye(4)), folder / f"img{number}.nii.gz")
        entries.append({"image": f"img{number}.nii.gz", "label": "label.nii.gz"})
    return entries


def channels(folder: Path, training: list[dict[str, Any]], **content: Any) -> int | None:
    write(folder, {"training": training, "validation": [entry(1)], **content})
    return read_data_list(str(folder), None, 0).channels()


def test_channels_are_the_files_of_an_entry(tmp_path: Path) -> None:
    """None of which is there."""
    training = [{"image": ["a_0.nii", "a_1.nii", "a_2.nii"], "label": "a.nii"}]
    assert channels(tmp_path, training) == 3
    assert channels(tmp_path, training, modality={"0": "T1", "1": "T2"}) == 3


@pytest.mark.parametrize("key", ["modality", "channel_names"])
def test_channels_are_the_modalities_that_a_list_names(tmp_path: Path, key: str) -> None:
    assert channels(tmp_path, [entry(1)], **{key: {"0": "T2", "1": "ADC"}}) == 2


@pytest.mark.parametrize("modality", [None, {"0": "MR"}])
def test_channels_are_those_of_the_first_scans(tmp_path: Path, modality: dict[str, str] | None) -> None:
    """One modality says nothing, as utils.make_data_list writes it whatever is in a file."""
    assert channels(tmp_path, of_channels(tmp_path, 2), modality=modality) == 2
    assert channels(tmp_path, of_channels(tmp_path, 1), modality=modality) == 1


def test_a_scan_unlike_the_others_does_not_count(tmp_path: Path) -> None:
    assert channels(tmp_path, of_channels(tmp_path, 3, 1, 1)) == 1
    assert channels(tmp_path, of_channels(tmp_path, 2, 1)) == 1
    assert channels(tmp_path, of_channels(tmp_path, 1, 2, 2, 1, 1)) == 2


def test_channels_of_what_can_be_read(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.nii.gz"
    damaged.write_text("hello")
    broken = [{"image": name, "label": "label.nii.gz"} for name in ("gone.nii.gz", damaged.name)]
    assert channels(tmp_path, broken) is None
    assert channels(tmp_path, [*broken, *of_channels(tmp_path, 2)]) == 2
    assert channels(tmp_path, of_channels(tmp_path, 1025)) is None  # more than any network takes
    assert channels(tmp_path, []) is None


def test_a_series_has_one_channel(tmp_path: Path) -> None:
    (tmp_path / "series").mkdir()
    for name in ("1.dcm", "2.dcm"):
        (tmp_path / "series" / name).touch()
    assert channels(tmp_path, [{"image": "series", "label": "label.nii.gz"}]) == 1


def test_classes_are_the_names_of_labels(tmp_path: Path) -> None:
    write(tmp_path, {"training": [entry(1)], "labels": {"1": "liver", "2": "spleen"}})
    assert read_data_list(str(tmp_path), None, 0).classes() == 3
    write(tmp_path, {"training": [entry(1)]})
    assert read_data_list(str(tmp_path), None, 0).classes() is None
    path = write(tmp_path, {"training": [entry(1)], "labels": {"0": "background"}})
    with pytest.raises(InputError) as error:
        read_data_list(str(tmp_path), None, 0).classes()
    assert str(error.value) == f'{path}: names no label but the background. Mend the list\'s "labels".'
    with pytest.raises(InputError, match="`out_channels` 1: must be at least 2, for the background and one label"):
        unlisted(None).label_names(1)


@pytest.mark.parametrize(
    ("labels", "ignore"),
    [
        ({"background": 0, "liver": 1, "left kidney": 2, "ignore": 3}, 3),
        ({"0": "background", "1": "liver", "2": "left kidney", "255": "ignore"}, 255),
        (["background", "liver", "left kidney", "ignore"], 3),
        (["background", "liver", "left kidney"], None),
    ],
)
def test_what_is_not_annotated_and_what_nobody_judged(tmp_path: Path, labels: Any, ignore: int | None) -> None:
    entries = [entry(1), entry(2, not_annotated=["left\n kidney"]), entry(3, not_annotated=[])]
    write(tmp_path, {"training": entries, "validation": [entry(4, not_annotated=["liver"])], "labels": labels})
    data = read_data_list(str(tmp_path), None, 0)
    assert data.labels == ("background", "liver", "left kidney")
    assert data.classes() == 3
    assert data.ignore == ignore
    assert [scan.not_annotated for scan in data.training + data.validation] == [(), (2,), (), (1,)]
    assert {scan.ignore for scan in data.training + data.validation} == {ignore}


def test_another_hash_tells_that_the_annotation_has_changed(tmp_path: Path) -> None:
    def hash_of(labels: list[str], **more: Any) -> str:
        write(tmp_path, {"training": [entry(1, **more)], "labels": labels})
        return read_data_list(str(tmp_path), None, 0).content_hash()

    labels = ["background", "liver", "spleen"]
    hashes = [hash_of(labels), hash_of(labels, not_annotated=["liver"]), hash_of([*labels, "ignore"])]
    assert len(set(hashes)) == 3
    assert hash_of(labels, not_annotated=[]) == hashes[0]


@pytest.mark.parametrize(
    ("labels", "not_annotated", "words"),
    [
        (["background", "liver", "spleen"], ["livr"], "has 'livr', and the structures are liver, spleen"),
        (["background", "liver", "spleen"], ["background"], "has 'background', and the structures are"),
        (["background", "liver", "spleen"], "liver", "must be a list of labels' names, not 'liver'"),
        (["background", "liver", "spleen"], [1], r"must be a list of labels' names, not \[1\]"),
        (["background", "liver", "spleen"], ["spleen", "liver"], "has every structure, so that there is nothing to"),
        (None, ["liver"], 'needs a list that names its "labels"'),
    ],
)
def test_what_can_not_be_left_out_is_named(tmp_path: Path, labels: Any, not_annotated: Any, words: str) -> None:
    write(tmp_path, {"training": [entry(1, not_annotated=not_annotated)], **({"labels": labels} if labels else {})})
    with pytest.raises(InputError, match=f'dataset_0.json: "training" entry 0: "not_annotated" {words}'):
        read_data_list(str(tmp_path), None, 0)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"background": 0, "liver": 1, "ignore": 1}, '"labels" must name the values'),
        ({"ignore": 0, "liver": 1}, '"labels" must call one value "ignore", and not the background'),
        ({"1": "liver", "2": "ignore", "3": "ignore"}, '"labels" must call one value "ignore", and not'),
        ({"background": 0, "liver": 1, "ignore": 40000}, '"labels" calls 40000 "ignore", and that has to be 2 … 32767'),
        ({"background": 0, "liver": 2, "ignore": 1}, '"labels" must name the values'),
    ],
)
def test_an_ignore_label_that_is_none_is_named(tmp_path: Path, labels: Any, words: str) -> None:
    write(tmp_path, {"training": [entry(1)], "labels": labels})
    with pytest.raises(InputError, match=words):
        read_data_list(str(tmp_path), None, 0)

"""``utils.evaluate``: two folders of masks, scored as ``test.py`` and other programs score them."""

import csv
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.metrics import compute_dice
from monai.networks import one_hot

from tests.io.labels import blobs, outlines, write_rtstruct
from tests.io.series import AXIAL, phantom, write_series
from utils import evaluate

NO_SPLEEN = {"not_annotated": ["spleen"]}
AFFINE = np.diag([-1.5, 2.0, 3.0, 1.0])


def save(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def boxes(*places: tuple[int, int, int]) -> np.ndarray:
    """A mask of which (value, first, last) fills slices."""
    mask = np.zeros((10, 4, 5), np.uint8)
    for value, first, last in places:
        mask[first:last] = value
    return mask


def pair(folder: Path, name: str, prediction: np.ndarray, label: np.ndarray) -> None:
    save(folder / "masks" / f"{name}.nii.gz", prediction)
    save(folder / "labels" / f"{name}.nii.gz", label)


def evaluated(folder: Path, *flags: str) -> dict[str, Any]:
    """By scan, its record."""
    evaluate.run([str(folder / "masks"), str(folder / "labels"), *flags])
    content = json.loads((folder / "masks" / "evaluation" / "measurements.json").read_text())
    return {record["scan"]: record for record in content["scans"]}


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as error:
        evaluate.run(arguments)
    assert error.value.code not in (0, None)
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


def test_scores_are_those_worked_out_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair(tmp_path, "a", boxes((1, 0, 4), (2, 8, 10)), boxes((1, 2, 6)))
    pair(tmp_path, "b", boxes((1, 0, 4)), boxes((1, 0, 4)))
    records = evaluated(tmp_path, "--label_names=background,liver,cyst")
    assert records["a"]["organs"]["liver"]["dice"] == 0.5  # 2 of 4 slices in common
    assert records["a"]["organs"]["liver"]["hd95_mm"] == 2 * 1.5
    assert records["a"]["organs"]["liver"]["volume_ml"] == pytest.approx(4 * 4 * 5 * 9 / 1000)
    assert records["a"]["organs"]["cyst"]["dice"] == 0.0
    assert records["b"]["organs"]["liver"] | {"bounding_box_mm": None} == {
        "volume_ml": pytest.approx(0.72), "mean": None, "std": None, "bounding_box_mm": None, "touches_edge": True,
        "dice": 1.0, "hd95_mm": 0.0, "nsd": 1.0,
    }  # fmt: skip
    assert records["b"]["organs"]["cyst"]["dice"] is None
    screen = capsys.readouterr().out
    assert re.search(r"^a +0\.2500 +0\.5000 +0\.0000$", screen, re.MULTILINE)
    assert re.search(r"^b +1\.0000 +1\.0000 +absent$", screen, re.MULTILINE)
    assert re.search(r"^mean +0\.6250 +0\.7500 +0\.0000$", screen, re.MULTILINE)
    folder = tmp_path / "masks" / "evaluation"
    with open(folder / "scores.csv", newline="") as file:
        assert list(csv.reader(file))[1] == ["a", "0.25", "0.5", "0.0"]
    page = (folder / "report.html").read_text()
    assert page.index("<bdi>a</bdi>") < page.index("<bdi>b</bdi>")  # the worse scan is on top


def test_dice_is_that_of_an_independent_library(tmp_path: Path, random: np.random.Generator) -> None:
    masks = {name: random.integers(0, 4, (2, 9, 8, 7)).astype(np.uint8) for name in ("a", "b", "c")}
    for name, (prediction, label) in masks.items():
        pair(tmp_path, name, prediction, label)
    records = evaluated(tmp_path)
    for name, both in masks.items():
        prediction, label = (one_hot(torch.from_numpy(one)[None, None], 4) for one in both)
        expected = compute_dice(prediction, label, include_background=False)[0].tolist()
        found = [values["dice"] for values in records[name]["organs"].values()]
        assert found == pytest.approx(expected, abs=1e-6)


def test_names_come_from_a_description_beside_the_labels(tmp_path: Path) -> None:
    pair(tmp_path, "a", boxes((1, 0, 4)), boxes((1, 2, 6), (3, 8, 10)))
    description = {"labels": {"background": 0, "liver": 1, "spleen": 2, "ignore": 3}}
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    organs = evaluated(tmp_path)["a"]["organs"]
    assert list(organs) == ["liver", "spleen"]
    assert organs["liver"]["dice"] == 0.5


@pytest.mark.parametrize("listed", [False, True])
def test_dicom_labels_have_the_names_that_a_description_or_a_list_gives(tmp_path: Path, listed: bool) -> None:
    series = write_series(tmp_path / "ct", phantom((14, 12, 7)), AXIAL)
    write_rtstruct(tmp_path / "labels" / "a.dcm", series, {"Leber": outlines(blobs() == 1, AXIAL)})
    save(tmp_path / "masks" / "a.nii.gz", (blobs() == 1).astype(np.uint8), AXIAL)
    content = {"labels": ["background", "liver"], "also_called": {"liver": ["LEBER"]}}
    if listed:
        entries = [{"image": "a.nii.gz", "label": "a.dcm"}]
        (tmp_path / "list.json").write_text(json.dumps({**content, "validation": entries}))
    else:
        (tmp_path / "dataset.json").write_text(json.dumps(content))
    flags = [f"--json_list={tmp_path / 'list.json'}"] if listed else []
    assert evaluated(tmp_path, *flags)["a"]["organs"]["liver"]["dice"] == 1


@pytest.mark.parametrize("drawn", [True, False])
def test_a_structure_that_a_dicom_label_lacks_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], drawn: bool
) -> None:
    series = write_series(tmp_path / "ct", phantom((14, 12, 7)), AXIAL)
    structures = {name: outlines(blobs() == value, AXIAL) for value, name in enumerate(("liver", "Splen"), start=1)}
    write_rtstruct(tmp_path / "labels" / "a.dcm", series, structures)
    save(tmp_path / "masks" / "a.nii.gz", blobs().astype(np.uint8), AXIAL)
    entry = {"image": "a.nii.gz", "label": "a.dcm", **({} if drawn else NO_SPLEEN)}
    (tmp_path / "list.json").write_text(json.dumps({"labels": ["0", "liver", "spleen"], "validation": [entry]}))
    record = evaluated(tmp_path, f"--json_list={tmp_path / 'list.json'}")["a"]
    words = f"{tmp_path / 'labels' / 'a.dcm'}: has no spleen, which is taken to be absent."
    assert any(remark.startswith(words) and "Splen" in remark for remark in record["remarks"]) == drawn
    assert capsys.readouterr().out.count(f"note: {words}") == drawn
    assert record["organs"]["spleen"]["dice"] == (0 if drawn else None)


def test_classes_of_a_dicom_label_need_different_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    series = write_series(tmp_path / "ct", phantom((14, 12, 7)), AXIAL)
    write_rtstruct(tmp_path / "labels" / "a.dcm", series, {"liver": outlines(blobs() == 1, AXIAL)})
    save(tmp_path / "masks" / "a.nii.gz", (blobs() == 1).astype(np.uint8), AXIAL)
    arguments = [str(tmp_path / "masks"), str(tmp_path / "labels"), "--label_names=background,liver,LIVER"]
    message = error_of(arguments, capsys)
    assert f"{tmp_path / 'labels' / 'a.dcm'}: 'liver' and 'LIVER' are both called 'LIVER' in DICOM labels." in message


def test_what_nobody_drew_and_what_nobody_judged_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair(tmp_path, "a", boxes((1, 0, 4), (2, 8, 10)), boxes((1, 2, 6), (3, 7, 10)))
    entry = {"image": "a.nii.gz", "label": "a.nii.gz", "not_annotated": ["spleen"]}
    content = {"labels": ["background", "liver", "spleen", "ignore"], "validation": [entry]}
    (tmp_path / "list.json").write_text(json.dumps(content))
    organs = evaluated(tmp_path, f"--json_list={tmp_path / 'list.json'}")["a"]["organs"]
    assert organs["liver"]["dice"] == 0.5
    assert organs["spleen"]["dice"] is None
    assert organs["spleen"]["annotated"] is False
    assert re.search(r"^a +0\.5000 +0\.5000 +not drawn$", capsys.readouterr().out, re.MULTILINE)
    assert "not drawn" in (tmp_path / "masks" / "evaluation" / "report.html").read_text()


def test_labels_of_one_name_that_differ_in_what_is_annotated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair(tmp_path, "label", boxes((1, 0, 4), (2, 8, 10)), boxes((1, 0, 4)))
    entries = [{"image": f"P{number}/image.nii.gz", "label": f"P{number}/label.nii.gz"} for number in (1, 2)]
    (tmp_path / "list.json").write_text(
        json.dumps({"labels": ["0", "liver", "spleen"], "training": [entries[0], {**entries[1], **NO_SPLEEN}]})
    )
    words = r'list\.json: .*P1/label\.nii\.gz and .*P2/label\.nii\.gz have one file name and differ in "not_annotated"'
    arguments = [str(tmp_path / "masks"), str(tmp_path / "labels"), f"--json_list={tmp_path / 'list.json'}"]
    assert re.search(words, error_of(arguments, capsys))
    both = [{**entry, **NO_SPLEEN} for entry in entries]
    (tmp_path / "list.json").write_text(json.dumps({"labels": ["0", "liver", "spleen"], "training": both}))
    assert evaluated(tmp_path, arguments[2])["label"]["organs"]["spleen"]["dice"] is None


def test_labels_that_a_list_of_what_is_annotated_lacks_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        pair(tmp_path, name, boxes((1, 0, 4)), boxes((1, 0, 4)))
    content = {"labels": ["0", "liver", "spleen"]}
    for entry, notes in (
        ({"image": "a.nii.gz", "label": "a.nii.gz"}, 0),
        ({**NO_SPLEEN, "image": "a", "label": "a.nii.gz"}, 1),
    ):
        (tmp_path / "list.json").write_text(json.dumps({**content, "validation": [entry]}))
        evaluated(tmp_path, f"--json_list={tmp_path / 'list.json'}")
        said = capsys.readouterr().out
        assert said.count("list.json lists no label b.nii.gz; all structures count as annotated there") == notes


def test_intensities_and_pictures_are_of_the_scans_that_are_given(tmp_path: Path) -> None:
    pair(tmp_path, "a", boxes((1, 0, 4)), boxes((1, 0, 4)))
    image = np.zeros((10, 4, 5), np.int16)
    image[:2], image[2:4] = 30, 50
    save(tmp_path / "scans" / "a_0000.nii.gz", image)
    organ = evaluated(tmp_path, f"--images={tmp_path / 'scans'}")["a"]["organs"]["label 1"]
    assert (organ["mean"], organ["std"]) == (40.0, 10.0)


def test_files_of_other_names_are_paired_by_their_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2):
        save(tmp_path / "masks" / f"img000{number}.nii.gz", boxes((1, 0, 4)))
        save(tmp_path / "labels" / f"label000{number}.nii", boxes((1, 0, 2 * number)))
    save(tmp_path / "masks" / "img0003.nii.gz", boxes((1, 0, 4)))
    save(tmp_path / "masks" / "img0001_probabilities.nii.gz", np.zeros((10, 4, 5, 2), np.uint16))
    records = evaluated(tmp_path)
    assert {name: record["organs"]["label 1"]["dice"] for name, record in records.items()} == {
        "img0001": pytest.approx(2 / 3),
        "img0002": 1.0,
    }
    assert f"note: without a label in {tmp_path / 'labels'}, and not scored: img0003.nii.gz" in capsys.readouterr().out


def test_what_is_wrong_is_a_line_each_and_the_others_are_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair(tmp_path, "a", boxes((1, 0, 4)), boxes((1, 2, 6)))
    pair(tmp_path, "b", boxes((1, 0, 4)), boxes((1, 0, 4))[:9])
    pair(tmp_path, "c", boxes((3, 0, 4)), boxes((1, 0, 4)))
    save(tmp_path / "labels" / "d.nii.gz", boxes((1, 0, 4)))
    save(tmp_path / "masks" / "e.nii.gz", boxes((1, 0, 4)))
    moved = AFFINE.copy()
    moved[0, 3] = 50
    save(tmp_path / "labels" / "e.nii.gz", boxes((1, 0, 4)), moved)
    (tmp_path / "masks" / "f.nii.gz").write_bytes(b"not a mask")
    save(tmp_path / "labels" / "f.nii.gz", boxes((1, 0, 4)))
    folders = [str(tmp_path / name) for name in ("masks", "labels")]
    message = error_of([*folders, "--label_names=background,liver"], capsys)
    lines = message.splitlines()
    assert lines[0].endswith("5 failed and 1 were scored; mend these and launch the same command again:")
    for line, (name, words) in zip(
        sorted(map(str.strip, lines[1:])),
        sorted(
            [
                (
                    tmp_path / "labels" / "b.nii.gz",
                    "has shape 9 × 4 × 5, but b.nii.gz has 10 × 4 × 5. Both must lie on",
                ),
                (tmp_path / "masks" / "c.nii.gz", "has the values 0, 3, but labels are 0 … 1"),
                (tmp_path / "labels" / "d.nii.gz", f"has no prediction in {tmp_path / 'masks'}"),
                (tmp_path / "labels" / "e.nii.gz", ""),
                (tmp_path / "masks" / "f.nii.gz", ""),
            ]
        ),
        strict=True,
    ):
        assert line.startswith(f"{name}: ")
        assert words in line
    assert json.loads((tmp_path / "masks" / "evaluation" / "scores.json").read_text())["mean"] == 0.5


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: None, "masks: no such folder. Give one that holds masks."),
        (lambda folder: os.makedirs(folder / "masks"), "masks: holds no volume. Give a folder of masks"),
        (
            lambda folder: save(folder / "masks" / "x.nii.gz", boxes()),
            "no two files have one name, or the same numbers",
        ),
        (
            lambda folder: [save(folder / "masks" / name, boxes()) for name in ("a.nii", "a.nii.gz")],
            "a.nii and a.nii.gz: have one name. Remove one.",
        ),
    ],
)
def test_folders_that_can_not_be_scored(
    tmp_path: Path, make: Any, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "labels" / "a.nii.gz", boxes((1, 0, 4)))
    make(tmp_path)
    message = error_of([str(tmp_path / "masks"), str(tmp_path / "labels")], capsys)
    assert words in message
    assert len(message.splitlines()) == 1


def test_regions_are_scored_whether_a_description_or_a_list_names_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair(tmp_path, "a", boxes((1, 0, 4), (2, 4, 6)), boxes((2, 2, 4), (1, 4, 6), (3, 6, 8)))
    nnunet = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "tip": 3}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": nnunet, "regions_class_order": [1, 2, 3]}))
    organs = evaluated(tmp_path)["a"]["organs"]
    assert {name: values["dice"] for name, values in organs.items()} == {
        "label 1": 0.0,
        "label 2": 0.0,
        "tip": 0.0,
        "whole": 2 * 4 / (6 + 6),
        "core": 0.0,
    }
    entry = {"image": "a.nii.gz", "label": "a.nii.gz", "not_annotated": ["tip"]}
    content = {"labels": ["background", "rim", "core", "tip"], "validation": [entry]}
    regions = {"all": [1, 2, 3], "rim or core": [1, 2]}
    (tmp_path / "list.json").write_text(json.dumps({**content, "regions": regions}))
    capsys.readouterr()
    organs = evaluated(tmp_path, f"--json_list={tmp_path / 'list.json'}")["a"]["organs"]
    assert (organs["all"]["dice"], organs["rim or core"]["dice"]) == (None, 2 * 4 / (6 + 4))
    assert re.search(r"^a +0\.2667 +0\.0000 +0\.0000 +not drawn +not drawn +0\.8000$", capsys.readouterr().out, re.M)
    with open(tmp_path / "masks" / "evaluation" / "scores.csv", newline="") as file:
        assert next(csv.reader(file)) == ["scan", "mean", "rim", "core", "tip", "all", "rim or core"]


def test_what_test_py_writes_beside_its_masks_is_left_out(
    tmp_path: Path,
) -> None:
    write_series(tmp_path / "ct", phantom((14, 12, 7)), AXIAL)
    save(tmp_path / "labels" / "case_001.nii.gz", boxes((1, 0, 4)))
    save(tmp_path / "masks" / "case_001_0000.nii.gz", boxes((1, 0, 4)))  # of nnU-Net's imagesTs/case_001_0000.nii.gz
    shutil.copy(next((tmp_path / "ct").iterdir()), tmp_path / "masks" / "case_001_0000.dcm")
    records = evaluated(tmp_path, "--workers=0")
    assert records["case_001_0000"]["organs"]["label 1"]["dice"] == 1


def test_an_image_with_a_voxel_that_is_no_number_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = np.zeros((10, 4, 5), np.float32)
    for name, value in (("a", np.nan), ("b", 1.0)):
        pair(tmp_path, name, boxes((1, 0, 4)), boxes((1, 2, 6)))
        image[0, 0, 0] = value
        save(tmp_path / "images" / f"{name}.nii.gz", image)
    message = error_of(
        [*(str(tmp_path / one) for one in ("masks", "labels")), f"--images={tmp_path / 'images'}"], capsys
    )
    assert "1 failed and 1 were scored" in message
    assert f"{tmp_path / 'images' / 'a.nii.gz'}: " in message
    json.loads(
        (tmp_path / "masks/evaluation/measurements.json").read_text(),
        parse_constant=lambda text: pytest.fail(f"{text} is no JSON"),
    )


def test_without_names_a_bad_file_is_named_and_the_others_are_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair(tmp_path, "a", boxes((1, 0, 4)), boxes((1, 2, 6)))
    for name in ("b", "c"):
        pair(tmp_path, name, boxes((1, 0, 4)), boxes((1, 2, 6)))
    (tmp_path / "labels" / "b.nii.gz").write_bytes(b"")
    header = nib.Nifti1Header()
    header["sform_code"], header["srow_x"] = 1, (0, 0, 0, 1)
    nib.save(nib.Nifti1Image(boxes((1, 0, 4)), None, header), tmp_path / "masks" / "c.nii.gz")
    message = error_of([str(tmp_path / "masks"), str(tmp_path / "labels")], capsys)
    assert "2 failed and 1 were scored" in message
    assert f"{tmp_path / 'labels' / 'b.nii.gz'}: " in message
    assert f"{tmp_path / 'masks' / 'c.nii.gz'}: its affine can't place voxels" in message


def test_without_names_values_that_occur_are_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair(tmp_path, "a", boxes((255, 0, 4)), boxes((255, 2, 6)))
    assert list(evaluated(tmp_path)["a"]["organs"]) == ["label 255"]
    pair(tmp_path, "a", boxes((255, 0, 4)), boxes((1, 2, 6)))
    capsys.readouterr()
    assert list(evaluated(tmp_path)["a"]["organs"]) == ["label 1", "label 255"]
    assert "note: predictions have the values 255 and labels 1; renumber one of them" in capsys.readouterr().out


def test_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    pair(tmp_path, "a\udcff", boxes((1, 0, 4)), boxes((1, 2, 6)))
    assert evaluated(tmp_path)["a%FF"]["organs"]["label 1"]["dice"] == 0.5
    assert (tmp_path / "masks" / "evaluation" / "report.html").exists()

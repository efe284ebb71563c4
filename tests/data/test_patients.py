"""Folders of patients with DICOM labels become data lists, and these are read, checked and scored."""

import json
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest

from tests.io.labels import blobs, outlines, write_rtstruct
from tests.io.series import AXIAL, phantom, write_series
from utils import make_data_list
from utils.data.check import check_scan
from utils.data.data_list import read_also_called, read_data_list
from utils.data.folders import find_scans, list_paths, read_folder, unlisted_scans
from utils.data.label_names import read_values
from utils.data.preprocessing import Preprocessing, ReadScan
from utils.evaluation.mask_folders import Classes, find_pairs, score_pair
from utils.io.dicom_seg import write_segmentation
from utils.io.dicom_series import Series, read_series
from utils.io.find_scans import find_scans as find_input
from utils.system.errors import InputError

SHAPE = (14, 12, 7)
CT = Preprocessing("ct", -1000, 2000, spacing=(1, 1, 1), roi=(32, 32, 32))


def series_in(folder: Path) -> list[pydicom.Dataset]:
    return write_series(folder, phantom(SHAPE), AXIAL)


def drawn(*names: str) -> dict[str, Any]:
    """Contours of the first blob under the first name, and of the second under the second."""
    return {name: outlines(blobs() == value, AXIAL) if name else [] for value, name in enumerate(names, start=1)}


def patients(folder: Path) -> None:
    """Four with labels: in the series' folder, beside it, elsewhere, and as SEG; and one without."""
    write_rtstruct(folder / "P1" / "rt.dcm", series_in(folder / "P1"), drawn("Liver", "Parotid_R"))
    write_rtstruct(folder / "P2" / "rt" / "any.dcm", series_in(folder / "P2" / "ct"), drawn("LIVER", "R parotid"))
    write_rtstruct(folder / "all" / "three.dcm", series_in(folder / "P3"), {**drawn("li-ver"), "BODY": drawn("x")["x"]})
    series_in(folder / "P4" / "ct")
    volume = read_series(Series("", tuple((folder / "P4" / "ct").iterdir())))
    write_segmentation(folder / "P4" / "seg.dcm", blobs(), {1: "liver", 2: "parotid right"}, volume.datasets)
    series_in(folder / "P5" / "ct")
    table = {"parotid right": ["Parotid_R", "R parotid"]}
    (folder / "dataset.json").write_text(
        json.dumps({"labels": {"background": 0, "liver": 1, "parotid right": 2}, "also_called": table})
    )


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *flags: str) -> None:
    monkeypatch.setattr(sys, "argv", ["make_data_list", "--data_dir", str(folder), "--folds", "2", *flags])
    make_data_list.main(make_data_list._parse())


def test_from_folders_to_what_training_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    patients(tmp_path)
    run(monkeypatch, tmp_path)
    said = capsys.readouterr().out
    assert f"note: {tmp_path}: structures that no label has the name of, left out: BODY (1 files)\n" in said
    assert f"note: {tmp_path}: parotid right is not annotated in 1 scans: all/three.dcm\n" in said
    content = json.loads((tmp_path / "dataset_0.json").read_text())
    assert content["labels"] == {"0": "background", "1": "liver", "2": "parotid right"}
    assert sorted(content["training"] + content["validation"], key=lambda entry: entry["image"]) == [
        {"image": "P1", "label": "P1/rt.dcm"},
        {"image": "P2/ct", "label": "P2/rt/any.dcm"},
        {"image": "P3", "label": "all/three.dcm", "not_annotated": ["parotid right"]},
        {"image": "P4/ct", "label": "P4/seg.dcm"},
    ]
    assert content["test"] == [{"image": "P5/ct"}]
    assert unlisted_scans(tmp_path, [tmp_path / "dataset_0.json"]) == []

    data = read_data_list(str(tmp_path), None, 0)
    for scan in data.training + data.validation:
        found = check_scan(scan, 1, 3, CT)
        assert (found.faults, found.remarks) == ([], [])
        read = ReadScan(CT)(scan)
        expected = blobs() * ((blobs() == 1) | (not scan.not_annotated))
        np.testing.assert_array_equal(np.asarray(read["label"])[0], expected)
    scans = find_input([str(tmp_path)], 1).scans  # labels are no scans
    assert sorted(scan.path.relative_to(tmp_path).as_posix() for scan in scans) == [
        *("P1", "P2/ct", "P3", "P4/ct", "P5/ct")
    ]


def test_names_that_the_files_have(tmp_path: Path) -> None:
    patients(tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps({"also_called": {"parotid right": ["Parotid_R", "R parotid"]}}))
    folder, values = read_values(tmp_path, read_folder(tmp_path, []), [])
    assert folder.labels == ("background", "BODY", "LIVER", "parotid right")  # its first spelling of four
    assert {file: set(found) for file, found in values.items()} == {
        "P1/rt.dcm": {0, 2, 3},
        "P2/rt/any.dcm": {0, 2, 3},
        "all/three.dcm": {0, 1, 2},
        "P4/seg.dcm": {0, 2, 3},
    }
    assert [entry.get("not_annotated") for entry in folder.training] == [
        ["BODY"],
        ["BODY"],
        ["parotid right"],
        ["BODY"],
    ]


def test_organs_of_the_flag_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patients(tmp_path)
    run(monkeypatch, tmp_path, "--labels", "background,liver")
    content = json.loads((tmp_path / "dataset_1.json").read_text())
    assert (content["labels"], "also_called" in content) == ({"0": "background", "1": "liver"}, False)
    assert not any("not_annotated" in entry for entry in content["training"] + content["validation"])
    with pytest.raises(InputError, match=r"4 labels have none of spleen: P1/rt\.dcm \(Liver and Parotid_R\), .*also_c"):
        run(monkeypatch, tmp_path, "--labels", "background,spleen", "--overwrite")


def test_dicom_labels_beside_images_of_one_name(tmp_path: Path) -> None:
    series = series_in(tmp_path / "imagesTr" / "a")
    write_rtstruct(tmp_path / "labelsTr" / "a.dcm", series, drawn("liver"))
    assert find_scans(tmp_path, [])[0] == [{"image": "imagesTr/a", "label": "labelsTr/a.dcm"}]


def faults(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        find_scans(folder, [])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_labels_that_can_not_be_paired(tmp_path: Path) -> None:
    series = series_in(tmp_path / "P1" / "ct")
    write_rtstruct(tmp_path / "P1" / "one.dcm", series, drawn("liver"))
    write_rtstruct(tmp_path / "P1" / "two.dcm", series, drawn("liver"))
    assert "P1/ct: has 2 labels (P1/one.dcm and P1/two.dcm). Keep one of them." in faults(tmp_path)

    gone = write_series(
        tmp_path / "P2" / "ct", phantom(SHAPE), AXIAL, FrameOfReferenceUID=series[0].FrameOfReferenceUID
    )
    (tmp_path / "P1" / "two.dcm").unlink()
    write_rtstruct(tmp_path / "P2" / "rt.dcm", gone, drawn("liver"))
    assert len(find_scans(tmp_path, [])[0]) == 2  # one frame of reference, but the series' identifiers tell
    for path in (tmp_path / "P2" / "ct").iterdir():
        path.unlink()
    (tmp_path / "P1" / "one.dcm").unlink()
    notes: list[str] = []
    assert find_scans(tmp_path, notes)[0] == [{"image": "P1/ct", "label": "P2/rt.dcm"}]
    assert "its series isn't there; taken for P1/ct, the only one in its frame of reference." in notes[0]
    write_rtstruct(tmp_path / "P2" / "rt.dcm", gone, drawn("liver"), ReferencedFrameOfReferenceSequence=[],
                   StructureSetROISequence=[])  # fmt: skip
    assert "P2/rt.dcm: its DICOM series isn't there. Add the series, or move the file elsewhere." in faults(tmp_path)
    (tmp_path / "P2" / "rt.dcm").write_bytes((tmp_path / "P2" / "rt.dcm").read_bytes()[:700])
    assert "P2/rt.dcm: " in faults(tmp_path)


@pytest.mark.parametrize("identifiers", [("A", "B"), ("", ""), ("all", "all"), ("A", "")])
def test_scans_of_one_patient_stay_in_one_fold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], identifiers: tuple[str, str]
) -> None:
    for patient, identifier in zip(("P1", "P2"), identifiers, strict=True):
        for visit in ("first", "second"):
            folder = tmp_path / patient / visit
            series = write_series(folder / "ct", phantom(SHAPE), AXIAL, PatientID=identifier)
            write_rtstruct(folder / "rt.dcm", series, drawn("liver"))
    run(monkeypatch, tmp_path)
    assert "4 labelled scans of 2 patients in 2 folds" in capsys.readouterr().out
    lists = [json.loads((tmp_path / f"dataset_{fold}.json").read_text()) for fold in range(2)]
    validated = sorted([entry["image"] for entry in content["validation"]] for content in lists)
    assert validated == [[f"{patient}/{visit}/ct" for visit in ("first", "second")] for patient in ("P1", "P2")]


def test_identifiers_go_before_folders(tmp_path: Path) -> None:
    for number, identifier in enumerate(("A", "A", "B")):
        series = write_series(tmp_path / str(number), phantom(SHAPE), AXIAL, PatientID=identifier)
        write_rtstruct(tmp_path / str(number) / "rt.dcm", series, drawn("liver"))
    assert read_folder(tmp_path, []).patients == {"0": "A", "1": "A", "2": "B"}
    with pytest.raises(InputError, match=r"are of 2 patients .* Give `folds` 2"):
        list_paths(tmp_path, read_folder(tmp_path, []), 3)


def test_a_folder_with_two_series(tmp_path: Path) -> None:
    write_rtstruct(tmp_path / "P1" / "rt.dcm", series_in(tmp_path / "P1" / "ct"), drawn("liver"))
    other = series_in(tmp_path / "P1" / "ct" / "mr")
    assert "P1/ct: holds 2 DICOM series, and a data list names a series by its folder. Give" in faults(tmp_path)
    assert len(other) == 7


def test_contours_are_labels_of_masks_in_a_folder(tmp_path: Path) -> None:
    for folder in ("masks", "labels", "scores/pictures"):
        (tmp_path / folder).mkdir(parents=True)
    write_rtstruct(tmp_path / "labels" / "a.dcm", series_in(tmp_path / "ct"), drawn("Liver", "spleen"))
    volume = read_series(Series("", tuple((tmp_path / "ct").iterdir())))
    half = np.where(blobs() == 1, 1, 0) * (np.arange(7) < 3)  # 6 × 7 × 2 - 4 of its 6 × 7 × 4 - 8 voxels
    nib.save(nib.Nifti1Image(half.astype(np.uint8), volume.affine), tmp_path / "masks" / "a.nii.gz")
    (pair,), faults, _ = find_pairs(tmp_path / "masks", tmp_path / "labels")
    record = score_pair(pair, Classes(("background", "liver", "spleen")), 1.0, tmp_path / "scores")
    assert faults == []
    assert record["organs"]["liver"]["dice"] == pytest.approx(2 * 80 / (80 + 160))
    assert record["organs"]["spleen"]["dice"] == 0


def test_a_list_by_hand(tmp_path: Path) -> None:
    write_rtstruct(tmp_path / "rt.dcm", series_in(tmp_path / "ct"), drawn("Leber", "spleen"))
    entry = {"image": "ct", "label": "rt.dcm"}
    content: dict[str, Any] = {"labels": ["background", "liver", "spleen"], "training": [entry], "validation": []}

    def scan_of(**changes: Any) -> Any:
        (tmp_path / "dataset_0.json").write_text(json.dumps({**content, **changes}))
        return read_data_list(str(tmp_path), None, 0).training[0]

    (remark,) = check_scan(scan_of(), 1, 3, CT).remarks
    assert "rt.dcm: has no liver, which is taken to be absent." in remark
    assert remark.endswith('or give its name under "also_called": the file has Leber.')
    named = scan_of(also_called={"liver": "Leber"})
    assert check_scan(named, 1, 3, CT).remarks == []
    assert named.structures == ((), ("liver", "Leber"), ("spleen",))
    (fault,) = check_scan(scan_of(labels=["background", "lung"]), 1, 2, CT).faults
    assert fault.endswith('has none of the structures lung; it has Leber and spleen. Name them in "also_called".')
    with pytest.raises(InputError, match='"label" is a DICOM file, so the list has to name the structures'):
        scan_of(labels=None)
    with pytest.raises(InputError, match="'liver' and 'spleen' are both called 'spleen'"):
        scan_of(also_called={"liver": ["Spleen"]})
    with pytest.raises(InputError, match="\"also_called\" has 'lung', and the structures are liver, spleen"):
        scan_of(also_called={"lung": ["Lunge"]})


@pytest.mark.parametrize("table", [["liver"], {"liver": 3}, {"liver": [3]}, "liver"])
def test_what_is_no_table_of_names(table: Any) -> None:
    with pytest.raises(ValueError, match='"also_called" must give names for labels, as in'):
        read_also_called(table, ("background", "liver"))

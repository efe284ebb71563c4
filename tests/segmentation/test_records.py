"""What is done again, what is replaced and what stays, by the records in the output folder."""

import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest

from tests.segmentation.conftest import failure, full_disk, load, scan_of, series, voxels


def test_finished_scans_are_not_done_again_unless_something_changed(
    segment: Any, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("in").mkdir()
    for number in (5, 7):
        shutil.copy2(scan_of(phantoms, number), "in")

    def dates() -> dict[str, int]:
        return {name: (Path("out") / f"{name}.nii.gz").stat().st_mtime_ns for name in ("img0005", "img0007")}

    segment("--input=in/img0005.nii.gz")
    capsys.readouterr()
    segment("--input=in")
    assert "1 of 2 scans were finished before; --overwrite does them again" in capsys.readouterr().out
    first = dates()
    segment("--input=in")
    assert dates() == first
    segment("--input=in", "--overwrite")
    second = dates()
    assert all(second[name] > first[name] for name in first)
    os.utime("in/img0007.nii.gz")  # as if it was written again
    segment("--input=in")
    third = dates()
    assert (third["img0005"] == second["img0005"], third["img0007"] > second["img0007"]) == (True, True)
    segment("--input=in", "--infer_overlap=0.25")
    assert all(value > third[name] for name, value in dates().items())

    nib.save(nib.Nifti1Pair(voxels(scan_of(phantoms)), np.eye(4)), "pair.img")  # and pair.hdr
    segment("--input=pair.hdr")
    before = Path("out/pair.nii.gz").stat().st_mtime_ns
    os.utime("pair.img")
    segment("--input=pair.hdr")
    assert Path("out/pair.nii.gz").stat().st_mtime_ns > before


def test_a_mask_is_not_replaced_by_that_of_another_scan(
    segment: Any, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("in").mkdir()
    shutil.copy(scan_of(phantoms), "in/img0007.nii.gz")
    out = segment("--input=in/img0007.nii.gz")
    mask = (out / "img0007.nii.gz").read_bytes()
    Path("other").mkdir()
    shutil.copy(scan_of(phantoms, 5), "other/img0007.nii.gz")
    message = failure(lambda: segment("--input=other/img0007.nii.gz"), capsys)
    assert "and would be replaced by that of" in message
    assert (out / "img0007.nii.gz").read_bytes() == mask
    segment("--input=other/img0007.nii.gz", "--overwrite")
    assert (out / "img0007.nii.gz").read_bytes() != mask


def test_files_of_other_programs_stay(segment: Any, phantoms: Path) -> None:
    theirs = [Path("out/img0007/liver.nii.gz"), Path("out/img0007.dcm"), Path("out/img0007_probabilities.nii.gz")]
    theirs[0].parent.mkdir(parents=True)
    for path in theirs:
        path.write_text("theirs")
    segment(f"--input={scan_of(phantoms)}")
    assert [path.read_text() for path in theirs] == ["theirs"] * 3


def test_a_mask_that_is_not_ours_or_was_changed_is_not_replaced(
    segment: Any, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan, mask = f"--input={scan_of(phantoms)}", Path("out/img0007.nii.gz")
    mask.parent.mkdir()
    mask.write_text("theirs")
    message = failure(lambda: segment(scan), capsys)
    assert "out/img0007.nii.gz: wasn't written for this scan by test.py, and would be replaced. Give another" in message
    assert mask.read_text() == "theirs"
    segment(scan, "--overwrite")

    image = load(mask)
    changed = voxels(mask).copy()
    changed[0, 0, 0] = 5
    nib.save(nib.Nifti1Image(changed, image.affine, image.header), mask)
    capsys.readouterr()
    segment(scan)
    assert (
        "note: out/img0007.nii.gz: was changed after it was written; tables and report describe"
        in capsys.readouterr().out
    )
    message = failure(lambda: segment(scan, "--nsd_mm=3"), capsys)
    assert "out/img0007.nii.gz: was changed after it was written, and would be replaced. Give another" in message
    assert np.array_equal(voxels(mask), changed)
    segment(scan, "--nsd_mm=3", "--overwrite")
    assert not np.array_equal(voxels(mask), changed)


def test_other_results_that_are_not_the_scan_s_or_were_changed_are_not_replaced_or_removed(
    segment: Any, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan, everything = f"--input={scan_of(phantoms)}", ("--one_file_per_organ", "--save_probabilities")
    probabilities, organ = Path("out/img0007_probabilities.nii.gz"), Path("out/img0007/liver.nii.gz")
    for path in (probabilities, organ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("theirs")
        message = failure(lambda: segment(scan, *everything), capsys)
        assert f"{path}: wasn't written for this scan by test.py, and would be replaced. Give" in message
        assert path.read_text() == "theirs"
        path.unlink()
    segment(scan, *everything)
    for path in (probabilities, organ):
        written = path.read_bytes()
        path.write_text("corrected")
        for flags in ((), (*everything, "--nsd_mm=3")):  # the former would remove it, the latter replace it
            message = failure(partial(segment, scan, *flags), capsys)
            assert f"{path}: was changed after it was written, and would be replaced." in message
            assert path.read_text() == "corrected"
        path.write_bytes(written)
    segment(scan)
    assert not probabilities.exists()
    assert not organ.exists()


def test_the_mask_of_another_scan_is_not_replaced_by_probabilities(
    segment: Any, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(scan_of(phantoms, 5), "img0007_probabilities.nii.gz")
    mask = segment("--input=img0007_probabilities.nii.gz") / "img0007_probabilities.nii.gz"
    before = mask.read_bytes()
    message = failure(lambda: segment(f"--input={scan_of(phantoms)}", "--save_probabilities"), capsys)
    assert f"{mask}: wasn't written for this scan by test.py, and would be replaced." in message
    assert mask.read_bytes() == before


def test_an_unfinished_scan_is_done_again(
    segment: Any, phantoms: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after ``kill -9`` between mask and record."""
    scan = f"--input={scan_of(phantoms)}"
    with full_disk(monkeypatch, "save_picture"):
        failure(lambda: segment(scan), capsys)
    assert Path("out/img0007.nii.gz").exists()
    segment(scan)
    assert "were finished before" not in capsys.readouterr().out


def test_results_of_an_earlier_command_are_removed(segment: Any, phantoms: Path) -> None:
    out = segment(f"--input={scan_of(phantoms)}", "--one_file_per_organ", "--save_probabilities")
    assert (out / "img0007_probabilities.nii.gz").exists()
    segment(f"--input={scan_of(phantoms)}")
    assert not (out / "img0007_probabilities.nii.gz").exists()
    assert not (out / "img0007").exists()


def test_a_missing_result_of_a_finished_scan_is_made_again(segment: Any, phantoms: Path) -> None:
    flags = (f"--input={scan_of(phantoms)}", "--one_file_per_organ", "--save_probabilities")
    out = segment(*flags)
    files = {path: voxels(path) for path in [*out.glob("img0007/*"), out / "img0007_probabilities.nii.gz"]}
    assert len(files) == 14
    shutil.rmtree(out / "img0007")
    segment(*flags)
    (out / "img0007_probabilities.nii.gz").unlink()
    segment(*flags)
    assert all(np.array_equal(voxels(path), before) for path, before in files.items())


def test_contours_are_remembered(segment: Any, phantoms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    series(Path("in/ct"), phantoms)
    shutil.copy2(scan_of(phantoms), "in")

    def finished(*flags: str) -> str:
        capsys.readouterr()
        segment("--input=in", *flags)
        screen = capsys.readouterr().out
        return next((line for line in screen.splitlines() if "finished before" in line), "none")[:14]

    contours = Path("out/ct_rtstruct.dcm")
    assert finished() == "none"
    assert not contours.exists()
    assert finished("--rtstruct") == "1 of 2 scans w"  # the other one is no series, and would get none
    assert contours.exists()
    assert finished("--rtstruct") == "2 of 2 scans w"
    Path("out/ct.dcm").unlink()
    assert finished("--rtstruct") == "1 of 2 scans w"
    assert Path("out/ct.dcm").exists()
    assert finished() == "1 of 2 scans w"
    assert not contours.exists()


def test_a_series_that_can_not_have_contours_is_finished_without(
    segment: Any, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    series(Path("in/ct"), phantoms, FrameOfReferenceUID=None)
    segment("--input=in", "--rtstruct")
    screen = capsys.readouterr().out
    assert "note: out/ct.dcm: the series' headers don't allow a DICOM segmentation" in screen
    assert "has no FrameOfReferenceUID, which contours have to refer to" in screen
    segment("--input=in", "--rtstruct")
    assert "1 of 1 scans were finished before" in capsys.readouterr().out


def test_contours_of_an_unfinished_command_are_removed_and_those_of_others_stay(
    segment: Any, phantoms: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    series(Path("in/ct"), phantoms)
    with full_disk(monkeypatch, "save_picture"):
        failure(lambda: segment("--input=in", "--rtstruct"), capsys)
    contours = Path("out/ct_rtstruct.dcm")
    assert contours.exists()
    segment("--input=in")
    assert not contours.exists()
    contours.write_text("somebody else's")
    with full_disk(monkeypatch, "write_structure_set"):
        failure(lambda: segment("--input=in", "--rtstruct"), capsys)
    segment("--input=in")
    assert contours.read_text() == "somebody else's"


def test_results_of_an_unfinished_command_are_removed(
    segment: Any, phantoms: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after ``kill -9`` before the record, of two commands with different organs."""
    scan = f"--input={scan_of(phantoms)}"
    with full_disk(monkeypatch, "save_picture"):
        failure(lambda: segment(scan, "--one_file_per_organ", "--organs=liver,spleen"), capsys)
        assert {path.name for path in Path("out/img0007").iterdir()} == {"liver.nii.gz", "spleen.nii.gz"}
        failure(lambda: segment(scan, "--one_file_per_organ", "--organs=liver"), capsys)
        assert {path.name for path in Path("out/img0007").iterdir()} == {"liver.nii.gz"}
    segment(scan)
    assert not Path("out/img0007").exists()


def test_a_result_that_can_not_be_removed_is_reported(
    segment: Any, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = segment(f"--input={scan_of(phantoms)}", "--save_probabilities")
    probabilities = out / "img0007_probabilities.nii.gz"
    probabilities.unlink()
    probabilities.mkdir()
    message = failure(lambda: segment(f"--input={scan_of(phantoms)}", "--overwrite"), capsys)
    assert "out/img0007_probabilities.nii.gz: can't be removed (" in message


def test_a_foreign_file_stays_when_a_command_fails_before_it(
    segment: Any, phantoms: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("out").mkdir()
    other = Path("out/img0007_probabilities.nii.gz")
    other.write_text("somebody else's")
    with full_disk(monkeypatch, "write_probabilities"):
        failure(lambda: segment(f"--input={scan_of(phantoms)}", "--save_probabilities"), capsys)
    segment(f"--input={scan_of(phantoms)}")
    assert other.read_text() == "somebody else's"


FORGED: dict[str, Any] = {
    "a file outside": {"begun": ["../victim"]},
    "an absolute path": {"begun": ["VICTIM"]},
    "the folder itself": {"begun": ["."]},
    "a way out of the organs' folder": {"begun": ["img0007/../../victim"]},
    "another scan's mask": {"begun": ["other.nii.gz"]},
    "no names": {"begun": [1, None, {}, ["../victim"], "\0", "m" * 300 + ".nii.gz"]},
    "no list": {"begun": "../victim"},
    "a list": [1, 2],
    "nested too deep": "[" * 100_000,
    "no JSON": "{",
    "no UTF-8": b"\xff\xfe",
    "nothing": "",
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_record_removes_nothing_of_others(segment: Any, phantoms: Path, in_tmp: Path, name: str) -> None:
    forged = FORGED[name]
    Path("victim").write_text("precious")
    record = Path("out/records/img0007.json")
    record.parent.mkdir(parents=True)
    Path("out/other.nii.gz").write_text("precious")
    if isinstance(forged, bytes):
        record.write_bytes(forged)
    else:
        text = (
            forged
            if isinstance(forged, str)
            else json.dumps({"scan": "img0007", **forged} if isinstance(forged, dict) else forged)
        )
        record.write_text(text.replace("VICTIM", str(in_tmp / "victim")))
    segment(f"--input={scan_of(phantoms)}")
    assert Path("victim").read_text() == Path("out/other.nii.gz").read_text() == "precious"
    assert voxels(Path("out/img0007.nii.gz")).max() > 0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("organs", {"liver": {}}), ("organs", []), ("organs", {}), ("labelled", True), ("labelled", "no"),
        ("shape", "abc"), ("shape", [1, 2]), ("spacing_mm", [None] * 3), ("remarks", "a"), ("made_with", {}),
        ("made_with", {"network": 1}), ("scan", "<b>other</b>"), ("scan", 3), ("seconds", {}),
    ],
)  # fmt: skip
def test_a_manipulated_record_counts_as_none(
    segment: Any, phantoms: Path, key: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    record = Path("out/records/img0007.json")
    segment(f"--input={scan_of(phantoms)}")
    sound = json.loads(record.read_text())
    record.write_text(json.dumps({**sound, key: value}))
    capsys.readouterr()
    segment(f"--input={scan_of(phantoms)}")
    assert "finished before" not in capsys.readouterr().out
    again = json.loads(record.read_text())
    assert {**again, "seconds": 0, "mask": ""} == {**sound, "seconds": 0, "mask": ""}  # gzip notes the time


def test_the_folder_of_a_scan_s_organs_may_not_be_a_link(
    segment: Any, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("elsewhere").mkdir()
    Path("out").mkdir()
    Path("out/img0007").symlink_to(Path("elsewhere").absolute())
    segment(f"--input={scan_of(phantoms)}")  # it isn't needed
    message = failure(lambda: segment(f"--input={scan_of(phantoms)}", "--one_file_per_organ"), capsys)
    assert "out/img0007: is a link, and masks are written below --output_dir alone. Remove it." in message
    assert not list(Path("elsewhere").iterdir())


def test_the_folder_of_records_may_not_be_a_link(
    segment: Any, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("elsewhere").mkdir()
    Path("out").mkdir()
    Path("out/records").symlink_to(Path("elsewhere").absolute())
    assert "out/records is a link" in failure(lambda: segment(f"--input={scan_of(phantoms)}"), capsys)
    assert not list(Path("elsewhere").iterdir())


def patients(folder: Path) -> dict[str, str]:
    """By the name of its mask, the patient of each DICOM segmentation."""
    return {path.stem: str(pydicom.dcmread(path).PatientName) for path in folder.glob("*.dcm")}


def test_a_series_keeps_its_name_when_others_come_into_its_folder(segment: Any, phantoms: Path) -> None:
    for number, name in enumerate(("ALICE", "BOB", "CAROL")):
        series(Path("new"), phantoms, PatientName=name, SeriesNumber=2)
        Path("in").mkdir(exist_ok=True)
        for file in sorted(Path("new").iterdir()):  # all in one folder
            file.rename(Path("in") / f"{name}_{file.name}")
        segment("--input=in")
        before = patients(Path("out"))
        assert len(before) == number + 1
        assert before["in"] == "ALICE"
        if number == 1:
            bob = {stem for stem, patient in before.items() if patient == "BOB"}
    assert {stem for stem, patient in before.items() if patient == "BOB"} == bob


def test_a_scan_keeps_its_name_when_another_of_that_name_comes(segment: Any, phantoms: Path) -> None:
    made = []
    for number, patient in ((5, "p2"), (7, "p1")):
        Path(f"in/{patient}/ct").mkdir(parents=True)
        shutil.copy(scan_of(phantoms, number), f"in/{patient}/ct/x.nii.gz")
        segment("--input=in")
        made.append(Path("out/x.nii.gz").stat().st_mtime_ns)
    assert made[0] == made[1]
    assert {path.name for path in Path("out").glob("*.nii.gz")} == {"x.nii.gz", "ct_x.nii.gz"}


def test_a_mistyped_input_leaves_the_log_of_errors(
    segment: Any, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    segment(f"--input={scan_of(phantoms)}")
    Path("out/errors.log").write_text("what went wrong")
    failure(lambda: segment("--input=nowhere"), capsys)
    assert Path("out/errors.log").read_text() == "what went wrong"
    shutil.copytree(phantoms / "imagesTr", "in")
    failure(lambda: segment("--input=in", "--output_dir=in/out"), capsys)
    assert not Path("in/out").exists()

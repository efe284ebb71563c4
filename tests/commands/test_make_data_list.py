"""Data lists for folders of scans, from the command line."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from tests.conftest import REPOSITORY, FileSizeLimit
from tests.io.series import AXIAL, phantom, write_series
from utils import make_data_list
from utils.data import folders
from utils.data.data_list import read_data_list
from utils.data.folders import find_scans, label_values, split_folds
from utils.system.errors import InputError, WriteError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_pairs_of_one_name(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/b_2.nii.gz", "imagesTr/a_1.nii", "labelsTr/a_1.nii.gz", "labelsTr/b_2.nii.gz")
    touch(tmp_path, "imagesTs/c_3.nii.gz", "imagesTr/.hidden.nii.gz", "imagesTr/notes.txt")
    training, test = find_scans(tmp_path, [])
    assert training == [
        {"image": "imagesTr/a_1.nii", "label": "labelsTr/a_1.nii.gz"},
        {"image": "imagesTr/b_2.nii.gz", "label": "labelsTr/b_2.nii.gz"},
    ]
    assert test == [{"image": "imagesTs/c_3.nii.gz"}]


def test_btcv_as_it_is_downloaded(tmp_path: Path) -> None:
    touch(tmp_path, "RawData/Training/img/img0001.nii.gz", "RawData/Training/label/label0001.nii.gz")
    touch(tmp_path, "RawData/Testing/img/img0061.nii.gz")
    training, test = find_scans(tmp_path, [])
    assert training == [
        {"image": "RawData/Training/img/img0001.nii.gz", "label": "RawData/Training/label/label0001.nii.gz"}
    ]
    assert test == [{"image": "RawData/Testing/img/img0061.nii.gz"}]


def test_channels_of_nnunet(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/x_0000.nii.gz", "imagesTr/x_0001.nii.gz", "labelsTr/x.nii.gz")
    touch(tmp_path, "imagesTs/y_0000.nii.gz", "imagesTs/y_0001.nii.gz")
    training, test = find_scans(tmp_path, [])
    assert training == [{"image": ["imagesTr/x_0000.nii.gz", "imagesTr/x_0001.nii.gz"], "label": "labelsTr/x.nii.gz"}]
    assert test == [{"image": ["imagesTs/y_0000.nii.gz", "imagesTs/y_0001.nii.gz"]}]


def test_numbers_of_four_digits_that_are_no_channels(tmp_path: Path) -> None:
    numbers = ("0001", "0002")
    touch(tmp_path, *(f"imagesTr/img_{number}.nii.gz" for number in numbers))
    touch(tmp_path, *(f"labelsTr/label_{number}.nii.gz" for number in numbers))
    assert find_scans(tmp_path, [])[0] == [
        {"image": f"imagesTr/img_{number}.nii.gz", "label": f"labelsTr/label_{number}.nii.gz"} for number in numbers
    ]


def test_channels_of_scans_whose_labels_have_other_names(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/img7_0000.nii.gz", "imagesTr/img7_0001.nii.gz", "labelsTr/label7.nii.gz")
    files = ["imagesTr/img7_0000.nii.gz", "imagesTr/img7_0001.nii.gz"]
    assert find_scans(tmp_path, [])[0] == [{"image": files, "label": "labelsTr/label7.nii.gz"}]


def test_every_kind_of_volume_in_small_letters_or_capitals(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/a.NII.GZ", "imagesTr/b.nrrd", "imagesTr/c.MHD", "imagesTr/c.RAW", "imagesTr/d.hdr")
    touch(tmp_path, "imagesTr/d.img", "imagesTr/notes.raw")
    touch(tmp_path, "labelsTr/a.nii.gz", "labelsTr/b.NRRD", "labelsTr/c.mha", "labelsTr/d.nii")
    assert find_scans(tmp_path, [])[0] == [
        {"image": "imagesTr/a.NII.GZ", "label": "labelsTr/a.nii.gz"},
        {"image": "imagesTr/b.nrrd", "label": "labelsTr/b.NRRD"},
        {"image": "imagesTr/c.MHD", "label": "labelsTr/c.mha"},
        {"image": "imagesTr/d.hdr", "label": "labelsTr/d.nii"},
    ]


def test_dicom_folders(tmp_path: Path) -> None:
    for name in ("imagesTr/case1", "imagesTr/case2/study", "imagesTs/case3"):
        write_series(tmp_path / name, phantom((4, 4, 3)), AXIAL)
    touch(tmp_path, "labelsTr/case1.nii.gz", "labelsTr/case2.nrrd", "imagesTr/other/notes.txt")
    training, test = find_scans(tmp_path, [])
    assert training == [
        {"image": "imagesTr/case1", "label": "labelsTr/case1.nii.gz"},
        {"image": "imagesTr/case2", "label": "labelsTr/case2.nrrd"},
    ]
    assert test == [{"image": "imagesTs/case3"}]


def test_files_without_a_partner_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/img0001.nii.gz", "imagesTr/img0002.nii.gz", "labelsTr/label0001.nii.gz")
    with pytest.raises(InputError, match=r"1 files have no partner: imagesTr/img0002\.nii\.gz"):
        find_scans(tmp_path, [])


def test_two_scans_of_one_number_are_not_taken_for_one(tmp_path: Path) -> None:
    names = ("imagesTr/liver_1", "imagesTr/spleen_1", "labelsTr/liver_1_seg", "labelsTr/spleen_1_seg")
    touch(tmp_path, *(f"{name}.nii.gz" for name in names))
    with pytest.raises(InputError, match=r"imagesTr/liver_1 and spleen_1 have the same number.*Rename them\."):
        find_scans(tmp_path, [])


def test_a_scan_that_is_there_packed_and_unpacked_is_no_scan_of_two_channels(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/a_1.nii", "imagesTr/a_1.nii.gz", "labelsTr/a_1.nii.gz")
    with pytest.raises(InputError, match=r"imagesTr/a_1\.nii and imagesTr/a_1\.nii\.gz are one scan twice"):
        find_scans(tmp_path, [])


def test_an_unknown_layout_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds none of the known layouts"):
        find_scans(tmp_path, [])


def test_folds_share_out_every_scan_once() -> None:
    entries = [[{"image": str(number)}] for number in range(11)]
    folds = split_folds(entries, 4, seed=0)
    assert sorted(len(fold) for fold in folds) == [2, 3, 3, 3]
    assert sorted(int(entry["image"]) for fold in folds for entry in fold) == list(range(11))
    assert split_folds(entries, 4, seed=0) == folds
    assert split_folds(entries, 4, seed=1) != folds


def test_values_of_labels(tmp_path: Path) -> None:
    for name, value in (("a", 2), ("b", 5)):
        nib.save(nib.Nifti1Image(np.full((2, 2, 2), value, np.uint8), np.eye(4)), tmp_path / f"{name}.nii.gz")
    assert label_values(tmp_path, ["a.nii.gz", "b.nii.gz"]) == {"a.nii.gz": {2}, "b.nii.gz": {5}}


def test_the_command_writes_lists_and_overwrites_none(phantoms: Path, tmp_path: Path) -> None:
    for name in ("imagesTr", "labelsTr"):
        (tmp_path / name).symlink_to(phantoms / name)
    command = [sys.executable, "-m", "utils.make_data_list", "--data_dir", str(tmp_path), "--folds", "3"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "python -m utils.plan" in done.stdout
    lists = [json.loads((tmp_path / f"dataset_{fold}.json").read_text()) for fold in range(3)]
    validated = sorted(entry["image"] for content in lists for entry in content["validation"])
    assert validated == [f"imagesTr/img000{number}.nii.gz" for number in range(1, 8)]
    assert all(len(content["training"]) + len(content["validation"]) == 7 for content in lists)
    again = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert again.stderr.startswith("error: ")
    assert again.stderr.count("\n") == 1


def test_overwriting_with_fewer_folds_removes_the_lists_of_the_earlier_deal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "abcd":
        for folder in ("imagesTr", "labelsTr"):
            save(tmp_path / folder / f"{name}.nii.gz")
    run(tmp_path, monkeypatch, "--folds=4")
    for name, content in (("dataset_7.json", '{"description": "mine"}'), ("dataset_9.json", "no list")):
        (tmp_path / name).write_text(content)
    run(tmp_path, monkeypatch, "--overwrite")
    assert "removed, as lists of an earlier deal: dataset_2.json and dataset_3.json\n" in capsys.readouterr().out
    assert sorted(lists(tmp_path)) == [f"dataset_{number}.json" for number in (0, 1, 7, 9)]


def test_labels_that_can_not_be_read_are_all_named(tmp_path: Path) -> None:
    (tmp_path / "text.nii.gz").write_text("hello")
    nib.save(nib.Nifti1Image(np.full((2, 2, 2), np.nan, np.float32), np.eye(4)), tmp_path / "nan.nii.gz")
    with pytest.raises(InputError) as error:
        label_values(tmp_path, ["text.nii.gz", "nan.nii.gz", "missing.nii.gz"])
    message = str(error.value)
    assert "text.nii.gz: is no volume: neither NIfTI" in message
    assert "nan.nii.gz: has NaN or infinite values" in message
    assert "missing.nii.gz: can't be read (No such file or directory)" in message


def save(path: Path, value: int = 1, kind: type = np.uint8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.full((2, 3, 4), value, kind), np.eye(4)), path)


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    monkeypatch.setattr(sys, "argv", ["make_data_list", f"--data_dir={folder}", "--folds=2", *flags])
    make_data_list.main(make_data_list._parse())


def lists(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_what_is_left_out_is_named_with_the_reason(tmp_path: Path) -> None:
    for name in ("imagesTr/a.nii", "labelsTr/a.nii"):
        save(tmp_path / name)
    touch(tmp_path, "imagesTr/notes.txt", "labelsTr/Thumbs.db", "imagesTs/old\nnotes.txt", "imagesTr/.hidden")
    touch(tmp_path, *(f"imagesTr/slice{number:02}.png" for number in range(12)))
    touch(tmp_path, "imagesTr/folder/ct.nii.gz", "labelsTr/b/seg.nii.gz")
    (tmp_path / "imagesTr/gone.nii.gz").symlink_to("annexed")
    (tmp_path / "imagesTr/packed.gz").write_bytes(b"\x1f\x8b\x08\x00cut")
    os.mkfifo(tmp_path / "imagesTr/pipe.nii.gz")
    os.mkfifo(tmp_path / "labelsTr/pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / "labelsTr/socket"))
    write_series(tmp_path / "series", phantom((4, 4, 3)), AXIAL)
    next((tmp_path / "series").iterdir()).rename(tmp_path / "imagesTr/slice.dcm")
    notes: list[str] = []
    training, test = find_scans(tmp_path, notes)
    assert training == [{"image": "imagesTr/a.nii", "label": "labelsTr/a.nii"}]
    assert test == []
    no_volume = "no volume: neither NIfTI, NRRD, MetaImage nor another format that is read"
    pictures = ", ".join(f"slice{number:02}.png" for number in range(4))
    assert sorted(notes) == sorted([
        f"imagesTr: 13 left out ({no_volume}): notes.txt, {pictures} and 8 more",
        "imagesTr/folder: left out (a folder without DICOM slices that can be read).",
        "imagesTr/gone.nii.gz: left out (a link that leads nowhere).",
        "imagesTr/packed.gz: left out (can't be read: it is cut off or damaged).",
        "imagesTr/pipe.nii.gz: left out (a pipe, a socket or a device).",
        "imagesTr/slice.dcm: left out (a single DICOM file; a series needs a folder of its own).",
        f"imagesTs/old notes.txt: left out ({no_volume}).",
        f"labelsTr/Thumbs.db: left out ({no_volume}).",
        "labelsTr/b: left out (a folder; a label is one file).",
        "labelsTr: 2 left out (a pipe, a socket or a device): pipe and socket",
    ])  # fmt: skip


def test_notes_are_printed_even_if_no_list_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "imagesTr/a.nii")
    touch(tmp_path, "labelsTr/a.nii.part")
    with pytest.raises(InputError, match="imagesTr/a has neither a partner of its name"):
        run(tmp_path, monkeypatch)
    assert capsys.readouterr().out.startswith("note: labelsTr/a.nii.part: left out (no volume")


def test_content_tells_a_volume_where_the_name_does_not(tmp_path: Path) -> None:
    """As in a search for scans: names without an ending, or with one of a format that few know."""
    for folder in ("imagesTr", "labelsTr"):
        save(tmp_path / folder / "a.nii")
        (tmp_path / folder / "a.nii").rename(tmp_path / folder / "a")
        save(tmp_path / folder / "b.nii")
    image = sitk.ReadImage(str(tmp_path / "imagesTr/b.nii"))
    (tmp_path / "imagesTr/b.nii").unlink()
    sitk.WriteImage(image, str(tmp_path / "imagesTr/b.gipl"))
    notes: list[str] = []
    assert find_scans(tmp_path, notes)[0] == [
        {"image": "imagesTr/a", "label": "labelsTr/a"},
        {"image": "imagesTr/b.gipl", "label": "labelsTr/b.nii"},
    ]
    assert notes == []


def test_the_case_of_endings_in_capitals_and_of_another_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``upper_case_endings`` of the shared cases: 2 labelled scans of 4 were listed."""
    for folder in ("imagesTr", "labelsTr"):
        for number in range(4):
            save(tmp_path / folder / f"case_{number}.nii.gz")
        (tmp_path / folder / "case_0.nii.gz").rename(tmp_path / folder / "case_0.NII.GZ")
        image = sitk.ReadImage(str(tmp_path / folder / "case_1.nii.gz"))
        sitk.WriteImage(image, str(tmp_path / folder / "case_1.nrrd"))
        (tmp_path / folder / "case_1.nii.gz").unlink()
    run(tmp_path, monkeypatch)
    screen = capsys.readouterr().out
    assert screen.startswith("4 labelled scans in 2 folds")
    assert "note" not in screen
    data = read_data_list(str(tmp_path), None, 0)
    assert sorted(scan.name for scan in data.training + data.validation) == [f"case_{number}" for number in range(4)]


def test_label_values_that_no_label_has(tmp_path: Path) -> None:
    """Else names for a billion labels would be made."""
    for name, value in (("a", 1_000_000_000), ("b", -1), ("c", 32768)):
        save(tmp_path / f"{name}.nii", value, np.int32)
    save(tmp_path / "d.nii", 32767, np.int32)
    with pytest.raises(InputError) as error:
        label_values(tmp_path, ["a.nii", "b.nii", "c.nii", "d.nii"])
    assert sorted(part.partition(": ")[0] for part in str(error.value).split("; ")) == [
        str(tmp_path / f"{name}.nii") for name in "abc"
    ]
    assert "b.nii: has the values -1, but labels are 0 … 32767. Remap them." in str(error.value)
    assert label_values(tmp_path, ["d.nii"]) == {"d.nii": {32767}}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_full_disk_leaves_all_lists_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_size_limit: FileSizeLimit, overwrite: bool
) -> None:
    for name in ("a", "b"):
        save(tmp_path / f"imagesTr/{name}.nii")
        save(tmp_path / f"labelsTr/{name}.nii")
    if overwrite:
        run(tmp_path, monkeypatch)
    before = lists(tmp_path)
    monkeypatch.setattr(folders, "tqdm", lambda iterable, **_: iterable)
    with file_size_limit(300), pytest.raises(WriteError, match=r"dataset_\d.json: can't be written \(File too large\)"):
        run(tmp_path, monkeypatch, "--labels=background,liver", *(["--overwrite"] if overwrite else []))
    assert lists(tmp_path) == before
    assert len(before) == (2 if overwrite else 0)
    run(tmp_path, monkeypatch, "--labels=background, the\tliver ", *(["--overwrite"] if overwrite else []))
    assert sorted(lists(tmp_path)) == ["dataset_0.json", "dataset_1.json"]
    assert read_data_list(str(tmp_path), None, 1).labels == ("background", "the liver")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("background,", "--labels: has an empty name"),
        ("", "--labels: has an empty name"),
        ("background,liver, liver", "--labels: has a name twice"),
        ("background,ignore,liver", "`labels`: .* The value that is called ignore has to be the last one"),
        ("background", "--labels: names 1 labels, but the files have the values 0 … 1"),
    ],
)
def test_names_of_labels_that_can_not_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: str, words: str
) -> None:
    for name in ("a", "b"):
        save(tmp_path / f"imagesTr/{name}.nii")
        save(tmp_path / f"labelsTr/{name}.nii")
    with pytest.raises(InputError, match=words):
        run(tmp_path, monkeypatch, f"--labels={names}")
    assert lists(tmp_path) == {}


def test_a_folder_in_the_place_of_a_list_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        save(tmp_path / f"imagesTr/{name}.nii")
        save(tmp_path / f"labelsTr/{name}.nii")
    (tmp_path / "dataset_1.json").mkdir()
    with pytest.raises(InputError, match=r"dataset_1\.json: a folder, where a list is to be written"):
        run(tmp_path, monkeypatch, "--overwrite")
    assert lists(tmp_path) == {}


def described(folder: Path, *, labels: dict[str, int]) -> None:
    """Two scans of two channels, whose labels have the value 1."""
    for name in ("a", "b"):
        save(folder / f"labelsTr/{name}.nii")
        for channel in ("0000", "0001"):
            save(folder / f"imagesTr/{name}_{channel}.nii")
    content = {"channel_names": {"0": "T1", "1": "FLAIR"}, "labels": labels, "file_ending": ".nii"}
    (folder / "dataset.json").write_text(json.dumps(content))


def test_names_come_from_the_description(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described(tmp_path, labels={"background": 0, "liver": 1})
    run(tmp_path, monkeypatch)
    data = read_data_list(str(tmp_path), None, 0)
    assert (data.labels, data.modalities) == (("background", "liver"), ("T1", "FLAIR"))


def test_flags_name_labels_and_channels_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described(tmp_path, labels={"background": 0, "liver": 1})
    run(tmp_path, monkeypatch, "--labels=background,spleen", "--modality=MR")
    data = read_data_list(str(tmp_path), None, 0)
    assert (data.labels, data.modalities) == (("background", "spleen"), ("MR", "MR"))
    with pytest.raises(InputError, match="--modality: has an empty name"):
        run(tmp_path, monkeypatch, "--modality=T1,")


def test_what_nobody_named_is_not_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lists of MR said "CT" before, unless a flag said otherwise."""
    for name in ("imagesTr/a.nii", "labelsTr/a.nii", "imagesTr/b.nii", "labelsTr/b.nii"):
        save(tmp_path / name)
    run(tmp_path, monkeypatch)
    data = read_data_list(str(tmp_path), None, 0)
    assert (data.labels, data.modalities) == (("background", "label 1"), None)


def test_a_class_that_no_scan_has_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    described(tmp_path, labels={"background": 0, "liver": 1, "spleen": 2})
    run(tmp_path, monkeypatch)
    words = "dataset.json: none of the 2 label files has the value 2 (spleen). Add a scan that has it"
    assert f"note: {tmp_path}/{words}" in capsys.readouterr().out
    assert sorted(lists(tmp_path)) == ["dataset.json", "dataset_0.json", "dataset_1.json"]


def test_labels_without_a_voxel_have_a_class_that_no_scan_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("imagesTr/a.nii", "labelsTr/a.nii", "imagesTr/b.nii", "labelsTr/b.nii"):
        save(tmp_path / name, value=0)
    run(tmp_path, monkeypatch)
    assert "none of the 2 label files has the value 1 (label 1)" in capsys.readouterr().out
    assert read_data_list(str(tmp_path), None, 0).labels == ("background", "label 1")


def test_names_of_the_description_that_are_too_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described(tmp_path, labels={"background": 0})
    words = r"dataset\.json: names 1 labels, but the files have the values 0 … 1 \(labelsTr/a\.nii has 1, and 1 more"
    with pytest.raises(InputError, match=words):
        run(tmp_path, monkeypatch)
    assert list(lists(tmp_path)) == ["dataset.json"]

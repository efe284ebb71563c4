"""Data lists for folders of scans, from the command line."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.conftest import REPOSITORY
from tests.io.series import AXIAL, phantom, write_series
from utils.make_data_list import find_scans, highest_label, split_folds
from utils.system.errors import InputError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_pairs_of_one_name(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/b_2.nii.gz", "imagesTr/a_1.nii", "labelsTr/a_1.nii.gz", "labelsTr/b_2.nii.gz")
    touch(tmp_path, "imagesTs/c_3.nii.gz", "imagesTr/.hidden.nii.gz", "imagesTr/notes.txt")
    training, test = find_scans(tmp_path)
    assert training == [
        {"image": "imagesTr/a_1.nii", "label": "labelsTr/a_1.nii.gz"},
        {"image": "imagesTr/b_2.nii.gz", "label": "labelsTr/b_2.nii.gz"},
    ]
    assert test == [{"image": "imagesTs/c_3.nii.gz"}]


def test_btcv_as_it_is_downloaded(tmp_path: Path) -> None:
    touch(tmp_path, "RawData/Training/img/img0001.nii.gz", "RawData/Training/label/label0001.nii.gz")
    touch(tmp_path, "RawData/Testing/img/img0061.nii.gz")
    training, test = find_scans(tmp_path)
    assert training == [
        {"image": "RawData/Training/img/img0001.nii.gz", "label": "RawData/Training/label/label0001.nii.gz"}
    ]
    assert test == [{"image": "RawData/Testing/img/img0061.nii.gz"}]


def test_channels_of_nnunet(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/x_0000.nii.gz", "imagesTr/x_0001.nii.gz", "labelsTr/x.nii.gz")
    touch(tmp_path, "imagesTs/y_0000.nii.gz", "imagesTs/y_0001.nii.gz")
    training, test = find_scans(tmp_path)
    assert training == [{"image": ["imagesTr/x_0000.nii.gz", "imagesTr/x_0001.nii.gz"], "label": "labelsTr/x.nii.gz"}]
    assert test == [{"image": ["imagesTs/y_0000.nii.gz", "imagesTs/y_0001.nii.gz"]}]


def test_numbers_of_four_digits_that_are_no_channels(tmp_path: Path) -> None:
    numbers = ("0001", "0002")
    touch(tmp_path, *(f"imagesTr/img_{number}.nii.gz" for number in numbers))
    touch(tmp_path, *(f"labelsTr/label_{number}.nii.gz" for number in numbers))
    assert find_scans(tmp_path)[0] == [
        {"image": f"imagesTr/img_{number}.nii.gz", "label": f"labelsTr/label_{number}.nii.gz"} for number in numbers
    ]


def test_channels_of_scans_whose_labels_have_other_names(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/img7_0000.nii.gz", "imagesTr/img7_0001.nii.gz", "labelsTr/label7.nii.gz")
    files = ["imagesTr/img7_0000.nii.gz", "imagesTr/img7_0001.nii.gz"]
    assert find_scans(tmp_path)[0] == [{"image": files, "label": "labelsTr/label7.nii.gz"}]


def test_every_kind_of_volume_in_small_letters_or_capitals(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/a.NII.GZ", "imagesTr/b.nrrd", "imagesTr/c.MHD", "imagesTr/c.RAW", "imagesTr/d.hdr")
    touch(tmp_path, "imagesTr/d.img", "imagesTr/notes.raw")
    touch(tmp_path, "labelsTr/a.nii.gz", "labelsTr/b.NRRD", "labelsTr/c.mha", "labelsTr/d.nii")
    assert find_scans(tmp_path)[0] == [
        {"image": "imagesTr/a.NII.GZ", "label": "labelsTr/a.nii.gz"},
        {"image": "imagesTr/b.nrrd", "label": "labelsTr/b.NRRD"},
        {"image": "imagesTr/c.MHD", "label": "labelsTr/c.mha"},
        {"image": "imagesTr/d.hdr", "label": "labelsTr/d.nii"},
    ]


def test_dicom_folders(tmp_path: Path) -> None:
    for name in ("imagesTr/case1", "imagesTr/case2/study", "imagesTs/case3"):
        write_series(tmp_path / name, phantom((4, 4, 3)), AXIAL)
    touch(tmp_path, "labelsTr/case1.nii.gz", "labelsTr/case2.nrrd", "imagesTr/other/notes.txt")
    training, test = find_scans(tmp_path)
    assert training == [
        {"image": "imagesTr/case1", "label": "labelsTr/case1.nii.gz"},
        {"image": "imagesTr/case2", "label": "labelsTr/case2.nrrd"},
    ]
    assert test == [{"image": "imagesTs/case3"}]


def test_files_without_a_partner_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/img0001.nii.gz", "imagesTr/img0002.nii.gz", "labelsTr/label0001.nii.gz")
    with pytest.raises(InputError, match=r"1 files have no partner: imagesTr/img0002\.nii\.gz"):
        find_scans(tmp_path)


def test_two_scans_of_one_number_are_not_taken_for_one(tmp_path: Path) -> None:
    names = ("imagesTr/liver_1", "imagesTr/spleen_1", "labelsTr/liver_1_seg", "labelsTr/spleen_1_seg")
    touch(tmp_path, *(f"{name}.nii.gz" for name in names))
    with pytest.raises(InputError, match=r"imagesTr/liver_1 and spleen_1 have the same number.*Rename them\."):
        find_scans(tmp_path)


def test_a_scan_that_is_there_packed_and_unpacked_is_no_scan_of_two_channels(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/a_1.nii", "imagesTr/a_1.nii.gz", "labelsTr/a_1.nii.gz")
    with pytest.raises(InputError, match=r"imagesTr/a_1\.nii and imagesTr/a_1\.nii\.gz are one scan twice"):
        find_scans(tmp_path)


def test_an_unknown_layout_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds none of the known layouts"):
        find_scans(tmp_path)


def test_folds_share_out_every_scan_once() -> None:
    entries = [{"image": str(number)} for number in range(11)]
    folds = split_folds(entries, 4, seed=0)
    assert sorted(len(fold) for fold in folds) == [2, 3, 3, 3]
    assert sorted(int(entry["image"]) for fold in folds for entry in fold) == list(range(11))
    assert split_folds(entries, 4, seed=0) == folds
    assert split_folds(entries, 4, seed=1) != folds


def test_highest_label(tmp_path: Path) -> None:
    for name, value in (("a", 2), ("b", 5)):
        nib.save(nib.Nifti1Image(np.full((2, 2, 2), value, np.uint8), np.eye(4)), tmp_path / f"{name}.nii.gz")
    assert highest_label(tmp_path, ["a.nii.gz", "b.nii.gz"]) == 5


def test_the_command_writes_lists_and_overwrites_none(phantoms: Path, tmp_path: Path) -> None:
    for name in ("imagesTr", "labelsTr"):
        (tmp_path / name).symlink_to(phantoms / name)
    command = [sys.executable, "-m", "utils.make_data_list", "--data_dir", str(tmp_path), "--folds", "3"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "--out_channels 14" in done.stdout
    lists = [json.loads((tmp_path / f"dataset_{fold}.json").read_text()) for fold in range(3)]
    validated = sorted(entry["image"] for content in lists for entry in content["validation"])
    assert validated == [f"imagesTr/img000{number}.nii.gz" for number in range(1, 8)]
    assert all(len(content["training"]) + len(content["validation"]) == 7 for content in lists)
    again = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert again.stderr.startswith("error: ")
    assert again.stderr.count("\n") == 1


def test_labels_that_can_not_be_read_are_all_named(tmp_path: Path) -> None:
    (tmp_path / "text.nii.gz").write_text("hello")
    nib.save(nib.Nifti1Image(np.full((2, 2, 2), np.nan, np.float32), np.eye(4)), tmp_path / "nan.nii.gz")
    with pytest.raises(InputError) as error:
        highest_label(tmp_path, ["text.nii.gz", "nan.nii.gz", "missing.nii.gz"])
    message = str(error.value)
    assert "text.nii.gz: is no volume: neither NIfTI" in message
    assert "nan.nii.gz: has NaN or infinite values" in message
    assert "missing.nii.gz: can't be read (No such file or directory)" in message

"""A data check reads only what changed since the last one."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from utils.data import check
from utils.data.check import check_scans
from utils.data.preprocessing import Preprocessing
from utils.distributed.process import Process
from utils.io.scan import Scan
from utils.system.errors import InputError

SETTINGS = Preprocessing()


@pytest.fixture
def scans(tmp_path: Path, random: np.random.Generator) -> list[Scan]:
    """Three of them, with 720 voxels between -100 and 100 and the labels 0 to 2."""
    found = []
    for number in range(3):
        image, label = tmp_path / f"img{number}.nii.gz", tmp_path / f"label{number}.nii.gz"
        nib.save(nib.Nifti1Image(random.uniform(-100, 100, (8, 9, 10)).astype(np.float32), np.eye(4)), image)
        nib.save(nib.Nifti1Image(random.integers(0, 3, (8, 9, 10)).astype(np.uint8), np.eye(4)), label)
        found.append(Scan(f"img{number}", (image,), label))
    return found


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the scans that are read, in turn."""
    names: list[str] = []
    check_scan = check.check_scan

    def noting(scan: Scan, **options: Any) -> check.Findings:
        names.append(scan.name)
        return check_scan(scan, **options)

    monkeypatch.setattr(check, "check_scan", noting)
    return names


def run(scans: list[Scan], folder: Path, settings: Preprocessing = SETTINGS, classes: int = 3) -> None:
    check_scans(scans, 1, classes, settings, 1, Process(torch.device("cpu")), remembered_in=folder)


def test_sound_scans_are_read_once(scans: list[Scan], read: list[str], tmp_path: Path) -> None:
    run(scans[:2], tmp_path)
    run([*scans, scans[0]], tmp_path)
    run(scans, tmp_path)
    assert read == ["img0", "img1", "img2"]


def test_what_changed_is_read_again(scans: list[Scan], read: list[str], tmp_path: Path) -> None:
    run(scans, tmp_path)
    read.clear()
    os.utime(scans[1].image[0], (1, 1))
    run(scans, tmp_path)
    assert scans[2].label is not None
    nib.save(nib.Nifti1Image(np.full((8, 9, 10), 2, np.uint8), np.eye(4)), scans[2].label)
    run(scans, tmp_path)
    run([scans[0], replace(scans[1], ignore=2), scans[2]], tmp_path)
    assert read == ["img1", "img2", "img1"]
    read.clear()
    run(scans[:1], tmp_path, replace(SETTINGS, a_max=50.0))
    run(scans[:1], tmp_path, classes=4)
    assert read == ["img0", "img0"]


def test_a_fault_is_found_each_time(scans: list[Scan], tmp_path: Path) -> None:
    run(scans, tmp_path)
    scans[1].image[0].write_bytes(b"no scan")
    for _ in range(2):
        with pytest.raises(InputError, match=r"1 fault in the data; .*\n.*img1.nii.gz"):
            run(scans, tmp_path)
    with pytest.raises(InputError, match="but labels are 0 … 1"):
        run(scans[:1], tmp_path, classes=2)


@pytest.mark.parametrize(
    "content", ["", "{", '{"format": 1, "scans": {"a": {"remarks": 3}}}', '{"format": 0, "scans": {}}']
)
def test_a_damaged_file_counts_as_none(content: str, scans: list[Scan], read: list[str], tmp_path: Path) -> None:
    run(scans, tmp_path)
    (tmp_path / "checked.json").write_text(content)
    run(scans, tmp_path)
    assert read == ["img0", "img1", "img2"] * 2
    assert len(json.loads((tmp_path / "checked.json").read_text())["scans"]) == 3


def test_notes_are_given_each_time(
    scans: list[Scan], read: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A remark about a header, and that the window clips most: for its values all scans are read again."""
    nib.save(nib.Nifti1Image(np.linspace(-100, 900, 720).reshape(8, 9, 10), None), scans[0].image[0])
    nib.save(nib.Nifti1Image(np.ones((8, 9, 10), np.uint8), None), str(scans[0].label))
    said = []
    for _ in range(2):
        run(scans, tmp_path)
        run(scans[:1], tmp_path)
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert said[0].count("its header doesn't tell how it lies") == 2
    assert said[0].count("clips 65% of the labelled voxels") == 1  # those of the first scan above 250
    assert read == ["img0", "img1", "img2", "img0", "img0"]


def test_scans_that_are_new_are_read_once_for_the_note_too(
    scans: list[Scan], read: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nib.save(nib.Nifti1Image(np.linspace(-100, 900, 720).reshape(8, 9, 10), np.eye(4)), scans[0].image[0])
    nib.save(nib.Nifti1Image(np.ones((8, 9, 10), np.uint8), np.eye(4)), str(scans[0].label))
    run(scans[:1], tmp_path)
    assert "clips 65% of the labelled voxels" in capsys.readouterr().out
    assert read == ["img0"]

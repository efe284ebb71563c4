"""Phantoms: the same for a seed, in Hounsfield units, every organ in its place."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from utils.data.check import check_scan
from utils.data.data_list import read_data_list
from utils.data.preprocessing import Preprocessing
from utils.phantom import LABELS, draw_abdomen, write_phantoms
from utils.system.errors import InputError

SPACING = (4.0, 4.0, 5.0)


@pytest.fixture(scope="module")
def drawn() -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    return draw_abdomen(3, SPACING)


def centres(label: nib.Nifti1Image) -> dict[str, np.ndarray]:
    """The centre of each organ in mm from the centre of the volume, to the Right, Anterior and Superior."""
    values = np.asarray(label.dataobj)
    middle = label.affine @ [*((np.array(values.shape) - 1) / 2), 1]
    return {
        name: (label.affine @ [*np.argwhere(values == value).mean(0), 1] - middle)[:3]
        for value, name in enumerate(LABELS)
        if value
    }


def test_a_seed_draws_the_same_phantom_again(drawn: tuple[nib.Nifti1Image, nib.Nifti1Image]) -> None:
    again, other = draw_abdomen(3, SPACING), draw_abdomen(4, SPACING)
    for first, second in zip(drawn, again, strict=True):
        assert np.array_equal(first.dataobj, second.dataobj)
        assert np.array_equal(first.affine, second.affine)
    assert not np.array_equal(drawn[1].affine, other[1].affine)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_organ_is_on_its_side(seed: int) -> None:
    place = centres(draw_abdomen(seed, SPACING)[1])
    for organ in ("liver", "gallbladder", "right kidney", "right adrenal gland", "inferior vena cava"):
        assert place[organ][0] > 0, organ
    for organ in ("spleen", "stomach", "left kidney", "left adrenal gland"):
        assert place[organ][0] < 0, organ
    assert place["right adrenal gland"][2] > place["right kidney"][2]
    assert place["pancreas"][1] > place["aorta"][1]
    assert place["esophagus"][2] > place["pancreas"][2]


def test_intensities_are_hounsfield_units(drawn: tuple[nib.Nifti1Image, nib.Nifti1Image]) -> None:
    image, label = (np.asarray(volume.dataobj) for volume in drawn)
    assert image.min() < -900
    assert 80 < image[label == LABELS.index("liver")].mean() < 140
    assert image[label == LABELS.index("aorta")].mean() > image[label == LABELS.index("gallbladder")].mean() + 80
    assert image[label == LABELS.index("liver")].std() > 10  # noise


def test_liver_is_as_large_as_a_real_one(drawn: tuple[nib.Nifti1Image, nib.Nifti1Image]) -> None:
    label = drawn[1]
    millilitres = np.sum(np.asarray(label.dataobj) == LABELS.index("liver")) * abs(np.linalg.det(label.affine)) / 1000
    assert 900 < millilitres < 2500


def test_size_pose_and_axis_order_vary() -> None:
    labels = [draw_abdomen(seed, (10.0, 10.0, 12.0))[1] for seed in range(12)]
    assert len({label.shape for label in labels}) > 1
    assert len({nib.aff2axcodes(label.affine) for label in labels}) > 1
    assert all(not np.allclose(label.affine, np.eye(4)) for label in labels)


def test_files_pass_the_data_check_and_say_that_they_are_synthetic(phantoms: Path) -> None:
    data = read_data_list(str(phantoms), None, 0)
    assert (len(data.training), len(data.validation), len(data.test)) == (4, 2, 1)
    assert data.label_names(14) == LABELS
    for scan in data.training + data.validation + data.test:
        findings = check_scan(scan, in_channels=1, out_channels=14, settings=Preprocessing())
        assert (findings.faults, findings.remarks) == ([], [])
    assert "not patients" in json.loads((phantoms / "dataset_0.json").read_text())["description"]
    header = nib.Nifti1Image.from_filename(data.training[0].image[0]).header
    assert b"not patients" in bytes(header["descrip"])


def test_real_scans_are_not_replaced(tmp_path: Path) -> None:
    """BTCV's own files have the same names."""
    (tmp_path / "imagesTr").mkdir()
    real = tmp_path / "imagesTr" / "img0001.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4)), real)
    content = real.read_bytes()
    with pytest.raises(InputError, match=r"img0001\.nii\.gz: is there already, and is no phantom"):
        write_phantoms(tmp_path, {"training": 1, "validation": 1}, 0, (20.0, 20.0, 20.0))
    assert real.read_bytes() == content
    real.unlink()
    (tmp_path / "dataset_0.json").write_text('{"description": "BTCV"}')
    with pytest.raises(InputError, match=r"dataset_0\.json: is there already"):
        write_phantoms(tmp_path, {"training": 1, "validation": 1}, 0, (20.0, 20.0, 20.0))
    (tmp_path / "dataset_0.json").unlink()
    for _ in range(2):  # ours are
        write_phantoms(tmp_path, {"training": 1, "validation": 1}, 0, (20.0, 20.0, 20.0))

"""What is measured about a scan, on volumes whose facts a person can work out."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from utils.io.scan import Scan
from utils.planning import facts
from utils.planning.facts import examine
from utils.planning.fingerprint import QUANTILES, ScanFacts

SHAPE = (20, 24, 30)
SPACING = (1.0, 2.0, 3.0)


def save(path: Path, voxels: np.ndarray, spacing: tuple[float, ...] = SPACING, orientation: str = "RAS") -> Path:
    """Write a volume in RAS, its axes turned."""
    image = nib.Nifti1Image(voxels, np.diag([*spacing, 1.0]))
    turn = ornt_transform(io_orientation(image.affine), axcodes2ornt(orientation))
    nib.save(image.as_reoriented(turn), path)
    return path


def make_scan(
    folder: Path,
    image: np.ndarray,
    label: np.ndarray,
    spacing: tuple[float, ...] = SPACING,
    orientation: str = "RAS",
    name: str = "img1",
) -> Scan:
    path = save(folder / f"{name}.nii.gz", image, spacing, orientation)
    return Scan(name, (path,), save(folder / f"{name}_label.nii.gz", label, spacing, orientation))


def ramp(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """0, 1, 2, … in some order."""
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def box(value: int = 1, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """A box of 4 × 6 × 8 voxels that begins at (2, 3, 4)."""
    label = np.zeros(shape, np.uint8)
    label[2:6, 3:9, 4:12] = value
    return label


def facts_of(scan: Scan) -> ScanFacts:
    measured, found = examine(scan)
    assert measured is not None, found.faults
    return measured


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SAL", "PIR"])
def test_a_box_however_the_file_lies(tmp_path: Path, orientation: str) -> None:
    found = facts_of(make_scan(tmp_path, ramp(), box(value=3), orientation=orientation))
    assert (found.shape, found.spacing, found.orientation) == (SHAPE, SPACING, orientation)
    assert list(found.structures) == [3]
    structure = found.structures[3]
    assert structure.voxels == 4 * 6 * 8
    assert structure.volume_ml == pytest.approx(4 * 6 * 8 * 6 / 1000)
    assert structure.extent_mm == (4.0, 12.0, 24.0)
    assert structure.thickness_mm == 4.0
    assert structure.centre == pytest.approx((4 / 20, 6 / 24, 8 / 30), rel=1e-5)


@pytest.mark.parametrize("slices", [1, 2, 3, 4])
def test_a_plate_is_as_thick_as_its_slices(tmp_path: Path, slices: int) -> None:
    label = np.zeros(SHAPE, np.uint8)
    label[:, :, 10 : 10 + slices] = 1
    found = facts_of(make_scan(tmp_path, ramp(), label))
    assert found.structures[1].thickness_mm == 3.0 * slices


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 1.0, 2.0)])
def test_a_ball(tmp_path: Path, spacing: tuple[float, float, float]) -> None:
    shape = (32, 32, 32)
    middle = np.array([16.0, 16.0, 16.0 * spacing[2]])
    places = (np.indices(shape).T + 0.5) * spacing
    label = (np.linalg.norm(places - middle, axis=-1).T < 12).astype(np.uint8)
    found = facts_of(make_scan(tmp_path, ramp(shape), label, spacing)).structures[1]
    assert found.volume_ml == pytest.approx(4 / 3 * np.pi * 12**3 / 1000, rel=0.02)
    assert found.thickness_mm == pytest.approx(24, rel=0.1)  # less where voxels make corners
    assert found.extent_mm == (24.0, 24.0, 24.0)
    assert found.centre == (0.5, 0.5, 0.5)


def test_the_largest_of_two_parts_gives_the_thickness_and_both_the_extent(tmp_path: Path) -> None:
    label = np.zeros((20, 20, 20), np.uint8)
    label[0:1, 0:1, 0:1] = 1
    label[10:15, 10:16, 10:17] = 1
    found = facts_of(make_scan(tmp_path, ramp((20, 20, 20)), label, (1.0, 1.0, 1.0))).structures[1]
    assert (found.extent_mm, found.thickness_mm) == ((15.0, 16.0, 17.0), 5.0)


def test_a_large_structure_is_measured_on_a_coarser_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    label = np.zeros((40, 40, 10), np.uint8)
    label[2:38, 2:38, 1:9] = 1  # 36 × 36 × 32 mm
    monkeypatch.setattr(facts, "LARGEST_GRID", 1000)
    found = facts_of(make_scan(tmp_path, ramp((40, 40, 10)), label, (1.0, 1.0, 4.0))).structures[1]
    assert found.thickness_mm == pytest.approx(32, abs=8)
    assert (found.voxels, found.extent_mm) == (36 * 36 * 8, (36.0, 36.0, 32.0))


def test_scattered_voxels_are_as_thick_as_a_voxel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    label = np.zeros((40, 40, 40), np.uint8)
    label[0, 0, 0] = label[-1, -1, -1] = 1
    monkeypatch.setattr(facts, "LARGEST_GRID", 1000)
    found = facts_of(make_scan(tmp_path, ramp((40, 40, 40)), label, (2.0, 1.0, 3.0))).structures[1]
    assert found.thickness_mm == 1.0


def test_the_body_is_what_lies_above_the_lowest_value_of_all_channels(tmp_path: Path) -> None:
    first, second = np.full(SHAPE, -5, np.float32), np.full(SHAPE, -5, np.float32)
    first[4:10, 5:8, 10:20] = 1
    second[4:12, 5:7, 9:11] = -4
    paths = tuple(save(tmp_path / f"img_000{n}.nii.gz", one) for n, one in enumerate((first, second)))
    found = facts_of(Scan("img", paths, save(tmp_path / "label.nii.gz", box())))
    assert found.body_mm == (8 * 1.0, 3 * 2.0, 11 * 3.0)
    assert found.channels == 2
    assert [values[0] for values in found.quantiles] == [-5.0, -5.0]
    assert [values[-1] for values in found.quantiles] == [1.0, -4.0]


def test_quantiles_of_all_and_of_the_labelled_voxels(tmp_path: Path) -> None:
    shape = (3, 67, 10)  # 2010 voxels: 0 … 2009
    label = np.zeros(shape, np.uint8)
    label[1] = 2  # 670 … 1339
    found = facts_of(make_scan(tmp_path, ramp(shape), label))
    steps = np.arange(QUANTILES + 1) / QUANTILES
    assert found.quantiles == (pytest.approx(2009 * steps, rel=1e-5),)
    assert found.labelled_quantiles == (pytest.approx(670 + 669 * steps, rel=1e-5),)


def test_two_channels_in_one_file_are_those_of_two_files(tmp_path: Path) -> None:
    channels = [ramp(), ramp()[::-1] * 2]
    path = save(tmp_path / "both.nii.gz", np.stack(channels, axis=-1))
    label = save(tmp_path / "label.nii.gz", box())
    paths = tuple(save(tmp_path / f"img_000{n}.nii.gz", one) for n, one in enumerate(channels))
    together, apart = facts_of(Scan("img", (path,), label)), facts_of(Scan("img", paths, label))
    assert together == apart
    assert together.quantiles[1][-1] == pytest.approx(2 * together.quantiles[0][-1])


def test_of_a_large_scan_a_sample_is_drawn_but_the_ends_are_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "SAMPLE", 2000)
    scan = make_scan(tmp_path, ramp(), np.ones(SHAPE, np.uint8))
    found = facts_of(scan)
    last = np.prod(SHAPE) - 1
    for quantiles in (found.quantiles[0], found.labelled_quantiles[0]):
        assert (quantiles[0], quantiles[-1]) == (0, last)
        assert quantiles[QUANTILES // 2] == pytest.approx(last / 2, rel=0.1)
    assert facts_of(scan) == found


def test_a_scan_without_labels(tmp_path: Path) -> None:
    found = facts_of(make_scan(tmp_path, ramp(), np.zeros(SHAPE, np.uint8)))
    assert (found.structures, found.labelled_quantiles) == ({}, ())


def test_labels_in_floats_that_are_nearly_whole(tmp_path: Path) -> None:
    found = facts_of(make_scan(tmp_path, ramp(), box(value=2).astype(np.float32) * 0.9999))
    assert list(found.structures) == [2]
    assert found.structures[2].voxels == 192


def test_remarks_name_files_without_their_folders(tmp_path: Path) -> None:
    scan = make_scan(tmp_path, box().astype(np.int16), box())
    assert facts_of(scan).remarks == (
        "img1_label.nii.gz: has the voxels of its image: nothing to learn. Is it the label map?",
    )


def many_labels() -> np.ndarray:
    return ramp().astype(np.int16)


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        (np.full(SHAPE, 7.0), box(), "img1.nii.gz: every voxel is 7"),
        (np.where(box() > 0, np.nan, 1.0), box(), "img1.nii.gz: has NaN or infinite voxels"),
        (ramp(), box()[1:], "img1_label.nii.gz: has shape 19 × 24 × 30, but img1.nii.gz has"),
        (ramp(), box() * 0.5, "img1_label.nii.gz: has the values 0, 0.5, but labels are"),
        (ramp(), box().astype(np.int16) * -1, "img1_label.nii.gz: has the values -1, 0, but labels are"),
        (-ramp(), many_labels(), "img1_label.nii.gz: has 14399 different labels. Is it an image?"),
    ],
)
def test_files_that_are_not_sound(tmp_path: Path, image: np.ndarray, label: np.ndarray, message: str) -> None:
    measured, found = examine(make_scan(tmp_path, image, label))
    assert measured is None
    assert message in found.faults[0]
    assert "\n" not in found.faults[0]


def test_a_scan_longer_than_a_person(tmp_path: Path) -> None:
    _, found = examine(make_scan(tmp_path, ramp(), box(), spacing=(1.0, 1.0, 300.0)))
    assert "img1.nii.gz: is 9 m long by its header" in found.faults[0]


def test_an_oblique_scan_has_the_spacing_of_its_voxels(tmp_path: Path) -> None:
    turned, angle = np.diag([*SPACING, 1.0]), np.radians(20)
    turned[:2, :2] = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ turned[:2, :2]
    paths = [tmp_path / "img.nii.gz", tmp_path / "label.nii.gz"]
    for path, voxels in zip(paths, (ramp(), box()), strict=True):
        nib.save(nib.Nifti1Image(voxels, turned), path)
    found = facts_of(Scan("img", (paths[0],), paths[1]))
    assert found.spacing == pytest.approx(SPACING, rel=1e-5)
    assert found.structures[1].volume_ml == pytest.approx(1.152)

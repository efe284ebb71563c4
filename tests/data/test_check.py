"""Each fault that a data set can have, found before training and named by its file."""

import gzip
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from utils.data.check import check_scan, check_scans
from utils.data.preprocessing import Preprocessing
from utils.distributed.process import Process
from utils.io.reader import read_label, read_scan
from utils.io.scan import Scan
from utils.system.errors import InputError

SETTINGS = Preprocessing()
AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])


def save(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


@pytest.fixture
def scan(tmp_path: Path, random: np.random.Generator) -> Scan:
    image = save(tmp_path / "img1.nii.gz", random.normal(0, 100, (8, 9, 10)).astype(np.float32))
    label = save(tmp_path / "label1.nii.gz", random.integers(0, 3, (8, 9, 10)).astype(np.uint8))
    return Scan("img1", (image,), label)


def with_image(scan: Scan, voxels: np.ndarray) -> None:
    save(scan.image[0], voxels)


def with_label(scan: Scan, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    assert scan.label is not None
    save(scan.label, voxels, affine)


def cut_off(scan: Scan) -> None:
    content = scan.image[0].read_bytes()
    scan.image[0].write_bytes(content[: len(content) // 2])


def nan_voxel(scan: Scan) -> None:
    voxels = np.ones((8, 9, 10), np.float32)
    voxels[1, 2, 3] = np.nan
    with_image(scan, voxels)


def rgb(scan: Scan) -> None:
    colour = np.zeros((8, 9, 10), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    nib.save(nib.Nifti1Image(colour, AFFINE), scan.image[0])


FAULTS: dict[str, tuple[Callable[[Scan], object], str]] = {
    "missing": (lambda scan: scan.image[0].unlink(), "img1.nii.gz: can't be read (No such file or directory)"),
    "text": (lambda scan: scan.image[0].write_text("hello"), "img1.nii.gz: is no volume: neither NIfTI"),
    "empty": (lambda scan: scan.image[0].write_bytes(b""), "img1.nii.gz: is no volume: neither NIfTI"),
    "gzip of text": (
        lambda scan: scan.image[0].write_bytes(gzip.compress(b"hello")),
        "img1.nii.gz: is no volume: neither NIfTI",
    ),
    "cut off": (cut_off, "img1.nii.gz: is cut off or damaged"),
    "2D": (lambda scan: with_image(scan, np.eye(8, dtype=np.float32)), "has the shape 8 × 8; a scan is 3D"),
    "two channels": (
        lambda scan: with_image(scan, np.random.default_rng(0).normal(size=(8, 9, 10, 2)).astype(np.float32)),
        "channels: 2 (shape 8 × 9 × 10 × 2), but the network takes 1. Give `in_channels` 2, or a scan",
    ),
    "colours": (rgb, "img1.nii.gz: has colours or other compound voxels"),
    "not a number": (nan_voxel, "img1.nii.gz: has NaN or infinite voxels"),
    "constant": (lambda scan: with_image(scan, np.full((8, 9, 10), 7.0)), "img1.nii.gz: every voxel is 7"),
    "air": (
        lambda scan: with_image(scan, np.random.default_rng(0).integers(-1024, -999, (8, 9, 10)).astype(np.int16)),
        "has voxels of -1024 to -1000, of which none is inside the network's window of -175 to 250. Are they",
    ),
    "shape": (
        lambda scan: with_label(scan, np.zeros((8, 9, 11), np.uint8)),
        "label1.nii.gz: has shape 8 × 9 × 11, but img1.nii.gz has 8 × 9 × 10",
    ),
    "grid": (
        lambda scan: with_label(scan, np.zeros((8, 9, 10), np.uint8), AFFINE + np.eye(4)[3] * np.eye(4)[:, :1] * 5),
        "label1.nii.gz: lies up to 5 mm away from img1.nii.gz",
    ),
    "too high": (
        lambda scan: with_label(scan, np.full((8, 9, 10), 15, np.uint8)),
        "label1.nii.gz: has the values 15, but labels are 0 … 2. Remap them, or give `out_channels` 16.",
    ),
    "negative": (
        lambda scan: with_label(scan, np.full((8, 9, 10), -1, np.int16)),
        "label1.nii.gz: has the values -1, but labels are 0 … 2. Remap them.",
    ),
    "fractions": (
        lambda scan: with_label(scan, np.full((8, 9, 10), 0.5, np.float32)),
        "label1.nii.gz: has the values 0.5, but labels are 0 … 2. Remap them.",
    ),
    "four-dimensional label": (
        lambda scan: with_label(scan, np.zeros((8, 9, 10, 2), np.uint8)),
        "label1.nii.gz: has shape 8 × 9 × 10 × 2; a label is 3D",
    ),
}


def faults(scan: Scan, in_channels: int = 1, settings: Preprocessing = SETTINGS) -> list[str]:
    return check_scan(scan, in_channels, 3, settings).faults


def test_a_sound_scan_has_no_faults(scan: Scan) -> None:
    assert faults(scan) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named(scan: Scan, fault: str) -> None:
    spoil, words = FAULTS[fault]
    spoil(scan)
    (message,) = faults(scan)
    assert words in message


def test_what_is_no_ct_has_no_window(scan: Scan) -> None:
    with_image(scan, np.random.default_rng(0).integers(1000, 2000, (8, 9, 10)).astype(np.int16))
    assert len(faults(scan)) == 1
    assert faults(scan, settings=Preprocessing(intensity="zscore")) == []


def test_a_fourth_dimension_of_length_one_is_one_channel(scan: Scan, random: np.random.Generator) -> None:
    with_image(scan, random.normal(size=(8, 9, 10, 1)))
    with_label(scan, np.ones((8, 9, 10, 1), np.uint8))
    assert faults(scan) == []


def test_channels_may_be_files_of_their_own(scan: Scan, tmp_path: Path, random: np.random.Generator) -> None:
    second = save(tmp_path / "img1_b.nii.gz", random.normal(size=(8, 9, 10)))
    assert faults(Scan("img1", (*scan.image, second), scan.label), 2) == []


def test_a_missing_channel_does_not_put_the_next_one_s_fault_on_another_file(scan: Scan, tmp_path: Path) -> None:
    flat = save(tmp_path / "flat.nii.gz", np.full((8, 9, 10), 7.0))
    found = faults(Scan("img1", (tmp_path / "gone.nii.gz", flat), scan.label), 2)
    assert [fault.partition(": ")[0] for fault in found] == [str(tmp_path / "gone.nii.gz"), str(flat)]


def test_all_faults_of_all_files_are_listed_together(scan: Scan, tmp_path: Path) -> None:
    other = Scan("img2", (tmp_path / "img2.nii.gz",), tmp_path / "label2.nii.gz")
    nan_voxel(scan)
    with pytest.raises(InputError) as error:
        check_scans([scan, other], 1, 3, Preprocessing(), 2, Process(torch.device("cpu")))
    message = str(error.value)
    assert message.startswith("3 faults in the data; nothing was started.")
    assert all(name in message for name in ("img1.nii.gz", "img2.nii.gz", "label2.nii.gz"))


@pytest.mark.parametrize(("unit", "size"), [("meter", 0.002), ("micron", 2000.0)])
def test_lengths_in_metres_and_microns_are_no_fault(scan: Scan, unit: str, size: float) -> None:
    """The label is on the same grid in mm."""
    image = nib.Nifti1Image(np.asarray(nib.load(scan.image[0]).dataobj), np.diag([size, size, 1.5 * size, 1.0]))  # type: ignore[attr-defined]
    image.header.set_xyzt_units(unit)
    nib.save(image, scan.image[0])
    assert faults(scan) == []


def test_all_faults_of_one_scan_are_listed(scan: Scan) -> None:
    nan_voxel(scan)
    with_label(scan, np.full((8, 9, 10), 7, np.uint8), AFFINE * 2)
    found = faults(scan)
    assert len(found) == 3
    assert "has NaN or infinite voxels (1). Replace them." in found[0]
    assert "label1.nii.gz: lies up to" in found[1]
    assert "has the values 7, but labels are 0 … 2. Remap them, or give `out_channels` 8." in found[2]


def test_a_remark_about_several_files_is_printed_once(
    scan: Scan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voxels = np.asarray(nib.load(scan.image[0]).dataobj)  # type: ignore[attr-defined]
    nib.save(nib.Nifti1Image(voxels, None), scan.image[0])
    nib.save(nib.Nifti1Image(np.ones((8, 9, 10), np.uint8), None), str(scan.label))
    check_scans([scan], 1, 3, SETTINGS, 2, Process(torch.device("cpu")))
    words = "and 1 more: its header doesn't tell how it lies, so that left and right are a guess."
    assert capsys.readouterr().out == f"note: {scan.image[0]} {words}\n"


def test_a_label_that_is_the_image_is_noted(
    scan: Scan, tmp_path: Path, random: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same file, a link to it, and a copy of another type beside a sound channel."""
    voxels = random.integers(0, 3, (8, 9, 10)).astype(np.uint8)
    image, copy = save(tmp_path / "a.nii.gz", voxels), save(tmp_path / "b.nii", voxels.astype(np.float32))
    (tmp_path / "link.nii.gz").symlink_to(image)
    words = "has the voxels of its image: nothing to learn. Is it the label map?"
    for label in (image, tmp_path / "link.nii.gz", copy):
        assert check_scan(Scan("a", (image,), label), 1, 3, SETTINGS).remarks == [f"{label}: {words}"]
        assert check_scan(Scan("a", (*scan.image, image), label), 2, 3, SETTINGS).remarks == [f"{label}: {words}"]
    check_scans([Scan("a", (image,), image)], 1, 3, SETTINGS, 2, Process(torch.device("cpu")))
    assert capsys.readouterr().out == f"note: {image}: {words}\n"


def test_a_label_that_differs_from_the_image_in_one_voxel_is_not_noted(scan: Scan, tmp_path: Path) -> None:
    voxels = np.zeros((8, 9, 10), np.uint8)
    voxels[4:] = 1
    image = save(tmp_path / "a.nii.gz", voxels)
    voxels[7, 8, 9] = 0
    assert check_scan(Scan("a", (image,), save(tmp_path / "b.nii.gz", voxels)), 1, 3, SETTINGS).remarks == []
    assert check_scan(scan, 1, 3, SETTINGS).remarks == []


def test_labels_a_hair_off_whole_numbers_are_taken(scan: Scan) -> None:
    """As resampling, or a scale in the header, leaves them; beyond 0.001 they are no labels."""
    whole = np.random.default_rng(0).integers(0, 3, (8, 9, 10)).astype(np.float32)
    with_label(scan, whole * np.float32(0.9999999))
    assert check_scan(scan, 1, 3, SETTINGS).faults == []
    assert scan.label is not None
    label = read_label(scan.label, scan.path, read_scan(scan), 3)
    np.testing.assert_array_equal(label, whole)
    with_label(scan, whole - np.float32(0.0009))  # of 0 too
    assert check_scan(scan, 1, 3, SETTINGS).faults == []
    np.testing.assert_array_equal(read_label(scan.label, scan.path, read_scan(scan), 3), whole)
    with_label(scan, whole + np.float32(0.0011))
    (fault,) = check_scan(scan, 1, 3, SETTINGS).faults
    assert fault.endswith("but labels are 0 … 2. Remap them.")


def test_a_label_beyond_int16_is_none(scan: Scan) -> None:
    """It would turn negative where training keeps labels in 16 bits."""
    with_label(scan, np.full((8, 9, 10), 40000, np.int32))
    assert scan.label is not None
    with pytest.raises(InputError, match="has the values 40000, but labels are whole numbers"):
        read_label(scan.label, scan.path, read_scan(scan))


def test_voxels_that_float32_can_not_hold(scan: Scan) -> None:
    voxels = np.random.default_rng(0).normal(0, 100, (8, 9, 10))
    voxels[1, 2, 3], voxels[0, 0, 0] = 1e300, -1e39
    with_image(scan, voxels)
    (fault,) = check_scan(scan, 1, 3, SETTINGS).faults
    assert fault == (
        f"{scan.image[0]}: has voxels that 32-bit numbers can't hold or square (2, from -1e+39 to 1e+300). Replace "
        "them."
    )


def test_a_few_voxels_that_dominate_a_standardisation_are_noted(scan: Scan) -> None:
    """720 voxels of 0 and 1 in turn, and one of 1e6: its square is all but all of the sum of squares."""
    voxels = np.indices((8, 9, 10)).sum(0).astype(np.float32) % 2
    with_image(scan, voxels)
    standard = Preprocessing(intensity="zscore")
    assert check_scan(scan, 1, 3, standard).remarks == []
    large = np.tile(voxels, (4, 4, 4))  # of 46,080 voxels one lies 215 standard deviations away
    large[5, 6, 7] = 1e6
    with_image(scan, large)
    with_label(scan, np.zeros(large.shape, np.uint8))
    (remark,) = check_scan(scan, 1, 3, standard).remarks
    assert "1 of its voxels, up to 1e+06, make up 100% of its variance" in remark
    assert check_scan(scan, 1, 3, SETTINGS).remarks == []  # a CT's window clips it


def test_a_scan_longer_than_a_person_is_a_fault(scan: Scan) -> None:
    """10 voxels of 1000 mm: a header that took metres for millimetres."""
    affine = np.diag([2.0, 2.0, 1000.0, 1.0])
    save(scan.image[0], np.random.default_rng(0).normal(0, 100, (8, 9, 10)).astype(np.float32), affine)
    with_label(scan, np.zeros((8, 9, 10), np.uint8), affine)
    (fault,) = check_scan(scan, 1, 3, SETTINGS).faults
    assert "is 10 m long by its header, with voxels of 2 × 2 × 1000 mm. Mend its header." in fault


def test_a_scan_of_less_than_a_few_voxels_is_a_fault(scan: Scan) -> None:
    """Metres without a unit, which count as mm."""
    affine = np.diag([0.0007, 0.0007, 0.003, 1.0])
    save(scan.image[0], np.random.default_rng(0).normal(0, 100, (8, 9, 10)).astype(np.float32), affine)
    with_label(scan, np.zeros((8, 9, 10), np.uint8), affine)
    (fault,) = check_scan(scan, 1, 3, SETTINGS).faults
    assert "one or two voxels of 1.5 × 1.5 × 2 mm along each axis; its own are 0.0007 × 0.0007 × 0.003 mm" in fault


@pytest.mark.parametrize(("size", "remarks"), [(0.1, 1), (0.2, 0)])
def test_voxels_ten_times_as_fine_as_the_networks_are_noted(scan: Scan, size: float, remarks: int) -> None:
    """Centimetres without a unit; the network's voxels have 1.5 × 1.5 × 2 mm."""
    affine = np.diag([size, size, size, 1.0])
    save(scan.image[0], np.random.default_rng(0).normal(0, 100, (40, 40, 50)).astype(np.float32), affine)
    with_label(scan, np.zeros((40, 40, 50), np.uint8), affine)
    found = check_scan(scan, 1, 3, SETTINGS)
    assert found.faults == []
    assert len([remark for remark in found.remarks if "Is the unit of its header right?" in remark]) == remarks


def test_a_scan_that_resampling_makes_too_large_is_a_fault(scan: Scan) -> None:
    """8 × 9 × 10 voxels of 400 mm are 3.2 × 3.6 × 4 m, and at 0.5 mm 3.7e11 voxels."""
    affine = np.diag([400.0, 400.0, 400.0, 1.0])
    save(scan.image[0], np.random.default_rng(0).normal(0, 100, (8, 9, 10)).astype(np.float32), affine)
    with_label(scan, np.zeros((8, 9, 10), np.uint8), affine)
    (fault,) = check_scan(scan, 1, 3, Preprocessing(spacing=(0.5, 0.5, 0.5))).faults
    assert "would have 3.69e+11 voxels of 0.5 × 0.5 × 0.5 mm, which this machine's memory doesn't hold" in fault


def test_where_the_list_names_the_labels_it_is_what_needs_another(scan: Scan) -> None:
    with_label(scan, np.full((8, 9, 10), 4, np.uint8))
    (fault,) = check_scan(scan, 1, 3, SETTINGS, labels_in=Path("folds.json")).faults
    assert fault.endswith(
        "label1.nii.gz: has the values 4, but labels are 0 … 2. Remap them, or name all 5, the background included, "
        'under "labels" in folds.json.'
    )


def test_voxels_that_nobody_judged_ask_for_no_further_name(scan: Scan) -> None:
    with_label(scan, np.resize(np.array([4, 255], np.uint8), (8, 9, 10)))
    (fault,) = check_scan(replace(scan, ignore=255), 1, 3, SETTINGS, labels_in=Path("folds.json")).faults
    assert "or name all 5, the background included" in fault


def boxes(scan: Scan, values: list[float], labels: list[float], dtype: type = np.float32) -> None:
    """Write a scan of 720 voxels with these values in turn, and their labels."""
    with_image(scan, np.resize(np.array(values, dtype), (8, 9, 10)))
    with_label(scan, np.resize(np.array(labels, np.float32), (8, 9, 10)))


def notes(capsys: pytest.CaptureFixture[str], *scans: Scan, channels: int = 1, **settings: Any) -> str:
    check_scans(scans, channels, 3, Preprocessing(**settings), 2, Process(torch.device("cpu")))
    return capsys.readouterr().out


def test_a_window_that_clips_most_of_what_is_labelled_is_noted(scan: Scan, capsys: pytest.CaptureFixture[str]) -> None:
    """Of each four voxels one is background, and of the labelled two are above the window's 250 and one at its end."""
    boxes(scan, [0, 250, 300, 1200], [0, 1, 2, 1], np.int16)
    assert notes(capsys, scan) == (
        "note: the window of `a_min` -175 to `a_max` 250 clips 67% of the labelled voxels, whose values are 250 to "
        "1200 (0.5 to 99.5 percentile). Give `intensity` zscore for MR, or an `a_min` and `a_max` that show them; "
        "python -m utils.plan chooses them\n"
    )
    assert notes(capsys, scan, intensity="zscore") == ""
    assert notes(capsys, scan, a_max=300.0) == ""


def test_a_window_that_clips_half_of_it_is_not_noted(scan: Scan, capsys: pytest.CaptureFixture[str]) -> None:
    boxes(scan, [-400, 0, 0, 300], [2, 1, 2, 1])
    assert notes(capsys, scan) == ""
    boxes(scan, [0, 400], [0, 0])  # nothing is labelled
    assert notes(capsys, scan) == ""


def test_what_a_window_clips_is_added_up_over_scans(
    scan: Scan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """240 of the first scan's 240 labelled voxels, and none of the second's 360 or 180."""
    boxes(scan, [0, 0, 900], [0, 0, 1])
    image, label = tmp_path / "img2.nii.gz", tmp_path / "label2.nii.gz"
    second = Scan("img2", (image,), label)
    boxes(second, [0, 10], [0, 1])
    assert notes(capsys, scan, second) == ""
    boxes(second, [0, 10, 10, 10], [0, 1, 0, 0])
    assert "clips 57% of the labelled voxels, whose values are 10 to 900" in notes(capsys, scan, second)


def test_labels_a_hair_off_whole_numbers_are_counted_as_those(scan: Scan, capsys: pytest.CaptureFixture[str]) -> None:
    """As labels of 0 and 1: half of what is labelled is clipped, and all of the background."""
    boxes(scan, [500, 0, 500, 500], [0.0009, 0.9991, 0.9991, 0.0009])
    assert notes(capsys, scan) == ""
    boxes(scan, [0, 500, 500, 0], [0.0009, 0.9991, 0.9991, 0.9991])
    assert "clips 67% of" in notes(capsys, scan)


def test_a_window_is_for_all_channels(scan: Scan, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One channel inside, one outside, is half; two of three is more. Files may have another order in memory."""
    boxes(scan, [0, 10], [0, 1])
    outside = np.resize(np.array([0, 700], np.int16), (8, 9, 10))
    high = save(tmp_path / "b.nii.gz", outside)
    two = Scan("img1", (*scan.image, high), scan.label)
    assert notes(capsys, two, channels=2) == ""
    three = Scan("img1", (*scan.image, save(tmp_path / "c.nii.gz", np.stack([outside] * 2, -1))), scan.label)
    assert "clips 67% of the labelled voxels, whose values are 10 to 700" in notes(capsys, three, channels=3)


def test_a_few_values_far_away_are_not_in_the_range(scan: Scan, capsys: pytest.CaptureFixture[str]) -> None:
    """Three of 720, under 0.5 %, at each end."""
    values = np.linspace(1000, 1100, 720).round()
    values[:3], values[-3:] = -900, 9000
    boxes(scan, list(values), [1])
    assert "clips 100% of the labelled voxels, whose values are 1000 to 1100 (0.5" in notes(capsys, scan, a_min=-100.0)


def test_the_range_of_many_voxels_is_that_of_a_sample(scan: Scan, capsys: pytest.CaptureFixture[str]) -> None:
    """1 … 262,144 in turn, of which 0.5 % are up to 1,311; every 64th voxel would be a side of the box."""
    values = np.arange(1, 64**3 + 1, dtype=np.float32).reshape(64, 64, 64)
    with_image(scan, values)
    with_label(scan, np.ones(values.shape, np.uint8))
    note = notes(capsys, scan)
    low, high = (float(text) for text in re.findall(r"whose values are (\S+) to (\S+) ", note)[0])
    # four standard deviations: sqrt(4096 × 0.005 × 0.995) / 4096 is 0.11 % of 262,144, so 289
    assert low == pytest.approx(1311, abs=1156)
    assert high == pytest.approx(64**3 - 1311, abs=1156)


def test_a_value_that_nobody_judged_is_taken_where_the_list_names_it(scan: Scan) -> None:
    values = np.random.default_rng(0).integers(0, 3, (8, 9, 10)).astype(np.uint8)
    values[0] = 255
    with_label(scan, values)
    (fault,) = check_scan(scan, 1, 3, SETTINGS).faults
    assert "labels are 0 … 2" in fault
    ignoring = replace(scan, ignore=255)
    assert check_scan(ignoring, 1, 3, SETTINGS).faults == []
    assert ignoring.label is not None
    found = read_label(ignoring.label, scan.path, read_scan(scan), 3, ignore=255)
    np.testing.assert_array_equal(found, np.where(values == 255, -1, values.astype(np.int16)))
    values[1] = 254
    with_label(scan, values)
    (fault,) = check_scan(ignoring, 1, 3, SETTINGS).faults
    assert "labels are 0 … 2 and 255" in fault


def test_a_structure_that_is_drawn_though_the_list_says_otherwise(scan: Scan) -> None:
    values = np.zeros((8, 9, 10), np.uint8)
    values[0, 0, :4] = 2
    values[1] = 1
    with_label(scan, values)
    assert check_scan(scan, 1, 3, SETTINGS).faults == []
    (fault,) = check_scan(replace(scan, not_annotated=(2,)), 1, 3, SETTINGS).faults
    assert fault.startswith(f"{scan.label}: has 4 voxels of 2, which the data list calls not annotated there.")


def test_a_value_that_the_labels_type_cannot_hold_is_in_no_voxel(scan: Scan) -> None:
    labels = np.zeros((8, 9, 10), np.int8)
    labels[2:5] = 1
    with_label(scan, labels)
    assert check_scan(replace(scan, ignore=255, not_annotated=(300,)), 1, 3, SETTINGS).faults == []
    labels[0, 0, 0] = -1  # 127 further on in 8 bits
    with_label(scan, labels)
    (fault,) = check_scan(replace(scan, ignore=127), 1, 3, SETTINGS).faults
    assert "has the values -1, 0, 1, but labels are 0 … 2 and 127" in fault


def test_a_label_that_nobody_judged_anywhere(scan: Scan) -> None:
    with_label(scan, np.full((8, 9, 10), 255, np.uint8))
    (fault,) = check_scan(replace(scan, ignore=255), 1, 3, SETTINGS).faults
    assert "label1.nii.gz: every voxel is 255, which the data list calls ignored; there is nothing to learn" in fault


def test_voxels_that_nobody_judged_are_not_labelled(scan: Scan) -> None:
    labels = np.full((8, 9, 10), 255, np.uint8)
    labels[2:4], labels[4] = 0, 1
    with_label(scan, labels)
    found = check_scan(replace(scan, ignore=255), 1, 3, SETTINGS).labelled
    assert found is not None
    assert found.count == 9 * 10

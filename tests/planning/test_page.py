"""The page that shows a plan: its numbers, the window over the scans, and that it holds all it needs."""

import base64
import math
import re
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib.patches import Rectangle
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from PIL import Image

from tests.evaluation.test_report import Page
from utils.io.scan import Scan
from utils.planning.choices import Choice, Plan, Section, Value
from utils.planning.fingerprint import QUANTILES, Fingerprint, ScanFacts, StructureFacts
from utils.planning.page import (
    histogram,
    planned_window,
    pooled_shares,
    scan_picture,
    shown,
    standardised,
    with_code,
    write_page,
)
from utils.system.errors import InputError

NASTY = "<script>alert(1)</script>\"'&"
SHAPE, SPACING = (20, 16, 12), (2.0, 2.0, 5.0)
UP_TO_200 = tuple(float(value) for value in range(QUANTILES + 1))  # of voxels spread evenly from 0 to 200


def facts(
    name: str,
    volumes: Sequence[float] = (8.0,),
    shape: tuple[int, int, int] = SHAPE,
    spacing: tuple[float, float, float] = SPACING,
    channels: int = 1,
) -> ScanFacts:
    """A scan with structures 1, 2, … of these volumes in ml; one of no volume isn't there."""
    structures = {
        value: StructureFacts(100, volume, (10.0, 10.0, 10.0), 2 * volume, (0.5, 0.5, 0.5))
        for value, volume in enumerate(volumes, start=1)
        if volume
    }
    quantiles = (UP_TO_200,) * channels
    return ScanFacts(name, shape, spacing, "RAS", (1.0, 1.0, 1.0), quantiles, quantiles if volumes else (), structures)


def fingerprint(
    *scans: ScanFacts,
    labels: tuple[str, ...] = ("background", "liver"),
    named: bool = True,
    modalities: tuple[str, ...] | None = ("MR",),
) -> Fingerprint:
    return Fingerprint(scans, labels, named, modalities, len(scans) - 1, 1)


def plan(ct: bool = False) -> Plan:
    intensities: dict[str, Value] = {"intensity": "zscore"}
    if ct:
        intensities = {"intensity": "ct", "a_min": 50.0, "a_max": 150.0}
    grid = (
        Choice({"space_x": 2.0, "space_y": 2.0, "space_z": 4.0}, "Medians, but `space_z` is finer."),
        Choice({"roi_x": 8, "roi_y": 32, "roi_z": 5}, "What the memory holds."),
    )
    sections = (Section("Preprocessing", (Choice(intensities, "By the values."), *grid)),)
    switch = (Section("Training", (Choice({"optim_lr": 1e-4, "save_checkpoint": True}, "To test it."),)),)
    return Plan(sections + switch)


def write_scan(folder: Path, name: str = "scan", codes: str = "RAS", channels: int = 1) -> Scan:
    """A scan of noise with a box as label 1, its axes in another order on the disk."""
    random = np.random.default_rng(0)
    volumes = [(f"{name}_{number}", random.random(SHAPE, np.float32)) for number in range(channels)]
    label = np.zeros(SHAPE, np.uint8)
    label[12:16, 4:8, 3:9] = 1
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    affine = np.diag([*SPACING, 1.0]) @ inv_ornt_aff(turn, SHAPE)
    folder.mkdir(exist_ok=True)
    paths = []
    for file, voxels in [*volumes, (f"{name}_label", label)]:
        paths.append(folder / f"{file}.nii")
        nib.save(nib.Nifti1Image(nib.orientations.apply_orientation(voxels, turn), affine), paths[-1])
    return Scan(name, tuple(paths[:-1]), paths[-1])


def page(folder: Path, all_facts: Fingerprint, a_plan: Plan, scans: Sequence[Scan], **top: str) -> str:
    folder.mkdir(exist_ok=True)
    write_page(folder / "plan.html", all_facts, a_plan, scans, top)
    return (folder / "plan.html").read_text(encoding="utf-8")


def test_the_page_has_the_plan_and_the_numbers_of_the_scans(tmp_path: Path) -> None:
    scans = [write_scan(tmp_path, name) for name in ("a", "b", "c")]
    all_facts = fingerprint(
        facts("a", (8.0, 1.0)),
        facts("b", (10.0, 0.0), shape=(30, 16, 12)),
        facts("c", (2000.0, 3.0), spacing=(1.5, 2.0, 8.0)),
        labels=("background", "liver", "lesion"),
    )
    text = page(tmp_path, all_facts, plan(), scans, command="python -m utils.plan")
    parsed = Page(text)
    first, second, structures, grid = parsed.tables
    assert first == [
        ["setting", "value", "reason"],
        ["intensity", "zscore", "By the values."],
        ["space_x", "2", "Medians, but space_z is finer."],
        ["space_y", "2"],
        ["space_z", "4"],
        ["roi_x", "8", "What the memory holds."],
        ["roi_y", "32"],
        ["roi_z", "5"],
    ]
    assert second[1:] == [["optim_lr", "0.0001", "To test it."], ["save_checkpoint", "on"]]
    assert "<code>space_z</code> is finer" in text
    assert structures[2:] == [
        ["liver", "1", "3 of 3", "8", "10", "2000", "20"],
        ["lesion", "2", "2 of 3", "1", "2", "3", "4"],
    ]
    assert [row for row in grid if len(row) == 5][1:] == [
        ["x, left to right", "1.5", "2", "2", "2"],
        ["y, back to front", "2", "2", "2", "2"],
        ["z, feet to head", "5", "5", "8", "4"],
        ["x, left to right", "20", "20", "30", "8"],
        ["y, back to front", "16", "16", "16", "32"],
        ["z, feet to head", "12", "12", "12", "5"],
        ["x, left to right", "30", "40", "60", "16"],
        ["y, back to front", "32", "32", "32", "64"],
        ["z, feet to head", "60", "60", "96", "20"],
    ]
    words = " ".join(parsed.words)
    assert "8 × 32 × 5 voxels of 2 × 2 × 4 mm, that is 16 × 64 × 20 mm" in words
    assert "3 with a label; in the first fold 2 train and 1 validate" in words
    assert {"3: background, liver, lesion", "1: MR", "RAS (3 scans)", "python -m utils.plan"} <= set(parsed.words)
    assert not {"Please check", "Odd"} & set(parsed.words)


def test_questions_and_remarks_stand_before_the_plan(tmp_path: Path) -> None:
    a_plan = Plan(plan().sections, ("Is `flips` right?", "Is it MR?"), ("a: its spacing is odd.",))
    text = page(tmp_path, fingerprint(facts("a")), a_plan, [write_scan(tmp_path, "a")])
    order = ["Please check", "Is <code>flips</code> right?", "Is it MR?", ">Odd<", "a: its spacing is odd.", "The plan"]
    assert sorted(order, key=text.index) == order


def test_a_class_without_a_name_or_a_scan_is_said_to_be_so(tmp_path: Path) -> None:
    labels = ("background", "label 1", "label 2")
    all_facts = fingerprint(facts("a"), labels=labels, named=False, modalities=None)
    parsed = Page(page(tmp_path, all_facts, plan(), [write_scan(tmp_path, "a")]))
    assert {"3: background, label 1, label 2 (nothing names them)", "1"} <= set(parsed.words)
    assert parsed.tables[2][3] == ["label 2", "2", "0 of 1", "–", "–", "–", "–"]


def test_the_ct_window_tells_how_many_labelled_voxels_lie_in_it(tmp_path: Path) -> None:
    text = page(tmp_path, fingerprint(facts("a")), plan(ct=True), [write_scan(tmp_path, "a")])
    assert "The values go from 0 to 200. 50.0% of the labelled voxels lie from 50 to 150." in text


def test_names_are_escaped_and_in_one_line(tmp_path: Path) -> None:
    name = f"a\n{NASTY}"
    scan = Scan(name, *[getattr(write_scan(tmp_path), part) for part in ("image", "label")])
    labels = ("background", name)
    a_plan = Plan(
        (Section(name, (Choice({"model_name": name, **plan().settings}, f"`{NASTY}` {name}"),)),), (name,), (name,)
    )
    all_facts = fingerprint(facts(scan.name), labels=labels, modalities=(name,))
    text = page(tmp_path, all_facts, a_plan, [scan], **{name: name})
    parsed = Page(text)
    assert not parsed.tags & {"script", "link", "iframe", "object", "embed"}
    shown_name = f"a {NASTY}"
    assert parsed.words.count(shown_name) >= 5
    assert parsed.tables[0][1] == ["model_name", shown_name, f"{NASTY} {shown_name}"]
    assert parsed.tables[1][2][0] == shown_name
    assert all(
        re.match("data:image/(webp|svg[+]xml);base64,", target) and '"' not in target for target in parsed.targets
    )
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in text


def test_backquotes_without_a_partner_stay() -> None:
    assert with_code("a ` b") == "a ` b"
    assert with_code("`a` < `b`") == "<code>a</code> &lt; <code>b</code>"


def test_the_same_scans_give_the_same_bytes(tmp_path: Path) -> None:
    scans = [write_scan(tmp_path, name) for name in ("a", "b")]
    all_facts = fingerprint(facts("a"), facts("b"))
    assert page(tmp_path / "1", all_facts, plan(), scans) == page(tmp_path / "2", all_facts, plan(), scans[::-1])


def pictures(text: str) -> list[np.ndarray]:
    found = re.findall("data:image/webp;base64,([A-Za-z0-9+/=]+)", text)
    return [np.asarray(Image.open(BytesIO(base64.b64decode(each)))) for each in found]


@pytest.mark.parametrize("codes", ["LPS", "SAR", "PIL"])
def test_scans_are_turned_before_they_are_shown(codes: str, tmp_path: Path) -> None:
    all_facts = fingerprint(facts("a"))
    (upright,) = pictures(page(tmp_path / "1", all_facts, plan(), [write_scan(tmp_path / "1", "a")]))
    (turned,) = pictures(page(tmp_path / "2", all_facts, plan(), [write_scan(tmp_path / "2", "a", codes)]))
    assert upright.std() > 10
    np.testing.assert_array_equal(turned, upright)


def test_each_channel_has_its_row_of_pictures_and_its_histogram(tmp_path: Path) -> None:
    (one,) = pictures(page(tmp_path, fingerprint(facts("a")), plan(), [write_scan(tmp_path, "a")]))
    all_facts = fingerprint(facts("a", channels=3), modalities=("T1", "T2", "FLAIR"))
    text = page(tmp_path, all_facts, plan(), [write_scan(tmp_path, "a", channels=3)])
    (three,) = pictures(text)
    rows = (three.shape[0] - 50) / (one.shape[0] - 50)  # a row of the channel and one of labels; 50 for the titles
    assert rows == pytest.approx(4 / 2, abs=0.01)
    assert {f"Intensities, channel {number}: {name}" for number, name in enumerate(("T1", "T2", "FLAIR"))} <= set(
        Page(text).words
    )


def test_of_many_channels_the_first_few_are_shown(tmp_path: Path) -> None:
    all_facts = fingerprint(facts("a", channels=40), modalities=None)
    text = page(tmp_path, all_facts, plan(), [write_scan(tmp_path, "a", channels=40)])
    assert "Channels that aren't shown: 36." in text
    assert [word for word in Page(text).words if word.startswith("Intensities, ")][-1] == "Intensities, channel 3"
    assert len(text) < 600_000


def test_a_scan_that_cannot_be_read_leaves_the_old_page(tmp_path: Path) -> None:
    scan = write_scan(tmp_path, "a")
    scan.image[0].write_bytes(b"no scan")
    (tmp_path / "plan.html").write_text("old")
    with pytest.raises(InputError, match=re.escape(str(scan.image[0]))):
        write_page(tmp_path / "plan.html", fingerprint(facts("a")), plan(), [scan], {})
    assert (tmp_path / "plan.html").read_text() == "old"


def test_scans_from_the_smallest_to_the_largest_are_shown() -> None:
    sizes = {"g": 10, "a": 70, "c": 20, "e": 30, "b": 60, "f": 40, "d": 50}
    scans = [facts(name, shape=(size, 10, 10)) for name, size in sizes.items()]
    scans.append(facts("unlabelled", (), shape=(90, 10, 10)))
    assert [(scan.name, rank) for rank, scan in shown(fingerprint(*scans))] == [
        *[("g", "the smallest of 7"), ("e", "number 3 of 7 by size"), ("d", "number 5 of 7 by size")],
        ("a", "the largest of 7"),
    ]
    assert [scan.name for _, scan in shown(fingerprint(facts("a"), facts("b")))] == ["a", "b"]
    assert [rank for rank, _ in shown(fingerprint(facts("a")))] == ["the only one"]
    assert [scan.name for _, scan in shown(fingerprint(facts("a", ())))] == ["a"]


def test_the_window_is_centred_on_the_labels_and_inside_the_scan() -> None:
    mask = np.zeros((10, 10, 10), bool)
    mask[2:4, 5, 9] = True
    # x: 4 voxels around 3; y: 20 voxels around a scan of 10; z: 2 voxels around 9.5, moved inside
    assert planned_window(mask, (1.0, 2.0, 4.0), (4.0, 40.0, 8.0)) == [(1, 5), (-5, 15), (8, 10)]


def test_the_window_without_labels_is_in_the_middle() -> None:
    assert planned_window(np.zeros((10, 4, 6), bool), (1.0, 1.0, 1.0), (4.0, 4.0, 4.0)) == [(3, 7), (0, 4), (1, 5)]


def test_a_window_between_two_structures_moves_to_the_nearer_one() -> None:
    mask = np.zeros((100, 5, 5), bool)
    mask[10:30, 2, 2] = mask[80:84, 2, 2] = True  # centre 47; the nearest labelled voxel is 29
    x, _, _ = planned_window(mask, (1.0, 1.0, 1.0), (9.0, 5.0, 5.0))
    assert x == (25, 34)


def test_the_window_is_drawn_at_scale_over_the_labelled_slices() -> None:
    image, label = np.zeros((20, 16, 12)), np.zeros((20, 16, 12), np.int16)
    label[12:16, 4:8, 3:9] = 1
    label[13, 4:8, 3:9] = 0  # fullest planes: x 12, y 4, z 3
    figure = scan_picture({"CT": (image, (0.0, 1.0))}, label, ("background", "liver"), SPACING, (16.0, 64.0, 20.0))
    plain, labelled = figure.axes[:3], figure.axes[3:]
    assert [panel.get_ylabel() for panel in figure.axes[::3]] == ["CT", "labels"]
    assert not any(isinstance(patch, Rectangle) for panel in plain for patch in panel.patches)
    frames = [patch for panel in labelled for patch in panel.patches if isinstance(patch, Rectangle)]
    steps = [(2.0, 2.0), (2.0, 5.0), (2.0, 5.0)]  # of a slice's columns and rows
    edges = [(frame.get_width() * x, frame.get_height() * y) for frame, (x, y) in zip(frames, steps, strict=True)]
    assert edges == [(16, 64), (16, 20), (64, 20)]  # mm; axial x and y, coronal x and z, sagittal y and z
    # x: 8 voxels around 14, seen from the right: 20 - 18 = 2; y: 32 around the scan's 16; z: 4 around 6
    assert [(frame.get_x() + 0.5, frame.get_y() + 0.5) for frame in frames] == [(2, -8), (2, 4), (-8, 4)]
    assert [int(np.asarray(panel.images[1].get_array()).sum()) for panel in labelled] == [12, 18, 24]
    assert [panel.get_aspect() for panel in labelled] == [1, 2.5, 2.5]
    for panel, (low, high) in zip(labelled, [(-8.5, 23.5), (-0.5, 11.5), (-0.5, 11.5)], strict=True):
        assert panel.get_ylim() == (low, high)  # the window beyond the scan is seen too


def test_slices_are_those_within_the_window() -> None:
    image, label = np.zeros((60, 8, 8)), np.zeros((60, 8, 8), np.int16)
    label[0:2] = 1  # much, but outside
    label[30, 4, 4] = 2
    label[59] = 3
    figure = scan_picture({"MR": (image, (0.0, 1.0))}, label, ("background", *"abc"), (1.0, 1.0, 1.0), (9.0, 8.0, 8.0))
    assert np.unique(np.asarray(figure.axes[-1].images[1].get_array())).tolist() == [0, 2]


def test_shares_are_pooled_over_scans() -> None:
    air = (-1000.0,) * 101 + tuple(float(value) for value in range(1, 101))  # half is air, the rest goes up to 100
    edges = np.array([-1000.0, 0, 50, 100, 200])
    assert pooled_shares([UP_TO_200], edges) == pytest.approx([0, 0.25, 0.25, 0.5])
    shares = pooled_shares([air], edges)
    assert shares[0] == pytest.approx(0.5, abs=0.005)
    assert shares[1:] == pytest.approx([0.25, 0.25, 0], abs=0.005)
    assert pooled_shares([UP_TO_200, air], edges) == pytest.approx((pooled_shares([UP_TO_200], edges) + shares) / 2)
    assert pooled_shares([(5.0,) * 201], np.array([5.0, 6, 7])).tolist() == [1, 0]


def test_values_are_standardised_without_the_outermost_ones() -> None:
    steps = (-1e9, *UP_TO_200[1:-1], 1e9)
    std = 198 / math.sqrt(12)  # of numbers spread evenly from 1 to 199, whose mean is 100
    assert standardised((100.0, 100 + std, 100 - 2 * std), steps) == pytest.approx([0, 1, -2])
    assert standardised((7.0, 9.0), (7.0,) * 201).tolist() == [0, 2]


def test_the_histogram_is_as_high_as_the_labelled_voxels_and_shades_the_window() -> None:
    air = (-1000.0,) * 150 + tuple(float(value) for value in range(51))
    figure = histogram([air], [UP_TO_200], (-100.0, 500.0))
    (panel,) = figure.axes
    assert len(panel.patches) == 3
    window = panel.patches[-1]
    assert isinstance(window, Rectangle)
    assert (window.get_x(), window.get_width()) == (-100, 600)
    (low, high), (_, top) = panel.get_xlim(), panel.get_ylim()
    assert low < -1000
    assert high > 500
    width = (high - low) / 150  # of a bar: as many % of 200
    assert top == pytest.approx(1.1 * 100 * width / 200, rel=0.01)
    labels = panel.get_legend_handles_labels()[1]
    assert labels == ["all voxels", "labelled voxels", "CT window"]
    assert len(histogram([air], []).axes[0].patches) == 1


@pytest.mark.parametrize(("name", "ct"), [("abdomen_mr", False), ("head_neck_ct", True)])
def test_pages_of_real_scans_are_small(name: str, ct: bool, real_data: Path, tmp_path: Path) -> None:
    images = sorted((real_data / name / "imagesTr").glob("*.nii.gz"))[:4]
    scans = [Scan(path.name, (path,), real_data / name / "labelsTr" / path.name) for path in images]
    assert len(scans) == 4
    all_facts = fingerprint(*[facts(scan.name) for scan in scans], labels=("background", *"abcde"))
    text = page(tmp_path, all_facts, plan(ct=ct), scans)
    assert len(pictures(text)) == 4
    assert len(text) < 1_000_000

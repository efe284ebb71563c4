"""The report: which scans come first and why, what its cells say, and that it loads nothing from the network."""

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from tests.browser import Browser
from utils.evaluation.pictures import pixels, save_picture
from utils.evaluation.report import worst_first, write_report

ABSENT = {"volume_ml": 0.0, "mean": None, "std": None, "bounding_box_mm": None, "touches_edge": False}
Record = dict[str, Any]


def organ(volume: float, **more: Any) -> dict[str, Any]:
    if not volume:
        return {**ABSENT, **more}
    box = [[-10.4, 0.0, 20.0], [30.0, 40.0, 55.0]]
    return {"volume_ml": volume, "mean": 101.2, "std": 30.1, "bounding_box_mm": box, "touches_edge": False, **more}


def scan(name: str, **organs: Any) -> Record:
    organs = {organ_: organ(values) if isinstance(values, float) else values for organ_, values in organs.items()}
    place = {"source": f"imagesTs/{name}.nii.gz", "shape": [512, 512, 147], "spacing_mm": [0.8, 0.8, 3.0]}
    return {"scan": name, **place, "remarks": [], "organs": organs}


def ranking(records: list[Record]) -> list[tuple[str, list[str]]]:
    return [(record["scan"], reasons) for record, reasons in worst_first(records)]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    save_picture(pixels(Figure(figsize=(1, 1))), tmp_path / "picture.png")
    return tmp_path / "picture.png"


def report(folder: Path, records: list[Record], picture: Path, facts: Mapping[str, str] | None = None) -> Path:
    path = folder / "report.html"
    write_report(path, records, {record["scan"]: picture for record in records}, facts or {})
    return path


def test_a_scans_remarks_are_listed_with_it(tmp_path: Path, picture: Path) -> None:
    remark = "scan: is MR, but the network knows the intensities of CT."
    path = report(tmp_path, [{**scan("a", liver=1.0), "remarks": [remark]}, scan("b", liver=1.0)], picture)
    assert path.read_text().count(f"<li>{remark}</li>") == 1


class Page(HTMLParser):
    """The cells of each table by row, all other text, and the addresses on the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.words: list[str] = []
        self.targets: list[str] = []
        self.tags: set[str] = set()
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.targets += [
            value or "" for name, value in attributes if name in ("src", "href", "srcset", "action", "data", "poster")
        ]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.tables[-1][-1][-1] += data
        elif data.strip():
            self.words.append(data.strip())


def test_labelled_scans_come_first_the_lowest_mean_dice_on_top() -> None:
    records = [
        scan("unlabelled", liver=1500.0, pancreas=80.0),
        scan("good", liver=organ(1500, dice=0.9), pancreas=organ(80, dice=0.8)),
        scan("bad", liver=organ(1500, dice=0.95), pancreas=organ(80, dice=0.41)),
        scan("lost", liver=organ(1500, dice=None), pancreas=organ(0, dice=0.0)),
        scan("empty", liver=organ(0, dice=None), pancreas=organ(0, dice=None)),
    ]
    assert ranking(records)[:4] == [
        ("lost", ["mean Dice 0.00", "lowest Dice: pancreas 0.00 (not found)"]),
        ("bad", ["mean Dice 0.68", "lowest Dice: pancreas 0.41"]),
        ("good", ["mean Dice 0.85", "lowest Dice: pancreas 0.80"]),
        ("empty", ["no organ is in the label or the prediction"]),
    ]
    assert ranking(records)[4][0] == "unlabelled"


def test_a_scan_that_lacks_an_organ_most_scans_have_comes_first() -> None:
    records = [scan(f"s{number}", liver=1500.0 + number, spleen=200.0 + number) for number in range(5)]
    records.append(scan("lost", liver=1502.0, spleen=0.0))
    assert ranking(records)[0] == ("lost", ["spleen not found, though 5 of 6 scans have it"])


def test_an_organ_that_half_of_the_scans_lack_is_missing_in_none() -> None:
    records = [scan(f"s{number}", liver=1500.0, gallbladder=30.0 * (number % 2)) for number in range(4)]
    assert [name for name, _ in ranking(records)] == ["s0", "s1", "s2", "s3"]
    assert {reason for _, reasons in ranking(records) for reason in reasons} == {
        "no organ is missing, or far from its median volume"
    }


def test_volumes_are_judged_by_their_distance_from_the_median() -> None:
    # median 1500; deviations 100, 50, 0, 50, 1700, their median 50; 1700 / (1.4826 · 50) = 22.9, 100 / 74.13 = 1.3
    volumes = {"a": 1400.0, "b": 1450.0, "c": 1500.0, "d": 1550.0, "huge": 3200.0}
    records = [scan(name, liver=volume) for name, volume in volumes.items()]
    assert [name for name, _ in ranking(records)] == ["huge", "a", "b", "d", "c"]
    assert ranking(records)[0][1] == ["liver volume 3.2 l is far from the median 1.5 l"]
    assert ranking(records)[1][1] == ["no organ is missing, or far from its median volume"]


@pytest.mark.parametrize(("volume", "far"), [(359.0, False), (360.0, True)])  # 100 + 3.5 · 1.4826 · 50 = 359.455
def test_far_begins_at_three_and_a_half_spreads(volume: float, far: bool) -> None:
    volumes = [50.0, 60.0, 100.0, 150.0, volume]  # median 100; deviations 50, 40, 0, 50, 259: their median is 50
    records = [scan(f"s{number}", spleen=each) for number, each in enumerate(volumes)]
    assert ranking(records)[0] == (
        "s4",
        [f"spleen volume {volume:.0f} ml is far from the median 100 ml"]
        if far
        else ["no organ is missing, or far from its median volume"],
    )


def test_equal_volumes_are_spread_by_their_mean_deviation() -> None:
    # median 10, median deviation 0, mean deviation 2: 10 / (1.2533 · 2) = 3.99
    records = [scan(f"s{number}", spleen=volume) for number, volume in enumerate([10.0, 10.0, 20.0, 10.0, 10.0])]
    records[2]["organs"]["spleen"]["touches_edge"] = True
    assert ranking(records)[0] == (
        "s2",
        ["spleen volume 20 ml is far from the median 10 ml, and it touches the edge of the scan"],
    )


def test_three_scans_are_too_few_to_compare(tmp_path: Path, picture: Path) -> None:
    records = [scan("a", liver=1500.0), scan("b", liver=9000.0), scan("c", liver=0.0)]
    assert ranking(records) == [("a", []), ("b", []), ("c", [])]
    assert "fewer than 4 are too few to compare" in report(tmp_path, records, picture).read_text()


def test_the_summary_has_means_over_scans_and_names_both_grids(tmp_path: Path, picture: Path) -> None:
    first = {"dice": 0.8, "hd95_mm": 4.0, "nsd": 0.9, "dice_network_grid": 0.9}
    second = {"dice": 0.0, "hd95_mm": None, "nsd": 0.0, "dice_network_grid": 0.0}
    absent = dict.fromkeys(first)
    records = [
        scan("a", liver=organ(1000, **first), spleen=organ(200, **first)),
        scan("b", liver=organ(0, **second), spleen=organ(0, **absent)),
        scan("c", liver=1200.0, spleen=0.0),
    ]
    page = Page(report(tmp_path, records, picture).read_text())
    summary, *scans = page.tables
    assert summary == [
        [
            *("organ", "found in", "mean volume (ml)", "Dice, scan's own grid", "Dice, network's grid"),
            *("HD95 (mm), scan's own grid", "NSD, scan's own grid"),
        ],
        ["liver", "2 of 3", "1100.0", "0.400", "0.450", "4.0", "0.450"],
        ["spleen", "1 of 3", "200.0", "0.800", "0.900", "4.0", "0.900"],
        ["mean over scans", "", "", "0.400", "0.450", "4.0", "0.450"],  # scans: Dice 0.8 and 0
    ]
    worst, _, unlabelled = scans
    assert worst[2] == ["liver", "not found", "–", "0.000", "0.000", "undefined", "0.000", "–", "–", "–"]
    assert worst[3][3:7] == ["absent"] * 4
    assert unlabelled[2] == ["liver", "1200.0", "101 ± 30", "−10…30", "0…40", "20…55"]
    assert "Dice by organ, on the scan's own grid" in page.words


def test_without_any_label_there_are_volumes_alone(tmp_path: Path, picture: Path) -> None:
    records = [scan("a", liver=0.0, spleen=0.0), scan("b", liver=0.0, spleen=0.0)]
    page = Page(report(tmp_path, records, picture).read_text())
    assert page.tables[0] == [
        ["organ", "found in", "mean volume (ml)"],
        *[[o, "0 of 2", "–"] for o in records[0]["organs"]],
    ]
    assert "Volume by organ" in page.words
    assert not any("Dice" in word for word in page.words)


def test_all_text_is_escaped(tmp_path: Path, picture: Path) -> None:
    nasty = "<script>alert(1)</script>\"'&"
    records = [{**scan(nasty), "organs": {nasty: organ(20.0, dice=0.5)}}]
    text = report(tmp_path, records, picture, {nasty: nasty}).read_text()
    page = Page(text)
    assert "script" not in page.tags
    assert nasty in page.words
    assert page.tables[1][2][0] == nasty


@pytest.mark.filterwarnings("error")
def test_names_of_any_kind_break_no_table(tmp_path: Path, picture: Path) -> None:
    names = {"a\nb\tc": "a b c", "x" * 300: "x" * 300, "m\udcff": "m\\udcff", "\u202eabc\0": "abc", "شعب": "شعب"}
    organs = {name: organ(20.0, dice=0.5) for name in names}
    records = [{**scan(name), "source": f"in/{name}.nii", "organs": organs} for name in names]
    page = Page(report(tmp_path, records, picture, {"command": "test.py 'a\nb'"}).read_text())
    assert [row[0] for row in page.tables[0][1:-1]] == list(names.values())
    for table in page.tables[1:]:
        assert [row[0] for row in table[2:]] == list(names.values())
    assert set(names.values()) <= set(page.words)
    assert "test.py 'a b'" in page.words


def test_a_report_that_cannot_be_drawn_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(FileNotFoundError):
        write_report(path, [scan("a", liver=1.0)], {"a": tmp_path / "none.png"}, {})
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    assert path.read_text() == "old"


def browse(address: str, folder: Path) -> tuple[str, list[dict[str, Any]]]:
    """Open a page in Chromium: its DOM once it is loaded, and the browser's log of network events."""
    flags = (
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # what the browser wants for itself stays here
        *(f"--user-data-dir={folder / 'profile'}", f"--log-net-log={folder / 'net.json'}"),
        *("--virtual-time-budget=2000", "--dump-dom"),
    )
    folder.mkdir()
    program = shutil.which("chromium")
    assert program is not None
    done = subprocess.run([program, *flags, address], capture_output=True, text=True, timeout=60, check=True)
    log = json.loads((folder / "net.json").read_text())
    return done.stdout, log["events"]


def requested(events: list[dict[str, Any]]) -> set[str]:
    """Addresses on the network that the page asked for. What the browser asks for by itself has no origin."""
    started = (event["params"] for event in events if "initiator" in event.get("params", {}))
    asked = {each["url"] for each in started if each["initiator"] != "not an origin"}
    return {address for address in asked if re.match("(http|ws)s?:", address)}


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium in PATH: nothing to open the report with")
def test_a_browser_shows_the_report_and_asks_the_network_for_nothing(tmp_path: Path, picture: Path) -> None:
    records = [
        scan("img <1>", liver=organ(1523.4, dice=0.953), spleen=organ(0, dice=None)),
        scan("img <2>", liver=organ(1400.0, dice=0.5, touches_edge=True), spleen=organ(210.3, dice=0.9)),
    ]
    path = report(tmp_path, records, picture, {"weights": "https://example.invalid/model.pt"})
    dom, events = browse(path.as_uri(), tmp_path / "report")
    page = Page(dom)
    assert [word for word in page.words if word.startswith(("img", "mean Dice", "lowest Dice", "imagesTs"))] == [
        *("img <2>", "imagesTs/img <2>.nii.gz, 512 × 512 × 147 voxels of 0.8 × 0.8 × 3 mm"),
        *("mean Dice 0.70", "lowest Dice: liver 0.50"),
        *("img <1>", "imagesTs/img <1>.nii.gz, 512 × 512 × 147 voxels of 0.8 × 0.8 × 3 mm"),
        *("mean Dice 0.95", "lowest Dice: liver 0.95"),
    ]
    _, second, first = page.tables
    assert second[2:] == [
        ["liver touches the edge", "1400.0", "101 ± 30", "0.500", "−10…30", "0…40", "20…55"],
        ["spleen", "210.3", "101 ± 30", "0.900", "−10…30", "0…40", "20…55"],
    ]
    assert first[2:] == [
        ["liver", "1523.4", "101 ± 30", "0.953", "−10…30", "0…40", "20…55"],
        ["spleen", "not found", "–", "absent", "–", "–", "–"],
    ]

    assert len(page.targets) == 4  # two box plots, two scans
    assert all(target.startswith(("data:image/png;base64,", "data:image/svg+xml;base64,")) for target in page.targets)
    assert base64.b64decode(page.targets[-1].partition(",")[2]) == picture.read_bytes()
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in dom
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "video", "audio"}
    assert not re.search(r"url\(|@import|@font-face", dom)
    assert requested(events) == set()

    # that the log would show a request: the same browser, a page that makes one (nobody listens on the port)
    control = tmp_path / "control.html"
    control.write_text('<img src="http://127.0.0.1:9/picture.png">')
    assert "http://127.0.0.1:9/picture.png" in requested(browse(control.as_uri(), tmp_path / "control")[1])


def test_a_phone_in_the_dark_shows_all_of_the_report(tmp_path: Path, picture: Path, tab: Browser) -> None:
    records = [scan("a_name_without_any_space_" * 5, liver=organ(1523.4, dice=0.95), spleen=organ(200.0, dice=0.9))]
    tab.show(390, 844, dark=True)
    tab.open(report(tmp_path, records, picture).as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    assert tab.screenshot()[2, 2].max() < 60
    assert tab.evaluate(
        "[...document.images].every((one) => one.alt !== '' && one.getBoundingClientRect().right <= 390)"
    )
    # tables are wider: each is in a region that scrolls, which a keyboard reaches
    regions = tab.evaluate("document.querySelectorAll('.wide').length")
    assert regions == 2
    for _ in range(20):
        tab.press("Tab", 9)
        tab.evaluate("document.activeElement.reached = true")
    reached = "[...document.querySelectorAll('.wide')].filter((one) => one.reached)"
    assert tab.evaluate(f"{reached}.length") == regions
    tab.evaluate(f"{reached}[1].focus()")
    tab.press("ArrowRight", 39)
    tab.wait_for(f"{reached}[1].scrollLeft > 0")
    # the lines of the plots are light there
    tab.evaluate("document.querySelector('.plots img').scrollIntoView()")
    box = tab.evaluate("document.querySelector('.plots img').getBoundingClientRect().toJSON()")
    plot = tab.screenshot()[round(max(box["top"], 0)) : round(box["bottom"]), round(box["left"]) : round(box["right"])]
    assert plot.max() > 200
    assert (plot.max(axis=-1) < 60).mean() > 0.7


def test_scans_are_sorted_by_predicted_dice_where_a_cross_validation_tells(tmp_path: Path, picture: Path) -> None:
    def predicted(name: str, liver: float | None, spleen: float | None) -> Record:
        volumes = {"liver": 0.0 if liver is None else 1500.0, "spleen": 200.0}
        dice = {"liver": liver, "spleen": spleen}
        return scan(name, **{one: organ(volumes[one], predicted_dice=dice[one]) for one in volumes})

    records = [predicted("good", 0.9, 0.8), predicted("bad", 0.3, 0.9), predicted("nothing", None, None)]
    assert ranking(records) == [
        ("nothing", []),
        ("bad", ["mean predicted Dice 0.60", "lowest predicted Dice: liver 0.30"]),
        ("good", ["mean predicted Dice 0.85", "lowest predicted Dice: spleen 0.80"]),
    ]
    many = [*records, predicted("also good", 0.9, 0.9)]
    assert [name for name, _ in ranking(many)] == ["nothing", "bad", "good", "also good"]
    text = report(tmp_path, many, picture).read_text()
    assert "sorted by their predicted Dice, the lowest mean on top" in text
    assert "Dice, predicted" in text

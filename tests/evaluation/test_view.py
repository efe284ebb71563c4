"""The view: what of a scan its script holds, how large it gets, and what a browser shows of it."""

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from tests.browser import Browser
from utils.evaluation.view import coarser, first_factors, view_address, view_file, write_view, write_viewer

LABELS = ("background", "liver", "spleen", "</script><b>&\"'")
RAS = np.diag([2.0, 2.0, 3.0, 1.0])
LIVER, SPLEEN = (0x1F, 0x77, 0xB4), (0xAE, 0xC7, 0xE8)  # matplotlib's tab20


def content_of(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="ascii")
    content: dict[str, Any] = json.loads(text.removeprefix("showScan(").removesuffix(");\n"))
    return content


def volume(text: str) -> Any:
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))


def written(path: Path, image: np.ndarray, mask: np.ndarray, **more: Any) -> dict[str, Any]:
    settings = {"affine": RAS, "labels": LABELS, "window": (-100.0, 155.0), **more}
    label = settings.pop("label", None)
    write_view(path, image, {"prediction": mask, "label": label}, **settings)
    return content_of(path)


def test_a_small_scan_keeps_its_grid_and_its_intensities_within_the_window(tmp_path: Path) -> None:
    image = np.linspace(-200, 200, 24, dtype=np.float32).reshape(2, 3, 4)
    mask = np.zeros(image.shape, np.uint8)
    mask[1, 2, 3] = 2
    content = written(tmp_path / "a.scan.js", image, mask)
    shown = volume(content["image"])
    assert shown.get_data_dtype() == np.uint8
    assert np.abs(shown.get_fdata() - image.clip(-100, 155)).max() <= 0.5  # 255 steps of 1
    assert np.array_equal(shown.affine, RAS)
    assert np.array_equal(volume(content["prediction"]).get_fdata(), mask == 2)
    assert content["organs"] == [{"name": "spleen", "colour": "#aec7e8"}]
    assert content["label"] is None
    assert content["start"] == [1, 2, 3]
    assert content["shape"] == content["full_shape"] == [2, 3, 4]


def test_a_scan_is_turned_to_right_anterior_superior(tmp_path: Path) -> None:
    affine = np.array([[0.0, -2, 0, 90], [3, 0, 0, -60], [0, 0, 1, 10], [0, 0, 0, 1]])
    image = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    shown = volume(written(tmp_path / "a.scan.js", image, image > 5, affine=affine)["image"])
    assert np.array_equal(shown.get_fdata(), nib.as_closest_canonical(nib.Nifti1Image(image, affine)).get_fdata())
    for voxel in ((0, 0, 0), (1, 2, 3), (1, 0, 2)):
        (found,) = np.argwhere(shown.get_fdata() == image[voxel])
        assert np.allclose(shown.affine @ [*found, 1], affine @ [*voxel, 1])


def test_a_large_slice_is_halved_and_the_mask_takes_the_nearest_voxel(tmp_path: Path) -> None:
    image = np.zeros((257, 6, 2), np.float32)
    image[:2] = [[[8.0]], [[24.0]]]
    mask = np.zeros(image.shape, np.int16)
    mask[:2], mask[-1], mask[100] = 1, -1, 3  # an ignored voxel has a negative value
    content = written(tmp_path / "a.scan.js", image, mask, label=mask)
    shown, prediction = volume(content["image"]), volume(content["prediction"])
    assert shown.shape == prediction.shape == (129, 6, 2)
    assert shown.get_fdata()[:2, 0, 0].tolist() == [16.0, 0.0]
    assert np.allclose(shown.affine @ [0, 0, 0, 1], [1.0, 0.0, 0.0, 1.0])  # half a voxel of 2 mm
    assert np.flatnonzero(prediction.get_fdata()[:, 0, 0]).tolist() == [0, 50]
    assert prediction.get_fdata()[50, 0, 0] == 2  # the second of the labels that are there
    assert content["label"] == content["prediction"]


def test_voxel_sizes_are_where_niivue_reads_them(tmp_path: Path) -> None:
    affine = np.array([[0.0, -2, 0, 90], [3, 0, 0, -60], [0, 0, 5, 10], [0, 0, 0, 1]])
    image = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    content = written(tmp_path / "a.scan.js", image, (image > 5).astype(np.uint8), affine=affine)
    for name in ("image", "prediction"):
        assert np.allclose(volume(content[name]).header.get_zooms(), (2, 3, 5))


@pytest.mark.parametrize(
    ("shape", "spacing", "factors"),
    [
        ((512, 512, 200), (0.8, 0.8, 2.5), (2, 2, 1)),
        ((512, 200, 512), (0.8, 2.5, 0.8), (2, 1, 2)),
        ((256, 256, 256), (1.0, 1.0, 1.0), (1, 1, 1)),
        ((512, 512, 600), (0.8, 0.8, 1.0), (3, 2, 2)),
        ((1, 1, 1), (1.0, 1.0, 1.0), (1, 1, 1)),
    ],
)
def test_slices_have_at_most_256_voxels_along_an_axis(
    shape: tuple[int, ...], spacing: tuple[float, ...], factors: tuple[int, ...]
) -> None:
    assert first_factors(shape, spacing) == factors


def test_the_finest_axis_gets_coarser_first() -> None:
    assert coarser((1, 1, 1), (100, 100, 10), (1.0, 1.0, 5.0), 50_000) == (2, 1, 1)
    assert coarser((1, 1, 1), (3, 3, 3), (1.0, 1.0, 1.0), 0) == (3, 3, 3)


def test_a_script_never_gets_larger_than_it_may(tmp_path: Path, random: np.random.Generator) -> None:
    image = random.uniform(-100, 155, (64, 64, 32)).astype(np.float32)  # noise, which can't be packed
    mask = random.integers(0, 4, image.shape).astype(np.uint8)
    path = tmp_path / "a.scan.js"
    content = written(path, image, mask, most_bytes=50_000)
    assert path.stat().st_size <= 50_000
    assert np.prod(content["shape"]) > 15_000  # no smaller than it has to be: 1.25 bytes of 4 / 3 letters each
    assert volume(content["prediction"]).shape == tuple(content["shape"])


def test_an_image_of_one_intensity_and_an_empty_mask_have_a_view(tmp_path: Path) -> None:
    image = np.full((3, 3, 3), 7, np.float32)
    content = written(tmp_path / "a.scan.js", image, np.zeros(image.shape, np.uint8), window=(7.0, 7.0))
    assert volume(content["image"]).get_fdata().tolist() == image.tolist()
    assert content["organs"] == []
    assert content["start"] == [1, 1, 1]


def test_names_stay_text_in_the_page(tmp_path: Path) -> None:
    nasty = "</script><script>alert(1)</script>\"'&/\udcff\n"
    write_viewer(tmp_path, {nasty: view_file(tmp_path, "a%0A#?")})
    page = (tmp_path / "view.html").read_text()
    assert "alert(1)<" not in page
    assert page.count("<script") == 3
    assert "view/a%250A%23%3F.scan.js" in page
    assert f'"hash": "{view_address(nasty).removeprefix("view.html#")}"' in page


# ---- in a browser ----


def boxes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image, a prediction in which liver and spleen are boxes, and a label with a larger liver."""
    image = np.full((60, 50, 40), 50, np.float32)
    prediction = np.zeros(image.shape, np.uint8)
    prediction[5:25, 10:30, 10:30] = 1
    prediction[35:55, 10:30, 10:20] = 2
    label = prediction.copy()
    label[5:25, 10:45, 10:30] = 1
    return image, prediction, label


def coloured(tab: Browser, colour: tuple[int, int, int], pane: str = "prediction") -> int:
    """How many pixels of a canvas have about a colour."""
    box = tab.evaluate(f"document.querySelector('#{pane} canvas').getBoundingClientRect().toJSON()")
    left, top, right, bottom = (round(box[side]) for side in ("left", "top", "right", "bottom"))
    pixels = tab.screenshot()[top:bottom, left:right].astype(int)
    return int((np.abs(pixels - colour).max(axis=-1) <= 6).sum())


def test_a_browser_shows_the_masks_and_asks_the_network_for_nothing(tmp_path: Path, tab: Browser) -> None:
    image, prediction, label = boxes()
    names = ["img <1>", "img 2"]
    views = {name: view_file(tmp_path, name) for name in names}
    window = (0.0, 100.0)
    write_view(views[names[0]], image, {"prediction": prediction, "label": label}, RAS, LABELS, window)
    write_view(views[names[1]], image, {"prediction": prediction, "label": None}, RAS, LABELS, window)
    write_viewer(tmp_path, views)
    ready = "document.body.dataset.ready === 'yes'"

    def click(selector: str) -> None:
        tab.evaluate(f"document.querySelector(`{selector}`).click()")

    def slide(name: str, value: int) -> None:
        tab.evaluate(
            f"((slider) => {{ slider.value = {value}; slider.oninput(); }})(document.getElementById('{name}'))"
        )

    def text(selector: str) -> str:
        return str(tab.evaluate(f"document.querySelector(`{selector}`).textContent"))

    # the scan that the address names; its label is larger than its prediction
    tab.open(f"{tmp_path.as_uri()}/{view_address(names[0])}")
    tab.wait_for(ready)
    slide("opacity", 100)
    click("input[value=axial]")
    liver, spleen = coloured(tab, LIVER), coloured(tab, SPLEEN)
    assert liver > 2000
    assert spleen > 2000
    assert coloured(tab, LIVER, "label") / liver == pytest.approx(35 / 20, rel=0.1)
    assert text("#place") == "intensity 50, prediction: liver, label: liver"

    # half as opaque, the mask has half of the colour: the image is 127 of 255
    slide("opacity", 50)
    mixed = tuple((channel + 127) // 2 for channel in LIVER)
    assert coloured(tab, LIVER) == 0
    assert coloured(tab, (mixed[0], mixed[1], mixed[2])) > 0.9 * liver
    slide("opacity", 100)

    # another window makes the image black, and leaves the mask
    assert coloured(tab, (127, 127, 127)) > 2000
    slide("black", 60)
    assert coloured(tab, (127, 127, 127)) < 100  # of the letters at the edges
    assert coloured(tab, LIVER) == pytest.approx(liver, rel=0.05)
    slide("black", 0)

    # an organ that is switched off is gone, from both
    click("#organs label:nth-child(1) input")
    assert coloured(tab, LIVER) == coloured(tab, LIVER, "label") == 0
    assert coloured(tab, SPLEEN) == pytest.approx(spleen, rel=0.05)
    click("#all")
    assert coloured(tab, LIVER) == pytest.approx(liver, rel=0.05)

    # the wheel moves the slice of both, out of the spleen's ten
    slices = [text("label[class=slider]:nth-of-type(1) output")]
    box = tab.evaluate("document.querySelector('#prediction canvas').getBoundingClientRect().toJSON()")
    for _ in range(15):
        tab.scroll(box["left"] + box["width"] / 2, box["top"] + box["height"] / 2, 100)
    slices.append(text("label[class=slider]:nth-of-type(1) output"))
    assert slices[0] != slices[1]
    for pane in ("prediction", "label"):
        at = tab.evaluate(f"slicesOf(panes.{pane})[2]")
        assert slices[1] == f"{at + 1} / 40"
    # and a key moves it by one, from a slider that has the focus
    tab.evaluate("document.getElementById('slice2').focus()")
    tab.press("ArrowRight", 39)
    assert tab.evaluate("slicesOf(panes.prediction)[2]") == at + 1
    tab.evaluate("moveTo([10, 20, 25])")
    assert coloured(tab, SPLEEN) == 0
    assert coloured(tab, LIVER) > 2000

    # the volume: its faces are shaded
    click("input[value=volume]")
    shaded = tab.screenshot()
    click("#none")
    assert np.abs(shaded.astype(int) - tab.screenshot()).max(axis=-1).astype(bool).sum() > 5000
    click("#all")

    # one mask alone
    click("input[value=label]")
    assert tab.evaluate("document.getElementById('prediction').hidden && !document.getElementById('label').hidden")

    # the other scan, which has no label
    tab.evaluate("byId('scan').selectedIndex = 1, byId('scan').onchange()")
    tab.wait_for(f"document.title === 'View of img 2' && {ready}")
    assert tab.evaluate("document.getElementById('label').hidden && document.getElementById('masks').hidden")
    assert not tab.evaluate("document.getElementById('prediction').hidden")
    assert [organ.strip() for organ in tab.evaluate("[...document.querySelectorAll('#organs label')]"
            ".map((line) => line.textContent)")] == ["liver", "spleen"]  # fmt: skip
    assert tab.evaluate("[...document.getElementById('scan').options].map((each) => each.text)") == names

    assert tab.errors == []
    own = [address for address in tab.requests if not address.startswith("data:")]
    assert {address for address in own if not address.startswith(tmp_path.as_uri())} == set()
    assert len([address for address in own if address.endswith(".scan.js")]) == 2  # each scan once, when chosen
    # that the tab's requests are noted: a page that makes one (nobody listens on the port)
    control = tmp_path / "control.html"
    control.write_text('<img src="http://127.0.0.1:9/picture.png">')
    tab.open(control.as_uri())
    assert "http://127.0.0.1:9/picture.png" in tab.requests


def test_a_scan_without_its_script_says_so(tmp_path: Path, tab: Browser) -> None:
    write_viewer(tmp_path, {"a": view_file(tmp_path, "a")})
    tab.open((tmp_path / "view.html").as_uri())
    tab.wait_for("!document.getElementById('fault').hidden")
    words = 'view/a.scan.js can\'t be loaded. Is the folder "view" beside this page?'
    assert tab.evaluate("document.getElementById('fault').textContent") == words


def test_a_phone_has_the_view_above_its_controls(tmp_path: Path, tab: Browser) -> None:
    image, prediction, label = boxes()
    views = {"a": view_file(tmp_path, "a")}
    write_view(views["a"], image, {"prediction": prediction, "label": label}, RAS, LABELS, (0.0, 100.0))
    write_viewer(tmp_path, views)
    tab.show(390, 844, dark=True)
    tab.open((tmp_path / "view.html").as_uri())
    tab.wait_for("document.body.dataset.ready === 'yes'")
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    assert tab.screenshot()[2, 2].max() < 60  # dark
    tops = [tab.evaluate(f"document.querySelector('{one}').getBoundingClientRect().top") for one in ("canvas", "form")]
    assert tops[0] < 300 < tops[1]
    tab.evaluate("((slider) => { slider.value = 100; slider.oninput(); })(document.getElementById('opacity'))")
    assert coloured(tab, LIVER) > 2000


def test_a_ball_on_thick_slices_is_round_and_a_hundred_organs_hide_nothing(tmp_path: Path, tab: Browser) -> None:
    x, y, z = np.indices((60, 60, 24)) - np.array([30, 30, 12]).reshape(3, 1, 1, 1)
    mask = (x**2 + y**2 + (2.5 * z) ** 2 <= 22**2).astype(np.uint8)
    image = np.full(mask.shape, 50, np.float32)
    mask[0, :, 0], mask[0, :10, 1] = np.arange(2, 62), np.arange(62, 72)  # further organs, in a corner
    labels = ("background", *(f"organ {number}" for number in range(1, 72)))
    path = view_file(tmp_path, "a")
    write_view(path, image, {"prediction": mask, "label": None}, np.diag([1.0, 1, 2.5, 1]), labels, (0.0, 100.0))
    write_viewer(tmp_path, {"a": path})
    tab.open(f"{tmp_path.as_uri()}/{view_address('a')}")
    tab.wait_for("document.body.dataset.ready === 'yes'")
    tab.evaluate("((slider) => { slider.value = 100; slider.oninput(); })(document.getElementById('opacity'))")
    tab.evaluate("document.querySelector('input[value=coronal]').click()")
    box = tab.evaluate("document.querySelector('#prediction canvas').getBoundingClientRect().toJSON()")
    left, top, right, bottom = (round(box[side]) for side in ("left", "top", "right", "bottom"))
    pixels = tab.screenshot()[top:bottom, left:right].astype(int)
    rows, columns = np.nonzero(np.abs(pixels - LIVER).max(axis=-1) <= 6)
    assert np.ptp(columns) / np.ptp(rows) == pytest.approx(1, rel=0.15)  # in slices that fade at their ends
    assert (np.abs(pixels - 127).max(axis=-1) <= 2).sum() > 10_000  # the image beside it

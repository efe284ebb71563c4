"""Planning for folders as people have them, and for those that somebody made to do harm."""

import json
import os
import shlex
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from tests.io.series import AXIAL, write_series
from utils import plan
from utils.config.flags import parse_crossval, parse_train
from utils.planning import fingerprint_file
from utils.planning.facts import examine
from utils.planning.grid import VOXELS_ACROSS, Spacing, coarser_spacing
from utils.system.files import write_text

EDGE = 20
SHAPE = (EDGE,) * 3


@pytest.fixture(autouse=True)
def _no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages take seconds, and have tests of their own."""
    monkeypatch.setattr(plan, "write_page", lambda path, *_: write_text(path, "page"))


def volume(number: int, shape: tuple[int, ...] = SHAPE, air: float = 0) -> tuple[np.ndarray, np.ndarray]:
    """A scan, and its label map with the values 0, 1 and 2."""
    label = np.zeros(shape, np.uint8)
    label[3:9, 3:15] = 1
    label[11:17, 3:15] = 2
    image = np.random.default_rng(number).normal(100, 5, shape) + 40 * label
    image[0] = air
    return image.astype(np.int16), label


def save(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)


def make(folder: Path, images: str = "imagesTr", labels: str = "labelsTr", scans: int = 4, **more: object) -> Path:
    """A folder of scans."""
    for number in range(scans):
        image, label = volume(number, **more)  # type: ignore[arg-type]
        save(folder / images / f"scan_{number}.nii.gz", image)
        save(folder / labels / f"scan_{number}.nii.gz", label)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make(tmp_path / "data")


def planned(folder: Path, *flags: str) -> dict[str, object]:
    """The settings of ``main.py`` with the recipe that comes of it."""
    plan.run([f"--data_dir={folder}", *flags])
    return vars(parse_train([f"@{folder / 'plan.args'}"]))


def error(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """The one line that planning ends with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        plan.run(flags)
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


def lists(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("dataset_*.json"))


def describe(folder: Path, **content: object) -> None:
    (folder / "dataset.json").write_text(json.dumps(content))


def decathlon(folder: Path) -> None:
    for number in range(3):
        image, label = volume(number)
        save(folder / f"imagesTr/BRATS_{number}.nii.gz", np.stack([image, image + 1], -1))
        save(folder / f"labelsTr/BRATS_{number}.nii.gz", label)
        for part in ("imagesTr", "labelsTr"):  # as macOS packs them
            (folder / part / f"._BRATS_{number}.nii.gz").write_bytes(b"\0\5\26\7" * 20)
    training = [{"image": f"./imagesTr/BRATS_{n}.nii.gz", "label": f"./labelsTr/BRATS_{n}.nii.gz"} for n in range(3)]
    names = {"0": "background", "1": "edema", "2": "tumour"}
    describe(folder, modality={"0": "FLAIR", "1": "T1"}, labels=names, training=training)


def nnunet(folder: Path) -> None:
    for number in range(3):
        image, label = volume(number)
        save(folder / f"imagesTr/case_{number}_0000.nii.gz", image)
        save(folder / f"imagesTr/case_{number}_0001.nii.gz", image + 1)
        save(folder / f"labelsTr/case_{number}.nii.gz", label)
    labels = {"background": 0, "edema": 1, "tumour": 2}
    describe(folder, channel_names={"0": "FLAIR", "1": "T1"}, labels=labels, file_ending=".nii.gz", numTraining=3)


def converted(folder: Path, ending: str) -> None:
    make(folder)
    for path in list(folder.rglob("*.nii.gz")):
        image = sitk.ReadImage(str(path))
        for key in image.GetMetaDataKeys():
            image.EraseMetaData(key)
        sitk.WriteImage(image, str(path).replace(".nii.gz", ending))
        path.unlink()


def dicom(folder: Path) -> None:
    for number in range(3):
        image, label = volume(number, air=-1000)
        write_series(folder / f"imagesTr/scan_{number}", image, AXIAL)
        save(folder / f"labelsTr/scan_{number}.nii.gz", label, AXIAL)


LAYOUTS: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "decathlon": (decathlon, 2, "edema, tumour"),
    "nnU-Net": (nnunet, 2, "edema, tumour"),
    "BTCV": (partial(make, images="RawData/Training/img", labels="RawData/Training/label"), 1, "label 1, label 2"),
    "images and labels": (partial(make, images="images", labels="labels"), 1, "label 1, label 2"),
    "NRRD": (partial(converted, ending=".nrrd"), 1, "label 1, label 2"),
    "MetaImage": (partial(converted, ending=".mha"), 1, "label 1, label 2"),
    "DICOM": (dicom, 1, "label 1, label 2"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, tmp_path: Path) -> None:
    write, channels, names = LAYOUTS[layout]
    write(tmp_path)
    settings = planned(tmp_path)
    assert (settings["in_channels"], settings["out_channels"]) == (channels, 3)
    assert settings["intensity"] == ("ct" if layout == "DICOM" else "zscore")
    assert f"the background and {names}." in (tmp_path / "plan.args").read_text()


NAMES = [
    *("with space", 'it\'s "quoted"', "ümläut", "hash # tag", "$(touch pwned)", "a;b&c|d", "--overwrite", "@file"),
    *("new\nline", "tab\ttab", "<script>alert(1)<", "back\\slash", "x" * 250),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_any_name_is_found_again(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / name, scans=2)
    settings = planned(Path(name) if not name.startswith("-") else tmp_path / name)
    assert settings["data_dir"] == str(tmp_path / name)
    (tmp_path / "runs" / str(settings["logdir"])).mkdir(parents=True)  # which no file system refuses
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("name", [b"\xff", b"a\rb"])
def test_a_name_that_no_recipe_can_hold(name: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(tmp_path / os.fsdecode(name), scans=2)
    assert "no recipe can name it. Rename it." in error(capsys, f"--data_dir={folder}")
    assert lists(folder) == []


def test_the_recipe_works_in_another_folder(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = data.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(data.parent)
    plan.run(["--data_dir=data"])
    (data / "dataset_0.json").rename(elsewhere / "my list.json")
    plan.run(["--data_dir=data", "--json_list=elsewhere/my list.json"])
    monkeypatch.chdir(elsewhere)
    args = parse_train(["@../data/plan.args"])
    assert (args.data_dir, args.json_list) == (str(data), str(elsewhere / "my list.json"))
    assert args.logdir == "data_unetr"


OWN = """
from dataclasses import dataclass
from torch import nn
from networks.registry import NetworkConfig, register

@dataclass(frozen=True)
class MineConfig(NetworkConfig):
    pass

@register("mine", config=MineConfig, window_divisor=lambda config: (4, 4, 4))
class Mine(nn.Conv3d):
    def __init__(self, config: MineConfig) -> None:
        super().__init__(config.in_channels, config.out_channels, 3, padding=1)
"""


def test_a_network_from_a_file_is_the_one_that_trains(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = data.parent / "my net.py"
    file.write_text(OWN)
    monkeypatch.chdir(data.parent)
    settings = planned(data, "--model_name=my net.py")
    assert settings["model_name"] == str(file)
    assert settings["logdir"] == "data_my net"
    assert "# Its only size." in (data / "plan.args").read_text()


def test_another_fold(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--fold 4: 4 scans make 4 folds" in error(capsys, f"--data_dir={data}", "--fold=4")
    assert lists(data) == []
    plan.run([f"--data_dir={data}", "--fold=3"])
    command = capsys.readouterr().out.splitlines()[-1].removeprefix("train with: ")
    assert parse_train(shlex.split(command)[2:]).fold == 3
    assert "--fold 3 trains fold 3;" in " ".join((data / "plan.args").read_text().replace("#", "").split())


def test_a_scan_that_the_planned_spacing_leaves_nothing_of_ends_the_plan(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its 20 voxels of 0.09 mm are 1.8 mm long, and those of the other scans 1 mm each."""
    for part, voxels in zip(("imagesTr", "labelsTr"), volume(9), strict=True):
        save(data / part / "tiny.nii.gz", voxels, np.diag([0.09, 0.09, 0.09, 1]))
    with pytest.raises(SystemExit):
        plan.run([f"--data_dir={data}"])
    said = capsys.readouterr().err
    assert "1 fault in the data; nothing was started." in said
    assert "tiny.nii.gz: would have no more than one or two voxels of 1 × 1 × 1 mm along each axis" in said
    assert not (data / "plan.args").exists()
    assert lists(data) == []


def head_of(recipe: Path) -> str:
    return " ".join(recipe.read_text().replace("\n#", "").split())


def test_the_recipe_names_a_cross_validation_where_there_are_folds(tmp_path: Path) -> None:
    folder = make(tmp_path / "-dash", scans=2)
    plan.run([f"--data_dir={folder}"])
    words = head_of(folder / "plan.args")
    assert "--logdir=-dash_unetr_folds trains all folds." in words
    command = shlex.split(words[words.index("python -m utils.crossval") : words.index(" trains all")])
    assert parse_crossval(command[3:])[0].logdir == "-dash_unetr_folds"
    (folder / "dataset_1.json").unlink()
    plan.run([f"--data_dir={folder}"])
    words = head_of(folder / "plan.args")
    assert "trains fold 0. " in words
    assert "crossval" not in words


def test_lists_do_not_outlast_what_has_to_be_mended(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = data / "imagesTr/scan_1.nii.gz"
    sound = image.read_bytes()
    voxels = volume(1)[0].astype(np.float32)
    voxels[0, 0, 0] = np.nan
    save(image, voxels)
    with pytest.raises(SystemExit):
        plan.run([f"--data_dir={data}"])
    said = capsys.readouterr()
    assert "scan_1.nii.gz: has NaN" in said.err
    assert "folds" not in said.out
    assert lists(data) == []
    for part in ("imagesTr", "labelsTr"):
        (data / part / "scan_1.nii.gz").unlink()
    plan.run([f"--data_dir={data}"])
    assert len(lists(data)) == 3
    # lists of the user's own stay, whatever the scans are
    save(image, voxels)
    (data / "imagesTr/scan_0.nii.gz").write_bytes(sound[:100])
    with pytest.raises(SystemExit):
        plan.run([f"--data_dir={data}"])
    assert len(lists(data)) == 3


def test_values_without_end_are_not_all_listed(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (data / "labelsTr").iterdir():
        save(path, 900 * volume(0)[1].astype(np.int16))
    said = error(capsys, f"--data_dir={data}")
    assert "has the value 1 (label 1), the value 2 (label 2), the value 3 (label 3), " in said
    assert len(said) < 1000
    plan_list = {"training": [], "validation": []}  # type: dict[str, list[object]]
    for number in range(4):
        entry = {"image": f"imagesTr/scan_{number}.nii.gz", "label": f"labelsTr/scan_{number}.nii.gz"}
        plan_list["training" if number else "validation"].append(entry)
    (data / "mine.json").write_text(json.dumps(plan_list))
    said = error(capsys, f"--data_dir={data}", "--json_list=mine.json")
    assert "mine.json: label values that no scan has, although some have 1800: 1, 2, 3, 4, 5 and 1793 more." in said


FILES = ("plan.args", "plan.html", "fingerprint.json")


@pytest.mark.parametrize("name", [*FILES, *(f"{name}.part" for name in FILES)])
def test_links_are_replaced_and_not_followed(name: str, data: Path) -> None:
    victim = data.parent / "victim"
    victim.write_text("precious")
    (data / name).symlink_to(victim)
    plan.run([f"--data_dir={data}"])
    assert victim.read_text() == "precious"
    assert all((data / file).is_file() and not (data / file).is_symlink() for file in FILES)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000, b'{"format": 1}', None])
def test_a_fingerprint_that_is_none_is_passed_over(
    content: bytes | None, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = data / "fingerprint.json"
    os.mkfifo(path) if content is None else path.write_bytes(content)
    plan.run([f"--data_dir={data}"])
    (note,) = [line for line in capsys.readouterr().out.splitlines() if "damaged" in line]
    assert note.startswith(f"note: {path}: is damaged or of another version (")
    assert note.endswith("); all scans are read anew.")
    assert note.count(str(path)) == 1


def test_a_list_that_leads_nowhere(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "dataset_0.json").symlink_to(data / "nothing")
    assert "dataset_0.json: no such data list. Give --json_list" in error(capsys, f"--data_dir={data}")
    assert not (data / "nothing").exists()


def test_a_signal_keeps_what_was_read(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names: list[str] = []

    def interrupted(scan: fingerprint_file.Scan) -> object:
        names.append(scan.name)
        if len(names) == 3:
            time.sleep(0.3)  # until the first two are noted
            signal.raise_signal(signal.SIGINT)
        return examine(scan)

    def counted(scan: fingerprint_file.Scan) -> object:
        names.append(scan.name)
        return examine(scan)

    monkeypatch.setattr(fingerprint_file, "examine", interrupted)
    with pytest.raises(SystemExit) as ended:
        plan.run([f"--data_dir={data}", "--workers=1"])
    assert ended.value.code == 128 + signal.SIGINT
    assert capsys.readouterr().err == (
        "stopped by SIGINT; what has been read and timed is kept, and the same command goes on from there\n"
    )
    kept = {scan["facts"]["name"] for scan in json.loads((data / "fingerprint.json").read_text())["scans"]}
    assert len(kept) == 2
    names.clear()
    monkeypatch.setattr(fingerprint_file, "examine", counted)
    plan.run([f"--data_dir={data}"])
    assert set(names) == {f"scan_{number}" for number in range(4)} - kept


def test_a_window_beyond_a_flat_scan_covers_no_more_than_the_scan(tmp_path: Path) -> None:
    settings = planned(make(tmp_path, shape=(EDGE, EDGE, 1)))
    assert (settings["roi_x"], settings["roi_y"], settings["roi_z"]) == (16, 16, 16)
    # 16 of 20 along x and y, and all of the single slice; the first voxels along x are air
    assert "A window of 16 × 16 × 16 mm, 67% of the median scan" in (tmp_path / "plan.args").read_text()


def test_a_copied_folder_knows_its_scans(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan.run([f"--data_dir={data}"])
    shutil.copytree(data, data.parent / "copy", copy_function=shutil.copy2)
    monkeypatch.setattr(fingerprint_file, "examine", lambda scan: pytest.fail(f"{scan} is read again"))
    settings = planned(data.parent / "copy")
    assert settings["data_dir"] == str(data.parent / "copy")


def test_a_spacing_that_stops_short_says_why() -> None:
    native = Spacing((1.0, 1.0, 1.0), "")
    limit = f"; longer ones would leave the thinnest structure fewer than {VOXELS_ACROSS} voxels."
    # a window of 100,000 voxels in a scan of 8 million: at 1.5 mm it holds 4 %
    stopped = coarser_spacing(native, (200.0, 200.0, 200.0), 100_000, coarsest=1.5)
    assert stopped.reason.endswith(f"it holds 4%{limit}")
    free = coarser_spacing(native, (200.0, 200.0, 200.0), 100_000, coarsest=10.0)
    assert free.reason.endswith("it holds 25%.")

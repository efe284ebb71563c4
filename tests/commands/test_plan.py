"""From a folder of scans to a trained network: the command, and what it says where it can't."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from networks.registry import NetworkConfig
from tests.conftest import Run
from utils import plan
from utils.config.flags import parse_crossval, parse_train
from utils.config.messages import FIELD
from utils.planning import costs, fingerprint_file
from utils.planning.costs import StepCost

EDGE = 24
WINDOW = 32  # in patches of 16 voxels: 16 would leave a third of the scan out
HOURS = "--hours=0.05"
OUTPUTS = ("plan.args", "fingerprint.json", "plan.html")


def write_pair(folder: Path, name: str, values: tuple[int, ...] = (0, 1, 2), channels: int = 1) -> None:
    """A scan of noise in which each label is a box, brighter than those before it."""
    random = np.random.default_rng(len(name) + sum(map(ord, name)))
    label = np.zeros((EDGE,) * 3, np.uint8)
    for number, value in enumerate(values[1:]):
        label[4:20, 3 + 8 * number : 9 + 8 * number, 4:20] = value
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for channel in range(channels):
        image = (random.normal(100, 5, label.shape) + 40 * label).astype(np.float32)
        ending = f"_{channel:04d}" if channels > 1 else ""
        nib.save(nib.Nifti1Image(image, np.eye(4)), folder / "imagesTr" / f"{name}{ending}.nii.gz")
    nib.save(nib.Nifti1Image(label, np.eye(4)), folder / "labelsTr" / f"{name}.nii.gz")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six scans with two labels, in a folder whose name needs quotes."""
    folder = tmp_path / "my scans"
    for number in range(6):
        write_pair(folder, f"case_{number:02d}")
    return folder


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """The crops of each step that was measured since the list was last cleared; it takes 1 s for a million voxels."""
    monkeypatch.chdir(tmp_path)
    crops_of_steps: list[int] = []

    def measure(_: object, config: NetworkConfig, crops: int, lr: float, device: torch.device, amp: bool) -> StepCost:
        crops_of_steps.append(crops)
        return StepCost(1e-6 * crops * np.prod(config.img_size), 3e-7 * np.prod(config.img_size), amp)

    monkeypatch.setattr(costs, "measure_step", measure)
    return crops_of_steps


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages take seconds."""
    monkeypatch.setattr(plan, "write_page", lambda path, *_: path.write_text("page"))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The scans that were read since the list was last cleared."""
    names: list[str] = []
    examine = fingerprint_file.examine

    def counted(scan: fingerprint_file.Scan) -> object:
        names.append(scan.name)
        return examine(scan)

    monkeypatch.setattr(fingerprint_file, "examine", counted)
    return names


def outputs(data: Path) -> dict[str, bytes]:
    return {name: (data / name).read_bytes() for name in OUTPUTS}


def test_a_second_call_reads_and_times_nothing_and_writes_the_same(
    data: Path, measured: list[int], reads: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    call = [f"--data_dir={data}", HOURS, "--labels=background,left box,right box", "--workers=2"]
    plan.run(call)
    written = outputs(data)
    assert len(reads) == 6
    assert len(measured) > 0
    said = capsys.readouterr().out
    assert "6 labelled scans in 5 folds" in said
    assert f"train with: python main.py '@{data}/plan.args'" in said
    reads.clear()
    measured.clear()
    plan.run(call)
    assert (reads, measured) == ([], [])
    assert outputs(data) == written


def test_a_recipe_that_was_changed_by_hand_is_kept(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = [f"--data_dir={data}", HOURS]
    plan.run(call)
    recipe = data / "plan.args"
    planned = recipe.read_bytes()
    recipe.write_bytes(planned + b"--seed=7\n")
    plan.run(call)
    (kept,) = data.glob("plan.*.args")
    assert kept.read_bytes() == planned + b"--seed=7\n"
    assert recipe.read_bytes() == planned
    assert f"{recipe} was changed by hand, and is kept as {kept}" in capsys.readouterr().out


def test_the_plan_trains_and_the_network_is_as_planned(data: Path, run_main: Run) -> None:
    plan.run([f"--data_dir={data}", HOURS, "--labels=background,first,second", "--memory=4"])
    recipe = f"@{data / 'plan.args'}"
    args = parse_train([recipe])
    assert (args.in_channels, args.out_channels, args.intensity) == (1, 3, "zscore")
    assert (args.space_x, args.space_y, args.space_z) == (1.0, 1.0, 1.0)
    assert (args.roi_x, args.roi_y, args.roi_z) == (WINDOW,) * 3
    assert args.save_checkpoint
    crossval, for_each_fold = parse_crossval([recipe, "--folds", "0", "1"])
    assert crossval.data_dir == str(data)
    assert f"--max_epochs={args.max_epochs}" in for_each_fold
    run_main([recipe, "--max_epochs=1", "--workers=0"])
    content = torch.load(Path("runs", "my scans_unetr", "model_final.pt"), weights_only=True)
    assert content["labels"] == ["background", "first", "second"]
    assert list(content["preprocessing"]["roi"]) == [WINDOW] * 3
    assert content["preprocessing"]["intensity"] == "zscore"
    assert content["network"]["options"]["hidden_size"] == args.hidden_size


@pytest.mark.usefixtures("no_page")
def test_another_fold_is_named_where_it_trains(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan.run([f"--data_dir={data}", "--fold=1"])
    train = f"python main.py '@{data}/plan.args' --fold 1"
    assert f"train with: {train}\n" in capsys.readouterr().out
    assert f"# {train} trains fold 1" in (data / "plan.args").read_text().replace("\n#   ", " ")


@pytest.mark.usefixtures("no_page")
def test_names_that_were_wrong_can_be_given_again(data: Path) -> None:
    with pytest.raises(SystemExit):
        plan.run([f"--data_dir={data}", "--labels=background,one,two,three"])
    plan.run([f"--data_dir={data}", "--labels=background,one,two"])
    assert json.loads((data / "dataset_4.json").read_text())["labels"] == {"0": "background", "1": "one", "2": "two"}


@pytest.mark.usefixtures("no_page")
def test_names_can_be_given_when_the_plan_asks_for_them(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan.run([f"--data_dir={data}"])
    assert "Remove dataset_0.json … and plan again with --labels background,liver,…; or" in capsys.readouterr().out
    for path in data.glob("dataset_*.json"):
        path.unlink()
    plan.run([f"--data_dir={data}", "--labels=background,one,two"])
    assert "What are the labels called?" not in capsys.readouterr().out


@pytest.mark.usefixtures("no_page")
def test_scans_that_came_after_the_lists_are_named(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan.run([f"--data_dir={data}"])
    write_pair(data, "case_98")
    write_pair(data, "case_99")
    plan.run([f"--data_dir={data}"])
    (note,) = [line for line in capsys.readouterr().out.splitlines() if "no data list" in line]
    assert note == (
        f"note: labelled scans that no data list of {data} has: 2 (imagesTr/case_98.nii.gz and "
        "imagesTr/case_99.nii.gz). To take them in, remove all its lists and plan again, or write them anew with "
        f"`python -m utils.make_data_list --overwrite --data_dir '{data}'`. Give the labels' names again if no "
        "dataset.json has them."
    )
    plan.run([f"--data_dir={data}", "--json_list=dataset_1.json"])  # a list of the user's choice
    assert "no data list" not in capsys.readouterr().out


@pytest.mark.usefixtures("no_page")
def test_scans_are_read_once_though_a_list_is_wrong(data: Path, reads: list[str]) -> None:
    lists_of(data, modality={"0": "T1", "1": "T2"})
    reads.clear()
    for _ in range(2):
        with pytest.raises(SystemExit):
            plan.run([f"--data_dir={data}"])
    assert len(reads) == 6


def test_times_are_kept_when_the_hours_are_too_short(
    data: Path, measured: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    call = [f"--data_dir={data}", "--hours=0.0001"]
    with pytest.raises(SystemExit):
        plan.run(call)
    assert "Give --hours" in capsys.readouterr().err
    assert len(measured) > 0
    measured.clear()
    with pytest.raises(SystemExit):
        plan.run(call)
    assert measured == []


def lists_of(data: Path, **changes: object) -> None:
    """Data lists for the folder, the first of them changed."""
    plan.run([f"--data_dir={data}"])
    for name in OUTPUTS:
        (data / name).unlink()
    path = data / "dataset_0.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def of_unlike_channels(data: Path) -> None:
    for path in (data / "imagesTr").iterdir():
        path.rename(path.with_name(path.name.replace(".nii", "_0000.nii")))
    write_pair(data, "case_99", channels=2)


def two_channels_in_one_file(data: Path, which: int) -> None:
    image = np.zeros((EDGE, EDGE, EDGE, 2), np.float32)
    image[4:] = 1
    nib.save(nib.Nifti1Image(image, np.eye(4)), sorted((data / "imagesTr").iterdir())[which])


def without_labels(data: Path) -> None:
    for path in (data / "labelsTr").iterdir():
        path.unlink()


def empty(data: Path) -> None:
    for path in sorted(data.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def single(data: Path) -> None:
    for path in data.rglob("case_*"):
        if "case_00" not in path.name:
            path.unlink()


def list_of_one(data: Path) -> None:
    lists_of(data)
    path = data / "dataset_0.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "training": content["training"][:1], "validation": []}))


def named(data: Path, labels: dict[str, int]) -> None:
    (data / "dataset.json").write_text(json.dumps({"labels": labels, "channel_names": {"0": "T1"}}))


def unlabelled(data: Path) -> None:
    for path in (data / "labelsTr").iterdir():
        nib.save(nib.Nifti1Image(np.zeros((EDGE,) * 3, np.uint8), np.eye(4)), path)


def gap(data: Path) -> None:
    empty(data)
    for number in range(4):
        write_pair(data, f"case_{number}", (0, 1, 3))


Make = Callable[[Path], object]
SOUND: Make = lambda data: None  # noqa: E731
MANY = {"background": 0, "a": 1, "b": 2, "c": 3}
FAULTS: dict[str, tuple[Make, list[str], tuple[str, ...]]] = {
    "no such folder": (lambda data: data.rename(data.with_name("elsewhere")), [], ("--data_dir", "no such folder")),
    "an empty folder": (empty, [], ("--data_dir", "holds none of the known layouts")),
    "no pairs": (without_labels, [], ("--data_dir", "files have no partner")),
    "a single scan": (single, [], ("--data_dir", "has 1 labelled scan", "Add scans")),
    "a list without validation": (list_of_one, [], ("dataset_0.json", '"validation"')),
    "a list that is none": (lambda data: (data / "dataset_0.json").write_text("hello"), [], ("dataset_0.json", "JSON")),
    "no such list": (SOUND, ["--json_list=none.json"], ("none.json: no such data list. Give --json_list",)),
    "unlike channels": (of_unlike_channels, [], ("scans have unlike channels", "case_99_0001.nii.gz")),
    "unlike channels in the first file": (partial(two_channels_in_one_file, which=0), [], ("data_dir", "2 in case_0")),
    "unlike channels in the last file": (partial(two_channels_in_one_file, which=-1), [], ("2 in case_05",)),
    "fewer channels than the list has": (partial(lists_of, modality={"0": "T1", "1": "T2"}), [], ("json: ", "names 2")),
    "more names than labels": (SOUND, ["--labels=background,a,b,c"], ("--labels: none of the 6", "the value 3 (c)")),
    "fewer names than labels": (SOUND, ["--labels=background,a"], ("--labels: names 2 labels, but the files have",)),
    "empty names": (SOUND, ["--labels=background,,liver"], ("--labels", "must be names")),
    "names twice": (SOUND, ["--labels=background,liver,liver"], ("--labels", "has a name twice")),
    "a class that no scan has": (partial(named, labels=MANY), [], ("dataset.json: none of the 6", "the value 3 (c)")),
    "a value without a name": (partial(named, labels={"background": 0, "a": 1}), [], ("dataset.json: names 2 labels",)),
    "labels where there are lists": (lists_of, ["--labels=background,a,b"], (
        "--labels: ", "0.json is there already and names the labels otherwise (background, label 1 and label 2)")),
    "labels where lists name none": (partial(lists_of, labels={}), ["--labels=background,a,b"], (
        "dataset_0.json is there already and names no labels, and", "Remove these lists to have them written anew, or",
        'change "labels" in each of them.')),
    "a class that a list alone has": (partial(lists_of, labels=MANY), [], ("0.json: ", "no scan has: c (3)")),
    "nothing labelled": (unlabelled, [], ("none of the 6 label files has the value 1",)),
    "a gap among labels": (gap, [], ("none of the 4 label files has the value 2", "remap")),
    "too little memory": (SOUND, ["--memory=0.001"], ("--memory", "Give --memory")),
    "too little memory with hours": (SOUND, ["--memory=0.001", HOURS], ("--memory", "Give --memory")),
    "too few hours": (SOUND, ["--hours=0.0001"], ("--hours", "Give --hours")),
    "hours that are none": (SOUND, ["--hours=0"], ("--hours", "must be above 0")),
    "no such network": (SOUND, ["--model_name=nonet"], ("--model_name must be one of ",)),
    "a recipe that is a folder": (lambda data: (data / "plan.args").mkdir(), [], ("plan.args: is a folder",)),
    "a page that is a folder": (lambda data: (data / "plan.html").mkdir(), [], ("plan.html: is a folder",)),
}  # fmt: skip


@pytest.mark.usefixtures("no_page")
@pytest.mark.parametrize("name", FAULTS)
def test_bad_input_is_one_line(name: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare, flags, parts = FAULTS[name]
    prepare(data)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        plan.run([f"--data_dir={data}", *flags])
    said = capsys.readouterr().err
    assert ended.value.code in (1, 2)
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert not FIELD.search(said)
    for part in parts:
        assert part in said
    assert not (data / "plan.args").is_file()


def test_all_damaged_scans_are_listed(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 3):
        (data / "imagesTr" / f"case_{number:02d}.nii.gz").write_bytes(b"hello")
    with pytest.raises(SystemExit):
        plan.run([f"--data_dir={data}"])
    said = capsys.readouterr().err
    assert "2 faults in the data" in said
    assert all(name in said for name in ("case_01.nii.gz", "case_03.nii.gz"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_takes_no_files(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data.chmod(0o500)
    try:
        with pytest.raises(SystemExit):
            plan.run([f"--data_dir={data}"])
    finally:
        data.chmod(0o700)
    assert capsys.readouterr().err.startswith("error: --data_dir: can't write to ")


@pytest.mark.usefixtures("no_page")
def test_regions_of_nnunet_are_planned_and_trained(data: Path, run_main: Run) -> None:
    labels = {"background": 0, "whole tumor": [1, 2], "tumor core": 2, "ignore": 3}
    (data / "dataset.json").write_text(json.dumps({"labels": labels, "regions_class_order": [1, 2]}))
    plan.run([f"--data_dir={data}", HOURS, "--memory=4"])
    recipe = f"@{data / 'plan.args'}"
    assert parse_train([recipe]).out_channels == 2
    assert "1 image channel; whole tumor, tumor core." in " ".join((data / "plan.args").read_text().split())
    run_main([recipe, "--max_epochs=1", "--workers=0"])
    content = torch.load(Path("runs", "my scans_unetr", "model_final.pt"), weights_only=True)
    assert content["labels"] == ["background", "label 1", "tumor core"]
    assert content["regions"] == {"whole tumor": [1, 2], "tumor core": [2]}
    assert content["regions_class_order"] == [1, 2]
    assert content["network"]["options"]["out_channels"] == 2

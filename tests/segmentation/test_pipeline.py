"""``test.py`` on scans: what it writes, what it says, and that one broken scan doesn't take the others along."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch

from tests.conftest import REPOSITORY, TINY, Run
from tests.io.test_dicom import write_series
from tests.training.test_training import train
from utils.phantom import LABELS
from utils.segmentation import pipeline
from utils.segmentation.pipeline import _lesser_components
from utils.system.errors import WriteError


@pytest.fixture(scope="module")
def trained(run_main: Run, phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose network finds some organs."""
    folder = tmp_path_factory.mktemp("trained")
    before = Path.cwd()
    os.chdir(folder)
    try:
        flags = ("--max_epochs=40", "--val_every=40", "--optim_lr=3e-2", "--warmup_epochs=1", "--noamp")
        more = ("--feature_size=4", "--norm_name=batch", "--RandFlipd_prob=0", "--RandRotate90d_prob=0")
        train(run_main, phantoms, "run", *flags, *more)
    finally:
        os.chdir(before)
    return folder / "runs" / "run"


@pytest.fixture
def segment(run_test: Run, trained: Path, in_tmp: Path) -> Any:
    """Segment with the trained network into ``out``."""

    def run(*flags: str) -> Path:
        run_test([f"--pretrained_dir={trained}", "--pretrained_model_name=model.pt", "--output_dir=out", *flags])
        return Path("out")

    return run


def scan_of(phantoms: Path, number: int = 7) -> Path:
    return phantoms / "imagesTr" / f"img{number:04d}.nii.gz"


def load(path: Path | str) -> Any:
    return nib.load(path)


def voxels(path: Path) -> np.ndarray:
    return np.asarray(load(path).dataobj)


def failure(run: Any, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        run()
    assert stop.value.code == 1
    return capsys.readouterr().err


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch, function: str) -> Iterator[None]:
    """A function of :mod:`utils.segmentation.pipeline` fails, as on a full disk; what it is to write isn't there."""

    def full(*_: object) -> None:
        raise WriteError("out: can't be written (No space left on device)")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, function, full)
        yield


def test_a_new_scan_gets_a_mask_on_its_own_grid_and_all_that_belongs_to_it(
    segment: Any, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = segment(f"--input={scan_of(phantoms)}")
    image, mask = (load(path) for path in (scan_of(phantoms), out / "img0007.nii.gz"))
    assert mask.shape == image.shape
    assert np.array_equal(mask.affine, image.affine)
    assert mask.get_data_dtype() == np.uint8
    found = voxels(out / "img0007.nii.gz")
    assert found.max() > 0
    screen = capsys.readouterr().out
    assert "volumes in ml" in screen
    with open(out / "measurements.csv", newline="") as file:
        rows = {row["organ"]: row for row in csv.DictReader(file)}
    assert list(rows) == list(LABELS[1:])
    voxel_ml = abs(np.linalg.det(image.affine)) / 1000
    for label, organ in enumerate(LABELS[1:], start=1):
        assert float(rows[organ]["volume_ml"]) == pytest.approx((found == label).sum() * voxel_ml)
        assert rows[organ]["dice"] == ""
    assert {path.name for path in out.iterdir()} == {
        *("img0007.nii.gz", "measurements.csv", "measurements.json", "report.html", "records"),
        *("labels_slicer.ctbl", "labels_itksnap.txt"),
    }
    assert not list(out.rglob("*.part"))


def test_labels_are_scored_on_both_grids(segment: Any, phantoms: Path, trained: Path) -> None:
    out = segment(f"--data_dir={phantoms}", "--split=validation")
    label = voxels(phantoms / "labelsTr" / "label0005.nii.gz")
    mask = voxels(out / "img0005.nii.gz")
    content = json.loads((out / "measurements.json").read_text())
    organs = content["scans"][0]["organs"]
    both, of_mask, of_label = ((mask == 6) & (label == 6)).sum(), (mask == 6).sum(), (label == 6).sum()
    assert organs["liver"]["dice"] == pytest.approx(2 * both / (of_mask + of_label))
    assert organs["liver"]["hd95_mm"] > 0
    validated = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])["dice"]
    scores = json.loads((out / "scores.json").read_text())
    assert scores["mean"] == pytest.approx(validated["mean"], abs=1e-6)  # training's validation, on the network's grid
    assert organs["liver"]["dice_network_grid"] == scores["scans"][0]["organs"]["liver"]


def test_a_scan_without_a_label_in_a_data_list_needs_none(
    segment: Any, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((phantoms / "dataset_0.json").read_text())
    Path("list.json").write_text(json.dumps({**content, "test": [content["test"][0]["image"]]}))
    segment(f"--data_dir={phantoms}", "--json_list=list.json", "--split=test")
    screen = capsys.readouterr().out
    assert "volumes in ml" in screen
    assert "Dice" not in screen


def test_a_dicom_series_gives_the_mask_of_the_same_scan_as_nifti(
    segment: Any, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = load(scan_of(phantoms))
    affine = np.diag([-10.0, -10.0, 12.0, 1.0])  # DICOM's own way: columns run to the Left, rows to Posterior
    affine[:3, 3] = (120, 90, -300)
    values = np.asarray(image.dataobj).astype(np.int16)
    nib.save(nib.Nifti1Image(values, affine), "series.nii.gz")
    datasets = write_series(Path("scans/ct"), values, affine)
    assert datasets
    out = segment("--input", "series.nii.gz", "scans")
    first, second = out / "series.nii.gz", out / "ct.nii.gz"
    assert np.array_equal(voxels(first), voxels(second))
    assert np.allclose(load(first).affine, load(second).affine)
    assert voxels(first).max() > 0
    segments = sitk.ReadImage(str(out / "ct.dcm"))
    assert segments.GetSize()[:2] == values.shape[:2]
    assert "ct" in capsys.readouterr().out


def test_flags_that_choose_what_is_written(segment: Any, phantoms: Path) -> None:
    whole = voxels(segment(f"--input={scan_of(phantoms)}") / "img0007.nii.gz")
    shutil.rmtree("out")
    some = ["--organs=liver,spleen", "--one_file_per_organ", "--save_probabilities", "--largest_component=liver"]
    out = segment(f"--input={scan_of(phantoms)}", *some)
    mask = voxels(out / "img0007.nii.gz")
    assert set(np.unique(mask)) <= {0, 1, 6}
    assert np.array_equal(mask == 1, whole == 1)
    assert ((mask == 6) <= (whole == 6)).all()
    assert np.array_equal(voxels(out / "img0007" / "liver.nii.gz"), mask == 6)
    assert {path.name for path in (out / "img0007").iterdir()} == {"liver.nii.gz", "spleen.nii.gz"}
    probabilities = load(out / "img0007_probabilities.nii.gz").get_fdata()
    assert probabilities.shape == (*whole.shape, 14)
    assert probabilities.sum(-1) == pytest.approx(np.ones(whole.shape), abs=1e-3)
    clear = np.sort(probabilities, -1)[..., -1] - np.sort(probabilities, -1)[..., -2] > 1e-3
    assert np.array_equal(probabilities.argmax(-1)[clear], whole[clear])
    table = (out / "labels_slicer.ctbl").read_text()
    assert "1 spleen" in table
    assert "pancreas" not in table


def test_several_networks_and_mirrors(
    segment: Any, run_test: Run, trained: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three times the same network is that network, also as TorchScript; a pattern finds files."""
    alone = voxels(segment(f"--input={scan_of(phantoms)}", "--noamp") / "img0007.nii.gz")
    Path("weights").mkdir()
    shutil.copy(trained / "model.pt", "weights/fold0.pt")
    shutil.copy(trained / "model.pt", "weights/fold1.pt")
    command = [
        sys.executable,
        "-m",
        "utils.export",
        str(trained / "model.pt"),
        "--output",
        str(Path.cwd() / "weights/s.ts"),
    ]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    flags = [f"--input={scan_of(phantoms)}", "--pretrained_dir=weights", "--noamp"]
    names = ["--pretrained_model_name", "fold*.pt", "s.ts"]
    capsys.readouterr()
    run_test([*flags, *names, "--saved_checkpoint=any", "--output_dir=several"])
    assert "s.ts (TorchScript), which computes in float32" in capsys.readouterr().out
    assert (voxels(Path("several/img0007.nii.gz")) == alone).mean() > 0.999
    content = torch.load("weights/fold0.pt", weights_only=True)
    assert content["flips"] == "none"
    torch.save({**content, "flips": "anatomical"}, "weights/sided.pt")
    run_test([*flags, "--pretrained_model_name=sided.pt", "--tta", "--output_dir=mirrored"])
    assert not np.array_equal(voxels(Path("mirrored/img0007.nii.gz")), alone)
    message = failure(lambda: run_test([*flags, "--pretrained_model_name=fold0.pt", "--tta", "--output_dir=o"]), capsys)
    assert message == (
        "error: --tta: crops were not flipped in training, and mirrored ones are strange to it. Leave it out.\n"
    )
    both = ["--pretrained_model_name", "fold0.pt", "sided.pt"]
    message = failure(lambda: run_test([*flags, *both, "--tta", "--output_dir=o"]), capsys)
    assert message.startswith("error: weights/sided.pt: --flips none contradicts its anatomical.")
    assert not Path("o").exists()
    message = failure(lambda: run_test([*flags, "--pretrained_model_name=no*.pt", "--output_dir=o"]), capsys)
    assert message == "error: --pretrained_model_name no*.pt: no file in weights has such a name.\n"


def test_networks_of_different_preprocessing_are_refused(
    run_test: Run, trained: Path, phantoms: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(trained / "model.pt", weights_only=True)
    torch.save(content, "a.pt")
    content["preprocessing"]["a_max"] = 300.0
    torch.save(content, "b.pt")
    flags = ["--pretrained_dir=.", "--pretrained_model_name", "a.pt", "b.pt", "--output_dir=out"]
    message = failure(lambda: run_test([f"--input={scan_of(phantoms)}", *flags]), capsys)
    assert message.startswith("error: b.pt: --a_max 250 contradicts its 300")
    assert message.count("\n") == 1


def test_a_broken_scan_is_told_and_the_rest_goes_on(
    segment: Any, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("in").mkdir()
    for number in (5, 7):
        shutil.copy(scan_of(phantoms, number), "in")
    Path("in/img0006.nii.gz").write_text("a text")
    nan = voxels(scan_of(phantoms)).astype(np.float32)
    nan[1, 2, 3] = np.nan
    nib.save(nib.Nifti1Image(nan, np.eye(4)), "in/nan.nii.gz")
    nib.save(nib.Nifti1Image(np.full((9, 9, 9), 3, np.int16), np.eye(4)), "in/flat.nii.gz")
    message = failure(lambda: segment("--input=in"), capsys)
    assert message.startswith("error: 3 failed and 2 done; launch the same command again for the rest")
    for words in (
        "in/img0006.nii.gz: is no volume",
        "in/nan.nii.gz: has NaN or infinite voxels (1)",
        "in/flat.nii.gz: every voxel is 3",
    ):
        assert words in message
    assert (Path("out/img0005.nii.gz").exists(), Path("out/img0007.nii.gz").exists()) == (True, True)
    assert "in/nan.nii.gz" in Path("out/report.html").read_text()


def test_finished_scans_are_not_done_again_unless_something_changed(
    segment: Any, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("in").mkdir()
    for number in (5, 7):
        shutil.copy2(scan_of(phantoms, number), "in")

    def dates() -> dict[str, int]:
        return {name: (Path("out") / f"{name}.nii.gz").stat().st_mtime_ns for name in ("img0005", "img0007")}

    segment("--input=in/img0005.nii.gz")
    capsys.readouterr()
    segment("--input=in")
    assert "1 of 2 scans were finished before; --overwrite does them again" in capsys.readouterr().out
    first = dates()
    segment("--input=in")
    assert dates() == first
    segment("--input=in", "--overwrite")
    second = dates()
    assert all(second[name] > first[name] for name in first)
    os.utime("in/img0007.nii.gz")  # it was written anew
    segment("--input=in")
    third = dates()
    assert (third["img0005"] == second["img0005"], third["img0007"] > second["img0007"]) == (True, True)
    segment("--input=in", "--infer_overlap=0.25")
    assert all(value > third[name] for name, value in dates().items())

    nib.save(nib.Nifti1Pair(voxels(scan_of(phantoms)), np.eye(4)), "pair.img")  # and pair.hdr
    segment("--input=pair.hdr")
    before = Path("out/pair.nii.gz").stat().st_mtime_ns
    os.utime("pair.img")
    segment("--input=pair.hdr")
    assert Path("out/pair.nii.gz").stat().st_mtime_ns > before


def test_no_scan_is_replaced_and_no_mask_taken_for_a_scan(
    segment: Any, run_test: Run, trained: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("in").mkdir()
    shutil.copy(scan_of(phantoms), "in/img0007.nii.gz")
    before = Path("in/img0007.nii.gz").read_bytes()
    network = [f"--pretrained_dir={trained}", "--pretrained_model_name=model.pt"]
    message = failure(lambda: run_test([*network, "--input=in/img0007.nii.gz", "--output_dir=in"]), capsys)
    assert "in/img0007.nii.gz would be replaced by a mask. Give another folder." in message
    message = failure(lambda: run_test([*network, "--input=in", "--output_dir=in/out"]), capsys)
    assert "--output_dir in/out: lies in --input in, so that masks would be taken for scans the next time" in message
    assert Path("in/img0007.nii.gz").read_bytes() == before

    out = segment("--input=in/img0007.nii.gz")
    mask = (out / "img0007.nii.gz").read_bytes()
    Path("other").mkdir()
    shutil.copy(scan_of(phantoms, 5), "other/img0007.nii.gz")
    message = failure(lambda: segment("--input=other/img0007.nii.gz"), capsys)
    assert "and would be replaced by that of" in message
    assert (out / "img0007.nii.gz").read_bytes() == mask
    segment("--input=other/img0007.nii.gz", "--overwrite")
    assert (out / "img0007.nii.gz").read_bytes() != mask


def test_what_other_programs_wrote_stays(segment: Any, phantoms: Path) -> None:
    theirs = [Path("out/img0007/liver.nii.gz"), Path("out/img0007.dcm"), Path("out/img0007_probabilities.nii.gz")]
    theirs[0].parent.mkdir(parents=True)
    for path in theirs:
        path.write_text("theirs")
    segment(f"--input={scan_of(phantoms)}")
    assert [path.read_text() for path in theirs] == ["theirs"] * 3


def test_a_mask_of_others_or_that_somebody_changed_is_not_replaced(
    segment: Any, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan, mask = f"--input={scan_of(phantoms)}", Path("out/img0007.nii.gz")
    mask.parent.mkdir()
    mask.write_text("theirs")
    message = failure(lambda: segment(scan), capsys)
    assert "out/img0007.nii.gz: isn't from test.py, and would be replaced. Give another --output_dir, or" in message
    assert mask.read_text() == "theirs"
    segment(scan, "--overwrite")

    image = load(mask)
    changed = voxels(mask).copy()
    changed[0, 0, 0] = 5
    nib.save(nib.Nifti1Image(changed, image.affine, image.header), mask)
    capsys.readouterr()
    segment(scan)
    assert "note: out/img0007.nii.gz: was changed after it was written; tables and report" in capsys.readouterr().out
    message = failure(lambda: segment(scan, "--nsd_mm=3"), capsys)
    assert "out/img0007.nii.gz: was changed after it was written, and would be replaced. Give another" in message
    assert np.array_equal(voxels(mask), changed)
    segment(scan, "--nsd_mm=3", "--overwrite")
    assert not np.array_equal(voxels(mask), changed)


def test_what_was_begun_and_not_finished_is_done_again(
    segment: Any, phantoms: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after ``kill -9`` between the mask and the record."""
    scan = f"--input={scan_of(phantoms)}"
    with full_disk(monkeypatch, "save_picture"):
        failure(lambda: segment(scan), capsys)
    assert Path("out/img0007.nii.gz").exists()
    segment(scan)
    assert "were finished before" not in capsys.readouterr().out


def test_masks_of_organs_do_not_lie_among_the_scans(
    segment: Any, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("ct").mkdir()
    shutil.copy(scan_of(phantoms), "ct/ct.nii.gz")
    message = failure(lambda: segment("--input=ct", "--output_dir=.", "--one_file_per_organ"), capsys)
    assert "--output_dir .: ct/spleen.nii.gz would lie in --input, and be taken for a scan the next time" in message
    assert [path.name for path in Path("ct").iterdir()] == ["ct.nii.gz"]


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_a_scan_without_room_in_memory_is_told_and_the_rest_goes_on(
    segment: Any, phantoms: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    original = pipeline._predict

    def too_large(prepared: pipeline.Prepared, *others: Any) -> torch.Tensor:
        if prepared.scan.name == "img0005":
            raise error
        return original(prepared, *others)

    monkeypatch.setattr(pipeline, "_predict", too_large)
    scans = [str(scan_of(phantoms, number)) for number in (5, 7)]
    message = failure(lambda: segment("--input", *scans), capsys)
    assert "img0005.nii.gz: this machine has no memory for it. Free some, or take a larger machine." in message
    assert "Traceback" not in message
    assert [path.name for path in Path("out").glob("*.nii.gz")] == ["img0007.nii.gz"]
    assert Path("out/report.html").exists()


def test_what_a_network_gives_that_is_not_finite_is_no_empty_mask(
    run_test: Run, trained: Path, phantoms: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(trained / "model.pt", weights_only=True)
    content["state_dict"]["out.conv.conv.bias"][3] = torch.nan
    torch.save(content, "nan.pt")
    flags = ["--pretrained_dir=.", "--pretrained_model_name", "nan.pt", "--output_dir=out"]
    message = failure(lambda: run_test([f"--input={scan_of(phantoms)}", *flags]), capsys)
    assert "img0007.nii.gz: the network's output isn't finite. Give --noamp, or weights that are sound." in message
    assert not Path("out/img0007.nii.gz").exists()


def test_two_programs_do_not_write_into_one_folder(
    segment: Any, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("out/records").mkdir(parents=True)
    program = "import fcntl, sys; f = open('out/records/.lock', 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdout.readline()
        message = failure(lambda: segment(f"--input={scan_of(phantoms)}"), capsys)
        other.stdin.close()
    assert (
        message
        == "error: --output_dir out: another program is writing there. Wait for its end, or give another folder.\n"
    )
    assert not list(Path("out").glob("*.nii.gz"))


def test_results_of_two_scans_are_two_files(segment: Any, phantoms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("in").mkdir()
    for name in ("a", "a_probabilities"):
        shutil.copy(scan_of(phantoms), f"in/{name}.nii.gz")
    message = failure(lambda: segment("--input=in", "--save_probabilities"), capsys)
    assert "out/a_probabilities.nii.gz: would be written for a and for a_probabilities. Rename one" in message


def test_scans_of_one_file_name_in_a_list_are_told_apart(segment: Any, phantoms: Path) -> None:
    for number in (5, 7):
        Path(f"data/case{number}").mkdir(parents=True)
        shutil.copy(scan_of(phantoms, number), f"data/case{number}/ct.nii.gz")
    entries = [{"image": f"case{number}/ct.nii.gz"} for number in (5, 7)]
    Path("data/dataset_0.json").write_text(json.dumps({"test": entries}))
    out = segment("--data_dir=data", "--split=test", "--one_file_per_organ")
    assert voxels(out / "case7_ct.nii.gz").any()
    assert (out / "case5_ct/liver.nii.gz").is_file()
    scans = json.loads((out / "measurements.json").read_text())["scans"]
    assert [record["scan"] for record in scans] == ["case5/ct", "case7/ct"]


def test_where_nothing_can_be_segmented_only_that_is_said(segment: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    message = failure(lambda: segment("--input", "gone", "empty"), capsys)
    gone, empty = message.splitlines()
    assert gone == "error: gone: can't be read (No such file or directory). Mend --input."
    assert empty.strip().startswith("--input empty: holds no scan")
    assert "0" not in capsys.readouterr().out  # no scan is counted before


def test_what_is_gone_or_shows_nothing_is_told_and_the_rest_goes_on(
    segment: Any, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("data").mkdir()
    for number in (5, 7):
        shutil.copy(scan_of(phantoms, number), "data")
    air = np.random.default_rng(0).integers(-2000, -1000, (20, 20, 20)).astype(np.int16)
    nib.save(nib.Nifti1Image(air, np.eye(4)), "data/air.nii.gz")
    label = Path("data/label.nii.gz")
    shutil.copy(str(scan_of(phantoms, 5)).replace("imagesTr/img", "labelsTr/label"), label)
    entries = [{"image": "img0005.nii.gz", "label": label.name}, {"image": "img0007.nii.gz"}]
    Path("data/dataset_0.json").write_text(json.dumps({"test": entries}))
    segment("--data_dir=data", "--split=test")
    assert Path("out/scores.csv").exists()
    label.unlink()
    Path("data/dataset_0.json").write_text(json.dumps({"test": [*entries, {"image": "air.nii.gz"}]}))
    message = failure(lambda: segment("--data_dir=data", "--split=test"), capsys)
    assert "error: 2 failed and 1 done" in message
    assert "data/label.nii.gz: can't be read (No such file or directory)" in message
    assert "data/air.nii.gz: has voxels of -2000 to -1001, of which none is inside the network's window of" in message
    assert not Path("out/scores.csv").exists()  # which were of a scan that isn't among these


def test_the_largest_component_counts_corners_as_neighbours() -> None:
    organ = np.zeros((6, 6, 6), bool)
    organ[:2, :2, :2] = organ[2, 2, 2] = True  # nine voxels, of which one touches the others at a corner
    organ[4:, 4:, 4:] = True  # eight
    lesser = _lesser_components(organ)
    assert lesser.sum() == 8
    assert lesser[4:, 4:, 4:].all()


def test_nothing_of_an_earlier_command_stays(segment: Any, phantoms: Path) -> None:
    out = segment(f"--input={scan_of(phantoms)}", "--one_file_per_organ", "--save_probabilities")
    assert (out / "img0007_probabilities.nii.gz").exists()
    segment(f"--input={scan_of(phantoms)}")
    assert not (out / "img0007_probabilities.nii.gz").exists()
    assert not (out / "img0007").exists()


def test_what_is_gone_of_a_finished_scan_is_made_again(segment: Any, phantoms: Path) -> None:
    flags = (f"--input={scan_of(phantoms)}", "--one_file_per_organ", "--save_probabilities")
    out = segment(*flags)
    files = {path: voxels(path) for path in [*out.glob("img0007/*"), out / "img0007_probabilities.nii.gz"]}
    assert len(files) == 14
    shutil.rmtree(out / "img0007")
    segment(*flags)
    (out / "img0007_probabilities.nii.gz").unlink()
    segment(*flags)
    assert all(np.array_equal(voxels(path), before) for path, before in files.items())


def test_nothing_of_an_unfinished_command_stays(
    segment: Any, phantoms: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after ``kill -9`` before the record, twice, the second time of another command."""
    scan = f"--input={scan_of(phantoms)}"
    with full_disk(monkeypatch, "save_picture"):
        failure(lambda: segment(scan, "--one_file_per_organ", "--organs=liver,spleen"), capsys)
        assert {path.name for path in Path("out/img0007").iterdir()} == {"liver.nii.gz", "spleen.nii.gz"}
        failure(lambda: segment(scan, "--one_file_per_organ", "--organs=liver"), capsys)
        assert {path.name for path in Path("out/img0007").iterdir()} == {"liver.nii.gz"}
    segment(scan)
    assert not Path("out/img0007").exists()


def test_what_can_not_be_removed_is_told(segment: Any, phantoms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = segment(f"--input={scan_of(phantoms)}", "--save_probabilities")
    probabilities = out / "img0007_probabilities.nii.gz"
    probabilities.unlink()
    probabilities.mkdir()
    message = failure(lambda: segment(f"--input={scan_of(phantoms)}"), capsys)
    assert "out/img0007_probabilities.nii.gz: can't be removed (" in message


def test_a_file_of_somebody_else_stays_where_a_command_did_not_come_to_it(
    segment: Any, phantoms: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("out").mkdir()
    other = Path("out/img0007_probabilities.nii.gz")
    other.write_text("somebody else's")
    with full_disk(monkeypatch, "write_probabilities"):
        failure(lambda: segment(f"--input={scan_of(phantoms)}", "--save_probabilities"), capsys)
    segment(f"--input={scan_of(phantoms)}")
    assert other.read_text() == "somebody else's"


def test_where_a_folder_of_organs_can_not_be_the_other_scans_go_on(
    segment: Any, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("out").mkdir()
    Path("out/img0005").write_text("a file")
    scans = [str(scan_of(phantoms, number)) for number in (5, 7)]
    for _ in range(2):
        message = failure(lambda: segment("--input", *scans, "--one_file_per_organ"), capsys)
        assert message.startswith("error: 1 failed and 1 done;")
        assert "out/img0005: can't be made as a folder (File exists)" in message
    assert Path("out/img0007/liver.nii.gz").exists()
    assert Path("out/measurements.csv").exists()


def test_a_signal_keeps_what_is_finished_and_the_same_command_goes_on(
    segment: Any, phantoms: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original, calls = pipeline._predict, 0

    def stopped_in_the_second_scan(*args: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            signal.raise_signal(signal.SIGTERM)
        return original(*args)

    monkeypatch.setattr(pipeline, "_predict", stopped_in_the_second_scan)
    with pytest.raises(SystemExit) as stop:
        segment(f"--data_dir={phantoms}", "--split=training")
    assert stop.value.code == 143
    line = "stopped by SIGTERM; finished scans are kept, and the same command goes on with the rest\n"
    assert capsys.readouterr().err == line
    assert sorted(path.name for path in Path("out").glob("*.nii.gz")) == ["img0001.nii.gz"]
    assert not list(Path("out").rglob("*.part"))
    segment(f"--data_dir={phantoms}", "--split=training")
    assert "1 of 4 scans were finished before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--input=nothing"], "nothing"),
        (["--organs=lever"], "--organs lever: not among the network's organs: spleen, "),
        (["--largest_component=lever,liver"], "--largest_component lever: not among the network's organs: spleen, "),
        (["--output_dir=a_file/out"], "--output_dir: can't write to a_file/out"),
    ],
)
def test_wrong_flags_are_one_line(
    segment: Any, phantoms: Path, flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a_file").write_text("")
    message = failure(lambda: segment(f"--input={scan_of(phantoms)}", *flags), capsys)
    assert words in message
    assert "Traceback" not in message


def test_input_needs_a_place_for_the_masks(run_test: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run_test(["--input=scan.nii.gz"])
    assert stop.value.code == 2
    assert "--input needs --output_dir" in capsys.readouterr().err


def test_two_processes_do_each_scan_once(trained: Path, phantoms: Path, in_tmp: Path) -> None:
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
        *(str(REPOSITORY / "test.py"), "--distributed", "--device=cpu", f"--data_dir={phantoms}", "--split=training"),
        *(f"--pretrained_dir={trained}", "--pretrained_model_name=model.pt", "--output_dir=out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = ["img0001", "img0002", "img0003", "img0004"]
    assert [scan["scan"] for scan in json.loads(Path("out/measurements.json").read_text())["scans"]] == names
    assert done.stdout.count("Dice on the scan's own grid") == 1


def test_a_window_larger_than_the_scan_is_padded(segment: Any, phantoms: Path) -> None:
    small = load(scan_of(phantoms)).slicer[8:18, 8:18, 8:12]
    nib.save(small, "small.nii.gz")
    out = segment("--input=small.nii.gz")
    assert voxels(out / "small.nii.gz").shape == small.shape


def test_published_weights_take_label_names_from_a_data_list(
    run_test: Run, trained: Path, phantoms: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(torch.load(trained / "model.pt", weights_only=True)["state_dict"], "bare.pth")
    flags = [f"--input={scan_of(phantoms)}", "--pretrained_dir=.", "--pretrained_model_name=bare.pth", *TINY]
    flags += ["--feature_size=4", "--norm_name=batch"]

    def organs(*more: str) -> Any:
        run_test([*flags, "--output_dir=out", *more])
        return json.loads(Path("out/measurements.json").read_text())["scans"][0]["organs"]

    assert "label 1" in organs()
    named = f"--json_list={REPOSITORY / 'dataset/btcv/dataset_0.json'}"
    first = organs(named)  # into the same folder, where the scan was finished by other names
    assert "spleen" in first
    assert organs(named, "--a_max=5000") != first  # weights that don't know their preprocessing have it from flags

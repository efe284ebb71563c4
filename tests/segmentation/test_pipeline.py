"""``test.py`` on scans: what it writes and prints, and that one broken scan doesn't stop the others."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
import torch

from tests.conftest import REPOSITORY, TINY, Run
from tests.io.labels import outlines, write_rtstruct
from tests.io.series import only_series
from tests.segmentation.conftest import failure, load, scan_of, series, voxels
from utils.checkpoints.postprocessing import Postprocessing
from utils.data.preprocessing import Preprocessing
from utils.distributed.process import Process
from utils.distributed.rendezvous import RankInfo
from utils.inference.confidence import Certainty
from utils.inference.sliding_window import Ensemble, Predictor
from utils.io.dicom_series import read_series
from utils.io.rtstruct import RtStruct
from utils.io.scan import Scan
from utils.phantom import LABELS
from utils.segmentation import pipeline
from utils.segmentation.job import SegmentationJob
from utils.segmentation.steps import PreparedScan


def test_a_new_scan_gets_a_mask_on_its_own_grid_with_tables_and_report(
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
        *("view.html", "view", "labels_slicer.ctbl", "labels_itksnap.txt"),
    }
    assert {path.name for path in (out / "view").iterdir()} == {
        *("img0007.scan.js", "niivue.js", "view.js", "LICENSE"),
    }
    assert 'href="view.html#img0007"' in (out / "report.html").read_text()
    assert not list(out.rglob("*.part"))


def test_a_finished_scan_whose_view_is_missing_gets_it_again(segment: Any, phantoms: Path) -> None:
    out = segment(f"--data_dir={phantoms}", "--split=validation")
    view, mask = out / "view" / "img0005.scan.js", out / "img0005.nii.gz"
    content, written = view.read_bytes(), mask.stat().st_mtime_ns
    view.unlink()
    segment(f"--data_dir={phantoms}", "--split=validation")
    assert view.read_bytes() == content
    assert mask.stat().st_mtime_ns == written


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


def test_scans_that_trained_the_network_are_told(
    run_test: Run, trained: Path, phantoms: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((phantoms / "dataset_0.json").read_text())
    Path("list.json").write_text(json.dumps({**content, "test": [*content["training"][:1], *content["validation"]]}))
    for split, name, said in (
        ("test", "model_final.pt", True), ("validation", "model_final.pt", False), ("test", "model.pt", False)
    ):  # fmt: skip
        run_test([
            f"--pretrained_dir={trained}", f"--pretrained_model_name={name}", f"--data_dir={phantoms}",
            "--json_list=list.json", f"--split={split}", f"--output_dir=out_{split}_{name}",
        ])  # fmt: skip
        note = f"note: by their paths, 1 of these scans trained {trained / 'model_final.pt'}; such scores"
        assert (note in capsys.readouterr().out) == said


def test_a_scan_of_a_data_list_needs_no_label(segment: Any, phantoms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((phantoms / "dataset_0.json").read_text())
    Path("list.json").write_text(json.dumps({**content, "test": [content["test"][0]["image"]]}))
    segment(f"--data_dir={phantoms}", "--json_list=list.json", "--split=test")
    screen = capsys.readouterr().out
    assert "volumes in ml" in screen
    assert "Dice" not in screen


def test_a_dicom_series_gets_the_mask_of_the_same_scan_as_nifti(
    segment: Any, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values, affine = series(Path("scans/ct"), phantoms)
    nib.save(nib.Nifti1Image(values, affine), "series.nii.gz")
    out = segment("--input", "series.nii.gz", "scans")
    first, second = out / "series.nii.gz", out / "ct.nii.gz"
    assert np.array_equal(voxels(first), voxels(second))
    assert np.allclose(load(first).affine, load(second).affine)
    assert voxels(first).max() > 0
    segments = sitk.ReadImage(str(out / "ct.dcm"))
    assert segments.GetSize()[:2] == values.shape[:2]
    assert "ct" in capsys.readouterr().out


def test_a_structure_that_a_dicom_label_lacks_is_told(
    segment: Any, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, affine = series(Path("ct"), phantoms)
    label = voxels(phantoms / "labelsTr" / "label0007.nii.gz")
    datasets = [pydicom.dcmread(path) for path in Path("ct").iterdir()]
    write_rtstruct(
        Path("rt.dcm"), datasets, {"Leber": outlines(label == 6, affine), "spleen": outlines(label == 1, affine)}
    )
    content = json.loads((phantoms / "dataset_0.json").read_text())
    Path("list.json").write_text(json.dumps({**content, "test": [{"image": "ct", "label": "rt.dcm"}]}))
    out = segment("--data_dir=.", "--json_list=list.json", "--split=test")
    record = json.loads((out / "measurements.json").read_text())["scans"][0]
    assert any("rt.dcm: has no liver, which is taken to be absent." in remark for remark in record["remarks"])
    assert not any("has no spleen" in remark for remark in record["remarks"])
    assert "rt.dcm: has no liver, which is taken to be absent." in capsys.readouterr().out


def test_a_dicom_series_gets_contours(segment: Any, phantoms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    series(Path("scans/ct"), phantoms)
    out = segment("--input", str(scan_of(phantoms)), "scans", "--rtstruct")
    assert capsys.readouterr().out.count("note: 1 of 2 scans is no DICOM series, and gets no RTSTRUCT\n") == 1
    assert [path.name for path in out.glob("*_rtstruct.dcm")] == ["ct_rtstruct.dcm"]
    mask, names = voxels(out / "ct.nii.gz"), {name: value for value, name in enumerate(LABELS)}
    volume = read_series(only_series(Path("scans/ct")))
    dataset = pydicom.dcmread(out / "ct_rtstruct.dcm")
    drawn = RtStruct(out / "ct_rtstruct.dcm", dataset)
    assert {names[one.name] for one in drawn.structures} == set(np.unique(mask)) - {0}
    for one in drawn.structures:
        expected = mask == names[one.name]
        seen = expected.any((0, 1))  # what reads contours fills a slice without them between two that have some
        assert np.array_equal(drawn.mask([one], volume)[0][..., seen], expected[..., seen])
    table = (out / "labels_slicer.ctbl").read_text().splitlines()
    for roi in dataset.ROIContourSequence:  # the colours of the table: value, name, red, green, blue, opacity
        assert table[1 + roi.ReferencedROINumber].split()[2:5] == [str(value) for value in roi.ROIDisplayColor]
    assert not list(segment(f"--input={scan_of(phantoms)}", "--overwrite").glob("img0007_rtstruct.dcm"))


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
    """The same network three times, once as TorchScript, gives its own mask; a pattern finds files."""
    alone = voxels(segment(f"--input={scan_of(phantoms)}", "--noamp") / "img0007.nii.gz")
    Path("weights").mkdir()
    shutil.copy(trained / "model.pt", "weights/fold0.pt")
    shutil.copy(trained / "model.pt", "weights/fold1.pt")
    weights, script = str(trained / "model.pt"), str(Path.cwd() / "weights/s.ts")
    command = [sys.executable, "-m", "utils.export", weights, "--output", script]
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
    capsys.readouterr()
    run_test([*flags, "--pretrained_model_name=sided.pt", "--tta", "--output_dir=mirrored"])
    said = "postprocessing, by the folds or flags: mirrored passes (8 per window and network)\n"  # along three axes
    assert said in capsys.readouterr().out
    assert not np.array_equal(voxels(Path("mirrored/img0007.nii.gz")), alone)
    message = failure(lambda: run_test([*flags, "--pretrained_model_name=fold0.pt", "--tta", "--output_dir=o"]), capsys)
    assert message == (
        "error: --tta: crops were not flipped in training, so the network doesn't know mirrored scans. Leave it out.\n"
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


def test_a_broken_scan_is_reported_and_the_rest_goes_on(
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


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_a_scan_too_large_for_the_memory_is_reported_and_the_rest_goes_on(
    segment: Any, phantoms: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    original = pipeline.predict

    def too_large(prepared: PreparedScan, *others: Any) -> tuple[torch.Tensor, Certainty]:
        if prepared.scan.name == "img0005":
            raise error
        return original(prepared, *others)

    monkeypatch.setattr(pipeline, "predict", too_large)
    scans = [str(scan_of(phantoms, number)) for number in (5, 7)]
    message = failure(lambda: segment("--input", *scans), capsys)
    assert "img0005.nii.gz: this machine has no memory for it. Free some, or take a larger machine." in message
    assert "Traceback" not in message
    assert [path.name for path in Path("out").glob("*.nii.gz")] == ["img0007.nii.gz"]
    assert Path("out/report.html").exists()


def test_output_that_is_not_finite_is_an_error_and_no_empty_mask(
    run_test: Run, trained: Path, phantoms: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(trained / "model.pt", weights_only=True)
    content["state_dict"]["out.conv.conv.weight"][3] = 3e38  # of which a sum is beyond float32
    torch.save(content, "huge.pt")
    flags = ["--pretrained_dir=.", "--pretrained_model_name", "huge.pt", "--output_dir=out", "--noamp"]
    message = failure(lambda: run_test([f"--input={scan_of(phantoms)}", *flags]), capsys)
    assert "img0007.nii.gz: the network's output isn't finite. Give --noamp, or weights that are sound." in message
    assert not Path("out/img0007.nii.gz").exists()


def test_scans_with_the_same_file_name_are_told_apart(segment: Any, phantoms: Path) -> None:
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


def test_without_any_scan_the_error_is_all_that_is_printed(segment: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    message = failure(lambda: segment("--input", "gone", "empty"), capsys)
    gone, empty = message.splitlines()
    assert gone == "error: gone: can't be read (No such file or directory). Mend --input."
    assert empty.strip().startswith("--input empty: holds no scan")
    assert "0" not in capsys.readouterr().out  # it counts no scans


def test_a_missing_label_and_a_scan_of_air_are_reported_and_the_rest_goes_on(
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
    assert not Path("out/scores.csv").exists()  # it scored a scan that failed now


def test_a_file_where_a_folder_of_organs_should_be_stops_that_scan_alone(
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


def test_a_signal_keeps_finished_scans_and_the_same_command_goes_on(
    segment: Any, phantoms: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original, calls = pipeline.predict, 0

    def stopped_in_the_second_scan(*args: Any) -> tuple[torch.Tensor, Certainty]:
        nonlocal calls
        calls += 1
        if calls == 2:
            signal.raise_signal(signal.SIGTERM)
        return original(*args)

    monkeypatch.setattr(pipeline, "predict", stopped_in_the_second_scan)
    with pytest.raises(SystemExit) as stop:
        segment(f"--data_dir={phantoms}", "--split=training")
    assert stop.value.code == 143
    line = "stopped by SIGTERM; finished scans are kept, and the same command goes on with the rest\n"
    assert capsys.readouterr().err == line
    assert sorted(path.name for path in Path("out").glob("*.nii.gz")) == ["img0001.nii.gz"]
    assert not list(Path("out").rglob("*.part"))
    segment(f"--data_dir={phantoms}", "--split=training")
    assert "1 of 4 scans were finished before" in capsys.readouterr().out


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


def test_every_process_reports_its_own_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cpu = torch.device("cpu")
    job = SegmentationJob(
        tmp_path, ("background", "liver"), {1: "liver"}, Postprocessing(), (), False, False, 1.0, 1, Preprocessing(), {}
    )
    outcome = pipeline.segment_scans(
        [Scan("gone", (tmp_path / "gone.nii.gz",), None)], job, Ensemble(()), Predictor((8, 8, 8), 0.0, 0.5, 1, cpu),
        Process(cpu, RankInfo(rank=1, world_size=2)), overwrite=False, read_ahead=True,
    )  # fmt: skip
    assert "gone.nii.gz: can't be read" in outcome.faults["gone"]
    assert capsys.readouterr().out.strip() == f"failed, and passed over: {outcome.faults['gone']}"


def test_a_scan_smaller_than_the_window_is_padded(segment: Any, phantoms: Path) -> None:
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
    first = organs(named)  # into the same folder, where the scan was finished with other names
    assert "spleen" in first
    assert organs(named, "--a_max=5000") != first  # flags give the preprocessing of bare weights


@pytest.mark.parametrize("step", ["prepare", "predict", "segment", "write_scan"])
def test_whatever_a_scan_raises_costs_that_scan_alone(
    segment: Any, phantoms: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], step: str
) -> None:
    original = getattr(pipeline, step)

    def failing(first: Any, *others: Any) -> Any:
        scan = first if isinstance(first, Scan) else getattr(first, "prepared", first).scan
        if scan.name == "img0005":
            raise ZeroDivisionError("nobody\nforesaw this")
        return original(first, *others)

    monkeypatch.setattr(pipeline, step, failing)
    scans = [str(scan_of(phantoms, number)) for number in (5, 7)]
    message = failure(lambda: segment("--input", *scans), capsys)
    fault = f"{scans[0]}: failed (ZeroDivisionError: nobody). See the log for where."
    assert message == (
        "error: 1 failed and 1 done; launch the same command again for the rest when these are mended "
        f"(out/errors.log has the tracebacks):\n       {fault}\n"
    )
    log = Path("out/errors.log").read_text()
    assert " img0005\nTraceback (most recent call last):" in log
    assert "in failing" in log
    assert {"img0007.nii.gz", "report.html", "measurements.csv"} <= {path.name for path in Path("out").iterdir()}
    monkeypatch.setattr(pipeline, step, original)
    segment("--input", *scans)
    assert not Path("out/errors.log").exists()
    assert Path("out/img0005.nii.gz").exists()


def test_odd_names_get_masks(segment: Any, phantoms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that isn't UTF-8, one of 255 bytes, and one with a line break, beside a plain one."""
    Path("in").mkdir()
    names = ["plain", "m\udcff", "m" * 248, "two\nlines"]
    for name in names:
        shutil.copy(scan_of(phantoms), f"in/{name}.nii.gz")
    segment("--input=in", "--save_probabilities", "--one_file_per_organ")
    masks = sorted(path.name for path in Path("out").glob("*.nii.gz") if "_probabilities" not in path.name)
    wanted = {"plain.nii.gz", "m%FF.nii.gz", f"{'m' * 248}.nii.gz", "two%0Alines.nii.gz"}
    assert wanted == set(masks)
    # "_probabilities.nii.gz" doesn't fit behind 248 letters: a part of them and 12 digits of their hash do
    longest = max((path.name for path in Path("out").glob("*_probabilities.nii.gz")), key=len)
    assert len(longest) == 255
    assert longest.startswith("m" * 220)
    expected = voxels(Path("out/plain.nii.gz"))
    assert all(np.array_equal(voxels(Path("out") / name), expected) for name in wanted)
    with open("out/measurements.csv", newline="") as file:
        assert {row["scan"] for row in csv.DictReader(file)} == {"plain", "m%FF", "m" * 248, "two%0Alines"}
    capsys.readouterr()
    segment("--input=in", "--save_probabilities", "--one_file_per_organ")
    assert "4 of 4 scans were finished before" in capsys.readouterr().out


def test_a_pipe_among_scans_is_left_out(segment: Any, phantoms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("in").mkdir()
    shutil.copy(scan_of(phantoms), "in")
    os.mkfifo("in/pipe.nii.gz")
    segment("--input=in")
    assert "note: in/pipe.nii.gz: left out, a pipe, a socket or a device." in capsys.readouterr().out
    message = failure(lambda: segment("--input=in/pipe.nii.gz"), capsys)
    assert message == "error: in/pipe.nii.gz: is a pipe, a socket or a device, not a file. Give a file.\n"

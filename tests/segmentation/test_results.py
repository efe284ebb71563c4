"""Tables and report over all scans, and the lock of their folder."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from tests.conftest import REPOSITORY, Run
from tests.segmentation.conftest import failure, scan_of, voxels
from utils.checkpoints.postprocessing import DiceModel, FromFolds, Postprocessing
from utils.checkpoints.save import write_from_folds
from utils.distributed.process import Process


def test_two_programs_can_not_write_into_one_folder(
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
    words = "--output_dir out: another program is writing there. Wait for its end, or give another folder."
    assert message == f"error: {words}\n"
    assert not list(Path("out").glob("*.nii.gz"))


def test_screen_and_report_name_settings_as_flags(
    segment: Any, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("out").mkdir()
    Path("out/img0005.nii.gz").write_text("theirs")
    with pytest.raises(SystemExit):
        segment("--input", *(str(scan_of(phantoms, number)) for number in (5, 7)))
    fault = (
        "out/img0005.nii.gz: wasn't written for this scan by test.py, and would be replaced. "
        "Give another --output_dir, or --overwrite."
    )
    screen = capsys.readouterr()
    assert f"failed, and passed over: {fault}\n" in screen.out
    assert fault in screen.err
    assert json.loads(Path("out/measurements.json").read_text())["failed"] == fault
    assert "Give another --output_dir, or --overwrite." in Path("out/report.html").read_text()


def test_results_are_written_before_they_are_printed(
    segment: Any, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def say(process: Process, text: str) -> None:
        if text.startswith("volumes in ml"):
            raise OSError("nobody reads this")

    monkeypatch.setattr(Process, "say", say)
    with pytest.raises(OSError, match="nobody reads this"):
        segment(f"--input={scan_of(phantoms)}")
    assert {"img0007.nii.gz", "measurements.csv", "measurements.json", "report.html"} <= set(os.listdir("out"))


def test_a_reader_that_goes_away_and_closed_streams_cost_no_results(
    trained: Path, phantoms: Path, in_tmp: Path
) -> None:
    shutil.copy(scan_of(phantoms), "☃.nii.gz")
    program = f"{sys.executable} {REPOSITORY / 'test.py'} --pretrained_dir={trained} --pretrained_model_name=model.pt"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    for number, streams in enumerate(["| head -c 1", "2>&- >&-"]):
        command = f"set -o pipefail; {program} --input ☃.nii.gz --output_dir out{number} {streams}"
        done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert {"☃.nii.gz", "measurements.json", "report.html"} <= set(os.listdir(f"out{number}"))


def test_what_the_folds_found_is_done_and_said_unless_a_flag_leaves_it_out(
    trained: Path, run_test: Run, phantoms: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(trained / "model.pt", "model.pt")
    labels = torch.load("model.pt", weights_only=True)["labels"]
    liver = labels.index("liver")
    model = DiceModel(1.0, 0.0, 0.0, 0.01, (1e-3, 1e6), error=0.02, always_there=True)  # Dice is the soft Dice
    write_from_folds(Path("model.pt"), FromFolds(Postprocessing((liver,)), {"liver": model}))

    def masks(*flags: str) -> tuple[np.ndarray, dict[str, Any], str]:
        command = ["--pretrained_dir=.", "--pretrained_model_name=model.pt", f"--input={scan_of(phantoms)}", *flags]
        run_test([*command, "--output_dir=out"])
        organs = json.loads(Path("out/measurements.json").read_text())["scans"][0]["organs"]
        return voxels(Path("out/img0007.nii.gz")), organs, capsys.readouterr().out

    by_the_folds, organs, said = masks()
    assert "postprocessing, by the folds or flags: largest component of liver\n" in said
    assert "predicted Dice" in said
    assert organs["liver"]["predicted_dice"] == pytest.approx(organs["liver"]["soft_dice"])
    assert organs["spleen"]["predicted_dice"] is None
    by_flag, _, _ = masks("--no_postprocessing", "--largest_component=liver")
    assert np.array_equal(by_the_folds, by_flag)
    raw, organs, said = masks("--no_postprocessing")
    assert "postprocessing, by" not in said
    assert "predicted_dice" not in organs["liver"]
    assert ndimage.label(by_the_folds == liver, np.ones((3, 3, 3)))[1] == 1
    assert ((by_the_folds == liver) <= (raw == liver)).all()
    other, _, _ = masks("--largest_component=spleen")  # a flag says it in the place of the folds
    assert np.array_equal(other == liver, raw == liver)


def test_both_grids_have_the_dice_of_what_postprocessing_leaves(segment: Any, phantoms: Path) -> None:
    found = {}
    for flag in ("--no_postprocessing", "--largest_component=all"):
        segment(f"--data_dir={phantoms}", flag, "--overwrite")
        scans = json.loads(Path("out/measurements.json").read_text())["scans"]
        grids = ("dice", "dice_network_grid")
        found[flag] = np.array(
            [[organ[grid] or 0 for organ in scan["organs"].values()] for scan in scans for grid in grids]
        )
    raw, corrected = found.values()
    gains = (corrected - raw).reshape(-1, 2, raw.shape[1])
    changed = np.abs(gains[:, 0]) > 0.01  # on the scan's own grid
    assert changed.any()
    assert (np.sign(gains[:, 1]) == np.sign(gains[:, 0]))[changed].all()

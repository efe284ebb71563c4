"""What a job refuses: results in the place of scans, and organs that the network doesn't know."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Run
from tests.segmentation.conftest import failure, scan_of


def test_no_mask_replaces_a_scan_or_lies_among_scans(
    run_test: Run, trained: Path, phantoms: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
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


def test_masks_of_organs_do_not_lie_among_the_scans(
    segment: Any, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("ct").mkdir()
    shutil.copy(scan_of(phantoms), "ct/ct.nii.gz")
    message = failure(lambda: segment("--input=ct", "--output_dir=.", "--one_file_per_organ"), capsys)
    assert "--output_dir .: ct/spleen.nii.gz would lie in --input, and be taken for a scan the next time" in message
    assert [path.name for path in Path("ct").iterdir()] == ["ct.nii.gz"]


def test_two_scans_can_not_have_the_same_result_file(
    segment: Any, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("in").mkdir()
    for name in ("a", "a_probabilities"):
        shutil.copy(scan_of(phantoms), f"in/{name}.nii.gz")
    message = failure(lambda: segment("--input=in", "--save_probabilities"), capsys)
    assert "out/a_probabilities.nii.gz: would be written for a and for a_probabilities. Rename one" in message


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


def test_input_needs_an_output_folder(run_test: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run_test(["--input=scan.nii.gz"])
    assert stop.value.code == 2
    assert "--input needs --output_dir" in capsys.readouterr().err

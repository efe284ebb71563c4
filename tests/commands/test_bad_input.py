"""Mistakes at the shell end with one clear line and a status other than 0, without a traceback."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.conftest import REPOSITORY, TINY, Run


@pytest.fixture
def data(phantoms: Path, in_tmp: Path) -> Path:
    """A copy of the phantoms that a test may change."""
    shutil.copytree(phantoms, in_tmp / "data")
    return in_tmp / "data"


def rewrite_list(data: Path, **changes: object) -> None:
    path = data / "dataset_0.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change(path: Path, edit: Callable[[np.ndarray], np.ndarray]) -> None:
    image = nib.Nifti1Image.from_filename(path)
    nib.save(nib.Nifti1Image(edit(np.asarray(image.dataobj).copy()), image.affine), path)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


MISTAKES: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "missing folder": (lambda data: shutil.rmtree(data), [], "--data_dir data: no such folder"),
    "missing list": (lambda data: (data / "dataset_0.json").unlink(), [], "data/dataset_0.json: no such data list"),
    "broken list": (lambda data: (data / "dataset_0.json").write_text("{"), [], "not readable as JSON"),
    "missing image": (
        lambda data: (data / "imagesTr/img0002.nii.gz").unlink(),
        [],
        "img0002.nii.gz: can't be read (No such file or directory)",
    ),
    "truncated image": (lambda data: cut_off(data / "imagesTr/img0003.nii.gz"), [], "img0003.nii.gz: is cut off"),
    "label of another shape": (
        lambda data: change(data / "labelsTr/label0001.nii.gz", lambda voxels: voxels[:-1]),
        [],
        "label0001.nii.gz: has shape",
    ),
    "label out of range": (
        lambda data: change(data / "labelsTr/label0004.nii.gz", lambda voxels: voxels + np.uint8(2)),
        [],
        "label0004.nii.gz: has the values 2, 3, 4,",
    ),
    "no validation scans": (lambda data: rewrite_list(data, validation=[]), [], 'lists no scans under "validation"'),
    "no training scans": (lambda data: rewrite_list(data, training=[]), [], 'lists no scans under "training"'),
    "4D image": (
        lambda data: change(data / "imagesTr/img0001.nii.gz", lambda voxels: np.stack([voxels] * 3, -1)),
        [],
        "img0001.nii.gz: channels: 3",
    ),
    "wrong class count": (lambda data: None, ["--out_channels=4"], "names 14 labels"),
    "run folder that is a file": (
        lambda data: Path("runs").write_text(""),
        [],
        "--logdir test: can't write to runs/test",
    ),
    "cache folder that is a file": (
        lambda data: Path("cache").write_text(""),
        ["--cache_dir=cache"],
        "--cache_dir: can't write to cache",
    ),
    "no such device": (lambda data: None, ["--device=tpu"], "--device tpu: not a device of this program"),
    "no such weights": (lambda data: None, ["--resume_ckpt"], "UNETR_model_best_acc.pth: no such file"),
    "no such checkpoint": (lambda data: None, ["--checkpoint=nothing.pt"], "nothing.pt: no such file"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_training_names_the_mistake(
    run_main: Run, data: Path, mistake: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_mistake, flags, words = MISTAKES[mistake]
    make_mistake(data)
    with pytest.raises(SystemExit) as stop:
        run_main(["--data_dir=data", "--workers=0", "--max_epochs=1", *TINY, *flags])
    message = capsys.readouterr().err
    assert stop.value.code == 1
    assert message.startswith("error: ")
    assert words in message
    assert not list(Path(".").glob("runs/**/*.pt"))


@pytest.mark.parametrize(
    ("program", "flags", "words"),
    [
        ("main.py", ["--feature_size", "0"], "argument --feature_size: must be at least 1, not 0"),
        ("main.py", ["--optim_name", "lion"], "argument --optim_name: invalid choice: 'lion'"),
        ("main.py", ["--data_dir", "/nowhere"], "--data_dir /nowhere: no such folder"),
        ("test.py", ["--data_dir", "/nowhere"], "--data_dir /nowhere: no such folder"),
        ("test.py", ["--saved_checkpoint", "onnx"], "argument --saved_checkpoint: invalid choice: 'onnx'"),
    ],
)
def test_at_the_shell(program: str, flags: list[str], words: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / program), *flags], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode in (1, 2)
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_segmenting_names_missing_weights(run_test: Run, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_test(["--data_dir=data", "--pretrained_model_name=model.pt"])
    assert "pretrained_models/model.pt: no such file" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["training", "validation"])
@pytest.mark.parametrize("caching", [[], ["--use_normal_dataset"], ["--cache_dir=cache"]])
def test_labels_beyond_the_classes_are_named_without_the_data_check(
    run_main: Run, data: Path, part: str, caching: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    label = data.resolve() / json.loads((data / "dataset_0.json").read_text())[part][0]["label"]
    change(label, lambda voxels: np.where(voxels == voxels.max(), 99, voxels))
    with pytest.raises(SystemExit) as stop:
        run_main(["--data_dir=data", "--workers=0", "--max_epochs=1", "--skip_data_check", *TINY, *caching])
    message = capsys.readouterr().err
    assert stop.value.code == 1
    assert message.startswith(f"error: {label}: has the values 0, ")
    assert "99, but labels are 0 … 13. Remap them." in message
    assert message.count("\n") == 1


@pytest.mark.parametrize("caching", [[], ["--use_normal_dataset"], ["--use_normal_dataset", "--workers=2"]])
def test_a_scan_that_breaks_after_the_data_check_is_named(
    run_main: Run, data: Path, caching: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for image in (data / "imagesTr").iterdir():
        cut_off(image)
    with pytest.raises(SystemExit) as stop:
        run_main(["--data_dir=data", "--workers=0", "--max_epochs=1", "--skip_data_check", *TINY, *caching])
    message = capsys.readouterr().err
    assert stop.value.code == 1
    assert message.startswith("error: ")
    assert ".nii.gz: is cut off or damaged" in message
    assert message.count("\n") == 1

"""Every case of ../shared/cases, which were taken from real files and bug reports: its right value or its one line."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.conftest import REPOSITORY, Run
from tests.segmentation.conftest import failure, voxels
from utils.io.find_scans import find_scans
from utils.io.reader import read_file, read_scan

CASES = REPOSITORY.parent / "shared" / "cases"
WEIGHTS = [f"--pretrained_dir={REPOSITORY}/pretrained_models/hippocampus", "--pretrained_model_name=fold0.pt"]
TRAIN = [
    *("--feature_size=2", "--hidden_size=12", "--num_heads=2", "--mlp_dim=12", "--workers=0", "--max_epochs=1"),
    *("--val_every=1", "--roi_x=16", "--roi_y=16", "--roi_z=16", "--space_x=2", "--space_y=2", "--space_z=2"),
    *("--intensity=zscore", "--out_channels=3", "--warmup_epochs=0", "--device=cpu", "--noamp", "--crops_per_scan=1"),
]

pytestmark = pytest.mark.skipif(
    not CASES.is_dir(), reason=f"needs the inputs of {CASES}, which are not part of this repository"
)


def make(case: str) -> Path:
    """What a case's program makes, in ``out``."""
    program = [sys.executable, str(CASES / case / "make.py"), case]
    subprocess.run(program, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return Path(case)


def shell(case: str, *words: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    """What a case's script prints."""
    return subprocess.run(
        ["bash", str(CASES / case / "run.sh"), sys.executable, str(REPOSITORY), *map(str, words)],
        check=False, capture_output=True, text=True, errors="replace", env={**os.environ, **environment},
    )  # fmt: skip


def train(run_main: Run, data: Path, *flags: str) -> None:
    run_main([f"--data_dir={data}", f"--logdir={data.name}", "--overwrite", *TRAIN, *flags])


def segment(run_test: Run, *flags: str) -> None:
    run_test(["--output_dir=masks", "--overwrite", *WEIGHTS, *flags])


def a_scan(real_data: Path) -> Path:
    return min((real_data / "hippocampus" / "imagesTr").iterdir())


# ---- values and geometry


def test_beyond_float32(run_main: Run, run_test: Run, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make("beyond_float32")
    words = "case_0.nii.gz: has voxels that 32-bit numbers can't hold or square (1, from "
    assert words in failure(lambda: train(run_main, data), capsys)
    assert words in failure(lambda: segment(run_test, f"--input={data}/imagesTr"), capsys)
    assert len(list(Path("masks").glob("case_*.nii.gz"))) == 3


def test_bytes_behind_gzip(run_main: Run, run_test: Run, in_tmp: Path) -> None:
    data = make("bytes_behind_gzip")
    train(run_main, data)
    segment(run_test, f"--input={data}/imagesTr/case_2.nii.gz")
    assert voxels(Path("masks/case_2.nii.gz")).shape == (36, 48, 36)


def test_float_labels(run_main: Run, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make("float_labels")
    program = [sys.executable, "-m", "utils.make_data_list", "--data_dir", str(data.absolute()), "--folds", "2"]
    done = subprocess.run(program, check=True, capture_output=True, text=True, cwd=REPOSITORY)
    assert f"train with --data_dir {data.absolute()} --fold 0" in done.stdout
    train(run_main, data)
    label = data / "labelsTr" / "case_0.nii.gz"
    stored = np.asarray(nib.Nifti1Image.from_filename(label).dataobj)
    assert sorted(set(np.unique(stored))) != [0, 1, 2]
    nib.save(nib.Nifti1Image(stored + np.float32(0.002), np.eye(4)), label)
    words = "case_0.nii.gz: has the values 0.002, 1.002, 2.002, but labels are 0 … 2. Remap them."
    assert words in failure(lambda: train(run_main, data, "--fold=0"), capsys)


def test_negative_pixdim(run_main: Run, run_test: Run, in_tmp: Path) -> None:
    data = make("negative_pixdim")
    train(run_main, data)
    segment(run_test, f"--data_dir={data}")
    for mask in Path("masks").glob("case_*.nii.gz"):
        np.testing.assert_array_equal(read_file(mask).affine, read_file(data / "imagesTr" / mask.name).affine)


def test_sform_qform(run_main: Run, run_test: Run, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make("sform_qform")
    note = "its qform has voxels of 1.3 × 1.3 × 10, its sform of 1 × 1 × 1; the qform is taken, as in ITK."
    train(run_main, data)
    assert f"case_0.nii.gz and 7 more: {note}" in capsys.readouterr().out
    segment(run_test, f"--input={data}/imagesTr/case_0.nii.gz")
    assert note in capsys.readouterr().out
    assert read_file(data / "imagesTr" / "case_0.nii.gz").spacing == pytest.approx((1.3, 1.3, 10))
    assert read_file(Path("masks/case_0.nii.gz")).spacing == pytest.approx((1.3, 1.3, 10))


def test_upper_case_endings(in_tmp: Path) -> None:
    data = make("upper_case_endings")
    program = [sys.executable, "-m", "utils.make_data_list", "--data_dir", str(data.absolute()), "--folds", "2"]
    done = subprocess.run(program, check=True, capture_output=True, text=True, cwd=REPOSITORY)
    assert "4 labelled scans in 2 folds" in done.stdout


# ---- DICOM


def test_deflated(in_tmp: Path) -> None:
    (scan,) = find_scans([str(make("deflated"))], 1).scans
    volume = read_scan(scan)
    made = np.random.default_rng(0).integers(0, 900, (36, 48, 36))  # rows, columns, slices
    np.testing.assert_array_equal(volume.voxels[0], made.transpose(1, 0, 2))
    np.testing.assert_array_equal(volume.affine, np.diag([-1, -1, 1, 1]))  # DICOM's x and y run the other way


REFUSED = {
    "enhanced_fewer_groups": "a.dcm: has 36 frames, but places 31.",
    "enhanced_fewer_pixels": "a.dcm: has 31 frames, but places 36.",
    "mosaic": "a.dcm: is a mosaic, with many slices as tiles of one picture. Convert it to NIfTI with ",
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_series_costs_no_other_scan(
    case: str, run_test: Run, real_data: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make(case)
    shutil.copy(a_scan(real_data), "z.nii.gz")  # comes behind the series
    message = failure(lambda: segment(run_test, "--input", str(data), "z.nii.gz"), capsys)
    assert message.startswith("error: 1 failed and 1 done; ")
    assert REFUSED[case] in message
    assert "Traceback" not in message
    assert Path("masks/z.nii.gz").exists()


# ---- the shell


def test_closed_pipe(real_data: Path, in_tmp: Path) -> None:
    done = shell("closed_pipe", a_scan(real_data), W=str(in_tmp))
    assert {"measurements.csv", "measurements.json", "report.html"} <= set(done.stdout.split())
    assert done.stderr == ""


def test_narrow_stdout(real_data: Path, in_tmp: Path) -> None:
    done = shell("narrow_stdout", a_scan(real_data), W=str(in_tmp))
    assert done.stdout.splitlines()[-1] == "status 1"
    assert "error: 1 failed and 1 done; " in done.stderr
    assert "Traceback" not in done.stderr
    assert (in_tmp / "out" / "narrow" / "report.html").exists()


as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root may change its user and mount")


def others_may_run(program: str) -> bool:
    path = Path(program)
    return all(folder.stat().st_mode & 0o001 for folder in (path, *path.parents, *path.resolve().parents))


@as_root
@pytest.mark.skipif(
    shutil.which("setpriv") is None or not others_may_run(sys.executable), reason="others may not run this Python"
)
def test_no_passwd_entry() -> None:
    done = shell("no_passwd_entry")
    assert "--help-all lists" in done.stdout
    assert done.stderr == ""


@as_root
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
def test_small_shm(in_tmp: Path) -> None:
    probe = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], check=False, capture_output=True)
    if probe.returncode != 0:
        pytest.skip("this machine lets nobody mount")
    done = shell("small_shm", make("small_shm").absolute())
    assert done.stdout.splitlines()[-1] == "status 0", done.stdout + done.stderr

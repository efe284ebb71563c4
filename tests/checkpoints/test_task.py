"""Archives of trained tasks, sound and hostile."""

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from tests.checkpoints.conftest import DATA, DESCRIPTION
from tests.conftest import REPOSITORY, Run
from utils.checkpoints import load_network
from utils.checkpoints.load import LoadSettings, load_ensemble
from utils.checkpoints.progress import Progress
from utils.checkpoints.save import save_checkpoint
from utils.checkpoints.task import is_task
from utils.export import export_task
from utils.system.errors import InputError


def crossval(folder: Path) -> Path:
    for fold in range(2):
        torch.manual_seed(fold)
        place = folder / "run" / f"fold{fold}"
        place.mkdir(parents=True)
        save_checkpoint(place / "model_final.pt", DESCRIPTION, DESCRIPTION.build(), Progress(epoch=7))
    (folder / "run/crossval.csv").write_text("fold,Dice\n")
    return folder / "run"


def test_all_folds_are_an_ensemble(tmp_path: Path) -> None:
    run, task = crossval(tmp_path), tmp_path / "task.zip"
    for copy in ("fold0_old", "fold0 (copy)"):  # which are no folds
        shutil.copytree(run / "fold0", run / copy)
    assert export_task(run, task) == 2
    with zipfile.ZipFile(task) as archive:
        assert archive.testzip() is None
        manifest = json.loads(archive.read("task.json"))
        listed = {one["file"]: one["sha256"] for one in manifest["networks"]}
        assert list(listed) == ["networks/fold0.pt", "networks/fold1.pt"]
        assert set(archive.namelist()) == {"task.json", "crossval.csv", "LICENSE", *listed}
        assert all(hashlib.sha256(archive.read(name)).hexdigest() == digest for name, digest in listed.items())
    members, lines = load_ensemble(LoadSettings(), [task], DATA)
    assert f"{task} (networks/fold1.pt)" in lines
    for fold, (network, description) in enumerate(members):
        expected = torch.load(run / f"fold{fold}/model_final.pt", weights_only=True)["state_dict"]
        assert description == DESCRIPTION
        assert all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())
    with pytest.raises(InputError, match=r"holds 2 networks\. Read them by load_ensemble"):
        load_network(task)


def test_a_single_run_gives_its_best_network(tmp_path: Path) -> None:
    run = crossval(tmp_path)
    shutil.move(run / "fold0/model_final.pt", run / "model.pt")
    shutil.move(run / "fold1/model_final.pt", run / "model_final.pt")
    assert export_task(run, tmp_path / "task.zip") == 1
    network, description = load_network(tmp_path / "task.zip")
    expected = torch.load(run / "model.pt", weights_only=True)["state_dict"]
    assert description == DESCRIPTION
    assert all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())
    with pytest.raises(InputError, match=r"fold0: holds no model\.pt, model_final\.pt or fold"):
        export_task(run / "fold0", tmp_path / "no.zip")


def test_the_program_takes_it_as_it_is(run_test: Run, in_tmp: Path) -> None:
    run = crossval(in_tmp)
    export_task(run, in_tmp / "task.zip")
    voxels = np.random.default_rng(0).normal(size=(20, 18, 40)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.diag([1, 1, 2.5, 1])), "scan.nii.gz")
    run_test(["--pretrained_dir=.", "--pretrained_model_name=task.zip", "--input=scan.nii.gz", "--output_dir=one"])
    shutil.move("task.zip", "elsewhere")
    files = ["--pretrained_dir=run", "--pretrained_model_name", "fold*/model_final.pt"]
    run_test([*files, "--input=scan.nii.gz", "--output_dir=two"])
    masks = [np.asarray(nib.load(f"{folder}/scan.nii.gz").dataobj) for folder in ("one", "two")]  # type: ignore[attr-defined]
    assert np.array_equal(masks[0], masks[1])
    assert masks[0].any()


def test_a_file_is_no_run(in_tmp: Path) -> None:
    weights = crossval(in_tmp) / "fold0/model_final.pt"
    command = [sys.executable, "-m", "utils.export", str(weights), "--format=zip"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {weights}: is no folder.")
    assert done.stderr.count("\n") == 1


def archive(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED, **manifest: Any) -> None:
    content = {"format": 1, "version": "0", "networks": []} | manifest
    if not manifest.get("networks"):
        content["networks"] = [
            {"file": name, "sha256": hashlib.sha256(data).hexdigest()} for name, data in members.items()
        ]
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)
        file.writestr("task.json", json.dumps(content), zipfile.ZIP_STORED)


def cut_off(path: Path) -> None:
    archive(path, {"networks/a.pt": bytes(5000)})
    path.write_bytes(path.read_bytes()[:3000])


def changed(path: Path) -> None:
    archive(path, {"networks/a.pt": bytes(5000)})
    path.write_bytes(path.read_bytes().replace(bytes(100), b"x" * 100, 1))


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bomb": (
        lambda path: archive(path, {"networks/a.pt": bytes(10**8)}, zipfile.ZIP_DEFLATED),
        "has 'networks/a.pt' compressed, which could take any memory",
    ),
    "a path out of it": (
        lambda path: archive(path, {"networks/../../a.pt": b"x"}),
        "networks.0.file string should match",
    ),
    "an absolute path": (lambda path: archive(path, {"/tmp/a.pt": b"x"}), "networks.0.file string should match"),
    "no checkpoint": (lambda path: archive(path, {"networks/a.pt": b"x" * 100}), "(networks/a.pt): can't be read as"),
    "nothing": (lambda path: archive(path, {}), "networks list should have at least 1 item"),
    "many": (lambda path: archive(path, {f"networks/{n}.pt": b"" for n in range(2000)}), "has more than 1000 files"),
    "many networks": (lambda path: archive(path, {f"networks/{n}.pt": b"" for n in range(200)}), "at most 100 items"),
    "one that isn't there": (
        lambda path: archive(path, {}, networks=[{"file": "networks/a.pt", "sha256": "0" * 64}]),
        "lists a file twice, or one that isn't there",
    ),
    "another content": (
        lambda path: archive(path, {"networks/a.pt": b"x"}, networks=[{"file": "networks/a.pt", "sha256": "0" * 64}]),
        "its networks/a.pt isn't the one that it lists",
    ),
    "cut off": (cut_off, "can't be read as weights"),
    "changed bytes": (changed, "can't be read as a task: Bad CRC-32"),
    "a newer one": (lambda path: archive(path, {"networks/a.pt": b"x"}, format=2), "was made by a newer version"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_ends_with_one_line(
    kind: str, run_test: Run, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, words = HOSTILE[kind]
    make(in_tmp / "task.zip")
    (in_tmp / "scan.nii.gz").write_bytes(b"")
    with pytest.raises(SystemExit) as stop:
        run_test(["--pretrained_dir=.", "--pretrained_model_name=task.zip", "--input=scan.nii.gz", "--output_dir=out"])
    error = capsys.readouterr().err
    assert stop.value.code == 1
    assert words in error
    assert error.startswith("error: task.zip")
    assert error.count("\n") == 1
    assert {file.name for file in in_tmp.iterdir()} <= {"task.zip", "scan.nii.gz", "out"}


def test_a_checkpoint_is_no_task(tmp_path: Path) -> None:
    assert not is_task(crossval(tmp_path) / "fold0/model_final.pt")
    assert not is_task(tmp_path / "nothing.zip")

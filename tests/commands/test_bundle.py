"""A network as a bundle, which MONAI itself runs to the masks of ``test.py``."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import zoom

from networks.unetr import UNETRConfig
from tests.conftest import REPOSITORY, Run
from utils import export
from utils.checkpoints.description import Description
from utils.checkpoints.postprocessing import FromFolds, Postprocessing
from utils.checkpoints.progress import Progress
from utils.checkpoints.save import save_checkpoint
from utils.data.channels import Region, RegionChannels
from utils.data.preprocessing import Preprocessing
from utils.system.errors import InputError

CONFIG = UNETRConfig(
    out_channels=3, img_size=(16, 16, 16), spacing=(12, 12, 14), feature_size=2, hidden_size=12, mlp_dim=12, num_heads=2
)
CT = Preprocessing(spacing=(12, 12, 14), roi=(16, 16, 16))
DESCRIPTION = Description(CONFIG, CT, ("background", "liver", "spleen"), amp=False)
REGIONS = (Region("whole", (1, 2)), Region("core", (2,)))
# what MONAI's specification asks for, with the types of its schema
REQUIRED = {
    **dict.fromkeys(
        ("schema", "version", "monai_version", "pytorch_version", "numpy_version", "task", "description", "authors"),
        str,
    ),
    "copyright": str,
    "changelog": dict,
    "required_packages_version": dict,
    "network_data_format": dict,
}
OF_A_TENSOR = {
    "type": str,
    "format": str,
    "num_channels": int,
    "spatial_shape": list,
    "dtype": str,
    "value_range": list,
    "is_patch_data": bool,
    "channel_def": dict,
}
KINDS: dict[str, Description] = {
    "ct": DESCRIPTION,
    "zscore": replace(DESCRIPTION, preprocessing=replace(CT, intensity="zscore")),
    "regions": replace(
        DESCRIPTION, config=replace(CONFIG, out_channels=2), regions=REGIONS, output=RegionChannels(REGIONS, (1, 2))
    ),
    "two channels": replace(
        DESCRIPTION, config=replace(CONFIG, in_channels=2), preprocessing=replace(CT, intensity="zscore")
    ),
    "largest component": replace(DESCRIPTION, from_folds=FromFolds(Postprocessing((1, 2), mirrored=False))),
}


def saved(folder: Path, description: Description) -> Path:
    torch.manual_seed(3)
    network = description.build()
    network.eval()
    with torch.no_grad():  # in each voxel another class or region shall win
        *_, weight, bias = network.parameters()
        logits = network(torch.rand(1, description.config.in_channels, *CT.roi))
        weight.mul_(20)
        bias.sub_(20 * logits.mean((0, 2, 3, 4)))
        if not description.output.exclusive:
            bias.add_(40 * logits.std())
    save_checkpoint(folder / "model.pt", description, network, Progress(epoch=7))
    return folder / "model.pt"


def scans(folder: Path, channels: int) -> None:
    """Two scans of blobs, with axes to the Left, Posterior, Superior, and to Posterior, Left, Inferior and oblique."""
    folder.mkdir()
    random = np.random.default_rng(5)
    straight, turned = np.diag([-10.0, -10, 12, 1]), np.zeros((4, 4))
    turned[[1, 0, 2, 3], [0, 1, 2, 3]] = (-10, -10, -12, 1)
    tilt = np.eye(4)
    tilt[1:3, 1:3] = [[np.cos(0.1), -np.sin(0.1)], [np.sin(0.1), np.cos(0.1)]]
    for name, affine in (("straight", straight), ("oblique", tilt @ turned)):
        for channel in range(channels):
            blobs = zoom(random.uniform(-300, 300, (8, 7, 6)), 4, order=1).astype(np.float32)
            blobs[:4] = -1000  # air, which is cropped
            ending = f"_{channel:04d}" if channels > 1 else ""
            nib.save(nib.Nifti1Image(blobs, affine), folder / f"{name}{ending}.nii.gz")


@pytest.mark.parametrize("kind", KINDS)
def test_monai_runs_it_to_the_masks_of_test_py(kind: str, run_test: Run, in_tmp: Path) -> None:
    pytest.importorskip("ignite")
    description = KINDS[kind]
    if description.from_folds.postprocessing.largest_component:
        pytest.importorskip("skimage")
    channels = description.config.in_channels
    scans(Path("scans"), channels)
    weights = saved(in_tmp, description)
    difference, notes = export.export_bundle(weights, in_tmp / "bundle")
    assert (difference <= 1e-4, notes) == (True, [])
    options = {"bundle_root": str(in_tmp / "bundle"), "dataset_dir": "scans", "output_dir": "monai"}
    monai.bundle.run(config_file="bundle/configs/inference.json", **options)
    run_test([f"--pretrained_dir={in_tmp}", "--pretrained_model_name=model.pt", "--input=scans", "--output_dir=ours"])
    for name in ("straight", "oblique"):
        ours: Any = nib.load(f"ours/{name}.nii.gz")
        theirs: Any = nib.load(f"monai/{name}_0000_seg.nii.gz" if channels > 1 else f"monai/{name}_seg.nii.gz")
        assert np.allclose(ours.affine, theirs.affine)
        assert theirs.get_data_dtype() == np.uint8
        mask, other = np.asarray(ours.dataobj), np.asarray(theirs.dataobj)
        assert np.unique(mask).size >= 2
        assert np.sum(mask != other) <= 1e-4 * mask.size


def test_it_needs_nothing_of_this_repository(tmp_path: Path) -> None:
    pytest.importorskip("ignite")
    pytest.importorskip("fire")
    scans(tmp_path / "scans", 1)
    folder = tmp_path / "model_bundle"
    command = [sys.executable, "-m", "utils.export", str(saved(tmp_path, DESCRIPTION)), "--format=bundle"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{folder}: ")
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json"]
    command += ["--dataset_dir", "../scans", "--output_dir", "../masks"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {file.name for file in (tmp_path / "masks").iterdir()} == {"straight_seg.nii.gz", "oblique_seg.nii.gz"}


@pytest.mark.parametrize("kind", KINDS)
def test_its_files_are_those_of_the_specification(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    description = KINDS[kind]
    weights, folder = saved(tmp_path, description), tmp_path / "bundle"
    export.export_bundle(weights, folder)
    files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert files == {
        *("LICENSE", "configs/metadata.json", "configs/inference.json", "docs/README.md"),
        *("models/model.pt", "models/model.ts"),
    }
    metadata = json.loads((folder / "configs/metadata.json").read_text())
    assert {name: type(metadata[name]) for name in REQUIRED} == REQUIRED
    tensors = metadata["network_data_format"]
    image, prediction = tensors["inputs"]["image"], tensors["outputs"]["pred"]
    assert {name: type(value) for name, value in image.items() if name != "modality"} == OF_A_TENSOR
    assert {name: type(value) for name, value in prediction.items()} == OF_A_TENSOR
    script = torch.jit.load(folder / "models/model.ts")  # type: ignore[no-untyped-call]
    window = torch.zeros(1, image["num_channels"], *image["spatial_shape"])
    assert script(window).shape == (1, prediction["num_channels"], *prediction["spatial_shape"])
    assert len(prediction["channel_def"]) == prediction["num_channels"]
    assert metadata["labels"]["1"] == "liver"  # of masks, also where channels are regions
    state = torch.load(folder / "models/model.pt", weights_only=True)
    assert all(torch.equal(tensor, state[name]) for name, tensor in script.state_dict().items())
    assert "| 1 | liver |" in (folder / "docs/README.md").read_text()
    pytest.importorskip("ignite")
    monkeypatch.chdir(folder)
    workflow = monai.bundle.ConfigWorkflow(
        str(folder / "configs/inference.json"), str(folder / "configs/metadata.json"), workflow_type="infer"
    )
    workflow.initialize()
    assert not workflow.check_properties()  # those that it lacks


def test_what_a_bundle_leaves_out_is_told(tmp_path: Path) -> None:
    description = replace(DESCRIPTION, from_folds=FromFolds(Postprocessing((), mirrored=True)))
    _, notes = export.export_bundle(saved(tmp_path, description), tmp_path / "bundle")
    assert notes == ["the folds found that mirrored passes help, which test.py makes and the bundle doesn't"]
    assert f"Note: {notes[0]}." in (tmp_path / "bundle/docs/README.md").read_text()


def test_a_name_that_monai_would_evaluate_is_refused(tmp_path: Path) -> None:
    weights = saved(tmp_path, replace(DESCRIPTION, labels=("background", "$print(1)", "spleen")))
    with pytest.raises(InputError, match=r"the label \$print\(1\) has one of \$ @ %, which MONAI would take for"):
        export.export_bundle(weights, tmp_path / "bundle")
    assert {file.name for file in tmp_path.iterdir()} == {"model.pt"}


def test_a_folder_that_is_there_stays(tmp_path: Path) -> None:
    weights = saved(tmp_path, DESCRIPTION)
    (tmp_path / "bundle").mkdir()
    with pytest.raises(InputError, match="bundle: is there already"):
        export.export_bundle(weights, tmp_path / "bundle")

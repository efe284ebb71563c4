"""The numbers of channels and classes, which a run has from its data unless flags give them."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from tests.conftest import TINY, Run
from tests.training.test_training import error_of, lines

FLAGS = [
    *("--data_dir=.", "--logdir=run", "--intensity=zscore", "--workers=0", "--save_checkpoint", "--warmup_epochs=0"),
    *("--val_every=1", "--device=cpu", *TINY, "--space_x=1", "--space_y=1", "--space_z=1"),
]
GIVEN = ["--in_channels=2", "--out_channels=3"]
OWN = """
from dataclasses import dataclass
from torch import nn
from networks.registry import NetworkConfig, flag, register

@dataclass(frozen=True)
class Config(NetworkConfig):
    in_channels: int = flag(4, "channels of a scan", at_least=2)
    out_channels: int = flag(5, "classes", at_least=2)

@register("mine", config=Config, window_divisor=lambda config: (1, 1, 1))
class Mine(nn.Conv3d):
    def __init__(self, config):
        super().__init__(config.in_channels, config.out_channels, 1)
"""


@pytest.fixture
def scans(in_tmp: Path, random: np.random.Generator) -> dict[str, Any]:
    """A data list of three scans with two channels in a file, and labels 0 … 2; its content."""
    entries = []
    for number in range(3):
        label = np.zeros((16, 17, 18), np.uint8)
        label[4:9, 4:9, 4:9], label[9:14, 4:9, 4:9] = 1, 2
        image = random.normal(label[..., None], 0.1, (*label.shape, 2)).astype(np.float32)
        nib.save(nib.Nifti1Image(image, np.eye(4)), f"image{number}.nii.gz")
        nib.save(nib.Nifti1Image(label, np.eye(4)), f"label{number}.nii.gz")
        entries.append({"image": f"image{number}.nii.gz", "label": f"label{number}.nii.gz"})
    return write(labels=["background", "box", "cube"], training=entries[:2], validation=entries[2:])


def write(**content: Any) -> dict[str, Any]:
    Path("dataset_0.json").write_text(json.dumps(content))
    return content


def recorded() -> tuple[int, int]:
    """What the run's ``args.json`` says, with which its checkpoint agrees."""
    flags = json.loads(Path("runs/run/args.json").read_text())
    content = torch.load("runs/run/model_final.pt", weights_only=True)
    numbers = flags["in_channels"], flags["out_channels"]
    assert numbers == tuple(content["network"]["options"][name] for name in ("in_channels", "out_channels"))
    assert numbers == tuple(content["resume"]["flags"][name] for name in ("in_channels", "out_channels"))
    assert len(content["labels"]) == numbers[1]
    return numbers


def test_a_run_has_them_from_its_data(run_main: Run, scans: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    run_main([*FLAGS, "--max_epochs=1"])
    assert recorded() == (2, 3)
    assert "they have 2 channels and 3 classes, the background included" in capsys.readouterr().out


@pytest.mark.parametrize(("first", "then"), [(GIVEN, []), ([], GIVEN), ([], [])])
def test_a_run_goes_on_with_or_without_the_flags(
    run_main: Run, scans: dict[str, Any], first: list[str], then: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """As one of before this did, whose flags were always recorded."""
    run_main([*FLAGS, "--max_epochs=1", *first])
    capsys.readouterr()
    run_main([*FLAGS, "--max_epochs=2", "--resume", *then, "--allow_change", "in_channels", "out_channels"])
    assert [line["epoch"] for line in lines(Path("runs/run"))] == [1, 2]
    assert recorded() == (2, 3)
    screen = capsys.readouterr().out
    assert "from here on; it was 1" in screen  # --max_epochs
    assert "channels is" not in screen


def test_a_list_that_names_others_by_now_does_not_go_on(
    run_main: Run, scans: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run_main([*FLAGS, "--max_epochs=1"])
    write(**{**scans, "labels": [*scans["labels"], "pyramid"]})
    message = error_of(run_main, [*FLAGS, "--max_epochs=2", "--resume"], capsys)
    assert "--out_channels 4 contradicts its 3. Give the settings of its run" in message


def test_without_names_there_are_14_classes(run_main: Run, scans: dict[str, Any]) -> None:
    write(**{**scans, "labels": None})
    run_main([*FLAGS, "--max_epochs=1"])
    assert recorded() == (2, 14)


@pytest.mark.parametrize(
    ("changes", "flags", "words"),
    [
        ({}, ["--out_channels=4"], "names 3 labels (the background included), but --out_channels is 4. Give --out_ch"),
        (
            {},
            ["--in_channels=1"],
            "channels: 2 (shape 16 × 17 × 18 × 2), but the network takes 1. Give --in_ch",
        ),
        ({"modality": ["T1", "T2", "PD"]}, [], "but the network takes 3. Give --in_channels 2, or a scan that has 3."),
        ({"labels": ["air", "box"]}, [], 'or name all 3, the background included, under "labels" in dataset_0.json.'),
        ({"labels": ["air"]}, [], 'dataset_0.json: names no label but the background. Mend the list\'s "labels".'),
        ({"labels": ["air"]}, ["--out_channels=2"], "dataset_0.json: names no label but the background."),
        ({"labels": None}, ["--out_channels=2"], "Remap them, or give --out_channels 3."),
        ({"labels": [str(value) for value in range(1025)]}, [], "--out_channels must be at most 1024, not 1025"),
    ],
)
def test_what_they_contradict(
    run_main: Run,
    scans: dict[str, Any],
    changes: dict[str, Any],
    flags: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(**{**scans, **changes})
    assert words in error_of(run_main, [*FLAGS, "--max_epochs=1", *flags], capsys)


def test_all_faults_are_listed_though_the_first_scan_can_not_be_read(
    run_main: Run, scans: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("image0.nii.gz").unlink()
    Path("label2.nii.gz").unlink()
    message = error_of(run_main, [*FLAGS, "--max_epochs=1"], capsys)
    assert message.startswith("error: 2 faults in the data; nothing was started.")
    assert "image0.nii.gz: can't be read" in message
    assert "label2.nii.gz: can't be read" in message


def test_a_network_of_ones_own_has_defaults_of_its_own(
    run_main: Run, scans: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """For what the data leave open."""
    Path("mine.py").write_text(OWN)
    own = [flag for flag in FLAGS if flag.split("=")[0] not in ("--hidden_size", "--mlp_dim", "--num_heads")]
    own = [flag for flag in own if not flag.startswith("--feature_size")] + ["--model_name=mine.py", "--overwrite"]
    run_main([*own, "--max_epochs=1"])
    assert recorded() == (2, 3)
    write(**{**scans, "labels": None})
    run_main([*own, "--max_epochs=1"])
    assert recorded() == (2, 5)
    run_main([*own, "--max_epochs=1", "--out_channels=3"])
    assert recorded() == (2, 3)
    assert "argument --in_channels: must be at least 2" in error_of(run_main, [*own, "--in_channels=1"], capsys)


def test_the_default_window_on_mr_is_noted(
    run_main: Run, scans: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        image = nib.Nifti1Image.from_filename(f"image{number}.nii.gz")
        nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32) * 1000, np.eye(4)), f"image{number}.nii.gz")
    run_main([*FLAGS, "--max_epochs=1", "--intensity=ct"])
    note = "note: the window of --a_min -175 to --a_max 250 clips 100% of the labelled voxels, whose values are "
    assert note in (screen := capsys.readouterr().out)
    assert screen.count("labelled voxels") == 1
    assert "Give --intensity zscore for MR, or an --a_min and --a_max that show them; python -m utils.plan" in screen
    run_main([*FLAGS, "--max_epochs=1", "--overwrite", "--intensity=ct", "--skip_data_check"])
    assert "labelled voxels" not in capsys.readouterr().out

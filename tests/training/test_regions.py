"""Training by regions from the data list to masks and scores, with a network that learns two thresholds."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from tests.commands.test_crossval import CPU, Programs
from tests.conftest import Run
from tests.training.test_training import error_of, lines
from utils import crossval, export
from utils.checkpoints import load_network
from utils.config.flags import parse_crossval
from utils.data.channels import Region, RegionChannels
from utils.system.errors import InputError

NETWORK = """
from dataclasses import dataclass
from torch import nn
from networks.registry import NetworkConfig, register

@dataclass(frozen=True)
class Config(NetworkConfig):
    pass

@register("thresholds", config=Config, window_divisor=lambda config: (1, 1, 1))
class Thresholds(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.body = nn.Conv3d(config.in_channels, 4, 1)
        self.head = nn.Conv3d(4, config.out_channels, 1)

    def forward(self, volume):
        return self.head(self.body(volume).relu())
"""
MODEL = "--model_name=thresholds.py"
FLAGS = [
    *("--data_dir=.", MODEL, "--intensity=zscore", "--workers=0", "--save_checkpoint", "--device=cpu", "--noamp"),
    *("--roi_x=16", "--roi_y=16", "--roi_z=16", "--space_x=1", "--space_y=1", "--space_z=1"),
    *("--max_epochs=40", "--val_every=40", "--warmup_epochs=1", "--optim_lr=0.2", "--batch_size=2"),
]
LABELS = {"0": "background", "1": "rim", "2": "core"}
REGIONS = {"whole": [1, 2], "core": [2]}
TRAINED = {"labels": LABELS, "regions": REGIONS, "regions_class_order": [1, 2]}
OUTPUT = RegionChannels((Region("whole", (1, 2)), Region("core", (2,))), (1, 2))


def write(**content: Any) -> None:
    entries = [{"image": f"image{number}.nii.gz", "label": f"label{number}.nii.gz"} for number in range(3)]
    parts = {"training": entries[:2], "validation": entries[2:]}
    Path("dataset_0.json").write_text(json.dumps({**parts, **content}))


@pytest.fixture
def scans(in_tmp: Path, random: np.random.Generator) -> None:
    """Three scans with a cube in a cube, the inner one brighter."""
    Path("thresholds.py").write_text(NETWORK)
    for number in range(3):
        label = np.zeros((18, 19, 20), np.uint8)
        label[3:14, 3:14, 4:15], label[6:12, 6:12, 7:13] = 1, 2
        image = random.normal(10 * label, 0.5).astype(np.float32)
        nib.save(nib.Nifti1Image(image, np.eye(4)), f"image{number}.nii.gz")
        nib.save(nib.Nifti1Image(label, np.eye(4)), f"label{number}.nii.gz")


def voxels(path: str) -> np.ndarray:
    image: Any = nib.load(path)
    return np.asarray(image.dataobj)


def overlap(mask: np.ndarray, label: np.ndarray) -> float:
    return float(2 * (mask & label).sum() / (mask.sum() + label.sum()))


def segmented(run_test: Run, *flags: str, weights: str = "run", folder: str = "out") -> dict[str, Any]:
    """The record of the validation scan."""
    model = [f"--pretrained_dir=runs/{weights}", "--pretrained_model_name=model_final.pt", MODEL]
    run_test(["--data_dir=.", *model, f"--output_dir={folder}", "--workers=0", "--device=cpu", "--noamp", *flags])
    (record,) = json.loads(Path(folder, "measurements.json").read_text())["scans"]
    found: dict[str, Any] = record
    return found


@pytest.mark.usefixtures("scans")
def test_a_list_with_an_order_trains_regions(run_main: Run, run_test: Run, capsys: pytest.CaptureFixture[str]) -> None:
    write(**TRAINED)
    run_main([*FLAGS, "--logdir=run"])
    assert "trained are the regions whole, core" in capsys.readouterr().out
    assert json.loads(Path("runs/run/args.json").read_text())["out_channels"] == 2
    network, description = load_network("runs/run/model_final.pt", "thresholds.py")
    assert (description.output, description.regions) == (OUTPUT, OUTPUT.regions)
    assert network.head.out_channels == 2  # type: ignore[union-attr]
    validated = lines(Path("runs/run"))[-1]["dice"]["organs"]
    assert list(validated) == ["rim", "core", "whole"]
    assert min(validated.values()) > 0.98

    organs = segmented(run_test, "--save_probabilities", "--tta")["organs"]
    mask, label = voxels("out/image2.nii.gz"), voxels("label2.nii.gz")
    assert set(np.unique(mask)) == {0, 1, 2}
    expected = {"rim": overlap(mask == 1, label == 1), "core": overlap(mask == 2, label == 2)}
    expected["whole"] = overlap(mask > 0, label > 0)
    assert {name: values["dice"] for name, values in organs.items()} == pytest.approx(expected)
    assert organs["whole"]["volume_ml"] == pytest.approx((mask > 0).sum() / 1000)
    assert organs["whole"]["labels"] == [1, 2]
    scores = json.loads(Path("out/scores.json").read_text())["organs"]
    assert scores == pytest.approx(validated)  # the number that validation gave
    probabilities = voxels("out/image2_probabilities.nii.gz")
    assert probabilities.shape == (*mask.shape, 2)
    assert np.array_equal(mask, np.where(probabilities[..., 1] > 0.5, 2, probabilities[..., 0] > 0.5))
    assert "whole" in Path("out/report.html").read_text()

    # if the mask keeps the core alone, the whole isn't scored
    assert list(segmented(run_test, "--organs=core", "--one_file_per_organ", folder="cores")["organs"]) == ["core"]
    assert [path.name for path in Path("cores/image2").iterdir()] == ["core.nii.gz"]
    # nothing is done again without need
    capsys.readouterr()
    segmented(run_test, "--save_probabilities", "--tta")
    assert "1 of 1 scans were finished before" in capsys.readouterr().out

    # the list's own regions are scored, too; but not where one of their labels wasn't drawn
    entry = {"image": "image2.nii.gz", "label": "label2.nii.gz", "not_annotated": ["rim"]}
    write(labels=LABELS, regions={"both": [1, 2]}, validation=[entry])
    organs = segmented(run_test, folder="further")["organs"]
    assert {name: values["dice"] for name, values in organs.items()} == {
        "rim": None, "core": pytest.approx(expected["core"]), "both": None,
    }  # fmt: skip
    assert "not drawn" in Path("further/report.html").read_text()

    # regions that aren't the network's are refused
    write(**{**TRAINED, "regions": {"core": [2], "whole": [1, 2]}, "regions_class_order": [2, 1]})
    message = error_of(run_main, [*FLAGS, "--logdir=run", "--resume"], capsys)
    assert '"regions_class_order": where the label is 2 (core), a mask would have 1.' in message
    write(**{**TRAINED, "regions": {"all": [1, 2], "core": [2]}})
    message = error_of(run_main, [*FLAGS, "--logdir=run", "--resume"], capsys)
    assert "its run trained other regions than the data list names" in message
    message = error_of(run_main, [*FLAGS, "--logdir=other", "--out_channels=3"], capsys)
    assert "trains 2 regions (all and core), but --out_channels is 3. Give --out_channels 2" in message

    write(labels=LABELS, regions=REGIONS)
    run_main([*FLAGS, "--logdir=labels", "--max_epochs=1"])
    assert list(lines(Path("runs/labels"))[-1]["dice"]["organs"]) == ["rim", "core", "whole"]
    both = ["--pretrained_dir=runs", "--pretrained_model_name", "labels/model_final.pt", "run/model_final.pt"]
    message = error_of(run_test, ["--data_dir=.", *both, MODEL, "--output_dir=both"], capsys)
    assert "contradicts its whole [1, 2] writes 1; core [2] writes 2" in message


@pytest.mark.usefixtures("scans")
def test_folds_are_trained_and_scored_by_regions(run_main: Run, run_test: Run) -> None:
    entries = [{"image": f"image{n}.nii.gz", "label": f"label{n}.nii.gz", "fold": n % 2} for n in range(3)]
    flags = [flag for flag in FLAGS if flag != "--save_checkpoint"]
    programs = Programs(run_main, run_test)

    def scored_by(logdir: str, **content: Any) -> list[str]:
        write(**{**content, "training": entries, "validation": []})
        arguments = parse_crossval([*flags, "--json_list=dataset_0.json", f"--logdir={logdir}", "--max_epochs=1"])
        crossval.main(*arguments, "the command", programs, CPU)
        scores = json.loads(Path("runs", logdir, "crossval.json").read_text())["scores"]["dice"]
        return list(scores["mean over scans"]["organs"])

    assert scored_by("regions", **TRAINED) == ["rim", "core", "whole"]
    with pytest.raises(InputError, match="its run had other scans or labels than"):
        scored_by("regions", **{**TRAINED, "regions": {"all": [1, 2], "core": [2]}})

    assert scored_by("labels", labels=LABELS) == ["rim", "core"]
    programs.log.clear()
    assert scored_by("labels", labels=LABELS, regions=REGIONS) == ["rim", "core", "whole"]
    assert set(programs.log) == {"test.py --fold=0", "test.py --fold=1"}  # scored anew, and not trained


@pytest.mark.usefixtures("scans")
def test_an_exported_network_tells_its_regions(run_main: Run, run_test: Run) -> None:
    write(**TRAINED)
    run_main([*FLAGS, "--logdir=run", "--max_epochs=2", "--val_every=2"])
    export.export(Path("runs/run/model_final.pt"), "torchscript", Path("runs/run/script.pt"))
    found = [
        segmented(run_test, f"--pretrained_model_name={name}", f"--saved_checkpoint={kind}", folder=name)["organs"]
        for name, kind in (("model_final.pt", "ckpt"), ("script.pt", "torchscript"))
    ]
    assert list(found[0]) == ["rim", "core", "whole"]
    assert found[0]["whole"]["volume_ml"] > 0
    assert found[0] == found[1]


@pytest.mark.usefixtures("scans")
def test_one_region_is_one_channel(run_main: Run, run_test: Run) -> None:
    for number in range(3):
        label = (voxels(f"label{number}.nii.gz") > 0).astype(np.uint8)
        nib.save(nib.Nifti1Image(label, np.eye(4)), f"label{number}.nii.gz")
    write(labels=["background", "cube"], regions={"cube": [1]}, regions_class_order=[1])
    run_main([*FLAGS, "--logdir=run", "--out_channels=1"])
    assert segmented(run_test)["organs"]["cube"]["dice"] > 0.98

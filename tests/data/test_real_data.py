"""The whole chain on real MR and CT. These need ../shared/data and skip where it is absent."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from tests.conftest import Run
from utils.data.check import check_scans
from utils.data.crops import Augmentation
from utils.data.data_list import read_data_list
from utils.data.loaders import Caching, training_loader, validation_loader
from utils.data.mirroring import trained_mirrorings
from utils.data.preprocessing import Preprocessing
from utils.distributed.process import Process
from utils.evaluation.metrics import dice_per_label

CPU = Process(torch.device("cpu"))


@pytest.mark.parametrize("fold", range(5))
def test_every_hippocampus_fold_is_sound(real_data: Path, fold: int) -> None:
    data = read_data_list(str(real_data / "hippocampus"), None, fold)
    assert (len(data.training), len(data.validation)) == (160, 40)
    assert data.label_names(3) == ("background", "anterior", "posterior")
    settings = Preprocessing(intensity="zscore")
    check_scans(data.validation, in_channels=1, out_channels=3, settings=settings, workers=2, process=CPU)


def test_the_chain_keeps_btcv_labels_and_organ_volumes(real_data: Path) -> None:
    """From 3 mm to the published grid, each organ keeps its volume to 8 %: the new grid ends at the outer centres."""
    data = read_data_list(str(real_data / "abdomen_ct"), None, 0)
    batch = next(iter(validation_loader(data.validation, Preprocessing(), Caching(), CPU, workers=0)))
    label = nib.Nifti1Image.from_filename(str(data.validation[0].label))
    original = np.asarray(label.dataobj)
    voxel_ml = abs(np.linalg.det(label.affine)) / 1000
    for value in range(1, 14):
        before = np.sum(original == value) * voxel_ml
        after = float((batch["label"] == value).sum()) * 1.5 * 1.5 * 2.0 / 1000
        assert after == pytest.approx(before, rel=0.08, abs=0.1), value
    dice = dice_per_label(batch["label"], batch["label"], 14)
    assert torch.isnan(dice).tolist() == [value == 5 for value in range(1, 14)]  # the esophagus is absent
    assert torch.nanmean(dice) == 1


@pytest.mark.parametrize("flips", ["anatomical", "published"])
def test_what_lies_to_the_right_in_a_mirrored_body_is_called_right(real_data: Path, flips: str) -> None:
    """Crops of the whole scan, half of them mirrored across x, which the liver's side tells."""
    data = read_data_list(str(real_data / "abdomen_ct"), None, 0)
    settings = Preprocessing(spacing=(6.0, 6.0, 6.0), roi=(64, 64, 16))
    labels = data.label_names(14)
    places = {name: value for value, name in enumerate(labels)}

    def sides(label: torch.Tensor, *names: str) -> list[bool]:
        """For each pair of organs, whether the first lies where x is larger."""
        x = [torch.nonzero(label == places[name])[:, 1].float().mean() for name in names]
        return [bool(one > other) for one, other in zip(x[::2], x[1::2], strict=True)]

    plain = next(iter(validation_loader(data.validation, settings, Caching(), CPU, workers=0)))["label"][0]
    pairs = ("right kidney", "left kidney", "right adrenal gland", "left adrenal gland")
    chances = Augmentation(0.5, 0, 0, 0, trained_mirrorings(flips, labels)[-1])
    loader = training_loader(
        data.training, settings, chances, Caching(), CPU, batch_size=1, crops_per_scan=12, workers=0, seed=0
    )
    crops = next(iter(loader))["label"]
    mirrored = [sides(crop, "liver", "spleen") != sides(plain, "liver", "spleen") for crop in crops]
    assert 2 < sum(mirrored) < 10
    right = [sides(crop, *pairs) == sides(plain, *pairs) for crop in crops]
    assert right == ([True] * 12 if flips == "anatomical" else [not flipped for flipped in mirrored])


def test_training_on_real_ct_lowers_the_loss(real_data: Path, run_main: Run, in_tmp: Path) -> None:
    run_main(
        [
            *(
                f"--data_dir={real_data / 'abdomen_ct'}",
                "--logdir=ct",
                "--workers=0",
                "--max_epochs=24",
                "--val_every=24",
            ),
            *("--space_x=6", "--space_y=6", "--space_z=6", "--roi_x=48", "--roi_y=48", "--roi_z=16"),
            *("--feature_size=4", "--hidden_size=12", "--mlp_dim=12", "--num_heads=2", "--optim_lr=1e-2"),
            *("--warmup_epochs=0", "--RandFlipd_prob=0", "--RandRotate90d_prob=0"),
        ]
    )
    records = [json.loads(line) for line in Path("runs/ct/metrics.jsonl").read_text().splitlines()]
    assert records[-1]["loss"] < 0.8 * records[0]["loss"]
    assert records[-1]["dice"]["organs"]["esophagus"] in (None, 0.0)  # it has no label: absent, or only predicted

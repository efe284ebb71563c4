"""Which networks know mirrored scans; all else that a cross-validation writes is in ``tests/commands``."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.checkpoints.conftest import DESCRIPTION
from utils.checkpoints.progress import Progress
from utils.checkpoints.save import save_checkpoint
from utils.data.channels import CLASSES, Region, RegionChannels
from utils.distributed.process import Process
from utils.segmentation.after_folds import ScannedFold
from utils.segmentation.fold_results import knows_mirrored_scans, postprocess
from utils.system.errors import InputError


@pytest.mark.parametrize(
    ("flips", "labels", "regions", "knows"),
    [
        ("none", ("background", "liver"), (), False),
        ("published", ("background", "liver"), (), True),
        ("left_right", ("background", "left kidney", "right kidney"), (), True),
        ("left_right", ("background", "left kidney"), (), False),  # a side without the other
        ("left_right", ("background", "left kidney", "right kidney"), ((1, 2), (1,)), False),  # (2,) is no region
    ],
)
def test_mirrored_passes_are_tried_where_networks_know_them(
    flips: str, labels: tuple[str, ...], regions: tuple[tuple[int, ...], ...], knows: bool
) -> None:
    channels = tuple(Region(f"region {values}", values) for values in regions)
    output = RegionChannels(channels, tuple(values[-1] for values in regions)) if regions else CLASSES
    description = replace(DESCRIPTION, flips=flips, labels=labels, regions=channels, output=output)
    assert knows_mirrored_scans(description) == knows


@pytest.mark.parametrize("damaged", ["model.pt", "model_final.pt"])
def test_a_damaged_network_is_named_before_anything_is_written(tmp_path: Path, damaged: str) -> None:
    folds = [ScannedFold(number, tmp_path / f"fold{number}", [], None, {}) for number in range(2)]  # type: ignore[arg-type]
    network = DESCRIPTION.build()
    for fold in folds:
        fold.run.mkdir()
        for name in ("model.pt", "model_final.pt"):
            save_checkpoint(fold.run / name, DESCRIPTION, network, Progress())
    path = folds[1].run / damaged
    path.write_bytes(path.read_bytes()[:1000])
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    words = rf"{re.escape(str(path))}: can't be read as weights: .*\."
    remedy = r" Remove it: crossval goes by model_final\.pt\." if damaged == "model.pt" else ""
    with pytest.raises(InputError, match=words + remedy + r"\Z"):
        postprocess(folds, tmp_path, Process(torch.device("cpu")))
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before

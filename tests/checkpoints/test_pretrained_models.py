"""The networks that pretrained_models/ holds, on scans that they did not see."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from networks.layers import optimize_for_cpu
from tests.conftest import REPOSITORY, Run
from utils.checkpoints import load_network
from utils.checkpoints.description import describe
from utils.checkpoints.read import read_checkpoint

HIPPOCAMPUS = REPOSITORY / "pretrained_models" / "hippocampus"


@pytest.mark.parametrize("fold", range(5))
def test_each_network_is_the_one_that_the_readme_describes(fold: int) -> None:
    file = HIPPOCAMPUS / f"fold{fold}.pt"
    readme = (REPOSITORY / "pretrained_models" / "README.md").read_text(encoding="utf-8")
    told = re.search(rf"^\| `{file.name}` \| (\d+) \| `(\w{{64}})` \|", readme, re.MULTILINE)
    assert told is not None
    content = read_checkpoint(file)
    assert content["epoch"] == int(told[1])
    assert hashlib.sha256(file.read_bytes()).hexdigest() == told[2]
    description = describe(content)
    assert description is not None
    assert description.labels == ("background", "anterior", "posterior")
    assert re.search(rf"--fold[= ]{fold} ", content["command"])


@pytest.mark.parametrize("fast", [False, True])
def test_a_checkpoint_of_version_0_2_0_gives_the_logits_that_it_gave_there(fast: bool) -> None:
    """That version wrote the file, and its code computed these logits of a volume from numpy's frozen generator."""
    network, description = load_network(HIPPOCAMPUS / "fold0.pt")
    assert description.preprocessing.roi == (32, 48, 32)
    values = np.random.RandomState(0).standard_normal((1, 1, 32, 48, 32)).astype(np.float32)
    with torch.inference_mode():
        logits = (optimize_for_cpu(network) if fast else network)(torch.from_numpy(values))
    assert logits.shape == (1, 3, 32, 48, 32)
    expected = torch.tensor(
        [
            [8.511732, 3.733968, 7.834889, 2.079987],
            [-8.846724, -4.414711, -8.215929, -0.561230],
            [-6.659683, -3.234265, -6.455546, -3.579609],
        ]
    )
    torch.testing.assert_close(logits[0, :, 7, 11::12, 15], expected, atol=1e-4, rtol=0)
    assert float(logits.abs().double().mean()) == pytest.approx(3.825952, abs=1e-5)


@pytest.mark.parametrize("fold", range(5))
def test_each_network_segments_hippocampi_of_its_validation_fold(
    fold: int, real_data: Path, run_test: Run, in_tmp: Path
) -> None:
    """Two raters agree to about 0.9 on this task; a network that is read or fed wrongly is far from it."""
    content = json.loads((real_data / "hippocampus" / f"dataset_{fold}.json").read_text())
    Path("some.json").write_text(json.dumps({**content, "validation": content["validation"][:2]}))
    weights = [f"--pretrained_dir={HIPPOCAMPUS}", f"--pretrained_model_name=fold{fold}.pt"]
    data = [f"--data_dir={real_data / 'hippocampus'}", f"--json_list={Path('some.json').absolute()}"]
    run_test([*data, *weights, "--output_dir=out", "--workers=0"])
    scans = json.loads(Path("out/measurements.json").read_text())["scans"]
    dice = [organ["dice"] for scan in scans for organ in scan["organs"].values()]
    assert len(dice) == 4
    assert sum(dice) / len(dice) > 0.8
    assert min(dice) > 0.65

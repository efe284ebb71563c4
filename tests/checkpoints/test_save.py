"""What a saved checkpoint holds."""

import json
import zipfile
from pathlib import Path

import monai
import torch
from torch import nn

from tests.checkpoints.conftest import DESCRIPTION
from utils.checkpoints.description import describe
from utils.checkpoints.postprocessing import DiceModel, FromFolds, Postprocessing
from utils.checkpoints.read import read_checkpoint
from utils.checkpoints.save import add_metadata, write_from_folds


def test_a_checkpoint_tells_its_epoch_score_and_versions_and_leaves_no_other_file(saved: Path) -> None:
    content = torch.load(saved, weights_only=True)
    assert (content["epoch"], content["score"]) == (7, 0.5)
    assert content["versions"]["monai"] == monai.__version__
    assert content["network"]["name"] == "unetr"
    assert content["network"]["options"]["img_size"] == (16, 16, 32)
    assert "file" not in content["network"]
    assert "resume" not in content
    assert not list(saved.parent.glob("*.part"))


def test_a_bare_state_dict_carries_a_description_that_torch_does_not_see(network: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "bare.pth"
    torch.save(dict(network.state_dict()), path)
    metadata = json.dumps({**DESCRIPTION.content(), "epoch": 7})
    add_metadata(path, metadata)
    assert torch.load(path, weights_only=True).keys() == network.state_dict().keys()
    assert read_checkpoint(path)["epoch"] == 7
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.read("bare/extra/unetr.json") == metadata.encode()


def test_what_folds_found_of_later_regions_is_not_written(saved: Path) -> None:
    """The checkpoint doesn't have these regions, and could not be read any more."""
    model = DiceModel(1.0, 0.0, 0.0, 0.5, (1.0, 2.0), 0.1, True)
    write_from_folds(saved, FromFolds(Postprocessing((1,)), {"anterior": model, "whole": model}))
    description = describe(read_checkpoint(saved))
    assert description is not None
    assert description.from_folds == FromFolds(Postprocessing((1,)), {"anterior": model})

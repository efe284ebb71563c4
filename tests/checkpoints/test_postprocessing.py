"""What a cross-validation writes into its networks."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.checkpoints.conftest import DESCRIPTION
from utils.checkpoints.description import describe
from utils.checkpoints.postprocessing import DiceModel, FromFolds, Postprocessing, common
from utils.checkpoints.read import read_checkpoint
from utils.checkpoints.save import write_from_folds
from utils.system.errors import DamagedError

MODEL = DiceModel(2.0, 0.1, -1.0, 0.8, (50.0, 200.0), 0.02, always_there=True)
FOUND = FromFolds(Postprocessing((2,), mirrored=True), {"posterior": MODEL})


def test_it_goes_into_a_checkpoint_and_leaves_the_rest_as_it_is(saved: Path) -> None:
    before = read_checkpoint(saved)
    write_from_folds(saved, FOUND)
    after = read_checkpoint(saved)
    assert describe(after) == replace(DESCRIPTION, from_folds=FOUND)
    assert before.keys() == after.keys()
    for name, tensor in before["state_dict"].items():
        assert torch.equal(after["state_dict"][name], tensor)
    assert [after[name] for name in ("epoch", "score", "command")] == [
        before[name] for name in ("epoch", "score", "command")
    ]


def test_what_is_there_is_not_written_again(saved: Path) -> None:
    write_from_folds(saved, FOUND)
    written = saved.stat()
    write_from_folds(saved, FOUND)
    assert saved.stat().st_mtime_ns == written.st_mtime_ns


def test_a_checkpoint_of_before_says_nothing(saved: Path) -> None:
    content = read_checkpoint(saved)
    del content["from_folds"]
    assert describe(content) == DESCRIPTION


@pytest.mark.parametrize(
    "change",
    [
        {"largest_component": [3]},  # there are labels 1 and 2
        {"largest_component": [0]},
        {"largest_component": "liver"},
        {"mirrored": 1},
        {"models": {"liver": asdict(MODEL)}},  # no organ of this network
        {"models": {"posterior": {**asdict(MODEL), "offset": float("nan")}}},
        {"models": {"posterior": {**asdict(MODEL), "lowest_soft_dice": 0.0}}},
        {"models": {"posterior": {**asdict(MODEL), "volumes": [1.0]}}},
        {"models": {"posterior": {"offset": 1.0}}},
    ],
)
def test_what_cannot_be_is_refused(saved: Path, network: nn.Module, change: dict[str, Any]) -> None:
    content = torch.load(saved, weights_only=True)
    torch.save({**content, "from_folds": {**FOUND.content(), **change}}, saved)
    with pytest.raises(DamagedError, match=saved.name):
        describe(read_checkpoint(saved), saved)


def test_an_ensemble_does_what_all_its_networks_say() -> None:
    one, other = FromFolds(Postprocessing((1, 2), True)), FromFolds(Postprocessing((2, 3), True))
    assert common([one, other], ["anatomical", "anatomical"]) == Postprocessing((2,), True)
    assert common([one, other], ["anatomical", "left_right"]) == Postprocessing((2,), False)
    assert common([one, FromFolds()], [None, None]) == Postprocessing()


def test_words_for_people() -> None:
    labels = ("background", "liver", "spleen")
    assert Postprocessing((1, 2), True).in_words(labels) == "mirrored passes; largest component of liver, spleen"
    assert Postprocessing((), True).in_words(labels, 8) == "mirrored passes (8 per window and network)"
    assert Postprocessing((2,)).in_words(labels, 1) == "largest component of spleen"
    assert Postprocessing().in_words(labels, 1) == ""

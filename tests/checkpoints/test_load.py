"""What a checkpoint holds, and what is read from other files."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import monai
import numpy as np
import pytest
import torch

from networks.unetr import UNETR
from utils.checkpoints.description import Description
from utils.checkpoints.load import load_ensemble, load_for_testing
from utils.checkpoints.progress import Progress, UnfinishedEpoch
from utils.checkpoints.resume import InitialState, initial_state, learner_state
from utils.checkpoints.save import save_checkpoint
from utils.config.flags import parse_test, parse_train
from utils.data.data_list import DataList
from utils.data.preprocessing import Preprocessing
from utils.system.errors import InputError

OPTIONS: dict[str, Any] = {
    "in_channels": 1,
    "out_channels": 3,
    "img_size": (16, 16, 32),
    "feature_size": 2,
    "hidden_size": 12,
    "mlp_dim": 8,
    "num_heads": 2,
    "pos_embed": "perceptron",
    "norm_name": "instance",
    "conv_block": True,
    "res_block": True,
    "dropout_rate": 0.0,
    "patch_size": 16,
    "drop_path_rate": 0.0,
    "deep_supervision": False,
}
DESCRIPTION = Description(
    network="unetr",
    options=OPTIONS,
    preprocessing=Preprocessing(intensity="zscore", spacing=(1.0, 1.0, 2.5), roi=(16, 16, 32)),
    labels=("background", "anterior", "posterior"),
    amp=True,
)
DATA = DataList(Path("dataset_0.json"), Path("data"), [], [], [], None)
AS_FLAGS = (
    "--out_channels 3 --roi_x 16 --roi_y 16 --roi_z 32 --feature_size 2 --hidden_size 12 --mlp_dim 8 --num_heads 2"
)


@pytest.fixture
def network() -> UNETR:
    torch.manual_seed(1)
    return UNETR(**OPTIONS)


@pytest.fixture
def saved(network: UNETR, tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "model.pt", DESCRIPTION, network, Progress(epoch=7, score=0.5))
    return tmp_path / "model.pt"


def load(path: Path, flags: str = "", data: DataList = DATA) -> tuple[torch.nn.Module, Description, str]:
    args: Namespace = parse_test(flags.split())
    return load_for_testing(args, path, data)


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_the_best_score_is_the_highest_and_a_number_beats_none() -> None:
    progress = Progress()
    better = []
    for score in [float("nan"), 0.3, float("nan"), 0.2, 0.4]:
        better.append(progress.improves(score))
        if better[-1]:
            progress.best_score = score
    assert better == [True, True, False, False, True]
    assert progress.best_score == 0.4


@pytest.mark.parametrize(
    ("scans", "done"),
    # of 7 scans in batches of 2: steps of 2, 2, 2 and 1 scans
    [(0, 8), (2, 9), (6, 11), (7, 12)],
)
def test_steps_of_an_unfinished_epoch(scans: int, done: int) -> None:
    progress = Progress(epoch=2, unfinished=UnfinishedEpoch(scans=scans))
    assert progress.steps_done(7, processes=1, batch_size=2, accumulate=1) == done


def test_steps_of_several_processes_and_batches() -> None:
    # of 11 scans each of two processes has 6 (one comes twice), in batches of 2, 2 and 2, and so steps of two and one
    for scans, done in ((0, 2), (8, 3), (11, 4), (12, 4)):
        progress = Progress(epoch=1, unfinished=UnfinishedEpoch(scans=scans))
        assert progress.steps_done(11, processes=2, batch_size=2, accumulate=2) == done


def test_a_run_without_float16_goes_on_with_it(network: UNETR) -> None:
    optimizer = torch.optim.AdamW(network.parameters())
    without, scaler = (torch.amp.GradScaler("cpu", enabled=enabled) for enabled in (False, True))
    state = learner_state(network, None, optimizer, without)
    InitialState(Progress(), "there", state=state).restore(network, None, optimizer, scaler)
    assert scaler.get_scale() == 65536  # as it begins


def test_a_checkpoint_describes_itself(saved: Path, network: UNETR) -> None:
    loaded, description, line = load(saved)
    assert description == DESCRIPTION
    assert same_weights(loaded, network)
    assert "tensors loaded" in line
    content = torch.load(saved, weights_only=True)
    assert (content["epoch"], content["score"]) == (7, 0.5)
    assert content["versions"]["monai"] == monai.__version__
    assert "resume" not in content
    assert not list(saved.parent.glob("*.part"))


def test_a_flag_that_contradicts_the_checkpoint_is_an_error_with_both_values(saved: Path) -> None:
    with pytest.raises(InputError, match=r"--feature_size 32 contradicts its 2; --space_z 2 contradicts its 2\.5"):
        load(saved, "--feature_size 32 --space_z 2 --hidden_size 12")


def test_labels_of_the_scans_that_are_not_those_of_the_weights(saved: Path) -> None:
    """Scores compare them by value."""

    def tested_on(*names: str) -> str:
        return load(saved, data=replace(DATA, labels=names))[2]

    assert "note" not in tested_on("background", "Anterior", "posterior")
    words = r"model\.pt: has 'posterior' as label 2, but dataset_0\.json as label 1\. Give scans whose labels have"
    with pytest.raises(InputError, match=words):
        tested_on("background", "posterior", "anterior")
    with pytest.raises(
        InputError, match=r"knows 3 labels .* but dataset_0\.json names 2\. Give weights and a data list"
    ):
        tested_on("background", "anterior")
    line = tested_on("background", "front", "back")
    assert "dataset_0.json calls label 1 'front', the weights 'anterior' (and 1 more); labels are compared" in line


def test_networks_of_one_ensemble_take_the_same_channels(saved: Path) -> None:
    two = saved.with_name("two.pt")
    description = replace(DESCRIPTION, options={**OPTIONS, "in_channels": 2})
    save_checkpoint(two, description, description.build(), Progress())
    with pytest.raises(InputError, match=r"two\.pt: --in_channels 1 contradicts its 2\. Only networks"):
        load_ensemble(parse_test([]), [saved, two], DATA)


def test_bare_weights_are_described_by_flags(network: UNETR, tmp_path: Path) -> None:
    path = tmp_path / "bare.pth"
    torch.save(network.state_dict(), path)
    loaded, description, _ = load(path, AS_FLAGS)
    assert same_weights(loaded, network)
    assert description.preprocessing.spacing == (1.5, 1.5, 2.0)
    assert description.labels == ("background", "label 1", "label 2")


def test_a_checkpoint_of_2021_is_read_with_its_numpy_score(network: UNETR, tmp_path: Path) -> None:
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"epoch": 4800, "best_acc": np.float64(0.79), "state_dict": state}, tmp_path / "model.pt")
    loaded, _, line = load(tmp_path / "model.pt", AS_FLAGS)
    assert same_weights(loaded, network)
    assert "(checkpoint after epoch 4800 of a DDP model)" in line


def script(network: torch.nn.Module, path: Path) -> None:
    torch.jit.script(network).save(str(path))


def test_torchscript_predicts_as_it_is_and_in_float32(network: UNETR, tmp_path: Path) -> None:
    script(network, tmp_path / "script.pt")
    loaded, description, line = load(tmp_path / "script.pt", f"{AS_FLAGS} --saved_checkpoint torchscript")
    assert isinstance(loaded, torch.jit.ScriptModule)
    assert description.amp is False
    assert line.endswith("script.pt (TorchScript), which computes in float32")


class AnyNetwork(torch.nn.Module):
    """None of ours, and without any weights."""

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        return volume.expand(-1, 3, -1, -1, -1)


def test_torchscript_may_hold_a_network_of_any_kind(tmp_path: Path) -> None:
    script(AnyNetwork(), tmp_path / "script.pt")
    loaded, description, _ = load(tmp_path / "script.pt", f"{AS_FLAGS} --saved_checkpoint torchscript")
    assert loaded(torch.ones(1, 1, 16, 16, 32)).shape == (1, 3, 16, 16, 32)
    assert description.labels == ("background", "label 1", "label 2")


def test_training_starts_from_the_weights_of_torchscript(network: UNETR, tmp_path: Path) -> None:
    script(network, tmp_path / "script.pt")
    flags = [*AS_FLAGS.split(), "--resume_jit", f"--pretrained_dir={tmp_path}", "--pretrained_model_name=script.pt"]
    started = DESCRIPTION.build()
    initial_state(parse_train(flags), None, DESCRIPTION, DATA, started)
    assert same_weights(started, network)

    other_heads = replace(DESCRIPTION, options={**OPTIONS, "num_heads": 3})
    with pytest.raises(InputError, match=r"gives other logits than the one that the flags describe.*--num_heads"):
        initial_state(parse_train([*flags, "--num_heads=3"]), None, other_heads, DATA, other_heads.build())


def test_weights_with_residual_blocks_do_not_fit_a_network_without(network: UNETR, tmp_path: Path) -> None:
    path = tmp_path / "residual.pt"
    torch.save(network.state_dict(), path)
    with pytest.raises(InputError, match=r"unknown: .*decoder2\.conv_block\.conv3\.conv\.weight"):
        load(path, f"{AS_FLAGS} --no-res_block")

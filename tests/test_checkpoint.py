"""What a checkpoint holds, and weights from elsewhere."""

import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import monai
import pytest
import torch

from networks.unetr import UNETR
from utils import checkpoint
from utils.args import parse_test
from utils.checkpoint import Description, Progress
from utils.data_list import DataList
from utils.errors import InputError
from utils.preprocessing import Preprocessing

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
    checkpoint.save(tmp_path / "model.pt", DESCRIPTION, network, Progress(epoch=7, score=0.5))
    return tmp_path / "model.pt"


def load(path: Path, flags: str = "") -> tuple[torch.nn.Module, Description, str]:
    args: Namespace = parse_test(flags.split())
    return checkpoint.load_for_testing(args, path, DATA)


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


def test_bare_weights_are_described_by_flags(network: UNETR, tmp_path: Path) -> None:
    path = tmp_path / "bare.pth"
    torch.save(network.state_dict(), path)
    loaded, description, _ = load(path, AS_FLAGS)
    assert same_weights(loaded, network)
    assert description.preprocessing.spacing == (1.5, 1.5, 2.0)
    assert description.labels == ("background", "label 1", "label 2")


def test_weights_of_a_ddp_model_lose_their_prefix(network: UNETR, tmp_path: Path) -> None:
    path = tmp_path / "ddp.pt"
    torch.save({"state_dict": {f"module.{name}": value for name, value in network.state_dict().items()}}, path)
    assert same_weights(load(path, AS_FLAGS)[0], network)


def test_weights_of_todays_monai(tmp_path: Path) -> None:
    options = {name: value for name, value in OPTIONS.items() if name != "pos_embed"}
    theirs = monai.networks.nets.UNETR(**options, proj_type="perceptron").eval()
    path = tmp_path / "monai.pt"
    torch.save(theirs.state_dict(), path)
    ours, _, line = load(path, AS_FLAGS)
    assert "left out" in line
    volume = torch.randn(1, 1, 16, 16, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(volume), theirs(volume), atol=1e-5, rtol=0)


def test_torchscript(network: UNETR, tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    torch.jit.trace(network.eval(), torch.zeros(1, 1, 16, 16, 32)).save(str(path))  # type: ignore[no-untyped-call]
    assert same_weights(load(path, f"{AS_FLAGS} --saved_checkpoint torchscript")[0], network)
    with pytest.raises(
        InputError, match="it is TorchScript, which --resume_jit and --saved_checkpoint=torchscript read"
    ):
        load(path, AS_FLAGS)


def test_weights_with_residual_blocks_do_not_fit_a_network_without(network: UNETR, tmp_path: Path) -> None:
    path = tmp_path / "residual.pt"
    torch.save(network.state_dict(), path)
    with pytest.raises(InputError, match=r"unknown: .*decoder2\.conv_block\.conv3\.conv\.weight"):
        load(path, f"{AS_FLAGS} --no-res_block")


class _Code:
    def __reduce__(self) -> Any:
        return (print, ("code was run",))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "can't be read as weights"),
        (b"no weights at all", "it is damaged, or no file of torch.save"),
        ({"state_dict": {"a": _Code()}}, "could be code and is not run"),
        ({"epoch": 3}, "holds no weights"),
        ([1, 2], "holds no weights"),
    ],
)
def test_what_is_no_checkpoint_is_refused(
    content: Any, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(InputError, match=words) as error:
        load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert "code was run" not in capsys.readouterr().out


def test_a_cut_off_checkpoint_a_folder_and_a_missing_file_are_refused(saved: Path, tmp_path: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:5000])
    for path, words in (
        (saved, "can't be read as weights"),
        (tmp_path, "is a folder"),
        (tmp_path / "nothing.pt", "no such file"),
    ):
        with pytest.raises(InputError, match=re.escape(str(path)) + ".*" + words):
            load(path)

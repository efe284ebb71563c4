"""What is read from weights files, without running code in them."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from utils.checkpoints.read import is_torchscript, read_checkpoint, read_vit
from utils.system.errors import DamagedError, InputError


def test_a_score_of_numpy_as_checkpoints_of_2021_have_it(network: nn.Module, tmp_path: Path) -> None:
    torch.save({"epoch": 4800, "best_acc": np.float64(0.79), "state_dict": network.state_dict()}, tmp_path / "model.pt")
    content = read_checkpoint(tmp_path / "model.pt")
    assert (content["epoch"], content["best_acc"]) == (4800, 0.79)
    assert content["state_dict"].keys() == network.state_dict().keys()


def test_a_name_that_is_missing_is_told_those_that_are_there(tmp_path: Path) -> None:
    for name in ("fold1.pt", "fold0.pt", "notes.txt"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"model.pt: no such file, but there are fold0.pt, fold1.pt. Mend its path"):
        read_checkpoint(tmp_path / "model.pt")


def test_torchscript_is_told_from_a_checkpoint_by_its_content(saved: Path, network: nn.Module, tmp_path: Path) -> None:
    torch.jit.script(network).save(str(tmp_path / "script.pt"))
    assert is_torchscript(tmp_path / "script.pt")
    assert not is_torchscript(saved)
    assert not is_torchscript(tmp_path / "missing.pt")


def test_flags_that_training_programs_save_are_read(tmp_path: Path) -> None:
    """DINO's files hold an argparse.Namespace."""
    path = tmp_path / "dino.pth"
    torch.save({"teacher": {"weight": torch.ones(2)}, "epoch": 3, "args": Namespace(arch="vit")}, path)
    content = read_vit(path)
    assert content["args"].arch == "vit"
    assert torch.equal(content["teacher"]["weight"], torch.ones(2))


def test_what_holds_no_vit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vit.pth"
    torch.save({"format": 99, "preprocessing": {}, "state_dict": {}}, path)
    with pytest.raises(InputError, match="was made by a newer version of this program"):
        read_vit(path)
    torch.save([1, 2], path)
    with pytest.raises(DamagedError, match="holds no weights: neither a checkpoint nor a state dict"):
        read_vit(path)
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(DamagedError, match="it holds more than weights, which could be code and is not run"):
        read_vit(path)


def test_safetensors_are_read(network: nn.Module, tmp_path: Path) -> None:
    state = network.state_dict()
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(state, path)
    found = read_vit(path)["state_dict"]
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DamagedError, match=r"model\.safetensors: can't be read as weights: it is damaged"):
        read_vit(path)

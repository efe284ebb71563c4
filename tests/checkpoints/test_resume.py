"""Where a run starts."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from main import files_to_start_from
from tests.checkpoints.conftest import CONFIG, DATA, DESCRIPTION, same_weights, script
from utils.checkpoints.progress import Progress
from utils.checkpoints.resume import InitialState, StartSettings, initial_state, learner_state, require_continuable
from utils.checkpoints.save import save_checkpoint
from utils.config.flags import parse_train
from utils.data.channels import Region, RegionChannels
from utils.system.errors import DamagedError, InputError


def test_a_run_without_float16_goes_on_with_it(network: nn.Module) -> None:
    optimizer = torch.optim.AdamW(network.parameters())
    without, scaler = (torch.amp.GradScaler("cpu", enabled=enabled) for enabled in (False, True))
    state = learner_state(network, None, optimizer, without)
    InitialState(Progress(), "there", state=state).restore(network, None, optimizer, scaler)
    assert scaler.get_scale() == 65536  # as it begins


def test_training_starts_from_the_weights_of_torchscript(network: nn.Module, tmp_path: Path) -> None:
    script(network, tmp_path / "script.pt")
    start = StartSettings(weights=tmp_path / "script.pt", torchscript=True)
    started = DESCRIPTION.build()
    assert not same_weights(started, network)
    initial_state(start, None, DESCRIPTION, DATA, started)
    assert same_weights(started, network)

    other_heads = replace(DESCRIPTION, config=replace(CONFIG, num_heads=3))
    with pytest.raises(InputError, match=r"gives other logits than the one that the settings describe.*`num_heads`"):
        initial_state(start, None, other_heads, DATA, other_heads.build())


def test_training_starts_from_the_weights_of_a_checkpoint(saved: Path, network: nn.Module) -> None:
    started = DESCRIPTION.build()
    start = initial_state(StartSettings(weights=saved), None, DESCRIPTION, DATA, started)
    assert same_weights(started, network)
    assert start.progress == Progress()  # a new run, whatever the checkpoint's was
    assert start.source == f"{saved} (checkpoint after epoch 7): {len(network.state_dict())} tensors loaded"
    assert start.notes == []


def test_labels_that_become_as_many_regions_are_noted(saved: Path, network: nn.Module, tmp_path: Path) -> None:
    regions = (Region("all", (1, 2, 3)), Region("inner", (2, 3)), Region("core", (3,)))
    by_regions = replace(
        DESCRIPTION,
        labels=("background", "rim", "middle", "core"),
        regions=regions,
        output=RegionChannels(regions, (1, 2, 3)),
    )
    start = initial_state(StartSettings(weights=saved), None, by_regions, DATA, by_regions.build())
    labels, names = "the labels background, anterior and posterior", "the regions all, inner and core"
    assert start.notes == [f"{saved}: its channels are {labels}; from here on they learn {names}"]

    path = tmp_path / "regions.pt"
    save_checkpoint(path, by_regions, network, Progress())
    back = initial_state(StartSettings(weights=path), None, DESCRIPTION, DATA, DESCRIPTION.build())
    assert back.notes == [f"{path}: its channels are {names}; from here on they learn {labels}"]
    same = initial_state(StartSettings(weights=path), None, by_regions, DATA, by_regions.build())
    assert same.notes == []
    # a new output layer keeps nothing of them
    four = replace(DESCRIPTION, config=replace(CONFIG, out_channels=4), labels=by_regions.labels)
    adapted = initial_state(StartSettings(weights=path, adapt=True), None, four, DATA, four.build())
    assert adapted.notes == []


def test_settings_that_contradict_the_checkpoint_are_an_error(saved: Path) -> None:
    other = replace(DESCRIPTION, config=replace(CONFIG, num_heads=3, norm_name="batch"))
    with pytest.raises(InputError) as error:
        initial_state(StartSettings(weights=saved), None, other, DATA, other.build())
    assert str(error.value) == (
        f"{saved}: `num_heads` 3 contradicts its 2; `norm_name` batch contradicts its instance. "
        "Give the settings that it was trained with."
    )
    # no weight depends on these
    free = replace(DESCRIPTION, config=replace(CONFIG, dropout_rate=0.5, drop_path_rate=0.1))
    initial_state(StartSettings(weights=saved), None, free, DATA, free.build())


def test_weights_alone_are_nothing_to_continue_from(saved: Path) -> None:
    with pytest.raises(DamagedError, match=r"model\.pt: holds weights alone, nothing to continue from\. Give the"):
        initial_state(StartSettings(), saved, DESCRIPTION, DATA, DESCRIPTION.build())
    content = {**torch.load(saved, weights_only=True), "resume": {}}
    assert require_continuable(saved, content) == DESCRIPTION
    with pytest.raises(InputError, match="was made by an older version of this program, whose runs can't be continued"):
        require_continuable(saved, {**content, "format": 1})


def test_without_a_file_the_weights_stay_as_they_are_drawn() -> None:
    networks = []
    for _ in range(2):
        torch.manual_seed(1)
        networks.append(DESCRIPTION.build())
    start = initial_state(StartSettings(), None, DESCRIPTION, DATA, networks[0])
    assert start.source == "from random weights"
    assert same_weights(*networks)


def test_all_processes_have_to_see_the_file_that_a_run_begins_from() -> None:
    folder = Path("runs/name")
    latest = folder / "model_final.pt"
    args = parse_train(["--vit_weights=vit.pth"])
    assert files_to_start_from(args, folder, None) == [Path("vit.pth")]
    args = parse_train(["--vit_weights=vit.pth", "--resume", "--save_checkpoint"])
    assert files_to_start_from(args, folder, None) == [latest, Path("vit.pth")]
    assert files_to_start_from(args, folder, latest) == [latest]
    args = parse_train(["--resume_ckpt", "--pretrained_dir=weights", "--pretrained_model_name=w.pt"])
    assert files_to_start_from(args, folder, None) == [Path("weights/w.pt")]
    args = parse_train(
        ["--resume_ckpt", "--pretrained_dir=weights", "--pretrained_model_name=w.pt", "--resume", "--save_checkpoint"]
    )
    assert files_to_start_from(args, folder, latest) == [latest]
    assert files_to_start_from(args, folder, None) == [latest, Path("weights/w.pt")]

"""A network of one's own is one file: everything that the built-in networks can do follows from it."""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from networks.layers import optimize_for_cpu
from networks.registry import find_architecture
from tests.conftest import REPOSITORY, Run
from tests.processes import start_group
from utils import crossval
from utils.checkpoints import load_network
from utils.checkpoints.foreign_weights import average_channels
from utils.config.flags import parse_crossval
from utils.distributed.process import Process
from utils.export import export

FILE = '''"""A network of one's own."""

from dataclasses import dataclass

import torch
from torch import nn

from networks.registry import NetworkConfig, flag, register


class Block(nn.Sequential):
    def __init__(self, channels: int) -> None:
        super().__init__(nn.Conv3d(channels, channels, 3, padding=1), nn.InstanceNorm3d(channels), nn.GELU())


@dataclass(frozen=True)
class MyNetConfig(NetworkConfig):
    width: int = flag(4, "channels at full resolution", at_least=1)


@register("mynet", config=MyNetConfig, window_divisor=lambda config: (8, 8, 8))
class MyNet(nn.Module):
    blocks = (Block,)
    input_layers, output_layers = ("stem",), ("head",)

    def __init__(self, config: MyNetConfig) -> None:
        super().__init__()
        self.stem = nn.Conv3d(config.in_channels, config.width, 1)
        self.body = nn.Sequential(Block(config.width), Block(config.width))
        self.head = nn.Conv3d(config.width, config.out_channels, 1)

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.stem(volume)))
'''
# what a plain network hasn't: parts that are built from numbers, kept out of files, infinite, empty, fixed, in 2D, or
# computed without autocast
DEMANDING = FILE.replace(
    "self.head = ",
    """\
self.rates = [float(rate) for rate in torch.linspace(0, 0.1, 4)]
        self.register_buffer("offset", torch.full((1,), 0.5), persistent=False)
        self.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
        self.register_buffer("none", torch.empty(0))
        self.fixed = nn.Parameter(torch.ones(1, config.width, 1, 1, 1), requires_grad=False)
        self.flat = nn.Conv2d(config.width, config.width, 1)
        self.norm = nn.InstanceNorm3d(config.width, track_running_stats=True)
        self.head = """,
).replace(
    """\
        return self.head(self.body(self.stem(volume)))
""",
    """\
        shares = self.mask.softmax(0)
        values = self.norm(self.body(self.stem(volume)) * self.fixed * shares[0] + self.offset)
        values = self.flat(values.flatten(3)).reshape(values.shape) * (1 + self.rates[-1])
        with torch.autocast(volume.device.type, enabled=False):
            return self.head(values.float())
""",
)
GRID = ["--space_x=12", "--space_y=12", "--space_z=14", "--roi_x=16", "--roi_y=16", "--roi_z=16"]
SHORT = ["--warmup_epochs=1", "--workers=0", "--save_checkpoint"]


@pytest.fixture
def file(in_tmp: Path) -> Path:
    path = in_tmp / "mynet.py"
    path.write_text(FILE)
    return path


@pytest.fixture
def train(file: Path, phantoms: Path, run_main: Run) -> Any:
    def run(name: str, *flags: str, epochs: int = 1, amp: bool = False) -> dict[str, Any]:
        common = [f"--model_name={file}", f"--data_dir={phantoms}", f"--logdir={name}", f"--max_epochs={epochs}"]
        run_main([*common, *GRID, *SHORT, *([] if amp else ["--noamp"]), *flags])
        content: dict[str, Any] = torch.load(Path("runs", name, "model_final.pt"), weights_only=True)
        return content

    return run


def tree() -> dict[str, tuple[int, int]]:
    """Every source file of the repository with its size and time."""
    files = [path for pattern in ("*.py", "*.md", "*.toml", "*.args") for path in REPOSITORY.rglob(pattern)]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files if ".venv" not in path.parts}


def test_its_file_is_about_thirty_lines() -> None:
    assert len([line for line in FILE.splitlines() if line]) <= 30


def test_help_shows_its_flags(file: Path, run_main: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run_main([f"--model_name={file}", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "--width" in text
    assert "channels at full resolution (default: 4)" in text
    assert "--mlp_dim" not in text


def test_it_trains_resumes_recomputes_compiles_and_no_file_of_the_repository_changes(
    train: Any, monkeypatch: pytest.MonkeyPatch, run_test: Run, phantoms: Path, file: Path
) -> None:
    before = tree()
    whole = train("whole", "--width=3", epochs=2)
    assert whole["network"]["name"] == "mynet"
    assert whole["network"]["options"]["width"] == 3
    assert whole["network"]["file"] == {"name": "mynet.py", "sha256": find_architecture(str(file)).sha256}

    begun = train("parts", "--width=3", "--lrschedule=constant", epochs=1)
    resumed = train("parts", "--width=3", "--lrschedule=constant", "--resume", epochs=2)
    straight = train("straight", "--width=3", "--lrschedule=constant", epochs=2)
    assert begun["epoch"] == 1
    assert all(torch.equal(resumed["state_dict"][name], tensor) for name, tensor in straight["state_dict"].items())

    recomputed = train("recomputed", "--width=3", "--activation_checkpointing", epochs=2)
    assert all(torch.equal(recomputed["state_dict"][name], tensor) for name, tensor in whole["state_dict"].items())

    # the backend for all but inductor's code, which takes a compiler a minute
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    compiled = train("compiled", "--width=3", "--compile", epochs=2)
    for name, tensor in whole["state_dict"].items():
        torch.testing.assert_close(compiled["state_dict"][name], tensor, atol=1e-4, rtol=1e-3)

    run_test([f"--data_dir={phantoms}", "--pretrained_dir=runs/whole", "--pretrained_model_name=model.pt",
              f"--model_name={file}"])  # fmt: skip
    scores = json.loads(Path("runs/whole/scores/scores.json").read_text())
    assert [scan["scan"] for scan in scores["scans"]] == ["img0005", "img0006"]
    assert tree() == before


def test_it_is_adapted_to_other_classes_and_channels(train: Any, file: Path, phantoms: Path, tmp_path: Path) -> None:
    old = train("old")["state_dict"]
    content = json.loads((phantoms / "dataset_0.json").read_text())
    for part in ("training", "validation"):  # two channels: the scan twice
        for entry in content[part]:
            entry["image"] = [entry["image"]] * 2
    content["labels"]["14"] = "tumour"
    (tmp_path / "other.json").write_text(json.dumps(content))
    start = ["--resume_ckpt", "--adapt_weights", "--pretrained_dir=runs/old", "--pretrained_model_name=model.pt"]
    # at so small a rate that weights stay as they began, to a millionth
    new = train("new", *start, "--in_channels=2", "--out_channels=15", f"--json_list={tmp_path / 'other.json'}",
                "--optim_lr=1e-9")["state_dict"]  # fmt: skip
    assert new["head.weight"].shape == (15, 4, 1, 1, 1)
    torch.testing.assert_close(new["stem.weight"], average_channels(old["stem.weight"], 2), atol=1e-6, rtol=0)
    torch.testing.assert_close(new["body.0.0.weight"], old["body.0.0.weight"], atol=1e-6, rtol=0)


def test_it_is_exported_and_loaded_in_a_notebook(train: Any, file: Path) -> None:
    train("mine")
    assert export(Path("runs/mine/model.pt"), "onnx", Path("mine.onnx")) <= 1e-4
    network, description = load_network("runs/mine/model.pt", network_file=file)
    assert description.network == "mynet"
    assert network(torch.zeros(1, 1, 16, 16, 16)).shape == (1, 14, 16, 16, 16)


def test_a_demanding_network_trains_resumes_and_is_tested_and_exported(
    train: Any, file: Path, run_test: Run, phantoms: Path
) -> None:
    file.write_text(DEMANDING)
    train("mine", amp=True)
    kept = train("mine", "--resume", epochs=2, amp=True)["state_dict"]
    assert kept["mask"].tolist() == [0, float("-inf")]
    run_test([f"--data_dir={phantoms}", "--pretrained_dir=runs/mine", "--pretrained_model_name=model_final.pt",
              f"--model_name={file}", "--engine=torch"])  # fmt: skip
    scores = json.loads(Path("runs/mine/scores/scores.json").read_text())
    last = json.loads(Path("runs/mine/metrics.jsonl").read_text().splitlines()[-1])
    # where a CPU multiplies bfloat16, a voxel may fall to the other side
    assert scores["mean"] == pytest.approx(last["dice"]["mean"], abs=1e-3)
    assert export(Path("runs/mine/model_final.pt"), "safetensors", Path("mine.safetensors")) <= 1e-4
    network, _ = load_network("runs/mine/model_final.pt", network_file=file)
    window = torch.randn((1, 1, 16, 16, 16), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        plain = network.eval()(window)
        optimized = optimize_for_cpu(network)(window)
    torch.testing.assert_close(optimized, plain, atol=1e-5, rtol=1e-5)


def test_a_changed_file_is_refused_with_both_hashes(
    train: Any, file: Path, phantoms: Path, run_test: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    train("mine")
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    file.write_text(FILE.replace("GELU", "ReLU"))
    after = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(SystemExit) as stop:
        run_test([f"--data_dir={phantoms}", "--pretrained_dir=runs/mine", "--pretrained_model_name=model.pt",
                  f"--model_name={file}"])  # fmt: skip
    assert stop.value.code == 1
    message = capsys.readouterr().err
    assert "--model_name" in message
    assert before in message
    assert after in message


def test_the_run_keeps_a_copy_of_the_file(train: Any, file: Path, run_test: Run, phantoms: Path) -> None:
    train("mine")
    file.unlink()
    run_test([f"--data_dir={phantoms}", "--pretrained_dir=runs/mine", "--pretrained_model_name=model.pt",
              "--model_name=runs/mine/mynet.py"])  # fmt: skip
    assert Path("runs/mine/scores/scores.json").exists()


def test_the_copy_is_of_the_file_that_was_given_last(train: Any, file: Path) -> None:
    train("first")
    earlier = Path(file.rename("earlier.py"))
    file.write_text(FILE)
    find_architecture(str(file))
    earlier.write_text(FILE.replace("GELU", "ReLU"))
    train("mine")
    assert Path("runs/mine/mynet.py").read_text() == FILE


def test_a_run_that_replaces_another_keeps_the_file_that_it_was_trained_with(train: Any, file: Path) -> None:
    train("mine")
    # line ends and bytes of another system, which the hash covers
    file.write_bytes(b"# -*- coding: latin-1 -*-\r\n# gr\xf6\xdfer\r\n" + FILE.replace("GELU", "ReLU").encode())
    content = train("mine", "--overwrite")
    copy = Path("runs/mine/mynet.py").read_bytes()
    assert copy == file.read_bytes()
    assert content["network"]["file"]["sha256"] == hashlib.sha256(copy).hexdigest()


def test_a_network_with_another_number_of_outputs_ends_before_training(
    train: Any, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(FILE.replace("config.out_channels, 1)", "2, 1)"))
    with pytest.raises(SystemExit):
        train("mine")
    message = capsys.readouterr().err
    assert "mynet.py: gives (1, 2, 16, 16, 16) for a window" in message
    assert "not (1, 14, 16, 16, 16)" in message


def test_a_network_whose_state_no_checkpoint_keeps_ends_before_training(
    train: Any, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(FILE + "\n    def get_extra_state(self):\n        return {'calls': 0}\n")
    with pytest.raises(SystemExit):
        train("mine")
    assert "mynet.py: its _extra_state is no tensor but a dict, and checkpoints" in capsys.readouterr().err
    assert not Path("runs/mine/model_final.pt").exists()


def test_layers_that_several_processes_cannot_train_are_named(file: Path, phantoms: Path) -> None:
    file.write_text(FILE.replace("self.head = ", "self.spare = nn.Conv3d(1, 1, 1)\n        self.head = "))
    argv = [f"--model_name={file}", f"--data_dir={phantoms}", "--max_epochs=1", *GRID, *SHORT, "--noamp"]
    group = start_group(2, argv)
    assert group.wait() == [1, 1], group.texts
    text = "".join(group.texts)
    assert "error: rank " in text or "error: MyNet" in text
    assert "MyNet: its loss doesn't depend on spare.weight and spare.bias, and several processes" in text
    assert "Traceback" not in text


def test_it_is_cross_validated(file: Path, phantoms: Path, run_main: Run, run_test: Run, tmp_path: Path) -> None:
    content = json.loads((phantoms / "dataset_0.json").read_text())
    entries = [{**entry, "fold": number % 2} for number, entry in enumerate(content["training"])]
    folds = {"labels": content["labels"], "training": entries}
    (tmp_path / "folds.json").write_text(json.dumps(folds))
    argv = [f"--model_name={file}", f"--data_dir={phantoms}", f"--json_list={tmp_path / 'folds.json'}", "--logdir=cv",
            "--max_epochs=1", *GRID, "--warmup_epochs=1", "--workers=0", "--noamp"]  # fmt: skip
    args, flags = parse_crossval(argv)

    def execute(command: Any) -> int:
        (run_main if command[1].endswith("main.py") else run_test)(command[2:])
        return 0

    crossval.main(args, flags, "", execute, Process(torch.device("cpu")))
    scores = json.loads(Path("runs/cv/crossval.json").read_text())["scores"]["dice"]
    assert {"fold 0", "fold 1", "mean over folds"} <= scores.keys()

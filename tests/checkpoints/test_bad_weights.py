"""Files that are no weights, or those of another network: one line names the file, the fault and what to do."""

import os
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import monai
import pytest
import torch

from tests.conftest import TINY, Run
from utils.checkpoints.description import Description
from utils.checkpoints.progress import Progress
from utils.checkpoints.read import read_checkpoint
from utils.checkpoints.resume import learner_state, resume_state
from utils.checkpoints.save import save_checkpoint
from utils.config.flags import parse_train
from utils.config.settings import description_from_args
from utils.data.data_list import unlisted
from utils.phantom import LABELS

FILE = "weights.pt"
PROGRAMS: dict[str, list[str]] = {
    "main.py --resume_ckpt": ["--resume_ckpt", "--pretrained_dir=.", f"--pretrained_model_name={FILE}"],
    "main.py --resume_jit": ["--resume_jit", "--pretrained_dir=.", f"--pretrained_model_name={FILE}"],
    "main.py --checkpoint": [f"--checkpoint={FILE}"],
    "test.py ckpt": ["--pretrained_dir=.", f"--pretrained_model_name={FILE}"],
    "test.py torchscript": ["--pretrained_dir=.", f"--pretrained_model_name={FILE}", "--saved_checkpoint=torchscript"],
}


def described(*flags: str) -> Description:
    args = parse_train([*TINY, *flags])
    return replace(description_from_args(args, unlisted(None)), labels=LABELS[: args.out_channels], amp=False)


def write_checkpoint(path: Path, *flags: str) -> None:
    """As a run leaves it, with what continuing needs."""
    description = described(*flags)
    network = description.build()
    optimizer = torch.optim.AdamW(network.parameters())
    scans = {part: [[part]] for part in ("training", "validation")}
    learner = learner_state(network, None, optimizer, torch.amp.GradScaler("cpu", enabled=False))
    state = resume_state(learner, Progress(epoch=3), {"optim_name": "adamw"}, {"scans": scans})
    save_checkpoint(path, description, network, Progress(epoch=3, score=0.5), state)


def write_torchscript(path: Path, *flags: str) -> None:
    with warnings.catch_warnings(action="ignore"):
        torch.jit.script(described(*flags).build()).save(str(path))


def cut_off(path: Path) -> None:
    write_checkpoint(path)
    os.truncate(path, path.stat().st_size // 2)


def cut_off_torchscript(path: Path) -> None:
    write_torchscript(path)
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path: Path) -> None:
    write_checkpoint(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


class Shift(torch.nn.Module):
    """Fourteen equal logits, from a network that is none of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(1))

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        return (volume + self.bias).expand(-1, 14, -1, -1, -1)


def write_another_torchscript(path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):
        torch.jit.script(Shift()).save(str(path))


class _Code:
    def __reduce__(self) -> Any:
        return (print, ("code was run",))


def bare(*flags: str) -> Callable[[Path], object]:
    return lambda path: torch.save(described(*flags).build().state_dict(), path)


def of_a_later_network(path: Path) -> None:
    write_checkpoint(path)
    content = read_checkpoint(path)
    torch.save({**content, "network": {"name": "unetr_of_2030", "options": {}}}, path)


# what was made, and the words of each program's line; a program that isn't named reads the file
DAMAGED = "it is damaged, or of another kind. Copy it again, or give another file."
AS_WEIGHTS, AS_TORCHSCRIPT = "can't be read as weights: ", "can't be read as TorchScript: "
TAKES_WEIGHTS = ("main.py --resume_ckpt", "main.py --checkpoint", "test.py ckpt")
TAKES_TORCHSCRIPT = ("main.py --resume_jit", "test.py torchscript")


def everywhere(reason: str) -> dict[str, str]:
    return {
        **dict.fromkeys(TAKES_WEIGHTS, AS_WEIGHTS + reason),
        **dict.fromkeys(TAKES_TORCHSCRIPT, AS_TORCHSCRIPT + reason),
    }


def not_torchscript() -> dict[str, str]:
    words = "it is a checkpoint or a state dict. Give --resume_ckpt, or to test.py --saved_checkpoint=ckpt."
    return dict.fromkeys(TAKES_TORCHSCRIPT, AS_TORCHSCRIPT + words)


def not_weights() -> dict[str, str]:
    words = "it is TorchScript. Give --resume_jit, or to test.py --saved_checkpoint=torchscript."
    return dict.fromkeys(TAKES_WEIGHTS, AS_WEIGHTS + words)


OTHER_SETTINGS = "Give the settings that it was trained with."
OTHER_CLASSES = "Give --adapt_weights to adapt them to the new task, or the settings that it was trained with."
OF_A_RUN = "Give the settings of its run.\n"
ALONE = "holds weights alone, nothing to continue from. Give the run's model_final.pt"
CASES: dict[str, tuple[Callable[[Path], object], dict[str, str]]] = {
    "a network of a later version": (
        of_a_later_network,
        dict.fromkeys(TAKES_WEIGHTS, "was made by a newer version of this program. Update it."),
    ),
    "a truncated checkpoint": (cut_off, everywhere(DAMAGED)),
    "truncated TorchScript": (cut_off_torchscript, everywhere(DAMAGED)),
    "a checkpoint with another bit": (flip_a_bit, everywhere(DAMAGED)),
    "a zip that is no checkpoint": (write_zip, everywhere(DAMAGED)),
    "a text": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), everywhere(DAMAGED)),
    "a text that unpickling takes for instructions": (
        lambda path: path.write_text("stopped by SIGTERM\n"),
        everywhere(DAMAGED),
    ),
    "an empty file": (
        lambda path: path.write_bytes(b""),
        everywhere("it is empty. Copy it again, or give another file."),
    ),
    "a folder": (
        lambda path: path.mkdir(),
        dict.fromkeys(PROGRAMS, "is a folder, not a file. Mend its path (--pretrained_dir"),
    ),
    "a missing file": (lambda path: None, dict.fromkeys(PROGRAMS, "no such file. Mend its path (--pretrained_dir")),
    "a pickle with code in it": (
        lambda path: torch.save({"state_dict": {"weight": _Code()}}, path),
        {
            **dict.fromkeys(
                TAKES_WEIGHTS,
                "it holds more than weights, which could be code and is not run. Save its state_dict() alone.",
            ),
            **not_torchscript(),
        },
    ),
    "another architecture": (
        lambda path: torch.save(monai.networks.nets.BasicUNet(3, 1, 14).state_dict(), path),
        {
            **dict.fromkeys(TAKES_WEIGHTS, "holds the weights of another architecture: 82 of its 82 tensors"),
            "main.py --checkpoint": ALONE,
            **not_torchscript(),
        },
    ),
    "bare weights of another feature size": (
        bare("--feature_size=3"),
        {
            **dict.fromkeys(TAKES_WEIGHTS, f"--feature_size is 2, but its weights have 3. {OTHER_SETTINGS}"),
            "main.py --checkpoint": ALONE,
            **not_torchscript(),
        },
    ),
    "a checkpoint of another feature size": (
        lambda path: write_checkpoint(path, "--feature_size=3"),
        {
            "main.py --resume_ckpt": f"--feature_size 2 contradicts its 3. {OTHER_SETTINGS}",
            "main.py --checkpoint": f"--feature_size 2 contradicts its 3. {OF_A_RUN}",
            "test.py ckpt": "--feature_size 2 contradicts its 3. Leave these settings out",
            **not_torchscript(),
        },
    ),
    "bare weights of another class count": (
        bare("--out_channels=5"),
        {
            "main.py --resume_ckpt": f"--out_channels is 14, but its weights have 5. {OTHER_CLASSES}",
            "main.py --checkpoint": ALONE,
            "test.py ckpt": f"--out_channels is 14, but its weights have 5. {OTHER_SETTINGS}",
            **not_torchscript(),
        },
    ),
    "a checkpoint of another class count": (
        lambda path: write_checkpoint(path, "--out_channels=5"),
        {
            "main.py --resume_ckpt": f"--out_channels is 14, but its weights have 5. {OTHER_CLASSES}",
            "main.py --checkpoint": f"--out_channels 14 contradicts its 5. {OF_A_RUN}",
            "test.py ckpt": "knows 5 labels (the background included), but",
            **not_torchscript(),
        },
    ),
    "TorchScript": (write_torchscript, not_weights()),
    "a checkpoint": (write_checkpoint, not_torchscript()),
    "TorchScript of another feature size": (
        lambda path: write_torchscript(path, "--feature_size=3"),
        {"main.py --resume_jit": f"--feature_size is 2, but its weights have 3. {OTHER_SETTINGS}", **not_weights()},
    ),
    "TorchScript of another class count": (
        lambda path: write_torchscript(path, "--out_channels=5"),
        {
            "main.py --resume_jit": f"--out_channels is 14, but its weights have 5. {OTHER_CLASSES}",
            "test.py torchscript": "gives (1, 5, 16, 16, 16) for a window of (1, 1, 16, 16, 16), not (1, 14,",
            **not_weights(),
        },
    ),
    "TorchScript of two channels": (
        lambda path: write_torchscript(path, "--in_channels=2"),
        {
            "main.py --resume_jit": f"--in_channels is 1, but its weights have 2. {OTHER_CLASSES}",
            "test.py torchscript": "can't predict a window of (1, 1, 16, 16, 16)",
            **not_weights(),
        },
    ),
    "TorchScript of something else": (
        write_another_torchscript,
        {
            "main.py --resume_jit": "holds the weights of another architecture: 1 of its 1 tensors, such as bias",
            **not_weights(),
        },
    ),
}


@pytest.mark.parametrize("kind", CASES)
def test_each_program_says_what_is_wrong_in_one_line(
    run_main: Run, run_test: Run, phantoms: Path, in_tmp: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make, words = CASES[kind]
    make(Path(FILE))
    for program, flags in PROGRAMS.items():
        if program not in words:
            continue
        trains = program.startswith("main.py")
        run = run_main if trains else run_test
        flags = [*flags, "--skip_data_check"] if trains else flags
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            run([f"--data_dir={phantoms}", "--workers=0", *TINY, *flags])
        screen = capsys.readouterr()
        assert stop.value.code == 1, program
        assert screen.err.startswith("error: "), program
        assert words[program] in screen.err, program
        assert screen.err.count("\n") == 1, program
        assert "code was run" not in screen.out, program
        assert not list(Path(".").glob("runs/*"))

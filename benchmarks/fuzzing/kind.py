"""What all kinds of hostile inputs share: the network and data that the programs use, and how results are looked at."""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import nibabel as nib
import numpy as np

from benchmarks.fuzzing import dicom, nifti, sound, text_headers
from benchmarks.fuzzing.sandbox import Command, Ended, Sandbox
from benchmarks.fuzzing.verdicts import Verdict, crash, refusal
from utils.system.files import write_json

WINDOW = 16
NETWORK = [
    *(f"--space_{axis}={step:g}" for axis, step in zip("xyz", sound.SPACING, strict=True)),
    *(f"--roi_{axis}={WINDOW}" for axis in "xyz"),
    *(
        "--hidden_size=12",
        "--mlp_dim=12",
        "--num_heads=2",
        "--feature_size=4",
        "--norm_name=batch",
        f"--out_channels={len(sound.CLASSES)}",
    ),
]
EPOCHS = 16
TRAINING = [
    *NETWORK,
    "--device=cpu",
    "--noamp",
    "--save_checkpoint",
    "--workers=0",
    "--warmup_epochs=1",
    "--optim_lr=3e-2",
]
TESTING = ["--device=cpu", "--noamp", "--output_dir=out", "--workers=0"]


@dataclass(frozen=True)
class Input:
    """What a program was given.

    Attributes:
        what: what is odd about it, in a line.
        harmless: whether nothing that counts was changed, so that the results have to be the same.
    """

    what: str
    harmless: bool = False


class Workplace:
    """A trained network, data, and the right mask of the sound scan.

    Args:
        folder: where they are written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        write_data(self.data)
        training = Sandbox(folder / "training")
        flags = [
            *TRAINING,
            f"--data_dir={self.data}",
            "--logdir=run",
            f"--max_epochs={EPOCHS}",
            f"--val_every={EPOCHS}",
        ]
        _require_done(training.run(Command("main.py", flags, writes=("runs",))))
        self.run = training.folder / "runs" / "run"
        self.model, self.latest = self.run / "model.pt", self.run / "model_final.pt"
        testing = Sandbox(folder / "testing")
        write_sound_scans(testing.folder / "inputs")
        _require_done(testing.run(self.test("inputs")))
        self.tested = testing
        masks = [read_mask(path) for path in sorted(testing.out.glob("*.nii.gz"))]
        self.mask = masks[0]
        assert self.mask is not None
        assert len(np.unique(self.mask[0])) > 1, "the network finds nothing"
        assert all(same_mask(mask, self.mask) for mask in masks), "the sound scans differ"
        assert len(masks) == len(list((testing.folder / "inputs").iterdir()))

    def test(self, *flags: str, writes: Sequence[str] = ("out",)) -> Command:
        """A command that segments ``flags`` with the sound network: paths of inputs first, then flags."""
        paths = [flag for flag in flags if not flag.startswith("--")]
        others = [flag for flag in flags if flag.startswith("--")]
        weights = [f"--pretrained_dir={self.run}", "--pretrained_model_name=model.pt"]
        return Command("test.py", [*TESTING, *weights, *others, *(["--input", *paths] if paths else [])], writes)


class Kind(ABC):
    """Inputs of one kind.

    Attributes:
        name: of the table's row.
        share: how many there are, as a part of the sum of all kinds' shares.
        batch: how many are given to one command.
    """

    name: str
    share: int
    batch: int = 1

    def __init__(self, workplace: Workplace) -> None:
        self.workplace = workplace

    @abstractmethod
    def prepare(self, randoms: Sequence[Random], sandbox: Sandbox) -> tuple[list[Input], Command]:
        """Write inputs into a sandbox, one for each source of chance, and say what command they are for."""

    @abstractmethod
    def judge(self, inputs: Sequence[Input], ended: Ended, sandbox: Sandbox) -> list[Verdict]:
        """What came of each input."""


class Single(Kind):
    """A kind whose inputs need a command each."""

    @abstractmethod
    def make(self, random: Random, sandbox: Sandbox) -> tuple[Input, Command]:
        """Write an input into a sandbox, and say what command it is for."""

    def prepare(self, randoms: Sequence[Random], sandbox: Sandbox) -> tuple[list[Input], Command]:
        """Write the only input into a sandbox, and say what command it is for."""
        (random,) = randoms
        made, command = self.make(random, sandbox)
        return [made], command

    def judge(self, inputs: Sequence[Input], ended: Ended, sandbox: Sandbox) -> list[Verdict]:
        """Whether all masks can be read, and are right where nothing that counts was changed."""
        if (verdict := crash(ended)) is not None:
            return [verdict]
        masks = [read_mask(path) for path in sandbox.out.glob("*.nii.gz") if "probabilities" not in path.name]
        if any(mask is None for mask in masks):
            return [Verdict.WRONG]
        if inputs[0].harmless and any(mask is not None and not same_mask(mask, self.workplace.mask) for mask in masks):
            return [Verdict.WRONG]
        return [Verdict.RIGHT if ended.status == 0 else refusal(ended.errors)]


Mask = tuple[np.ndarray, np.ndarray]  # (X, Y, Z) and its affine, axes towards Right, Anterior and Superior


def read_mask(path: Path) -> Mask | None:
    """A mask; None if it is none: it can't be read, has no place in space, or other values than the labels."""
    try:
        image: Any = nib.as_closest_canonical(nib.load(path))
        mask = np.asarray(image.dataobj)
        mask = mask.reshape(mask.shape[:3]) if set(mask.shape[3:]) <= {1} else mask  # as the scan has them
    except Exception:  # nibabel raises whatever a damaged file happens to break
        return None
    placed = np.isfinite(image.affine).all() and np.linalg.det(image.affine[:3, :3]) != 0
    sound_values = mask.ndim == 3 and mask.dtype.kind in "iu" and mask.min() >= 0
    return (mask, image.affine) if placed and sound_values else None


def same_mask(one: Mask | None, other: Mask | None) -> bool:
    """Whether two masks have the same voxels at the same places."""
    if one is None or other is None:
        return False
    return np.array_equal(one[0], other[0]) and np.allclose(one[1], other[1], rtol=1e-4, atol=1e-3)


def write_data(folder: Path) -> None:
    """Three scans to train on and one to validate, with their labels and a data list."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    entries = []
    for number in range(4):
        noise = np.random.default_rng(number).normal(0, 10, sound.SHAPE)
        scan = (sound.voxels() + noise).astype(np.int16)
        entry = {"image": f"imagesTr/scan{number}.nii.gz", "label": f"labelsTr/scan{number}.nii.gz"}
        (folder / entry["image"]).write_bytes(nifti.file_of(scan))
        (folder / entry["label"]).write_bytes(nifti.file_of(sound.labels()))
        entries.append(entry)
    labels = {str(value): name for value, name in enumerate(sound.CLASSES)}
    (folder / "imagesTr" / "sound.nii.gz").write_bytes(nifti.sound_file())
    write_json(
        folder / "dataset_0.json",
        {"labels": labels, "training": entries[:3], "validation": entries[3:], "test": ["imagesTr/sound.nii.gz"]},
    )


def write_sound_scans(folder: Path) -> None:
    """The sound scan in the four formats."""
    (folder / "nifti").mkdir()
    (folder / "nifti" / "scan.nii.gz").write_bytes(nifti.sound_file())
    for name, content in {**text_headers.sound_nrrd(), **text_headers.sound_meta_image()}.items():
        (folder / name.partition(".")[2]).mkdir()
        (folder / name.partition(".")[2] / name).write_bytes(content)
    write_series(folder / "series")


def write_series(folder: Path) -> None:
    """The sound scan as a DICOM series."""
    folder.mkdir()
    for name, content in dicom.sound_series().items():
        assert isinstance(content, bytes)
        (folder / name).write_bytes(content)


def copy_data(workplace: Workplace, folder: Path) -> None:
    """A copy of the data, which a program may be given in place of it."""
    shutil.copytree(workplace.data, folder)


def _require_done(ended: Ended) -> None:
    if ended.status != 0:
        raise RuntimeError(f"the sound input doesn't work: status {ended.status}\n{ended.output}\n{ended.errors}")

"""Write checkpoints."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from utils.checkpoints.description import METADATA, Description, describe
from utils.checkpoints.postprocessing import FromFolds
from utils.checkpoints.progress import Progress
from utils.checkpoints.read import read_checkpoint
from utils.data.regions import scored_structures
from utils.system.files import atomic_write
from utils.system.tensors import save_tensors


def save_checkpoint(
    path: Path,
    description: Description,
    network: nn.Module,
    progress: Progress,
    resume: Mapping[str, Any] | None = None,
    previous: Path | None = None,
) -> None:
    """Write a checkpoint in one step: at any moment ``path`` is the whole old file or the whole new one.

    Args:
        resume: from :func:`utils.checkpoints.resume.resume_state`, if a run is to continue from the checkpoint.
        previous: where the checkpoint that was at ``path`` goes.

    Raises:
        WriteError: if it can't be written.
    """
    content = {
        **description.content(),
        "state_dict": {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()},
        "epoch": progress.epoch,
        "score": progress.score,
    }
    if resume is not None:
        content["resume"] = resume
    with atomic_write(path, previous) as temporary, open(temporary, "wb") as file:
        save_tensors(content, file)


def write_from_folds(path: Path, found: FromFolds) -> None:
    """Write what a cross-validation found into a checkpoint, unless it says so already.

    Of regions that the data list got after the training, the checkpoint knows nothing.

    Raises:
        InputError: if it can't be read.
        WriteError: if it can't be written.
    """
    content = read_checkpoint(path)
    description = describe(content, path)
    assert description is not None, "checkpoints of main.py describe themselves"
    found = found.of(scored_structures(description.labels, description.regions))
    if content.get("from_folds") == found.content():
        return
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        save_tensors({**content, "from_folds": found.content()}, file)


def add_metadata(path: Path, metadata: str) -> None:
    """Add a description to a bare state dict, at the place that TorchScript uses; ``torch.load`` doesn't see it."""
    with zipfile.ZipFile(path, "a") as archive:
        top = archive.namelist()[0].split("/")[0]
        archive.writestr(f"{top}/extra/{METADATA}", metadata)

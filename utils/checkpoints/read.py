"""Read weights files. No code in them is run, but for TorchScript, which is code."""

import errno
import pickle
import types
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy._core.multiarray import scalar as numpy_scalar
from torch import Tensor

from utils.checkpoints.archive import is_zip, require_no_bomb
from utils.checkpoints.description import METADATA, refuse_newer
from utils.checkpoints.schema import check_metadata, check_resume, check_tensors, describes_itself, require_bounded
from utils.system.errors import UNREADABLE, DamagedError, InputError, first_line, is_out_of_memory
from utils.system.files import parse_json, require_regular

MOST_METADATA = 2**20  # bytes of the description inside files of other formats
# the flags of all programs that name a checkpoint
PATH_FLAGS = " (`pretrained_dir` and `pretrained_model_name`, or `checkpoint` or `vit_weights` of main.py)"


def _number(dtype: Any, data: Any) -> Any:
    """A numpy scalar that is a number; others can have any size."""
    if not isinstance(dtype, np.dtype) or dtype.kind not in "fiub":
        raise pickle.UnpicklingError("a scalar is no number")
    return numpy_scalar(dtype, data)


# types that weights files hold beside tensors, and that are safe to construct. The repository of 2021 saved its best
# score as a numpy scalar
HARMLESS: list[Any] = [
    (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),
    np.dtype,
    type(np.dtype(np.float64)),
    type(np.dtype(np.float32)),
    (types.SimpleNamespace, "argparse.Namespace"),  # flags, as MAE and DINO save them
]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint or of a bare state dict. No code in the file is run.

    Raises:
        DamagedError: if the file is damaged or holds something else.
        InputError: if there is no such file, it can't be read now, or a newer version made it.
    """
    if _is_safetensors(path):
        content: Any = _load_safetensors(path)
    else:
        content = _load(path, if_torchscript="Give `resume_jit`, or to test.py `saved_checkpoint`=torchscript")
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content, weights = _checked(path, content), content["state_dict"]
    elif isinstance(content, Mapping) and content and all(isinstance(value, Tensor) for value in content.values()):
        content, weights = _checked(path, _metadata(path)), content
    else:
        weights = None
    if not weights:
        raise DamagedError(f"{path}: holds no weights: neither a checkpoint of main.py nor a state dict.")
    check_tensors(weights, path)
    return {**content, "state_dict": weights}


def read_vit(path: Path) -> dict[str, Any]:
    """The content of a file with the weights of a ViT, from any program. No code in the file is run.

    Raises:
        DamagedError: if the file is damaged or holds something else.
        InputError: if there is no such file, it can't be read now, or a newer version made it.
    """
    if _is_safetensors(path):
        content: Any = {"state_dict": _load_safetensors(path)}
    else:
        content = _load(path, if_torchscript="Save its state_dict() alone")
    if not isinstance(content, Mapping):
        raise DamagedError(f"{path}: holds no weights: neither a checkpoint nor a state dict.")
    content = {**_metadata(path), **content}
    return {**content, **_checked(path, content)}


def _checked(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says beside its weights; a checkpoint of ours is checked for what it says."""
    if not describes_itself(content):
        return {name: value for name, value in content.items() if name != "state_dict"}
    refuse_newer(content, path)
    resume = {"resume": check_resume(content["resume"], path)} if "resume" in content else {}
    return {**check_metadata(content, path), **resume}


def _load(path: Path, if_torchscript: str) -> Any:
    """The content of a file of ``torch.save``.

    Args:
        if_torchscript: advice for the error message if the file is TorchScript.
    """
    _require_file(path)
    try:
        _require_whole(path)
        with (
            warnings.catch_warnings(action="ignore", category=UserWarning),  # about TorchScript, see below
            torch.serialization.safe_globals(HARMLESS),
        ):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except DamagedError:
        raise
    except UNREADABLE as error:
        reason = _why_unreadable(path, error)
        if "TorchScript" in str(error):
            reason = f"it is TorchScript. {if_torchscript}"
        elif "Unsupported global" in str(error) or "Unsupported class" in str(error):
            reason = "it holds more than weights, which could be code and is not run. Save its state_dict() alone"
        raise DamagedError(f"{path}: can't be read as weights: {reason}.") from error
    require_bounded(content, path.stat().st_size, path)
    return content


def _is_safetensors(path: Path) -> bool:
    """Whether a file is in the format of safetensors by its name, or by its beginning: a length and a JSON object."""
    if path.suffix == ".safetensors":
        return True
    _require_file(path)
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    _require_file(path)
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, *UNREADABLE) as error:
        raise DamagedError(f"{path}: can't be read as weights: {_why_unreadable(path, error)}.") from error
    return tensors


def _metadata(path: Path) -> dict[str, Any]:
    """The description that ``utils.export`` adds to weights, else nothing.

    Raises:
        DamagedError: if it is no JSON object, or too long to be one of ours.
    """
    fault = f"{path}: its {METADATA} isn't what this program writes"
    remedy = "Export the network again."
    try:
        texts = _descriptions(path)
        if not texts:
            return {}
        if None in texts or len(texts) > 1:
            raise DamagedError(f"{fault}: there are several, or it is longer than {MOST_METADATA:,} bytes. {remedy}")
        found = parse_json(str(texts[0]))
    except DamagedError:
        raise
    except ValueError as error:
        raise DamagedError(f"{fault}: {first_line(error)}. {remedy}") from error
    if not isinstance(found, dict) or not describes_itself(found):
        raise DamagedError(f"{fault}. {remedy}")
    return found


def _descriptions(path: Path) -> list[str | None]:
    """All texts of the name :data:`METADATA` in a file that was read; None for one that is too long.

    Raises:
        ValueError: if one isn't UTF-8.
    """
    if _is_safetensors(path):
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA)
        return [] if text is None else [text if len(text) <= MOST_METADATA else None]
    if not is_zip(path):
        return []  # torch before 1.6 wrote no zip files
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if member.filename.endswith(f"/extra/{METADATA}")]
        return [
            archive.read(member).decode("utf-8-sig") if member.file_size <= MOST_METADATA else None
            for member in members
        ]


def read_torchscript(path: Path) -> tuple[torch.jit.ScriptModule, dict[str, Any]]:
    """The network of a TorchScript file, and content as :func:`read_checkpoint` returns it.

    TorchScript is code: give only files that you trust.

    Raises:
        DamagedError: if it says what can't be.
        InputError: if there is no such file, or it isn't TorchScript.
    """
    _require_file(path)
    try:
        _require_whole(path)
        module = torch.jit.load(str(path), map_location="cpu")
    except DamagedError:
        raise
    except UNREADABLE as error:
        reason = _why_unreadable(path, error)
        if _is_of_torch_save(path):
            reason = "it is a checkpoint or a state dict. Give `resume_ckpt`, or to test.py `saved_checkpoint`=ckpt"
        raise InputError(f"{path}: can't be read as TorchScript: {reason}.") from error
    return module, {**_checked(path, _metadata(path)), "state_dict": module.state_dict()}


def _require_file(path: Path) -> None:
    if not path.exists() or path.is_dir():
        what = "is a folder, not a file" if path.is_dir() else "no such file"
        there = [] if path.is_dir() else sorted(file.name for file in path.parent.glob("*.pt*"))
        what += f", but there are {', '.join(there[:6])}" if there else ""
        raise InputError(f"{path}: {what}. Mend its path{PATH_FLAGS}.")
    require_regular(path)


def _why_unreadable(path: Path, error: Exception) -> str:
    """What is wrong with a file that can't be read, and what to do.

    Raises:
        InputError: if the cause is the machine, so that the file may be sound.
    """
    # EINVAL comes from damaged files: they make zipfile seek to a negative position
    if is_out_of_memory(error) or getattr(error, "errno", None) not in (None, errno.EINVAL):
        raise InputError(f"{path}: can't be read now ({first_line(error)}). Launch again when it can be.") from error
    if path.stat().st_size == 0:
        return "it is empty. Copy it again, or give another file"
    return "it is damaged, or of another kind. Copy it again, or give another file"


def _is_of_torch_save(path: Path) -> bool:
    names = _members(path)
    return "data.pkl" in names and "constants.pkl" not in names


def is_torchscript(path: Path) -> bool:
    """Whether a file is TorchScript. A damaged or missing file isn't."""
    return "constants.pkl" in _members(path)


def _members(path: Path) -> set[str]:
    """The names of the files in a zip file of torch, without their folder; none if it isn't a sound zip file."""
    try:
        _require_whole(path)
        with zipfile.ZipFile(path) as archive:
            return {name.split("/", 1)[-1] for name in archive.namelist()}
    except UNREADABLE:
        return set()


def _require_whole(path: Path) -> None:
    """Compare the checksums that ``torch.save`` writes; ``torch.load`` doesn't.

    Raises:
        DamagedError: if it claims more than it has.
        ValueError: if a checksum differs. A damaged file may also raise others of :data:`UNREADABLE`.
    """
    require_no_bomb(path)
    if not is_zip(path):
        return  # torch before 1.6 wrote none
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"{damaged} has another checksum")

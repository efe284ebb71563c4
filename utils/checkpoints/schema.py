"""What a checkpoint of ours may say. Whatever is read from a file is checked against this before it is used.

Network and preprocessing check their own fields (:class:`networks.registry.NetworkConfig`,
:class:`utils.data.preprocessing.Preprocessing`), as they do those of flags.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired

import torch
from annotated_types import Ge, Gt, Le, Len, Lt
from pydantic import AfterValidator, ConfigDict, StringConstraints, TypeAdapter, ValidationError, with_config
from torch import Tensor
from typing_extensions import TypedDict

from utils.system.errors import DamagedError
from utils.system.typed import STRICT, schema_faults

OWN_KEYS = {"format", "network", "preprocessing", "labels", "amp"}
MOST_VALUES = 2**25  # in a checkpoint beside its tensors: characters of texts, and 16 for any other value
HARMLESS_TENSORS = (Tensor, torch.nn.Parameter)


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("should be printable")
    return text


def _of_unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("should be Unicode") from None
    return text


def _distinct(labels: list[str]) -> list[str]:
    if len(set(labels)) < len(labels):
        raise ValueError("should be distinct")
    return labels


def _losses_of_scans(part: "Unfinished") -> "Unfinished":
    if bool(part["scans"]) != bool(part["losses"]):
        raise ValueError("should have losses if there are scans")
    return part


def _of_a_run(flags: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(flags.get("optim_name"), str):
        raise ValueError("should have an optim_name")
    if not isinstance(flags.get("max_epochs", 1), int):
        raise ValueError("should have a whole number as max_epochs")
    return flags


Name = Annotated[str, Len(1, 1000), AfterValidator(_printable)]
Label = Annotated[str, Len(1, 1000), AfterValidator(_of_unicode)]
Count = Annotated[int, Ge(0), Le(10**9)]
Finite = Annotated[float, Gt(float("-inf")), Lt(float("inf"))]
Rate = Annotated[float, Ge(0), Lt(float("inf"))]
Factor = Annotated[float, Gt(0), Lt(float("inf"))]
Scalar = None | bool | int | float | str


@with_config(STRICT)
class NetworkFile(TypedDict):
    """The Python file of a network of one's own."""

    name: Name
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


@with_config(STRICT)
class Network(TypedDict):
    """Which network it is. Its config checks the options."""

    name: Name
    options: dict[str, Any]
    file: NotRequired[NetworkFile]


@with_config(STRICT)
class Model(TypedDict):
    """:class:`utils.checkpoints.postprocessing.DiceModel`."""

    per_soft_dice: Finite
    per_log_volume: Finite
    offset: Finite
    lowest_soft_dice: Annotated[float, Gt(0), Le(1)]
    volumes: Annotated[list[Factor] | tuple[Factor, ...], Len(2, 2)]
    error: Rate
    always_there: bool


@with_config(STRICT)
class Folds(TypedDict):
    """:class:`utils.checkpoints.postprocessing.FromFolds`."""

    largest_component: list[int]
    mirrored: bool
    models: dict[Label, Model]


@with_config(STRICT)
class Metadata(TypedDict):
    """What a checkpoint says of its network, which is also in the files of ``utils.export``."""

    format: Annotated[int, Ge(1)]
    network: Network
    preprocessing: dict[str, Any]
    labels: Annotated[list[Label], Len(1), AfterValidator(_distinct)]
    regions: NotRequired[dict[Label, list[int]]]
    regions_class_order: NotRequired[list[int]]
    amp: bool
    flips: NotRequired[Literal["none", "published", "anatomical", "left_right"] | None]
    from_folds: NotRequired[Folds]
    epoch: NotRequired[Count]
    score: NotRequired[float | None]
    versions: NotRequired[dict[str, str]]
    command: NotRequired[str]


@with_config(STRICT)
class Unfinished(TypedDict):
    """:class:`utils.checkpoints.progress.UnfinishedEpoch`."""

    scans: Count
    losses: list[float]
    lr: Rate
    seconds: Rate


@with_config(STRICT)
class Dice(TypedDict):
    """Mean scores of a validation."""

    mean: float | None
    organs: dict[str, float | None]


@with_config(STRICT)
class Epoch(TypedDict):
    """The JSON line of an epoch."""

    epoch: Count
    loss: float
    lr: Rate
    seconds: Rate
    dice: NotRequired[Dice]
    explained: NotRequired[float | None]


@with_config(STRICT)
class RunProgress(TypedDict):
    """:class:`utils.checkpoints.progress.Progress`."""

    epoch: Count
    unfinished: Annotated[Unfinished, AfterValidator(_losses_of_scans)]
    score: float | None
    best_score: float | None
    best_epoch: Count | None
    history: list[Epoch]


@with_config(STRICT)
class Scaler(TypedDict, total=False):
    """torch's loss scaler; empty if it was off."""

    scale: Factor
    growth_factor: Annotated[float, Gt(1), Lt(float("inf"))]
    backoff_factor: Annotated[float, Gt(0), Lt(1)]
    growth_interval: Annotated[int, Ge(1), Le(10**9)]
    _growth_tracker: Count


@with_config(STRICT)
class OptimizerState(TypedDict):
    """State of each parameter by its number; :mod:`utils.checkpoints.resume` compares it with the parameters."""

    state: dict[int, dict[str, Any]]


@with_config(STRICT)
class Scans(TypedDict):
    """The files of each scan, as a data list has them."""

    training: list[Annotated[list[str], Len(1)]]
    validation: list[Annotated[list[str], Len(1)]]


@with_config(STRICT)
class NotAnnotated(TypedDict):
    """The labels that nobody drew in each scan."""

    training: list[list[int]]
    validation: list[list[int]]


@with_config(STRICT)
class Annotation(TypedDict):
    """What has no part in the loss."""

    ignore: int | None
    not_annotated: NotAnnotated


@with_config(ConfigDict(strict=True, arbitrary_types_allowed=True))
class Resume(TypedDict):
    """What continuing a run needs."""

    optimizer: OptimizerState
    scaler: Scaler
    progress: RunProgress
    flags: Annotated[dict[str, Scalar | list[Scalar]], AfterValidator(_of_a_run)]
    scans: Scans
    annotation: NotRequired[Annotation]
    trained: NotRequired[dict[str, Tensor]]
    averaged: NotRequired[Count]


METADATA = TypeAdapter(Metadata)
RESUME = TypeAdapter(Resume)
EPOCH = TypeAdapter(Epoch)


def describes_itself(content: Mapping[str, Any]) -> bool:
    """Whether a file's content is a checkpoint of ours; others may call something network, or format."""
    return {"format", "preprocessing"} <= content.keys() or len(OWN_KEYS & content.keys()) > 2


def check_metadata(content: Mapping[str, Any], source: object) -> dict[str, Any]:
    """What a checkpoint of ours says of its network; unknown keys are left out.

    Raises:
        DamagedError: naming what it can't say.
    """
    return _checked(METADATA, content, source)


def check_resume(resume: object, source: object) -> dict[str, Any]:
    """What a checkpoint of ours holds to continue its run.

    Raises:
        DamagedError: naming what can't be.
    """
    found = _checked(RESUME, resume, f"{source}: what continues its run")
    if "trained" in found:
        check_tensors(found["trained"], source)
    return found


def _checked(schema: TypeAdapter[Any], content: object, source: object) -> dict[str, Any]:
    try:
        # a Mapping of another kind than dict, such as OrderedDict, is one too
        found: dict[str, Any] = schema.validate_python(content)
    except ValidationError as error:
        raise DamagedError(
            f"{source}: isn't what this program writes: {schema_faults(error)}. Copy it again, or give another file."
        ) from error
    return found


def check_tensors(tensors: Mapping[str, Any], source: object) -> None:
    """Check that a state dict holds plain tensors by name. Whether they fit a network, no one knows here.

    Raises:
        DamagedError: naming the first that isn't.
    """
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not name.isprintable():
            raise DamagedError(f"{source}: holds a tensor without a sound name. Save one network's state_dict() alone.")
        fault = tensor_fault(tensor)
        if fault is not None:
            raise DamagedError(f"{source}: its {name} {fault}. Save one network's state_dict() alone.")


def tensor_fault(tensor: object) -> str | None:
    """Why something can't be a weight; None if it is a dense tensor that has its numbers in memory."""
    if not isinstance(tensor, Tensor):
        return f"is no tensor but a {type(tensor).__name__}"
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized:
        return "is a sparse, nested or quantised tensor, not a dense one"
    if tensor.is_meta or type(tensor) not in HARMLESS_TENSORS:
        return "has no numbers"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"claims {tensor.numel():,} numbers and has fewer"
    return None


def require_bounded(content: object, length: int, source: object) -> None:
    """Check that a file's content is no longer than the file, as it can be where parts are repeated or in themselves.

    Args:
        length: of the file in bytes.

    Raises:
        DamagedError: if it is longer.
    """
    values = 0
    storages: dict[int, int] = {}
    left: list[Any] = [content]
    while left and values <= MOST_VALUES:
        value = left.pop()
        values += 16
        if isinstance(value, str | bytes):
            values += len(value)
        elif isinstance(value, list | tuple | set):
            left += value
        elif isinstance(value, dict):
            left += value.keys()
            left += value.values()
        elif isinstance(value, Tensor) and value.layout == torch.strided and not (value.is_meta or value.is_nested):
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif not isinstance(value, Tensor) and hasattr(value, "__dict__"):
            left.append(vars(value))
    if values > MOST_VALUES or sum(storages.values()) > length:
        raise DamagedError(
            f"{source}: claims to hold more than the file is long. Copy it again, or save its state_dict() alone."
        )

"""Put the weights of a file into a network: names, shapes, and the adaptation to another task."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.registry import NetworkConfig, architecture_of, lies_in
from utils.checkpoints.schema import check_tensors
from utils.system.errors import DamagedError, InputError, size_text
from utils.system.typed import shown_text

# what saving a wrapped network puts before its names: DistributedDataParallel, and a module that holds it
PREFIXES = {"module.": "a DDP model", "_orig_mod.": "a compiled model", "backbone.": "a backbone"}
SHOWN_NAMES = 10  # of tensors, in a message
PATCHES = ("patch_size", "patch")  # settings by which a patch has another size
ADAPTABLE = ("in_channels", "out_channels")


@dataclass
class Transfer:
    """What became of the tensors of a file, by name."""

    kind: str
    loaded: list[str] = field(default_factory=list)
    adapted: dict[str, str] = field(default_factory=dict)
    new: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def line(self) -> str:
        """What was read, in a line."""
        left_out = f", {len(self.left_out)} that no forward pass reads left out" if self.left_out else ""
        return f"{self.kind}: {len(self.loaded)} tensors loaded{left_out}"

    def table(self) -> str:
        """What was loaded, adapted, newly initialised, dropped and left out, a line each."""
        rows = [("loaded", len(self.loaded), "as they are")]
        rows += [("adapted", 1, f"{name}: {how}") for name, how in self.adapted.items()]
        rows += [("new", 1, f"{name}: {why}") for name, why in self.new.items()]
        rows += [("dropped", 1, f"{name}: {why}") for name, why in self.dropped.items()]
        rows += [("left out", len(self.left_out), "that no forward pass reads")] if self.left_out else []
        return "\n".join([f"weights of {self.kind}", *(f"  {what:<8}  {n:>3}  {how}" for what, n, how in rows)])


def load_weights(
    network: nn.Module,
    state_dict: Mapping[str, Tensor],
    source: str,
    *,
    kind: str = "state dict",
    img_size: tuple[int, ...] | None = None,
    adapt: bool | None = None,
) -> Transfer:
    """Put the weights of a file into a network, each under its own name.

    Args:
        network: from :func:`networks.registry.build_network`. Its weights are overwritten. On torch's device ``meta``
            it has none, and takes the tensors themselves.
        source: the file, for messages.
        kind: what it is; what its names tell is added.
        img_size: the window in voxels that the weights were trained with, where the file says so.
        adapt: whether tensors that depend on the task are adapted where their shape differs: the output layers are
            initialised anew, position embeddings are interpolated, and the weights that read the volume are averaged
            over its channels. None where the user can't ask for it.

    Raises:
        DamagedError: if a tensor isn't dense, or its numbers can't be weights.
        InputError: if names or shapes don't fit, listing all that don't; or if the network can't be adapted.
    """
    check_tensors(state_dict, source)
    architecture = architecture_of(network)
    wanted = network.state_dict()
    given, origins = _without_prefixes(state_dict, source)
    inspect: Callable[..., Any] = architecture.declared("origin_of", lambda _: (None, set()))
    program, unread = inspect(given)
    transfer = Transfer(f"{source} ({' of '.join([kind, *origins, *([program] if program else [])])})")
    transfer.left_out = [name for name in given if name not in wanted and name in unread]
    given = {name: tensor for name, tensor in given.items() if name not in transfer.left_out}
    if not given or len(wanted.keys() & given.keys()) < len(wanted) / 2:
        raise InputError(
            f"{source}: holds the weights of another architecture: {len(given.keys() - wanted.keys())} of its "
            f"{len(given)} tensors, such as {next(iter(given), 'none')}, are unknown to the network that the settings "
            "describe. Give weights of that network."
        )
    given = {name: as_weights(name, tensor, wanted.get(name), source) for name, tensor in given.items()}
    task: dict[str, Tensor] = {}
    if adapt:
        for name in ("input_layers", "output_layers"):
            architecture.require(name, "adapt_weights", "adapted to another task")
        if not _other_patches(network, given, wanted):
            task = _adapted(network, given, wanted, source, img_size, transfer)
            given = {name: tensor for name, tensor in given.items() if name not in transfer.dropped}
    _refuse_misfits(network, {**given, **task}, wanted, source, img_size, adapt)
    without_weights = any(tensor.is_meta for tensor in wanted.values())
    network.load_state_dict({**given, **task}, assign=without_weights)
    transfer.loaded = [name for name in given if name not in task]
    return transfer


def as_weights(name: str, tensor: Tensor, wanted: Tensor | None, source: object) -> Tensor:
    """A tensor of a file in the number format of the one whose place it takes.

    Args:
        wanted: that one; None for a tensor that has no place, and is only told.

    Raises:
        DamagedError: if it has other numbers than those of weights, or infinite ones where the other one has none.
    """
    if wanted is None:
        return tensor
    remedy = "Give another file."
    kinds = [one.is_floating_point() for one in (tensor, wanted)]
    if kinds[0] != kinds[1] or tensor.is_complex() or (tensor.dtype == torch.bool) != (wanted.dtype == torch.bool):
        raise DamagedError(f"{source}: its {name} holds {_kind(tensor)}, not {_kind(wanted)}. {remedy}")
    if wanted.ndim > 0 and (tensor.ndim == 0 or tensor.numel() == 0) and tensor.shape != wanted.shape:
        raise DamagedError(f"{source}: its {name} has the shape {tuple(tensor.shape)}. {remedy}")
    weights = tensor.to(wanted.dtype)
    if not weights.isfinite().all() and not _is_as_infinite(weights, wanted):
        raise DamagedError(f"{source}: its {name} has numbers that aren't finite. {remedy}")
    return weights


def _is_as_infinite(weights: Tensor, wanted: Tensor) -> bool:
    """Whether what isn't finite is the same in both tensors, as in a buffer that masks attention with -inf."""
    if wanted.is_meta or weights.shape != wanted.shape:
        return False
    return bool((weights.isfinite() | (weights == wanted.to(weights.device))).all())


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _without_prefixes(state_dict: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors by their own names, and what the prefixes tell of the network that was saved."""
    found: dict[str, None] = {}
    given: dict[str, Tensor] = {}
    for full_name, tensor in state_dict.items():
        name = full_name
        while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), None):
            found[PREFIXES[prefix]] = None
            name = name.removeprefix(prefix)
        if name in given:
            raise InputError(
                f"{source}: has {name} twice, with a prefix and without. Save one network's weights alone."
            )
        given[name] = tensor
    return given, list(found)


def _settings_shown(network: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The settings that the shapes of some weights show, as far as the network's class can tell."""
    settings_of: Callable[..., dict[str, Any]] = architecture_of(network).declared("settings_of", lambda _: {})
    return settings_of(weights)


def _other_patches(network: nn.Module, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    """Whether the weights are for patches of another size, for which nothing can be adapted."""
    theirs, ours = (_settings_shown(network, weights) for weights in (given, wanted))
    return any(name in theirs and name in ours and theirs[name] != ours[name] for name in PATCHES)


def _refuse_misfits(
    network: nn.Module,
    given: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    source: str,
    img_size: tuple[int, ...] | None,
    adapt: bool | None,
) -> None:
    architecture, config = architecture_of(network), _config(network)
    theirs, ours = (_settings_shown(network, weights) for weights in (given, wanted))
    differing = [name for name, value in ours.items() if name in theirs and theirs[name] != value]
    faults = []
    for name in differing:
        if isinstance(ours[name], bool):
            faults.append(f"its weights are {'of' if theirs[name] else 'not of'} `{name}`")
        elif name == "patch":
            faults.append(
                f"a patch has {size_text(ours[name])} voxels, and in its weights {size_text(theirs[name])}, which "
                "`space_x`, `space_y`, `space_z` and `halve_by_spacing` decide"
            )
        else:
            faults.append(f"`{name}` is {ours[name]}, but its weights have {theirs[name]}")
    positions = architecture.declared("position_embeddings", None)
    if not adapt and positions in given:
        patches = math.prod(given[positions].shape[:-1])
        other_count = patches != wanted[positions].shape[1] and not set(PATCHES) & set(differing)
        if other_count or img_size not in (None, config.img_size):
            trained = size_text(img_size) if img_size is not None else f"{patches} patches"
            sizes = size_text(config.img_size)
            faults.append(f"`roi_x`, `roi_y`, `roi_z` are {sizes}, but its weights are for {trained}")
    if faults:
        remedy = "Give the settings that it was trained with"
        depends_on_task = all(name in ADAPTABLE or isinstance(ours[name], bool) for name in differing)
        if adapt is False and depends_on_task and architecture.declared("output_layers"):
            remedy = "Give `adapt_weights` to adapt them to the new task, or the settings that it was trained with"
        raise InputError(f"{source}: doesn't fit: {'; '.join(faults)}. {remedy}.")

    missing = [name for name in wanted if name not in given]
    unknown = [name for name in given if name not in wanted]
    misshapen = [name for name in wanted if name in given and given[name].shape != wanted[name].shape]
    concerned = [*missing, *unknown, *misshapen]
    if concerned:
        shapes = [f"{name} {tuple(given[name].shape)} instead of {tuple(wanted[name].shape)}" for name in misshapen]
        kinds = {"missing": missing, "unknown": unknown, "of another shape": shapes}
        listed = "; ".join(f"{what}: {_some(which)}" for what, which in kinds.items() if which)
        remedy = "give the settings that it was trained with"
        ends = (*architecture.declared("input_layers"), *architecture.declared("output_layers"))
        if adapt is False and all(lies_in(name, ends) for name in concerned):
            remedy = "give `adapt_weights` to adapt them to the new task, or the settings that it was trained with"
        raise InputError(
            f"{source}: {len(concerned)} of its tensors don't fit the network that the settings describe; {remedy}. "
            f"{listed}"
        )


def _some(names: Sequence[str]) -> str:
    """Names for a message; of many the first, and how many more there are."""
    more = f", … ({len(names) - SHOWN_NAMES} more)" if len(names) > SHOWN_NAMES else ""
    return ", ".join(map(shown_text, names[:SHOWN_NAMES])) + more


def _config(network: nn.Module) -> NetworkConfig:
    config: Any = network.config
    assert isinstance(config, NetworkConfig)
    return config


def _adapted(
    network: nn.Module,
    given: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    source: str,
    img_size: tuple[int, ...] | None,
    transfer: Transfer,
) -> dict[str, Tensor]:
    """The tensors that replace those of another task; ``transfer`` notes each."""
    architecture, config = architecture_of(network), _config(network)
    inputs, outputs = (architecture.declared(name) for name in ("input_layers", "output_layers"))
    positions = architecture.declared("position_embeddings", None)
    task: dict[str, Tensor] = {}
    for name, ours in wanted.items():
        theirs = given.get(name)
        if theirs is None:
            if lies_in(name, (*inputs, *outputs)):
                task[name] = ours
                transfer.new[name] = "the file has none"
        elif lies_in(name, outputs) and theirs.ndim == ours.ndim and theirs.shape[0] != ours.shape[0]:
            task[name] = ours
            transfer.new[name] = f"{theirs.shape[0]} classes became {ours.shape[0]}"
        elif lies_in(name, outputs) and theirs.shape != ours.shape and _is_transposed(network, name):
            task[name] = ours  # its second axis has the outputs
            transfer.new[name] = f"{tuple(theirs.shape)} became {tuple(ours.shape)}"
        elif name == positions and theirs.ndim == 3 and theirs.shape[::2] == ours.shape[::2]:
            new = config.grid_of(config.img_size)
            old = _grid(theirs.shape[1], img_size, config, source)
            if old != new:
                task[name] = interpolate_positions(theirs, old, new)
                transfer.adapted[name] = f"interpolated from {size_text(old)} to {size_text(new)} patches"
        elif lies_in(name, inputs) and theirs.shape != ours.shape and ours.ndim > 1:
            # a linear layer over a patch reads its voxels' channels: per_patch · C
            per_patch, rest = divmod(ours.shape[1], config.in_channels)
            if rest == 0 and theirs.ndim == ours.ndim and theirs.shape[1] % per_patch == 0:
                task[name] = average_channels(theirs, config.in_channels, per_patch)
                old_channels = theirs.shape[1] // per_patch
                transfer.adapted[name] = f"averaged from {old_channels} to {config.in_channels} channels"
    transfer.dropped = {
        name: "this network has no place for it"
        for name in given
        if name not in wanted and lies_in(name, (*inputs, *outputs))
    }
    return task


def _is_transposed(network: nn.Module, tensor: str) -> bool:
    """Whether a tensor is of a transposed convolution."""
    return isinstance(network.get_submodule(tensor.rpartition(".")[0]), nn.ConvTranspose3d)


def interpolate_positions(embeddings: Tensor, old: tuple[int, ...], new: tuple[int, ...]) -> Tensor:
    """Position embeddings (1, N, E) of one grid of patches, trilinearly interpolated to another grid's (1, M, E)."""
    volume = embeddings.float().transpose(1, 2).unflatten(2, old)  # (1, N, E) -> (1, E, d, h, w)
    return F.interpolate(volume, size=new, mode="trilinear").flatten(2).transpose(1, 2)  # (1, M, E)


def average_channels(weight: Tensor, channels: int, per_patch: int = 1) -> Tensor:
    """Weights that read a volume, for another number of channels.

    Each new channel has the mean of the old ones' weights, rescaled so that a scan whose channels are alike gives the
    same result as before.

    Args:
        weight: (out, C, …), or (out, per_patch · C) with the channel fastest.
    """
    by_channel = weight.unflatten(1, (per_patch, -1))  # (out, per_patch, C, …)
    old = by_channel.shape[2]
    mean = by_channel.mean(2, keepdim=True) * (old / channels)
    return mean.repeat_interleave(channels, dim=2).flatten(1, 2)


def _grid(patches: int, img_size: tuple[int, ...] | None, config: NetworkConfig, source: str) -> tuple[int, ...]:
    """Patches along each axis of the window that weights were trained with."""
    grid = untold_grid(patches, config.grid_of(config.img_size)) if img_size is None else config.grid_of(img_size)
    if grid is None:
        raise InputError(
            f"{source}: has {patches} position embeddings and doesn't tell their window. Give a checkpoint of main.py, "
            "which does, or the `roi_x`, `roi_y` and `roi_z` that it was trained with."
        )
    if math.prod(grid) != patches:
        raise DamagedError(
            f"{source}: has {patches} position embeddings for a window of {size_text(grid)} patches. Give another file."
        )
    return grid


def untold_grid(patches: int, ours: tuple[int, int, int]) -> tuple[int, int, int] | None:
    """Patches along each axis for weights that don't tell their window: a cube's, or those of our own window."""
    edge = round(patches ** (1 / 3))
    if edge**3 == patches:
        return edge, edge, edge
    return ours if math.prod(ours) == patches else None


def same_logits(network: nn.Module, other: nn.Module, shape: tuple[int, ...], source: object) -> bool:
    """Whether two networks give the same logits for a random volume of ``shape``, to a thousandth of the largest.

    Args:
        other: one that isn't ours, from the file ``source``.

    Raises:
        InputError: if it gives something else than logits.
    """
    generator = torch.Generator().manual_seed(0)
    volume = torch.randn(shape, generator=generator)
    was_training = network.training
    theirs = predicted_logits(other, volume, source)
    with torch.no_grad():
        ours = network.eval()(volume)
    network.train(was_training)
    return ours.shape == theirs.shape and bool((ours - theirs).abs().max() <= 1e-3 * ours.abs().max())


def predicted_logits(module: nn.Module, volume: Tensor, source: object) -> Tensor:
    """What a network that isn't ours predicts for a volume.

    Raises:
        InputError: if it can't, or gives something else than one tensor of finite floating-point numbers.
    """
    try:
        with torch.no_grad():
            found = module.eval()(volume)
    except Exception as error:  # whatever a stranger's code raises
        reason = shown_text((str(error).strip().splitlines() or [type(error).__name__])[-1])
        raise InputError(
            f"{source}: can't predict a window of {tuple(volume.shape)} ({reason}). "
            "Give the `in_channels`, `roi_x`, `roi_y` and `roi_z` that it was made for."
        ) from error
    fault = None
    if not isinstance(found, Tensor):
        fault = f"a {type(found).__name__}"
    elif found.layout != torch.strided or found.is_meta or not found.is_floating_point():
        fault = f"{found.layout} numbers of {_kind(found)}".replace("torch.strided ", "")
    elif not found.isfinite().all():
        fault = "numbers that aren't finite"
    if fault is not None:
        raise InputError(
            f"{source}: gives {fault} for a window of {tuple(volume.shape)}, not logits. Mend its network."
        )
    return found

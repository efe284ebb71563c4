"""Weights by name: from whatever file into a network, and from a network for one task into one for another."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.system.errors import InputError, size_text

# what saving a wrapped network puts before its names: DistributedDataParallel, and a module that holds it
PREFIXES = {"module.": "a DDP model", "backbone.": "a backbone"}
# what earlier networks saved and no forward pass reads, such as the shortcut of blocks that keep the number of channels
DEAD_OF_PUBLISHED = re.compile(r"vit\.patch_embedding\.cls_token|encoder[23]\.blocks\.\d+\.1\.(conv|norm)3\..+")
DEAD_OF_MONAI_1 = re.compile(r"vit\.blocks\.\d+\.(norm_)?cross_attn\..+")

# what depends on the task and can be made from weights for another
POSITIONS = "vit.patch_embedding.position_embeddings"
PATCH_LINEAR = "vit.patch_embedding.patch_embeddings.1.weight"
FIRST_CONVOLUTION = "encoder1.layer.conv1.conv.weight"
INPUT_WEIGHTS = re.compile(
    r"vit\.patch_embedding\.patch_embeddings\.(1\.)?weight|encoder1\.layer\.conv[13]\.conv\.weight"
    r"|swinViT\.patch_embed\.proj\.weight"  # Swin UNETR, whose convolutions have UNETR's names
    r"|convInit\.conv\.weight"  # SegResNet
    r"|(input_block|skip_layers\.downsample)\.conv1\.conv\.weight"  # DynUNet, which has its first block twice
)
INPUT_SHORTCUT = re.compile(r"encoder1\.layer\.(conv|norm)3\..+")  # is there only where it changes the channels
COARSE_OUTPUT = re.compile(r"coarse_outs\..+")
OPTIONAL = {INPUT_SHORTCUT: "the other number of channels", COARSE_OUTPUT: "--deep_supervision"}
DEEPEST_STAGE = "decoder5.transp_conv.conv.weight"  # that patches of 8 voxels leave out
OUTPUT_LAYER = re.compile(r"((out|coarse_outs\.\d+)\.conv|output_block\.conv|conv_final\.2)\.conv\.(weight|bias)")
# where a flag shows in the weights of the network that has such a tensor: its name and the dimension
FLAGS_IN_SHAPES = (
    ("feature_size", FIRST_CONVOLUTION, 0),
    ("hidden_size", "vit.norm.weight", 0),
    ("mlp_dim", "vit.blocks.0.mlp.linear1.weight", 0),
    ("in_channels", FIRST_CONVOLUTION, 1),
    ("out_channels", "out.conv.conv.weight", 0),
    ("feature_size", "convInit.conv.weight", 0),
    ("in_channels", "convInit.conv.weight", 1),
    ("out_channels", "conv_final.2.conv.weight", 0),
    ("feature_size", "input_block.conv1.conv.weight", 0),
    ("in_channels", "input_block.conv1.conv.weight", 1),
    ("out_channels", "output_block.conv.conv.weight", 0),
)
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
        network: with weights of its own, which are overwritten, or without any (on torch's device ``meta``), when it
            takes the tensors themselves.
        source: the file, for messages.
        kind: what it is; what its names tell is added.
        img_size: the window in voxels that the weights were trained with, where the file says so.
        adapt: whether tensors that depend on the task are adapted where their shape differs: the output layer is
            initialised anew, position embeddings are interpolated, and the weights that read the volume are averaged
            over its channels. None where the user can't ask for it.

    Raises:
        InputError: if names or shapes don't fit; all that don't are listed.
    """
    wanted = network.state_dict()
    window = tuple(getattr(network, "img_size", ()))  # of one that has position embeddings
    given, origins = _without_prefixes(state_dict, source)
    transfer = Transfer(f"{source} ({' of '.join([kind, *origins])})")
    transfer.left_out = [name for name in given if name not in wanted and _is_dead(name, given)]
    given = {name: tensor for name, tensor in given.items() if name not in transfer.left_out}
    if len(wanted.keys() & given.keys()) < len(wanted) / 2:
        raise InputError(
            f"{source}: holds the weights of another architecture: {len(given.keys() - wanted.keys())} of its "
            f"{len(given)} tensors, such as {next(iter(given))}, are unknown to the network that the flags describe. "
            "Give weights of that network."
        )
    task: dict[str, Tensor] = {}
    if adapt and len(set(_patch_sizes(given, wanted))) <= 1:  # for other patches nothing can be
        task = _adapted(given, wanted, source, img_size, window, transfer)
        given = {name: tensor for name, tensor in given.items() if name not in transfer.dropped}
    _refuse_misfits({**given, **task}, wanted, source, img_size, window, adapt)
    without_weights = any(tensor.is_meta for tensor in wanted.values())
    fitting = {name: tensor.to(wanted[name].dtype) for name, tensor in {**given, **task}.items()}
    network.load_state_dict(fitting, assign=without_weights)
    transfer.loaded = [name for name in given if name not in task]
    return transfer


def _without_prefixes(state_dict: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors by their own names, and what the names tell of the network that was saved."""
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
    origins = list(found)
    if any(DEAD_OF_MONAI_1.fullmatch(name) for name in given):
        origins.append("MONAI 1's UNETR")
    if "vit.patch_embedding.cls_token" in given:
        origins.append("MONAI 0.7's UNETR")
    return given, origins


def _is_dead(name: str, given: Mapping[str, Tensor]) -> bool:
    """Whether the network that had these tensors read none of its own called ``name``."""
    if INPUT_SHORTCUT.fullmatch(name):
        first = given.get(FIRST_CONVOLUTION)
        return first is not None and first.ndim == 5 and first.shape[0] == first.shape[1]
    return DEAD_OF_PUBLISHED.fullmatch(name) is not None or DEAD_OF_MONAI_1.fullmatch(name) is not None


def _patch_sizes(*weights: Mapping[str, Tensor]) -> list[int]:
    """The edges of patches that UNETR's weights are for; nothing for those of another network."""
    return [16 if DEEPEST_STAGE in names else 8 for names in weights if POSITIONS in names]


def _refuse_misfits(
    given: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    source: str,
    img_size: tuple[int, ...] | None,
    network_size: tuple[int, ...],
    adapt: bool | None,
) -> None:
    flags = [
        (flag, given[name].shape[dimension], wanted[name].shape[dimension])
        for flag, name, dimension in FLAGS_IN_SHAPES
        if name in given and name in wanted and given[name].ndim == wanted[name].ndim
    ]
    differing = [(flag, theirs, ours) for flag, theirs, ours in flags if theirs != ours]
    faults = [f"--{flag} is {ours}, but its weights have {theirs}" for flag, theirs, ours in differing]
    coarse = [any(COARSE_OUTPUT.fullmatch(name) for name in names) for names in (given, wanted)]
    if coarse[0] != coarse[1]:
        faults.append(f"its weights are {'of' if coarse[0] else 'not of'} --deep_supervision")
    positions = [names[POSITIONS].shape[1] for names in (given, wanted) if POSITIONS in names]
    patch_sizes = _patch_sizes(given, wanted)
    other_patches = len(set(patch_sizes)) > 1
    if other_patches:
        faults.append(f"--patch_size is {patch_sizes[1]}, but its weights have {patch_sizes[0]}")
    windows_differ = img_size is not None and img_size != network_size
    if not adapt and POSITIONS in given and (windows_differ or (len(set(positions)) > 1 and not other_patches)):
        theirs = size_text(img_size) if img_size is not None else f"{given[POSITIONS].shape[1]} patches"
        faults.append(f"--roi_x, --roi_y, --roi_z are {size_text(network_size)}, but its weights are for {theirs}")
    if faults:
        remedy = "Give the flags that it was trained with"
        if adapt is False and not other_patches and all(flag in ADAPTABLE for flag, _, _ in differing):
            remedy = "Give --adapt_weights to adapt them to the new task, or the flags that it was trained with"
        raise InputError(f"{source}: doesn't fit: {'; '.join(faults)}. {remedy}.")

    names = {
        "missing": [name for name in wanted if name not in given],
        "unknown": [name for name in given if name not in wanted],
        "of another shape": [
            f"{name} {tuple(given[name].shape)} instead of {tuple(wanted[name].shape)}"
            for name in wanted
            if name in given and given[name].shape != wanted[name].shape
        ],
    }
    count = sum(map(len, names.values()))
    if count:
        listed = "; ".join(f"{what}: {', '.join(which)}" for what, which in names.items() if which)
        raise InputError(
            f"{source}: {count} of its tensors don't fit the network that the flags describe; give the flags that it "
            f"was trained with. {listed}"
        )


def _adapted(
    given: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    source: str,
    img_size: tuple[int, ...] | None,
    network_size: tuple[int, ...],
    transfer: Transfer,
) -> dict[str, Tensor]:
    """The tensors that take the place of those that are for another task; ``transfer`` notes each."""
    task: dict[str, Tensor] = {}
    patch_size = next(iter(_patch_sizes(wanted)), 1)
    for name, ours in wanted.items():
        theirs = given.get(name)
        if theirs is None:
            for pattern, why in OPTIONAL.items():
                if pattern.fullmatch(name):
                    task[name] = ours
                    transfer.new[name] = f"{why} needs it"
        elif OUTPUT_LAYER.fullmatch(name) and theirs.shape[0] != ours.shape[0]:
            task[name] = ours
            transfer.new[name] = f"{theirs.shape[0]} classes became {ours.shape[0]}"
        elif name == POSITIONS and theirs.ndim == 3 and theirs.shape[2] == ours.shape[2]:
            new = tuple(voxels // patch_size for voxels in network_size)
            told = img_size is not None or theirs.shape != ours.shape
            old = _grid(theirs.shape[1], img_size, patch_size, source) if told else new
            if old != new:
                task[name] = interpolate_positions(theirs, old, new)
                transfer.adapted[name] = f"interpolated from {size_text(old)} to {size_text(new)} patches"
        elif INPUT_WEIGHTS.fullmatch(name) and theirs.shape != ours.shape:
            per_patch = patch_size**3 if name == PATCH_LINEAR else 1
            channels = ours.shape[1] // per_patch
            task[name] = average_channels(theirs, channels, per_patch)
            transfer.adapted[name] = f"averaged from {theirs.shape[1] // per_patch} to {channels} channels"
    transfer.dropped = {
        name: f"there is no place for it without {why}" if pattern is COARSE_OUTPUT else f"{why} needs none"
        for name in given
        for pattern, why in OPTIONAL.items()
        if name not in wanted and pattern.fullmatch(name)
    }
    return task


def interpolate_positions(embeddings: Tensor, old: tuple[int, ...], new: tuple[int, ...]) -> Tensor:
    """Position embeddings (1, N, E) of one grid of patches, trilinearly interpolated to another grid's (1, M, E)."""
    volume = embeddings.float().transpose(1, 2).unflatten(2, old)  # (1, N, E) -> (1, E, d, h, w)
    return F.interpolate(volume, size=new, mode="trilinear").flatten(2).transpose(1, 2)  # (1, M, E)


def average_channels(weight: Tensor, channels: int, per_patch: int = 1) -> Tensor:
    """Weights that read a volume, for another number of channels.

    Each new channel has the mean of the old ones' weights, rescaled so that channels that are all alike give what they
    gave before.

    Args:
        weight: (out, C, …), or (out, per_patch · C) with the channel fastest.
    """
    by_channel = weight.unflatten(1, (per_patch, -1))  # (out, per_patch, C, …)
    old = by_channel.shape[2]
    mean = by_channel.mean(2, keepdim=True) * (old / channels)
    return mean.repeat_interleave(channels, dim=2).flatten(1, 2)


def _grid(patches: int, img_size: tuple[int, ...] | None, patch_size: int, source: str) -> tuple[int, ...]:
    """Patches along each axis; weights that don't tell their window are taken to have had a cube."""
    if img_size is not None:
        return tuple(voxels // patch_size for voxels in img_size)
    edge = round(patches ** (1 / 3))
    if edge**3 != patches:
        raise InputError(
            f"{source}: has {patches} position embeddings and doesn't tell their window. Give a checkpoint of main.py, "
            "which does, or the --roi_x, --roi_y and --roi_z that it was trained with."
        )
    return (edge, edge, edge)


def same_logits(network: nn.Module, other: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether two networks give the same logits for a random volume of ``shape``, to a thousandth of the largest."""
    generator = torch.Generator().manual_seed(0)
    volume = torch.randn(shape, generator=generator)
    was_training = network.training
    with torch.no_grad():
        ours, theirs = network.eval()(volume), other.eval()(volume)
    network.train(was_training)
    return bool((ours - theirs).abs().max() <= 1e-3 * ours.abs().max())

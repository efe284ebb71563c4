"""Start an encoder from a ViT that was trained elsewhere, on images or on volumes.

A ViT for images is inflated (Carreira & Zisserman 2017, arXiv 1705.07750): its patch weights are repeated along z, the
last axis, and divided by the patch's edge. Axial slices are then its images, with rows along x and columns along y. If
all slices of a volume are the same image, each patch gets the token of the image's patch, up to the influence of a
class token.

E is the hidden size, C the channels, p the edge of a patch, N the number of patches.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.registry import architecture_of, lies_in
from networks.vit import PATCH_SIZES, ViT, ViTConfig
from utils.checkpoints.foreign_weights import as_weights, average_channels, interpolate_positions, untold_grid
from utils.checkpoints.nnssl_weights import as_our_vit, prefixes_of_primus
from utils.checkpoints.schema import check_tensors
from utils.system.errors import DamagedError, InputError, size_text

# keys under which training programs save weights; of DINO's two networks the teacher is the one to use
NESTS = ("state_dict", "model", "teacher", "student", "network_weights")
PATCHES = "patch_embedding.patch_embeddings.weight"
POSITIONS = "patch_embedding.position_embeddings"
# the first group is the ViT's prefix
PATCHES_IN_FILE = re.compile(
    r"((?:.*\.)?)(?:patch_embed\.proj|patch_embedding\.patch_embeddings(?:\.1|\.stem\.conv1\.0)?)\.weight"
)
# of a residual tokenizer, which read the scan
SCAN_KERNELS = [f"patch_embedding.patch_embeddings.stem.{place}.0.weight" for place in ("conv1", "skip")]
CLASS_TOKENS = ("cls_token", "dist_token")
IN_STEM = "encoder2.conv1.conv.weight"  # of UNETR with convolutions before the transformer, and of no other network
# to our names from those of timm (DINO, MAE), and from a perceptron's, which computes the same as a convolution
NAMES = (
    (re.compile(r"patch_embed\.proj\.(weight|bias)"), r"patch_embedding.patch_embeddings.\1"),
    (re.compile(r"patch_embedding\.patch_embeddings\.1\.(weight|bias)"), r"patch_embedding.patch_embeddings.\1"),
    (re.compile(r"pos_embed"), POSITIONS),
    (re.compile(r"(blocks\.\d+\.attn)\.proj\.(weight|bias)"), r"\1.out_proj.\2"),
    (re.compile(r"(blocks\.\d+\.mlp)\.fc([12])\.(weight|bias)"), r"\1.linear\2.\3"),
    (re.compile(r"(blocks\.\d+)\.ls([12])\.gamma"), r"\1.scale\2.gamma"),
)
UNREAD = re.compile(r"blocks\.\d+\.(norm_)?cross_attn\..+")  # saved by MONAI 1, read by no forward pass


@dataclass
class _Encoder:
    """The tensors of a ViT under our names.

    Attributes:
        origin: whose names the file has, and where in the file the ViT is.
        notes: what was changed or left out.
    """

    origin: str
    tensors: dict[str, Tensor]
    notes: list[str] = field(default_factory=list)

    @property
    def hidden_size(self) -> int:
        return self.tensors["blocks.0.norm1.weight"].numel()


def load_vit_weights(
    network: nn.Module, content: Mapping[str, Any], source: str, img_size: tuple[int, ...] | None = None
) -> tuple[str, list[str]]:
    """Load the weights of a file's ViT into a network's encoder; the decoder stays as it is.

    The file's ViT may have other channels, another window, and biases of queries, keys and values.

    Args:
        content: a state dict, or one below a key of :data:`NESTS`. The ViT has the names of timm, of MONAI, or ours.
        source: the file, for messages.
        img_size: the window in voxels that the ViT was trained with. None means a square or a cube.

    Returns:
        A text that says what was loaded, and notes on what was changed or left out.

    Raises:
        InputError: if the network has no ViT, or the file holds none that the encoder can take.
    """
    name = architecture_of(network).require("vit_encoder", "vit_weights", "started from a ViT")
    vit, config = getattr(network, name), network.config
    assert isinstance(vit, ViT)
    assert isinstance(config, ViTConfig)
    stem, notes_on_stem = {}, list[str]()
    if config.input_patch != config.patch_size:
        state = content["state_dict"] if isinstance(content.get("state_dict"), Mapping) else content
        stem = _read_stem(network, state, source, notes_on_stem)
        content = {name: tensor for name, tensor in state.items() if name not in stem}
    wanted = {_our_name(name): tensor for name, tensor in vit.state_dict().items()}
    encoder = _read_encoder(content, source, config)
    _refuse_other_sizes(encoder, wanted, source)
    of_images = _adapt_patches(encoder, wanted, config.input_patch, source)
    grid = None if img_size is None else config.grid_of(img_size)
    _adapt_positions(encoder, of_images, grid, config.grid, source)
    _keep_known(encoder, wanted, source)
    lost = [_fold(encoder, f"blocks.{number}", wanted) for number in range(len(vit.blocks))]
    if any(lost):
        encoder.notes.append("left out: biases that the network has no place for (`qv_bias`)")
    if PATCHES in wanted and wanted[PATCHES].ndim == 2:
        encoder.tensors[PATCHES] = encoder.tensors[PATCHES].permute(0, 2, 3, 4, 1).flatten(1)  # (E, p³ · C)
    tensors = {**wanted, **encoder.tensors}
    vit.load_state_dict({name: tensors[_our_name(name)] for name in vit.state_dict()})
    network.load_state_dict(stem, strict=False)
    what = "images" if of_images else "volumes"
    text = f"its encoder from {source} (a ViT of {what} {encoder.origin}), all else from random weights"
    return text, notes_on_stem + encoder.notes


def _read_stem(network: nn.Module, state: Mapping[str, Any], source: str, notes: list[str]) -> dict[str, Tensor]:
    """The convolutions before the transformer, from an encoder of ``utils.pretrain`` or ``main.py``.

    Args:
        notes: gets one if the file's scans have another number of channels.

    Raises:
        InputError: if the file doesn't hold them.
    """
    vit = architecture_of(network).declared("vit_encoder")
    layers = [name for name in network.encoder_layers() if name != vit]  # type: ignore[operator]
    wanted = {name: tensor for name, tensor in network.state_dict().items() if lies_in(name, layers)}
    if not wanted.keys() <= state.keys():
        raise InputError(
            "`vit_weights`: with `conv_stem` the transformer reads features of convolutions, and the file doesn't hold "
            "these. Give a file that utils.pretrain made with `conv_stem`, or leave one of the two out."
        )
    found = {name: as_weights(name, state[name], tensor, source) for name, tensor in wanted.items()}
    for name in (name for name in wanted if lies_in(name, architecture_of(network).declared("input_layers"))):
        theirs, ours = found[name], wanted[name]
        if theirs.ndim == ours.ndim > 1 and theirs.shape[1] != ours.shape[1] and theirs[:, 0].shape == ours[:, 0].shape:
            found[name] = _average_channels(notes, theirs, ours.shape[1])
    misfits = [name for name, tensor in wanted.items() if found[name].shape != tensor.shape]
    if misfits:
        raise InputError(
            f"{source}: its {misfits[0]} has the shape {tuple(found[misfits[0]].shape)}, and the network's "
            f"{tuple(wanted[misfits[0]].shape)}. Give the settings that it was trained with, `feature_size` among them."
        )
    return found


def _our_name(name: str) -> str:
    """A tensor's name in our ViT with ``pos_embed`` conv."""
    for pattern, ours in NAMES:
        if match := pattern.fullmatch(name):
            return match.expand(ours)
    return name


def _read_encoder(content: Mapping[str, Any], source: str, config: ViTConfig) -> _Encoder:
    path = []
    while nest := next((key for key in NESTS if isinstance(content.get(key), Mapping)), None):
        path.append(nest)
        content = content[nest]
    state = {name: tensor for name, tensor in content.items() if isinstance(name, str) and isinstance(tensor, Tensor)}
    check_tensors(state, source)
    if any(name.endswith(IN_STEM) for name in state):  # of a network with a stem it was taken out before
        raise InputError(
            f"{source}: its transformer reads features of convolutions, not voxels. Give `conv_stem` (of unetr), or "
            "another file."
        )
    primus = prefixes_of_primus(state)
    prefixes = primus + [
        match[1]
        for name in state
        if (match := PATCHES_IN_FILE.fullmatch(name)) and f"{match[1]}blocks.0.norm1.weight" in state
    ]
    if not prefixes:
        raise InputError(
            f"{source}: holds no ViT with the names of timm (patch_embed.proj.weight, blocks.0.norm1.weight, …), of "
            "MONAI (patch_embedding.patch_embeddings.weight, …) or of nnssl (eva.blocks.0.attn.q_proj.weight, …). Give "
            "`vit_weights` the state dict of one."
        )
    if len(prefixes) > 1:
        raise InputError(
            f"{source}: holds {len(prefixes)} ViTs, with the prefixes {', '.join(map(repr, prefixes))}. Save the state "
            "dict of one alone."
        )
    prefix = prefixes[0]
    style = "nnssl" if primus else "timm" if f"{prefix}patch_embed.proj.weight" in state else "MONAI"
    place = ".".join([*path, prefix.rstrip(".")]).strip(".")
    inside = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    for name, tensor in inside.items():
        of_a_layer = name.endswith((".weight", "bias", ".gamma")) or _our_name(name) == POSITIONS
        if of_a_layer and (tensor.numel() == 0 or not tensor.is_floating_point()):
            raise DamagedError(
                f"{source}: its {prefix}{name} {tuple(tensor.shape)} holds {tensor.dtype}, not floats. "
                "Give another file."
            )
    if primus:
        floats = {name: tensor.float() for name, tensor in inside.items()}
        tensors = as_our_vit(floats, config.num_heads, config.grid)
    else:
        tensors = {_our_name(name): tensor.float() for name, tensor in inside.items()}
        if len(tensors) < len(inside):
            raise InputError(
                f"{source}: has a tensor of its ViT twice, under two names. Save one network's state dict."
            )
    encoder = _Encoder(f"with names of {style}" + (f" below {place}" if place else ""), tensors)
    if primus:
        encoder.notes.append("its axes z, y, x became x, y, z; its decoder is left out")
    others = [name for name in state if not name.startswith(prefix)]
    if others:
        encoder.notes.append(
            f"left out, since {'it is' if len(others) == 1 else 'they are'} not of its ViT: {_listed(others)}"
        )
    return encoder


def _refuse_other_sizes(encoder: _Encoder, wanted: Mapping[str, Tensor], source: str) -> None:
    tensors = encoder.tensors
    linear = "blocks.0.mlp.linear1.weight"
    sizes = {"hidden_size": (encoder.hidden_size, len(wanted["norm.weight"]))}
    if linear in tensors and tensors[linear].ndim == 2:  # else the blocks are of another kind
        sizes["mlp_dim"] = (len(tensors[linear]), len(wanted[linear]))
    differing = {name: (theirs, ours) for name, (theirs, ours) in sizes.items() if theirs != ours}
    if differing:
        faults = "; ".join(
            f"`{name}` is {ours}, but its ViT has {theirs}" for name, (theirs, ours) in differing.items()
        )
        settings = ", ".join(f"`{name}` {theirs}" for name, (theirs, _) in differing.items())
        raise InputError(f"{source}: {faults}. Give {settings}, and the `num_heads` that it was trained with.")
    theirs, ours = _depth(tensors), _depth(wanted)
    if theirs != ours:
        raise InputError(
            f"{source}: its ViT has {theirs} blocks, and the network's has {ours}. Give a ViT of {ours} blocks, or for "
            f"primus `num_layers` {theirs}."
        )


def _depth(names: Mapping[str, Tensor]) -> int:
    return len({name.split(".")[1] for name in names if re.match(r"blocks\.\d+\.", name)})


def _keep_known(encoder: _Encoder, wanted: Mapping[str, Tensor], source: str) -> None:
    """Remove what our ViT has no place for, and check that the rest is complete, fits in shape and is finite."""
    tensors = encoder.tensors
    size = encoder.hidden_size
    vectors = ("scale1.gamma", "scale2.gamma", "attn.q_bias", "attn.v_bias")
    folded = {f"blocks.{number}.attn.qkv.bias": (3 * size,) for number in range(_depth(wanted))}
    folded |= {f"blocks.{number}.{vector}": (size,) for number in range(_depth(wanted)) for vector in vectors}
    shapes = {name: tuple(tensor.shape) for name, tensor in wanted.items() if name not in (PATCHES, POSITIONS)} | folded
    missing = [name for name in wanted if name not in tensors and name not in folded]
    needed = [name for name in missing if name != POSITIONS and not name.startswith("norm.")]
    misfits = [
        f"{name} {tuple(tensors[name].shape)} instead of {shape}"
        for name, shape in shapes.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    if needed or misfits:
        faults = [f"missing: {_listed(needed)}"] if needed else []
        faults += [f"of another shape: {', '.join(misfits)}"] if misfits else []
        raise InputError(
            f"{source}: its ViT is of another kind than the network's; {'; '.join(faults)}. Give a ViT of this kind, "
            "or the settings of its kind (`swiglu`, `attn_norm`, `pos_embed`)."
        )
    unknown = [name for name in tensors if name not in wanted and name not in folded]
    changing = [name for name in unknown if name.startswith("blocks.") and not UNREAD.fullmatch(name)]
    left_out = [name for name in unknown if not name.startswith("blocks.")]
    if changing:
        encoder.notes.append(f"left out, though its blocks compute something else without: {_listed(changing)}")
    if left_out:
        encoder.notes.append(f"left out: {_listed(left_out)}")
    if missing:
        encoder.notes.append(f"not in {source}, so as in a new network: {_listed(missing)}")
    for name in unknown:
        del tensors[name]
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise InputError(f"{source}: has numbers that aren't finite in {_listed(broken)}. Give another file.")


def _listed(names: list[str]) -> str:
    """Names for messages. Those of one part, or of one layer in all blocks, are joined to one with their number."""
    groups: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        groups.setdefault(f"blocks.*.{parts[2]}" if parts[0] == "blocks" else parts[0], []).append(name)
    return ", ".join(group[0] if len(group) == 1 else f"{part}.* ({len(group)})" for part, group in groups.items())


def _adapt_patches(encoder: _Encoder, wanted: Mapping[str, Tensor], edge: int, source: str) -> bool:
    """Convert the patch embedding to a convolution over volumes, (E, C, p, p, p), or that of the residual tokenizer.

    Args:
        wanted: the network's own tensors. Its patch embedding is (E, C, p, p, p) or (E, p³ · C), or residual.
        edge: p.

    Returns:
        Whether it was one for images.
    """
    if (PATCHES in wanted) != (PATCHES in encoder.tensors):
        raise InputError(
            f"{source}: its patches are read by {'one layer' if PATCHES in encoder.tensors else 'residual blocks'}, as "
            f"with `pos_embed` {'conv' if PATCHES in encoder.tensors else 'residual'}. Give that."
        )
    if PATCHES not in wanted:
        for name in SCAN_KERNELS:  # of a block whose channels stay there is no skip
            weight, fresh = encoder.tensors.get(name), wanted.get(name)
            if weight is None or fresh is None or weight.ndim != fresh.ndim:
                continue
            if weight.shape[1] != fresh.shape[1]:
                encoder.tensors[name] = _average_channels(encoder.notes, weight, fresh.shape[1])
        return False
    ours, kernel = wanted[PATCHES], encoder.tensors[PATCHES]
    shape = tuple(kernel.shape)
    channels = ours.shape[1] // (edge**3 if ours.ndim == 2 else 1)
    if kernel.ndim == 2:
        # the length of a flattened patch leaves its edge open: prefer one that gives our channels, then the longest
        known = sorted({*PATCH_SIZES, edge}, reverse=True)
        sizes = [size for size in known if kernel.shape[1] % size**3 == 0]
        exact = [size for size in sizes if kernel.shape[1] == size**3 * channels]
        theirs = next(iter([*exact, *sizes]), 1)
        kernel = kernel.unflatten(1, (theirs, theirs, theirs, -1)).permute(0, 4, 1, 2, 3)  # (E, p³ · C) -> as below
    if kernel.ndim not in (4, 5) or kernel.shape[0] != ours.shape[0] or set(kernel.shape[2:]) != {edge}:
        raise InputError(
            f"{source}: its patch embedding {shape} doesn't read patches with an edge of {edge}, as the network that "
            "the settings describe does. Give a ViT with such patches."
        )
    if kernel.shape[1] != channels:
        kernel = _average_channels(encoder.notes, kernel, channels)
    of_images = kernel.ndim == 4
    if of_images:
        encoder.notes.append(
            "its patches of images are spread over z: axial slices are its images, rows along x and columns along y"
        )
        kernel = kernel.unsqueeze(-1).expand(-1, -1, -1, -1, edge) / edge  # (E, C, p, p) -> (E, C, p, p, p)
    encoder.tensors[PATCHES] = kernel
    return of_images


def _average_channels(notes: list[str], kernel: Tensor, channels: int) -> Tensor:
    note = (
        f"the weights of {kernel.shape[1]} channels became those of {channels}; a scan whose channels are alike "
        "gives the same tokens"
    )
    if note not in notes:
        notes.append(note)
    return average_channels(kernel, channels)


def _adapt_positions(
    encoder: _Encoder, of_images: bool, old: tuple[int, ...] | None, new: tuple[int, int, int], source: str
) -> None:
    """Interpolate the position embeddings to the window's grid of patches, if the file has any.

    Args:
        old: the grid that they were trained on, if that is known.
        new: the window's grid.
    """
    positions = encoder.tensors.get(POSITIONS)
    if positions is None:
        return
    tokens = positions.shape[1] if positions.ndim == 3 else 0
    no_patches = 0  # embeddings of class tokens, which come first
    if old is None and not of_images:
        old = untold_grid(tokens, new)
    if old is None:
        dimensions = 2 if of_images else 3
        edge = math.floor(tokens ** (1 / dimensions) + 1e-6)
        old = (edge,) * dimensions
        if tokens != edge**dimensions:
            no_patches = sum(name in encoder.tensors for name in CLASS_TOKENS)
    if tokens == 0 or tokens != math.prod(old) + no_patches or positions.shape[::2] != (1, encoder.hidden_size):
        form = "a square" if of_images else "a cube"
        raise InputError(
            f"{source}: its position embeddings {tuple(positions.shape)} are not those of {form} of patches. Give a "
            "ViT that was trained with such a window, or the `roi_x`, `roi_y` and `roi_z` of its own."
        )
    positions = positions[:, no_patches:]
    wanted = new[: len(old)]
    if of_images:
        image = positions.transpose(1, 2).unflatten(2, old)  # (1, N, E) -> (1, E, x, y)
        if old != wanted:
            image = F.interpolate(image, size=wanted, mode="bicubic", antialias=True)
        volume = image.unsqueeze(-1).expand(-1, -1, -1, -1, new[2])  # (1, E, x, y, z)
        positions = volume.flatten(2).transpose(1, 2)  # (1, N, E)
    elif old != wanted:
        positions = interpolate_positions(positions, old, new)
    if old != wanted:
        encoder.notes.append(
            f"position embeddings are interpolated from {size_text(old)} to {size_text(wanted)} patches"
        )
    encoder.tensors[POSITIONS] = positions


def _fold(encoder: _Encoder, block: str, wanted: Mapping[str, Tensor]) -> bool:
    """Fold a block's scales and biases into the layers beside them, where the network has no place for them.

    Where it has, and the file has none, scales are 1 and biases 0.

    - LayerScale (Touvron et al. 2021, arXiv 2103.17239) multiplies a layer's output, so it goes into that layer.
    - The bias of keys adds the same number to all logits of a softmax, so it has no effect.
    - The bias of values passes through the attention unchanged, since its weights add up to 1; so out_proj times that
      bias goes into out_proj's bias.
    - The bias of queries can't be folded and is lost, and before a norm that of values too.

    Returns:
        Whether a bias was lost.
    """
    tensors = encoder.tensors
    for scale, layer in (("scale1", "attn.out_proj"), ("scale2", "mlp.linear2")):
        gamma = f"{block}.{scale}.gamma"
        if gamma in wanted:
            tensors.setdefault(gamma, torch.ones_like(wanted[gamma]))
            continue
        factor = tensors.pop(gamma, None)
        if factor is not None:
            tensors[f"{block}.{layer}.weight"] = factor[:, None] * tensors[f"{block}.{layer}.weight"]
            tensors[f"{block}.{layer}.bias"] = factor * tensors[f"{block}.{layer}.bias"]
    none = torch.zeros(encoder.hidden_size)
    query, _, value = tensors.pop(f"{block}.attn.qkv.bias", none.repeat(3)).chunk(3)
    query, value = tensors.pop(f"{block}.attn.q_bias", query), tensors.pop(f"{block}.attn.v_bias", value)
    if f"{block}.attn.q_bias" in wanted:
        tensors[f"{block}.attn.q_bias"], tensors[f"{block}.attn.v_bias"] = query, value
        return False
    if f"{block}.attn.norm.weight" in wanted:  # which stands between the values and out_proj
        return bool(query.any() or value.any())
    bias = tensors[f"{block}.attn.out_proj.bias"]
    tensors[f"{block}.attn.out_proj.bias"] = bias + tensors[f"{block}.attn.out_proj.weight"] @ value
    return bool(query.any())

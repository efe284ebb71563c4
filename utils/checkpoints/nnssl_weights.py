"""Encoders that nnssl pre-trained (Primus of ``dynamic-network-architectures``), under the names of our ViT.

nnssl reads volumes with the axes z, y, x, and we with x, y, z. So kernels, position embeddings and the parts of each
head that turn with an axis change places: a volume gets the same tokens in both.

E is the hidden size, N the number of patches.
"""

import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from utils.checkpoints.foreign_weights import untold_grid

FIRST_QUERY = re.compile(r"((?:.*\.)?)eva\.blocks\.0\.attn\.q_proj\.weight")
TOKENIZER = "patch_embedding.patch_embeddings"
# their convolutions have a second name, below all_modules
CONVOLUTION = r"(conv1|conv2|skip\.\d+)\.(conv|norm)\.(weight|bias)"
PLACES = {"conv": "0", "norm": "1"}
NAMES = (
    (re.compile(r"down_projection\.(?:proj|final_proj)\.(weight|bias)"), r"\1"),
    (re.compile(r"eva\.pos_embed"), "patch_embedding.position_embeddings"),
    (re.compile(r"eva\.(norm\.\w+)"), r"\1"),
    (re.compile(r"eva\.(blocks\.\d+)\.gamma_([12])"), r"\1.scale\2.gamma"),
    (re.compile(r"eva\.(blocks\.\d+\.attn)\.proj\.(\w+)"), r"\1.out_proj.\2"),
    (re.compile(r"eva\.(blocks\.\d+\.mlp)\.fc1_g\.(\w+)"), r"\1.gate.\2"),
    (re.compile(r"eva\.(blocks\.\d+\.mlp)\.fc1_x\.(\w+)"), r"\1.linear1.\2"),
    (re.compile(r"eva\.(blocks\.\d+\.mlp)\.fc2\.(\w+)"), r"\1.linear2.\2"),
    (re.compile(r"eva\.(blocks\..+)"), r"\1"),
)


def prefixes_of_primus(names: Collection[str]) -> list[str]:
    """What stands before the names of each Primus encoder in a state dict."""
    found = [match[1] for name in names if (match := FIRST_QUERY.fullmatch(name))]
    return [prefix for prefix in found if f"{prefix}eva.blocks.0.norm1.weight" in names]


def as_our_vit(state: Mapping[str, Tensor], num_heads: int, grid: tuple[int, int, int]) -> dict[str, Tensor]:
    """The tensors of a Primus encoder as those of a :class:`networks.vit.ViT` with its options.

    Args:
        state: by their names, without a prefix. Others than the encoder's are left out.
        num_heads: attention heads.
        grid: patches along x, y and z of the window that they are for.
    """
    has_tokenizer = any(name.startswith("down_projection.stem.") for name in state)
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        ours = _our_name(name, has_tokenizer)
        if ours is not None:
            found[ours] = tensor.permute(0, 1, 4, 3, 2).contiguous() if tensor.ndim == 5 else tensor
    for prefix in {name.rpartition(".q_proj.")[0] for name in found if ".q_proj." in name}:
        _join_queries_keys_and_values(found, prefix, num_heads)
    positions = found.get("patch_embedding.position_embeddings")
    if positions is not None and positions.ndim == 3:
        found["patch_embedding.position_embeddings"] = _transposed(positions, grid)
    return found


def _our_name(name: str, has_tokenizer: bool) -> str | None:
    if match := re.fullmatch(rf"down_projection\.(stem|stages\.\d+)\.blocks\.0\.{CONVOLUTION}", name):
        place, layer, kind, what = match.groups()
        return f"{TOKENIZER}.{place}.{layer.split('.')[0]}.{PLACES[kind]}.{what}"
    for pattern, ours in NAMES:
        if match := pattern.fullmatch(name):
            found = match.expand(ours)
            if found in ("weight", "bias"):
                return f"{TOKENIZER}.proj.{found}" if has_tokenizer else f"{TOKENIZER}.{found}"
            return found
    return None


def _join_queries_keys_and_values(tensors: dict[str, Tensor], attention: str, num_heads: int) -> None:
    """Make one linear map of three, whose heads turn with x, y and z instead of z, y and x.

    Where they aren't three matrices of one shape they stay as they are, and the joint one is missing.
    """
    names = [f"{attention}.{name}_proj.weight" for name in "qkv"]
    shapes = {tuple(tensors[name].shape) if name in tensors else None for name in names}
    if len(shapes) > 1 or len(shapes.pop() or ()) != 2:
        return
    q, k, v = (tensors.pop(name) for name in names)
    tensors[f"{attention}.qkv.weight"] = torch.cat([_axes_reversed(q, num_heads), _axes_reversed(k, num_heads), v])
    bias = tensors.pop(f"{attention}.q_proj.bias", None)
    if bias is not None:
        tensors[f"{attention}.q_bias"] = _axes_reversed(bias, num_heads)
    bias = tensors.pop(f"{attention}.v_proj.bias", None)
    if bias is not None:
        tensors[f"{attention}.v_bias"] = bias


def _axes_reversed(tensor: Tensor, num_heads: int) -> Tensor:
    """Reverse the order of the thirds of each head, in a weight (E, E) or a bias (E,)."""
    if tensor.ndim == 0 or len(tensor) % (3 * num_heads):
        return tensor  # such heads don't turn
    return tensor.unflatten(0, (num_heads, 3, -1)).flip(1).flatten(0, 2)


def _transposed(positions: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Position embeddings (1, N, E) of a window with the axes z, y, x as those of one with x, y, z."""
    theirs = untold_grid(positions.shape[1], grid)
    if theirs is None:
        return positions
    return positions.unflatten(1, theirs[::-1]).permute(0, 3, 2, 1, 4).flatten(1, 3)

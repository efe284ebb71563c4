"""The transformer encoder of UNETR and of Primus, from leaf to root.

As UNETR has it, it is a plain ViT. Options turn it into the encoder of Primus (Wald et al., arXiv 2503.01835), which is
EVA-02's (Fang et al., arXiv 2303.11331) in 3D. Parameter names of the plain one are those of the published weights
(MONAI 0.7.0); they are an interface. B is the batch, C the channels, N the number of patches (tokens), E the hidden
size.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.registry import NetworkConfig, flag
from networks.tokenizer import ResidualTokenizer

NUM_LAYERS = 12
PATCH_SIZES = (16, 8)
ROTARY_BASE = 10_000  # of the speeds of rotary embeddings, as in Su et al., arXiv 2104.09864


@dataclass(frozen=True)
class ViTConfig(NetworkConfig):
    """The settings of the transformer."""

    hidden_size: int = flag(768, "length of a token", at_least=1, at_most=16384)
    mlp_dim: int = flag(3072, "width of the ViT's perceptron", at_least=1, at_most=65536)
    num_heads: int = flag(12, "attention heads", at_least=1)
    pos_embed: str = flag("perceptron", "patch embedding", choices=("perceptron", "conv", "residual"), rare=True)
    patch_size: int = flag(16, "edge of a patch in voxels", choices=PATCH_SIZES)
    dropout_rate: float = flag(0.0, "dropout in the transformer", at_least=0, below=1, any_weights=True, rare=True)
    drop_path_rate: float = flag(
        0.0,
        "how often training leaves out a branch of the last transformer block; less often in earlier ones",
        at_least=0,
        below=1,
        any_weights=True,
        rare=True,
    )
    rotary: bool = flag(False, "rotary position embeddings along each axis, beside the learned ones", rare=True)
    swiglu: bool = flag(False, "a gated perceptron with a norm inside (SwiGLU)", rare=True)
    attn_norm: bool = flag(False, "a norm before the output projection of attention", rare=True)
    qv_bias: bool = flag(False, "biases of queries and values", rare=True)
    layer_scale: float = flag(
        0.0,
        "learned factors on the branches of transformer blocks, which begin at this; 0 leaves them out",
        at_least=0,
        at_most=1,
        rare=True,
    )
    scaled_init: bool = flag(
        False,
        "initial weights of the branches' last layers that are smaller in later blocks",
        any_weights=True,
        rare=True,
    )

    def faults(self) -> list[str]:
        """Heads that don't divide the token, or can't be rotated along three axes."""
        if self.hidden_size % self.num_heads:
            return [f"`num_heads` {self.num_heads} must divide `hidden_size` {self.hidden_size}"]
        head_size = self.hidden_size // self.num_heads
        if self.rotary and head_size % 6:
            return [f"`rotary` needs heads with a multiple of 6 numbers, but `hidden_size` {self.hidden_size} in "
                    f"`num_heads` {self.num_heads} makes {head_size}"]  # fmt: skip
        return []

    @property
    def num_layers(self) -> int:
        """Transformer blocks."""
        return NUM_LAYERS

    @property
    def grid(self) -> tuple[int, int, int]:
        """Patches along each axis of the window."""
        return self.grid_of(self.img_size)

    @property
    def input_channels(self) -> int:
        """Channels of the volume that the transformer reads: the scan, or features of it."""
        return self.in_channels

    @property
    def input_patch(self) -> int:
        """Edge of a patch in voxels of that volume."""
        return self.patch_size


def patch_divisor(config: ViTConfig) -> tuple[int, int, int]:
    """What the window's edges must be multiples of: the patch's edge.

    Raises:
        ValueError: if residual convolutions would end in a single voxel, of which there is no instance norm.
    """
    if config.pos_embed == "residual" and all(edge == config.patch_size for edge in config.img_size):
        raise ValueError(f"one edge must be {2 * config.patch_size} or more for `pos_embed` residual, or its last "
                         "convolution has a single voxel")  # fmt: skip
    return (config.patch_size,) * 3


def unsafe_windows(config: ViTConfig) -> tuple[int, ...]:
    """``unsafe_bfloat16_roi_x``: convolutions work down to an eighth of the window, residual ones down to a patch."""
    return (8, 16, 32) if config.pos_embed == "residual" and config.patch_size == 16 else (8, 16)


class PatchesToVectors(nn.Module):
    """Cut a volume into patches and lay each one out as a vector.

    The order inside a vector is (depth, height, width, channel), the channel fastest, as in the
    einops pattern ``b c (h p1) (w p2) (d p3) -> b (h w d) (p1 p2 p3 c)`` of the published network.
    """

    def __init__(self, patch: tuple[int, int, int]) -> None:
        super().__init__()
        self.patch = patch

    def forward(self, volume: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, N, p · q · r · C) for patches of p × q × r voxels."""
        p, q, r = self.patch
        batch, channels, depth, height, width = volume.shape
        grid = volume.reshape(batch, channels, depth // p, p, height // q, q, width // r, r)
        # (B, C, d, p, h, q, w, r) -> (B, d, h, w, p, q, r, C)
        patches = grid.permute(0, 2, 4, 6, 3, 5, 7, 1)
        return patches.flatten(4).flatten(1, 3)  # (B, N, p · q · r · C)


class PatchEmbedding(nn.Module):
    """Patches to tokens, with a learned embedding of each patch's position added.

    ``pos_embed`` is ``perceptron`` (a linear layer over the flattened patch), ``conv`` (the same map as a strided
    convolution, with another order of its weights) or ``residual`` (residual convolutions).
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.pos_embed = config.pos_embed
        self.patch_embeddings: nn.Module
        if config.pos_embed == "conv":
            p = config.input_patch
            self.patch_embeddings = nn.Conv3d(config.input_channels, config.hidden_size, kernel_size=p, stride=p)
        elif config.pos_embed == "residual":
            self.patch_embeddings = ResidualTokenizer(config.input_channels, config.hidden_size, config.input_patch)
        else:
            linear = nn.Linear(config.input_channels * config.input_patch**3, config.hidden_size)
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
            self.patch_embeddings = nn.Sequential(PatchesToVectors((config.input_patch,) * 3), linear)
        self.position_embeddings = nn.Parameter(torch.empty(1, math.prod(config.grid), config.hidden_size))
        nn.init.trunc_normal_(self.position_embeddings, std=0.02)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, volume: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, N, E)."""
        tokens = self.patch_embeddings(volume)
        if self.pos_embed != "perceptron":
            tokens = tokens.flatten(2).transpose(1, 2)  # (B, E, d, h, w) -> (B, N, E)
        return self.dropout(tokens + self.position_embeddings)


def rotations(grid: tuple[int, int, int], head_size: int) -> Tensor:
    """Cosines and sines of the angles by which rotary position embeddings turn queries and keys.

    A third of the pairs of numbers in a head turns with the patch's place along each axis, the first of them by one
    radian a patch, later ones ever more slowly.

    Returns:
        (2, N, head_size / 2).
    """
    bands = head_size // 6
    speeds = ROTARY_BASE ** -(torch.arange(bands, dtype=torch.float32, device="cpu") / bands)
    axes = [torch.arange(patches, dtype=torch.float32, device="cpu") for patches in grid]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)  # (d, h, w, 3)
    angles = (places[..., None] * speeds).flatten(3).flatten(0, 2)  # (d, h, w, 3, bands) -> (N, head_size / 2)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn the pairs of neighbouring numbers in each head.

    Args:
        x: (B, heads, N, E / heads).
        rotation: cosines and sines, (2, N, E / heads / 2), or those of each sample, (2, B, 1, N, E / heads / 2).
    """
    cos, sin = rotation[0], rotation[1]
    even, odd = x[..., 0::2], x[..., 1::2]  # (B, heads, N, E / heads / 2)
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1)
    return turned.flatten(-2).to(x.dtype)


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017); queries, keys and values have no bias, unless ``qv_bias``."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.dropout_rate = config.dropout_rate
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(config.hidden_size)) if config.qv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(config.hidden_size)) if config.qv_bias else None
        self.norm = nn.LayerNorm(config.hidden_size) if config.attn_norm else nn.Identity()
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.drop_output = nn.Dropout(config.dropout_rate)

    def forward(self, tokens: Tensor, rotation: Tensor | None = None) -> Tensor:
        """(B, N, E) -> (B, N, E)."""
        # (B, N, 3 · E) -> 3 × (B, N, E)
        q, k, v = self.qkv(tokens).unflatten(-1, (3, -1)).unbind(2)
        if self.q_bias is not None and self.v_bias is not None:
            q, v = q + self.q_bias.to(q.dtype), v + self.v_bias.to(v.dtype)
        q, k, v = self._by_head(q), self._by_head(k), self._by_head(v)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        merged = self.attend(q, k, v).transpose(1, 2).flatten(2)  # (B, heads, N, E / heads) -> (B, N, E)
        return self.drop_output(self.out_proj(self.norm(merged)))

    def _by_head(self, x: Tensor) -> Tensor:
        """(B, N, E) -> (B, heads, N, E / heads)."""
        # Each of the three by itself: OpenVINO 2026.4 compiles one permutation of all wrongly where there are as many
        # tokens as heads
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Three times (B, heads, N, E / heads) -> (B, heads, N, E / heads)."""
        dropout = self.dropout_rate if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)


class MLP(nn.Module):
    """The two-layer perceptron of a transformer block, with GELU between the layers."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.linear1 = nn.Linear(config.hidden_size, config.mlp_dim)
        self.linear2 = nn.Linear(config.mlp_dim, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, E) -> (B, N, E)."""
        hidden = self.dropout(F.gelu(self.linear1(tokens)))
        return self.dropout(self.linear2(hidden))


class GatedMLP(nn.Module):
    """A perceptron whose hidden numbers are gated by SiLU of others, and normalised (SwiGLU: Shazeer 2020)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.mlp_dim)
        self.linear1 = nn.Linear(config.hidden_size, config.mlp_dim)
        self.norm = nn.LayerNorm(config.mlp_dim)
        self.linear2 = nn.Linear(config.mlp_dim, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, E) -> (B, N, E)."""
        hidden = self.dropout(F.silu(self.gate(tokens)) * self.linear1(tokens))
        return self.dropout(self.linear2(self.norm(hidden)))


class DropPath(nn.Module):
    """Leaves a residual branch out for whole samples in training (Huang et al. 2016, stochastic depth).

    Branches that stay are scaled by 1 / (1 - rate), which keeps their mean.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """(B, N, E) -> (B, N, E)."""
        if self.rate == 0 or not self.training:
            return branch
        return branch * F.dropout(branch.new_ones(len(branch), 1, 1), self.rate)


class LayerScale(nn.Module):
    """A learned factor on each number of a branch (Touvron et al., arXiv 2103.17239)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((config.hidden_size,), config.layer_scale))

    def forward(self, branch: Tensor) -> Tensor:
        """(B, N, E) -> (B, N, E)."""
        return branch * self.gamma


class TransformerBlock(nn.Module):
    """A pre-norm transformer block (Dosovitskiy et al. 2021)."""

    def __init__(self, config: ViTConfig, drop_path_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size)
        self.attn = SelfAttention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size)
        self.mlp = GatedMLP(config) if config.swiglu else MLP(config)
        self.drop_path = DropPath(drop_path_rate)
        scaled = config.layer_scale > 0
        self.scale1 = LayerScale(config) if scaled else nn.Identity()
        self.scale2 = LayerScale(config) if scaled else nn.Identity()

    def forward(self, tokens: Tensor, rotation: Tensor | None = None) -> Tensor:
        """(B, N, E) -> (B, N, E)."""
        tokens = tokens + self.drop_path(self.scale1(self.attn(self.norm1(tokens), rotation)))
        return tokens + self.drop_path(self.scale2(self.mlp(self.norm2(tokens))))

    def initialise(self, number: int) -> None:
        """Draw the weights as EVA-02 does: the last layers of the branches are smaller by √(2 · number).

        Args:
            number: of the block, from 1.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for last in (self.attn.out_proj, self.mlp.linear2):
            last.weight.data /= math.sqrt(2 * number)


class ViT(nn.Module):
    """A vision transformer that also returns the output of each of its blocks."""

    rotation: Tensor | None

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.patch_embedding = PatchEmbedding(config)
        blocks = [
            TransformerBlock(config, config.drop_path_rate * depth / max(1, config.num_layers - 1))
            for depth in range(config.num_layers)
        ]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(config.hidden_size)
        if config.scaled_init:
            for number, block in enumerate(blocks, 1):
                block.initialise(number)
        rotation = rotations(config.grid, config.hidden_size // config.num_heads) if config.rotary else None
        self.register_buffer("rotation", rotation, persistent=False)

    def forward(self, volume: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, C, D, H, W) -> the last block's tokens after the norm, and every block's before it, each (B, N, E)."""
        return self.transform(self.patch_embedding(volume), self.rotation)

    def transform(self, tokens: Tensor, rotation: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """What all blocks make of tokens: see :meth:`forward`.

        Args:
            tokens: of all patches, or of some, (B, N, E).
            rotation: of the same patches, as :func:`rotate` takes it.
        """
        hidden_states: list[Tensor] = []
        for block in self.blocks:
            tokens = block(tokens, rotation)
            hidden_states.append(tokens)
        return self.norm(tokens), hidden_states

"""The transformer encoder of UNETR, from leaf to root.

Parameter names are those of the published weights (MONAI 0.7.0); they are an interface.
B is the batch, C the channels, N the number of patches (tokens), E the hidden size.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.registry import NetworkConfig, flag

NUM_LAYERS = 12
PATCH_SIZES = (16, 8)


@dataclass(frozen=True)
class ViTConfig(NetworkConfig):
    """The settings of the transformer."""

    hidden_size: int = flag(768, "length of a token", at_least=1, at_most=16384)
    mlp_dim: int = flag(3072, "width of its perceptron", at_least=1, at_most=65536)
    num_heads: int = flag(12, "attention heads", at_least=1)
    pos_embed: str = flag("perceptron", "patch embedding", choices=("perceptron", "conv"), rare=True)
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

    def faults(self) -> list[str]:
        """Heads that don't divide the token."""
        if self.hidden_size % self.num_heads:
            return [f"`num_heads` {self.num_heads} must divide `hidden_size` {self.hidden_size}"]
        return []

    @property
    def grid(self) -> tuple[int, int, int]:
        """Patches along each axis of the window."""
        x, y, z = (edge // self.patch_size for edge in self.img_size)
        return x, y, z

    @property
    def input_channels(self) -> int:
        """Channels of the volume that the transformer reads: the scan, or features of it."""
        return self.in_channels

    @property
    def input_patch(self) -> int:
        """Edge of a patch in voxels of that volume."""
        return self.patch_size


class PatchesToVectors(nn.Module):
    """Cut a volume into patches and lay each one out as a vector.

    The order inside a vector is (depth, height, width, channel), the channel fastest, as in the
    einops pattern ``b c (h p1) (w p2) (d p3) -> b (h w d) (p1 p2 p3 c)`` of the published network.
    """

    def __init__(self, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size

    def forward(self, volume: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, N, patch_size³ · C)."""
        p = self.patch_size
        batch, channels, depth, height, width = volume.shape
        grid = volume.reshape(batch, channels, depth // p, p, height // p, p, width // p, p)
        # (B, C, d, p, h, p, w, p) -> (B, d, h, w, p, p, p, C)
        patches = grid.permute(0, 2, 4, 6, 3, 5, 7, 1)
        return patches.flatten(4).flatten(1, 3)  # (B, N, p³ · C)


class PatchEmbedding(nn.Module):
    """Patches to tokens, with a learned embedding of each patch's position added.

    ``pos_embed`` is ``perceptron`` (a linear layer over the flattened patch) or ``conv`` (the same map as a strided
    convolution, with another order of its weights).
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.pos_embed = config.pos_embed
        self.patch_embeddings: nn.Module
        if config.pos_embed == "conv":
            p = config.input_patch
            self.patch_embeddings = nn.Conv3d(config.input_channels, config.hidden_size, kernel_size=p, stride=p)
        else:
            linear = nn.Linear(config.input_channels * config.input_patch**3, config.hidden_size)
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
            self.patch_embeddings = nn.Sequential(PatchesToVectors(config.input_patch), linear)
        self.position_embeddings = nn.Parameter(torch.empty(1, math.prod(config.grid), config.hidden_size))
        nn.init.trunc_normal_(self.position_embeddings, std=0.02)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, volume: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, N, E)."""
        tokens = self.patch_embeddings(volume)
        if self.pos_embed == "conv":
            tokens = tokens.flatten(2).transpose(1, 2)  # (B, E, d, h, w) -> (B, N, E)
        return self.dropout(tokens + self.position_embeddings)


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017); queries, keys and values have no bias."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.dropout_rate = config.dropout_rate
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.drop_output = nn.Dropout(config.dropout_rate)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, E) -> (B, N, E)."""
        # (B, N, 3 · E) -> 3 × (B, N, heads, E / heads). Not one permutation of all three: OpenVINO 2026.4 compiles that
        # wrongly where there are as many tokens as heads
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        # (B, N, heads, E / heads) -> (B, heads, N, E / heads)
        attended = self.attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        merged = attended.transpose(1, 2).flatten(2)  # (B, heads, N, E / heads) -> (B, N, E)
        return self.drop_output(self.out_proj(merged))

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


class TransformerBlock(nn.Module):
    """A pre-norm transformer block (Dosovitskiy et al. 2021)."""

    def __init__(self, config: ViTConfig, drop_path_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size)
        self.attn = SelfAttention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size)
        self.mlp = MLP(config)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, E) -> (B, N, E)."""
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens)))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


class ViT(nn.Module):
    """A vision transformer that also returns the output of each of its blocks."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.patch_embedding = PatchEmbedding(config)
        self.blocks = nn.ModuleList(
            TransformerBlock(config, config.drop_path_rate * depth / (NUM_LAYERS - 1)) for depth in range(NUM_LAYERS)
        )
        self.norm = nn.LayerNorm(config.hidden_size)

    def forward(self, volume: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, C, D, H, W) -> the last block's tokens after the norm, and every block's before it, each (B, N, E)."""
        tokens = self.patch_embedding(volume)
        hidden_states: list[Tensor] = []
        for block in self.blocks:
            tokens = block(tokens)
            hidden_states.append(tokens)
        return self.norm(tokens), hidden_states

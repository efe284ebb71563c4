"""The transformer encoder of UNETR, from leaf to root.

Parameter names are those of the published weights (MONAI 0.7.0); they are an interface.
B is the batch, C the channels, N the number of patches (tokens), E the hidden size.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.layers.cpu_kernels import Linear

POSITION_EMBEDDINGS = ("perceptron", "conv")


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

    Args:
        in_channels: channels of the volume.
        img_size: voxels of the volume in each direction, multiples of ``patch_size``.
        patch_size: edge of a cubic patch in voxels.
        hidden_size: length of a token.
        pos_embed: ``perceptron`` (a linear layer over the flattened patch) or ``conv`` (the same map
            as a strided convolution, with another order of its weights).
        dropout_rate: share of the embeddings set to 0 in training.
    """

    def __init__(
        self,
        in_channels: int,
        img_size: Sequence[int],
        patch_size: int,
        hidden_size: int,
        pos_embed: str,
        dropout_rate: float,
    ) -> None:
        super().__init__()
        patches = math.prod(size // patch_size for size in img_size)
        self.pos_embed = pos_embed
        self.patch_embeddings: nn.Module
        if pos_embed == "conv":
            self.patch_embeddings = nn.Conv3d(in_channels, hidden_size, kernel_size=patch_size, stride=patch_size)
        else:
            linear = Linear(in_channels * patch_size**3, hidden_size)
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
            self.patch_embeddings = nn.Sequential(PatchesToVectors(patch_size), linear)
        self.position_embeddings = nn.Parameter(torch.empty(1, patches, hidden_size))
        nn.init.trunc_normal_(self.position_embeddings, std=0.02)
        self.dropout = nn.Dropout(dropout_rate)

    def forward(self, volume: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, N, E)."""
        tokens = self.patch_embeddings(volume)
        if self.pos_embed == "conv":
            tokens = tokens.flatten(2).transpose(1, 2)  # (B, E, d, h, w) -> (B, N, E)
        return self.dropout(tokens + self.position_embeddings)


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017); queries, keys and values have no bias."""

    def __init__(self, hidden_size: int, num_heads: int, dropout_rate: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout_rate = dropout_rate
        self.qkv = Linear(hidden_size, 3 * hidden_size, bias=False)
        self.out_proj = Linear(hidden_size, hidden_size)
        self.drop_output = nn.Dropout(dropout_rate)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, E) -> (B, N, E)."""
        # (B, N, 3 · E) -> 3 × (B, N, heads, E / heads). One permutation of all three would do, but OpenVINO 2026.4
        # compiles that to something else where there are as many tokens as heads
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        dropout = self.dropout_rate if self.training else 0.0
        # (B, N, heads, E / heads) -> (B, heads, N, E / heads)
        attended = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), dropout_p=dropout
        )
        merged = attended.transpose(1, 2).flatten(2)  # (B, heads, N, E / heads) -> (B, N, E)
        return self.drop_output(self.out_proj(merged))


class MLP(nn.Module):
    """The two-layer perceptron of a transformer block, with GELU between the layers."""

    def __init__(self, hidden_size: int, mlp_dim: int, dropout_rate: float) -> None:
        super().__init__()
        self.linear1 = Linear(hidden_size, mlp_dim)
        self.linear2 = Linear(mlp_dim, hidden_size)
        self.dropout = nn.Dropout(dropout_rate)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, E) -> (B, N, E)."""
        hidden = self.dropout(F.gelu(self.linear1(tokens)))
        return self.dropout(self.linear2(hidden))


class DropPath(nn.Module):
    """Leaves a residual branch out for whole samples in training (Huang et al. 2016, stochastic depth).

    Branches that stay are scaled by 1 / (1 - rate), so that their mean is as without.
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

    def __init__(
        self, hidden_size: int, mlp_dim: int, num_heads: int, dropout_rate: float, drop_path_rate: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size)
        self.attn = SelfAttention(hidden_size, num_heads, dropout_rate)
        self.norm2 = nn.LayerNorm(hidden_size)
        self.mlp = MLP(hidden_size, mlp_dim, dropout_rate)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, E) -> (B, N, E)."""
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens)))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


class ViT(nn.Module):
    """A vision transformer that also returns what each of its blocks put out.

    Args: as in :class:`networks.unetr.UNETR`, which checks them.
    """

    def __init__(
        self,
        in_channels: int,
        img_size: Sequence[int],
        patch_size: int,
        hidden_size: int,
        mlp_dim: int,
        num_layers: int,
        num_heads: int,
        pos_embed: str,
        dropout_rate: float,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        self.patch_embedding = PatchEmbedding(in_channels, img_size, patch_size, hidden_size, pos_embed, dropout_rate)
        self.blocks = nn.ModuleList(
            TransformerBlock(hidden_size, mlp_dim, num_heads, dropout_rate, drop_path_rate * depth / (num_layers - 1))
            for depth in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_size)

    def forward(self, volume: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, C, D, H, W) -> the last block's tokens after the norm, and every block's before it, each (B, N, E)."""
        tokens = self.patch_embedding(volume)
        hidden_states: list[Tensor] = []
        for block in self.blocks:
            tokens = block(tokens)
            hidden_states.append(tokens)
        return self.norm(tokens), hidden_states

"""Primus (Wald et al., "Primus: Enforcing Attention Usage for 3D Medical Image Segmentation", arXiv 2503.01835).

A transformer on patches of 8 voxels, behind convolutions that make its tokens and before a decoder so light that the
transformer has to do the work. By default it is Primus V2 in size S.
"""

import itertools
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from networks.registry import Size, StateDict, flag, flag_of, register
from networks.tokenizer import ResidualBlock, he_init
from networks.vit import TransformerBlock, ViT, ViTConfig, patch_divisor, unsafe_windows


@dataclass(frozen=True)
class PrimusConfig(ViTConfig):
    """The settings of Primus; the defaults are those of size S of its second version."""

    hidden_size: int = flag_of(ViTConfig, "hidden_size", 396, "length of a token: 396 for size S, 792 for B, 864 for M")
    mlp_dim: int = flag_of(ViTConfig, "mlp_dim", 1056, "width of its perceptron: 8/3 of the token")
    num_heads: int = flag_of(ViTConfig, "num_heads", 6, "attention heads: 6 for size S, 12 for B and M")
    num_layers: int = flag(12, "transformer blocks: 12 for sizes S and B, 16 for M", at_least=1, at_most=1024)
    pos_embed: str = flag_of(ViTConfig, "pos_embed", "residual")
    patch_size: int = flag_of(ViTConfig, "patch_size", 8)
    drop_path_rate: float = flag_of(ViTConfig, "drop_path_rate", 0.2)
    rotary: bool = flag_of(ViTConfig, "rotary", True)
    swiglu: bool = flag_of(ViTConfig, "swiglu", True)
    attn_norm: bool = flag_of(ViTConfig, "attn_norm", True)
    qv_bias: bool = flag_of(ViTConfig, "qv_bias", True)
    layer_scale: float = flag_of(ViTConfig, "layer_scale", 0.1)
    scaled_init: bool = flag_of(ViTConfig, "scaled_init", True)


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each voxel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, C, D, H, W)."""
        return self.norm(x.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)


def decoder_channels(hidden_size: int, out_channels: int, doublings: int) -> list[int]:
    """Channels from the tokens to the logits: fewer by the same factor each time, in multiples of 8."""
    factor = (hidden_size / (2 * out_channels)) ** (1 / doublings)
    between = [max(8, 8 * round(hidden_size / factor**level / 8)) for level in range(1, doublings)]
    return [hidden_size, *between, out_channels]


class Decoder(nn.Sequential):
    """Transposed convolutions that double the resolution until it is that of the scan, without skip paths."""

    def __init__(self, config: PrimusConfig) -> None:
        doublings = config.patch_size.bit_length() - 1
        channels = decoder_channels(config.hidden_size, config.out_channels, doublings)
        layers: list[nn.Module] = []
        for coarser, finer in itertools.pairwise(channels):
            convolution = nn.ConvTranspose3d(coarser, finer, kernel_size=2, stride=2)
            he_init(convolution)
            layers += [convolution, ChannelNorm(finer), nn.GELU()]
        super().__init__(*layers[:-2])  # the last gives logits


@register("primus", config=PrimusConfig, window_divisor=patch_divisor)
class Primus(nn.Module):
    """Tokens by convolutions, a transformer, and a light decoder."""

    blocks = (TransformerBlock, ResidualBlock)
    input_layers = ("vit.patch_embedding.patch_embeddings",)
    output_layers = ("decoder",)
    position_embeddings = "vit.patch_embedding.position_embeddings"
    vit_encoder = "vit"
    any_window = True
    cuda_graph = True
    unsafe_bfloat16_roi_x = staticmethod(unsafe_windows)
    sizes = (
        Size({"hidden_size": 192, "mlp_dim": 512, "num_heads": 4}, 1e-3),
        Size({}, 5e-4),
        Size({"hidden_size": 792, "mlp_dim": 2112, "num_heads": 12}, 3e-4),
        Size({"hidden_size": 864, "mlp_dim": 2304, "num_heads": 12, "num_layers": 16}, 3e-4),
    )

    def __init__(self, config: PrimusConfig) -> None:
        super().__init__()
        self.grid = config.grid
        self.vit = ViT(config)
        self.decoder = Decoder(config)

    def forward(self, volume: Tensor) -> Tensor:
        """(B, in_channels, *img_size) -> logits (B, out_channels, *img_size)."""
        tokens = self.vit(volume)[0]  # (B, N, E)
        depth, height, width = self.grid
        # (B, N, E) -> (B, E, d, h, w), with d = D / patch_size and so on
        features = tokens.transpose(1, 2).unflatten(2, (depth, height, width)).contiguous()
        return self.decoder(features)

    def encoder_layers(self) -> tuple[str, ...]:
        """The layers that pre-training trains."""
        return ("vit",)

    def embed(self, volume: Tensor) -> Tensor:
        """(B, in_channels, *img_size) -> (B, N, E), the tokens that the transformer reads."""
        return self.vit.patch_embedding(volume)

    @staticmethod
    def settings_of(weights: StateDict) -> dict[str, Any]:
        """The settings that the shapes of a state dict show."""
        places = {
            "hidden_size": ("vit.norm.weight", 0),
            "mlp_dim": ("vit.blocks.0.mlp.linear1.weight", 0),
            "in_channels": ("vit.patch_embedding.patch_embeddings.stem.conv1.0.weight", 1),
        }
        found: dict[str, Any] = {
            setting: weights[name].shape[axis] for setting, (name, axis) in places.items() if name in weights
        }
        blocks = {name.split(".")[2] for name in weights if name.startswith("vit.blocks.")}
        return {**found, "num_layers": len(blocks)} if blocks else found

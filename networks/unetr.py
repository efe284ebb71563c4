"""UNETR (Hatamizadeh et al., "UNETR: Transformers for 3D Medical Image Segmentation", arXiv 2103.10504)."""

import itertools
import math
import operator
import re
from dataclasses import dataclass
from typing import Any

from monai.networks.blocks import UnetOutBlock, UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock
from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetResBlock
from torch import Tensor, nn

from networks.halving import plan_levels
from networks.layers.layout import in_layout_of
from networks.registry import Size, StateDict, flag, register
from networks.vit import TransformerBlock, ViT, ViTConfig, patch_divisor, unsafe_windows

# blocks whose output the skip paths read, counted from 0, by patch size: those of the published weights, and after each
# third with patches of 8 voxels, where the decoder has one stage less
SKIP_LAYERS = {16: (3, 6, 9), 8: (3, 7)}
# tensors that earlier programs saved and no forward pass reads, such as the shortcut of blocks that keep their channels
UNREAD_OF_MONAI_07 = re.compile(r"vit\.patch_embedding\.cls_token|encoder[23]\.blocks\.\d+\.1\.(conv|norm)3\..+")
UNREAD_OF_MONAI_1 = re.compile(r"vit\.blocks\.\d+\.(norm_)?cross_attn\..+")
SHORTCUT = re.compile(r"encoder1\.layer\.(conv|norm)3\..+")  # read only where the block changes the channels
# as long in training as the U-Net of nnU-Net takes, with the same convolutions at each resolution but the coarsest,
# which the transformer replaces (docs/planning.md); the rate of the last is the published one
STEM = {"patch_size": 16, "conv_stem": True, "halve_by_spacing": True, "res_block": False, "deep_supervision": True}
SIZES = (
    Size({"feature_size": 16, "hidden_size": 192, "mlp_dim": 768, "num_heads": 6, **STEM}, 4e-3),
    Size({"feature_size": 32, "hidden_size": 384, "mlp_dim": 1536, "num_heads": 12, **STEM}, 5e-4),
    Size({"feature_size": 32, "hidden_size": 768, "mlp_dim": 3072, "num_heads": 12, **STEM}, 1e-4),
)
DOUBLING = re.compile(r"decoder\d\.transp_conv\.conv\.weight")
FIRST_CONVOLUTION = "encoder1.layer.conv1.conv.weight"


@dataclass(frozen=True)
class UNETRConfig(ViTConfig):
    """The settings of UNETR; the defaults are those of the published weights."""

    feature_size: int = flag(16, "channels at full resolution", at_least=1, at_most=1024)
    norm_name: str = flag("instance", "the decoder's normalisation", choices=("instance", "batch"), rare=True)
    conv_block: bool = flag(True, "convolutions in the skip paths", rare=True)
    res_block: bool = flag(True, "residual connections in the blocks", rare=True)
    deep_supervision: bool = flag(False, "also train coarser resolutions by the labels", any_weights=True)
    conv_stem: bool = flag(
        False,
        "convolutions before the transformer, which also feed the skip paths in place of its hidden states",
        rare=True,
    )
    halve_by_spacing: bool = flag(
        False, "these convolutions leave thick slices apart until voxels are nearly cubes, as in nnU-Net", rare=True
    )

    def faults(self) -> list[str]:
        """Also two stems, or none to halve by spacing."""
        if self.halve_by_spacing and not self.conv_stem:
            return ["`halve_by_spacing` is for convolutions before the transformer; give `conv_stem` too"]
        if self.conv_stem and self.pos_embed == "residual":
            return ["`pos_embed` residual and `conv_stem` both put convolutions before the transformer; give one"]
        return super().faults()

    @property
    def patch(self) -> tuple[int, int, int]:
        """Voxels of a patch along x, y, z."""
        x, y, z = patch_of(self)
        return x, y, z

    @property
    def halvings(self) -> int:
        """How often the resolution is halved from the scan to the patches."""
        return len(levels(self)[1])

    @property
    def input_channels(self) -> int:
        """Channels of the volume that the transformer reads: the scan, or the last features of the stem."""
        return self.feature_size * 2 ** (self.halvings - 1) if self.conv_stem else self.in_channels

    @property
    def input_patch(self) -> int:
        """Edge of a patch in voxels of that volume: the stem leaves the last halving to the transformer."""
        return 2 if self.conv_stem else self.patch_size


def levels(config: UNETRConfig) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """The kernels at each resolution, from that of the scan to that of the patches, and the strides between them.

    The transformer's patches take the last stride, which halves all axes.
    """
    halvings = config.patch_size.bit_length() - 1  # of the fields alone, which is what planning gives `window_divisor`
    if not config.halve_by_spacing:
        return [(3, 3, 3)] * (halvings + 1), [(2, 2, 2)] * halvings
    kernels, strides = plan_levels(config.spacing, halvings)
    return kernels, [*strides[:-1], (2, 2, 2)]


def patch_of(config: UNETRConfig) -> tuple[int, ...]:
    """Voxels of a patch along x, y, z: fewer than ``patch_size`` along an axis that is halved less often."""
    return tuple(math.prod(along_axis) for along_axis in zip(*levels(config)[1], strict=True))


def window_divisor(config: UNETRConfig) -> tuple[int, ...]:
    """What the window's edges must be multiples of: those of a patch."""
    return patch_of(config) if config.halve_by_spacing else patch_divisor(config)


def unsafe_roi_x(config: UNETRConfig) -> tuple[int, ...]:
    """``unsafe_bfloat16_roi_x``: twice what a voxel along x is long at each resolution below the scan's."""
    if not config.halve_by_spacing:
        return unsafe_windows(config)
    along_x = [stride[0] for stride in levels(config)[1][:-1]]
    return tuple(sorted({2 * edge for edge in itertools.accumulate(along_x, operator.mul)}))


@register("unetr", config=UNETRConfig, window_divisor=window_divisor)
class UNETR(nn.Module):
    """A ViT encoder, a convolutional decoder, and skip paths from four depths of the one to the other.

    With ``conv_stem`` convolutions halve the resolution before the transformer, which reads what they found (Xiao et
    al., "Early Convolutions Help Transformers See Better", arXiv 2106.14881; Wald et al., Primus, arXiv 2503.01835).
    The skip paths then lead from these convolutions.
    """

    blocks = (TransformerBlock, UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock, UnetResBlock, UnetBasicBlock)
    input_layers = ("vit.patch_embedding.patch_embeddings", "encoder1")
    output_layers = ("out", "coarse_outs")
    position_embeddings = "vit.patch_embedding.position_embeddings"
    parameter_groups = {"vit": ("vit",)}  # noqa: RUF012  (TorchScript reads annotated attributes)
    vit_encoder = "vit"
    any_window = True
    cuda_graph = True
    fast_layers = True
    unsafe_bfloat16_roi_x = staticmethod(unsafe_roi_x)
    sizes = SIZES

    def __init__(self, config: UNETRConfig) -> None:
        super().__init__()
        features, norm, residual = config.feature_size, config.norm_name, config.res_block
        self.grid = config.grid
        self.skip_layers = SKIP_LAYERS[config.patch_size]  # torch.jit.script reads attributes, no module's constants
        self.vit = ViT(config)

        def skip_path(channels: int, doublings: int) -> UnetrPrUpBlock:
            return UnetrPrUpBlock(
                spatial_dims=3,
                in_channels=config.hidden_size,
                out_channels=channels,
                num_layer=doublings,
                kernel_size=3,
                stride=1,
                upsample_kernel_size=2,
                norm_name=norm,
                conv_block=config.conv_block,
                res_block=residual,
            )

        kernels, strides = levels(config)

        def up_path(channels_in: int, level: int) -> UnetrUpBlock:
            return UnetrUpBlock(
                3,
                channels_in,
                features * 2**level,
                kernels[level],
                upsample_kernel_size=strides[level],
                norm_name=norm,
                res_block=residual,
            )

        def halve(level: int) -> nn.Module:
            block = UnetResBlock if residual else UnetBasicBlock
            channels = features * 2**level
            return block(3, channels // 2, channels, kernels[level], strides[level - 1], norm_name=norm)

        halvings = config.halvings  # from full resolution to that of the patches
        self.conv_stem = config.conv_stem
        self.encoder1 = UnetrBasicBlock(
            3, config.in_channels, features, kernels[0], 1, norm_name=norm, res_block=residual
        )
        paths = [
            halve(level) if config.conv_stem else skip_path(features * 2**level, halvings - 1 - level)
            for level in range(1, halvings)
        ]
        self.encoder2, self.encoder3 = paths[:2]
        self.encoder4 = paths[2] if halvings == 4 else None
        self.decoder5 = up_path(config.hidden_size, 3) if halvings == 4 else None
        self.decoder4 = up_path(features * 8 if halvings == 4 else config.hidden_size, 2)
        self.decoder3 = up_path(features * 4, 1)
        self.decoder2 = up_path(features * 2, 0)
        self.out = UnetOutBlock(3, features, config.out_channels)
        self.coarse_outs = None
        if config.deep_supervision:  # of decoder3, decoder4 and decoder5
            self.coarse_outs = nn.ModuleList(
                UnetOutBlock(3, features * 2**level, config.out_channels) for level in range(1, halvings)
            )

    def _volume(self, tokens: Tensor) -> Tensor:
        """Put the tokens back where their patches were: (B, N, E) -> (B, E, D / P, H / P, W / P), patches of size P."""
        depth, height, width = self.grid
        return tokens.transpose(1, 2).unflatten(2, (depth, height, width)).contiguous()

    def _stem(self, volume: Tensor) -> list[Tensor]:
        """(B, in_channels, D, H, W) -> (B, F, D, H, W), (B, 2F, D / 2, H / 2, W / 2), … as far as the skip paths go."""
        x = self.encoder1(in_layout_of(self.encoder1.layer.conv2.conv.weight, volume))
        stages = [x, self.encoder2(x)]
        stages.append(self.encoder3(stages[-1]))
        if self.encoder4 is not None:
            stages.append(self.encoder4(stages[-1]))
        return stages

    def forward(self, volume: Tensor) -> Tensor | list[Tensor]:
        """(B, in_channels, *img_size) -> logits (B, out_channels, *img_size).

        In training with ``deep_supervision``: a list of these, and of those of each coarser resolution.
        """
        stem: list[Tensor] = []
        if self.conv_stem:
            stem = self._stem(volume)
            tokens, hidden_states = self.vit(stem[-1])
            skip2, skip3 = stem[1], stem[2]
        else:
            tokens, hidden_states = self.vit(volume)
            skip2 = self.encoder2(self._volume(hidden_states[self.skip_layers[0]]))  # (B, 2F, D / 2, H / 2, W / 2)
            skip3 = self.encoder3(self._volume(hidden_states[self.skip_layers[1]]))  # (B, 4F, D / 4, H / 4, W / 4)
        x = self._volume(tokens)
        stages: list[Tensor] = []
        if self.encoder4 is not None and self.decoder5 is not None:
            skip4 = stem[3] if self.conv_stem else self.encoder4(self._volume(hidden_states[self.skip_layers[2]]))
            x = self.decoder5(x, skip4)  # (B, 8F, D / 8, H / 8, W / 8)
            stages.append(x)
        x = self.decoder4(x, skip3)  # (B, 4F, D / 4, H / 4, W / 4)
        stages.append(x)
        x = self.decoder3(x, skip2)  # (B, 2F, D / 2, H / 2, W / 2)
        stages.append(x)
        # in memory as x, which it is joined to
        skip1 = stem[0] if self.conv_stem else self.encoder1(in_layout_of(x, volume))
        x = self.decoder2(x, skip1)  # (B, F, D, H, W)
        logits = self.out(x)
        if self.coarse_outs is not None and self.training:
            outputs: list[Tensor] = [logits]
            for level, out in enumerate(self.coarse_outs):
                outputs.append(out(stages[-1 - level]))
            return outputs
        return logits

    def encoder_layers(self) -> tuple[str, ...]:
        """The layers that pre-training trains."""
        return ("vit", "encoder1", "encoder2", "encoder3", "encoder4") if self.conv_stem else ("vit",)

    def embed(self, volume: Tensor) -> Tensor:
        """(B, in_channels, *img_size) -> (B, N, E), the tokens that the transformer reads."""
        return self.vit.patch_embedding(self._stem(volume)[-1] if self.conv_stem else volume)

    @staticmethod
    def settings_of(weights: StateDict) -> dict[str, Any]:
        """The settings that the shapes of a state dict show."""
        places = {
            "feature_size": (FIRST_CONVOLUTION, 0),
            "hidden_size": ("vit.norm.weight", 0),
            "mlp_dim": ("vit.blocks.0.mlp.linear1.weight", 0),
            "in_channels": (FIRST_CONVOLUTION, 1),
            "out_channels": ("out.conv.conv.weight", 0),
        }
        found: dict[str, Any] = {
            setting: weights[name].shape[axis]
            for setting, (name, axis) in places.items()
            if name in weights and weights[name].ndim > axis
        }
        found["deep_supervision"] = any(name.startswith("coarse_outs.") for name in weights)
        if UNETR.position_embeddings in weights:
            found["patch_size"] = 16 if "decoder5.transp_conv.conv.weight" in weights else 8
            found["conv_stem"] = "encoder2.conv1.conv.weight" in weights
            doublings = [weights[name].shape[2:] for name in weights if DOUBLING.fullmatch(name)]
            if found["conv_stem"] and all(len(kernel) == 3 for kernel in doublings):
                found["patch"] = tuple(math.prod(along_axis) for along_axis in zip(*doublings, strict=True))
        return found

    @staticmethod
    def origin_of(weights: StateDict) -> tuple[str | None, set[str]]:
        """The program that wrote a state dict, where its names tell, and the tensors that no forward pass reads."""
        first = weights.get(FIRST_CONVOLUTION)
        keeps_channels = first is not None and first.ndim == 5 and first.shape[0] == first.shape[1]
        unread = {
            name
            for name in weights
            if UNREAD_OF_MONAI_07.fullmatch(name)
            or UNREAD_OF_MONAI_1.fullmatch(name)
            or (keeps_channels and SHORTCUT.fullmatch(name))
        }
        if any(UNREAD_OF_MONAI_1.fullmatch(name) for name in weights):
            return "MONAI 1's UNETR", unread
        return "MONAI 0.7's UNETR" if "vit.patch_embedding.cls_token" in weights else None, unread

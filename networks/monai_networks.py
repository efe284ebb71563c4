"""MONAI's own networks for comparison, each in the configuration of its paper."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.networks import nets
from monai.networks.blocks import UnetrBasicBlock, UnetrUpBlock
from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetUpBlock
from monai.networks.blocks.segresnet_block import ResBlock
from monai.networks.nets.swin_unetr import SwinTransformerBlock

from networks.halving import fine_axes
from networks.registry import NetworkConfig, Size, StateDict, flag, register

SWIN_DIVISOR = 32  # patches of 2 voxels, merged four times
SEGRESNET_BLOCKS = (1, 2, 2, 4)
SEGRESNET_GROUPS = 8
DYNUNET_MOST_FILTERS = 320
DYNUNET_LEAST_EDGE = 8  # an axis of fewer voxels is not halved


def _settings(weights: StateDict, first: str, last: str) -> dict[str, Any]:
    """The settings that the first and the last convolution of a state dict show."""
    places = {"feature_size": (first, 0), "in_channels": (first, 1), "out_channels": (last, 0)}
    return {
        setting: weights[name].shape[axis]
        for setting, (name, axis) in places.items()
        if name in weights and weights[name].ndim > axis
    }


@dataclass(frozen=True)
class SwinUNETRConfig(NetworkConfig):
    """The heads have to divide ``feature_size``. The published networks have 12, 24 and 48."""

    feature_size: int = flag(
        24, "channels at full resolution, a multiple of 12", at_least=1, at_most=192, multiple_of=12
    )
    dropout_rate: float = flag(0.0, "dropout in the transformer", at_least=0, below=1, any_weights=True, rare=True)


def swin_divisor(config: SwinUNETRConfig) -> tuple[int, int, int]:
    """What the window's edges must be multiples of.

    Raises:
        ValueError: if the deepest level has a single voxel, of which there is no instance norm.
    """
    if all(edge == SWIN_DIVISOR for edge in config.img_size):
        raise ValueError(
            f"one edge must be {2 * SWIN_DIVISOR} or more for swin_unetr, or its deepest level has a single voxel"
        )
    return (SWIN_DIVISOR,) * 3


@register("swin_unetr", config=SwinUNETRConfig, window_divisor=swin_divisor)
class SwinUNETR(nets.SwinUNETR):
    """Swin UNETR (Hatamizadeh et al., arXiv 2201.01266), with instance norm in its decoder."""

    blocks = (SwinTransformerBlock, UnetrBasicBlock, UnetrUpBlock)
    input_layers = ("swinViT.patch_embed.proj", "encoder1")
    output_layers = ("out",)
    any_window = True
    unsafe_bfloat16_roi_x = (32, 64)
    sizes = tuple(Size({"feature_size": width}, rate) for width, rate in ((12, 4e-3), (24, 1e-3), (48, 5e-4)))

    def __init__(self, config: SwinUNETRConfig) -> None:
        with torch.device("cpu"):  # building computes numbers, which the device meta doesn't hold
            super().__init__(
                in_channels=config.in_channels,
                out_channels=config.out_channels,
                feature_size=config.feature_size,
                num_heads=(3, 6, 12, 24),
                drop_rate=config.dropout_rate,
            )

    @staticmethod
    def settings_of(weights: StateDict) -> dict[str, Any]:
        """The settings that the shapes of a state dict show."""
        return _settings(weights, "encoder1.layer.conv1.conv.weight", "out.conv.conv.weight")


@dataclass(frozen=True)
class SegResNetConfig(NetworkConfig):
    """Each level has twice the channels of the one above."""

    feature_size: int = flag(
        32, "channels at full resolution, a multiple of 8", at_least=1, at_most=512, multiple_of=SEGRESNET_GROUPS
    )


@register("segresnet", config=SegResNetConfig, window_divisor=lambda config: (2 ** (len(SEGRESNET_BLOCKS) - 1),) * 3)
class SegResNet(nets.SegResNet):
    """SegResNet (Myronenko, arXiv 1810.11654) without its autoencoder, with the paper's group norm."""

    blocks = (ResBlock,)
    input_layers = ("convInit",)
    output_layers = ("conv_final.2",)
    any_window = True
    unsafe_bfloat16_roi_x = (8, 16)
    sizes = tuple(Size({"feature_size": width}, rate) for width, rate in ((16, 4e-3), (32, 1e-3)))

    def __init__(self, config: SegResNetConfig) -> None:
        super().__init__(
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            init_filters=config.feature_size,
            norm=("GROUP", {"num_groups": SEGRESNET_GROUPS}),
            blocks_down=SEGRESNET_BLOCKS,
            blocks_up=(1,) * (len(SEGRESNET_BLOCKS) - 1),
        )

    @staticmethod
    def settings_of(weights: StateDict) -> dict[str, Any]:
        """The settings that the shapes of a state dict show."""
        return _settings(weights, "convInit.conv.weight", "conv_final.2.conv.weight")


@dataclass(frozen=True)
class DynUNetConfig(NetworkConfig):
    """Kernels and strides follow from the window and its spacing."""

    feature_size: int = flag(
        32, "channels at full resolution, doubled at each level up to 320", at_least=1, below=DYNUNET_MOST_FILTERS + 1
    )


def dynunet_divisor(config: DynUNetConfig) -> tuple[int, ...]:
    """What the window's edges must be multiples of: the products of its strides.

    Raises:
        ValueError: if it is halved less than twice, which MONAI's class can't be built for.
    """
    strides = kernels_and_strides(config.img_size, config.spacing)[1]
    if len(strides) < 3:
        raise ValueError("dynunet halves a window at least twice, which takes 16 voxels along an axis of fine spacing")
    return tuple(math.prod(along_axis) for along_axis in zip(*strides, strict=True))


@register("dynunet", config=DynUNetConfig, window_divisor=dynunet_divisor)
class DynUNet(nets.DynUNet):
    """The U-Net that nnU-Net's rules make (Isensee et al., arXiv 1809.10486), with affine instance norm.

    It has neither residual blocks nor deep supervision.
    """

    blocks = (UnetBasicBlock, UnetUpBlock)
    input_layers = ("input_block.conv1", "skip_layers.downsample.conv1")  # the first block by its two names
    output_layers = ("output_block",)
    unsafe_bfloat16_roi_x = (2,)
    sizes = tuple(Size({"feature_size": width}, rate) for width, rate in ((16, 4e-3), (32, 1e-3)))

    def __init__(self, config: DynUNetConfig) -> None:
        kernels, strides = kernels_and_strides(config.img_size, config.spacing)
        super().__init__(
            spatial_dims=3,
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            kernel_size=kernels,
            strides=strides,
            upsample_kernel_size=strides[1:],
            filters=[min(config.feature_size * 2**level, DYNUNET_MOST_FILTERS) for level in range(len(strides))],
            norm_name=("INSTANCE", {"affine": True}),
        )

    @staticmethod
    def settings_of(weights: StateDict) -> dict[str, Any]:
        """The settings that the shapes of a state dict show."""
        return _settings(weights, "input_block.conv1.conv.weight", "output_block.conv.conv.weight")


def kernels_and_strides(
    img_size: Sequence[int], spacing: Sequence[float]
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Kernels and strides of each level by nnU-Net's rule, as MONAI's ``dynunet_pipeline`` tutorial has it.

    Each level halves those of the fine axes that have 8 voxels or more, and convolves along the fine ones alone. The
    last level is the one where no axis is left to halve.

    Args:
        img_size: voxels of the window along each axis.
        spacing: mm of a voxel along each axis.
    """
    kernels: list[tuple[int, ...]] = []
    strides: list[tuple[int, ...]] = [(1, 1, 1)]
    sizes, spacings = [float(edge) for edge in img_size], list(spacing)
    while True:
        fine = fine_axes(spacings)
        stride = [2 if near and size >= DYNUNET_LEAST_EDGE else 1 for near, size in zip(fine, sizes, strict=True)]
        if stride == [1, 1, 1]:
            return [*kernels, (3, 3, 3)], strides
        kernels.append(tuple(3 if near else 1 for near in fine))
        strides.append(tuple(stride))
        sizes = [size / step for size, step in zip(sizes, stride, strict=True)]
        spacings = [mm * step for mm, step in zip(spacings, stride, strict=True)]

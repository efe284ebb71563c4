"""MONAI's own networks for comparison, each in the configuration of its paper, by keywords that a checkpoint records.

Instance norms are those of :mod:`networks.layers.instance_norm`, which compute the same as torch's and have the same names.
"""

import math
from collections.abc import Sequence

import torch
from monai.networks.nets import DynUNet, SegResNet, SwinUNETR

from networks.layers.instance_norm import LAYOUT_KEEPING_INSTANCE

SWIN_STEP = 32  # patches of 2 voxels, merged four times
SWIN_HEADS = (3, 6, 12, 24)
SEGRESNET_BLOCKS = (1, 2, 2, 4)
SEGRESNET_STEP = 2 ** (len(SEGRESNET_BLOCKS) - 1)
SEGRESNET_GROUPS = 8
DYNUNET_MOST_FILTERS = 320
DYNUNET_LEAST_EDGE = 8  # an axis of fewer voxels is not halved
DYNUNET_LARGEST_RATIO = 2  # of an axis's spacing to the finest one, up to which it is halved and convolved


def swin_unetr(in_channels: int, out_channels: int, feature_size: int = 24, dropout_rate: float = 0.0) -> SwinUNETR:
    """Swin UNETR (Hatamizadeh et al., arXiv 2201.01266), with instance norm in its decoder.

    Args:
        in_channels: channels of the volume.
        out_channels: number of classes, the background included.
        feature_size: channels at full resolution; the published networks have 12, 24 and 48.
        dropout_rate: dropout in the transformer, 0 to 1.

    Raises:
        ValueError: if ``feature_size`` is no multiple of 12, or ``dropout_rate`` not below 1.
    """
    if feature_size < 1 or feature_size % 12:  # the heads have to divide it, and MONAI wants both 3 and 4 to
        raise ValueError(f"feature_size must be a multiple of 12 for swin_unetr, not {feature_size}")
    if not 0 <= dropout_rate < 1:
        raise ValueError(f"dropout_rate must be at least 0 and below 1, not {dropout_rate}")
    with torch.device("cpu"):  # building computes numbers, which the device meta doesn't hold
        return SwinUNETR(
            in_channels=in_channels,
            out_channels=out_channels,
            feature_size=feature_size,
            num_heads=SWIN_HEADS,
            drop_rate=dropout_rate,
            norm_name=LAYOUT_KEEPING_INSTANCE,
        )


def swin_unetr_steps(img_size: Sequence[int]) -> tuple[int, ...]:
    """What the edges of a window must be multiples of.

    Raises:
        ValueError: if the deepest level has a single voxel, of which there is no instance norm.
    """
    if all(edge == SWIN_STEP for edge in img_size):
        raise ValueError(f"one must be above {SWIN_STEP} for swin_unetr, whose deepest level has a single voxel else")
    return (SWIN_STEP,) * 3


def segresnet(in_channels: int, out_channels: int, feature_size: int = 32) -> SegResNet:
    """SegResNet (Myronenko, arXiv 1810.11654) without its autoencoder, with the paper's group norm.

    Args:
        in_channels: channels of the volume.
        out_channels: number of classes, the background included.
        feature_size: channels at full resolution; doubled at each halving of the resolution.

    Raises:
        ValueError: if ``feature_size`` is no multiple of 8, the number of groups.
    """
    if feature_size < 1 or feature_size % SEGRESNET_GROUPS:
        raise ValueError(f"feature_size must be a multiple of {SEGRESNET_GROUPS} for segresnet, not {feature_size}")
    return SegResNet(
        in_channels=in_channels,
        out_channels=out_channels,
        init_filters=feature_size,
        norm=("GROUP", {"num_groups": SEGRESNET_GROUPS}),
        blocks_down=SEGRESNET_BLOCKS,
        blocks_up=(1,) * (len(SEGRESNET_BLOCKS) - 1),
    )


def segresnet_steps() -> tuple[int, ...]:
    """What the edges of a window must be multiples of."""
    return (SEGRESNET_STEP,) * 3


def dynunet(
    in_channels: int, out_channels: int, img_size: Sequence[int], spacing: Sequence[float], feature_size: int = 32
) -> DynUNet:
    """The U-Net that nnU-Net's rules make (Isensee et al., arXiv 1809.10486), with affine instance norm.

    It has neither residual blocks nor deep supervision.

    Args:
        in_channels: channels of the volume.
        out_channels: number of classes, the background included.
        img_size: voxels of the window in each direction.
        spacing: mm of a voxel in each direction.
        feature_size: channels at full resolution; doubled at each halving of the resolution, up to 320.

    Raises:
        ValueError: if window or ``feature_size`` can't make a network.
    """
    kernels, strides = kernels_and_strides(img_size, spacing)
    steps = _products(strides)
    if any(edge % step for edge, step in zip(img_size, steps, strict=True)):
        raise ValueError(f"img_size must be multiples of {steps} for dynunet, not {tuple(img_size)}")
    if not 1 <= feature_size <= DYNUNET_MOST_FILTERS:
        raise ValueError(f"feature_size must be 1 to {DYNUNET_MOST_FILTERS} for dynunet, not {feature_size}")
    return DynUNet(
        spatial_dims=3,
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=kernels,
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=[min(feature_size * 2**level, DYNUNET_MOST_FILTERS) for level in range(len(strides))],
        norm_name=(LAYOUT_KEEPING_INSTANCE, {"affine": True}),
    )


def dynunet_steps(img_size: Sequence[int], spacing: Sequence[float]) -> tuple[int, ...]:
    """What the edges of a window must be multiples of: the products of its strides.

    Raises:
        ValueError: if it is halved less than twice, which MONAI's class can't be built for.
    """
    return _products(kernels_and_strides(img_size, spacing)[1])


def _products(strides: Sequence[Sequence[int]]) -> tuple[int, ...]:
    if len(strides) < 3:
        raise ValueError("dynunet halves a window at least twice, which takes 16 voxels along an axis of fine spacing")
    return tuple(math.prod(along_axis) for along_axis in zip(*strides, strict=True))


def kernels_and_strides(
    img_size: Sequence[int], spacing: Sequence[float]
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Kernels and strides of each level by nnU-Net's rule, as MONAI's ``dynunet_pipeline`` tutorial has it.

    Each level halves the axes that have 8 voxels or more and whose spacing is at most twice the finest one, and doesn't
    convolve along an axis whose spacing is more than that; until no axis is left to halve.

    Args:
        img_size: voxels of the window in each direction.
        spacing: mm of a voxel in each direction.
    """
    kernels: list[tuple[int, ...]] = []
    strides: list[tuple[int, ...]] = [(1, 1, 1)]
    sizes, spacings = [float(edge) for edge in img_size], list(spacing)
    while True:
        fine = [mm / min(spacings) <= DYNUNET_LARGEST_RATIO for mm in spacings]
        stride = [2 if near and size >= DYNUNET_LEAST_EDGE else 1 for near, size in zip(fine, sizes, strict=True)]
        if stride == [1, 1, 1]:
            return [*kernels, (3, 3, 3)], strides
        kernels.append(tuple(3 if near else 1 for near in fine))
        strides.append(tuple(stride))
        sizes = [size / step for size, step in zip(sizes, stride, strict=True)]
        spacings = [mm * step for mm, step in zip(spacings, stride, strict=True)]

"""Which axes of a volume are halved and convolved, by the size of its voxels, as in nnU-Net."""

from collections.abc import Sequence

LARGEST_RATIO = 2  # of an axis's spacing to the finest one


def fine_axes(spacing: Sequence[float]) -> list[bool]:
    """Whether each axis is halved and convolved: those of thick slices are not, until voxels are as long along others.

    Isensee et al., nnU-Net, https://doi.org/10.1038/s41592-020-01008-z, as in MONAI's tutorial ``dynunet_pipeline``.

    Args:
        spacing: mm of a voxel along each axis.
    """
    return [mm / min(spacing) <= LARGEST_RATIO for mm in spacing]


def plan_levels(spacing: Sequence[float], halvings: int) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """The kernels of a level and of each coarser one, and the strides that lead from each to the next.

    Args:
        spacing: mm of a voxel along each axis, at the finest level.
        halvings: how often the finest axes are halved.

    Returns:
        ``halvings + 1`` kernels, and ``halvings`` strides.
    """
    kernels: list[tuple[int, ...]] = []
    strides: list[tuple[int, ...]] = []
    sizes = list(spacing)
    for _ in range(halvings + 1):
        fine = fine_axes(sizes)
        kernels.append(tuple(3 if near else 1 for near in fine))
        strides.append(tuple(2 if near else 1 for near in fine))
        sizes = [mm * step for mm, step in zip(sizes, strides[-1], strict=True)]
    return kernels, strides[:-1]

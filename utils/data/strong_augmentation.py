"""The additional changes of ``augment`` strong, with the probabilities and ranges of nnU-Net's trainer.

Isensee et al., nnU-Net, https://doi.org/10.1038/s41592-020-01008-z; ``nnUNetTrainer.get_training_transforms`` of
nnunetv2. Two things differ. Rotations are smaller than its 30 degrees: patients lie nearly straight, and a crop that is
tilted more reaches out of a scan that is little larger than the window. And angles are those in millimetres, not in
voxels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai import transforms
from monai.transforms.utils import create_rotate
from monai.utils import convert_to_tensor
from torch import Tensor

ROTATE, SCALE = 0.2, 0.2  # probabilities
LARGEST_ANGLE = math.radians(15)  # about each axis
SCALES = (0.7, 1.4)  # how many times as long as the window the box is that becomes a crop
LARGEST_SIGMA = 1.0  # of blur, in voxels


@dataclass(frozen=True)
class StrongParameters:
    """The random parameters of one crop.

    Attributes:
        matrix: (3, 3), from offsets in the crop's voxels to offsets in the scan's; None if the crop is neither rotated
            nor scaled.
        seed: of the changes to its intensities.
    """

    matrix: np.ndarray | None
    seed: int

    @classmethod
    def draw(cls, spacing: Sequence[float], random: np.random.Generator) -> "StrongParameters":
        """Draw them; ``spacing`` is the voxel size in mm along x, y and z."""
        # draw all numbers, used or not, so that one doesn't alter the others
        rotated, *angles, scaled, scale = random.random(6).tolist()
        seed = int(random.integers(2**32))
        if rotated >= ROTATE and scaled >= SCALE:
            return cls(None, seed)
        millimetres = np.eye(3)
        if rotated < ROTATE:
            millimetres = np.asarray(create_rotate(3, [(2 * angle - 1) * LARGEST_ANGLE for angle in angles]))[:3, :3]
        if scaled < SCALE:
            millimetres = millimetres * (SCALES[0] + (SCALES[1] - SCALES[0]) * scale)
        return cls(np.diag(1 / np.array(spacing)) @ millimetres @ np.diag(spacing), seed)


def resample(
    scan: Mapping[str, Any], voxel: Sequence[int], matrix: np.ndarray, roi: Sequence[int], padding: float
) -> dict[str, Tensor]:
    """A crop that is rotated and scaled: images linearly, labels to the nearest voxel.

    It is centred on a voxel, and then moved into the scan as far as it still holds this voxel. What is outside of the
    scan is padded, labels with background.

    Args:
        scan: ``image`` (C, D, H, W) and ``label`` (1, D, H, W).
        voxel: index in the scan; some voxel of the crop has exactly its values.
        matrix: as in :class:`StrongParameters`.
        padding: value of the image outside of the scan.

    Returns:
        ``image`` (C, *roi), ``label`` (1, *roi), in the scan's types.
    """
    last = np.array(scan["label"].shape[1:]) - 1
    half = (np.array(roi) - 1) / 2  # from the crop's middle to its first and last voxels
    reach = np.abs(matrix) @ half
    room = np.abs(matrix) @ (half + 0.5)  # for the rounding below
    middle = np.clip(voxel, np.minimum(room, last / 2), np.maximum(last - room, last / 2))
    place = np.clip(np.rint(np.linalg.solve(matrix, voxel - middle) + half), 0, 2 * half)  # the voxel's in the crop
    middle = voxel - matrix @ (place - half)

    start = np.clip(np.floor(middle - reach), 0, last).astype(int)
    stop = np.clip(np.ceil(middle + reach), 0, last).astype(int) + 1
    box = tuple(slice(*ends) for ends in zip(start.tolist(), stop.tolist(), strict=True))
    affine = np.eye(4)  # from and to voxels that count from the middle of crop and box
    affine[:3, :3], affine[:3, 3] = matrix, middle - (start + stop - 1) / 2
    grid, _ = transforms.AffineGrid(affine=affine)(roi)  # (4, *roi)
    # beyond a volume MONAI knows no constant but 0
    sample = transforms.Resample(padding_mode="zeros", dtype=np.float32)
    image = sample(scan["image"][:, *box] - padding, grid, mode="bilinear") + padding
    label = sample(scan["label"][:, *box], grid, mode="nearest")
    crop = {"image": image, "label": label}
    return {key: convert_to_tensor(volume, dtype=scan[key].dtype, track_meta=False) for key, volume in crop.items()}


def augment_intensities(image: Tensor, seed: int) -> Tensor:
    """Change noise, blur, brightness, contrast, resolution and gamma of an image (C, D, H, W), each at random.

    nnU-Net's ranges are for standardised images. So each channel is brought to mean 0 and standard deviation 1 and back
    again, so that the ranges suit a CT in 0 … 1 as well as an MR. Each channel is changed independently.
    """
    # new ones for each crop: they hold state, and several threads may be here
    changes, state = _intensity_transforms(), np.random.RandomState(seed)
    for change in changes:
        change.set_random_state(state=state)
    deviations, means = torch.std_mean(image, dim=(1, 2, 3), keepdim=True)
    deviations = deviations.clamp(min=1e-6)  # of a constant channel
    standardised = (image - means) / deviations
    for channel in standardised:
        changed = channel[None]
        for change in changes:
            changed = change(changed)
        channel[:] = changed[0]
    return standardised * deviations + means


def _intensity_transforms() -> list[Any]:
    """The changes to one channel (1, D, H, W), in nnU-Net's order."""
    # nnU-Net draws blur and low resolution for an image, and then for each channel with probability 0.5
    blur, low_resolution = 0.2 * 0.5, 0.25 * 0.5
    sigmas = (0.5, LARGEST_SIGMA)
    return [
        transforms.RandGaussianNoise(0.1, std=0.1),  # the largest standard deviation, which nnU-Net calls variance
        RandBlur(sigmas, sigmas, sigmas, blur),
        transforms.RandScaleIntensity(0.25, 0.15),  # brightness, of a crop whose mean is 0 here
        transforms.RandScaleIntensityFixedMean(0.15, 0.25, preserve_range=True),  # contrast
        # "nearest" would shift the image by up to half a voxel against its label
        transforms.RandSimulateLowResolution(low_resolution, downsample_mode="nearest-exact", zoom_range=(0.5, 1)),
        transforms.RandAdjustContrast(0.1, (0.7, 1.5), invert_image=True, retain_stats=True),
        transforms.RandAdjustContrast(0.3, (0.7, 1.5), retain_stats=True),
    ]


class RandBlur(transforms.RandGaussianSmooth):
    """MONAI's blur, but with the border voxels repeated around the crop, where MONAI's has zeros."""

    def __call__(self, img: Any, randomize: bool = True) -> Any:
        """The image (C, D, H, W), blurred or as it is."""
        if randomize:
            self.randomize()
        if not self._do_transform:
            return img
        width = math.ceil(4 * LARGEST_SIGMA)  # of the kernel, to either side
        inside = (slice(width, -width),) * 3
        return super().__call__(F.pad(img, (width,) * 6, mode="replicate"), randomize=False)[:, *inside]

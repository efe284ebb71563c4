"""The one way from a file to the voxels that the network sees, shared by training, validation and testing."""

from dataclasses import dataclass

from monai import transforms
from monai.transforms import Transform
from torch import Tensor

INTENSITIES = ("ct", "zscore")
KEYS = ("image", "label")


@dataclass(frozen=True)
class Preprocessing:
    """What a checkpoint records of the way in.

    Attributes:
        intensity: ``ct`` maps the window [a_min, a_max] (Hounsfield units) to [b_min, b_max] and clips;
            ``zscore`` shifts and scales each channel of each scan to mean 0 and standard deviation 1.
        spacing: voxel size in mm along x, y, z after resampling.
        roi: the network's window in voxels.
        orientation: axis codes that every scan is brought to.
    """

    intensity: str = "ct"
    a_min: float = -175.0
    a_max: float = 250.0
    b_min: float = 0.0
    b_max: float = 1.0
    spacing: tuple[float, float, float] = (1.5, 1.5, 2.0)
    roi: tuple[int, int, int] = (96, 96, 96)
    orientation: str = "RAS"

    @property
    def padding(self) -> float:
        """What a scan smaller than the window is padded with: air for a CT, the mean for a standardised scan."""
        return self.b_min if self.intensity == "ct" else 0.0


def above_minimum(image: Tensor) -> Tensor:
    """The foreground of a scan: every voxel above the lowest value (for a CT: above the window's lower end)."""
    return image > image.min()


def scan_transforms(settings: Preprocessing) -> list[Transform]:
    """Load, orient, resample, scale and crop a scan and its label.

    The result has a channel axis, (C, D, H, W), the axes running to the Right, Anterior and Superior.
    """
    window = transforms.ScaleIntensityRanged(
        "image", settings.a_min, settings.a_max, settings.b_min, settings.b_max, clip=True
    )
    crop = transforms.CropForegroundd(KEYS, source_key="image", select_fn=above_minimum, allow_smaller=True)
    # the statistics of an MR must not count the empty rim that cropping removes; a CT's rim is only known
    # after windowing
    standardise = transforms.NormalizeIntensityd("image", channel_wise=True)
    scale_and_crop = [window, crop] if settings.intensity == "ct" else [crop, standardise]
    return [
        transforms.LoadImaged(KEYS, reader="NibabelReader", ensure_channel_first=True),
        transforms.Orientationd(KEYS, axcodes=settings.orientation, labels=None),
        transforms.Spacingd(KEYS, pixdim=settings.spacing, mode=("bilinear", "nearest")),
        *scale_and_crop,
    ]

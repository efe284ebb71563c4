"""From a scan to the voxels that the network sees: the same for training, validation and testing."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from monai import transforms
from monai.data import MetaTensor
from monai.data.utils import AFFINE_TOL
from monai.transforms import Transform
from torch import Tensor

from networks.registry import spacing_fault, window_size_fault
from utils.data.resampling import AxisMap, interpolate
from utils.io.reader import read_label, read_scan
from utils.io.scan import Scan
from utils.system.errors import InputError
from utils.system.hardware import available_memory
from utils.system.typed import shown, type_faults

INTENSITIES = ("ct", "zscore")
LONGEST_MM = 5000.0
FAR_FINER = 10  # times as many voxels along each axis as the network takes
# what a few voxels do to a standardisation: the farthest is that many standard deviations away (of a normal
# distribution's million voxels it is 5), and those beyond FAR_STD make up that share of the variance
DOMINANT_STD, FAR_STD, DOMINANT_SHARE = 50.0, 10.0, 0.5
KEYS = ("image", "label")
FACTS = ("name", "not_annotated")  # what is known of a scan beside its voxels
AXES = ({"L", "R"}, {"P", "A"}, {"I", "S"})  # an orientation has one letter of each
LARGEST_INTENSITY = 1e12


@dataclass(frozen=True)
class Preprocessing:
    """How scans are preprocessed, as a checkpoint records it.

    Attributes:
        intensity: ``ct`` maps the window [a_min, a_max] (Hounsfield units) to [b_min, b_max] and clips;
            ``zscore`` shifts and scales each channel of each scan to mean 0 and standard deviation 1.
        spacing: voxel size in mm along x, y, z after resampling.
        roi: the network's window in voxels.
        orientation: axis codes that every scan is turned to.

    Raises:
        ValueError: naming every field that no scan can be preprocessed with.
    """

    intensity: str = "ct"
    a_min: float = -175.0
    a_max: float = 250.0
    b_min: float = 0.0
    b_max: float = 1.0
    spacing: tuple[float, float, float] = (1.5, 1.5, 2.0)
    roi: tuple[int, int, int] = (96, 96, 96)
    orientation: str = "RAS"

    def __post_init__(self) -> None:
        for name in ("spacing", "roi"):
            if isinstance(getattr(self, name), list):  # as JSON has it
                object.__setattr__(self, name, tuple(getattr(self, name)))
        faults = type_faults(self) or self._faults()
        if faults:
            raise ValueError("; ".join(faults))

    def _faults(self) -> list[str]:
        faults = []
        if self.intensity not in INTENSITIES:
            faults.append(f"`intensity` must be one of {', '.join(INTENSITIES)}, not {shown(self.intensity)}")
        for low, high in (("a_min", "a_max"), ("b_min", "b_max")):
            bottom, top = getattr(self, low), getattr(self, high)
            if not (abs(bottom) <= LARGEST_INTENSITY and abs(top) <= LARGEST_INTENSITY):
                faults.append(f"`{low}` and `{high}` must be within ±{LARGEST_INTENSITY:g}")
            elif top <= bottom:
                faults.append(f"`{high}` {top:g} must be above `{low}` {bottom:g}")
        fault = {"spacing": spacing_fault(self.spacing), "roi": window_size_fault(self.roi)}
        faults += [f"`{name}` {text}" for name, text in fault.items() if text is not None]
        if len(self.orientation) != 3 or any(len(axis & set(self.orientation)) != 1 for axis in AXES):
            faults.append(f"`orientation` must be axis codes such as RAS, not {shown(self.orientation)}")
        return faults

    @property
    def padding(self) -> float:
        """The value around a scan smaller than the window: air for a CT, the mean for a standardised scan."""
        return self.b_min if self.intensity == "ct" else 0.0


def window_fault(path: Path, low: float, high: float, settings: Preprocessing) -> str | None:
    """A sentence if the CT window shows nothing of a scan whose voxels go from ``low`` to ``high``, else None."""
    if settings.intensity != "ct" or (high > settings.a_min and low < settings.a_max):
        return None
    return (
        f"{path}: has voxels of {low:g} to {high:g}, of which none is inside the network's window of "
        f"{settings.a_min:g} to {settings.a_max:g}. Are they Hounsfield units?"
    )


def size_fault(
    path: Path, shape: Sequence[int], affine: np.ndarray, settings: Preprocessing, volumes: float
) -> str | None:
    """A sentence if a scan is longer than a person, smaller than a few voxels, or too large for the memory, else None.

    So says a header that is wrong about its voxel size; resampling would then not come to an end, or leave nothing.

    Args:
        shape: (X, Y, Z).
        affine: (4, 4), from voxel indices to mm.
        volumes: how many volumes in float32 there will be at once on the network's grid.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    lengths = spacing * shape
    if (fault := length_fault(path, shape, affine)) is not None:
        return fault
    sizes, new_sizes = (" × ".join(f"{size:.4g}" for size in each) for each in (spacing, settings.spacing))
    if (lengths < 2 * np.array(settings.spacing)).all():
        return (
            f"{path}: would have no more than one or two voxels of {new_sizes} mm along each axis; its own are "
            f"{sizes} mm. Mend its header if they are wrong, or give a smaller `spacing`."
        )
    voxels = float(np.prod(np.maximum(lengths, min(settings.spacing))) / np.prod(settings.spacing))
    own = 2 * float(np.prod(shape))  # on its own grid, as it is and with its axes turned
    if 4 * (voxels * volumes + own) > available_memory():
        return (
            f"{path}: would have {voxels:.3g} voxels of {new_sizes} mm, which this machine's memory doesn't hold; "
            f"its own are {sizes} mm. Mend its header if they are wrong, or take a larger machine."
        )
    return None


def length_fault(path: Path, shape: Sequence[int], affine: np.ndarray) -> str | None:
    """A sentence if a scan (X, Y, Z) would be longer than a person, else None."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    longest = float((spacing * shape).max())
    if longest <= LONGEST_MM:
        return None
    sizes = " × ".join(f"{size:.4g}" for size in spacing)
    return f"{path}: is {longest / 1000:.3g} m long by its header, with voxels of {sizes} mm. Mend its header."


def scan_remarks(path: Path, voxels: np.ndarray, affine: np.ndarray, settings: Preprocessing) -> list[str]:
    """What a person should know of a scan before it is preprocessed, a sentence each.

    Args:
        voxels: (C, X, Y, Z).
        affine: (4, 4), from voxel indices to mm.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    remarks = _intensity_remarks(path, voxels, settings)
    if (spacing * FAR_FINER < settings.spacing).all():
        own, new = (" × ".join(f"{size:.4g}" for size in each) for each in (spacing, settings.spacing))
        remarks.append(f"{path}: its voxels of {own} mm become voxels of {new} mm. Is the unit of its header right?")
    return remarks


def _intensity_remarks(path: Path, voxels: np.ndarray, settings: Preprocessing) -> list[str]:
    """A remark for each channel of which a few voxels would make up most of the standard deviation."""
    if settings.intensity != "zscore":
        return []
    remarks = []
    for channel in voxels:
        mean, std = channel.mean(dtype=np.float64), channel.std(dtype=np.float64)
        distance = max(channel.max() - mean, mean - channel.min())
        if not std > 0 or distance < DOMINANT_STD * std:
            continue
        far = channel[np.abs(channel - mean) > FAR_STD * std].astype(np.float64)
        share = ((far - mean) ** 2).sum() / (std**2 * channel.size)
        if share > DOMINANT_SHARE:
            remarks.append(
                f"{path}: {far.size} of its voxels, up to {far[np.abs(far).argmax()]:g}, make up {share:.0%} of its "
                "variance, so that all others look alike once it is standardised. Are they artefacts?"
            )
    return remarks


def above_minimum(image: Tensor) -> Tensor:
    """The foreground of a scan: every voxel above the lowest value (for a CT: above the window's lower end)."""
    return image > image.min()


class ReadScan(Transform):
    """Read a scan for the transforms below. One without a label gets a label of background.

    Args:
        settings: how it will be preprocessed.
        classes: how many values its label may have, 0 … ``classes`` - 1; by default any whole numbers.

    Returns:
        ``image`` (C, X, Y, Z) and ``label`` (1, X, Y, Z) as MetaTensors in float32 with the image's affine, the scan's
        ``name``, and the classes that are ``not_annotated``.
    """

    def __init__(self, settings: Preprocessing, classes: int | None = None) -> None:
        self.settings, self.classes = settings, classes

    def __call__(self, scan: Scan) -> dict[Hashable, Any]:
        """Read its files.

        Raises:
            InputError: if a file isn't sound.
        """
        volume = read_scan(scan)
        label = np.zeros(volume.shape, np.uint8)
        if scan.label is not None:
            label = read_label(scan.label, scan.path, volume, self.classes, scan.ignore, scan.structures)
        fault = size_fault(scan.path, volume.shape, volume.affine, self.settings, len(volume.voxels) + 1)
        if fault is not None:
            raise InputError(fault)
        return {
            # z last in memory, as in MONAI: the order in which voxels are added up shows in the last bit of a mean
            "image": _with_affine(volume.voxels, volume.affine, order="C"),
            "label": _with_affine(label[None], volume.affine, order="C"),
            "name": scan.name,
            "not_annotated": scan.not_annotated,
        }


def scan_transforms(settings: Preprocessing, keys: tuple[str, ...] = KEYS) -> list[Transform]:
    """Turn, resample, scale and crop a scan and its label, MetaTensors (C, X, Y, Z) on the scan's own grid.

    They become (C, D, H, W), with axes that run to the Right, Anterior and Superior.

    Args:
        keys: without ``"label"`` for scans that have none.
    """
    window = transforms.ScaleIntensityRanged(
        "image", settings.a_min, settings.a_max, settings.b_min, settings.b_max, clip=True
    )
    crop = transforms.CropForegroundd(keys, source_key="image", select_fn=above_minimum, allow_smaller=True)
    # an MR is cropped first, so that its mean leaves out the empty rim; a CT's rim is known only after windowing
    standardise = transforms.NormalizeIntensityd("image", channel_wise=True)
    scale_and_crop = [window, crop] if settings.intensity == "ct" else [crop, standardise]
    return [ToSpacing(keys, settings), *scale_and_crop]


class ToSpacing(transforms.MapTransform):
    """MONAI's ``Orientationd`` and ``Spacingd``: images linearly, labels to the nearest voxel.

    If the new axes are parallel to the scan's, an image is resampled to the same grid faster, one axis at a time.
    """

    def __init__(self, keys: tuple[str, ...], settings: Preprocessing) -> None:
        super().__init__(keys)
        self.orientation = transforms.Orientation(axcodes=settings.orientation, labels=None)
        self.spacing = transforms.Spacing(pixdim=settings.spacing)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The scan with its axes turned and its voxels resampled."""
        result = dict(data)
        for key in self.key_iterator(result):
            resampled = self._by_axis(result[key]) if key == "image" else None
            mode = "bilinear" if key == "image" else "nearest"
            result[key] = self.spacing(self.orientation(result[key]), mode=mode) if resampled is None else resampled
        return result

    def _by_axis(self, image: MetaTensor) -> MetaTensor | None:
        """(C, X, Y, Z) -> (C, D, H, W) on MONAI's grid; None if it equals the scan's, or its axes aren't parallel."""
        # with ``lazy`` MONAI works out shape and affine, and touches no voxel
        turned = cast(MetaTensor, self.orientation(image, lazy=True))
        spaced = cast(MetaTensor, self.spacing(turned, lazy=True))
        shape, affine = tuple(spaced.peek_pending_shape()), spaced.peek_pending_affine().numpy()
        step = np.linalg.solve(turned.peek_pending_affine().numpy(), affine)
        if shape == tuple(turned.peek_pending_shape()) and np.allclose(step, np.eye(4), atol=AFFINE_TOL):
            return None
        grid = AxisMap.from_matrix(np.linalg.solve(image.affine.numpy(), affine), shape)
        if grid is None:
            return None
        channels = [interpolate(channel, grid, (0, 0, 0), shape) for channel in image.as_tensor()]
        return MetaTensor(torch.stack(channels), affine=torch.from_numpy(affine))


@dataclass(frozen=True)
class OnNetworkGrid:
    """A scan as the network sees it.

    Attributes:
        image: (C, D, H, W) in float32.
        affine: (4, 4), from voxel indices to mm.
        label: (D, H, W), if the scan has one.
    """

    image: Tensor
    affine: np.ndarray
    label: Tensor | None


def to_network_grid(
    voxels: np.ndarray, affine: np.ndarray, label: np.ndarray | None, settings: Preprocessing
) -> OnNetworkGrid:
    """Preprocess a scan that is in memory.

    Args:
        voxels: (C, X, Y, Z).
        affine: (4, 4), from its voxel indices to mm, x running to the Right, y to Anterior, z to Superior.
        label: (X, Y, Z), if there is one.
    """
    volumes = {"image": voxels} if label is None else {"image": voxels, "label": label[None]}
    # in the file's memory layout, since a transposed copy is slower
    item = {key: _with_affine(volume, affine, order="K") for key, volume in volumes.items()}
    result = transforms.Compose(scan_transforms(settings, tuple(volumes)))(item)
    image = result["image"]
    return OnNetworkGrid(
        image=image.as_tensor(),
        affine=image.affine.numpy(),
        label=None if label is None else result["label"].as_tensor()[0].long(),  # (1, D, H, W) -> (D, H, W)
    )


def _with_affine(volume: np.ndarray, affine: np.ndarray, order: Literal["C", "K"]) -> MetaTensor:
    """A copy of a volume (C, X, Y, Z) in float32, in numpy's memory ``order``."""
    return MetaTensor(torch.from_numpy(np.array(volume, np.float32, order=order)), affine=torch.from_numpy(affine))

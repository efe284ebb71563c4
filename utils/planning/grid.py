"""The grid that the network sees: size of a voxel, and the window in voxels."""

import dataclasses
import itertools
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from monai.data.utils import AFFINE_TOL

from networks.registry import Architecture, NetworkConfig
from utils.planning.fingerprint import Fingerprint
from utils.system.errors import InputError

Triple = tuple[float, float, float]
Window = tuple[int, int, int]

# nnU-Net v2's ANISO_THRESHOLD: along an axis of thick slices voxels are this many times as long, and as much fewer
ANISOTROPIC = 3.0
ANISOTROPIC_PERCENTILE = 10  # of the spacing along such an axis; nnU-Net v2 takes the same
# nnU-Net v2's lowres_creation_threshold: a window that holds less of the median scan sees too little around it
SMALLEST_SHARE = 0.25
# how often a run should show each place of the body, over all scans: with fewer steps, windows have to hold more of it
# (docs/planning.md)
SHOWN_TIMES = 2_000
# nnU-Net v2 makes voxels longer by this factor until the window holds that share
COARSER = 1.03
# voxels across the thinnest structure that coarser voxels leave (docs/planning.md)
VOXELS_ACROSS = 8
SMALLEST_VOLUME = 16**3  # of a window that still shows a structure and what is around it
LARGEST_VOLUME = 128**3  # of a window: nnU-Net v2's plans for 8 GB of a GPU have 128 × 128 × 128 voxels
DIGITS = 3  # of a spacing
DIGITS_OF_ALL = 6  # of one that all scans have: rounded more, MONAI would resample them all
LEAST_PART = 0.75  # of an edge as it should be, that a network's multiples may leave
STEPS = (1, 2, 4, 8, 16, 32, 64)  # voxels that a window may have to be a multiple of


@dataclass(frozen=True)
class Spacing:
    """Size of a voxel in mm along x, y, z, and why it is so."""

    mm: Triple
    reason: str


def native_spacing(fingerprint: Fingerprint) -> Spacing:
    """The scans' own spacing: the median along each axis, and finer along the axis of thick slices."""
    spacings = np.array([scan.spacing for scan in fingerprint.scans])
    shapes = np.array([scan.shape for scan in fingerprint.scans])
    mm, shape = np.median(spacings, axis=0), np.median(shapes, axis=0)
    thick = int(mm.argmax())
    others = [axis for axis in range(3) if axis != thick]
    spread, digits = _spread(spacings), DIGITS
    is_thick = mm[thick] > ANISOTROPIC * mm[others].max() and shape[thick] * ANISOTROPIC < shape[others].min()
    if is_thick and spread[thick]:
        finer = np.percentile(spacings[:, thick], ANISOTROPIC_PERCENTILE)
        mm[thick] = max(finer, mm[others].max())
        reason = (
            f"The median of the scans; along {'xyz'[thick]}, where slices are thick, the {ANISOTROPIC_PERCENTILE}th "
            "percentile, so that few scans lose slices (as nnU-Net does)."
        )
    elif spread.any():
        low, high = spacings.min(axis=0), spacings.max(axis=0)
        reason = (
            f"The median of the scans, whose spacings go from {text(low)} to {text(high)} mm. All are resampled to it "
            "(as nnU-Net does)."
        )
    elif _spread(spacings, 1 + AFFINE_TOL).any():
        reason = "All scans have nearly this spacing, the median."
    else:
        digits = DIGITS_OF_ALL
        reason = "All scans have this spacing, so that none has to be resampled."
    if is_thick and not spread[thick]:
        reason += f" Slices along {'xyz'[thick]} are thick, and stay so: nothing is known between them."
    x, y, z = (significant(value, digits) for value in mm)
    return Spacing((x, y, z), reason)


def _spread(spacings: np.ndarray, factor: float = 1.01) -> np.ndarray:
    """Along which axes spacings differ by more than a factor: (N, 3) -> (3,)."""
    different: np.ndarray = spacings.max(axis=0) > factor * spacings.min(axis=0)
    return different


def coarsest_spacing(fingerprint: Fingerprint) -> float:
    """The longest voxel in mm that leaves :data:`VOXELS_ACROSS` across the thinnest structure in most scans."""
    return min(thickness(fingerprint).values(), default=math.inf) / VOXELS_ACROSS


def thickness(fingerprint: Fingerprint) -> dict[int, float]:
    """By label value, the median over scans of its thickness in mm."""
    by_label: dict[int, list[float]] = {}
    for scan in fingerprint.scans:
        for value, structure in scan.structures.items():
            by_label.setdefault(value, []).append(structure.thickness_mm)
    return {value: float(np.median(found)) for value, found in sorted(by_label.items())}


def wanted_share(crops: float) -> float:
    """How much of the median scan a window should hold in a run of so many crops, from a quarter to all of it."""
    return min(1.0, max(SMALLEST_SHARE, SHOWN_TIMES / crops))


def coarser_spacing(
    spacing: Spacing, body_mm: Triple, voxels: float, coarsest: float, wanted: float = SMALLEST_SHARE
) -> Spacing:
    """Longer voxels, as far as a window of some volume needs them to hold the wanted share of the median scan.

    The finest axes become coarser first. None gets voxels longer than ``coarsest``.

    Args:
        body_mm: edges of the median scan.
        voxels: of the window.
        wanted: the share, up to 1.
    """
    mm = np.array(spacing.mm)

    def share() -> float:
        return float(voxels / np.prod(np.maximum(np.array(body_mm) / mm, 1)))

    before = share()
    if before >= wanted:
        return spacing
    while share() < wanted:
        longer = np.where(mm <= mm.min() * COARSER, mm * COARSER, mm)
        if longer.min() > coarsest or (longer == mm).all():
            break
        mm = longer
    if (mm == spacing.mm).all():
        return dataclasses.replace(
            spacing,
            reason=f"{spacing.reason} The window holds {before:.0%} of the median scan; longer voxels would hold more, "
            f"but the thinnest structure has to stay {VOXELS_ACROSS} voxels thick.",
        )
    limit = f"; longer ones would leave the thinnest structure fewer than {VOXELS_ACROSS} voxels"
    limit *= share() < wanted
    x, y, z = (significant(value) for value in mm)
    return Spacing(
        (x, y, z),
        f"The scans' own spacing would be {text(spacing.mm)} mm. At that, the window that the budget allows holds "
        f"{before:.0%} of the median scan: too little to see what is around a structure, and to show each place often "
        f"enough. At these voxels it holds {share():.0%}{limit}.",
    )


def fit_window(
    architecture: Architecture, settings: Mapping[str, Any], spacing: Triple, body_mm: Triple, voxels: float
) -> Window:
    """The largest window of at most ``voxels`` that the network takes and the median scan fills.

    Its edges are as long in mm along all axes, unless the scan is shorter. If the network takes none of at most
    ``voxels``, it is the smallest that it takes.

    Args:
        settings: of the network.

    Raises:
        InputError: if the network takes no window that is about as large as the scan or smaller.
    """
    shape = [max(1, round(length / mm)) for length, mm in zip(body_mm, spacing, strict=True)]
    best: Window | None = None
    smallest: Window | None = None
    for length in sorted({step * mm for mm in spacing for step in range(1, 1 + max(shape))}):
        wanted = [min(length / mm, full) for mm, full in zip(spacing, shape, strict=True)]
        if best is not None and math.prod(wanted) * LEAST_PART**3 > voxels:
            break  # from here on all are too large
        window = _taken(architecture, settings, spacing, wanted, shape)
        if window is None:
            continue
        if smallest is None or math.prod(window) < math.prod(smallest):
            smallest = window
        if math.prod(window) <= voxels and (best is None or math.prod(window) >= math.prod(best)):
            best = window
    found = best or smallest
    if found is None:
        raise InputError(
            f"`model_name` {architecture.name}: takes no window that fits scans of {text(shape)} voxels. Plan for "
            "another network."
        )
    return found


def _taken(
    architecture: Architecture,
    settings: Mapping[str, Any],
    spacing: Triple,
    wanted: Sequence[float],
    shape: Sequence[int],
) -> Window | None:
    """The window nearest to ``wanted`` that the network takes, None if there is none near."""
    for step in itertools.chain([_divisor(architecture, settings, spacing, wanted)], STEPS):
        if step is None:
            continue
        steps = step if isinstance(step, tuple) else (step,) * 3
        x, y, z = (_multiple(edge, one, full) for edge, one, full in zip(wanted, steps, shape, strict=True))
        try:
            make_config(architecture, settings, spacing, (x, y, z))
        except ValueError:
            continue
        return (x, y, z)
    return None


def _divisor(
    architecture: Architecture, settings: Mapping[str, Any], spacing: Triple, wanted: Sequence[float]
) -> tuple[int, ...] | None:
    """What the edges of a window must be multiples of, by the network's own rule, which may look at the window."""
    defaults = {field.name: field.default for field in dataclasses.fields(architecture.config)}
    size = tuple(max(1, int(edge)) for edge in wanted)
    draft = types.SimpleNamespace(**{**defaults, **settings, "img_size": size, "spacing": spacing})
    try:
        return tuple(architecture.window_divisor(draft))
    except ValueError:
        return None


def _multiple(edge: float, step: int, full: int) -> int:
    """The largest multiple of ``step`` up to an edge; the next one if that leaves less than :data:`LEAST_PART` of it.

    Args:
        full: voxels of the scan. A window that is longer pads it.
    """
    below = int(edge + 1e-6) // step * step
    if below >= LEAST_PART * min(edge, full) and below > 0:
        return below
    return below + step


def make_config(
    architecture: Architecture, settings: Mapping[str, Any], spacing: Triple, window: Window
) -> NetworkConfig:
    """The network's config for a window.

    Raises:
        ValueError: if it can't be.
    """
    return architecture.make_config({**settings, "img_size": window, "spacing": spacing})


def significant(value: float, digits: int = DIGITS) -> float:
    """A number rounded to some significant digits."""
    return float(f"{value:.{digits}g}")


def text(values: Sequence[float] | np.ndarray) -> str:
    """Three numbers, as "1.5 × 1.5 × 2"."""
    return " × ".join(f"{value:.3g}" if value < 1000 else f"{value:.0f}" for value in values)

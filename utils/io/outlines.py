"""Outlines of a structure in one slice: the opposite of :mod:`utils.io.contours`.

An outline runs along the borders of voxels, so it encloses their very area and smooths nothing. Voxels that touch only
at a corner have outlines of their own.
"""

import numpy as np
from scipy.ndimage import label

# Voxels by which an outline keeps to the structure's side of a border. Some readers, such as rt-utils, round points to
# whole voxels, and half a voxel would go to either side. 64-bit numbers and 0.0001 mm keep this much apart.
INSET = 0.01
STEPS = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])  # of the four headings; each is a left turn from the one before
LEFT = np.roll(STEPS, -1, axis=0)  # where the structure lies, seen from an outline


def outlines(plane: np.ndarray) -> list[np.ndarray]:
    """Closed polygons around the voxels of a plane (X, Y), one for each part; each (N, 2) in voxel indices.

    A hole is joined to what surrounds it by a channel of no width, so that one polygon encloses the part without its
    holes, by the even-odd and by the non-zero rule. The channel runs between the centres of voxels. No point is
    repeated at the end.
    """
    parts, _ = label(plane)
    whole: dict[int, np.ndarray] = {}
    # the first of a part is its outer outline; the channel of a hole runs to a lower x, where all is joined already
    for part, ring in sorted(_rings(plane, parts), key=lambda one: float(one[1][:, 0].min())):
        whole[part] = _joined(whole[part], ring) if part in whole else ring
    return list(whole.values())


def _rings(plane: np.ndarray, parts: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """The borders of all parts and holes, with the structure to their left; each with the number of its part."""
    padded = np.pad(plane, 1)
    # the voxels around each corner of voxels
    above, below = (padded[1:, 1:], padded[:-1, 1:]), (padded[1:, :-1], padded[:-1, :-1])
    borders = (above[0] & ~below[0], above[1] & ~above[0], below[1] & ~above[1], below[0] & ~below[1])
    todo = [set(np.flatnonzero(border).tolist()) for border in borders]  # corners from which a border goes that way
    columns = plane.shape[1] + 1
    steps = [int(step @ (columns, 1)) for step in STEPS]
    rings = []
    while todo[3]:
        start = next(iter(todo[3]))
        corner, heading = start, 3
        turns = []
        while corner in todo[heading]:
            todo[heading].remove(corner)
            corner += steps[heading]
            before = heading
            for heading in ((before + 1) % 4, before, (before - 1) % 4):  # left first: round the same voxel
                if corner in todo[heading] or (corner, heading) == (start, 3):
                    break
            if heading != before:
                turns.append((*divmod(corner, columns), before, heading))
        x, y, before_, after = np.array(turns).T
        ring = np.c_[x, y] - 0.5 + INSET * (LEFT[before_] + LEFT[after])
        row, column = divmod(start, columns)
        rings.append((int(parts[row, column - 1]), ring))
    return rings


def _joined(around: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """A polygon with a hole cut into it, by a channel from the hole's leftmost point straight to the polygon."""
    hole = np.roll(hole, -int(hole[:, 0].argmin()), axis=0)
    x, y = hole[0]
    ends = np.roll(around, -1, axis=0)
    is_met = (around[:, 0] == ends[:, 0]) & (ends[:, 1] <= y) & (y <= around[:, 1]) & (around[:, 0] < x)
    edge = int(np.where(is_met, around[:, 0], -np.inf).argmax())
    entry = np.array([[around[edge, 0], y]])
    joined = np.concatenate([around[: edge + 1], entry, hole, hole[:1], entry, around[edge + 1 :]])
    return joined[(joined != np.roll(joined, 1, axis=0)).any(axis=1)]

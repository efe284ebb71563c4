"""Contours of a structure, as radiotherapy draws them, filled on the grid of a scan.

A voxel belongs to a structure if its centre lies inside the contours of its slice, or on one of them. A contour within
another cuts a hole, and one within that is an island; contours that overlap in part unite, or with XOR leave out what
they share. A contour that meets itself has its inside by the even-odd rule. Programs that draw along the edges of
voxels and programs that draw through the centres of the outermost ones both get back what they drew.
"""

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import binary_dilation
from scipy.sparse import csr_array
from scipy.spatial import cKDTree

ON_LINE = 0.01  # voxels between a contour and the centres that lie on it; files round their numbers
WITHIN = 0.9  # of a contour's points in another one: so many make it a hole, though it may leave the other a little
ON_SLICE = 0.2  # of a slice's distance: so far from a slice contours are taken to lie on it
SAME_PLANE = 0.1  # the same between contours that share holes
TILTED = 0.5  # a contour whose heights differ by more lies across the slices
USUAL_GAPS = 2.0  # a gap between contours of so many usual ones is filled …
LARGEST_GAP_MM, LARGEST_GAP = 10.0, 2.0  # … unless it is larger than both of these, in mm and in slices
OUTSIDE = 1.0  # voxels that a contour may leave the grid, as those of the body do
EVEN = 1e-9  # mm between distances that are equal
MOST_CROSSINGS = 100_000_000  # of contours with the lines of a grid, which real ones have 100,000 of
MOST_POINTS = 20_000_000  # of a grid in the contours of one plane, which have 300,000 where one covers a large slice
Polygon = np.ndarray  # (N, 3), in voxel indices


def fill_contours(
    contours: Sequence[Polygon], shape: tuple[int, int, int], spacing: Sequence[float], xor: bool = False
) -> tuple[np.ndarray, list[str]]:
    """The voxels of one structure.

    A slice between contours is filled with a shape halfway between theirs, by the distances from their outlines, if
    the gap isn't more than twice the structure's usual one, and no more than 10 mm or two slices. In a larger gap the
    structure is taken to be absent. Contours that lie between slices are treated in the same way; beyond the last one
    a slice within half a slice's distance takes its shape.

    Args:
        contours: at least one; in planes along any two axes of the grid.
        shape: of the grid (X, Y, Z).
        spacing: of it in mm.
        xor: inside is what an odd number of a slice's contours enclose (DICOM PS3.3 C.8.8.6, CLOSEDPLANAR_XOR).

    Returns:
        A mask (X, Y, Z), and what was done, in words that belong behind the structure's name.

    Raises:
        ValueError: if a contour lies across the slices, or if they wind, or cover each other, without end.
    """
    axis = int(np.argmin([max(np.ptp(one[:, axis]) for one in contours) for axis in range(3)]))
    if max(np.ptp(one[:, axis]) for one in contours) > TILTED:
        raise ValueError("has contours that lie across the slices")
    in_plane = [other for other in range(3) if other != axis]
    mask = np.zeros(shape, bool, order="F")
    slices = np.moveaxis(mask, axis, -1)
    heights, planes = _planes(contours, axis)
    points = np.concatenate(contours)[:, in_plane]
    size = np.array(slices.shape[:2])
    low, high = _box(points, size)
    filled = [_fill([one[:, in_plane] - low for one in plane], high - low, xor) for plane in planes]
    box = slices[low[0] : high[0], low[1] : high[1]]
    steps = [float(spacing[other]) for other in in_plane]
    remarks = _stack(box, heights, filled, steps, float(spacing[axis]))
    beyond = (points < -OUTSIDE).any() or (points > size - 1 + OUTSIDE).any()
    if beyond or heights[0] < -TILTED - ON_SLICE or heights[-1] > slices.shape[2] - 1 + TILTED + ON_SLICE:
        remarks.append("has contours outside the scan, which are left out there")
    if not mask.any():
        remarks.append("has contours, but no voxel lies in them")
    return mask, remarks


def _planes(contours: Sequence[Polygon], axis: int) -> tuple[np.ndarray, list[list[Polygon]]]:
    """The heights of the planes with contours, rising, in slices; and the contours of each, none of them twice.

    Of several planes near one slice, as contours of a finer scan have them, the nearest is taken to lie on it.
    """
    heights = np.array([one[:, axis].mean() for one in contours])
    groups: list[list[int]] = []
    for index in np.argsort(heights, kind="stable").tolist():
        if groups and heights[index] - heights[groups[-1][0]] <= SAME_PLANE / 2:
            groups[-1].append(index)
        else:
            groups.append([index])
    found = [float(heights[group].mean()) for group in groups]
    nearest: dict[int, int] = {}  # by slice, the plane that lies on it
    for number, height in enumerate(found):
        on, away = round(height), abs(height - round(height))
        if away <= ON_SLICE and (on not in nearest or away < abs(found[nearest[on]] - on)):
            nearest[on] = number
    planes: list[tuple[float, list[Polygon]]] = []
    for number, height in enumerate(found):
        is_near = abs(height - round(height)) <= ON_SLICE
        if not is_near or nearest[round(height)] == number:
            members = _distinct([contours[index] for index in groups[number]])
            planes.append((float(round(height)) if is_near else height, members))
    return np.array([height for height, _ in planes]), [members for _, members in planes]


def _distinct(contours: Sequence[Polygon]) -> list[Polygon]:
    """The contours without copies, which may begin elsewhere, be closed, or be rounded otherwise."""
    boxes = np.array([np.concatenate([one.min(0), one.max(0)]) for one in contours])
    kept: list[int] = []
    for index, one in enumerate(contours):
        alike = [other for other in kept if np.abs(boxes[other] - boxes[index]).max() <= ON_LINE]
        if not any(_is_copy(one, contours[other]) for other in alike):
            kept.append(index)
    return [contours[index] for index in kept]


def _is_copy(one: Polygon, other: Polygon) -> bool:
    """Whether each point of either contour is one of the other's."""
    pairs = ((one, other), (other, one))
    return all(float(cKDTree(points).query(asked)[0].max()) <= ON_LINE for points, asked in pairs)


def _stack(
    slices: np.ndarray, heights: np.ndarray, filled: Sequence[np.ndarray], spacing: Sequence[float], distance: float
) -> list[str]:
    """Put filled planes into ``slices`` (A, B, slices), and fill what lies between them.

    Args:
        spacing: in mm within the planes.
        distance: from slice to slice in mm.

    Returns:
        What was done.
    """
    gaps = np.diff(heights)
    largest = USUAL_GAPS * max(1.0, float(np.median(gaps))) if len(gaps) else 0.0
    largest = min(largest, max(LARGEST_GAP_MM / distance, LARGEST_GAP)) + SAME_PLANE
    notes: dict[str, None] = {}
    first, last = max(0, int(np.ceil(heights[0] - TILTED))), int(np.floor(heights[-1] + TILTED))
    for index in range(first, min(last, slices.shape[2] - 1) + 1):
        nearest = int(np.abs(heights - index).argmin())
        above = int(np.searchsorted(heights, index))
        if abs(heights[nearest] - index) <= SAME_PLANE or not 0 < above < len(heights):
            slices[..., index] = filled[nearest]
        elif gaps[above - 1] <= largest:
            share = (index - heights[above - 1]) / gaps[above - 1]
            slices[..., index] = _between(filled[above - 1], filled[above], share, spacing)
            if gaps[above - 1] <= 1 + TILTED:
                notes["has contours between the slices, brought to these by their shapes"] = None
            elif slices[..., index].any():
                notes["has slices without contours, filled from those beside them"] = None
        else:
            if abs(heights[nearest] - index) <= TILTED:
                slices[..., index] = filled[nearest]
            notes["has a large gap between its contours, which is left empty"] = None
    return list(notes)


def _between(low: np.ndarray, high: np.ndarray, share: float, spacing: Sequence[float]) -> np.ndarray:
    """The shape at ``share`` of the way from one shape to another, where their outlines' distances balance."""
    if not low.any() or not high.any():
        return np.zeros_like(low)
    between = low & high
    changed = low ^ high
    between[changed] = (1 - share) * _depths(low, changed, spacing) + share * _depths(high, changed, spacing) > -EVEN
    return between


def _depths(shape: np.ndarray, where: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """How far points of a grid lie within a shape, in mm; outside below 0."""
    shape, where = np.pad(shape, 1), np.pad(where, 1)
    depths = np.empty(np.count_nonzero(where))
    is_inside = shape[where]
    for inside, sign in ((True, 1), (False, -1)):
        rim = (shape != inside) & binary_dilation(shape == inside)
        points = np.argwhere(where & (shape == inside))
        depths[is_inside == inside] = sign * cKDTree(np.argwhere(rim) * spacing).query(points * spacing)[0]
    return depths


def _box(points: np.ndarray, size: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The corners of the part of a grid in which points (N, 2) lie."""
    low = np.clip(np.floor(points.min(0)), 0, size).astype(int)
    return low, np.clip(np.ceil(points.max(0)) + 1, low, size).astype(int)


def _fill(polygons: Sequence[np.ndarray], size: np.ndarray, xor: bool) -> np.ndarray:
    """The points of a grid of this size (rows, columns) that lie in polygons (N, 2) or on them."""
    rows, columns = size.tolist()
    boxes = [_box(polygon, (rows, columns)) for polygon in polygons]
    if sum(int(np.prod(high - low)) for low, high in boxes) > MOST_POINTS:
        raise ValueError("has contours that cover each other without end")
    interiors = [_interior(polygon, *box, columns) for polygon, box in zip(polygons, boxes, strict=True)]
    if xor:
        points = np.bincount(np.concatenate(interiors), minlength=rows * columns) % 2 == 1
    else:
        points = np.zeros(rows * columns, bool)
        points[_united(interiors, rows * columns)] = True
    inside = points.reshape(rows, columns)
    starts = np.concatenate(polygons)
    ends = np.concatenate([np.roll(polygon, -1, axis=0) for polygon in polygons])
    steps = np.abs(ends - starts)
    is_steep = steps[:, 0] >= steps[:, 1]
    for axis, edges in ((0, is_steep), (1, ~is_steep)):  # along its steeper axis an edge misses no point
        at, place = _crossings(starts[edges], ends[edges], axis, (rows, columns)[axis], ON_LINE)
        on_line = (np.abs(place - np.rint(place)) <= ON_LINE) & (place > -0.5) & (place < (columns, rows)[axis] - 0.5)
        found = at[on_line], np.rint(place[on_line]).astype(np.int64)
        inside[found if axis == 0 else found[::-1]] = True
    return inside


def _interior(polygon: np.ndarray, low: np.ndarray, high: np.ndarray, columns: int) -> np.ndarray:
    """The points inside a polygon (N, 2) by the even-odd rule, numbered row by row.

    Args:
        low, high: the corners of its :func:`_box`.
        columns: of the whole grid.
    """
    height, width = high - low
    # each crossing with a row of the grid turns inside and outside behind it
    row, place = _crossings(polygon - low, np.roll(polygon, -1, axis=0) - low, 0, height)
    column = np.clip(np.ceil(place), 0, width).astype(np.int64)
    turns = np.bincount(row * (width + 1) + column, minlength=height * (width + 1))
    inside = np.cumsum(turns.reshape(height, width + 1), axis=1)[:, :width] & 1
    at_row, at_column = np.nonzero(inside)
    return np.asarray((at_row + low[0]) * columns + at_column + low[1])


def _united(interiors: Sequence[np.ndarray], size: int) -> np.ndarray:
    """The points inside some contours together.

    Args:
        interiors: the points inside each.
        size: how many points the grid has.
    """
    interiors = sorted((one for one in interiors if len(one)), key=len)
    if len(interiors) < 2:
        return np.concatenate([np.empty(0, np.int64), *interiors])
    counts = np.array([len(one) for one in interiors])
    starts = np.concatenate([[0], np.cumsum(counts)])
    points = csr_array((np.ones(starts[-1], np.int32), np.concatenate(interiors), starts), (len(counts), size))
    shared = (points @ points.T).tocoo()
    is_within = (shared.row < shared.col) & (shared.data >= WITHIN * counts[shared.row])
    around: list[set[int]] = [set() for _ in interiors]  # the larger contours that each lies in
    for inner, outer in zip(shared.row[is_within].tolist(), shared.col[is_within].tolist(), strict=True):
        around[inner].add(outer)
    holes: list[list[np.ndarray]] = [[] for _ in interiors]
    united = [np.empty(0, np.int64)]
    for interior, outers, cut_out in zip(interiors, around, holes, strict=True):
        filled = np.setdiff1d(interior, np.concatenate(cut_out), assume_unique=True) if cut_out else interior
        for outer in outers.difference(*(around[other] for other in outers)):
            holes[outer].append(filled)
        united += [] if outers else [filled]
    return np.concatenate(united)


def _crossings(
    starts: np.ndarray, ends: np.ndarray, axis: int, size: int, tolerance: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Where edges cross the lines 0 … ``size`` - 1 of a grid.

    Args:
        starts, ends: of the edges, (N, 2).
        axis: along which the lines are counted.
        tolerance: by which both ends may miss a line; by default the upper end doesn't count, so that an edge and the
            next one cross the line of the point between them once together.

    Returns:
        The lines, and the places along them.
    """
    low, high = np.minimum(starts, ends)[:, axis], np.maximum(starts, ends)[:, axis]
    first = np.ceil(low - (tolerance or 0))
    last = np.ceil(high) - 1 if tolerance is None else np.floor(high + tolerance)
    first, last = np.clip(first, 0, size).astype(np.int64), np.clip(last, -1, size - 1).astype(np.int64)
    counts = np.maximum(last - first + 1, 0)
    total = int(counts.sum())
    if total > MOST_CROSSINGS:
        raise ValueError("has contours that wind without end")
    edge = np.repeat(np.arange(len(counts)), counts)
    line = first[edge] + np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
    length = (ends - starts)[edge]
    along = np.where(length[:, axis] == 0, 1.0, length[:, axis])
    share = np.clip((line - starts[edge, axis]) / along, 0, 1)
    return line, starts[edge, 1 - axis] + share * length[:, 1 - axis]

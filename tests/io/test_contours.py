"""Contours on a grid: areas worked out by hand, and points that matplotlib puts inside or outside."""

import numpy as np
import pytest
from matplotlib.path import Path as Outline

from tests.io.labels import outlines
from utils.io import contours
from utils.io.contours import fill_contours

SHAPE = (20, 16, 9)
SPACING = (1.0, 1.0, 2.0)
IN_VOXELS = np.diag([-1.0, -1, 1, 1])  # of a grid whose voxels are mm in LPS


def box(low: float, high: float, z: float) -> np.ndarray:
    """A square from ``low`` to ``high`` along x and y."""
    return np.array([[low, low, z], [high, low, z], [high, high, z], [low, high, z]])


def disk(radius: float, z: float) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    return np.c_[9 + radius * np.cos(angles), 8 + radius * np.sin(angles), np.full(200, z)]


def filled(*contours: np.ndarray, spacing: tuple[float, float, float] = SPACING) -> tuple[np.ndarray, list[str]]:
    return fill_contours(contours, SHAPE, spacing)


def in_slices(mask: np.ndarray) -> list[bool]:
    """Whether each slice has voxels."""
    return [bool(mask[..., z].any()) for z in range(mask.shape[2])]


def test_a_box_along_the_edges_of_voxels_and_one_through_their_centres() -> None:
    along, through = filled(box(1.5, 4.5, 3))[0], filled(box(2, 4, 3))[0]
    expected = np.zeros(SHAPE, bool)
    expected[2:5, 2:5, 3] = True
    np.testing.assert_array_equal(along, expected)
    np.testing.assert_array_equal(through, expected)


def test_a_triangle_whose_voxels_can_be_counted() -> None:
    # right angle at the origin, legs of 10: the centres with x + y <= 10 are 11 + 10 + … + 1
    mask, remarks = filled(np.array([[0, 0, 4], [10, 0, 4], [0, 10, 4.0]]))
    assert mask.sum() == mask[..., 4].sum() == 66
    assert remarks == []


def test_random_triangles_agree_with_matplotlib() -> None:
    """Of larger polygons some cross themselves, and for these matplotlib has another rule."""
    draw = np.random.default_rng(3)
    points = np.argwhere(np.ones(SHAPE[:2]))
    for _ in range(40):
        triangle = draw.uniform(-2, 22, (3, 2))
        mask = filled(np.c_[triangle, np.full(3, 2.0)])[0][..., 2].ravel()
        grown, shrunk = (Outline(triangle).contains_points(points, radius=radius) for radius in (0.03, -0.03))
        sure = grown == shrunk  # the others lie on the triangle's edges
        np.testing.assert_array_equal(mask[sure], grown[sure])
        assert sure.mean() > 0.9


def test_a_contour_within_another_is_a_hole_and_one_within_that_an_island() -> None:
    outer, hole, island = box(1.5, 11.5, 3), box(3.5, 9.5, 3), box(5.5, 7.5, 3)
    assert filled(outer, hole)[0].sum() == 100 - 36
    assert filled(hole, island, outer)[0].sum() == 100 - 36 + 4
    assert filled(outer, outer.copy(), hole)[0].sum() == 100 - 36  # the same contour twice


def test_contours_that_overlap_in_part_unite() -> None:
    """Two squares of 6 by 6 that share 3 by 3, one of them with a hole of 2 by 2, which the other covers in part."""
    one, other, hole = box(1.5, 7.5, 3), box(4.5, 10.5, 3), box(2.5, 4.5, 3)
    assert filled(one, other)[0].sum() == 36 + 36 - 9
    assert filled(one, other, hole)[0].sum() == 36 + 36 - 9 - 4
    covered = box(3.5, 5.5, 3)  # the other square covers a voxel of it
    assert filled(covered, one, other)[0].sum() == filled(one, other, covered)[0].sum() == 36 + 36 - 9 - 3
    shared = box(4.5, 7.5, 3)  # in both squares
    assert filled(one, shared, other)[0].sum() == 36 + 36 - 9 - 9
    both_holes = box(1.5, 4.5, 3), box(3.5, 6.5, 3)  # of 3 by 3, with one voxel in common
    assert filled(box(0.5, 12.5, 3), *both_holes)[0].sum() == 144 - 17


def test_contours_with_xor_leave_out_what_they_share() -> None:
    one, other, hole = box(1.5, 7.5, 3), box(4.5, 10.5, 3), box(2.5, 4.5, 3)
    assert fill_contours((one, other), SHAPE, SPACING, xor=True)[0].sum() == 36 + 36 - 2 * 9
    assert fill_contours((one, other, hole), SHAPE, SPACING, xor=True)[0].sum() == 36 + 36 - 2 * 9 - 4


def test_a_hole_that_leaves_its_contour_a_little_is_one() -> None:
    """It has 11 by 5 voxels, 10 by 5 of them in the contour around it."""
    hole = np.array([[0.5, 3.5, 3], [11.4, 3.5, 3], [11.4, 8.5, 3], [0.5, 8.5, 3]])
    assert filled(box(1.5, 11.5, 3), hole)[0].sum() == 100 - 50


def test_a_keyhole() -> None:
    # around, through a channel of no width to the hole, around that, and back
    around, hole = box(1.5, 11.5, 3), box(3.5, 9.5, 3)[::-1]
    path = np.concatenate([around, around[:1], hole[3:], hole[:3], hole[3:], around[:1]])
    assert filled(path)[0].sum() == 100 - 36


def test_every_other_slice() -> None:
    mask, remarks = filled(disk(3.2, 2), disk(5.2, 4), disk(7.2, 6))
    x, y = np.indices(SHAPE[:2])
    for z, radius in ((2, 3.2), (3, 4.2), (4, 5.2), (5, 6.2), (6, 7.2)):
        expected = np.hypot(x - 9, y - 8) <= radius
        dice = 2 * (mask[..., z] & expected).sum() / (mask[..., z].sum() + expected.sum())
        assert dice == 1 if z in (2, 4, 6) else dice > 0.94  # between the contours, of 50 voxels and more
    assert not mask[..., :2].any()
    assert not mask[..., 7:].any()
    assert remarks == ["has slices without contours, filled from those beside them"]


def test_a_ball_whose_every_other_slice_is_drawn() -> None:
    index = np.indices((50, 50, 50))
    ball = np.linalg.norm(index - np.array([24, 25, 24])[:, None, None, None], axis=0) <= 18
    points = [one for _, one in outlines(ball, IN_VOXELS, range(0, 50, 2))]
    mask, _ = fill_contours(points, (50, 50, 50), (1, 1, 1))
    assert 2 * (mask & ball).sum() / (mask.sum() + ball.sum()) > 0.98


def test_a_large_gap_is_left_empty() -> None:
    parts = [disk(3, 0), disk(3, 1), disk(3, 2), disk(3, 6), disk(3, 7)]
    mask, remarks = filled(*parts)
    assert in_slices(mask) == [True] * 3 + [False] * 3 + [True] * 2 + [False]
    assert remarks == ["has a large gap between its contours, which is left empty"]
    # regular contours are too far apart at 12 mm, and not at 9
    regular = [disk(3, 0), disk(3, 3), disk(3, 6)]
    assert in_slices(filled(*regular, spacing=(1, 1, 4))[0]) == [z in (0, 3, 6) for z in range(9)]
    assert in_slices(filled(*regular, spacing=(1, 1, 3))[0]) == [z <= 6 for z in range(9)]


def test_contours_between_the_slices() -> None:
    mask, remarks = filled(*(disk(3.2, z) for z in (1.4, 2.4, 3.4)))
    assert in_slices(mask) == [False, True, True, True, False, False, False, False, False]
    np.testing.assert_array_equal(mask[..., 2], filled(disk(3.2, 2))[0][..., 2])
    assert remarks == ["has contours between the slices, brought to these by their shapes"]
    assert in_slices(filled(disk(3.2, 2.1))[0]).index(True) == 2


@pytest.mark.parametrize("step", [0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.8])
def test_contours_of_a_finer_scan_fill_each_slice(step: float) -> None:
    mask, _ = filled(*(disk(3.2, step * number) for number in range(round(8 / step) + 1)))
    expected = filled(disk(3.2, 4))[0][..., 4].sum()
    assert mask.sum((0, 1)).tolist() == [expected] * 9


def test_a_copy_of_a_contour_is_no_hole() -> None:
    whole = filled(box(1.5, 6.5, 3))[0]
    first = box(1.5, 6.5, 3)
    for copy in (np.vstack([first, first[:1]]), np.roll(first, 2, axis=0), first[::-1], first + 0.002):
        np.testing.assert_array_equal(filled(first, copy)[0], whole)


def test_contours_along_other_planes_of_the_grid() -> None:
    mask = np.zeros(SHAPE, bool)
    mask[3:8, 5:12, 2:6] = True
    mask[4:6, 7:9, 3] = False
    for axis in range(3):
        contours = outlines(np.moveaxis(mask, axis, -1), IN_VOXELS)
        moved = [np.insert(points[:, :2], axis, points[:, 2], axis=1) for _, points in contours]
        np.testing.assert_array_equal(filled(*moved)[0], mask)


def test_what_lies_outside_is_left_out_with_a_remark() -> None:
    outside = ["has contours outside the scan, which are left out there"]
    mask, remarks = filled(box(-5.5, 2.5, 3))
    assert (mask.sum(), remarks) == (9, outside)
    assert filled(box(1.5, 4.5, 12))[1] == [*outside, "has contours, but no voxel lies in them"]
    assert filled(box(-40, -30, 3))[1] == [*outside, "has contours, but no voxel lies in them"]
    assert filled(box(1.2, 1.6, 3))[1] == ["has contours, but no voxel lies in them"]


def test_what_can_not_be_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    tilted = box(1, 9, 3)
    tilted[:2, 2] = 7
    with pytest.raises(ValueError, match="lie across the slices"):
        filled(tilted)
    zigzag = np.tile([[0.0, 0, 3], [1e6, 15, 3]], (100, 1))
    assert filled(zigzag)[0].any()  # it isn't too long yet
    monkeypatch.setattr(contours, "MOST_CROSSINGS", 1000)
    with pytest.raises(ValueError, match="wind without end"):
        filled(zigzag)
    monkeypatch.setattr(contours, "MOST_POINTS", 150)
    assert filled(box(1.5, 7.5, 3), box(1.5, 5.5, 3))[0].any()  # their boxes have 64 and 36 points
    with pytest.raises(ValueError, match="cover each other without end"):
        filled(box(1.5, 10.5, 3), box(1.5, 9.5, 3))  # 121 and 100

"""Outlines of voxels: corners and areas worked out by hand, and random shapes by matplotlib and by our own filling."""

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from scipy.ndimage import label

from utils.io.contours import fill_contours
from utils.io.outlines import outlines


def area(polygon: np.ndarray) -> float:
    """Of a polygon (N, 2), by the shoelace formula."""
    x, y = polygon.T
    return float(x @ np.roll(y, -1) - np.roll(x, -1) @ y) / 2


def plane(*rows: str) -> np.ndarray:
    """A plane (X, Y) from a drawing, whose rows are those of x."""
    return np.array([[letter == "#" for letter in row] for row in rows])


def test_a_voxel() -> None:
    mask = np.zeros((4, 5), bool)
    mask[2, 3] = True
    (square,) = outlines(mask)
    assert {tuple(point) for point in square.round(6).tolist()} == {(x, y) for x in (1.51, 2.49) for y in (2.51, 3.49)}
    assert len(square) == 4


def test_a_straight_border_has_two_points() -> None:
    (box,) = outlines(np.ones((30, 20), bool))
    assert len(box) == 4
    assert area(box) == pytest.approx(29.98 * 19.98)


def test_voxels_that_touch_at_a_corner_are_two_parts() -> None:
    assert len(outlines(plane("#.", ".#"))) == 2
    assert len(outlines(plane("##", ".#"))) == 1


def test_a_hole_is_joined_to_what_is_around_it() -> None:
    (ring,) = outlines(plane("#####", "#...#", "#...#", "#####"))
    assert area(ring) == pytest.approx(3.98 * 4.98 - 2.02 * 3.02)
    assert len(ring) == 4 + 4 + 3  # where the channel leaves, where it comes back, and the hole's first point again


def test_an_island_in_a_hole_is_a_part_of_its_own() -> None:
    around, island = sorted(outlines(plane("#####", "#...#", "#.#.#", "#...#", "#####")), key=area, reverse=True)
    assert area(around) == pytest.approx(4.98**2 - 3.02**2)
    assert area(island) == pytest.approx(0.98**2)


def test_nothing() -> None:
    assert outlines(np.zeros((3, 3), bool)) == []


def test_random_shapes_come_back_whichever_rule_fills_them() -> None:
    draw = np.random.default_rng(7)
    for _ in range(200):
        shape = tuple(draw.integers(1, 14, 2))
        mask = draw.random(shape) < draw.uniform(0.1, 0.95)
        mask[0, 0] = True
        polygons = outlines(mask)
        assert len(polygons) == label(mask)[1]
        points = np.argwhere(np.ones(shape, bool))
        by_winding = np.array([Outline(polygon, closed=False).contains_points(points) for polygon in polygons])
        np.testing.assert_array_equal(by_winding.sum(0).reshape(shape), mask)  # no voxel lies in two parts
        by_parity, _ = fill_contours([np.c_[one, np.zeros(len(one))] for one in polygons], (*shape, 1), (1, 1, 1))
        np.testing.assert_array_equal(by_parity[..., 0], mask)
        for polygon in polygons:
            steps = polygon - np.roll(polygon, 1, axis=0)
            assert (np.count_nonzero(steps, axis=1) == 1).all()  # no point twice, and all edges along an axis

"""Interpolation an axis at a time, against scipy's of all axes at once."""

import itertools

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from utils.data.resampling import AxisMap, interpolate

SHAPE = (7, 9, 6)


def matrix(order: tuple[int, ...], scale: tuple[float, ...], offset: tuple[float, ...]) -> np.ndarray:
    result = np.eye(4)
    result[:3, :3] = 0
    result[order, range(3)] = scale
    result[list(order), 3] = offset
    return result


def test_what_a_matrix_does_by_axis() -> None:
    found = AxisMap.from_matrix(matrix((2, 0, 1), (-0.5, 2.0, 1.0), (8.0, 0.0, -3.0)), SHAPE)
    assert found == AxisMap((2, 0, 1), (-0.5, 2.0, 1.0), (8.0, 0.0, -3.0))
    assert found.positions(0, 2, 5).tolist() == [7.0, 6.5, 6.0]


def test_turned_and_sheared_grids_are_none_of_its_business() -> None:
    sheared = np.eye(4)
    sheared[1, 2] = 0.3
    turned = np.eye(4)
    turned[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
    nearly = np.eye(4)
    nearly[1, 2] = 1e-9
    assert AxisMap.from_matrix(sheared, SHAPE) is None
    assert AxisMap.from_matrix(turned, SHAPE) is None
    assert AxisMap.from_matrix(nearly, SHAPE) is not None


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("kind", [np.float32, np.int16])
def test_values_are_scipys(order: tuple[int, ...], turned: bool, kind: type, random: np.random.Generator) -> None:
    volume: np.ndarray = random.integers(-1000, 1000, SHAPE).astype(kind)
    if turned:
        volume = np.asfortranarray(volume)  # as NIfTI files have their voxels
    made = matrix(order, (1.3, -0.45, 0.9), (0.2, 8.1, -0.4))  # and beyond the border, on both sides
    grid = AxisMap.from_matrix(made, (9, 9, 9))
    assert grid is not None
    start, stop = (1, 0, 2), (8, 9, 8)
    found = interpolate(torch.from_numpy(volume), grid, start, stop)
    indices = np.stack(np.meshgrid(*map(np.arange, start, stop), indexing="ij"))
    places = np.einsum("ij,jxyz->ixyz", made[:3, :3], indices) + made[:3, 3].reshape(3, 1, 1, 1)
    expected = map_coordinates(volume.astype(float), places, order=1, mode="nearest")
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-3)  # values of up to 1000 in float32

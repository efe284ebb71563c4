"""Volumes are turned to Right, Anterior and Superior."""

import numpy as np

from utils.io.geometry import ras_spacing, to_ras


def test_a_volume_is_turned_and_its_spacing_with_it() -> None:
    # the array's axes run to Superior in steps of 5 mm, to the Left in 2 mm, and to Anterior in 3 mm
    affine = np.array([[0, -2, 0, 10], [0, 0, 3, 0], [5, 0, 0, 0], [0, 0, 0, 1.0]])
    volume = np.arange(4 * 2 * 3).reshape(4, 2, 3)
    turned = to_ras(volume, affine)
    assert turned.shape == (2, 3, 4)
    assert turned[0, 2, 3] == volume[3, 1, 2]  # the leftmost, frontmost and uppermost voxel
    assert ras_spacing(affine) == (2, 3, 5)

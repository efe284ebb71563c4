"""A mask has the geometry of its scan, whatever the scan's orientation: read, preprocess, predict and go back."""

import itertools
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from torch import Tensor, nn

from networks.precision import Precision
from utils.data.channels import Region, RegionChannels
from utils.data.preprocessing import Preprocessing, to_network_grid
from utils.inference.scan_grid import class_on_scan_grid, to_scan_grid
from utils.inference.sliding_window import Ensemble, Predictor
from utils.io.reader import read_scan
from utils.io.scan import Scan

CPU = torch.device("cpu")
ORIENTATIONS = [
    "".join(letters) for order in itertools.permutations(("LR", "PA", "IS")) for letters in itertools.product(*order)
]


class Threshold(nn.Module):
    """Predicts the organ above 100 HU (of the window -175 … 250), with logits that grow with the distance to it."""

    def forward(self, windows: Tensor) -> Tensor:
        above = (windows - (100 + 175) / 425) * 50
        return torch.cat([-above, above], 1)


SETTINGS = Preprocessing(spacing=(1.5, 1.5, 2.0), roi=(32, 32, 32))
ENSEMBLE = Ensemble(((Threshold(), Precision(CPU, torch.float32)),))
PREDICTOR = Predictor(SETTINGS.roi, SETTINGS.padding, overlap=0.25, batch_size=4, device=CPU)


def organ_at(mm: np.ndarray) -> np.ndarray:
    """Whether points in mm (…, 3) are in the organ: a ball with a bar to the Right and a shorter one upward."""
    x, y, z = np.moveaxis(mm, -1, 0)
    ball = x**2 + y**2 + z**2 < 22**2
    bar = (x > 0) & (x < 40) & (abs(y) < 13) & (abs(z) < 13)
    top = (abs(x) < 11) & (abs(y - 6) < 12) & (z > 0) & (z < 32)
    return ball | bar | top


def phantom(affine: np.ndarray, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A soft body with the organ in it, in HU, and the organ's mask."""
    indices = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    mm = indices @ affine[:3, :3].T + affine[:3, 3]
    mask = organ_at(mm)
    body = np.linalg.norm(mm / (48, 44, 44), axis=-1) < 1
    return np.where(mask, 200, np.where(body, 0, -1000)).astype(np.int16), mask


def segmented(path: Path) -> np.ndarray:
    """The mask of a scan on its own grid."""
    volume = read_scan(Scan("scan", (path,), None), 1)
    preprocessed = to_network_grid(volume.voxels, volume.affine, None, SETTINGS)
    probabilities = PREDICTOR(ENSEMBLE, preprocessed.image[None])
    mask = to_scan_grid(probabilities, preprocessed.affine, volume.affine, volume.shape)
    whole = class_on_scan_grid(probabilities[1], preprocessed.affine, volume.affine, volume.shape, 0.0)
    undecided = abs(whole - 0.5) < 1e-4
    assert np.array_equal(
        (mask == 1)[~undecided], (whole > 0.5)[~undecided]
    )  # comparing classes one by one finds the most probable one
    return mask


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def centred(directions: np.ndarray, spacing: tuple[float, ...], shape: tuple[int, ...]) -> np.ndarray:
    """An affine with the origin (0, 0, 0) mm near the middle of the array."""
    affine = np.eye(4)
    affine[:3, :3] = directions @ np.diag(spacing)
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) / 2 + (1.3, -0.7, 0.4))
    return affine


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_all_48_orientations(codes: str, tmp_path: Path) -> None:
    shape, spacing = (84, 100, 54), (1.3, 1.0, 1.9)
    affine = centred(np.eye(3), spacing, shape)
    voxels, mask = phantom(affine, shape)
    turn = ornt_transform(axcodes2ornt(("R", "A", "S")), axcodes2ornt(tuple(codes)))
    turned = nib.orientations.apply_orientation(voxels, turn)
    turned_affine = affine @ inv_ornt_aff(turn, shape)
    assert "".join(nib.aff2axcodes(turned_affine)) == codes
    nib.save(nib.Nifti1Image(turned, turned_affine), tmp_path / "scan.nii.gz")
    found = segmented(tmp_path / "scan.nii.gz") == 1
    assert dice(found, nib.orientations.apply_orientation(mask, turn)) >= 0.98
    # in millimetres too, worked out from nibabel's affine alone
    points = np.argwhere(found) @ turned_affine[:3, :3].T + turned_affine[:3, 3]
    assert organ_at(points).mean() >= 0.98
    assert points[:, 0].max() == pytest.approx(40, abs=1.5)  # the bar to the Right
    assert points[:, 0].min() == pytest.approx(-22, abs=1.5)


def rotation(x: float, y: float, z: float) -> np.ndarray:
    a, b, c = np.deg2rad((x, y, z))
    around_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    around_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    around_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return around_z @ around_y @ around_x


OBLIQUE: dict[str, Any] = {
    "a little": rotation(5, -8, 12),
    "much": rotation(35, 20, -40),
    "much, and left to right": rotation(20, -30, 25) @ np.diag([-1, 1, 1]),
    "axes swapped": rotation(10, 10, 10) @ np.eye(3)[:, [2, 0, 1]],
    "a tilted gantry": np.array([[1, 0, 0], [0, 1, 0.3], [0, 0, 1]]),
}


@pytest.mark.parametrize("directions", OBLIQUE.values(), ids=OBLIQUE)
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.9, 1.2, 2.4)])
def test_oblique_affines(directions: np.ndarray, spacing: tuple[float, float, float], tmp_path: Path) -> None:
    shape = tuple(int(110 / size) for size in spacing)
    affine = centred(directions, spacing, shape)
    voxels, mask = phantom(affine, (shape[0], shape[1], shape[2]))
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "scan.nii")
    found = segmented(tmp_path / "scan.nii") == 1
    assert dice(found, mask) >= 0.98
    points = np.argwhere(found) @ affine[:3, :3].T + affine[:3, 3]
    assert organ_at(points).mean() >= 0.98


def test_a_single_slice_of_some_thickness(tmp_path: Path) -> None:
    affine = centred(np.eye(3), (1.0, 1.0, 5.0), (100, 100, 1))
    affine[2, 3] = 0
    voxels, mask = phantom(affine, (100, 100, 1))
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "scan.nii.gz")
    assert dice(segmented(tmp_path / "scan.nii.gz") == 1, mask) >= 0.98


def test_most_probable_class_of_many_by_hand() -> None:
    """A line of voxels between two of the network's grid, whose probabilities are equal halfway."""
    probabilities = torch.zeros(300, 2, 1, 1)
    probabilities[299, 0], probabilities[7, 1] = 1.0, 1.0
    scan_affine = np.diag([0.25, 1.0, 1.0, 1.0])
    mask = to_scan_grid(probabilities, np.eye(4), scan_affine, (10, 1, 1))
    assert mask.dtype == np.uint16
    # at 0, 0.25, 0.5 (a tie, which the lower label keeps), 0.75, 1, up to one voxel beyond the last at 2, and at 2.25
    assert mask[:, 0, 0].tolist() == [299, 299, 7, 7, 7, 7, 7, 7, 7, 0]


def test_regions_above_one_half_write_their_labels_one_over_the_other() -> None:
    """On a grid twice as fine: between voxels with 0.8 and 0.3 lies 0.675, then 0.425."""
    output = RegionChannels((Region("all", (1, 2)), Region("core", (2,))), (1, 2))
    probabilities = torch.tensor([[0.8, 0.8, 0.3, 0.3], [0.1, 0.1, 0.1, 0.9]])[:, :, None, None]
    affine = np.diag([2.0, 1.0, 1.0, 1.0])
    scan_affine = np.eye(4)
    scan_affine[0, 3] = -0.5  # each of the network's voxels covers two of the scan's
    mask = to_scan_grid(probabilities.contiguous(), affine, scan_affine, (8, 1, 1), output)
    # all: 0.8, 0.8, 0.8, 0.675, 0.425, 0.3, 0.3, 0.3; core: 0.1 five times, then 0.3, 0.7, 0.9
    assert mask[:, 0, 0].tolist() == [1, 1, 1, 1, 0, 0, 2, 2]
    assert mask.dtype == np.uint8
    same = to_scan_grid(probabilities.contiguous(), np.eye(4), np.eye(4), (4, 1, 1), output)
    assert same[:, 0, 0].tolist() == output.label_map(probabilities).flatten().tolist() == [1, 1, 0, 2]
    assert not to_scan_grid(torch.full((2, 4, 1, 1), 0.5), affine, scan_affine, (8, 1, 1), output).any()

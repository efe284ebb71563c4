"""From a file to voxels: orientation, spacing, intensity and crop, on volumes whose result is known."""

from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImaged, Orientationd, Spacingd

from utils.data.preprocessing import Preprocessing, ReadScan, ToSpacing, scan_transforms, to_network_grid
from utils.io.reader import read_scan
from utils.io.scan import Scan


def write(folder: Path, voxels: np.ndarray, label: np.ndarray, affine: np.ndarray) -> Scan:
    nib.save(nib.Nifti1Image(voxels, affine), folder / "image.nii.gz")
    nib.save(nib.Nifti1Image(label, affine), folder / "label.nii.gz")
    return Scan("image", (folder / "image.nii.gz",), folder / "label.nii.gz")


def process(scan: Scan, settings: Preprocessing) -> tuple[np.ndarray, np.ndarray]:
    result = Compose([ReadScan(settings), *scan_transforms(settings)])(scan)
    return np.asarray(result["image"]), np.asarray(result["label"])


def test_ct_window_maps_its_ends_to_0_and_1_and_clips(tmp_path: Path) -> None:
    voxels = np.full((6, 6, 6), -1000.0, np.float32)
    voxels[1:5, 1:5, 1:5] = np.array([-175, 37.5, 250, 3000])  # along the last axis
    item = write(tmp_path, voxels, np.zeros((6, 6, 6), np.uint8), np.eye(4))
    image, label = process(item, Preprocessing(spacing=(1, 1, 1)))
    # -1000 and -175 both become 0, the lowest value, and the crop leaves what is above it: 4 × 4 × 3 voxels
    assert image.shape == label.shape == (1, 4, 4, 3)
    assert image[0, 0, 0].tolist() == pytest.approx([0.5, 1.0, 1.0])


def test_zscore_gives_mean_0_and_deviation_1_for_each_channel(tmp_path: Path, random: np.random.Generator) -> None:
    voxels = random.normal(5000, 300, (6, 6, 6, 2)).astype(np.float32)
    voxels[..., 1] = voxels[..., 1] / 1e4
    item = write(tmp_path, voxels, np.zeros((6, 6, 6), np.uint8), np.eye(4))
    image, _ = process(item, Preprocessing(intensity="zscore", spacing=(1, 1, 1)))
    assert image.shape[0] == 2
    for channel in image:
        assert channel.mean() == pytest.approx(0, abs=1e-4)
        assert channel.std() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1), (-1, 1, -1)])
def test_axes_run_to_right_anterior_superior(tmp_path: Path, signs: tuple[int, int, int]) -> None:
    voxels = np.full((8, 8, 8), -1000, np.float32)
    voxels[2:6, 2:6, 2:6] = 0
    label = np.zeros((8, 8, 8), np.uint8)
    corner = tuple(5 if sign > 0 else 2 for sign in signs)  # the voxel furthest right, anterior and superior
    label[corner] = 1
    item = write(tmp_path, voxels, label, np.diag([*signs, 1.0]).astype(float))
    _, result = process(item, Preprocessing(spacing=(1, 1, 1)))
    assert result.shape == (1, 4, 4, 4)
    assert np.argwhere(result == 1).tolist() == [[0, 3, 3, 3]]


def test_spacing_changes_the_voxel_count_and_keeps_labels_whole(tmp_path: Path) -> None:
    voxels = np.full((20, 20, 10), 100, np.float32)
    voxels[0] = -1000
    label = np.zeros((20, 20, 10), np.uint8)
    label[10:] = 13
    item = write(tmp_path, voxels, label, np.diag([1.0, 1.0, 4.0, 1.0]))
    image, result = process(item, Preprocessing(spacing=(2, 2, 2)))
    assert image.shape == result.shape
    assert image.shape[2:] == (10, 19)  # 19 mm and 36 mm between the outer voxels' centres
    assert set(np.unique(result)) == {0, 13}


CODES = ["RAS", "LPS", "SAR", "PIL", "IRA"]
SPACINGS = [(0.75, 0.6, 1.6), (1.5, 1.4996, 2.0), (1.5, 1.5, 2.0), (3.0, 1.0, 5.0)]
DIRECTIONS = {
    "straight": np.eye(3),
    "turned": np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]]),
    "sheared": np.array([[1, 0, 0], [0, 1, 0.3], [0, 0, 1]]),
}


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("directions", DIRECTIONS.values(), ids=DIRECTIONS)
def test_a_scan_comes_to_the_grid_of_monais_own_transforms(
    code: str, spacing: tuple[float, ...], directions: np.ndarray, random: np.random.Generator
) -> None:
    shape = (14, 21, 11)
    turn = nib.orientations.axcodes2ornt(code)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = directions * spacing, (-83.7, 31.2, 5.9)
    affine = affine @ nib.orientations.inv_ornt_aff(turn, shape)
    image = torch.from_numpy(random.integers(-1000, 1000, (2, *shape)).astype(np.float32))
    label = torch.from_numpy(random.integers(0, 14, (1, *shape)).astype(np.float32))
    where = torch.from_numpy(affine)
    item: dict[Hashable, MetaTensor] = {"image": MetaTensor(image, where), "label": MetaTensor(label, where)}
    settings = Preprocessing()
    found = ToSpacing(("image", "label"), settings)(item)
    steps = [
        Orientationd(("image", "label"), axcodes="RAS", labels=None),
        Spacingd(("image", "label"), pixdim=settings.spacing, mode=("bilinear", "nearest")),
    ]
    expected = Compose(steps)(item)
    assert found["image"].shape == expected["image"].shape
    np.testing.assert_allclose(found["image"].affine, expected["image"].affine, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found["image"], expected["image"], rtol=0, atol=1e-3)  # values of up to 1000 in float32
    assert torch.equal(found["label"].as_tensor(), expected["label"].as_tensor())


def test_channels_of_several_files_are_stacked(tmp_path: Path, random: np.random.Generator) -> None:
    first, second = (random.normal(size=(5, 6, 7)).astype(np.float32) for _ in range(2))
    label = np.ones((5, 6, 7), np.uint8)
    scan = write(tmp_path, first, label, np.eye(4))
    nib.save(nib.Nifti1Image(second, np.eye(4)), tmp_path / "second.nii.gz")
    both = replace(scan, image=(*scan.image, tmp_path / "second.nii.gz"))
    image, _ = process(both, Preprocessing(intensity="zscore", spacing=(1, 1, 1)))
    assert image.shape == (2, 5, 6, 7)
    np.testing.assert_allclose(image[1], (second - second.mean()) / second.std(), atol=1e-4)


OBLIQUE = np.array([[1.1, 0.1, 0, 3], [0, -1.2, 0, 5], [0, 0, 2.2, -7], [0, 0, 0, 1]])


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")
@pytest.mark.parametrize("kind", ["u1", "i2", "f4", "f8", "scaled"])
@pytest.mark.parametrize("affine", [np.diag([-1.1, 1.2, 2.2, 1]), OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("intensity", ["ct", "zscore"])
def test_numbers_are_those_of_monais_reader(
    kind: str, affine: np.ndarray, intensity: str, tmp_path: Path, random: np.random.Generator
) -> None:
    voxels = random.integers(0, 200, (13, 18, 11)).astype("i2" if kind == "scaled" else kind)
    scan = write(tmp_path, voxels, random.integers(0, 3, voxels.shape).astype("u1"), affine)
    if kind == "scaled":
        image = nib.Nifti1Image(voxels, affine)
        image.header.set_slope_inter(0.37, -3)
        nib.save(image, scan.image[0])
    settings = Preprocessing(intensity=intensity)
    found = Compose([ReadScan(settings), *scan_transforms(settings)])(scan)
    paths = {"image": str(scan.image[0]), "label": str(scan.label)}
    monais = LoadImaged(("image", "label"), reader="NibabelReader", ensure_channel_first=True)
    expected = Compose([monais, *scan_transforms(settings)])(paths)
    for key in ("image", "label"):
        assert torch.equal(found[key].as_tensor(), expected[key].as_tensor())
        assert torch.equal(found[key].affine, expected[key].affine)


def test_training_and_testing_see_one_scan_alike(tmp_path: Path, random: np.random.Generator) -> None:
    voxels = random.integers(0, 200, (13, 18, 11)).astype(np.int16)
    scan = write(tmp_path, voxels, random.integers(0, 3, voxels.shape).astype("u1"), OBLIQUE)
    trained = Compose([ReadScan(Preprocessing()), *scan_transforms(Preprocessing())])(scan)
    volume = read_scan(scan, 1)
    tested = to_network_grid(volume.voxels, volume.affine, None, Preprocessing())
    torch.testing.assert_close(trained["image"].as_tensor(), tested.image)
    np.testing.assert_array_equal(trained["image"].affine, tested.affine)

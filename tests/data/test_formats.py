"""Training takes every format that testing takes: from each the same voxels, and so the same losses."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from tests.conftest import TINY, Run
from tests.io.series import write_series
from utils.data.data_list import read_data_list
from utils.io.reader import read_file


def with_simpleitk(source: Path, target: Path) -> None:
    sitk.WriteImage(sitk.ReadImage(str(source)), str(target))


def in_capitals(source: Path, target: Path) -> None:
    with_simpleitk(source, target.with_suffix(".mha"))
    target.with_suffix(".mha").rename(target)


def dicom(source: Path, target: Path) -> None:
    volume = read_file(source)
    write_series(target, volume.voxels[0].astype(np.int16), volume.affine)


def on_the_series_grid(source: Path, target: Path) -> None:
    """A label whose slices are reversed where the axes of its scan are left-handed, which no series has."""
    label = sitk.ReadImage(str(source))
    left_handed = np.linalg.det(np.reshape(label.GetDirection(), (3, 3))) < 0
    sitk.WriteImage(label[:, :, ::-1] if left_handed else label, str(target))


Convert = Callable[[Path, Path], None]
# the endings of images and labels, and how each is written
FORMATS: dict[str, tuple[tuple[str, str], tuple[Convert, Convert]]] = {
    "NRRD": ((".nrrd", ".nrrd"), (with_simpleitk, with_simpleitk)),
    "MetaImage": ((".MHA", ".mha"), (in_capitals, with_simpleitk)),
    "DICOM": (("", ".nii.gz"), (dicom, on_the_series_grid)),
}


def losses(run_main: Run, folder: Path, name: str) -> list[float]:
    run_main([f"--data_dir={folder}", f"--logdir={name}", "--max_epochs=1", "--val_every=1", "--workers=0", *TINY])
    return [json.loads(line)["loss"] for line in Path("runs", name, "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def nifti_losses(phantoms: Path, run_main: Run, in_tmp: Path) -> list[float]:
    return losses(run_main, phantoms, "nifti")


@pytest.mark.parametrize("name", FORMATS)
def test_the_losses_of_a_run_are_those_from_nifti(
    name: str, phantoms: Path, nifti_losses: list[float], run_main: Run, in_tmp: Path
) -> None:
    (image_ending, label_ending), (convert_image, convert_label) = FORMATS[name]
    data = read_data_list(str(phantoms), None, 0)
    content: dict[str, list[dict[str, str]]] = {}
    for part in ("training", "validation"):
        for scan in getattr(data, part):
            assert scan.label is not None
            image, label = f"imagesTr/{scan.name}{image_ending}", f"labelsTr/{scan.name}{label_ending}"
            for place in (image, label):
                (in_tmp / "data" / place).parent.mkdir(parents=True, exist_ok=True)
            convert_image(scan.image[0], in_tmp / "data" / image)
            convert_label(scan.label, in_tmp / "data" / label)
            content.setdefault(part, []).append({"image": image, "label": label})
    (in_tmp / "data" / "dataset_0.json").write_text(json.dumps({**content, "labels": data.labels}))
    assert len(nifti_losses) == 1
    assert losses(run_main, in_tmp / "data", "converted") == pytest.approx(nifti_losses, rel=1e-5)

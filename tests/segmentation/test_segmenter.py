"""``Segmenter`` gives the masks that ``test.py`` writes, from whatever a program holds."""

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from pydicom.uid import generate_uid

import hubconf
from tests.conftest import REPOSITORY
from tests.io.series import save, write_series
from tests.segmentation.conftest import load, scan_of, voxels
from utils.export import export_bundle, export_task
from utils.phantom import LABELS
from utils.segmentation import Segmenter
from utils.system.errors import InputError


@pytest.fixture(scope="module")
def segmenter(trained: Path) -> Segmenter:
    return Segmenter(trained / "model.pt", device="cpu")


@pytest.fixture
def expected(segment: Any, phantoms: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """The mask and the measurements that ``test.py`` writes."""
    out = segment(f"--input={scan_of(phantoms)}", "--device=cpu")
    return voxels(out / "img0007.nii.gz"), json.loads((out / "measurements.json").read_text())["scans"][0]["organs"]


def test_every_way_to_give_a_scan_has_test_pys_mask(
    segmenter: Segmenter, phantoms: Path, expected: tuple[np.ndarray, dict[str, Any]]
) -> None:
    path = scan_of(phantoms)
    image = load(path)
    mask, organs = expected
    assert mask.any()
    of_path = segmenter(path, measurements=True)
    assert np.array_equal(of_path.array, mask)
    assert np.array_equal(np.asarray(of_path.mask.dataobj), mask)
    assert np.array_equal(of_path.mask.affine, image.affine)
    assert of_path.labels == dict(enumerate(LABELS[1:], 1))
    assert of_path.measurements is not None
    for organ, values in of_path.measurements.items():
        assert {name: organs[organ][name] for name in values} == json.loads(json.dumps(values))

    of_image = segmenter(image)
    assert isinstance(of_image.mask, nib.Nifti1Image)
    assert np.array_equal(of_image.array, mask)
    of_array = segmenter(np.asarray(image.dataobj), image.affine)
    assert of_array.mask is of_array.array
    assert np.array_equal(of_array.mask, mask)
    with_channel = segmenter(np.asarray(image.dataobj)[None], image.affine)
    assert np.array_equal(with_channel.mask, mask)

    itk = sitk.ReadImage(str(path))
    of_itk = segmenter(itk).mask
    assert (of_itk.GetOrigin(), of_itk.GetSpacing(), of_itk.GetDirection()) == (
        itk.GetOrigin(), itk.GetSpacing(), itk.GetDirection(),
    )  # fmt: skip
    assert np.array_equal(sitk.GetArrayFromImage(of_itk).transpose(2, 1, 0), mask)


def test_a_folder_with_a_dicom_series(segmenter: Segmenter, phantoms: Path, tmp_path: Path) -> None:
    image = load(scan_of(phantoms))
    array = np.asarray(image.dataobj).astype(np.int16)
    written = write_series(tmp_path / "series", array, image.affine)
    localizer = written[0].copy()
    localizer.ImageType, localizer.filename = ["ORIGINAL", "PRIMARY", "LOCALIZER"], tmp_path / "series/localizer"
    localizer.SeriesInstanceUID = generate_uid()
    save(localizer)
    found = segmenter(tmp_path / "series")
    mask = found.array
    assert [remark for remark in found.remarks if "localizer" in remark]
    assert mask.shape == array.shape
    of_array = segmenter(array, image.affine).array
    # the series is read in the order of its slices, which may be the other way round
    assert max((mask == of_array).mean(), (mask == of_array[..., ::-1]).mean()) > 0.999


def test_a_dicom_series_gets_test_pys_seg_and_rtstruct(
    segmenter: Segmenter, segment: Any, phantoms: Path, tmp_path: Path
) -> None:
    image = load(scan_of(phantoms))
    array = np.asarray(image.dataobj).astype(np.int16)
    (series, *_) = write_series(tmp_path / "series", array, image.affine)
    out = segment(f"--input={tmp_path / 'series'}", "--device=cpu", "--rtstruct")
    found = segmenter(tmp_path / "series")
    found.write_dicom_seg(tmp_path / "seg.dcm")
    found.write_rtstruct(tmp_path / "contours.dcm")

    seg, expected = pydicom.dcmread(tmp_path / "seg.dcm"), pydicom.dcmread(out / "series.dcm")
    assert seg.PixelData == expected.PixelData
    assert [one.SegmentLabel for one in seg.SegmentSequence] == [one.SegmentLabel for one in expected.SegmentSequence]
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == series.SeriesInstanceUID
    contours, expected = pydicom.dcmread(tmp_path / "contours.dcm"), pydicom.dcmread(out / "series_rtstruct.dcm")
    assert contours.ROIContourSequence == expected.ROIContourSequence
    assert contours.FrameOfReferenceUID == series.FrameOfReferenceUID

    of_nifti = segmenter(scan_of(phantoms))
    for write in (of_nifti.write_dicom_seg, of_nifti.write_rtstruct):
        with pytest.raises(InputError, match="was no DICOM series"):
            write(tmp_path / "none.dcm")
    assert not (tmp_path / "none.dcm").exists()


def test_probabilities_lead_to_the_mask(segmenter: Segmenter, phantoms: Path) -> None:
    found = segmenter(scan_of(phantoms), probabilities=True)
    assert found.probabilities is not None
    assert found.probabilities.shape == (len(LABELS), *found.array.shape)
    np.testing.assert_allclose(found.probabilities.sum(0), 1, atol=1e-4)
    assert (found.probabilities.argmax(0) == found.array).mean() > 0.9999


def test_several_networks_and_mirrored_passes(trained: Path, phantoms: Path, segment: Any) -> None:
    out = segment(
        f"--input={scan_of(phantoms)}", "--pretrained_model_name", "model.pt", "model_final.pt", "--device=cpu"
    )
    both = Segmenter([trained / "model.pt", trained / "model_final.pt"], device="cpu")
    assert np.array_equal(both(scan_of(phantoms)).array, voxels(out / "img0007.nii.gz"))
    with pytest.raises(InputError, match="crops were not flipped in training"):
        Segmenter(trained / "model.pt", device="cpu", tta=True)


def test_an_archive_of_a_task(trained: Path, phantoms: Path, segmenter: Segmenter, tmp_path: Path) -> None:
    export_task(trained, tmp_path / "task.zip")
    of_archive = Segmenter(tmp_path / "task.zip", device="cpu")
    assert of_archive.labels == segmenter.labels
    assert np.array_equal(of_archive(scan_of(phantoms)).array, segmenter(scan_of(phantoms)).array)


def test_calls_from_several_threads(segmenter: Segmenter, phantoms: Path) -> None:
    paths = [scan_of(phantoms, number) for number in (5, 6, 7)] * 2
    alone = [segmenter(path).array for path in paths[:3]] * 2
    with ThreadPoolExecutor(4) as pool:
        together = [found.array for found in pool.map(segmenter, paths)]
    assert all(np.array_equal(one, other) for one, other in zip(together, alone, strict=True))
    assert all(np.array_equal(found.array, other) for found, other in zip(segmenter.batch(paths), alone, strict=True))


def test_progress_counts_to_the_end(segmenter: Segmenter, phantoms: Path) -> None:
    seen: list[tuple[int, int]] = []
    segmenter(scan_of(phantoms), progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1] > 0


def test_nothing_is_written_or_printed(
    segmenter: Segmenter, phantoms: Path, in_tmp: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    segmenter(scan_of(phantoms), measurements=True)
    assert capfd.readouterr() == ("", "")
    assert not list(in_tmp.iterdir())


ARRAY = np.zeros((20, 20, 20), np.float32)
ARRAY[5:15, 5:15, 5:15] = 100


@pytest.mark.parametrize(
    ("scan", "words"),
    [
        ((ARRAY,), "`affine`: an array needs one"),
        ((ARRAY, np.eye(3)), "`affine`: must be (4, 4), not 3 × 3"),
        ((ARRAY, np.zeros((4, 4))), "its affine can't place voxels in space"),
        (((ARRAY, np.zeros((4, 4))),), "its affine can't place voxels in space"),
        ((ARRAY[0], np.eye(4)), "the scan has the shape 20 × 20. Give (X, Y, Z)"),
        ((ARRAY[:0], np.eye(4)), "the scan has the shape 0 × 20 × 20. Give (X, Y, Z)"),
        ((np.array(3.0), np.eye(4)), "the scan has no dimensions"),
        ((np.stack([ARRAY, ARRAY]), np.eye(4)), "has 2 channels, and the network takes 1"),
        ((ARRAY[..., None], np.eye(4)), "An array with channels is (C, X, Y, Z)."),
        ((ARRAY.tolist(), np.eye(4)), "the scan is a list. Give a path, an array of NumPy"),
        (("a.nii.gz", np.eye(4)), "`affine`: is for arrays, and a.nii.gz knows its own"),
        ((nib.Nifti1Image(ARRAY, np.eye(4)), np.eye(4)), "`affine`: is for arrays, and the scan knows its own"),
        ((sitk.GetImageFromArray(ARRAY), np.eye(4)), "`affine`: is for arrays, and the scan knows its own"),
        ((sitk.Image([5, 5, 5], sitk.sitkLabelUInt8),), "the scan is a label map, not an image"),
        ((np.full((20, 20, 20), np.nan), np.eye(4)), "has NaN or infinite voxels"),
        ((np.ones((20, 20, 20)), np.eye(4)), "every voxel is 1"),
        ((np.full((3, 3, 3), "a"), np.eye(4)), "has colours or other compound voxels"),
        ((np.tile(ARRAY, (6, 6, 6)), np.diag([60.0, 60.0, 60.0, 1.0])), "is 7.2 m long by its header"),
        ((3,), "the scan is a int. Give a path"),
        (("missing.nii.gz",), "missing.nii.gz"),
    ],
)
def test_what_is_no_scan_is_an_error_in_one_line(segmenter: Segmenter, scan: tuple[Any, ...], words: str) -> None:
    with pytest.raises(InputError) as error:
        segmenter(*scan)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": []}, "names no file"),
        ({"weights": "missing.pt"}, "missing.pt: no such file. Mend its path."),
        ({"network_file": "missing.py"}, "`network_file` missing.py"),
        ({"device": "tpu"}, "`device` tpu"),
        ({"overlap": 1.0}, "`overlap` must be a number of at least 0 and below 1, not 1.0"),
        ({"overlap": "0.5"}, "`overlap` must be a number of at least 0 and below 1, not '0.5'"),
    ],
)
def test_what_cannot_be_loaded_is_an_error_in_one_line(trained: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as error:
        Segmenter(**{"weights": trained / "model.pt", **options})
    assert words in str(error.value)


def test_weights_of_unlike_tasks_are_an_error_in_one_line(trained: Path, tmp_path: Path) -> None:
    abdomen, hippocampus = trained / "model.pt", REPOSITORY / "pretrained_models" / "hippocampus" / "fold0.pt"
    bundle, archive = tmp_path / "bundle", tmp_path / "task.zip"
    export_bundle(abdomen, bundle)
    export_task(trained, archive)
    for weights in (abdomen, bundle / "models" / "model.ts", archive):
        with pytest.raises(InputError, match="`labels` background, anterior, posterior contradicts") as error:
            Segmenter([hippocampus, weights], device="cpu")
        assert str(error.value).startswith(f"{weights}")
        assert "\n" not in str(error.value)


def test_a_scan_that_memory_does_not_hold_is_an_error_in_one_line(
    segmenter: Segmenter, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def allocate(*_: object) -> None:
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"
        )

    with monkeypatch.context() as patched:
        patched.setattr(segmenter._predictor, "_averaged", allocate)
        with pytest.raises(InputError, match=r"img0007\.nii\.gz: this machine has no memory for it"):
            segmenter(scan_of(phantoms))
    # each of the network's voxels takes 2 + 1.25 + 14 + 0.5 numbers of 4 bytes: image, weights, 14 classes, a mask
    large = ARRAY, np.diag([100.0, 100.0, 100.0, 1.0])
    needed = 4 * (2000**3 / np.prod(segmenter.spacing) * 17.75 + 2 * 20**3)
    for memory, words in ((needed * 0.99, "memory doesn't hold"), (needed * 1.01, "can't allocate memory")):
        with monkeypatch.context() as patched:
            patched.setattr("utils.data.preprocessing.available_memory", lambda memory=memory: memory)
            patched.setattr("utils.segmentation.volumes.to_network_grid", allocate)
            with pytest.raises(InputError, match=words):
                segmenter(*large)


def test_a_file_that_nibabel_reads_late_is_an_error_in_one_line(segmenter: Segmenter, tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(ARRAY, np.eye(4)), tmp_path / "whole.nii")
    (tmp_path / "cut.nii").write_bytes((tmp_path / "whole.nii").read_bytes()[:20_000])
    with pytest.raises(InputError, match=r"the scan: can't be read \(Expected 32000 bytes, got \d+ bytes"):
        segmenter(nib.load(tmp_path / "cut.nii"))


def test_errors_and_remarks_call_a_scan_by_its_name(segmenter: Segmenter, tmp_path: Path) -> None:
    (tmp_path / "x.nii.gz").write_bytes(b"no scan")
    with pytest.raises(InputError, match=r"^upload 7: is no volume"):
        segmenter(tmp_path / "x.nii.gz", name="upload 7")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"^upload 8: holds no scan"):
        segmenter(tmp_path / "empty", name="upload 8")
    with pytest.raises(InputError, match=r"^upload 9"):
        segmenter(tmp_path / "missing.nii", name="upload 9")


def test_a_name_takes_the_place_of_the_path_alone(
    segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("scan", "up"):
        Path(folder).mkdir()
    Path("up/x.nii.gz").write_bytes(b"no scan")
    with pytest.raises(InputError, match=r"^the upload: is no volume"):
        segmenter("./up/x.nii.gz", name="the upload")
    with pytest.raises(InputError, match=r"^the upload/x\.nii\.gz: is no volume"):
        segmenter("up/", name="the upload")
    with pytest.raises(InputError, match=r"^the upload: holds no scan: no NIfTI"):
        segmenter("scan", name="the upload")


def test_images_in_memory_that_cannot_be_placed(segmenter: Segmenter) -> None:
    with pytest.raises(InputError, match="the scan: has no affine"):
        segmenter(nib.Nifti1Image(ARRAY, None))
    with pytest.raises(InputError, match=r"the scan: is Analyze 7\.5, which doesn't tell left from right"):
        segmenter(nib.AnalyzeImage(ARRAY, np.eye(4)))
    turned = np.eye(4)
    turned[:3, 3] = (5, 6, 7)
    with pytest.raises(InputError, match="its affine ends with the row 5, 6, 7, 1 instead of 0, 0, 0, 1"):
        segmenter(ARRAY, turned.T)
    with pytest.raises(InputError, match="`affine`: isn't made of numbers"):
        segmenter(ARRAY, np.full((4, 4), "a"))


@pytest.mark.parametrize("codes", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_an_affine_of_nibabel_that_was_changed_in_place_counts(segmenter: Segmenter, codes: tuple[int, int]) -> None:
    scan = nib.Nifti1Image(ARRAY, np.eye(4))
    scan.set_qform(np.eye(4), codes[0])
    scan.set_sform(np.eye(4), codes[1])
    changed = np.array([[2, 0, 0, 10], [0, 2, 0, 20], [0, 0, 2.0, 30], [0, 0, 0, 1]])
    scan.affine[:] = changed
    before = scan.header.copy()
    found = segmenter(scan)
    np.testing.assert_allclose(found.mask.affine, changed)
    assert found.mask.header.get_zooms() == (2, 2, 2)
    assert not any("pixdim" in remark or "form" in remark for remark in found.remarks)
    assert scan.header == before  # what is given stays as it was
    scan.affine[0, 0] = np.nan
    with pytest.raises(InputError, match="its affine can't place voxels in space"):
        segmenter(scan)


@pytest.mark.parametrize(
    "scans", ["/scans/a.nii.gz", Path("/scans/a.nii.gz"), ARRAY, nib.Nifti1Image(ARRAY, np.eye(4))]
)
def test_one_scan_is_no_batch(segmenter: Segmenter, scans: Any) -> None:
    with pytest.raises(InputError, match="Give a list of scans"):
        segmenter.batch(scans)


PROGRAM = """
import sys, torch
segmenter = torch.hub.load(sys.argv[1], "segmenter", weights=sys.argv[2], device="cpu", source="local")
print(int(segmenter(sys.argv[3]).array.max()))
torch.hub.load(sys.argv[1], "segmenter", weights=sys.argv[2], device="cpu", source="local")
try:
    segmenter("bad.nrrd")
except ValueError as error:
    print(error)
network = torch.hub.load(sys.argv[1], "unetr", source="local", img_size=32, hidden_size=12, mlp_dim=12, num_heads=2)
print(tuple(network(torch.zeros(1, 1, 32, 32, 32)).shape))
import utils
print(utils.MINE)
"""


def test_torch_hub_from_another_folder_beside_a_package_called_utils(
    trained: Path, phantoms: Path, segmenter: Segmenter, tmp_path: Path
) -> None:
    (tmp_path / "utils").mkdir()
    (tmp_path / "utils" / "__init__.py").write_text("MINE = 'theirs'\n")
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "bad.nrrd").write_text("NRRD0004\ntype: short\n\n")
    command = [sys.executable, "program.py", str(REPOSITORY), str(trained / "model.pt"), str(scan_of(phantoms))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    largest = int(segmenter(scan_of(phantoms)).array.max())
    first, fault, shape, theirs = done.stdout.splitlines()[-4:]
    assert (first, shape, theirs) == (str(largest), "(1, 14, 32, 32, 32)", "theirs")
    assert fault.count("can't be read") == 1  # by the first Segmenter, after a second one was loaded


def test_what_is_imported_in_functions_is_known_to_hubconf() -> None:
    found = set()
    for path in [*REPOSITORY.glob("utils/*/*.py"), *REPOSITORY.glob("networks/**/*.py")]:
        if path.parent.name not in ("config", "training"):
            found |= set(
                re.findall(
                    r"^ +(?:from |import |return importlib.import_module\(\")((?:utils|networks|optimizers)[.\w]*)",
                    path.read_text(),
                    re.M,
                )
            )
    assert found == set(hubconf.LATER)

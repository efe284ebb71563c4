"""Which scans some paths mean: files, DICOM series and folders of both, told apart by their content."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813

from tests.io.series import AXIAL, phantom, write_series
from tests.io.volumes import save_with_simpleitk
from utils.io.find_scans import FoundScans, find_scans, without_endings
from utils.io.reader import read_scan
from utils.system.errors import InputError

pytestmark = pytest.mark.usefixtures("nothing_beside")


def save(path: Path, value: int = 0) -> Path:
    """A small volume in the format that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith((".nii", ".nii.gz")):
        nib.save(nib.Nifti1Image(phantom() + np.int16(value), AXIAL), path)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(phantom()), str(path))
    return path


def save_text(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("hello")
    return path


def found(*paths: Path, in_channels: int = 1) -> FoundScans:
    return find_scans([str(path) for path in paths], in_channels)


def scans(*paths: Path, in_channels: int = 1) -> dict[str, tuple[Path, ...]]:
    """Files by the scans' names, where nothing is to be said."""
    result = found(*paths, in_channels=in_channels)
    assert (result.faults, result.remarks) == ({}, [])
    assert all(scan.label is None for scan in result.scans)
    names = [scan.name for scan in result.scans]
    assert len(names) == len(set(names))
    return {scan.name: scan.image for scan in result.scans}


def only_fault(*paths: Path) -> str:
    result = found(*paths)
    assert result.scans == []
    (fault,) = result.faults.values()
    assert fault.splitlines() == [fault]
    return fault


def test_a_folder_of_everything(tmp_path: Path) -> None:
    nifti, nrrd = save(tmp_path / "one.nii.gz"), save(tmp_path / "two.nrrd")
    write_series(tmp_path / "ct" / "early", phantom(), AXIAL)
    write_series(tmp_path / "ct" / "late", phantom(), AXIAL)
    localizer = write_series(tmp_path / "ct" / "localizer", phantom(), AXIAL, ImageType=["ORIGINAL", "LOCALIZER"])
    save_text(tmp_path / "README.txt")
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((5, 6), np.uint8)), str(tmp_path / "picture.png"))

    result = found(tmp_path)
    series = {scan.name: set(scan.image) for scan in result.scans if scan.is_series}
    assert series == {name: set((tmp_path / "ct" / name).iterdir()) for name in ("early", "late")}
    files = {scan.name: scan.image for scan in result.scans if not scan.is_series}
    assert files == {"one": (nifti,), "two": (nrrd,)}
    assert result.faults == {}
    assert result.remarks == [f"{tmp_path}/ct/localizer: {len(localizer)} files left out, a localizer."]
    for scan in result.scans:
        assert read_scan(scan, 1).shape == (12, 10, 7) or scan.name == "two"


def test_two_series_in_one_folder(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", phantom(), AXIAL, SeriesNumber=3)
    for path in (tmp_path / "ct").iterdir():
        path.rename(path.with_name(f"first_{path.name}"))
    write_series(tmp_path / "ct", phantom(), AXIAL, SeriesNumber=4)
    files = scans(tmp_path)
    assert {name: len(slices) for name, slices in files.items()} == {"ct_3": 7, "ct_4": 7}
    assert all(path.name.startswith("first_") for path in files["ct_3"])


def test_a_file_is_a_scan(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.nii.gz")
    save(tmp_path / "other.nii.gz")
    assert scans(path) == {"scan": (path,)}


def test_one_name_in_two_folders_gets_the_folder_before_it(tmp_path: Path) -> None:
    a, b, c = (save(tmp_path / name) for name in ("a/scan.nii.gz", "b/scan.nii.gz", "b/third.nii.gz"))
    assert scans(tmp_path) == {"a_scan": (a,), "b_scan": (b,), "third": (c,)}
    assert scans(a, b) == {"a_scan": (a,), "b_scan": (b,)}


def test_one_name_in_one_folder_gets_a_number_behind_it(tmp_path: Path) -> None:
    nifti, nrrd = save(tmp_path / "ct" / "scan.nii.gz"), save(tmp_path / "ct" / "scan.nrrd")
    assert scans(tmp_path) == {"ct_scan": (nifti,), "ct_scan_2": (nrrd,)}


def test_a_number_is_not_given_twice(tmp_path: Path) -> None:
    for name in ("ct/scan.mha", "ct/scan.nii.gz", "ct/scan.nrrd", "ct_scan_2.nii.gz"):
        save(tmp_path / name)
    assert len(scans(tmp_path)) == 4


def test_a_series_and_a_file_of_one_name(tmp_path: Path) -> None:
    write_series(tmp_path / "dicom" / "liver", phantom(), AXIAL)
    path = save(tmp_path / "nifti" / "liver.nii.gz")
    result = found(tmp_path)
    assert {scan.name: scan.is_series for scan in result.scans} == {"liver_liver": True, "nifti_liver": False}
    assert {scan.name: scan.image for scan in result.scans}["nifti_liver"] == (path,)


def test_files_of_channels_are_one_scan_where_the_network_takes_several(tmp_path: Path) -> None:
    files = [save(tmp_path / f"{scan}_000{channel}.nii.gz", channel) for scan in "ab" for channel in (1, 0)]
    together = scans(tmp_path, in_channels=2)
    assert together == {"a": (files[1], files[0]), "b": (files[3], files[2])}
    assert scans(*files, in_channels=2) == together
    (scan, _) = found(tmp_path, in_channels=2).scans
    np.testing.assert_array_equal(read_scan(scan, 2).voxels, [phantom(), phantom() + 1])
    assert sorted(scans(tmp_path)) == ["a_0000", "a_0001", "b_0000", "b_0001"]


def test_channels_in_two_folders_are_of_two_scans(tmp_path: Path) -> None:
    for folder in "ab":
        for channel in (0, 1):
            save(tmp_path / folder / f"scan_000{channel}.nii.gz")
    assert {name: len(files) for name, files in scans(tmp_path, in_channels=2).items()} == {"a_scan": 2, "b_scan": 2}


def test_other_numbers_of_four_digits_are_no_channels(tmp_path: Path) -> None:
    for year in (2023, 2024):
        save(tmp_path / f"patient_{year}.nii.gz")
    assert sorted(scans(tmp_path, in_channels=2)) == ["patient_2023", "patient_2024"]


def test_a_missing_channel_is_told_when_the_scan_is_read(tmp_path: Path) -> None:
    path = save(tmp_path / "scan_0000.nii.gz")
    (scan,) = found(tmp_path, in_channels=2).scans
    words = r"channels: 1 \(shape 12 × 10 × 7\), but the network takes 2.*\(…_0000, …_0001\)"
    with pytest.raises(InputError, match=words) as error:
        read_scan(scan, 2)
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize("hidden", [".scan.nii.gz", "._scan.nii.gz", ".trash/scan.nii.gz", "ct/.cache/deep/scan.nii"])
def test_hidden_files_and_folders_are_passed_over(tmp_path: Path, hidden: str) -> None:
    path = save(tmp_path / "ct" / "scan.nii.gz")
    save(tmp_path / hidden)
    assert scans(tmp_path) == {"scan": (path,)}


def test_a_hidden_folder_that_is_asked_for_is_read(tmp_path: Path) -> None:
    path = save(tmp_path / ".hidden" / "scan.nii.gz")
    assert scans(tmp_path / ".hidden") == {"scan": (path,)}


@pytest.mark.parametrize("name", ["scan.bin", "scan", "scan.img", "scan.png.txt"])
def test_a_volume_is_known_by_its_content(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / "true.nii").rename(tmp_path / name)
    ((_, files),) = scans(tmp_path).items()
    assert files == (path,)
    (scan,) = found(tmp_path).scans
    np.testing.assert_array_equal(read_scan(scan, 1).voxels[0], phantom())


def test_dicom_slices_are_known_by_their_content(tmp_path: Path) -> None:
    for number, one in enumerate(write_series(tmp_path / "ct", phantom(), AXIAL)):
        Path(one.filename).rename(tmp_path / "ct" / f"{number}.nii.gz")
    (scan,) = found(tmp_path).scans
    assert (scan.name, scan.is_series, len(scan.image)) == ("ct", True, 7)


def test_a_text_with_a_volume_s_name_is_a_scan_whose_reading_names_the_fault(tmp_path: Path) -> None:
    good, text = save(tmp_path / "good.nii.gz"), save_text(tmp_path / "x.nii.gz")
    assert scans(tmp_path) == {"good": (good,), "x": (text,)}
    with pytest.raises(InputError) as error:
        read_scan(found(text).scans[0], 1)
    words = "is no volume: neither NIfTI, DICOM, nor another file that SimpleITK reads."
    assert str(error.value) == f"{text}: {words}"


@pytest.mark.parametrize("name", ["notes.txt", "picture.png"])
def test_a_file_that_is_asked_for_is_a_scan_whose_reading_names_the_fault(tmp_path: Path, name: str) -> None:
    path = save_text(tmp_path / name)
    (scan,) = found(path).scans
    with pytest.raises(InputError, match="is no volume") as error:
        read_scan(scan, 1)
    assert str(error.value).startswith(f"{path}: ")


def test_a_folder_without_a_scan(tmp_path: Path) -> None:
    words = (
        f"`input` {tmp_path}: holds no scan: no NIfTI, no DICOM slices, nothing SimpleITK reads. Give another place."
    )
    assert only_fault(tmp_path) == words
    (tmp_path / "empty").mkdir()
    assert only_fault(tmp_path) == words
    save_text(tmp_path / "text" / "README.md")
    save_text(tmp_path / "text" / "labels.csv")
    assert only_fault(tmp_path) == words


def test_volumes_that_are_not_read_are_told(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.nii.gz")
    for name, todo in (("a.nii.bz2", "Unpack it."), ("b.MGZ", "Convert it to NIfTI."), ("c.zip", "Unpack it.")):
        with pytest.raises(InputError) as error:
            read_scan(found(save_text(tmp_path / "other" / name)).scans[0], 1)
        assert str(error.value) == f"{tmp_path}/other/{name}: isn't read as it is. {todo}"
    result = found(tmp_path)
    words = f"{tmp_path}/other/a.nii.bz2 and 2 more: left out, not read as they are. Convert to NIfTI, or unpack."
    assert ([scan.image for scan in result.scans], result.faults, result.remarks) == ([(path,)], {}, [words])
    assert only_fault(tmp_path / "other") == words


def test_a_folder_of_localizers_holds_no_scan_and_says_why(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", phantom(), AXIAL, ImageType=["ORIGINAL", "LOCALIZER"])
    assert f"`input` {tmp_path}: holds no scan" in only_fault(tmp_path)
    assert found(tmp_path).remarks == [f"{tmp_path}/ct: 7 files left out, a localizer."]


def test_an_empty_folder_beside_one_with_scans_is_told(tmp_path: Path) -> None:
    path = save(tmp_path / "full" / "scan.nii.gz")
    (tmp_path / "empty").mkdir()
    result = found(tmp_path / "full", tmp_path / "empty")
    assert [scan.image for scan in result.scans] == [(path,)]
    assert list(result.faults) == [f"{tmp_path}/empty"]
    assert f"`input` {tmp_path}/empty: holds no scan" in result.faults[f"{tmp_path}/empty"]


def test_a_missing_path_is_a_fault_and_the_others_are_found(tmp_path: Path) -> None:
    gone, path = tmp_path / "gone.nii.gz", save(tmp_path / "scan.nii.gz")
    words = f"{gone}: can't be read (No such file or directory). Mend `input`."
    assert only_fault(gone) == words
    result = found(gone, path)
    assert [scan.image for scan in result.scans] == [(path,)]
    assert (list(result.faults.values()), result.remarks) == ([words], [])


def test_a_link_to_nowhere_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "scan.nii.gz").symlink_to(tmp_path / "gone")
    assert only_fault(tmp_path).startswith(f"{tmp_path}/scan.nii.gz: can't be read (No such file or directory).")


def test_a_damaged_gzip_of_unknown_content_is_a_fault(tmp_path: Path) -> None:
    content = save(tmp_path / "scan.nii.gz").read_bytes()
    (tmp_path / "scan.nii.gz").unlink()
    (tmp_path / "scan.gz").write_bytes(content[:40])
    assert only_fault(tmp_path).startswith(f"{tmp_path}/scan.gz: can't be read (it is cut off or damaged).")


def test_a_single_slice_is_a_series_of_one(tmp_path: Path) -> None:
    path = Path(write_series(tmp_path / "ct", phantom(), AXIAL)[3].filename)
    (scan,) = found(path).scans
    assert (scan.name, scan.is_series, scan.image) == ("ct", True, (path,))
    np.testing.assert_array_equal(read_scan(scan, 1).voxels[0], phantom()[..., 3:4])


def test_a_path_given_twice_is_one_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "files" / "scan.nii.gz")
    relative = Path("files/scan.nii.gz")
    for paths in ((path, path), (path, path.parent), (path.parent, path), (path, relative), (relative, path)):
        assert scans(*paths) == {"scan": (paths[0] / "scan.nii.gz" if paths[0].is_dir() else paths[0],)}


def test_a_series_given_twice_is_one_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_series(tmp_path / "ct", phantom(), AXIAL)
    for paths in ((tmp_path, tmp_path), (tmp_path, tmp_path / "ct"), (tmp_path, Path("ct")), (Path("ct"), tmp_path)):
        assert {name: len(files) for name, files in scans(*paths).items()} == {"ct": 7}


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_a_pair_of_header_and_voxels_is_one_scan(tmp_path: Path, packed: str) -> None:
    header, voxels = tmp_path / f"scan.hdr{packed}", tmp_path / f"scan.img{packed}"
    nib.save(nib.Nifti1Pair(phantom(), AXIAL), voxels)
    assert scans(tmp_path) == {"scan": (header,)}
    assert scans(header, voxels) == scans(voxels, header) == scans(voxels) == {"scan": (header,)}


def test_endings_in_capitals(tmp_path: Path) -> None:
    save(tmp_path / "one.nii.gz").rename(tmp_path / "ONE.NII.GZ")
    save(tmp_path / "two.nrrd").rename(tmp_path / "TWO.NRRD")
    save(tmp_path / "three.mha").rename(tmp_path / "THREE.MHA")
    nib.save(nib.Nifti1Pair(phantom(), AXIAL), tmp_path / "four.img")
    for name in ("four.hdr", "four.img"):
        (tmp_path / name).rename(tmp_path / name.upper())
    files = {name: [path.name for path in files] for name, files in scans(tmp_path).items()}
    assert files == {"ONE": ["ONE.NII.GZ"], "TWO": ["TWO.NRRD"], "THREE": ["THREE.MHA"], "FOUR": ["FOUR.HDR"]}
    assert {scan.name for scan in found(tmp_path).scans if read_scan(scan, 1).voxels.size == 12 * 10 * 7} == set(files)


@pytest.mark.parametrize(("header", "voxels"), [("scan.mhd", "scan.raw"), ("scan.nhdr", "scan.raw")])
def test_a_header_with_raw_voxels_is_one_scan(tmp_path: Path, header: str, voxels: str) -> None:
    save(tmp_path / header)
    assert sorted(path.name for path in tmp_path.iterdir()) == [header, voxels]
    assert scans(tmp_path) == {"scan": (tmp_path / header,)}
    assert scans(tmp_path / header, tmp_path / voxels) == {"scan": (tmp_path / header,)}


def test_linked_folders_are_followed_but_not_round_and_round(tmp_path: Path) -> None:
    save(tmp_path / "store" / "scan.nii.gz")
    (tmp_path / "input" / "case").mkdir(parents=True)
    (tmp_path / "input" / "case" / "images").symlink_to(tmp_path / "store")
    (tmp_path / "input" / "case" / "round").symlink_to(tmp_path / "input")
    assert scans(tmp_path / "input") == {"scan": (tmp_path / "input/case/images/scan.nii.gz",)}


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads folders whatever their permissions")
def test_a_folder_or_file_that_may_not_be_read(tmp_path: Path) -> None:
    path, closed = save(tmp_path / "scan.nii.gz"), save(tmp_path / "closed" / "scan.nii.gz").parent
    secret = save(tmp_path / "secret.nii.gz")
    secret.chmod(0)
    closed.chmod(0)
    try:
        result = found(tmp_path)
    finally:
        closed.chmod(0o700)
    assert [scan.image for scan in result.scans] == [(path,)]
    assert result.faults == {
        str(closed): f"{closed}: can't be read (Permission denied). Mend `input`.",
        str(secret): f"{secret}: can't be read (Permission denied). Copy it again, or mend its permissions.",
    }


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("img0001.nii.gz", "img0001"),
        ("IMG.NII.GZ", "IMG"),
        ("a.b.nrrd", "a.b"),
        ("scan.hdr.gz", "scan"),
        ("scan.bin", "scan.bin"),
        ("scan", "scan"),
        (".nii", ".nii"),
    ],
)
def test_names_without_endings(name: str, stem: str) -> None:
    assert without_endings(name) == stem


@pytest.mark.parametrize("implicit", [False, True])
def test_slices_without_the_preamble_are_one_fault(tmp_path: Path, implicit: bool) -> None:
    folder = tmp_path / "ct"
    for one in write_series(folder, phantom(), AXIAL):
        bare = pydicom.Dataset(dict(one.items()))
        pydicom.dcmwrite(
            one.filename, bare, implicit_vr=implicit, little_endian=True, enforce_file_format=False, overwrite=True
        )
    result = find_scans([str(tmp_path)], 1)
    assert result.faults == {
        str(
            folder
        ): f"{folder}: has 7 files, IM0000 first, that are DICOM without the preamble that its files begin with. "
        "Export the series again."
    }
    assert (result.scans, result.remarks) == ([], [])


def test_voxels_beside_a_header_are_no_dicom(tmp_path: Path) -> None:
    voxels = np.zeros((5, 6, 7), np.uint8)
    voxels.ravel()[0] = 2  # as the first element of a DICOM file without its preamble
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / "lab.mhd"))
    result = find_scans([str(tmp_path)], 1)
    assert [scan.name for scan in result.scans] == ["lab"]
    assert result.faults == {}


def test_a_path_that_the_system_refuses_is_a_fault() -> None:
    (fault,) = find_scans(["x" * 300], 1).faults.values()
    assert "x" * 300 in fault


def test_what_many_folders_have_in_common_is_said_once(tmp_path: Path) -> None:
    for number in range(5):
        write_series(tmp_path / "study" / str(number), phantom((4, 4, 1)), AXIAL, ImageType=["ORIGINAL", "LOCALIZER"])
    write_series(tmp_path / "study" / "ct", phantom(), AXIAL)
    assert find_scans([str(tmp_path)], 1).remarks == [f"{tmp_path}/study: 5 files in 5 folders left out, a localizer."]


def test_the_voxels_of_a_header_are_no_scan_of_their_own(tmp_path: Path) -> None:
    header = save_with_simpleitk(tmp_path / "scan.mhd")
    (tmp_path / "raw").mkdir()
    (tmp_path / "scan.raw").rename(tmp_path / "raw" / "voxels.img")
    header.write_text(header.read_text().replace("scan.raw", "raw/voxels.img"))
    result = find_scans([str(tmp_path)], 1)
    assert [scan.image for scan in result.scans] == [(header,)]
    assert (result.faults, result.remarks) == ({}, [])

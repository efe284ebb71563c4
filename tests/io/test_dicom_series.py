"""Series: held against SimpleITK, highdicom, pydicom's real files and hand-computed places."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, MRImageStorage, generate_uid

from tests.io.series import (
    AXIAL,
    LPS,
    oblique,
    only_series,
    phantom,
    read_tuple,
    save,
    sitk_affine,
    write_enhanced,
    write_series,
)
from tests.io.volumes import replace
from utils.io import dicom_series
from utils.io.dicom_series import Series, find_series
from utils.io.scan import is_dicom
from utils.system.errors import InputError

ROOT = Path(str(get_testdata_file("CT_small.dcm"))).parent


def test_every_voxel_lies_where_the_headers_put_it(tmp_path: Path) -> None:
    voxels = phantom()
    write_series(tmp_path, voxels, AXIAL)
    read, affine, datasets, remarks = read_tuple(only_series(tmp_path))
    assert read.dtype == np.int16
    np.testing.assert_array_equal(read, voxels)
    # by hand: RAS x falls by 0.7 mm a column from 90, y by 0.8 mm a row from 60, z rises by 2.5 mm a slice from -40
    np.testing.assert_allclose(affine, AXIAL, atol=1e-9)
    np.testing.assert_allclose([float(one.ImagePositionPatient[2]) for one in datasets], -40 + 2.5 * np.arange(7))
    assert not any("PixelData" in one for one in datasets)
    assert remarks == []


@pytest.mark.parametrize("affine", [AXIAL, oblique()], ids=["axial", "oblique"])
def test_simpleitk_reads_the_same(tmp_path: Path, affine: np.ndarray) -> None:
    voxels = phantom()
    write_series(tmp_path, voxels, affine)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    image = reader.Execute()
    read, ours, *_ = read_tuple(only_series(tmp_path))
    np.testing.assert_array_equal(read, sitk.GetArrayFromImage(image).transpose(2, 1, 0))
    np.testing.assert_allclose(ours, sitk_affine(image), atol=1e-6)
    np.testing.assert_array_equal(read, voxels)


def test_slices_that_descend_are_turned_round(tmp_path: Path) -> None:
    down = AXIAL @ [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 6], [0, 0, 0, 1]]  # the same grid from its other end
    write_series(tmp_path, phantom()[..., ::-1], down)
    read, affine, *_ = read_tuple(only_series(tmp_path))
    np.testing.assert_array_equal(read, phantom())
    np.testing.assert_allclose(affine, AXIAL, atol=1e-9)


def test_a_tilted_gantry_shears_the_grid(tmp_path: Path) -> None:
    tilted = oblique(tilt_mm=0.9)
    write_series(tmp_path, phantom(), tilted)
    read, affine, *_ = read_tuple(only_series(tmp_path))
    np.testing.assert_array_equal(read, phantom())
    np.testing.assert_allclose(affine, tilted, atol=1e-8)
    assert affine[:3, 1] @ affine[:3, 2] == pytest.approx(0.8 * 0.9)  # not perpendicular


def test_a_single_slice_is_as_thick_as_it_says(tmp_path: Path) -> None:
    write_series(tmp_path, phantom((12, 10, 1)), AXIAL, SliceThickness="4.5")
    assert read_tuple(only_series(tmp_path))[1][2, 2] == 4.5


def test_a_single_slice_falls_back_on_the_spacing(tmp_path: Path) -> None:
    write_series(tmp_path, phantom((12, 10, 1)), AXIAL, SliceThickness=None, SpacingBetweenSlices="3")
    assert read_tuple(only_series(tmp_path))[1][2, 2] == 3


def test_positions_rounded_to_tenths_are_even_enough(tmp_path: Path) -> None:
    for index, one in enumerate(write_series(tmp_path, phantom(), AXIAL)):
        one.ImagePositionPatient[2] = round(-40 + 0.625 * index, 1)  # gaps of 0.6 and 0.7
        save(one)
    assert read_tuple(only_series(tmp_path))[1][2, 2] == pytest.approx(0.625, abs=0.01)


def test_slope_and_intercept_are_each_slices_own(tmp_path: Path) -> None:
    written = write_series(tmp_path, phantom(), AXIAL)
    for index, one in enumerate(written):
        one.RescaleSlope, one.RescaleIntercept = 0.5 + index, index
        save(one)
    read, *_ = read_tuple(only_series(tmp_path))
    assert read.dtype == np.float32
    stored = phantom().astype(float) + 1024
    np.testing.assert_allclose(read, stored * (0.5 + np.arange(7)) + np.arange(7))


def test_values_beyond_int16_become_float32(tmp_path: Path) -> None:
    write_series(tmp_path, phantom(), AXIAL, PixelRepresentation=0, RescaleIntercept=32000)
    read, *_ = read_tuple(only_series(tmp_path))
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, phantom().astype(float) + 1024 + 32000)


def test_a_missing_slope_means_stored_values(tmp_path: Path) -> None:
    write_series(tmp_path, phantom(), AXIAL, RescaleSlope=None, RescaleIntercept=None)
    np.testing.assert_array_equal(read_tuple(only_series(tmp_path))[0], phantom() + 1024)


def test_monochrome1_keeps_its_values(tmp_path: Path) -> None:
    write_series(tmp_path, phantom(), AXIAL, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_tuple(only_series(tmp_path))[0], phantom())


def test_a_slice_that_is_there_twice_is_read_once(tmp_path: Path) -> None:
    written = write_series(tmp_path, phantom(), AXIAL)
    twin = copy.deepcopy(written[3])
    twin.SOPInstanceUID, twin.filename = generate_uid(), tmp_path / "copy"
    save(twin)
    read, affine, datasets, remarks = read_tuple(only_series(tmp_path))
    np.testing.assert_array_equal(read, phantom())
    np.testing.assert_allclose(affine, AXIAL, atol=1e-9)
    assert len(datasets) == 7
    assert remarks == [f"{tmp_path.name}: copy left out: another file holds the same slice."]


def change(index: int, **values: Any) -> Callable[[list[pydicom.Dataset]], None]:
    def do(written: list[pydicom.Dataset]) -> None:
        one = written[index]
        for keyword, value in values.items():
            if value is None:
                delattr(one, keyword)
            else:
                setattr(one, keyword, value)
        save(one)

    return do


def cut(share: float) -> Callable[[list[pydicom.Dataset]], None]:
    def do(written: list[pydicom.Dataset]) -> None:
        path = Path(written[3].filename)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return do


def remove(*indices: int) -> Callable[[list[pydicom.Dataset]], None]:
    def do(written: list[pydicom.Dataset]) -> None:
        for index in indices:
            Path(written[index].filename).unlink()

    return do


def second_phase(written: list[pydicom.Dataset]) -> None:
    twin = copy.deepcopy(written[3])
    twin.PixelData = bytes(len(twin.PixelData))
    twin.SOPInstanceUID, twin.filename = generate_uid(), Path(written[3].filename).parent / "phase2"
    save(twin)


def same_pixels_on_another_scale(written: list[pydicom.Dataset]) -> None:
    written[3].filename, name = Path(written[3].filename).parent / "phase2", written[3].filename
    change(3, RescaleIntercept=0)(written)
    written[3].filename = name


def same_pixels_beside(written: list[pydicom.Dataset]) -> None:
    written[3].filename, name = Path(written[3].filename).parent / "phase2", written[3].filename
    change(3, ImagePositionPatient=[-80, -60, -32.5])(written)
    written[3].filename = name


def shifted_aside(written: list[pydicom.Dataset]) -> None:
    written[3].ImagePositionPatient[0] += 5
    save(written[3])


def lone_slice_without_thickness(written: list[pydicom.Dataset]) -> None:
    remove(0, 1, 2, 4, 5, 6)(written)
    change(3, SliceThickness="0")(written)


EXPORT = "Export the series again from its source."
# what is done to a written series, and the exact error: {3} is the file of slice 3, {name} the series, * anything
FAULTS: dict[str, tuple[Callable[[list[pydicom.Dataset]], None], str]] = {
    "missing slice": (
        remove(4),
        "{name}: a slice is missing between -32.5 and -27.5 mm ({3} and {5}): the gap is 5 mm, elsewhere 2.5 mm. "
        "Copy the series again.",
    ),
    "uneven": (
        change(3, ImagePositionPatient=[-90, -60, -31.5]),
        "{name}: the slice at -31.5 mm ({3}) lies 1 mm beside an even grid (gaps of 1.5 … 3.5 mm). "
        "Resample it to even slices, and give it as NIfTI.",
    ),
    "shifted aside": (
        shifted_aside,
        "{name}: the slice at -32.5 mm ({3}) lies 5 mm beside an even grid (gaps of 2.5 … 2.5 mm). "
        "Resample it to even slices, and give it as NIfTI.",
    ),
    "phases": (
        second_phase,
        "{name}: {3} and phase2 lie at one place but differ: the series holds several volumes, such as phases or "
        "echoes. Split it into one series for each volume.",
    ),
    "another scale": (
        same_pixels_on_another_scale,
        "{name}: {3} and phase2 lie at one place but differ: the series holds several volumes, such as phases or "
        "echoes. Split it into one series for each volume.",
    ),
    "beside": (
        same_pixels_beside,
        "{name}: {3} and phase2 lie at one place but differ: the series holds several volumes, such as phases or "
        "echoes. Split it into one series for each volume.",
    ),
    "orientation": (
        change(3, ImageOrientationPatient=[0, 1, 0, 0, 0, -1]),
        "{folder}/{3}: its orientation is 0, 1, 0, 0, 0, -1, but that of {first} is 1, 0, 0, 0, 1, 0; both say that "
        "they are of one series. Put them into folders of their own, and give them different series.",
    ),
    "size": (
        change(3, Rows=5, Columns=24),
        "{folder}/{3}: its size is 24 × 5 pixels, but that of {first} is 12 × 10 pixels; both say that they are of one "
        "series. Put them into folders of their own, and give them different series.",
    ),
    "pixel spacing": (
        change(3, PixelSpacing=[0.9, 0.7]),
        "{folder}/{3}: its PixelSpacing is 0.9, 0.7 mm, but that of {first} is 0.8, 0.7 mm; both say that they are of "
        "one series. Put them into folders of their own, and give them different series.",
    ),
    "zero spacing": (
        change(3, PixelSpacing=[0.8, 0]),
        "{folder}/{3}: has PixelSpacing 0.8 × 0 mm. " + EXPORT,
    ),
    "negative spacing": (
        change(3, PixelSpacing=[-0.8, 0.7]),
        "{folder}/{3}: has PixelSpacing -0.8 × 0.7 mm. " + EXPORT,
    ),
    "no spacing": (
        change(3, PixelSpacing=None),
        "{folder}/{3}: has no usable PixelSpacing, so its place is unknown. " + EXPORT,
    ),
    "no position": (
        change(3, ImagePositionPatient=None),
        "{folder}/{3}: has no usable ImagePositionPatient, so its place is unknown. " + EXPORT,
    ),
    "no orientation": (
        change(3, ImageOrientationPatient=None),
        "{folder}/{3}: has no usable ImageOrientationPatient, so its place is unknown. " + EXPORT,
    ),
    "zero orientation": (
        change(3, ImageOrientationPatient=[0, 0, 0, 0, 0, 0]),
        "{folder}/{3}: the axes in ImageOrientationPatient aren't perpendicular unit ones. " + EXPORT,
    ),
    "zero slope": (
        change(3, RescaleSlope=0),
        "{folder}/{3}: has no usable RescaleSlope and RescaleIntercept. " + EXPORT,
    ),
    "colour": (
        change(3, SamplesPerPixel=3, PhotometricInterpretation="RGB"),
        "{folder}/{3}: has colour pixels (RGB), not one number each. Give a scan in shades of grey.",
    ),
    "lone slice": (
        lone_slice_without_thickness,
        "{folder}/{3}: is the only slice of {name}, and has no positive SliceThickness or SpacingBetweenSlices. "
        "Give the whole series.",
    ),
    "cut off": (
        cut(0.95),
        "{folder}/{3}: its pixels can't be decoded (*); the file may be cut off. Copy it again.",
    ),
    "no pixels": (
        change(3, PixelData=None),
        "{folder}/{3}: its pixels can't be decoded (*); the file may be cut off. Copy it again.",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_in_one_line(tmp_path: Path, fault: str, recwarn: pytest.WarningsRecorder) -> None:
    spoil, expected = FAULTS[fault]
    written = write_series(tmp_path / "scan", phantom(), AXIAL)
    spoil(written)
    recwarn.clear()
    series = only_series(tmp_path / "scan")
    with pytest.raises(InputError) as caught:
        read_tuple(series)
    names = [Path(one.filename).name for one in written]
    expected = expected.format(*names, folder=tmp_path / "scan", name="scan", first=series.files[0].name)
    start, _, end = expected.partition("*")
    message = str(caught.value)
    assert message == expected if not end else message.startswith(start) and message.endswith(end)
    assert "\n" not in message
    assert [str(one.message) for one in recwarn] == []


def test_a_file_cut_off_in_its_header_is_named(tmp_path: Path) -> None:
    written = write_series(tmp_path, phantom(), AXIAL)
    files = tuple(Path(one.filename) for one in written)
    files[3].write_bytes(files[3].read_bytes()[:150])
    with pytest.raises(InputError, match=f"^{files[3]}: "):
        read_tuple(Series("scan", files))


def test_series_are_told_apart_by_their_uid_and_named_by_folder_and_number(tmp_path: Path) -> None:
    write_series(tmp_path / "Ann" / "CT", phantom(), AXIAL, SeriesNumber=2)
    write_series(tmp_path / "Bob" / "CT", phantom(), AXIAL, SeriesNumber=2)
    for number in (3, 4, 4):
        for one in write_series(tmp_path / "staging", phantom((4, 4, 2)), AXIAL, SeriesNumber=number):
            one.filename = tmp_path / "mixed" / one.SOPInstanceUID
            Path(one.filename).parent.mkdir(exist_ok=True)
            save(one)
    series, remarks = find_series([*(tmp_path / "Ann").rglob("IM*"), *(tmp_path / "Bob").rglob("IM*")])
    assert ([one.name for one in series], remarks) == (["Ann_CT", "Bob_CT"], [])
    series, remarks = find_series(list((tmp_path / "mixed").iterdir()))
    assert ([one.name for one in series], remarks) == (["mixed_3", "mixed_4", "mixed_4_2"], [])
    assert [len(one.files) for one in series] == [2, 2, 2]


def test_what_is_no_volume_is_left_out_with_a_remark(tmp_path: Path) -> None:
    write_series(tmp_path / "scan", phantom((4, 4, 3)), AXIAL)
    write_series(tmp_path / "scout", phantom((4, 4, 1)), AXIAL, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_series(tmp_path / "shots", phantom((4, 4, 2)), AXIAL, SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    write_series(tmp_path / "report", phantom((4, 4, 1)), AXIAL, Rows=None, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11")
    (tmp_path / "notes.txt").write_text("hello")
    series, remarks = find_series(sorted(path for path in tmp_path.rglob("*") if path.is_file()))
    assert [(one.name, len(one.files)) for one in series] == [("scan", 3)]
    assert sorted(remarks) == [
        f"{tmp_path}/notes.txt: left out, its header can't be read (File is missing DICOM File Meta Information header "
        "or the 'DICM' prefix is missing from the header. Use force=True to force reading.).",
        f"{tmp_path}/report/IM0000: left out, no pixels in it (Basic Text SR Storage).",
        f"{tmp_path}/scout/IM0000: left out, a localizer.",
        f"{tmp_path}/shots: 2 files left out, not a CT, MR or PET image (Secondary Capture Image Storage).",
    ]


def test_dicom_is_told_by_its_content(tmp_path: Path) -> None:
    write_series(tmp_path, phantom((4, 4, 1)), AXIAL)
    (tmp_path / "empty.dcm").touch()
    assert is_dicom(tmp_path / "IM0000")
    assert not is_dicom(tmp_path / "empty.dcm")


def test_a_real_ct_slice_against_simpleitk() -> None:
    path = ROOT / "CT_small.dcm"
    (series,), _ = find_series([path])
    voxels, affine, *_ = read_tuple(series)
    image = sitk.ReadImage(path)
    np.testing.assert_array_equal(voxels, sitk.GetArrayFromImage(image).transpose(2, 1, 0))
    np.testing.assert_allclose(affine, sitk_affine(image), atol=1e-6)
    assert affine[2, 2] == 5.0  # its SliceThickness


@pytest.mark.parametrize("name", ["RLE", "jpeg_ls_lossless", "jp2klossless", "implicit", "bigendian"])
def test_compressed_slices_hold_the_same_voxels(name: str) -> None:
    plain, affine, *_ = read_tuple(Series("plain", (ROOT / "MR_small.dcm",)))
    voxels, other_affine, *_ = read_tuple(Series(name, (ROOT / f"MR_small_{name}.dcm",)))
    assert plain.std() > 0
    np.testing.assert_array_equal(voxels, plain)
    np.testing.assert_array_equal(other_affine, affine)


def test_a_real_slice_with_bytes_to_spare(recwarn: pytest.WarningsRecorder) -> None:
    plain, *_ = read_tuple(Series("plain", (ROOT / "MR_small.dcm",)))
    np.testing.assert_array_equal(read_tuple(Series("padded", (ROOT / "MR_small_padded.dcm",)))[0], plain)
    assert [str(one.message) for one in recwarn] == []


def test_a_real_truncated_slice() -> None:
    with pytest.raises(InputError, match=r"MR_truncated\.dcm: its pixels can't be decoded .*Copy it again\.$"):
        read_tuple(Series("MR", (ROOT / "MR_truncated.dcm",)))


def test_a_real_cd() -> None:
    """Three patients' studies on one medium, with scouts, projections and slices picked from longer series."""
    files = [path for path in (ROOT / "dicomdirtests").rglob("*") if path.is_file() and is_dicom(path)]
    series, remarks = find_series(files)
    named = {one.name: one for one in series}
    assert len(named) == len(series)
    assert "98892001_CT2N" not in named
    assert sum("localizer" in remark for remark in remarks) == 1
    assert sum("Media Storage Directory" in remark for remark in remarks) == 2

    good = named["CT5N"]
    voxels, affine, *_ = read_tuple(good)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(ROOT / "dicomdirtests" / "98892001" / "CT5N")))
    image = reader.Execute()
    np.testing.assert_array_equal(voxels, sitk.GetArrayFromImage(image).transpose(2, 1, 0))
    np.testing.assert_allclose(affine, sitk_affine(image), atol=1e-6)
    assert voxels.shape == (16, 16, 5)
    with pytest.raises(InputError, match=r"CT2: a slice is missing between -99\.48 and 103\.02 mm \(17106 and 17136\)"):
        read_tuple(named["CT2"])
    with pytest.raises(InputError, match=r"its orientation is .* but that of 4467 is"):
        read_tuple(named["MR700"])


def test_a_multi_frame_file_reads_like_its_slices(tmp_path: Path) -> None:
    write_enhanced(tmp_path, phantom(), oblique())
    (series,), _ = find_series([tmp_path / "enhanced.dcm"])
    voxels, affine, datasets, _ = read_tuple(series)
    np.testing.assert_array_equal(voxels, phantom())
    np.testing.assert_allclose(affine, oblique(), atol=1e-8)
    assert len(datasets) == 1
    volume = hd.imread(tmp_path / "enhanced.dcm").get_volume(dtype=np.float64)
    place = np.linalg.inv(LPS @ affine) @ volume.affine @ [*np.argwhere(volume.array == phantom()[3, 4, 5])[0], 1]
    np.testing.assert_allclose(place[:3], [3, 4, 5], atol=1e-4)


def test_a_part_of_a_concatenation(tmp_path: Path) -> None:
    written = write_enhanced(tmp_path, phantom(), AXIAL)
    written.ConcatenationUID, written.InConcatenationNumber, written.InConcatenationTotalNumber = generate_uid(), 1, 2
    save(written)
    words = rf"^{written.filename}: is one of 2 files that make up one volume \(a concatenation\), .* as one file\.$"
    with pytest.raises(InputError, match=words):
        read_tuple(Series("scan", (tmp_path / "enhanced.dcm",)))
    written.InConcatenationTotalNumber = 1
    save(written)
    np.testing.assert_array_equal(read_tuple(Series("scan", (tmp_path / "enhanced.dcm",)))[0], phantom())


def test_one_slice_of_a_series_is_noted(tmp_path: Path) -> None:
    path = Path(write_series(tmp_path, phantom(), AXIAL)[3].filename)
    remark = f"{path}: is one slice, and taken as a whole scan. If its series has more, give their folder."
    assert read_tuple(Series("scan", (path,)))[3] == [remark]
    write_enhanced(tmp_path / "whole", phantom((12, 10, 1)), AXIAL)
    assert read_tuple(Series("scan", (tmp_path / "whole" / "enhanced.dcm",)))[3] == []


def test_a_multi_frame_file_among_slices(tmp_path: Path) -> None:
    write_enhanced(tmp_path, phantom(), AXIAL)
    with pytest.raises(InputError, match="scan: has 2 files, of which at least one is multi-frame"):
        read_tuple(Series("scan", (tmp_path / "enhanced.dcm", tmp_path / "slices" / "IM0000")))


def test_frames_without_places(tmp_path: Path) -> None:
    written = write_enhanced(tmp_path, phantom(), AXIAL)
    del written.PerFrameFunctionalGroupsSequence
    save(written)
    with pytest.raises(InputError, match=r"enhanced\.dcm: has 7 frames, but doesn't say where each lies\. Convert it"):
        read_tuple(Series("scan", (tmp_path / "enhanced.dcm",)))


# ---- files that are cut off, wherever they lie in the series


@pytest.mark.parametrize("size", [140, 300, 420, 700, 900, -300])
@pytest.mark.parametrize("place", [0, 3, 6])
def test_a_slice_that_is_cut_off_is_never_left_out(tmp_path: Path, place: int, size: int) -> None:
    """Of seven slices the first, the middle one or the last; a series without it would look whole at its ends."""
    written = write_series(tmp_path, phantom(), AXIAL)
    path = Path(written[place].filename)
    path.write_bytes(path.read_bytes()[:size])
    series, remarks = find_series(sorted(tmp_path.iterdir()))
    assert (len(series), remarks) == (1, [])
    assert len(series[0].files) == 7
    with pytest.raises(InputError, match=f"^{path}: .*(is cut off or damaged|can't be read|may be cut off)"):
        read_tuple(series[0])


def test_a_cut_off_slice_spoils_its_own_series_alone(tmp_path: Path) -> None:
    """It still says which one it is of."""
    sound, broken = (write_series(tmp_path / name, phantom(), AXIAL) for name in ("sound", "broken"))
    for one in [*sound, *broken]:
        path = Path(one.filename)
        path.rename(tmp_path / f"{path.parent.name}{path.name}")
    cut_off = tmp_path / f"broken{Path(broken[0].filename).name}"
    header = cut_off.read_bytes()
    uid = str(broken[0].SeriesInstanceUID).encode()
    cut_off.write_bytes(header[: header.index(uid) + len(uid) + len(uid) % 2 + 8])
    series, _ = find_series([path for path in tmp_path.iterdir() if path.is_file()])
    spoilt, whole = sorted(series, key=lambda found: cut_off not in found.files)
    assert read_tuple(whole)[0].shape == (12, 10, 7)
    with pytest.raises(InputError, match=f"^{cut_off}: is cut off or damaged: it ends before its header does"):
        read_tuple(spoilt)


def test_a_damaged_file_that_names_no_series_spoils_those_of_its_folder(tmp_path: Path) -> None:
    write_series(tmp_path / "a", phantom(), AXIAL)
    write_series(tmp_path / "b", phantom(), AXIAL)
    (tmp_path / "b" / "IM9999").write_bytes(bytes(128) + b"DICM" + b"\2\0\0\0UL\4\0\xc8\0\0\0")
    series, _ = find_series([path for folder in ("a", "b") for path in (tmp_path / folder).iterdir()])
    assert read_tuple(series[0])[0].shape == (12, 10, 7)
    with pytest.raises(InputError, match=f"^{tmp_path}/b/IM9999: is cut off or damaged"):
        read_tuple(series[1])


# ---- deflated, mosaics, and frames that disagree


def deflated(folder: Path) -> None:
    for one in write_series(folder, phantom(), AXIAL):
        one.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        save(one)


def test_a_deflated_series_holds_the_same_voxels(tmp_path: Path) -> None:
    deflated(tmp_path)
    voxels, affine, _, _ = read_tuple(only_series(tmp_path))
    np.testing.assert_array_equal(voxels, phantom())
    np.testing.assert_allclose(affine, AXIAL, atol=1e-8)


def test_a_deflated_file_that_unpacks_to_more_than_there_is_memory_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deflated(tmp_path)
    series = only_series(tmp_path)
    monkeypatch.setattr(dicom_series, "available_memory", lambda: 1000)
    with pytest.raises(InputError, match="says that its voxels take"):
        read_tuple(series)


@pytest.mark.parametrize(("slope", "size"), [(1, 2), (0.5, 4)])
def test_a_series_that_takes_more_than_there_is_memory_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slope: float, size: int
) -> None:
    """It has 12 × 10 × 7 voxels, in int16 or float32."""
    write_series(tmp_path, phantom(), AXIAL, RescaleSlope=slope)
    series = only_series(tmp_path)
    needed = 2 * 12 * 10 * 7 * size
    monkeypatch.setattr(dicom_series, "available_memory", lambda: needed)
    assert read_tuple(series)[0].dtype.itemsize == size
    monkeypatch.setattr(dicom_series, "available_memory", lambda: needed - 1)
    with pytest.raises(InputError, match=f"^{series.name}: says that its voxels take"):
        read_tuple(series)


@pytest.mark.parametrize(
    ("uid", "name"),
    [
        ("1.2.840.10008.1.2.4.92", "JPEG 2000 Part 2 Multi-component"),
        ("1.2.840.99999.1.2.4.92", "1.2.840.99999.1.2.4.92"),
    ],
)
def test_pixels_that_no_decoder_reads(tmp_path: Path, uid: str, name: str) -> None:
    (one,) = write_series(tmp_path, phantom((12, 10, 1)), AXIAL)
    one.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.92")
    one.PixelData = encapsulate([bytes(100)])
    one["PixelData"].is_undefined_length = True
    save(one)
    replace(Path(one.filename), b"1.2.840.10008.1.2.4.92", uid.encode())
    words = rf"^{one.filename}: is packed as {name}.*, which isn't read\. Unpack it, e\.g\. by gdcmconv -w, or"
    with pytest.raises(InputError, match=words):
        read_tuple(only_series(tmp_path))


@pytest.mark.parametrize("known_by", ["ImageType", "Siemens' elements", "UIH's elements", "UIH's elements as bytes"])
def test_a_mosaic_is_refused_with_what_to_do(tmp_path: Path, known_by: str) -> None:
    (one,) = write_series(tmp_path, phantom((12, 10, 1)), AXIAL)
    if known_by == "ImageType":
        one.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
    elif known_by == "Siemens' elements":
        one.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", 4)
    else:
        kind, value = ("UN", b"25") if known_by.endswith("bytes") else ("DS", "25")
        one.private_block(0x0065, "Image Private Header", create=True).add_new(0x50, kind, value)
    save(one)
    with pytest.raises(InputError, match=r"is a mosaic, .* Convert it to NIfTI with dcm2niix\."):
        read_tuple(only_series(tmp_path))


@pytest.mark.parametrize(("kind", "value"), [("DS", "1"), ("UN", b"1 "), ("LO", "many")])
def test_a_picture_of_one_tile_is_a_slice(tmp_path: Path, kind: str, value: str | bytes) -> None:
    (one,) = write_series(tmp_path, phantom((12, 10, 1)), AXIAL)
    one.private_block(0x0065, "Image Private Header", create=True).add_new(0x50, kind, value)
    save(one)
    assert read_tuple(only_series(tmp_path))[0].shape == (12, 10, 1)


@pytest.mark.parametrize(
    ("frames", "groups", "pixels", "words"),
    [
        (7, 5, 7, "has 7 frames, but places 5"),
        (5, 7, 5, "has 5 frames, but places 7"),
        (5, 5, 7, "has the pixels of 7 frames, but its header places 5"),
        (7, 7, 5, "the number of bytes of pixel data is less than expected"),
        (None, 7, 7, "has None frames, but places 7"),
    ],
)
def test_frames_that_disagree(tmp_path: Path, frames: int | None, groups: int, pixels: int, words: str) -> None:
    """In one real case 5 of 35 slices vanished from the mask without a word."""
    one = write_enhanced(tmp_path, phantom(), AXIAL)
    one.NumberOfFrames = frames
    one.PerFrameFunctionalGroupsSequence = one.PerFrameFunctionalGroupsSequence[:groups]
    one.PixelData = one.PixelData[: pixels * 12 * 10 * 2]
    save(one)
    with pytest.raises(InputError) as error:
        read_tuple(Series("scan", (tmp_path / "enhanced.dcm",)))
    assert words in str(error.value).replace("The number", "the number")


def test_a_slice_without_a_sound_series_uid_stays_with_its_folder(tmp_path: Path) -> None:
    written = write_series(tmp_path, phantom(), AXIAL)
    with pydicom.config.disable_value_validation():
        written[0].SeriesInstanceUID = "MONOCHROME1"
        save(written[0])
    voxels, _, _, _ = read_tuple(only_series(tmp_path))
    np.testing.assert_array_equal(voxels, phantom())


def test_a_slice_that_says_it_is_of_another_series_is_noted(tmp_path: Path) -> None:
    written = write_series(tmp_path, phantom(), AXIAL)
    written[6].SeriesInstanceUID = generate_uid()
    save(written[6])
    series, remarks = find_series(sorted(tmp_path.iterdir()))
    assert sorted(len(one.files) for one in series) == [1, 6]
    path = written[6].filename
    assert remarks == [f"{path}: is a series of its own by its SeriesInstanceUID, and taken as a scan of a slice."]


def test_slices_of_two_patients_or_kinds_are_no_scan(tmp_path: Path) -> None:
    for number, (keyword, value, words) in enumerate(
        [("PatientID", "another", "of another patient"), ("SOPClassUID", MRImageStorage, "another kind of image")]
    ):
        written = write_series(tmp_path / str(number), phantom(), AXIAL)
        setattr(written[2], keyword, value)
        save(written[2])
        with pytest.raises(InputError, match=f"is {words} than .*; both say that they are of one series"):
            read_tuple(only_series(tmp_path / str(number)))


def test_slices_of_two_echoes_are_noted(tmp_path: Path) -> None:
    written = write_series(tmp_path, phantom(), AXIAL, EchoTime=10)
    written[2].EchoTime = 20
    save(written[2])
    (remark,) = read_tuple(only_series(tmp_path))[3]
    assert "has slices with different values of EchoTime" in remark


def test_values_that_only_a_table_or_other_bits_tell_are_refused(tmp_path: Path) -> None:
    (one,) = write_series(tmp_path, phantom((12, 10, 1)), AXIAL)
    one.ModalityLUTSequence = [pydicom.Dataset()]
    save(one)
    with pytest.raises(InputError, match="tells its values by a table"):
        read_tuple(only_series(tmp_path))
    del one.ModalityLUTSequence
    one.BitsStored, one.HighBit = 12, 15
    save(one)
    with pytest.raises(InputError, match="has HighBit 15 for 12 bits"):
        read_tuple(only_series(tmp_path))


def test_series_whose_identifiers_break_the_standard_stay_apart(tmp_path: Path) -> None:
    """Some programs make components from times, with leading zeros."""
    write_series(tmp_path, phantom(), AXIAL, SeriesInstanceUID=generate_uid())
    for path in list(tmp_path.iterdir()):
        path.rename(path.with_name(f"other{path.name}"))
    with pydicom.config.disable_value_validation():
        write_series(tmp_path, phantom() + 5, AXIAL, SeriesInstanceUID="1.2.840.01.5.7")
    series, remarks = find_series(sorted(tmp_path.iterdir()))
    assert remarks == []
    assert sorted(int(read_tuple(one)[0].min()) for one in series) == [phantom().min(), phantom().min() + 5]


def test_a_multi_frame_file_beside_a_series_is_no_scan_of_a_slice(tmp_path: Path) -> None:
    write_series(tmp_path, phantom(), AXIAL)
    enhanced = write_enhanced(tmp_path / "whole", phantom(), AXIAL)
    Path(enhanced.filename).rename(tmp_path / "enhanced.dcm")
    series, remarks = find_series([path for path in tmp_path.iterdir() if path.is_file()])
    assert sorted(len(one.files) for one in series) == [1, 7]
    assert remarks == []

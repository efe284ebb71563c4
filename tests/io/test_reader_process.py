"""Readers may crash, hang or take all memory: that costs the file that they read."""

import signal
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file

from tests.io.volumes import assert_fault, assert_is_the_phantom, read, save_with_simpleitk, text
from utils.io import reader_process
from utils.io.find_scans import find_scans
from utils.io.reader import read_scan
from utils.io.reader_process import ask_itk_kind
from utils.system.errors import InputError

pytestmark = pytest.mark.usefixtures("nothing_beside")

META = "ObjectType = Image\nNDims = {dims}\nDimSize = 5 5 3\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n"


def test_a_crash_costs_the_file_and_the_next_one_is_read(tmp_path: Path) -> None:
    """SimpleITK 2.5 dies by SIGSEGV on such a header."""
    path = text(tmp_path, "crash.mha", META.format(dims=1_000_000).encode() + bytes(75))
    with pytest.raises(InputError, match=r"crash\.mha: can't be read") as error:
        read(path)
    assert "\n" not in str(error.value)
    assert_is_the_phantom(read(save_with_simpleitk(tmp_path / "scan.mha")))


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT])
def test_the_signal_that_ended_it_is_named(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = tmp_path / "dying.py"
    dying.write_text(f"import os, sys\nsys.stdin.buffer.readline()\nos.kill(os.getpid(), {int(number)})\n")
    monkeypatch.setattr(reader_process, "PROGRAM", dying)
    monkeypatch.setattr(reader_process, "_idle", [])
    with pytest.raises(InputError, match=rf"scan\.mha: can't be read: its reader crashed \({number.name}\)"):
        ask_itk_kind(text(tmp_path, "scan.mha"))


def test_a_file_that_is_never_done_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = tmp_path / "hanging.py"
    hanging.write_text(
        "import json, signal, sys, time\nrequest = json.loads(sys.stdin.buffer.readline())\n"
        "signal.alarm(request['seconds'])\ntime.sleep(60)\n"
    )
    monkeypatch.setattr(reader_process, "PROGRAM", hanging)
    monkeypatch.setattr(reader_process, "READ_SECONDS", 1)
    monkeypatch.setattr(reader_process, "_idle", [])
    with pytest.raises(InputError, match=r"its reader didn't come to an end"):
        ask_itk_kind(text(tmp_path, "scan.mha"))


def test_the_process_is_used_again(tmp_path: Path) -> None:
    path = save_with_simpleitk(tmp_path / "scan.nrrd")
    read(path)
    before = [child.process.pid for child in reader_process._idle]
    read(path)
    assert [child.process.pid for child in reader_process._idle] == before


def test_formats_whose_files_can_name_others_are_not_opened(tmp_path: Path) -> None:
    for name, kind in (("scan.hdf5", "HDF5"), ("scan.mnc", "MINC")):
        assert_fault(save_with_simpleitk(tmp_path / name), f"is {kind}, whose files can name others to be read")


def test_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    path = save_with_simpleitk(tmp_path / "scan.mha").rename(tmp_path / "sc\udcffan.mha")
    assert_fault(path, "has a name that isn't UTF-8, which SimpleITK can't open. Rename it.")


def test_a_folder_whose_name_is_not_utf_8(tmp_path: Path) -> None:
    folder = tmp_path / "fold\udcffer"
    folder.mkdir()
    assert_is_the_phantom(read(save_with_simpleitk(tmp_path / "scan.mha").rename(folder / "scan.mha")))


@pytest.mark.parametrize("name", ["jpeg_ls_lossless", "jp2klossless"])
def test_a_decoder_of_dicom_that_crashes_costs_the_series(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GDCM's decoders abort on some damaged streams: 11 of 7,350."""
    ending = {"jpeg_ls_lossless": "MR_small_jpeg_ls_lossless.dcm", "jp2klossless": "MR_small_jp2klossless.dcm"}[name]
    path = tmp_path / "slice.dcm"
    path.write_bytes(Path(str(get_testdata_file(ending))).read_bytes())
    (scan,) = find_scans([str(tmp_path)], 1).scans
    assert read_scan(scan).shape == (64, 64, 1)
    dying = tmp_path / "dying.py"
    dying.write_text("import os, sys\nsys.stdin.buffer.readline()\nos.abort()\n")
    monkeypatch.setattr(reader_process, "PROGRAM", dying)
    monkeypatch.setattr(reader_process, "_idle", [])
    with pytest.raises(InputError, match=r"slice\.dcm: can't be read: its reader crashed \(SIGABRT\)"):
        read_scan(scan)

"""A header's voxels are read from regular files below its folder, and from nothing else."""

import gzip
import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.io.volumes import CUT, VOXELS, assert_fault, assert_is_the_phantom, read, save_with_simpleitk
from utils.io.reader import scan_files
from utils.io.scan import Scan

pytestmark = pytest.mark.usefixtures("nothing_beside")

Plant = Callable[[Path], str]  # makes a file in a header's folder, and returns the name that the header gives it


def named(folder: Path, ending: str, name: str) -> Path:
    """A detached header whose voxels have this name."""
    path = save_with_simpleitk(folder / f"scan{ending}")
    content = path.read_bytes()
    old = b"scan.raw"
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, name.encode()))
    return path


def move(folder: Path, place: str) -> str:
    (folder / place).parent.mkdir(exist_ok=True)
    (folder / "scan.raw").rename(folder / place)
    return place


@pytest.mark.parametrize("ending", [".mhd", ".nhdr"])
@pytest.mark.parametrize("place", ["raw/m.raw", "./raw/m.raw", "other name.raw"])
def test_voxels_below_the_header_s_folder_are_read(tmp_path: Path, ending: str, place: str) -> None:
    path = named(tmp_path, ending, place)
    move(tmp_path, place)
    assert_is_the_phantom(read(path))


@pytest.mark.parametrize("ending", [".mhd", ".nhdr"])
def test_the_files_that_a_header_names_count_as_the_scan_s(tmp_path: Path, ending: str) -> None:
    """So that a change of the voxels is noticed."""
    path = named(tmp_path, ending, "raw/m.raw")
    move(tmp_path, "raw/m.raw")
    assert scan_files(Scan("scan", (path,), None)) == [path, tmp_path / "raw" / "m.raw"]


@pytest.mark.parametrize(("ending", "key"), [(".mhd", b"ElementDataFile = "), (".nhdr", b"data file: ")])
@pytest.mark.parametrize(
    "listed", [b"slice%03d.raw 1 4 1", b"LIST\nslice001.raw\nslice002.raw\nslice003.raw\nslice004.raw"]
)
def test_a_file_for_each_slice(tmp_path: Path, ending: str, key: bytes, listed: bytes) -> None:
    path = save_with_simpleitk(tmp_path / f"scan{ending}")
    for number in range(4):
        (tmp_path / f"slice{number + 1:03d}.raw").write_bytes(VOXELS[..., number].T.astype("<i2").tobytes())
    (tmp_path / "scan.raw").unlink()
    path.write_bytes(path.read_bytes().replace(key + b"scan.raw", key + listed).rstrip() + b"\n")
    assert_is_the_phantom(read(path))


def pipe(folder: Path) -> str:
    os.mkfifo(folder / "pipe.raw")
    return "pipe.raw"


def a_socket(folder: Path) -> str:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(folder / "s.raw"))
    return "s.raw"


def link_out(folder: Path) -> str:
    (folder / "link.raw").symlink_to("/etc/passwd")
    return "link.raw"


def linked_folder(folder: Path) -> str:
    (folder / "inside").symlink_to("/etc")
    return "inside/passwd"


def victim(folder: Path) -> str:
    (folder.parent / "victim.raw").write_bytes(bytes(1000))
    return f"../{folder.name}/../victim.raw"


def literally(name: str) -> Plant:
    return lambda folder: name


OUTSIDE, PIPE, PATTERN = "isn't below the header's folder", "is a pipe, a socket or a device", "is no pattern such as"
PLANTED: dict[str, tuple[Plant, str]] = {
    "/etc/passwd": (literally("/etc/passwd"), OUTSIDE),
    "a device": (literally("/dev/zero"), OUTSIDE),
    "a file above": (victim, OUTSIDE),
    "a link out": (link_out, OUTSIDE),
    "a linked folder": (linked_folder, OUTSIDE),
    "a pipe": (pipe, PIPE),
    "a socket": (a_socket, PIPE),
    "a folder": (literally("."), "Is a directory"),
    "format strings": (literally("/dev/%s%n%d 1 3 1"), PATTERN),
    "a format string alone": (literally("%n%n%n%s"), PATTERN),
    "a pattern without end": (literally("scan%03d.raw 1 999999999 1"), PATTERN),
    "a pattern with a step of 0": (literally("scan%03d.raw 1 3 0"), PATTERN),
    "a pattern of wide numbers": (literally("scan%999999999d.raw 1 3 1"), PATTERN),
    "a pattern that leads out": (literally("../../../../../../etc/passwd%d 1 3 1"), OUTSIDE),
    "nothing there": (literally("nothing.raw"), "No such file"),
    "a name that is too long": (literally("m" * 300), "File name too long"),
}


@pytest.mark.parametrize("ending", [".mhd", ".nhdr"])
@pytest.mark.parametrize("what", PLANTED)
def test_other_files_are_not_opened(tmp_path: Path, ending: str, what: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    plant, words = PLANTED[what]
    assert_one_line(named(folder, ending, plant(folder)), words)


def assert_one_line(path: Path, words: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        read(path)
    text = str(error.value)
    assert words in text
    assert text.startswith(f"{path}: ")
    assert "\n" not in text


@pytest.mark.parametrize("ending", [".mhd", ".nhdr"])
def test_a_list_of_files_that_leads_out(tmp_path: Path, ending: str) -> None:
    key = b"ElementDataFile = " if ending == ".mhd" else b"data file: "
    path = save_with_simpleitk(tmp_path / f"scan{ending}")
    path.write_bytes(path.read_bytes().replace(key + b"scan.raw", key + b"LIST\nscan.raw\n/etc/passwd\n"))
    assert_one_line(path, OUTSIDE)


# ---- streams that hold more or less than the header says


def packed_nrrd(folder: Path, voxels: bytes) -> Path:
    header = "NRRD0004\ntype: uint8\ndimension: 3\nspace: right-anterior-superior\nsizes: 4 3 2\n"
    header += "space directions: (1,0,0) (0,1,0) (0,0,1)\nencoding: gzip\nspace origin: (0,0,0)\n\n"
    (folder / "scan.nrrd").write_bytes(header.encode() + gzip.compress(voxels))
    return folder / "scan.nrrd"


def test_a_packed_nrrd(tmp_path: Path) -> None:
    volume = read(packed_nrrd(tmp_path, bytes(range(24))))
    np.testing.assert_array_equal(volume.voxels[0], np.arange(24).reshape(2, 3, 4).T)


@pytest.mark.parametrize(
    ("size", "words"),
    [(23, f"{CUT} (23 of 24 bytes of its voxels are there)"), (25, "holds more than the 24 bytes"),
     (100_000_000, "holds more than the 24 bytes")],
)  # fmt: skip
def test_a_packed_nrrd_with_more_or_less(tmp_path: Path, size: int, words: str) -> None:
    assert_fault(packed_nrrd(tmp_path, bytes(size)), words)


def test_a_header_that_says_more_than_the_memory_holds(tmp_path: Path) -> None:
    path = packed_nrrd(tmp_path, bytes(24))
    path.write_bytes(path.read_bytes().replace(b"sizes: 4 3 2", b"sizes: 400000 30000 20"))
    assert_fault(path, f"{CUT} (24 of 240000000000 bytes of its voxels are there)")
    path.write_bytes(path.read_bytes().replace(b"encoding: gzip", b"encoding: raw"))
    assert_fault(path, "says that its voxels take 240 GB, and this machine has")


def test_a_long_header(tmp_path: Path) -> None:
    """As 3D Slicer writes it for many segments."""
    path = packed_nrrd(tmp_path, bytes(range(24)))
    segments = b"".join(b"Segment%d_Tags:=%s\n" % (number, b"x" * 480) for number in range(200))
    path.write_bytes(path.read_bytes().replace(b"space origin", segments + b"space origin", 1))
    np.testing.assert_array_equal(read(path).voxels[0], np.arange(24).reshape(2, 3, 4).T)

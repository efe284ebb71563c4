"""The files that a header names for its voxels.

A header may come from a stranger. Only regular files below its own folder are read, whatever it names: not
``/etc/passwd``, and no pipe that would wait for its writer for ever.
"""

import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from utils.system.errors import InputError
from utils.system.files import PIPE, PipeError, open_regular, require_regular
from utils.system.text import shortened

LONGEST_HEADER = 1 << 22  # bytes that a text header is searched in; 3D Slicer writes 500 for each segment
MOST_FILES = 100_000  # one for each slice
META_NAME = re.compile(rb"^[ \t]*ElementDataFile[ \t]*[=:][ \t]*(?P<name>[^\r\n]*?)[ \t]*\r?(?:\n|\Z)", re.MULTILINE)
NRRD_NAME = re.compile(rb"^[ \t]*data ?file[ \t]*:(?!=)[ \t]*(?P<name>[^\r\n]*?)[ \t]*\r?(?:\n|\Z)", re.M | re.I)
# scan%03d.raw 1 40 1; a fourth number is of NRRD alone, and says how many axes a file has
PATTERN = re.compile(
    r"(?P<pattern>[^%]*%0?\d{0,2}d[^%]*?)\s+(?P<first>-?\d{1,9})\s+(?P<last>-?\d{1,9})(\s+(?P<step>-?\d{1,9})(\s+\d)?)?"
)


@dataclass(frozen=True)
class VoxelFiles:
    """Where the voxels of a header are.

    Attributes:
        header: the bytes of the header.
        files: those that it names; none if the voxels follow the header.
        start: where they begin if they follow.
    """

    header: bytes
    files: tuple[Path, ...]
    start: int


def meta_image_files(path: Path) -> VoxelFiles:
    """The voxels of a MetaImage.

    Raises:
        InputError: if it names none, or one that must not be read.
        OSError: if a file isn't there or can't be read.
    """
    head = _head(path)
    found = META_NAME.search(head)
    if found is None or not found["name"]:
        raise InputError(f"{path}: is cut off or damaged (its header names no ElementDataFile). Copy it again.")
    header = head[: found.end()]
    if found["name"].upper() == b"LOCAL":
        return VoxelFiles(header, (), found.end())
    return VoxelFiles(header, _named(path, found["name"], head[found.end() :]), 0)


def nrrd_files(path: Path) -> VoxelFiles:
    """The voxels of an NRRD.

    Raises:
        InputError: if it names a file that must not be read.
        OSError: if a file isn't there or can't be read.
    """
    head = _head(path)
    end = re.search(rb"\r?\n\r?\n", head)  # an empty line is between header and voxels
    header = head if end is None else head[: end.end()]
    names = list(NRRD_NAME.finditer(header))
    if not names:
        return VoxelFiles(header, (), len(header))
    if len(names) > 1:
        raise InputError(f"{path}: names the file of its voxels twice. Mend its header.")
    return VoxelFiles(header, _named(path, names[0]["name"], head[names[0].end() :]), 0)


def require_below(path: Path, file: Path) -> None:
    """Check that the file of a header's voxels is a regular one below the header's folder, links followed.

    Raises:
        InputError: if it isn't.
        OSError: if it isn't there.
    """
    folders = {os.path.realpath(path.parent), os.path.dirname(os.path.realpath(path))}
    if not any(Path(os.path.realpath(file)).is_relative_to(folder) for folder in folders):
        raise InputError(
            f"{path}: names {shortened(str(file))} for its voxels, which isn't below the header's folder. Put it "
            "there, and mend the header."
        )
    try:
        require_regular(file)
    except PipeError as error:
        raise InputError(
            f"{path}: names {shortened(str(file))} for its voxels, which {PIPE}. Mend its header."
        ) from error


def stream_sizes(path: Path, start: int, most: int) -> tuple[int, int]:
    """How many bytes a gzip or zlib stream holds, and how many it has in the file; neither is kept.

    Args:
        start: where in the file it begins.
        most: bytes that it should hold; counting stops at more.

    Raises:
        EOFError, zlib.error: if it is cut off or damaged.
    """
    size = packed_size = 0
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip or zlib, as its first bytes tell
    with open_regular(path) as file:
        file.seek(start)
        while not unpacker.eof and (packed := file.read(1 << 16)):
            packed_size += len(packed)
            while packed and size <= most and not unpacker.eof:
                size += len(unpacker.decompress(packed, 1 << 20))
                packed = unpacker.unconsumed_tail
            if size > most:
                return size, packed_size
    if not unpacker.eof:
        raise EOFError("Compressed file ended before the end-of-stream marker was reached")
    return size, packed_size - len(unpacker.unused_data)


def _head(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read(LONGEST_HEADER)


def _named(path: Path, name: bytes, behind: bytes) -> tuple[Path, ...]:
    """The files of a name, a list of names or a pattern of names, each checked."""
    words = name.split()
    if words[:1] and words[0].upper() == b"LIST":
        names = [line.strip().decode(errors="surrogateescape") for line in behind.splitlines() if line.strip()]
    else:
        names = list(_expanded(path, name.decode(errors="surrogateescape")))
    files = tuple(path.parent / name for name in names)
    if not files or any("\0" in name for name in names):
        raise InputError(f"{path}: names no file for its voxels. Mend its header.")
    for file in files:
        require_below(path, file)
    return files


def _expanded(path: Path, name: str) -> Iterator[str]:
    """The names that one stands for: ``scan%03d.raw 1 40 1`` for scan001.raw … scan040.raw."""
    if "%" not in name:
        yield name
        return
    found = PATTERN.fullmatch(name)
    first, last, step = (int(found[part] or 1) for part in ("first", "last", "step")) if found else (0, 0, 0)
    counted = range(first, last + (1 if step > 0 else -1), step) if step else range(0)
    if found is None or not 0 < len(counted) <= MOST_FILES:
        raise InputError(
            f"{path}: names {shortened(name)!r} for its voxels, which is no pattern such as scan%03d.raw 1 40 1. "
            "Mend its header."
        )
    for number in counted:
        yield found["pattern"] % number

"""Weights files are looked through before they are unpacked: none may take more memory than it is long."""

import codecs
import io
import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from utils.system.errors import DamagedError
from utils.system.typed import shown_text

ZIP = b"PK\x03\x04"
CODE = re.compile(r"[^/]+/(code|extra)/.+")  # what torch compresses in TorchScript
MOST_CODE = 2**24  # bytes, unpacked
LOCAL_HEADER = 30  # bytes of the fixed part of a member's own header
# what torch lets a file call that makes much from little: bytearray(10**9), and codecs that double their input
GROWING = ("builtins bytearray", "__builtin__ bytearray")
ENCODE = "_codecs encode"
CALLS = (b"\nbytearray\n", b"_codecs\nencode\n")
MOST_PICKLES = 5  # one after another in a file that torch wrote before 1.6


def require_no_bomb(path: Path) -> None:
    """Check that unpacking a weights file takes no more memory than the file is long, whatever it claims.

    Files that are no sound zip files are left to torch.

    Raises:
        DamagedError: naming the member at fault.
        OSError, ValueError, zipfile.BadZipFile: if it can't be read.
    """
    if not is_zip(path):
        with open(path, "rb") as file:
            for _ in range(MOST_PICKLES):
                if not _require_small_objects(path, file):
                    return
        return
    with zipfile.ZipFile(path) as archive:
        _require_small_members(path, archive)
        for member in archive.infolist():
            if member.filename.count("/") == 1 and member.filename.endswith("/data.pkl"):
                content = archive.read(member)
                if any(call in content for call in CALLS):  # to go through all of it takes long
                    _require_small_objects(path, io.BytesIO(content))


def is_zip(path: Path) -> bool:
    """Whether torch takes a file for a zip file."""
    with open(path, "rb") as file:
        return file.read(len(ZIP)) == ZIP


def _require_small_members(path: Path, archive: zipfile.ZipFile) -> None:
    members = sorted(archive.infolist(), key=lambda member: member.header_offset)
    ends = [member.header_offset for member in members[1:]] + [archive.start_dir]
    code = 0
    names: set[str] = set()
    for member, end in zip(members, ends, strict=True):
        name = shown_text(member.filename)
        length = LOCAL_HEADER + len(member.filename.encode()) + member.compress_size
        if member.filename in names:
            raise _bomb(path, f"has {name} twice")
        names.add(member.filename)
        if member.header_offset < 0 or member.header_offset + length > end:
            raise _bomb(path, f"claims {member.compress_size:,} bytes for {name}, more than it has there")
        if member.compress_type == zipfile.ZIP_STORED:
            if member.file_size != member.compress_size:
                raise _bomb(path, f"claims {member.file_size:,} bytes for {name} and holds {member.compress_size:,}")
        elif not CODE.fullmatch(member.filename) or member.compress_type != zipfile.ZIP_DEFLATED:
            raise _bomb(path, f"has {name} compressed, to {member.file_size:,} bytes")
        else:
            code += member.file_size
    if code > MOST_CODE:
        raise _bomb(path, f"has {code:,} bytes of compressed code")


def _require_small_objects(path: Path, file: IO[bytes]) -> bool:
    """Check a pickle for calls that make much from little; False if it is the last of the file.

    Raises:
        DamagedError: if there is one.
        ValueError: if it is no pickle.
    """
    encodes, codec = False, None
    found = False
    for name, argument in _operations(file):
        found = True
        if name == "GLOBAL":
            if argument in GROWING:
                raise _bomb(path, f"calls {argument.split()[1]}, which could take any memory")
            encodes = encodes or argument == ENCODE
        elif codec is None and isinstance(argument, str) and _doubles(argument):
            codec = argument
        elif codec is None and isinstance(argument, bytes) and _doubles(argument.decode("ascii", "replace")):
            codec = argument.decode("ascii", "replace")
        if encodes and codec is not None:
            raise _bomb(path, f"encodes text as {codec}, which could take any memory")
    return found


def _operations(file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    bounded: Any = _Bounded(file)
    if bounded.at_end():
        return
    for operation, argument, _ in pickletools.genops(bounded):
        yield operation.name, argument


class _Bounded:
    """A file of which a read never asks for more than there is, however much a pickle claims."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        start = file.tell()
        self.end = file.seek(0, io.SEEK_END)
        file.seek(start)

    def at_end(self) -> bool:
        return self.file.tell() >= self.end

    def read(self, count: int) -> bytes:
        return self.file.read(min(count, self.end - self.file.tell()))

    def readline(self) -> bytes:
        return self.file.readline()

    def tell(self) -> int:
        return self.file.tell()


def _doubles(text: str) -> bool:
    """Whether a text names a codec from bytes to bytes, which can be applied to its own result."""
    if len(text) > 20 or not text.isascii() or not re.search("hex|64|bz2|quo|uu|zip|zlib", text.lower()):
        return False
    try:
        return not codecs.lookup(text)._is_text_encoding
    except LookupError:
        return False


def _bomb(path: Path, fault: str) -> DamagedError:
    return DamagedError(
        f"{path}: can't be read as weights: it {fault}. Copy it again, or save its state_dict() with torch.save."
    )

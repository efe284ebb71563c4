"""NRRD and MetaImage whose headers, lines of text, were changed."""

import bz2
import gzip
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from benchmarks.fuzzing import sound
from benchmarks.fuzzing.mutant import (
    LONG,
    TEXTS,
    Content,
    Mutant,
    beside,
    odd_path,
    odd_text,
    shown,
    with_bytes_changed,
)  # fmt: skip

SLICES = sound.SHAPE[2]
Line = tuple[bytes, bytes]  # a field's name and its value
NRRD_FIELDS = (
    *(b"type", b"dimension", b"sizes", b"encoding", b"endian", b"space", b"space dimension", b"space directions"),
    *(b"space origin", b"kinds", b"spacings", b"thicknesses", b"axis mins", b"axis maxs", b"centers", b"labels"),
    *(b"units", b"space units", b"line skip", b"byte skip", b"min", b"max", b"old min", b"block size", b"content"),
    *(b"measurement frame", b"sample units", b"number", b"data file"),
)
NRRD_VALUES = (
    *(b"none", b"(1,0,0)", b"none none none", b"(nan,0,0) (0,nan,0) (0,0,nan)", b"(0,0,0) (0,0,0) (0,0,0)", b"block"),
    *(b"(1e30,0,0) (0,1e30,0) (0,0,1e30)", b"left-posterior-superior", b"right-up", b"3D-left-handed", b"RAS", b"LPST"),
    *(b"double", b"unsigned char", b"int64", b"signed char", b"raw", b"gzip", b"bzip2", b"hex", b"ascii", b"txt"),
    *(b"domain domain domain", b"vector domain domain domain", b"1000000000 1000000000 1000000000", b"12 10", b"0 0 0"),
    *(b"12 10 8 1", b"-12 10 8", b"1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1", b"big", b"LIST", b"(1,0,0) (1,0,0) (1,0,0)"),
    *(b"(1,0,0) (0.5,1,0) (0,0,1)", b"(0,0", b"((((((((", b"960", b"65536 65536 65536", b"4294967296 1 1"),
)
META_FIELDS = (
    *(b"ObjectType", b"NDims", b"DimSize", b"ElementType", b"ElementSpacing", b"ElementSize", b"TransformMatrix"),
    *(b"Offset", b"Position", b"Origin", b"Rotation", b"Orientation", b"CenterOfRotation", b"AnatomicalOrientation"),
    *(b"BinaryData", b"BinaryDataByteOrderMSB", b"ElementByteOrderMSB", b"CompressedData", b"CompressedDataSize"),
    *(b"ElementNumberOfChannels", b"HeaderSize", b"Modality", b"ID", b"ParentID", b"Comment", b"Name", b"Color"),
    *(b"ElementMin", b"ElementMax", b"ElementToIntensityFunctionSlope", b"ElementDataFile"),
)
META_VALUES = (
    *(b"Image", b"Tube", b"MET_DOUBLE", b"MET_UCHAR", b"MET_CHAR_ARRAY", b"MET_NONE", b"MET_OTHER", b"MET_STRING"),
    *(b"MET_LONG_LONG", b"MET_FLOAT_MATRIX", b"True", b"False", b"0 0 0", b"1e9 1e9 1e9", b"nan nan nan"),
    *(b"1000000000 1000000000 1000000000", b"-12 10 8", b"12 10", b"12 10 8 1", b"1 0 0 0 0 0 0 0 1", b"RAI", b"???"),
    *(b"0 0 0 0 0 0 0 0 0", b"LIST", b"LIST 2", b"Local", b"LOCAL", b"slice%02d.raw 0 7 1", b"%s%s%s 1 3 1"),
    *(b"slice%02d.raw 0 1000000000 1", b"slice%02d.raw 0 7 0", b"slice%02d.raw 7 0 -1", b"slice%n.raw 0 7 1"),
    *(b"4294967297 1 1", b"65536 65536 65536", b"1 1 1 1 1 1 1 1 1 1 1 1 1 1 1"),
)


@dataclass(frozen=True)
class Header:
    """A header of lines.

    Attributes:
        first: what stands before them.
        between: name and value.
        last: what stands behind them, before the voxels.
    """

    first: bytes
    between: bytes
    lines: tuple[Line, ...]
    last: bytes = b""

    def bytes(self, newline: bytes = b"\n") -> bytes:
        """The header as it is written."""
        lines = [name + self.between + value + newline for name, value in self.lines]
        return self.first.replace(b"\n", newline) + b"".join(lines) + self.last.replace(b"\n", newline)


def write_nrrd(random: Random, victim: Path) -> Mutant:
    """An NRRD with a changed header: inline or detached, in four encodings."""
    encoding = random.choice((b"raw", b"raw", b"gzip", b"bzip2", b"hex", b"ascii"))
    detached = random.random() < 0.4
    data = _encoded(encoding)
    lines = _nrrd_lines(encoding)
    files: dict[str, Content] = {}
    if detached:
        voxels = b"folder/voxels.raw" if random.random() < 0.3 else b"voxels.raw"
        lines.append((b"data file", voxels))
        files[voxels.decode()] = data
    header = Header(b"NRRD0005\n", b": ", tuple(lines), b"" if detached else b"\n")
    what, text, harmless, outside = _changed(random, header, victim, NRRD_FIELDS, NRRD_VALUES, b"data file", b"# ")
    files["scan.nhdr" if detached else "scan.nrrd"] = text if detached else text + data
    files = {**(beside(text) if detached else {}), **files}
    form = f"NRRD, {encoding.decode()}{', detached' if detached else ''}"
    return Mutant(f"{form}: {what}", files, harmless=harmless, outside=outside)


def write_meta_image(random: Random, victim: Path) -> Mutant:
    """A MetaImage with a changed header: inline, detached, packed, or with a file for each slice."""
    form = random.choice(("inline", "inline", "detached", "detached", "in a folder", "LIST", "pattern"))
    packed = form in ("inline", "detached") and random.random() < 0.4
    raw = _encoded(b"raw")
    data = zlib.compress(raw) if packed else raw
    lines = _meta_lines(packed, len(data))
    files: dict[str, Content] = {}
    size = len(raw) // SLICES
    match form:
        case "inline":
            voxels, last = b"LOCAL", b""
        case "detached":
            voxels, last, files["voxels.raw"] = b"voxels.raw", b"", data
        case "in a folder":
            voxels, last, files["folder/voxels.raw"] = b"folder/voxels.raw", b"", data
        case _:
            names = [f"slice{number:02d}.raw" for number in range(SLICES)]
            files |= {name: raw[size * number : size * (number + 1)] for number, name in enumerate(names)}
            listed = form == "LIST"
            voxels = b"LIST" if listed else b"slice%02d.raw 0 7 1"
            last = "".join(f"{name}\n" for name in names).encode() if listed else b""
            if listed and random.random() < 0.4:  # which the changes below don't reach
                path, _ = odd_path(random, victim)
                last = last.replace(b"slice03.raw", path)
    header = Header(b"", b" = ", (*lines, (b"ElementDataFile", voxels)), last)
    comment = b"Comment = "
    what, text, harmless, outside = _changed(
        random, header, victim, META_FIELDS, META_VALUES, b"ElementDataFile", comment
    )
    inline = form == "inline"
    files = {**({} if inline else beside(text)), **files}
    files["scan.mha" if inline else "scan.mhd"] = text + data if inline else text
    harmless = harmless and not (form == "LIST" and b"slice03.raw" not in last)
    what = f"MetaImage, {form}{', packed' if packed else ''}: {what}"
    if form == "LIST" and b"slice03.raw" not in last:
        what += f"; a slice named {shown(path)}"
    return Mutant(what, files, harmless=harmless, outside=outside)


def sound_nrrd() -> dict[str, bytes]:
    """The sound scan as NRRD."""
    return {"scan.nrrd": Header(b"NRRD0005\n", b": ", tuple(_nrrd_lines(b"raw")), b"\n").bytes() + _encoded(b"raw")}


def sound_meta_image() -> dict[str, bytes]:
    """The sound scan as MetaImage."""
    lines = (*_meta_lines(False, 0), (b"ElementDataFile", b"LOCAL"))
    return {"scan.mha": Header(b"", b" = ", lines).bytes() + _encoded(b"raw")}


def _nrrd_lines(encoding: bytes) -> list[Line]:
    return [
        (b"type", b"short"), (b"dimension", b"3"), (b"space", b"right-anterior-superior"),
        (b"sizes", b"%d %d %d" % sound.SHAPE), (b"space directions", b"(12,0,0) (0,12,0) (0,0,14)"),
        (b"kinds", b"domain domain domain"), (b"endian", b"little"), (b"encoding", encoding),
        (b"space origin", b"(-60,-50,30)"),
    ]  # fmt: skip


def _meta_lines(packed: bool, size: int) -> list[Line]:
    return [
        (b"ObjectType", b"Image"), (b"NDims", b"3"), (b"BinaryData", b"True"), (b"BinaryDataByteOrderMSB", b"False"),
        (b"CompressedData", b"True" if packed else b"False"),
        *([(b"CompressedDataSize", b"%d" % size)] if packed else []),
        (b"TransformMatrix", b"-1 0 0 0 -1 0 0 0 1"), (b"Offset", b"60 50 30"), (b"CenterOfRotation", b"0 0 0"),
        (b"ElementSpacing", b"12 12 14"), (b"DimSize", b"%d %d %d" % sound.SHAPE), (b"ElementType", b"MET_SHORT"),
    ]  # fmt: skip


def _encoded(encoding: bytes) -> bytes:
    raw = sound.voxels().astype("<i2").tobytes(order="F")
    match encoding:
        case b"gzip":
            return gzip.compress(raw, mtime=0)
        case b"bzip2":
            return bz2.compress(raw)
        case b"hex":
            return raw.hex().encode()
        case b"ascii":
            return " ".join(str(value) for value in sound.voxels().ravel(order="F")).encode()
    return raw


def _changed(
    random: Random, header: Header, victim: Path, fields: tuple[bytes, ...], values: tuple[bytes, ...],
    file_field: bytes, comment: bytes,
) -> tuple[str, bytes, bool, bool]:  # fmt: skip
    """The header after one to three changes: what they are, its bytes, whether they don't matter, and whether it names
    a file outside its folder.
    """
    what: list[str] = []
    harmless, outside = True, False
    newline = b"\n"
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        lines = list(header.lines)
        index = random.randrange(len(lines))
        name = lines[index][0]
        way = random.choice(
            ("value", "value", "value", "path", "removed", "doubled", "moved", "renamed", "added", "comment", "newline",
             "number", "number", "bytes")
        )  # fmt: skip
        harmless = harmless and way in ("comment", "newline")
        match way:
            case "value":
                value = random.choice((odd_text(random), random.choice(values)))
                lines[index] = name, value
                what.append(f"{name.decode()} is {shown(value)}")
            case "number":  # one of several numbers in a field
                numbered = [place for place, (_, value) in enumerate(lines) if any(48 <= c < 58 for c in value)]
                place = random.choice(numbered)
                parts = lines[place][1].split(b" ")
                parts[random.randrange(len(parts))] = value = odd_text(random)
                lines[place] = lines[place][0], b" ".join(parts)
                what.append(f"{lines[place][0].decode('latin-1')} has a {shown(value)}")
            case "path":
                value, outside = odd_path(random, victim)
                lines = [line for line in lines if line[0] != file_field]
                lines.append((file_field, value))
                what.append(f"{file_field.decode()} is {shown(value)}")
            case "removed":
                del lines[index]
                what.append(f"no {name.decode('latin-1')}")
            case "doubled":
                lines.insert(
                    random.randrange(len(lines) + 1), (name, random.choice((lines[index][1], odd_text(random))))
                )
                what.append(f"{name.decode('latin-1')} twice")
            case "moved":
                lines.insert(random.randrange(len(lines)), lines.pop(index))
                what.append(f"{name.decode('latin-1')} at another place")
            case "renamed":
                lines[index] = (
                    random.choice((odd_text(random), name.upper(), b" " + name, name + b" ")),
                    lines[index][1],
                )
                what.append(f"{name.decode('latin-1')} called {shown(lines[index][0])}")
            case "added":
                added = random.choice(fields)
                value = random.choice((odd_text(random), random.choice(values)))
                lines.insert(random.randrange(len(lines) + 1), (added, value))
                what.append(f"a field {added.decode()} of {shown(value)}")
            case "comment":
                text = random.choice(
                    tuple(text for text in TEXTS if b"\n" not in text and b"\0" not in text) or (LONG,)
                )
                header = replace(header, first=header.first + comment + text + b"\n")
                what.append(f"a comment {shown(text)}")
            case "newline":
                newline = b"\r\n"
                what.append("lines that end as on Windows")
            case "bytes":
                changed, text = with_bytes_changed(random, header.bytes(newline))
                what.append(changed)
                return "; ".join(what), text, False, outside
        if not lines:
            break
        header = replace(header, lines=tuple(lines))
    return "; ".join(what), header.bytes(newline), harmless, outside

"""NRRD and MetaImage whose headers, lines of text, were changed."""

import bz2
import gzip
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from benchmarks.fuzzing import sound
from benchmarks.fuzzing.mutant import (
    NUMBERS,
    TEXTS,
    Content,
    Mutant,
    beside,
    odd_path,
    odd_text,
    shown,
    with_bytes_changed,
)

SLICES = sound.SHAPE[2]
Line = tuple[bytes, bytes]  # a field's name and its value
Fields = Mapping[bytes, Sequence[bytes]]  # odd values of each field
_VECTORS = (
    *(b"(1,0,0)", b"none none none", b"(nan,0,0) (0,nan,0) (0,0,nan)", b"(0,0,0) (0,0,0) (0,0,0)", b"(0,0"),
    *(b"(1e30,0,0) (0,1e30,0) (0,0,1e30)", b"(1,0,0) (1,0,0) (1,0,0)", b"(12,0,0) (6,12,0) (0,0,14)", b"((((((((("),
    *(b"(-12,0,0) (0,-12,0) (0,0,14)", b"(0,12,0) (12,0,0) (0,0,14)", b"none (12,0,0) (0,12,0) (0,0,14)", b"(1,2,3,4)"),
    *(b"(1e-30,0,0) (0,1e-30,0) (0,0,1e-30)", b"(inf,0,0) (0,inf,0) (0,0,inf)"),
)
_SIZES = (
    *(b"12 10", b"0 0 0", b"12 10 8 1", b"-12 10 8", b"1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1", b"960 1 1", b"12 10 4"),
    *(b"65536 65536 65536", b"4294967296 1 1", b"4294967297 1 1", b"1000000000 1000000000 1000000000", b"1 12 10 8"),
    *(b"12 10 800000000", b"8 10 12", b"2097152 2097152 2097152"),
)
_SPACINGS = (
    *(b"0 0 0", b"1e9 1e9 1e9", b"nan nan nan", b"-12 12 14", b"1e-9 1e-9 1e-9", b"inf inf inf", b"12 12", b"1 1 1 1"),
    *(b"12 12 1e5", b"1e300 1e300 1e300"),
)
_TURNS = (
    *(b"1 0 0 0 0 0 0 0 1", b"0 0 0 0 0 0 0 0 0", b"1 0 0 0 1 0 0 0 1", b"1 0 0 1 0 0 1 0 0", b"nan 0 0 0 1 0 0 0 1"),
    *(b"1 0 0 0.5 1 0 0 0 1", b"1 0", b"0 1 0 1 0 0 0 0 1", b"1e30 0 0 0 1e30 0 0 0 1e30"),
)
NRRD: Fields = {
    b"type": (b"double", b"unsigned char", b"int64", b"signed char", b"block", b"float", b"uint16", b"string"),
    b"dimension": (b"0", b"1", b"2", b"4", b"16", b"17", b"1000000", b"4294967295"),
    b"sizes": _SIZES,
    b"encoding": (b"raw", b"gzip", b"bzip2", b"hex", b"ascii", b"txt", b"gz", b"zrl"),
    b"endian": (b"big", b"little", b"middle"),
    b"space": (b"left-posterior-superior", b"right-up", b"3D-left-handed", b"RAS", b"LPST", b"scanner-xyz-time"),
    b"space dimension": (b"3", b"2", b"0", b"1000000000"),
    b"space directions": _VECTORS,
    b"space origin": (b"(0,0,0)", b"(nan,0,0)", b"(1e300,0,0)", b"none", b"(1,2)", b"(inf,inf,inf)"),
    b"kinds": (b"none none none", b"vector domain domain", b"domain domain", b"domain domain list", b"RGB-color a b"),
    b"spacings": _SPACINGS,
    b"thicknesses": _SPACINGS,
    b"axis mins": _SPACINGS,
    b"axis maxs": _SPACINGS,
    b"centers": (b"cell cell cell", b"node node node", b"???"),
    b"labels": (b'"x" "y" "z"', b'"x', b'"%s" "%n" ""'),
    b"units": (b'"mm" "mm" "mm"', b'"m" "m" "m"', b'"'),
    b"space units": (b'"mm" "mm" "mm"', b'"m" "um" "s"'),
    b"line skip": (b"1", b"1000000000", b"-1"),
    b"byte skip": (b"1", b"-1", b"-2", b"1000000000", b"1920"),
    b"measurement frame": _VECTORS,
    b"old min": (b"nan", b"0"),
    b"block size": (b"2", b"1000000000"),
    b"content": (b"%s%n", b"x"),
    b"number": (b"960", b"1000000000000"),
    b"data file": (b"LIST", b"LIST 2", b"slice%02d.raw 0 7 1", b"slice%02d.raw 0 1000000000 1", b"%s%n.raw 1 3 1"),
}
META: Fields = {
    b"ObjectType": (b"Image", b"Tube", b"Scene", b"Mesh"),
    b"NDims": (b"0", b"1", b"2", b"4", b"10", b"11", b"1000000", b"2147483647"),
    b"DimSize": _SIZES,
    b"ElementType": (
        *(b"MET_DOUBLE", b"MET_UCHAR", b"MET_CHAR_ARRAY", b"MET_NONE", b"MET_OTHER", b"MET_STRING", b"MET_USHORT"),
        *(b"MET_LONG_LONG", b"MET_FLOAT_MATRIX", b"MET_FLOAT", b"MET_ASCII_CHAR"),
    ),
    b"ElementSpacing": _SPACINGS,
    b"ElementSize": _SPACINGS,
    b"TransformMatrix": _TURNS,
    b"Rotation": _TURNS,
    b"Orientation": _TURNS,
    b"Offset": _SPACINGS,
    b"Position": _SPACINGS,
    b"Origin": _SPACINGS,
    b"CenterOfRotation": _SPACINGS,
    b"AnatomicalOrientation": (b"RAI", b"LPS", b"???", b""),
    b"BinaryData": (b"True", b"False", b"1"),
    b"BinaryDataByteOrderMSB": (b"True", b"False"),
    b"ElementByteOrderMSB": (b"True", b"False"),
    b"CompressedData": (b"True", b"False"),
    b"CompressedDataSize": (b"0", b"1", b"-1", b"1000000000000", b"100"),
    b"ElementNumberOfChannels": (b"0", b"1", b"2", b"3", b"-1", b"1000000000"),
    b"HeaderSize": (b"-1", b"0", b"1", b"100", b"1000000000", b"-2"),
    b"Modality": (b"MET_MOD_CT", b"MET_MOD_UNKNOWN"),
    b"ID": (b"-1", b"7"),
    b"Name": (b"%s%n", b"x"),
    b"Color": (b"1 1 1 1", b"1"),
    b"ElementMin": (b"nan", b"0"),
    b"ElementMax": (b"nan", b"0"),
    b"ElementToIntensityFunctionSlope": (b"0", b"nan", b"2"),
    b"ElementDataFile": (
        *(b"LIST", b"LIST 2", b"LIST 3D", b"Local", b"LOCAL", b"slice%02d.raw 0 7 1", b"%s%s%s 1 3 1"),
        *(b"slice%n.raw 0 7 1", b"slice%02d.raw 0 1000000000 1", b"slice%02d.raw 0 7 0", b"slice%02d.raw 7 0 -1"),
    ),
}


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
    """An NRRD with a changed header: inline or detached, in five encodings."""
    encoding = random.choice((b"raw", b"raw", b"raw", b"raw", b"gzip", b"gzip", b"gzip", b"hex", b"ascii", b"bzip2"))
    detached = random.random() < 0.4
    data = _encoded(encoding)
    lines = _nrrd_lines(encoding)
    files: dict[str, Content] = {}
    if detached:
        voxels = b"folder/voxels.raw" if random.random() < 0.3 else b"voxels.raw"
        lines.append((b"data file", voxels))
        files[voxels.decode()] = data
    header = Header(b"NRRD0005\n", b": ", tuple(lines), b"" if detached else b"\n")
    what, text, harmless, outside = _changed(random, header, victim, NRRD, b"data file", b"# ")
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
                path, is_outside = odd_path(random, victim)
                last = last.replace(b"slice03.raw", path)
    header = Header(b"", b" = ", (*lines, (b"ElementDataFile", voxels)), last)
    what, text, harmless, outside = _changed(random, header, victim, META, b"ElementDataFile", b"Comment = ")
    inline = form == "inline"
    files = {**({} if inline else beside(text)), **files}
    files["scan.mha" if inline else "scan.mhd"] = text + data if inline else text
    harmless = harmless and not (form == "LIST" and b"slice03.raw" not in last)
    what = f"MetaImage, {form}{', packed' if packed else ''}: {what}"
    if form == "LIST" and b"slice03.raw" not in last:
        what += f"; a slice named {shown(path)}"
        outside = outside or (is_outside and text.count(b"ElementDataFile") == 1 and b"ElementDataFile = LIST" in text)
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
    random: Random,
    header: Header,
    victim: Path,
    fields: Mapping[bytes, Sequence[bytes]],
    file_field: bytes,
    comment: bytes,
) -> tuple[str, bytes, bool, bool]:
    """The header after one to three changes: what they are, its bytes, whether they don't matter, and whether it names
    a file outside its folder.
    """
    what: list[str] = []
    harmless, newline = True, b"\n"
    outside: set[Line] = set()
    for _ in range(random.choice((1, 1, 1, 1, 2, 3))):
        lines = list(header.lines)
        index = random.randrange(len(lines))
        name, old = lines[index]
        way = random.choice(_LINE_CHANGES)
        harmless = harmless and way in ("comment", "newline")
        match way:
            case "value":
                lines[index] = name, _odd_value(random, fields.get(name, ()))
            case "number":  # one of several numbers in a field
                parts = old.split(b" ")
                parts[random.randrange(len(parts))] = random.choice(NUMBERS)
                lines[index] = name, b" ".join(parts)
            case "path":
                path, is_outside = odd_path(random, victim)
                lines = [*(line for line in lines if line[0] != file_field), (file_field, path)]
                index = len(lines) - 1
                outside |= {lines[-1]} if is_outside else set()
            case "removed":
                del lines[index]
            case "doubled":
                value = random.choice((old, _odd_value(random, fields.get(name, ()))))
                lines.insert(random.randrange(len(lines) + 1), (name, value))
            case "moved":
                lines.insert(random.randrange(len(lines)), lines.pop(index))
            case "renamed":
                lines[index] = random.choice((odd_text(random), name.upper(), b" " + name, name + b" ")), old
            case "added":
                added = random.choice(list(fields))
                index = random.randrange(len(lines) + 1)
                lines.insert(index, (added, _odd_value(random, fields[added])))
            case "comment":
                text = random.choice([text for text in TEXTS if b"\n" not in text and b"\0" not in text])
                header = replace(header, first=header.first + comment + text + b"\n")
                what.append(f"a comment {shown(text)}")
                continue
            case "newline":
                newline = b"\r\n"
                what.append("lines that end as on Windows")
                continue
            case "bytes":
                changed, text = with_bytes_changed(random, header.bytes(newline))
                return "; ".join([*what, changed]), text, False, False
        is_there = way in ("value", "number", "path", "renamed", "added")
        what.append(f"{way} {shown(b' '.join(lines[index]) if is_there else name)}")
        if not lines:
            break
        header = replace(header, lines=tuple(lines))
    named = {line for line in header.lines if line[0] == file_field}
    return "; ".join(what), header.bytes(newline), harmless, bool(named) and named <= outside


_LINE_CHANGES = (
    *("value", "value", "value", "value", "number", "number", "number", "path", "path", "removed", "doubled", "moved"),
    *("renamed", "added", "added", "comment", "newline", "bytes"),
)


def _odd_value(random: Random, of_field: Sequence[bytes]) -> bytes:
    return random.choice(of_field) if of_field and random.random() < 0.7 else odd_text(random)

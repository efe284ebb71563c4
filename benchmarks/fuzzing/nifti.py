"""NIfTI whose headers were changed: both versions, plain, in gzip and in pairs."""

import gzip
import io
import struct
import zlib
from pathlib import Path
from random import Random

import nibabel as nib
import numpy as np

from benchmarks.fuzzing import sound
from benchmarks.fuzzing.mutant import LONG, TEXTS, Content, Mutant, Pipe, shown, with_bytes_changed, with_flips

EXTREMES = {
    "i": (0, 1, -1, 2, 3, 4, 7, 1000, "max", "min"),
    "u": (0, 1, 2, 127, 128, "max"),
    "f": (
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.5,
        1e-30,
        1e-6,
        1e6,
        1e9,
        -1e9,
        3e38,
        -3e38,
        float("nan"),
        float("inf"),
        -float("inf"),
    ),
}
# fields that say nothing about place or voxels
NO_MATTER = ("data_type", "db_name", "descrip", "aux_file", "intent_name", "regular", "session_error", "glmax", "glmin",
             "cal_max", "cal_min", "slice_start", "slice_end", "slice_code", "slice_duration", "toffset", "dim_info",
             "intent_code", "intent_p1", "intent_p2", "intent_p3")  # fmt: skip
BOMB = 300 << 20  # bytes that a few hundred thousand unpack to


def write(random: Random, victim: Path) -> Mutant:
    """A NIfTI file or pair with a changed header."""
    version = random.choice((1, 1, 2))
    pair = random.random() < 0.25
    kind = random.choice((np.int16, np.int16, np.float32, np.uint8))
    header, data = _sound(version, pair, kind)
    what, harmless = [], False
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        change, header, harmless = _changed(random, header, data, version)
        what.append(change)
    harmless = harmless and len(what) == 1 and kind == np.int16
    packed = random.random() < 0.5
    name = f"NIfTI-{version}{' pair' if pair else ''}{' in gzip' if packed else ''}, {np.dtype(kind).name}"
    files: dict[str, Content]
    if pair:
        ending = ".gz" if packed else ""
        parts = {f"scan.hdr{ending}": header, f"scan.img{ending}": data}
        if random.random() < 0.1:
            files = {f"scan.hdr{ending}": _packed(header) if packed else header, f"scan.img{ending}": Pipe()}
            what.append("its voxels are a pipe")
            harmless = False
        else:
            files = {name: _packed(part) if packed else part for name, part in parts.items()}
    elif packed:
        stream = _packed(header + data)
        if random.random() < 0.3:
            change, stream, harmless = _changed_stream(random, header, data, harmless)
            what.append(change)
        files = {"scan.nii.gz": stream}
    else:
        files = {"scan.nii": header + data}
    return Mutant(f"{name}: {'; '.join(what)}", files, harmless=harmless)


def sound_file() -> bytes:
    """The sound scan as NIfTI-1 in gzip."""
    header, data = _sound(1, False, np.int16)
    return _packed(header + data)


def file_of(voxels: np.ndarray) -> bytes:
    """Other voxels on the sound scan's grid, as NIfTI-1 in gzip."""
    return _packed(nib.Nifti1Image(voxels, sound.affine()).to_bytes())


def _sound(version: int, pair: bool, kind: type) -> tuple[bytes, bytes]:
    voxels = sound.voxels() if kind != np.uint8 else (sound.voxels() // 4 + 60).clip(0, 255)
    of_version = (nib.Nifti1Pair, nib.Nifti1Image, nib.Nifti2Pair, nib.Nifti2Image)[2 * (version - 1) + (not pair)]
    image = of_version(voxels.astype(kind), sound.affine())
    image.set_sform(sound.affine(), 1)
    image.set_qform(sound.affine(), 1)
    image.header.set_xyzt_units("mm")
    streams = {name: io.BytesIO() for name, _ in image.files_types}
    image.to_file_map({name: nib.FileHolder(fileobj=stream) for name, stream in streams.items()})
    parts = [stream.getvalue() for stream in streams.values()]
    if pair:
        return parts[0], parts[1]
    offset = int(image.header.get_data_offset()) or (352 if version == 1 else 544)
    return parts[0][:offset], parts[0][offset:]


def _packed(data: bytes) -> bytes:
    return gzip.compress(data, 1, mtime=0)


def _changed(random: Random, header: bytes, data: bytes, version: int) -> tuple[str, bytes, bool]:
    """A change of the header: its name, the header, and whether it doesn't matter."""
    way = random.random()
    if way < 0.15:
        return "flipped bits", with_flips(random, header), False
    if way < 0.27:
        return *with_bytes_changed(random, header), False
    if way < 0.33:  # an extension that contradicts itself
        size = random.choice((0, -16, 8, 15, 16, 1 << 30, (1 << 31) - 1))
        body = struct.pack("<ii", size, random.choice((0, 2, 4, 6, -1))) + random.choice((b"", b"x" * 8, LONG))
        return f"an extension of {size} bytes", header[:-4] + b"\x01\0\0\0" + body, False
    kind = (nib.Nifti1Header if version == 1 else nib.Nifti2Header).template_dtype
    if len(header) < kind.itemsize:
        return "flipped bits", with_flips(random, header), False
    fields = np.frombuffer(header[: kind.itemsize], kind).copy()
    known = kind.names or ()
    names = [name for name in known if random.random() < 0.1] or [random.choice(known)]
    if random.random() < 0.7:
        names = names[:1]
    if random.random() < 0.15:
        names = [random.choice(NO_MATTER)]
        names = names if names[0] in known else ["descrip"]
    set_to = []
    for name in names:
        value = _set_field(random, fields, name)
        set_to.append(f"{name} = {value}")
    return ", ".join(set_to), fields.tobytes() + header[kind.itemsize :], set(names) <= set(NO_MATTER)


def _set_field(random: Random, fields: np.ndarray, name: str) -> str:
    """Set a field, or one of its elements, to an extreme value."""
    field = fields[name]
    if field.dtype.kind == "S":
        text = random.choice((*TEXTS, random.randbytes(8)))
        fields[name] = text[: field.dtype.itemsize]
        return shown(text)
    value = random.choice(EXTREMES[field.dtype.kind])
    if field.dtype.kind != "f":
        limits = np.iinfo(field.dtype)
        value = limits.max if value == "max" else limits.min if value == "min" else min(value, limits.max)
    place = ""
    if field.ndim > 1 and random.random() < 0.8:
        index = random.randrange(field.shape[1])
        field[0, index] = value
        place = f"[{index}] "
    else:
        field[:] = value
    return f"{place}{value}"


def _changed_stream(random: Random, header: bytes, data: bytes, harmless: bool) -> tuple[str, bytes, bool]:
    """A change of the gzip stream: its name, the stream, and whether it still doesn't matter."""
    stream = _packed(header + data)
    match random.randrange(7):
        case 0:
            return "bytes behind the stream", stream + random.randbytes(random.choice((1, 8, 600))), harmless
        case 1:
            return "a second stream behind it", stream + _packed(random.randbytes(64)), harmless
        case 2:
            return "two streams, one after the other", _packed(header) + _packed(data), harmless
        case 3:
            packer = zlib.compressobj(9, wbits=31)
            parts = [packer.compress(header + data), *(packer.compress(bytes(1 << 20)) for _ in range(BOMB >> 20))]
            return f"{BOMB >> 20} MB of zeros behind the voxels", b"".join(parts) + packer.flush(), harmless
        case 4:
            return "a wrong checksum", stream[:-8] + random.randbytes(4) + stream[-4:], False
        case 5:
            return "a wrong size at the end", stream[:-4] + random.randbytes(4), False
    change, stream = with_bytes_changed(random, stream)
    return f"in the stream {change}", stream, False

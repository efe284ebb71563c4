"""DICOM whose elements were changed: series of a file a slice, multi-frame files, deflated, and packed with RLE."""

import copy
import io
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
)

from benchmarks.fuzzing import sound
from benchmarks.fuzzing.mutant import LONG, Content, Link, Mutant, Pipe, odd_text, shown, with_bytes_changed, with_flips

PREAMBLE = 132  # bytes with the letters DICM at their end
LONG_FORM = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"UC", b"UN", b"UR", b"UT")  # lengths of four bytes
KINDS = (*LONG_FORM, b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH",
         b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US", b"\0\0", b"??")  # fmt: skip
# what changes of these leave as it was
NO_MATTER = ("PatientName", "PatientID", "StudyDate", "StudyDescription", "ImageComments", "Manufacturer")
NUMBERS = (
    "NumberOfFrames", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "SamplesPerPixel", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope",
    "RescaleIntercept", "SliceThickness", "SeriesNumber", "InstanceNumber", "PlanarConfiguration",
)  # fmt: skip
NAMES = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "Modality",
         "ImageType", "PhotometricInterpretation", "SpecificCharacterSet", "SeriesDescription")  # fmt: skip
SHORTS = (0, 1, 2, 7, 8, 9, 12, 15, 16, 17, 32, 64, 255, 1000, 65535)
DECIMALS = (0, -1, 1, 1e-30, 1e9, -1e9, 1e30, 2, 0.5)
TEXT_NUMBERS = ("nan", "inf", "-inf", "1e999", "", "abc", "1\\2\\3\\4\\5\\6\\7", "9" * 200, "%s%n", "1,5", " ")


@dataclass
class Element:
    """One element of a data set in explicit little endian.

    Attributes:
        open: whether its length isn't told, as of packed pixels.
    """

    tag: bytes
    kind: bytes
    value: bytes
    open: bool = False

    def __str__(self) -> str:
        return "({:04x},{:04x})".format(*struct.unpack("<HH", self.tag))

    def bytes(self, length: int | None = None) -> bytes:
        """The element as it is written, with a length that may be wrong."""
        size = 0xFFFFFFFF if self.open else len(self.value)
        size = size if length is None else length
        if self.kind in LONG_FORM:
            return self.tag + self.kind + b"\0\0" + struct.pack("<I", size & 0xFFFFFFFF) + self.value
        return self.tag + self.kind + struct.pack("<H", size & 0xFFFF) + self.value


@dataclass
class File:
    """A file: its preamble with its meta information, and its elements."""

    head: bytes
    elements: list[Element]

    def element(self, keyword: str) -> Element:
        """An element, which is added if it isn't there."""
        tag = struct.pack("<HH", *divmod(pydicom.datadict.tag_for_keyword(keyword) or 0, 1 << 16))
        found = next((element for element in self.elements if element.tag == tag), None)
        if found is None:
            kind = "US" if "US" in (kind := pydicom.datadict.dictionary_VR(keyword)) else kind
            found = Element(tag, kind.encode(), b"")
            self.elements.append(found)
            self.elements.sort(key=lambda element: struct.unpack("<HH", element.tag))
        return found

    def set(self, keyword: str, value: int | str) -> None:
        """Set an element to a value that may be none of its kind."""
        element = self.element(keyword)
        number = element.kind == b"US" and isinstance(value, int)
        text = struct.pack("<H", int(value) & 0xFFFF) if number else str(value).encode()
        element.value = text + (b"\0" if element.kind == b"UI" else b" ") * (len(text) % 2)

    def call_syntax(self, uid: str) -> None:
        """Let the meta information name another transfer syntax."""
        old = struct.unpack("<I", self.head[PREAMBLE + 8 : PREAMBLE + 12])[0]
        at = self.head.index(b"\x02\x00\x10\x00UI")
        size = struct.unpack("<H", self.head[at + 6 : at + 8])[0]
        value = uid.encode() + b"\0" * (len(uid) % 2)
        element = self.head[at : at + 6] + struct.pack("<H", len(value)) + value
        head = self.head[:at] + element + self.head[at + 8 + size :]
        grown = struct.pack("<I", old + len(value) - size)
        self.head = head[: PREAMBLE + 8] + grown + head[PREAMBLE + 12 :]


def write(random: Random, victim: Path) -> Mutant:
    """A series, or a multi-frame file, of which one or all files were changed."""
    form = random.choice(("series", "series", "series", "multi-frame", "multi-frame", "deflated", "RLE"))
    multi_frame = form == "multi-frame" or (form in ("deflated", "RLE") and random.random() < 0.3)
    what, harmless = "", False
    if multi_frame and random.random() < 0.25:
        whole = copy.deepcopy(_multi_frame()[0])
        what = _change_groups(random, whole)
        files = [_file(whole, form)]
        chosen = set()
    else:
        files = [_file(data_set, form) for data_set in (_multi_frame() if multi_frame else _series())]
        one = random.random() < 0.6
        chosen = {random.randrange(len(files))} if one else set(range(len(files)))
    series = f"1.2.3.7.{random.randrange(10**9)}"  # or else the scans of a folder would be taken for one
    for file in files:
        file.set("SeriesInstanceUID", series)
    changes = (_frames, _number, _number, _name, _removed, _syntax, _pixels) if multi_frame else _CHANGES
    change = None if not chosen or random.random() < 0.35 else random.choice(changes)
    seed = random.random()  # the same change in all chosen files
    written: dict[str, Content] = {}
    for number, file in enumerate(files):
        same = Random(seed)
        if number not in chosen:
            content = _packed(file.head, _joined(file.elements), form)
        elif change is not None:
            what, harmless = change(same, file)
            content = _packed(file.head, _joined(file.elements), form)
        else:
            what, content = _damaged(same, file, form)
        written[f"IM{number:03d}"] = content
    known = all(isinstance(content, bytes) and content[128:PREAMBLE] == b"DICM" for content in written.values())
    if len(files) > 1 and random.random() < 0.12:
        what += "; " + _odd_files(random, written)
        harmless = False
    which = "all files" if len(chosen) > 1 else "a file" if len(files) > 1 else "the file"
    frames = " of frames" if multi_frame and form != "multi-frame" else ""
    slices = sound.SHAPE[2] if known else None
    return Mutant(f"DICOM, {form}{frames}, {which}: {what}", written, harmless=harmless, slices=slices)


def sound_series(uid: str = "1.2.3.1") -> dict[str, Content]:
    """The sound scan as a series.

    Args:
        uid: of the series.
    """
    files = [_file(data_set, "series") for data_set in _series()]
    for file in files:
        file.set("SeriesInstanceUID", uid)
    return {f"IM{number:03d}": file.head + _joined(file.elements) for number, file in enumerate(files)}


@cache
def _series() -> list[pydicom.Dataset]:
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ sound.affine()
    voxels = sound.voxels()
    slices = []
    for number in range(sound.SHAPE[2]):
        one = _common(number)
        one.ImagePositionPatient = [float(value) for value in (lps @ [0, 0, number, 1])[:3]]
        one.ImageOrientationPatient = [-1.0, 0.0, 0.0, 0.0, -1.0, 0.0]
        one.PixelSpacing, one.SliceThickness = list(sound.SPACING[1::-1]), sound.SPACING[2]
        one.RescaleSlope, one.RescaleIntercept = 1, -1024
        one.PixelData = (voxels[..., number] + 1024).astype("<i2").T.tobytes()
        slices.append(one)
    return slices


@cache
def _multi_frame() -> list[pydicom.Dataset]:
    slices = _series()
    whole = _common(0, EnhancedCTImageStorage)
    whole.NumberOfFrames = len(slices)
    shared, measures, orientation, scale = (pydicom.Dataset() for _ in range(4))
    measures.PixelSpacing, measures.SliceThickness = slices[0].PixelSpacing, slices[0].SliceThickness
    orientation.ImageOrientationPatient = slices[0].ImageOrientationPatient
    scale.RescaleSlope, scale.RescaleIntercept, scale.RescaleType = 1, -1024, "HU"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    shared.PixelValueTransformationSequence = [scale]
    whole.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for one in slices:
        group, position = pydicom.Dataset(), pydicom.Dataset()
        position.ImagePositionPatient = one.ImagePositionPatient
        group.PlanePositionSequence = [position]
        groups.append(group)
    whole.PerFrameFunctionalGroupsSequence = groups
    whole.PixelData = b"".join(one.PixelData for one in slices)
    return [whole]


def _common(number: int, kind: str = CTImageStorage) -> pydicom.Dataset:
    data_set = pydicom.Dataset()
    data_set.file_meta = FileMetaDataset()
    data_set.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data_set.file_meta.MediaStorageSOPClassUID = data_set.SOPClassUID = UID(kind)
    data_set.file_meta.MediaStorageSOPInstanceUID = data_set.SOPInstanceUID = UID(f"1.2.3.4.{number + 1}")
    data_set.StudyInstanceUID, data_set.SeriesInstanceUID, data_set.FrameOfReferenceUID = "1.2.3", "1.2.3.1", "1.2.3.2"
    data_set.Modality, data_set.ImageType, data_set.SeriesNumber = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], 3
    data_set.PatientName, data_set.PatientID, data_set.StudyDate = "Phantom^None", "phantom", "20240229"
    data_set.PatientBirthDate = data_set.PatientSex = data_set.StudyTime = data_set.StudyID = (
        data_set.AccessionNumber
    ) = ""
    data_set.ReferringPhysicianName, data_set.InstanceNumber = "", number + 1
    data_set.Columns, data_set.Rows = sound.SHAPE[:2]
    data_set.SamplesPerPixel, data_set.PhotometricInterpretation = 1, "MONOCHROME2"
    data_set.BitsAllocated, data_set.BitsStored, data_set.HighBit, data_set.PixelRepresentation = 16, 16, 15, 1
    return data_set


def _file(data_set: pydicom.Dataset, form: str) -> File:
    """A sound data set in one of the forms; deflated it is only when :func:`_packed` has packed it."""
    if form == "RLE":
        data_set = copy.deepcopy(data_set)
        data_set.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    stream = io.BytesIO()
    data_set.save_as(stream, enforce_file_format=True)
    content = stream.getvalue()
    place = PREAMBLE + 12 + struct.unpack("<I", content[PREAMBLE + 8 : PREAMBLE + 12])[0]  # behind the meta information
    file = File(content[:place], [])
    while place < len(content):
        tag, kind = content[place : place + 4], content[place + 4 : place + 6]
        start = place + (12 if kind in LONG_FORM else 8)
        size = int.from_bytes(content[place + 8 : start] if kind in LONG_FORM else content[place + 6 : start], "little")
        is_open = kind in LONG_FORM and size == 0xFFFFFFFF
        place = len(content) if is_open else start + size
        file.elements.append(Element(tag, kind, content[start:place], is_open))
    if form == "deflated":
        file.call_syntax(DeflatedExplicitVRLittleEndian)
    return file


def _joined(elements: Sequence[Element]) -> bytes:
    return b"".join(element.bytes() for element in elements)


def _packed(head: bytes, body: bytes, form: str, damage: Random | None = None) -> bytes:
    """The content of a file, deflated if that is its form."""
    if form != "deflated":
        return head + body
    packer = zlib.compressobj(wbits=-15)
    packed = packer.compress(body) + packer.flush()
    if damage is not None:
        packed = damage.choice((with_flips(damage, packed), packed[: len(packed) // 2], b"", packed + LONG))
    return head + packed + b"\0" * (len(packed) % 2)


def _damaged(random: Random, file: File, form: str) -> tuple[str, bytes]:
    """A file whose bytes break the standard, and how."""
    elements = file.elements
    index = len(elements) - 1 if random.random() < 0.2 else random.randrange(len(elements))
    one = elements[index]
    before, after = (
        b"".join(element.bytes() for element in part) for part in (elements[:index], elements[index + 1 :])
    )
    match random.randrange(10):
        case 0:
            what, body = f"{one} twice", before + one.bytes() + one.bytes() + after
        case 1:
            what, body = f"{one} at the end", before + after + one.bytes()
        case 2:
            what, body = f"{one} first", one.bytes() + before + after
        case 3:
            kind = random.choice(KINDS)
            what, body = f"{one} as {shown(kind)}", before + one.tag + kind + one.bytes()[6:] + after
        case 4:
            size = len(one.value)
            length = random.choice((0, 1, 3, size + 1, size - 1, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF))
            what, body = f"{one} of length {length}", before + one.bytes(length) + after
        case 5:
            value = odd_text(random)[:65534]
            value += b" " * (len(value) % 2)
            changed = Element(one.tag, one.kind, value)
            what, body = f"{one} is {shown(value)}", before + changed.bytes() + after
        case 6:
            cut = random.randrange(min(len(one.bytes()), 40))
            what, body = f"cut off in {one}", before + one.bytes()[:cut]
        case 7:
            what, body = f"flipped bits in {one}", before + with_flips(random, one.bytes(), end=200) + after
        case 8:
            what, content = with_bytes_changed(random, _packed(file.head, before + one.bytes() + after, form))
            return what, content
        case _:
            what, body = with_bytes_changed(random, before + one.bytes() + after)
    if form == "deflated" and random.random() < 0.2:
        return "a damaged deflated stream", _packed(file.head, body, form, random)
    return what, _packed(file.head, body, form)


def _number(random: Random, file: File) -> tuple[str, bool]:
    keyword = random.choice(NUMBERS)
    value: int | str
    if file.element(keyword).kind == b"US":
        value = random.choice(SHORTS)
    elif random.random() < 0.4:
        value = random.choice(TEXT_NUMBERS)
    else:
        count = {"PixelSpacing": 2, "ImagePositionPatient": 3, "ImageOrientationPatient": 6}.get(keyword, 1)
        count = random.choice((count, count, count, 1, count + 1))
        value = "\\".join(str(random.choice(DECIMALS)) for _ in range(count))
    file.set(keyword, value)
    return f"{keyword} is {str(value)[:60]}", False


def _name(random: Random, file: File) -> tuple[str, bool]:
    keyword = random.choice(NAMES)
    values = ("", "1.2.840.10008.5.1.4.1.1.7", "1.2.3.99", "LOCALIZER", "RGB", "MONOCHROME1", "PALETTE COLOR",
              "../../victim", "9" * 70, "%s%n", "ISO 2022 IR 87", "nothing", "A\\B\\C", "MOSAIC")  # fmt: skip
    value = random.choice(values)
    file.set(keyword, value)
    return f"{keyword} is {value[:60]!r}", False


def _no_matter(random: Random, file: File) -> tuple[str, bool]:
    keyword = random.choice(NO_MATTER)
    value = random.choice(
        (b"%s%n", b"", b"A" * 10_000, "日本".encode(), b"../../victim", b"\x1b$B", b"<b>", b"=1+1", b"20249999")
    )
    text = value.decode()
    file.set(keyword, text)
    return f"{keyword} is {shown(value)}", True


def _removed(random: Random, file: File) -> tuple[str, bool]:
    element = file.elements.pop(random.randrange(len(file.elements)))
    return f"no {element}", False


def _syntax(random: Random, file: File) -> tuple[str, bool]:
    """Another transfer syntax than that of the pixels."""
    syntaxes = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.5",
                "1.2.840.10008.1.2.4.100", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.3.4", "")  # fmt: skip
    syntax = random.choice(syntaxes)
    file.call_syntax(syntax)
    pixels = file.elements[-1]
    data = random.choice((pixels.value, b"\0\0", random.randbytes(100), b"\xff\xd8\xff\xe0" + bytes(200), LONG))
    if random.random() < 0.7:
        pixels.value, pixels.open, pixels.kind = pydicom.encaps.encapsulate([data]), True, b"OB"
    return f"pixels that are no {syntax!r}", False


def _pixels(random: Random, file: File) -> tuple[str, bool]:
    pixels = file.elements[-1]
    size = len(pixels.value)
    if random.random() < 0.3:
        pixels.value += random.randbytes(2 * random.randint(1, 500))
    else:
        pixels.value = pixels.value[: random.choice((0, 1, size // 2, size - 2, size - 1))]
    return f"{len(pixels.value)} of {size} bytes of pixels", False


def _frames(random: Random, file: File) -> tuple[str, bool]:
    count = sound.SHAPE[2]
    value = random.choice((0, 1, count - 1, count + 1, 2 * count, -1, 1000, 2**31 - 1, "", "abc", "8.0", "8\\8"))
    file.set("NumberOfFrames", str(value))
    if random.random() < 0.3:
        what, _ = _pixels(random, file)
        return f"NumberOfFrames is {value!r}, {what}", False
    return f"NumberOfFrames is {value!r}", False


def _change_groups(random: Random, data_set: pydicom.Dataset) -> str:
    """Let functional groups be missing, too many or empty."""
    groups = list(data_set.PerFrameFunctionalGroupsSequence)
    index = random.randrange(len(groups))
    match random.randrange(8):
        case 0:
            what = "a functional group less"
            del groups[index]
        case 1:
            what = "a functional group twice"
            groups.insert(index, groups[index])
        case 2:
            what, groups = "no functional groups", []
        case 3:
            what, groups[index] = "an empty functional group", pydicom.Dataset()
        case 4:
            what = "a frame without a position"
            groups[index].PlanePositionSequence = []
        case 5:
            position = [random.choice(DECIMALS) for _ in range(random.choice((2, 3, 3)))]
            what = f"a frame at {position}"
            groups[index].PlanePositionSequence[0].ImagePositionPatient = position
        case 6:
            what = "no shared functional groups"
            del data_set.SharedFunctionalGroupsSequence
        case _:
            shared = data_set.SharedFunctionalGroupsSequence[0]
            keyword = random.choice([element.keyword for element in shared])
            what = f"no {keyword}"
            delattr(shared, keyword)
    data_set.PerFrameFunctionalGroupsSequence = groups
    return what


def _odd_files(random: Random, files: dict[str, Content]) -> str:
    """Put other things between the slices. Returns what they are."""
    match random.randrange(6):
        case 0:
            files["pipe"] = Pipe()
            return "a pipe beside"
        case 1:
            files["IM003"] = Pipe()
            return "a pipe in place of a slice"
        case 2:
            files["IM900"] = files["IM003"]
            return "a slice twice"
        case 3:
            files["DICOMDIR"] = random.randbytes(300)
            return "a damaged DICOMDIR"
        case 4:
            files["loop"] = Link("loop")
            return "a link to itself"
    files["IM900"] = bytes(128) + b"DICM" + random.randbytes(random.choice((0, 4, 300)))
    return "a file of noise with DICM in front"


_Change = Callable[[Random, File], tuple[str, bool]]
_CHANGES: tuple[_Change, ...] = (_number, _number, _name, _no_matter, _removed, _removed, _syntax, _pixels)

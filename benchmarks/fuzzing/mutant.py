"""A hostile input, and the odd values, texts, paths and bytes that the inputs of all kinds are made with."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

LONG = b"A" * 100_000
NUMBERS = (
    *(b"0", b"-0", b"-1", b"1", b"2", b"3", b"7", b"1.5", b"255", b"65536", b"1000000", b"1000000000", b"-1000000000"),
    *(b"2147483648", b"4294967296", b"9223372036854775807", b"99999999999999999999", b"1e39", b"1e308", b"1e-308"),
    *(b"1e999", b"nan", b"inf", b"-inf", b"0x10", b"1,5", b"1e", b"--1"),
)
TEXTS = (
    *(
        b"",
        b" ",
        b"abc",
        b"%s%n%d%x%p",
        b"%1000000d",
        b"%99999$s",
        b"\x00",
        b"a\x00b",
        b"a\nb",
        b"a\r\nb",
        b"\x1b[31mred",
    ),
    *(
        b"\xff\xfe\xfd",
        b"\xc3\x28",
        "日本語 ✓".encode(),
        b"<script>",
        b"=1+1",
        b"\\",
        b"'\"`$(id)",
        b"{}[]()",
        b"..",
        LONG,
    ),
)
FEW_FLIPS, MANY_FLIPS = 3, 40


@dataclass(frozen=True)
class Pipe:
    """A FIFO that nobody writes to."""


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    target: str


@dataclass(frozen=True)
class Folder:
    """An empty folder."""


Content = bytes | Pipe | Link | Folder


@dataclass(frozen=True)
class Mutant:
    """A hostile input.

    Attributes:
        what: what was changed, in a line.
        files: by their paths below the input's folder.
        harmless: whether it says the same as the sound input, so that the result has to be the same where there is one.
        outside: whether it names voxels outside its folder, so that a result would show a file of somebody else.
        slices: of a series, so that a mask with fewer has to come with a word about it.
    """

    what: str
    files: Mapping[str, Content]
    harmless: bool = False
    outside: bool = False
    slices: int | None = None

    def write(self, folder: Path) -> None:
        """Write the files below a folder, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            match content:
                case Pipe():
                    os.mkfifo(path)
                case Link(target):
                    path.symlink_to(target)
                case Folder():
                    path.mkdir(exist_ok=True)
                case _:
                    path.write_bytes(content)


Maker = Callable[[Random, Path], Mutant]  # from a source of chance, and a folder that must not be touched


def odd_text(random: Random) -> bytes:
    """A number, a word or other bytes where a header has something else."""
    return random.choice(random.choice((NUMBERS, NUMBERS, TEXTS)))


def odd_path(random: Random, victim: Path) -> tuple[bytes, bool]:
    """The path of a file where a header names one, and whether that lies outside the header's folder.

    ``pipe``, ``folder``, ``link_to_pipe`` and ``loop`` have to lie beside the header: see :func:`beside`.
    """
    outside = (
        *(f"{victim}/voxels.raw", "../../victim/voxels.raw", "../../victim", str(victim), "/etc/passwd", "/dev/zero"),
        *("/dev/stdin", "/dev/tty", "/dev/fd/0", "/proc/self/environ", "/proc/self/mem", "/", "..", "../..", "~"),
    )
    inside = ("pipe", "./pipe", "folder", "folder/", "nothing.raw", ".", "./", "folder/../pipe", "link_to_pipe", "loop")
    if random.random() < 0.5:
        return random.choice(outside).encode(), True
    if random.random() < 0.6:
        return random.choice(inside).encode(), False
    return random.choice((*TEXTS, b"/dev/%s%n%d 1 3 1", b"a/" * 3000, b"a" * 300)), False


def beside(header: bytes) -> dict[str, Content]:
    """What :func:`odd_path` names beside a header, if the header does name it."""
    things: dict[str, Content] = {
        "pipe": Pipe(), "folder": Folder(), "link_to_pipe": Link("pipe"), "loop": Link("loop"),
    }  # fmt: skip
    return {name: thing for name, thing in things.items() if name.encode() in header}


def with_flips(random: Random, data: bytes, end: int | None = None) -> bytes:
    """Bytes with some bits flipped: few, and at times many.

    Args:
        end: how many of the first bytes may change.
    """
    changed = bytearray(data)
    count = random.randint(1, FEW_FLIPS if random.random() < 0.8 else MANY_FLIPS)
    for _ in range(count if changed else 0):
        changed[random.randrange(min(end or len(data), len(data)))] ^= 1 << random.randrange(8)
    return bytes(changed)


def with_bytes_changed(random: Random, data: bytes, end: int | None = None) -> tuple[str, bytes]:
    """Bytes that were damaged in one way, and its name.

    Args:
        end: how many of the first bytes may change.
    """
    end = min(len(data), end or len(data))
    start = random.randrange(end + 1)
    stop = min(end, start + random.choice((1, 2, 4, 8, 64, 1000)))
    way = random.choice(("flipped bits", "cut off", "bytes removed", "bytes inserted", "bytes doubled", "bytes set"))
    match way:
        case "flipped bits":
            return way, with_flips(random, data, end=end)
        case "cut off":
            return f"{way} at {start}", data[:start]
        case "bytes removed":
            return f"{way} {start} … {stop}", data[:start] + data[stop:]
        case "bytes inserted":
            return f"{way} at {start}", data[:start] + random.choice((odd_text(random), random.randbytes(8))) + data[
                start:
            ]
        case "bytes doubled":
            return f"{way} {start} … {stop}", data[:stop] + data[start:]
    value = bytes([random.choice((0, 0x7F, 0x80, 0xFF, 0x20))])
    return f"{way} {start} … {stop}", data[:start] + value * (stop - start) + data[stop:]


def shown(data: bytes) -> str:
    """Bytes for a line of description."""
    return repr(data if len(data) < 60 else data[:50] + b"..." + str(len(data)).encode())[1:]

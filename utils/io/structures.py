"""Structures of DICOM labels, which are told by their names."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.multival import MultiValue

from utils.io.scan import Volume
from utils.system.text import one_line

LONGEST = 64  # letters of a name in DICOM
PASSED_OVER = re.compile(r"[\s_\-]+")


def text_of(value: Any) -> str:
    """The text of an element of DICOM; pydicom takes a backslash in it for a border between two values."""
    return "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value or "")


@dataclass(frozen=True)
class Structure:
    """A structure that a DICOM label names.

    Attributes:
        number: by which the file refers to it.
        is_drawn: whether somebody said where it is: by contours that enclose something, or by a segment, which may be
            empty.
        left_out: what there is of it that encloses nothing, such as ``POINT``.
    """

    number: int
    name: str
    is_drawn: bool
    left_out: str = ""


class DicomLabel(ABC):
    """A DICOM file that says where structures are in a scan.

    Attributes:
        structures: what it names.
        series: identifiers of the series that it was drawn on, or made from.
        frames: the same of their frames of reference.
    """

    path: Path
    structures: list[Structure]
    series: set[str]
    frames: set[str]

    @abstractmethod
    def mask(self, structures: Iterable[Structure], image: Volume) -> tuple[np.ndarray, list[str]]:
        """The voxels of some structures on the grid of their scan, (X, Y, Z), and remarks, a sentence each.

        Raises:
            InputError: if the file isn't sound, or doesn't fit the scan.
        """


def dicom_name(name: str) -> str:
    """A label's name as a DICOM file can have it: in one line, without backslashes, which part values, and not long."""
    return one_line(name).replace("\\", "/")[:LONGEST]


def name_key(name: str) -> str:
    """What two names share that mean one structure: letters, without blanks, underscores, hyphens and capitals."""
    return PASSED_OVER.sub("", dicom_name(name)).casefold()


def names_by_class(labels: Sequence[str], also_called: Mapping[str, Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    """The names that structures of each class may have in DICOM labels; none for the background.

    Args:
        labels: names of the values 0, 1, …
        also_called: further names of some of them.

    Raises:
        ValueError: if two classes have one name.
    """
    names = [(), *((label, *also_called.get(label, ())) for label in labels[1:])]
    owners: dict[str, str] = {}
    for label, of_class in zip(labels, names, strict=True):
        for name in of_class:
            if owners.setdefault(name_key(name), label) != label:
                raise ValueError(f"{owners[name_key(name)]!r} and {label!r} are both called {name!r}")
    return tuple(names)


def match_structures(
    structures: Sequence[Structure], names: Sequence[Sequence[str]]
) -> tuple[dict[int, list[Structure]], list[Structure]]:
    """The structures of each class that has some, drawn or not, and those of none.

    Args:
        names: those of :func:`names_by_class`.
    """
    classes = {name_key(name): value for value, of_class in enumerate(names) for name in of_class}
    found: dict[int, list[Structure]] = {}
    others: list[Structure] = []
    for one in structures:
        value = classes.get(name_key(one.name))
        (others if value is None else found.setdefault(value, [])).append(one)
    return found, others

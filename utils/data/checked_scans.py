"""What a data check found in sound scans, kept so that the next check reads only what changed since."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from utils.io.reader import scan_files
from utils.io.scan import Scan
from utils.system.files import file_state, open_regular, text_hash, write_text

FILE = "checked.json"
FORMAT: Literal[2] = 2  # another one whenever scans are checked in another way

Count = Annotated[int, Ge(0)]


class Checked(TypedDict):
    """What was found in a sound scan.

    Attributes:
        remarks: what a person should know, a sentence each.
        labelled, clipped: how many of its voxels are labelled, and how many of these a CT window clips.
    """

    remarks: list[str]
    labelled: Count
    clipped: Count


class _Content(TypedDict):
    format: Literal[2]
    scans: dict[str, Checked]


CONTENT = TypeAdapter(_Content)


@dataclass(frozen=True)
class CheckedScans:
    """The scans that were checked before, in a folder.

    A scan counts as checked until one of its files, its entry in the data list, or the settings change. A file that
    isn't as it was written counts as none.

    Attributes:
        folder: where the file is.
        settings: all that the check depends on beside the scan.
    """

    folder: Path
    settings: Mapping[str, Any]

    def read(self) -> dict[str, Checked]:
        """What is known of scans, by :meth:`key`."""
        try:
            with open_regular(self.folder / FILE) as file:
                return CONTENT.validate_json(file.read(), strict=True)["scans"]
        except (OSError, ValidationError):
            return {}

    def write(self, known: Mapping[str, Checked]) -> None:
        """Replace the file.

        Raises:
            WriteError: if it can't be written.
        """
        write_text(self.folder / FILE, json.dumps({"format": FORMAT, "scans": dict(known)}) + "\n", shared=True)

    def key(self, scan: Scan) -> str:
        """A hash of a scan's entry in the data list, the state of its files, and the settings."""
        entry = [scan.name, scan.not_annotated, scan.ignore, scan.structures, scan.is_series]
        states = [file_state(file) for file in scan_files(scan)]
        return text_hash(json.dumps([FORMAT, entry, states, dict(self.settings)], default=str))

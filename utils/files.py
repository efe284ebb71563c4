"""Writing files so that a reader, or a program killed halfway, never leaves a part of one."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path``; what was written there takes the place of ``path`` in one step at the end."""
    temporary = path.with_name(f"{path.name}.part")
    yield temporary
    os.replace(temporary, path)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file in one step."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def writable_folder(path: Path, flag: str) -> Path:
    """Make a folder, and the ones above it, that files can be written to.

    Raises:
        InputError: naming ``flag`` if that can't be done.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(f"{flag}: can't write to {path} ({error.strerror}). Give another folder.") from error
    return path

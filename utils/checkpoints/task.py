"""A trained task in one file: a zip archive of checkpoints, with ``task.json`` that lists them. Nothing is unpacked."""

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Len
from pydantic import StringConstraints, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

import utils
from utils.checkpoints.archive import is_zip
from utils.checkpoints.read import read_checkpoint
from utils.checkpoints.save import save_tensors
from utils.system.errors import UNREADABLE, DamagedError, InputError, first_line
from utils.system.files import atomic_write, parse_json
from utils.system.typed import STRICT, schema_faults

MANIFEST = "task.json"
FORMAT = 1
MOST_NETWORKS, MOST_MEMBERS = 100, 1000
MOST_TEXT = 2**20  # bytes of the manifest
CHUNK = 2**20  # bytes
COPY = "Copy it again, or export the task again."


@with_config(STRICT)
class Member(TypedDict):
    """A checkpoint in the archive."""

    file: Annotated[str, StringConstraints(pattern=r"^networks/[A-Za-z0-9_.-]{1,100}\.pt$")]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


@with_config(STRICT)
class Manifest(TypedDict):
    """What ``task.json`` says."""

    format: Annotated[int, Ge(1)]
    version: str
    networks: Annotated[list[Member], Len(1, MOST_NETWORKS)]


SCHEMA = TypeAdapter(Manifest)


def write_task(output: Path, networks: Mapping[str, Path], others: Sequence[Path]) -> None:
    """Write an archive. Its checkpoints lack what only continuing a run needs.

    Args:
        networks: checkpoints by the name that each gets.
        others: files to add as they are.

    Raises:
        InputError: if a checkpoint can't be read.
        WriteError: if the archive can't be written.
    """
    listed = []
    with atomic_write(output) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, path in networks.items():
            content = read_checkpoint(path)
            content.pop("resume", None)
            stream = io.BytesIO()
            save_tensors(content, stream)
            member = f"networks/{name}.pt"
            archive.writestr(member, stream.getbuffer())
            listed.append({"file": member, "sha256": hashlib.sha256(stream.getbuffer()).hexdigest()})
        for path in others:
            archive.write(path, path.name)
        manifest = {"format": FORMAT, "version": utils.__version__, "networks": listed}
        archive.writestr(MANIFEST, json.dumps(manifest, indent=2))


def is_task(path: Path) -> bool:
    """Whether a file is an archive of a task. A damaged or missing file isn't."""
    try:
        if not path.is_file() or not is_zip(path):
            return False
        with zipfile.ZipFile(path) as archive:
            return MANIFEST in archive.namelist()
    except UNREADABLE:
        return False


def networks_of(path: Path) -> Iterator[tuple[str, Path]]:
    """The checkpoints of an archive, one after another: the name of each, and a file in memory while it is read.

    Raises:
        DamagedError: if the archive isn't what :func:`write_task` writes.
        InputError: if a newer version made it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = _checked_members(path, archive)
            for member in members:
                info = archive.getinfo(member["file"])
                descriptor = os.memfd_create("network")
                try:
                    digest = hashlib.sha256()
                    with archive.open(info) as source, open(descriptor, "wb", closefd=False) as target:
                        while chunk := source.read(CHUNK):
                            digest.update(chunk)
                            target.write(chunk)
                    if digest.hexdigest() != member["sha256"]:
                        raise DamagedError(f"{path}: its {member['file']} isn't the one that it lists. {COPY}")
                    yield member["file"], Path(f"/proc/self/fd/{descriptor}")
                finally:
                    os.close(descriptor)
    except InputError:
        raise
    except UNREADABLE as error:
        raise DamagedError(f"{path}: can't be read as a task: {first_line(error)}. {COPY}") from error


def _checked_members(path: Path, archive: zipfile.ZipFile) -> list[Member]:
    """The checkpoints that the manifest lists, of which none takes more memory than the archive is long.

    Raises:
        DamagedError: if the archive isn't what :func:`write_task` writes.
        InputError: if a newer version made it.
    """
    infos = archive.infolist()
    if len(infos) > MOST_MEMBERS or len({info.filename for info in infos}) < len(infos):
        raise DamagedError(f"{path}: has more than {MOST_MEMBERS} files, or one twice. {COPY}")
    manifest = archive.getinfo(MANIFEST)
    _require_stored(path, manifest)
    if manifest.file_size > MOST_TEXT:
        raise DamagedError(f"{path}: its {MANIFEST} is longer than {MOST_TEXT:,} bytes. {COPY}")
    try:
        content = parse_json(archive.read(manifest).decode())
        if isinstance(content, dict) and isinstance(content.get("format"), int) and content["format"] > FORMAT:
            raise InputError(f"{path}: was made by a newer version of this program. Update it.")
        members = SCHEMA.validate_python(content)["networks"]
    except ValidationError as error:
        fault = schema_faults(error)
        raise DamagedError(f"{path}: its {MANIFEST} isn't what this program writes: {fault}. {COPY}") from error
    names = [member["file"] for member in members]
    sizes = {info.filename: info for info in infos}
    if len(set(names)) < len(names) or not set(names) <= sizes.keys():
        raise DamagedError(f"{path}: its {MANIFEST} lists a file twice, or one that isn't there. {COPY}")
    for name in names:
        _require_stored(path, sizes[name])
    if sum(sizes[name].file_size for name in names) > path.stat().st_size:
        raise DamagedError(f"{path}: claims to hold more than the file is long. {COPY}")
    return members


def _require_stored(path: Path, info: zipfile.ZipInfo) -> None:
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise DamagedError(f"{path}: has {info.filename!r} compressed, which could take any memory. {COPY}")

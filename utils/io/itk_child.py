"""The program that reads files with SimpleITK, in a process of its own: :mod:`utils.io.itk_process` starts it.

ITK's readers end their whole process on some damaged files. A request is a line of JSON on standard input. The reply is
a line of JSON on standard output, and after one about a volume its voxels. The program needs none of our modules, so
that it starts fast.
"""

import json
import os
import resource
import signal
import sys
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813


def kind_of(name: str) -> dict[str, Any]:
    """The ITK class that reads a file; empty if none does."""
    return {"kind": sitk.ImageFileReader.GetImageIOFromFileName(name)}


def read(name: str, kind: str, room: int) -> tuple[dict[str, Any], sitk.Image | None]:
    """The header of a volume, and the volume if there is ``room`` for the bytes of its voxels.

    Raises:
        RuntimeError: of ITK, if the file can't be read.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(name)
    reader.SetImageIO(kind)
    reader.ReadImageInformation()
    size = list(reader.GetSize())
    # an image of one voxel shows how numpy calls its type
    voxel = sitk.GetArrayViewFromImage(
        sitk.Image([1] * reader.GetDimension(), reader.GetPixelID(), reader.GetNumberOfComponents())
    )
    header: dict[str, Any] = {
        "size": size,
        "components": reader.GetNumberOfComponents(),
        "dtype": voxel.dtype.str,
        "bytes": voxel.nbytes * int(np.prod(size, dtype=object)),
    }
    if len(size) == 4 and size[3] == 1:
        size = size[:3]
    if len(size) != 3 or header["bytes"] > room:
        return header, None
    image = reader.Execute()
    if image.GetDimension() == 4:
        image = image[..., 0]
    header |= {
        "shape": sitk.GetArrayViewFromImage(image).shape,
        "direction": image.GetDirection(),
        "spacing": image.GetSpacing(),
        "origin": image.GetOrigin(),
    }
    return header, image


def answer(request: dict[str, Any]) -> tuple[dict[str, Any], sitk.Image | None]:
    """The reply to a request: its first line, and the image whose voxels follow."""
    # names that are relative to the file's folder: ITK can't open what isn't UTF-8, and folders above may be anything
    folder, name = os.path.split(request["path"])
    os.chdir(folder)
    try:
        if request["kind"] is None:
            return kind_of(name), None
        return read(name, request["kind"], request["room"])
    except (RuntimeError, MemoryError) as error:
        return {"error": str(error) or type(error).__name__}, None


def main(memory: int) -> None:
    """Answer requests until there are no more.

    Args:
        memory: bytes that the process may take; ITK asks for what a header claims.
    """
    replies = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)  # ITK prints there
    os.dup2(nothing, 2)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # the process that asks decides when to stop
    limit = resource.getrlimit(resource.RLIMIT_AS)[1]
    memory = memory if limit == resource.RLIM_INFINITY else min(memory, limit)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        signal.alarm(request["seconds"])  # ends this process if ITK doesn't come to an end
        header, image = answer(request)
        replies.write(json.dumps(header).encode() + b"\n")
        if image is not None:
            replies.write(np.ascontiguousarray(sitk.GetArrayViewFromImage(image)).data)  # (Z, Y, X[, C])
        replies.flush()
        signal.alarm(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))

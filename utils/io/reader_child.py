"""The program that reads files in a process of its own: :mod:`utils.io.reader_process` starts it.

ITK's readers, and the decoders of compressed DICOM, end their whole process on some damaged files. A request is a line
of JSON on standard input. The reply is a line of JSON on standard output, and where it tells a shape the voxels follow.
The program needs none of our modules and imports a library at its first use, so that it starts fast.
"""

import json
import os
import resource
import signal
import sys
import warnings
from typing import Any

import numpy as np

Reply = tuple[dict[str, Any], Any]  # the first line, and what has the voxels, or None


def itk_kind(name: str) -> Reply:
    """The ITK class that reads a file; empty if none does."""
    import SimpleITK as sitk  # noqa: N813

    return {"kind": sitk.ImageFileReader.GetImageIOFromFileName(name)}, None


def itk_volume(name: str, kind: str, room: int) -> Reply:
    """The header of a volume, and the volume (Z, Y, X[, C]) if there is ``room`` for the bytes of its voxels.

    Raises:
        RuntimeError: of ITK, if the file can't be read.
    """
    import SimpleITK as sitk  # noqa: N813

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
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
        "bytes": voxel.nbytes * int(np.prod(size, dtype=object)),
        "item_bytes": voxel.itemsize,
    }
    if len(size) == 4 and size[3] == 1:
        size = size[:3]
    if len(size) != 3 or header["bytes"] > room:
        return header, None
    image = reader.Execute()
    if image.GetDimension() == 4:
        image = image[..., 0]
    header |= {"direction": image.GetDirection(), "spacing": image.GetSpacing(), "origin": image.GetOrigin()}
    return header, sitk.GetArrayFromImage(image)


def dicom_pixels(name: str) -> Reply:
    """The stored values of a DICOM file, ([frames,] rows, columns).

    Raises:
        Exception: whatever the decoder raises.
    """
    from pydicom.pixels import pixel_array

    return {}, pixel_array(name, raw=True)


JOBS = {"itk_kind": itk_kind, "itk_volume": itk_volume, "dicom_pixels": dicom_pixels}


def answer(job: str, path: str, details: dict[str, Any]) -> Reply:
    """The reply to a request; ``error`` tells why a file can't be read."""
    # names that are relative to the file's folder: ITK can't open what isn't UTF-8, and folders above may be anything
    folder, name = os.path.split(path)
    try:
        os.chdir(folder)
        header, voxels = JOBS[job](name, **details)  # type: ignore[operator]
    except Exception as error:  # told to the process that asks
        return {"error": str(error) or type(error).__name__}, None
    if voxels is not None:
        header |= {"shape": voxels.shape, "dtype": voxels.dtype.str}
    return header, voxels


def main(memory: int) -> None:
    """Answer requests until there are no more.

    Args:
        memory: bytes that the process may take; readers ask for what a header claims.
    """
    replies = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)  # C++ prints there
    os.dup2(nothing, 2)
    warnings.simplefilter("ignore")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # the process that asks decides when to stop
    limit = resource.getrlimit(resource.RLIMIT_AS)[1]
    memory = memory if limit == resource.RLIM_INFINITY else min(memory, limit)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        request = json.loads(line)
        signal.alarm(request["seconds"])  # ends this process if a reader doesn't come to an end
        header, voxels = answer(request["job"], request["path"], request["details"])
        replies.write(json.dumps(header).encode() + b"\n")
        if voxels is not None:
            replies.write(np.ascontiguousarray(voxels).data)
        replies.flush()
        del voxels
        signal.alarm(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))

"""How this process asks the system for memory."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGEST_KEPT = 2**30  # bytes; an activation of four 96³ crops with 32 channels in float32 is 0.42 GiB


def keep_freed_memory() -> None:
    """Let freed blocks of up to :data:`LARGEST_KEPT` bytes serve the next allocation.

    glibc hands every block above 32 MiB back to the system, which then clears each page of the next one anew: for the
    large activations of a 3D network that takes longer than the arithmetic on them. Other C libraries have no such
    switch, and stay as they are.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
        library.mallopt(M_TRIM_THRESHOLD, LARGEST_KEPT)

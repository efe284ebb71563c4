"""Settings of the C library's memory allocator."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGEST_KEPT = 2**30  # bytes; an activation of four 96³ crops with 32 channels in float32 takes 0.42 GiB


def tune_malloc() -> None:
    """Reuse freed blocks of up to :data:`LARGEST_KEPT` bytes.

    By default glibc returns each block above 32 MiB to the system, which then zeroes every page of the next one. With
    the large activations of 3D networks this takes longer than the arithmetic. Other C libraries are left as they are.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
        library.mallopt(M_TRIM_THRESHOLD, LARGEST_KEPT)


def return_freed_memory() -> None:
    """Give the system what was freed and :func:`tune_malloc` keeps."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)

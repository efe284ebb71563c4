"""Lets a compiled function run in the threads that torch computes with.

Threads of another library would wait for a core while torch's spin on it for the next piece of work.
"""

import ctypes
import functools
import importlib.util

import torch

_LIBRARIES = ctypes.CDLL(None)  # torch loads its OpenMP so that all find it


@functools.cache
def can_run_kernels() -> bool:
    """Whether kernels can be compiled and run in torch's threads: numba is installed, and the OpenMP is known."""
    return hasattr(_LIBRARIES, "GOMP_parallel") and importlib.util.find_spec("numba") is not None


def in_torchs_threads(function: int, argument: int) -> None:
    """Call the function at an address with the address of its argument, once in each of torch's threads.

    It must not raise, and must not need Python's interpreter lock.
    """
    # void GOMP_parallel(void (*function)(void *), void *argument, unsigned threads, unsigned flags), of libgomp's ABI
    parallel = _LIBRARIES.GOMP_parallel
    parallel(ctypes.c_void_p(function), ctypes.c_void_p(argument), ctypes.c_uint(torch.get_num_threads()), 0)

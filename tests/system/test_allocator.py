"""Freed blocks are reused by later allocations; those that aren't show as page faults."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
from utils.system.allocator import tune_malloc
tune_malloc()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    torch.ones(2**24)  # 64 MiB or 16,384 pages of 4 KiB; by default glibc keeps up to 32 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library isn't glibc")
def test_a_hundred_blocks_in_turn_use_the_pages_of_a_few() -> None:
    # a few, since a small allocation may take a part of a freed block, which then is too small for the next
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 25 * 16_384

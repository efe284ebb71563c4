"""Blocks that were freed serve later allocations, which the system counts as page faults."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
from utils.allocator import keep_freed_memory
keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    torch.ones(2**24)  # 64 MiB, twice what glibc keeps by itself, or 16,384 pages of 4 KiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library isn't glibc")
def test_a_hundred_blocks_one_after_another_use_the_pages_of_a_few() -> None:
    # of a few, since something small may come to lie in a freed block, which then is too small for the next
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 25 * 16_384

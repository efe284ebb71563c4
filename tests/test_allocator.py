"""A block that was freed serves the next allocation, which the system counts as page faults."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
from utils.allocator import keep_freed_memory
keep_freed_memory()
block = torch.ones(2**24)  # 64 MiB, twice what glibc keeps by itself
del block
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
block = torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library isn't glibc")
def test_a_second_block_needs_no_new_pages() -> None:
    # a new block has 16,384 pages of 4 KiB, or 32 of 2 MiB
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 16

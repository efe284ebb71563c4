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


FREED = """
import re
from pathlib import Path
import torch
from utils.system.allocator import return_freed_memory, tune_malloc
tune_malloc()
held = lambda: int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
blocks = [torch.ones(2**20) for _ in range(64)]  # 4 MiB each
full = held()
blocks.clear()
freed = held()
return_freed_memory()
print(full - freed, full - held())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library isn't glibc")
def test_a_hundred_blocks_in_turn_use_the_pages_of_a_few() -> None:
    # a few, since a small allocation may take a part of a freed block, which then is too small for the next
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 25 * 16_384


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library isn't glibc")
def test_freed_memory_is_kept_until_it_is_returned() -> None:
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    kept, returned = map(int, done.stdout.split())  # kB that the process holds less than with 256 MiB of blocks
    assert kept < 16 * 1024
    assert returned > 240 * 1024

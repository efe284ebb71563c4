"""Names of the processor and the GPUs, for records and benchmarks; and how much memory there is."""

import os
import platform
import re
from pathlib import Path

import torch

# how much memory a container may take, and has taken: of cgroups in version 2 and 1
CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)


def processor() -> str:
    """The CPU's name."""
    cpuinfo = Path("/proc/cpuinfo")  # of Linux
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    return name or "an unknown CPU"


def instruction_set() -> str:
    """The CPU's instructions that decide how fast matrices are multiplied."""
    if torch.cpu._is_amx_tile_supported():
        return "AMX"
    if torch.cpu._is_avx512_bf16_supported():
        return "AVX-512 with bfloat16"
    if torch.cpu._is_avx512_supported():
        return "AVX-512"
    return "AVX2" if torch.cpu._is_avx2_supported() else platform.machine()


def machine(gpu: bool) -> str:
    """The CPU with its number of cores; before it the GPUs, if there are some and the program uses them (``gpu``)."""
    cores = f"{os.cpu_count()} cores of {processor()}"
    count = torch.cuda.device_count() if gpu else 0
    return f"{count} × {torch.cuda.get_device_name()}, {cores}" if count else cores


def total_memory() -> int:
    """The machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_limit() -> int:
    """The bytes that programs may take in all: the machine's memory, or what the container may take."""
    limits = [text for limit, _ in CGROUPS if limit.exists() and (text := limit.read_text().strip()).isdigit()]
    return min([total_memory(), *map(int, limits)])


def available_memory() -> int:
    """The bytes that this process can still take before the machine, or the container that it runs in, is full."""
    free = [total_memory()]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        found = re.search(r"^MemAvailable: +(\d+) kB$", meminfo.read_text(), re.MULTILINE)
        free += [int(found[1]) * 1024] if found else []
    for limit, used in CGROUPS:
        if limit.exists() and used.exists() and (text := limit.read_text().strip()).isdigit():
            free.append(int(text) - int(used.read_text()) + _file_cache(used.with_name("memory.stat")))
    return max(0, min(free))


def _file_cache(stat: Path) -> int:
    """The bytes of files that a container keeps in memory: it counts them as taken, and gives them back when needed."""
    if not stat.exists():
        return 0
    fields = dict(line.split() for line in stat.read_text().splitlines())
    # version 1 counts the groups below a group under names of their own
    of_files = ("inactive_file", "active_file")
    return sum(int(fields.get(f"total_{name}", fields.get(name, 0))) for name in of_files)

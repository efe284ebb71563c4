"""Names of the processor and the GPUs, for records and benchmarks."""

import os
import platform
from pathlib import Path

import torch


def processor() -> str:
    """The CPU's name."""
    cpuinfo = Path("/proc/cpuinfo")  # of Linux
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    return name or "an unknown CPU"


def machine(gpu: bool) -> str:
    """The CPU with its number of cores; before it the GPUs, if there are some and the program uses them (``gpu``)."""
    cores = f"{os.cpu_count()} cores of {processor()}"
    count = torch.cuda.device_count() if gpu else 0
    return f"{count} × {torch.cuda.get_device_name()}, {cores}" if count else cores

"""What a program runs on, in words."""

import os
import platform
from pathlib import Path

import torch


def processor() -> str:
    """The CPU's name."""
    linux = Path("/proc/cpuinfo")
    lines = linux.read_text().splitlines() if linux.exists() else []
    named = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    return named or "an unknown CPU"


def machine(gpu: bool) -> str:
    """The processor with its number of cores, after the GPUs where ``gpu`` says that they work and there are some."""
    cores = f"{os.cpu_count()} cores of {processor()}"
    count = torch.cuda.device_count() if gpu else 0
    return f"{count} × {torch.cuda.get_device_name()}, {cores}" if count else cores

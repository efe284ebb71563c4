"""Types of the benchmarks' flags. Imports little, since :mod:`benchmarks.whole_scan` has to stay small."""

import argparse
from pathlib import Path


def existing_file(text: str) -> Path:
    """The absolute path of a file that must exist, so that a mistake shows before anything is timed."""
    path = Path(text).absolute()
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text}: no such file")
    return path

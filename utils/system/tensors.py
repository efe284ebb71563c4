"""Tensors in files."""

from typing import IO, Any

import torch


def save_tensors(content: Any, file: IO[bytes]) -> None:
    """``torch.save``, but a full disk raises its ``OSError``, which torch replaces by a ``RuntimeError``."""
    try:
        torch.save(content, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise

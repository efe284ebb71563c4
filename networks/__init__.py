"""The networks that ``--model_name`` can name."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from networks.unetr import UNETR

NETWORKS: Mapping[str, Callable[..., nn.Module]] = {"unetr": UNETR}


def build_network(name: str, **options: Any) -> nn.Module:
    """Build the network ``name`` from its own keywords, which a checkpoint records.

    Raises:
        ValueError: if there is no such network, or its keywords can't make one.
    """
    if name not in NETWORKS:
        raise ValueError(f"model_name must be one of {', '.join(NETWORKS)}, not {name!r}")
    return NETWORKS[name](**options)

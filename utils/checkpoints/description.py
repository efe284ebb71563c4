"""What a checkpoint says of its network."""

import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import monai
import torch
from torch import nn

import utils
from networks import NETWORKS, build_network
from utils.data.preprocessing import Preprocessing
from utils.system.errors import InputError

FORMAT = 2


METADATA = "unetr.json"  # what describes the network in a file that another format leaves no room for it


@dataclass(frozen=True)
class Description:
    """All that inference needs to know of a network beside its weights.

    Attributes:
        flips: how crops were flipped in training, ``none`` or what ``--flips`` says; None where that isn't known.
    """

    network: str
    options: dict[str, Any]
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    amp: bool
    flips: str | None = None

    def build(self) -> nn.Module:
        """The network, with fresh weights."""
        return build_network(self.network, **self.options)

    def content(self) -> dict[str, Any]:
        """The part of a checkpoint that says this."""
        return {
            "format": FORMAT,
            "network": {"name": self.network, "options": self.options},
            "preprocessing": asdict(self.preprocessing),
            "labels": list(self.labels),
            "amp": self.amp,
            "flips": self.flips,
            "versions": {"torch": str(torch.__version__), "monai": str(monai.__version__), "unetr": utils.__version__},
            "command": shlex.join(sys.argv),
        }


def _describes_itself(content: Mapping[str, Any]) -> bool:
    """Whether it is one of ours; others may call something network, or format."""
    return isinstance(content.get("format"), int) and "preprocessing" in content


def describe(content: Mapping[str, Any]) -> Description | None:
    """What a checkpoint says of its network; None for bare weights, which say nothing."""
    if not _describes_itself(content):
        return None
    return Description(
        network=content["network"]["name"],
        # those of an older file have no place for what came later
        options={**NETWORKS[content["network"]["name"]].defaults, **_with_tuples(content["network"]["options"])},
        preprocessing=Preprocessing(**_with_tuples(content["preprocessing"])),
        labels=tuple(content["labels"]),
        amp=content["amp"],
        flips=content.get("flips"),
    )


def _with_tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def refuse_contradictions(path: Path, given: Mapping[str, Any], recorded: Mapping[str, Any], remedy: str) -> None:
    """Compare flags with what a checkpoint records.

    Raises:
        InputError: naming each flag that differs, with both values.
    """
    faults = [
        f"--{name} {_flag_text(given[name])} contradicts its {_flag_text(recorded[name])}"
        for name in _differing(given, recorded)
    ]
    if faults:
        raise InputError(f"{path}: {'; '.join(faults)}. {remedy}")


def _differing(given: Mapping[str, Any], recorded: Mapping[str, Any]) -> list[str]:
    """The flags that contradict what is recorded; ``model_name`` alone if it does, since the others follow from it."""
    differing = [name for name, value in given.items() if name in recorded and value != recorded[name]]
    return ["model_name"] if "model_name" in differing else differing


def _flag_text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)

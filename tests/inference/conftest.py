"""Small networks to compile, and an empty cache for them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from networks.precision import Precision
from networks.unetr import UNETRConfig
from utils.checkpoints.description import Description
from utils.data.preprocessing import Preprocessing
from utils.distributed.process import Process

CPU = torch.device("cpu")
FLOAT32 = Precision(CPU, torch.float32)
PROCESS = Process(CPU)
DESCRIPTION = Description(
    UNETRConfig(out_channels=3, img_size=(16, 16, 32), feature_size=2, hidden_size=12, mlp_dim=8, num_heads=2),
    Preprocessing(intensity="zscore", spacing=(1.0, 1.0, 2.5), roi=(16, 16, 32)),
    labels=("background", "anterior", "posterior"),
    amp=True,
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of compiled networks."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "unetr"


def member(seed: int = 0, **changes: Any) -> tuple[nn.Module, Description]:
    """A network with random weights, and its description; ``changes`` are settings of its config."""
    torch.manual_seed(seed)
    description = replace(DESCRIPTION, config=replace(DESCRIPTION.config, **changes))
    return description.build().eval(), description

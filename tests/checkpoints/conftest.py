"""A small network, its description, and its checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from networks.unetr import UNETRConfig
from utils.checkpoints.description import Description
from utils.checkpoints.progress import Progress
from utils.checkpoints.save import save_checkpoint
from utils.data.data_list import DataList
from utils.data.preprocessing import Preprocessing

CONFIG = UNETRConfig(
    out_channels=3,
    img_size=(16, 16, 32),
    spacing=(1.0, 1.0, 2.5),
    feature_size=2,
    hidden_size=12,
    mlp_dim=8,
    num_heads=2,
)
DESCRIPTION = Description(
    CONFIG,
    Preprocessing(intensity="zscore", spacing=(1.0, 1.0, 2.5), roi=(16, 16, 32)),
    labels=("background", "anterior", "posterior"),
    amp=True,
)
# what a bare state dict of that network doesn't say
SETTINGS: dict[str, Any] = {
    "out_channels": 3,
    "roi_x": 16,
    "roi_y": 16,
    "roi_z": 32,
    "feature_size": 2,
    "hidden_size": 12,
    "mlp_dim": 8,
    "num_heads": 2,
}
DATA = DataList(Path("dataset_0.json"), Path("data"), [], [], [], None)

# a network of one's own: one convolution, and classes from it
NETWORK_FILE = """
from dataclasses import dataclass

from torch import nn

from networks.registry import NetworkConfig, flag, register


@dataclass(frozen=True)
class PlainConfig(NetworkConfig):
    width: int = flag(4, "channels of the stem", at_least=1)


@register("plain", config=PlainConfig, window_divisor=lambda config: (5, 5, 5))
class Plain(nn.Module):
    input_layers = ("stem",)
    output_layers = ("head",)

    def __init__(self, config):
        super().__init__()
        self.stem = nn.Conv3d(config.in_channels, config.width, 3, padding=1)
        self.body = nn.Conv3d(config.width, config.width, 3, padding=1)
        self.head = nn.Conv3d(config.width, config.out_channels, 1)

    def forward(self, volume):
        return self.head(self.body(self.stem(volume).relu()).relu())
"""


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(1)
    return DESCRIPTION.build()


@pytest.fixture
def saved(network: nn.Module, tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "model.pt", DESCRIPTION, network, Progress(epoch=7, score=0.5))
    return tmp_path / "model.pt"


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def script(network: nn.Module, path: Path) -> None:
    torch.jit.script(network).save(str(path))

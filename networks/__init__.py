"""The networks. Each file of this folder that registers one (:mod:`networks.registry`) makes it known by its name."""

import importlib
import pkgutil

import utils  # noqa: F401  (prepares for MONAI, which the networks import)
from networks.masked_autoencoder import autoencoder_of
from networks.registry import NETWORKS, build_network

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
for _architecture in NETWORKS.values():
    if _architecture.declared("vit_encoder"):
        autoencoder_of(_architecture)

__all__ = ["NETWORKS", "build_network"]

"""Weights by a formula, so that two libraries can have the same full-size network and no file of 370 MB is needed.

``docs/weights.md`` tells how this module, run with MONAI 0.7.0, made ``tests/weights/monai070_unetr_full.pt``.
"""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

REFERENCE: dict[str, Any] = {
    "in_channels": 1,
    "out_channels": 14,
    "img_size": (96, 96, 96),
    "feature_size": 16,
    "hidden_size": 768,
    "mlp_dim": 3072,
    "num_heads": 12,
    "pos_embed": "perceptron",
    "norm_name": "instance",
    "conv_block": True,
    "res_block": True,
    "dropout_rate": 0.0,
}


def weights_by_formula(shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """A tensor for each name, from numpy's frozen generator, seeded by its place among the sorted names.

    Matrices and kernels are scaled so that activations keep their size; norms, biases and embeddings are near 1 and 0,
    and not at them, which would hide a mistake.
    """
    weights = {}
    for seed, (name, shape) in enumerate(sorted(shapes.items())):
        values = np.random.RandomState(seed).standard_normal(tuple(shape)).astype(np.float32)
        if len(shape) in (2, 5):
            values /= np.float32(np.sqrt(np.prod(shape[1:])))
        else:
            values = np.float32(0.1) * values + np.float32("norm" in name and name.endswith("weight"))
        weights[name] = torch.from_numpy(values)
    return weights


def volume_by_formula() -> Tensor:
    """(1, 1, 96, 96, 96)."""
    values = np.random.RandomState(0).standard_normal((1, 1, *REFERENCE["img_size"]))
    return torch.from_numpy(values.astype(np.float32))


def thinned(logits: Tensor) -> Tensor:
    """Each twelfth voxel along each axis: (1, 14, 96, 96, 96) -> (1, 14, 8, 8, 8)."""
    return logits[..., 5::12, 5::12, 5::12].clone()


if __name__ == "__main__":
    from monai.networks.nets import UNETR

    network = UNETR(**REFERENCE).eval()
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    network.load_state_dict(weights_by_formula(shapes))
    with torch.no_grad():
        logits = network(volume_by_formula())
    content = {"shapes": {name: list(shape) for name, shape in shapes.items()}, "logits": thinned(logits)}
    torch.save(content, f"{sys.argv[1]}/monai070_unetr_full.pt")

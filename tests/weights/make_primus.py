"""Compute what ``dynamic-network-architectures`` computes, for ``tests/networks/test_primus.py``.

It can't be among our requirements: it needs timm, which needs torchvision, which doesn't import beside a CPU build of
torch, and then breaks others that look for it. In an environment of its own::

    pip install torch==2.13.0 dynamic-network-architectures==0.4.4
    python tests/weights/make_primus.py tests/weights/primus.pt
"""

import sys
import zlib
from typing import Any

import numpy as np
import torch

WINDOW = (32, 24, 16)  # z, y, x
ALIASES = {"all_modules.0": "conv", "all_modules.1": "norm"}  # second names of the same tensors
SMALL = {"embed_dim": 24, "patch_embed_size": (8, 8, 8), "num_classes": 5, "eva_depth": 3, "eva_numheads": 2}


def numbers(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Random numbers that a tensor's name determines, about as large as weights are."""
    for alias, original in ALIASES.items():
        name = name.replace(alias, original)
    drawn = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if len(shape) > 1:
        return torch.from_numpy(drawn / np.float32(np.sqrt(np.prod(shape[1:]))))
    return torch.from_numpy(np.float32(name.endswith("weight")) + np.float32(0.2) * drawn)


def reference(network: Any, channels: int) -> dict[str, Any]:
    """A network's tensors by name with their shapes, and its tokens and logits for the volume ``numbers("volume")``."""
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    network.load_state_dict({name: numbers(name, shape) for name, shape in shapes.items()})
    volume = numbers("volume", (1, channels, *WINDOW))
    with torch.no_grad():
        embedded = network.eval().down_projection(volume).flatten(2).transpose(1, 2)  # (B, N, E)
        return {"shapes": shapes, "tokens": network.eva(embedded)[0], "logits": network(volume)}


def main(path: str) -> None:
    """Write the file."""
    # torchvision doesn't import beside a torch of another build without these
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from dynamic_network_architectures.architectures import primus

    found: dict[str, Any] = {"parameters": {}, "networks": {}}
    with torch.device("meta"):
        for name in ("PrimusV2S", "PrimusV2B", "PrimusV2M"):
            network = getattr(primus, name)(1, 5, (8, 8, 8), WINDOW)
            found["parameters"][name] = sum(one.numel() for one in network.parameters())
    for name, channels in (("PrimusV2", 1), ("PrimusV2", 2), ("Primus", 1)):
        options = {"input_shape": WINDOW, "init_values": 0.1, "scale_attn_inner": True}
        network = getattr(primus, name)(input_channels=channels, **SMALL, **options)
        found["networks"][f"{name}, {channels}"] = reference(network, channels)
    torch.manual_seed(0)
    fresh = primus.PrimusV2S(1, 5, (8, 8, 8), WINDOW)
    found["rope"] = fresh.eva.rope.get_embed()  # sines and cosines, each twice: (N, 2 · 66)
    kept = (
        *(f"eva.blocks.{number}.{layer}.weight" for number in (0, 5, 11) for layer in ("attn.proj", "mlp.fc2")),
        *("eva.blocks.7.attn.q_proj.weight", "eva.pos_embed", "down_projection.final_proj.weight"),
        "up_projection.decode.0.0.weight",
    )
    found["deviations"] = {name: fresh.state_dict()[name].std().item() for name in kept}
    torch.save(found, path)


if __name__ == "__main__":
    main(sys.argv[1])

"""Masked autoencoders, which train encoders on scans without labels.

He et al., "Masked Autoencoders Are Scalable Vision Learners", arXiv 2111.06377; in 3D as nnssl has it (Wald et al.,
arXiv 2410.23132): three quarters of the patches are hidden, the transformer sees the rest, and two blocks behind it
reconstruct the voxels of those that it didn't see.

B is the batch, C the channels, N the number of patches, V that of visible ones, P the voxels of a patch, E the
hidden size.
"""

import dataclasses
import math
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from networks.registry import ARCHITECTURES, AUTOENCODERS, Architecture, flag
from networks.vit import PatchesToVectors, TransformerBlock, ViT

NAME = "{}_autoencoder"
FIELDS = (
    ("mask_ratio", float, flag(0.75, "share of the patches that are hidden", at_least=0.01, below=1, any_weights=True)),
    ("decoder_layers", int, flag(2, "transformer blocks that reconstruct", at_least=0, at_most=64, rare=True)),
)


@cache
def autoencoder_of(architecture: Architecture) -> Architecture:
    """The masked autoencoder that trains a network's encoder, with the network's settings and :data:`FIELDS`.

    Raises:
        InputError: if the network's class doesn't declare what that needs.
    """
    for needed in ("vit_encoder", "embed", "encoder_layers"):
        architecture.require(needed, "model_name", "pre-trained")
    name = f"{architecture.config.__name__}OfAutoencoder"

    def require_patches(config: Any) -> None:
        architecture.config.__post_init__(config)
        if math.prod(config.grid) < 2:
            raise ValueError("a window of one patch has nothing to hide the others from; give a larger `roi_x`")

    checked = {"__post_init__": require_patches}
    config = dataclasses.make_dataclass(name, FIELDS, bases=(architecture.config,), namespace=checked, frozen=True)
    shared = ("blocks", "fast_layers", "unsafe_bfloat16_roi_x")
    declared = {name: architecture.declared(name) for name in shared if architecture.declared(name)}
    network = type(f"AutoencoderOf{architecture.name}", (MaskedAutoencoder,), {"pre_trained": architecture, **declared})
    found = dataclasses.replace(architecture, name=NAME.format(architecture.name), config=config, network=network)
    ARCHITECTURES[config] = AUTOENCODERS[found.name] = found
    return found


class MaskedAutoencoder(nn.Module):
    """A network's encoder, and a decoder that reconstructs the patches that are hidden from it.

    Args:
        config: the network's settings and :data:`FIELDS`.
    """

    pre_trained: Architecture  # whose encoder it is

    def __init__(self, config: Any) -> None:
        super().__init__()
        of_network = dataclasses.fields(self.pre_trained.config)
        own = {field.name: getattr(config, field.name) for field in of_network}
        network = self.pre_trained.build(self.pre_trained.make_config(own))
        kept = network.encoder_layers()  # type: ignore[operator]
        for name, _ in list(network.named_children()):
            if name not in kept:
                setattr(network, name, None)
        self.encoder: Any = network
        self.grid, self.patch = config.grid, config.patch
        patches = math.prod(config.grid)
        self.visible = max(1, min(patches - 1, round(patches * (1 - config.mask_ratio))))
        self.cut = PatchesToVectors(config.patch)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.positions = nn.Parameter(torch.empty(1, patches, config.hidden_size))
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.decoder = nn.ModuleList(TransformerBlock(config, 0.0) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.voxels = nn.Linear(config.hidden_size, config.in_channels * math.prod(config.patch))

    def forward(self, volume: Tensor, order: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Hide patches of volumes and reconstruct them.

        Args:
            volume: (B, C, D, H, W).
            order: numbers of the patches (B, N), of which the first V stay visible; None draws it.

        Returns:
            The reconstructed patches and the volume's own, (B, N, P · C), and which of them were hidden, (B, N).
        """
        vit: ViT = getattr(self.encoder, self.pre_trained.declared("vit_encoder"))
        batch, patches = len(volume), math.prod(self.grid)
        if order is None:
            order = torch.rand(batch, patches, device=volume.device).argsort(1)
        seen = order[:, : self.visible].sort(1).values  # (B, V)
        hidden = torch.ones(batch, patches, dtype=torch.bool, device=volume.device).scatter(1, seen, False)
        # convolutions before the transformer see no hidden voxel either
        tokens = self.encoder.embed(volume.masked_fill(self.in_voxels(hidden), 0.0))  # (B, N, E)
        index = seen.unsqueeze(2).expand(-1, -1, tokens.shape[2])  # (B, V, E)
        rotation = None if vit.rotation is None else vit.rotation[:, seen].unsqueeze(2)  # (2, B, 1, V, E / heads / 2)
        x = vit.transform(tokens.gather(1, index), rotation)[0]  # (B, V, E)
        x = self.mask_token.to(x.dtype).expand(batch, patches, -1).scatter(1, index, x) + self.positions  # (B, N, E)
        for block in self.decoder:
            x = block(x, vit.rotation)
        return self.voxels(self.norm(x)), self.cut(volume), hidden

    def in_voxels(self, patches: Tensor) -> Tensor:
        """A value of each patch at all of its voxels: (B, N) -> (B, 1, D, H, W)."""
        volume = patches.unflatten(1, (1, *self.grid))
        for axis, voxels in enumerate(self.patch, start=2):
            volume = volume.repeat_interleave(voxels, axis)
        return volume

    def as_volume(self, patches: Tensor) -> Tensor:
        """Patches put together: (B, N, P · C) -> (B, C, D, H, W)."""
        x = patches.unflatten(2, (*self.patch, -1)).unflatten(1, self.grid)  # (B, d, h, w, p, q, r, C)
        # (B, C, d, p, h, q, w, r) -> (B, C, D, H, W)
        return x.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)

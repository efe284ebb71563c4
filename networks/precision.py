"""Which number format the network computes in."""

import platform
from dataclasses import dataclass

import torch
from torch import nn
from torch.amp.autocast_mode import autocast

from networks.layers.cpu_kernels import Conv3d
from networks.registry import NetworkConfig, architecture_of

AMPERE = (8, 0)
CONVERTED = (nn.Linear, nn.Conv2d, nn.Conv3d, nn.ConvTranspose3d)  # of which autocast converts the weights


@dataclass(frozen=True)
class Precision:
    """A device and the format of the matrix products on it; the weights always are float32."""

    device: torch.device
    dtype: torch.dtype

    def autocast(self, cache: bool = True) -> autocast:
        """The context for a forward pass; in float32 it changes nothing.

        Args:
            cache: whether a weight that is used twice is converted once.
        """
        return autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32, cache_enabled=cache)

    def convert_weights(self, network: nn.Module) -> None:
        """Convert once what autocast would convert in each forward pass, in a network that is no longer trained."""
        if self.dtype == torch.float32:
            return
        for module in network.modules():
            # our own convolutions choose their format
            if isinstance(module, CONVERTED) and not isinstance(module, Conv3d):
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.to(self.dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """The scaler for the loss; it does nothing unless the format is float16."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def __str__(self) -> str:
        return str(self.dtype).removeprefix("torch.")


def choose_precision(device: torch.device, amp: bool, config: NetworkConfig) -> Precision:
    """float32 without ``amp``; with it bfloat16 where the hardware multiplies it, float16 on GPUs before Ampere."""
    if not amp:
        return Precision(device, torch.float32)
    if device.type == "cuda":
        newer = torch.cuda.get_device_capability(device) >= AMPERE
        return Precision(device, torch.bfloat16 if newer else torch.float16)
    # where a volume is two voxels deep oneDNN's bfloat16 kernel for the weights' gradient of a 3×3×3 convolution
    # (jit_bf16:avx512_core_bf16 in torch 2.13) reads memory that nobody wrote: noise or NaN
    unsafe = architecture_of(config).declared("unsafe_bfloat16_roi_x")
    safe = config.img_size[0] not in (unsafe(config) if callable(unsafe) else unsafe)
    return Precision(device, torch.bfloat16 if safe and _cpu_multiplies_bfloat16() else torch.float32)


def _cpu_multiplies_bfloat16() -> bool:
    """Other CPUs emulate bfloat16, which is slower than float32."""
    if platform.machine() in ("arm64", "aarch64"):
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()

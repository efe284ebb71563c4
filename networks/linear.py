"""Linear layers for tokens, fast in float32 on CPUs too."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """``nn.Linear`` by way of :func:`linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, N, inputs) -> (B, N, outputs)."""
        if torch.jit.is_scripting():
            return F.linear(input, self.weight, self.bias)
        return linear(input, self.weight, self.bias)


def linear(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear`` of (B, N, inputs); in float32 on a CPU as a convolution.

    Torch leaves a linear layer to MKL and a convolution to oneDNN, which takes half as long on AMD's CPUs.
    """
    if not _torch_takes_mkl(tokens, weight):
        return F.linear(tokens, weight, bias)
    # (B, N, C) -> (B, N, 1, C) -> (B, C, N, 1) and back, so that strides say that channels lie together
    volume = F.conv2d(tokens.unsqueeze(2).permute(0, 3, 1, 2), weight[:, :, None, None], bias)
    return volume.permute(0, 2, 3, 1).squeeze(2)


def is_traced() -> bool:
    """Whether what is computed is written down, for a compiler or another program, to which a detour is none."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


def _torch_takes_mkl(tokens: Tensor, weight: Tensor) -> bool:
    return (
        tokens.dtype == weight.dtype == torch.float32
        and tokens.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and not is_traced()
        and torch.get_num_threads() > 1  # with one torch leaves convolutions by a single weight to MKL as well
    )

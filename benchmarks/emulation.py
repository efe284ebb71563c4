"""bfloat16 at nearly the speed of float32, on CPUs without bfloat16 hardware."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from networks.precision import choose_precision
from networks.registry import NetworkConfig

_ATEN = torch.ops.aten
# operations that multiply matrices; attention is left to torch, which is fast for so few tokens
_PRODUCTS = {
    _ATEN.mm, _ATEN.bmm, _ATEN.addmm, _ATEN.linear, _ATEN.matmul,
    _ATEN.convolution, _ATEN.convolution_backward, _ATEN.conv3d, _ATEN.conv_transpose3d,
}  # fmt: skip


class EmulatedBfloat16(TorchDispatchMode):
    """Compute products of bfloat16 tensors in float32, and round the results to bfloat16.

    Hardware does the same. Without it torch's own kernels take minutes for a training step.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        of_bfloat16 = any(isinstance(value, Tensor) and value.dtype == torch.bfloat16 for value in args)
        if not of_bfloat16 or func.overloadpacket not in _PRODUCTS:
            return func(*args, **kwargs)
        args, kwargs = tree_map_only(Tensor, Tensor.float, (args, kwargs))
        return tree_map_only(Tensor, Tensor.bfloat16, func(*args, **kwargs))


def bfloat16(device: torch.device, config: NetworkConfig) -> AbstractContextManager[object]:
    """A context for computing a network in bfloat16 on a device. It emulates bfloat16 where the device has none."""
    in_hardware = choose_precision(device, True, config).dtype == torch.bfloat16
    return nullcontext() if in_hardware else EmulatedBfloat16()

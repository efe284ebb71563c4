"""bfloat16 at nearly the speed of float32 on CPUs that don't multiply it."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from networks.precision import choose_precision

_ATEN = torch.ops.aten
# what multiplies matrices, with gradients and without; attention torch does itself, since that of so few tokens is fast
_PRODUCTS = {
    _ATEN.mm, _ATEN.bmm, _ATEN.addmm, _ATEN.linear, _ATEN.matmul,
    _ATEN.convolution, _ATEN.convolution_backward, _ATEN.conv3d, _ATEN.conv_transpose3d,
}  # fmt: skip


class EmulatedBfloat16(TorchDispatchMode):
    """Products of bfloat16 tensors are summed in float32, and what comes out is rounded to bfloat16.

    That is what the hardware does. Without it torch does so too, by kernels that take minutes for a training step.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        of_bfloat16 = any(isinstance(value, Tensor) and value.dtype == torch.bfloat16 for value in args)
        if not of_bfloat16 or func.overloadpacket not in _PRODUCTS:
            return func(*args, **kwargs)
        args, kwargs = tree_map_only(Tensor, Tensor.float, (args, kwargs))
        return tree_map_only(Tensor, Tensor.bfloat16, func(*args, **kwargs))


def bfloat16(device: torch.device, roi: tuple[int, int, int]) -> AbstractContextManager[object]:
    """What to compute in bfloat16 on a device within; where the hardware multiplies it, that changes nothing.

    Args:
        roi: the network's window in voxels.
    """
    in_hardware = choose_precision(device, True, roi).dtype == torch.bfloat16
    return nullcontext() if in_hardware else EmulatedBfloat16()

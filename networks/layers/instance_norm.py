"""Instance normalisation that keeps a volume's memory layout, and whose gradient is right in any."""

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Norm
from torch import Tensor, nn

LAYOUT_KEEPING_INSTANCE = "layout_keeping_instance"  # how MONAI's blocks ask for this norm


class InstanceNorm3d(nn.InstanceNorm3d):
    """``nn.InstanceNorm3d`` by way of torch's batch norm, which for a batch of one sample is the same.

    torch's own instance norm copies a volume whose channels lie together (``channels_last_3d``) into another layout
    and back, where its batch norm has kernels for both. And on a CPU the gradient of torch's own is wrong (2.6
    and 2.13) for a batch of one whose gradient comes with the channels together.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise each channel of each sample of (B, C, D, H, W)."""
        channels_together = not input.is_contiguous() and input.is_contiguous(memory_format=torch.channels_last_3d)
        without_gradient = torch.jit.is_tracing() or not torch.is_grad_enabled()
        if not channels_together and not self.training and without_gradient:
            # nothing is copied, and this is what exporters know and what a trace can take for a batch of any size
            return F.instance_norm(input, weight=self.weight, bias=self.bias, eps=self.eps)
        if len(input) == 1:
            return self._normalised(input)
        return torch.cat([self._normalised(sample) for sample in input.split(1)])

    def _normalised(self, sample: Tensor) -> Tensor:
        return F.batch_norm(sample, None, None, self.weight, self.bias, training=True, eps=self.eps)


@Norm.factory_function(LAYOUT_KEEPING_INSTANCE)
def _instance_norm(dim: int) -> type[InstanceNorm3d]:
    assert dim == 3
    return InstanceNorm3d

"""Instance normalisation that keeps a volume's memory layout, and whose gradient is right in any."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class InstanceNorm3d(nn.InstanceNorm3d):
    """``nn.InstanceNorm3d`` by way of torch's batch norm, which computes the same for a batch of one sample.

    torch's own instance norm copies a volume whose channels lie together (``channels_last_3d``) into another layout and
    back; its batch norm has kernels for both. On a CPU the gradient of torch's own is also wrong (2.6 and 2.13) for a
    batch of one whose gradient comes with the channels together.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise each channel of each sample of (B, C, D, H, W)."""
        channels_together = not input.is_contiguous() and input.is_contiguous(memory_format=torch.channels_last_3d)
        # a trace must hold for batches of any size
        without_gradient = torch.jit.is_tracing() or not torch.is_grad_enabled()
        if not channels_together and not self.training and without_gradient:
            return F.instance_norm(input, weight=self.weight, bias=self.bias, eps=self.eps)  # copies nothing here
        if len(input) == 1:
            return self._normalised(input)
        return torch.cat([self._normalised(sample) for sample in input.split(1)])

    def _normalised(self, sample: Tensor) -> Tensor:
        return F.batch_norm(sample, None, None, self.weight, self.bias, training=True, eps=self.eps)

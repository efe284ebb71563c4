"""The layout-keeping instance norm against torch's own."""

import pytest
import torch
from torch import nn

from networks.instance_norm import InstanceNorm3d
from networks.unetr import UNETR


@pytest.mark.parametrize("batch", [1, 3])
def test_values_and_gradients_are_those_of_torch_and_the_layout_stays(batch: int) -> None:
    volume = (5 + 3 * torch.randn(batch, 4, 5, 6, 7)).contiguous(memory_format=torch.channels_last_3d)
    weights = torch.randn_like(volume)
    ours, theirs = volume.clone().requires_grad_(), volume.double().contiguous().requires_grad_()
    result, expected = InstanceNorm3d(4)(ours), nn.InstanceNorm3d(4)(theirs)
    assert result.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)
    (result * weights).sum().backward()
    (expected * weights.double()).sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-5)


def test_the_network_gives_the_same_logits_in_both_layouts() -> None:
    torch.manual_seed(0)
    network = UNETR(1, 3, 32, feature_size=4, hidden_size=24, mlp_dim=32, num_heads=2).eval()
    windows = torch.randn(2, 1, 32, 32, 32)
    with torch.inference_mode():
        plain = network(windows)
        there = network.to(memory_format=torch.channels_last_3d)(windows)  # type: ignore[call-overload]
    assert there.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(there, plain, rtol=1e-4, atol=1e-4)

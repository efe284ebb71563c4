"""The layout-keeping instance norm against its formula in float64."""

import pytest
import torch
from torch import Tensor

from networks import build_network
from networks.layers import optimize_for_cpu
from networks.layers.instance_norm import InstanceNorm3d

LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]


def by_the_formula(volume: Tensor) -> Tensor:
    centred = volume - volume.mean((2, 3, 4), keepdim=True)
    return centred / torch.sqrt(centred.square().mean((2, 3, 4), keepdim=True) + 1e-5)


# torch's own instance norm fails here for a batch of one, a plain volume and a gradient with channels last
@pytest.mark.parametrize("of_volume", LAYOUTS)
@pytest.mark.parametrize("of_gradient", LAYOUTS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
def test_values_and_gradients_are_those_of_the_formula_and_the_layout_stays(
    batch: int, training: bool, of_gradient: torch.memory_format, of_volume: torch.memory_format
) -> None:
    volume = (5 + 3 * torch.randn(batch, 4, 5, 6, 7)).contiguous(memory_format=of_volume)
    gradient = torch.randn(volume.shape).contiguous(memory_format=of_gradient)
    ours, exact = volume.clone().requires_grad_(), volume.double().requires_grad_()
    result, expected = InstanceNorm3d(4).train(training)(ours), by_the_formula(exact)
    assert result.is_contiguous(memory_format=of_volume)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)
    result.backward(gradient)
    expected.backward(gradient.double())
    assert ours.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=1e-4, atol=1e-5)


def test_the_network_gives_the_same_logits_in_both_layouts() -> None:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "feature_size": 4, "hidden_size": 24, "mlp_dim": 32, "num_heads": 2}
    network = optimize_for_cpu(build_network("unetr", out_channels=3, **sizes)).eval()
    windows = torch.randn(2, 1, 32, 32, 32)
    with torch.inference_mode():
        plain = network(windows)
        there = network.to(memory_format=torch.channels_last_3d)(windows)  # type: ignore[call-overload]
    torch.testing.assert_close(there, plain, rtol=1e-4, atol=1e-4)

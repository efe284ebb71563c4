"""Memory layouts: that channels stay together all the way through the network, and gradients without gaps."""

import pytest
import torch
from torch import Tensor, nn

from networks import build_network
from networks.layers import optimize_for_cpu
from networks.layers.layout import in_layout_of, with_dense_gradient
from networks.precision import choose_precision
from networks.unetr import UNETRConfig
from utils.distributed.process import Process

CPU = torch.device("cpu")
TOGETHER = torch.channels_last_3d


@pytest.mark.parametrize("channels", [1, 2])
def test_a_volume_takes_the_layout_of_another(channels: int) -> None:
    plain = torch.randn(2, channels, 3, 4, 5)
    together = in_layout_of(torch.zeros(2, 7, 3, 4, 5).to(memory_format=TOGETHER), plain)
    assert torch.equal(together, plain)
    assert together.stride() == (60 * channels, 1, 20 * channels, 5 * channels, channels)
    assert in_layout_of(torch.zeros(2, 7, 3, 4, 5), plain) is plain


def test_the_gradient_of_a_part_has_no_gaps() -> None:
    first, second = (torch.randn(1, 4, 3, 3, 3).to(memory_format=TOGETHER).requires_grad_() for _ in range(2))
    seen: dict[str, Tensor] = {}
    parts = {"as it is": first * 1, "dense": second * 1}
    parts["as it is"].register_hook(lambda gradient: seen.update({"as it is": gradient}))
    parts["dense"].register_hook(lambda gradient: seen.update({"dense": gradient}))
    whole = torch.cat([parts["as it is"], with_dense_gradient(parts["dense"])], 1)
    assert whole.is_contiguous(memory_format=TOGETHER)
    factor = torch.randn(whole.shape).to(memory_format=TOGETHER)
    (whole * factor).sum().backward()
    assert seen["as it is"].stride() == (216, 1, 72, 24, 8)
    assert seen["dense"].stride() == (108, 1, 36, 12, 4)
    assert second.grad is not None
    torch.testing.assert_close(second.grad, factor[:, 4:], rtol=0, atol=0)


def test_channels_are_together_all_the_way_through_the_network() -> None:
    """A single volume or gradient in the other layout costs the copies to it and back, which no result shows."""
    precision = choose_precision(CPU, True, UNETRConfig())
    if precision.dtype != torch.bfloat16:
        pytest.skip("this CPU has no bfloat16, and in float32 torch takes the plain layout for small volumes")
    sizes = {"img_size": 32, "feature_size": 4, "hidden_size": 24, "mlp_dim": 32, "num_heads": 2}
    network = Process(CPU).place(optimize_for_cpu(build_network("unetr", out_channels=3, **sizes)))
    apart: list[str] = []
    tensors = 0

    def look(name: str, tensor: Tensor) -> None:
        nonlocal tensors
        if tensor.dim() == 5 and tensor.shape[1] > 1 and max(tensor.shape[2:]) > 2:
            tensors += 1
            if not tensor.is_contiguous(memory_format=TOGETHER):
                apart.append(f"{name} {tuple(tensor.shape)}")

    def watch(name: str, module: nn.Module) -> None:
        def after(_: nn.Module, __: tuple[Tensor, ...], result: Tensor) -> None:
            look(f"result of {name}", result)
            if isinstance(module, nn.LeakyReLU):
                result.register_hook(lambda gradient: look(f"gradient after {name}", gradient))

        module.register_forward_hook(after)

    for name, module in network.named_modules():
        if not list(module.children()) and not name.startswith("vit"):
            watch(name, module)
    with precision.autocast():
        logits = network(torch.randn(2, 1, 32, 32, 32))  # for the last layer, in float32, a single one were too small
    logits.float().square().sum().backward()
    assert apart == []
    assert tensors > 40

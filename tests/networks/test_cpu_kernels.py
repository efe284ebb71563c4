"""Layers that take other kernels than torch would give what torch's give."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from networks.layers import optimize_for_cpu
from networks.layers.cpu_kernels import MOST_WEIGHTS, Conv3d, Linear, MatrixAttention
from networks.vit import SelfAttention, ViTConfig

TOGETHER = torch.channels_last_3d
SIZES = {"inputs": 96, "outputs": 40, "tokens": 216}


@pytest.fixture(params=[1, 2], autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Torch chooses kernels by them."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def kernels(layer: nn.Module, input: Tensor) -> set[str]:
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        layer(input)
    return {event.key for event in profiled.key_averages()}


def results_and_gradients(layers: tuple[nn.Module, ...], values: Tensor) -> tuple[list[Tensor], list[Any]]:
    """What each layer makes of the same values, and the gradients of them and its parameters in the same direction."""
    inputs = [values.clone().requires_grad_() for _ in layers]
    results: list[Tensor] = [layer(input) for layer, input in zip(layers, inputs, strict=True)]
    direction = torch.randn(results[0].shape)
    gradients = []
    for layer, input, result in zip(layers, inputs, results, strict=True):
        (result * direction).sum().backward()
        gradients.append([input.grad, *(parameter.grad for parameter in layer.parameters())])
    return results, gradients


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
def test_results_and_gradients_are_torchs(batch: int, bias: bool) -> None:
    torch.manual_seed(0)
    inputs, outputs, count = SIZES.values()
    theirs = nn.Linear(inputs, outputs, bias=bias)
    ours = Linear(inputs, outputs, bias=bias)
    ours.load_state_dict(theirs.state_dict())
    results, gradients = results_and_gradients((ours, theirs), torch.randn(batch, count, inputs))
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-4)
    assert results[0].is_contiguous()  # otherwise the next layer norm would have to copy it


@pytest.mark.skipif(
    not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()),
    reason="torch hasn't both libraries here",
)
def test_it_is_a_convolution_in_float32_alone() -> None:
    layer = Linear(SIZES["inputs"], SIZES["outputs"])
    tokens = torch.randn(1, SIZES["tokens"], SIZES["inputs"])
    assert "aten::mkldnn_convolution" in kernels(layer, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        assert "aten::mkldnn_convolution" not in kernels(layer, tokens)
    assert "aten::mkldnn_convolution" not in kernels(layer.double(), tokens.double())
    assert "aten::mkldnn_convolution" not in kernels(layer.float(), tokens[0])
    few = tokens[:, :12]  # for which torch would take its slowest convolution
    assert not [name for name in kernels(layer, few) if "conv" in name]


def test_other_programs_get_a_linear_layer() -> None:
    layer = Linear(SIZES["inputs"], SIZES["outputs"])
    tokens = torch.randn(2, SIZES["tokens"], SIZES["inputs"])
    for strict in (False, True):
        graph = torch.export.export(layer, (tokens,), strict=strict).graph
        assert "linear" in str(graph)
        assert "conv" not in str(graph)
    torch.testing.assert_close(torch.compile(layer, backend="eager", fullgraph=True)(tokens), layer(tokens))


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("shape", [(1, 1, 96, 80, 3), (1, 2, 96, 80, 3), (2, 1, 96, 80, 3), (1, 1, 6, 5, 4)])
@pytest.mark.parametrize("together", [True, False])
def test_a_convolution_is_torchs_in_the_layout_of_its_input(
    shape: tuple[int, ...], kernel: int, together: bool
) -> None:
    torch.manual_seed(0)
    theirs = nn.Conv3d(shape[1], 5, kernel, padding=kernel // 2)
    ours = Conv3d(shape[1], 5, kernel, padding=kernel // 2)
    ours.load_state_dict(theirs.state_dict())
    values = torch.randn(shape)
    if together:
        values = values.permute(0, 2, 3, 4, 1).clone(memory_format=torch.contiguous_format).permute(0, 4, 1, 2, 3)
    results, gradients = results_and_gradients((ours, theirs), values)
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-2)  # sums over 46,080 voxels
    assert results[0].is_contiguous(memory_format=TOGETHER if together else torch.contiguous_format)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN here")
@pytest.mark.parametrize(("channels", "kernel"), [(1, 3), (1, 1), (16, 1)])
def test_a_single_window_is_convolved_by_onednn(channels: int, kernel: int) -> None:
    volume = torch.randn(1, channels, 96, 80, 3)
    assert "aten::mkldnn_convolution" in kernels(Conv3d(channels, 5, kernel), volume)
    few = volume[:, :, :6, :5]
    assert not [name for name in kernels(Conv3d(channels, 5, kernel), few) if "dilated" in name]


class Fast(nn.Sequential):
    fast_layers = True


def attention(dropout_rate: float = 0.0) -> SelfAttention:
    torch.manual_seed(0)
    return SelfAttention(ViTConfig(hidden_size=12, num_heads=3, dropout_rate=dropout_rate))


def flash(layer: nn.Module, input: Tensor) -> bool:
    return any("scaled_dot_product" in name for name in kernels(layer, input))


def test_attention_in_bfloat16_is_nearly_that_in_float32() -> None:
    theirs, ours = attention(), optimize_for_cpu(Fast(attention()))[0]
    assert type(ours) is MatrixAttention
    ours.load_state_dict(theirs.state_dict())
    tokens, direction = 3 * torch.randn(2, 40, 12), torch.randn(2, 40, 12)
    found = []
    for layer, in_bfloat16 in ((theirs, False), (ours, True)):
        input = tokens.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bfloat16):
            result = layer(input)
        (result * direction).sum().backward()
        found.append([result.float(), input.grad, *(parameter.grad for parameter in layer.parameters())])
    for expected, mine in zip(*found, strict=True):
        # bfloat16 has 8 bits, and an error of a few roundings
        assert (mine - expected).abs().max() < 8 * 2**-8 * expected.abs().max()


def test_attention_is_torchs_unless_matrix_products_are_faster() -> None:
    layer = optimize_for_cpu(Fast(attention()))[0]
    tokens = torch.randn(1, 40, 12)
    assert flash(layer, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        assert not flash(layer, tokens)
        most = int((MOST_WEIGHTS / 3) ** 0.5)  # tokens with 3 heads
        assert not flash(layer, torch.randn(1, most, 12))
        assert flash(layer, torch.randn(1, most + 1, 12))
    graph = torch.export.export(layer.bfloat16(), (tokens.bfloat16(),)).graph
    assert "scaled_dot_product" in str(graph)


def test_attention_drops_weights_in_training_alone() -> None:
    layer = optimize_for_cpu(Fast(attention(0.5)))[0]
    assert isinstance(layer, SelfAttention)
    layer.drop_output.p = 0.0
    tokens = torch.randn(1, 40, 12)
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(layer(tokens), layer(tokens))
        layer.eval()
        assert torch.equal(layer(tokens), layer(tokens))

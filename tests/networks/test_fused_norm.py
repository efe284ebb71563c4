"""Norm, shortcut and activation as one, against torch in float64."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetResBlock
from torch import Tensor, nn

from networks.layers import fused_norm, optimize_for_cpu
from networks.layers.fused_norm import BasicBlock, ResBlock, norm_act
from networks.layers.instance_norm import InstanceNorm3d
from tests.conftest import threads
from utils.system.openmp import can_run_kernels

pytestmark = pytest.mark.skipif(
    not can_run_kernels(), reason="numba isn't installed, or torch's OpenMP is unknown: torch's own layers are used"
)
SHAPE = (2, 6, 19, 20, 21)  # 42 voxels in a row of memory, 2,688 in a chunk, which divide nothing
ACTIVATION = nn.LeakyReLU(0.01, inplace=True)


@pytest.fixture(autouse=True)
def volumes_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_norm, "LEAST", 0)


def volume(dtype: torch.dtype = torch.float32) -> Tensor:
    values = 3 * torch.randn(SHAPE) + 5 * torch.randn(1, SHAPE[1], 1, 1, 1)
    return values.to(dtype).contiguous(memory_format=torch.channels_last_3d)


def norm(affine: bool) -> InstanceNorm3d:
    result = InstanceNorm3d(SHAPE[1], affine=affine)
    if affine:
        nn.init.normal_(result.weight, 1, 0.3)
        nn.init.normal_(result.bias)
    return result


def sum_by_torch(
    features: Tensor, norm: InstanceNorm3d, shortcut: Tensor | None, norm_of_shortcut: InstanceNorm3d | None
) -> Tensor:
    """What the activation gets, in float64 and torch's plain layout."""
    total = torch.zeros(SHAPE, dtype=torch.float64)
    for one, layer in ((features, norm), (shortcut, norm_of_shortcut)):
        if one is not None and layer is not None:
            weight, bias = (None if weight is None else weight.double() for weight in (layer.weight, layer.bias))
            total = total + F.instance_norm(one.double().contiguous(), weight=weight, bias=bias)
        elif one is not None:
            total = total + one
    return total


@pytest.mark.parametrize("shortcut", ["none", "plain", "normalised"])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_torchs(dtype: torch.dtype, affine: bool, shortcut: str) -> None:
    torch.manual_seed(0)
    layers = [norm(affine), norm(affine) if shortcut == "normalised" else None]
    volumes = [volume(dtype), None if shortcut == "none" else volume(dtype)]
    gradient = torch.randn(SHAPE).to(dtype)  # in another layout
    assert volumes[0] is not None
    assert layers[0] is not None
    exact_sum = sum_by_torch(volumes[0], layers[0], volumes[1], layers[1])
    gradient[exact_sum.abs() < 1e-3] = 0  # rounding may move these voxels to the other slope
    found = []
    for exact in (False, True):
        inputs = [None if one is None else (one.double() if exact else one).clone().requires_grad_() for one in volumes]
        norms = [None if one is None else copy.deepcopy(one).double() if exact else one for one in layers]
        assert inputs[0] is not None
        assert norms[0] is not None
        if exact:
            result = F.leaky_relu(sum_by_torch(inputs[0], norms[0], inputs[1], norms[1]), 0.01)
        else:
            result = norm_act(inputs[0], norms[0], ACTIVATION, inputs[1], norms[1])
            assert "NormAct" in result.grad_fn.name()  # type: ignore[union-attr]
            assert result.is_contiguous(memory_format=torch.channels_last_3d)
            assert result.dtype == dtype
        result.backward(gradient.to(result.dtype))
        tensors = [result, *(one.grad for one in inputs if one is not None)]
        tensors += [weight.grad for one in norms if one is not None for weight in one.parameters()]
        found.append([one.double() for one in tensors if one is not None])
    bfloat16 = dtype == torch.bfloat16
    assert len(found[0]) == len(found[1])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2.0**-8 if bfloat16 else 1e-5, atol=1e-2 if bfloat16 else 2e-5)


def test_without_gradients_it_is_the_same() -> None:
    features, shortcut = volume(torch.bfloat16), volume(torch.bfloat16)
    results = [
        norm_act(features.clone().requires_grad_(grad), norm(False), ACTIVATION, shortcut) for grad in (True, False)
    ]
    assert torch.equal(results[0], results[1])


@pytest.mark.parametrize("shortcut", [False, True])
def test_no_result_depends_on_the_number_of_threads(shortcut: bool) -> None:
    features, other, layer = volume(), volume(), norm(True)
    results = []
    for number in (1, 2):
        inputs = [features.clone().requires_grad_(), other.clone().requires_grad_()]
        layer.zero_grad()
        with threads(number):
            result = norm_act(
                inputs[0], layer, ACTIVATION, inputs[1] if shortcut else None, layer if shortcut else None
            )
            result.square().sum().backward()
        results.append([result, *(one.grad for one in (*inputs, *layer.parameters()) if one.grad is not None)])
    assert len(results[0]) == 4 + shortcut
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_stays_none(bad: float) -> None:
    features = volume(torch.bfloat16)
    features[1, 2, 3, 4, 5] = bad
    result = norm_act(features, norm(False), ACTIVATION)
    assert result[1, 2].isnan().all()  # the mean isn't a number either
    assert result[0].isfinite().all()
    assert result[1, 3:].isfinite().all()


def test_equal_voxels() -> None:
    """Their variance is 0: only the bias is left."""
    layer = norm(True)
    result = norm_act(torch.full_like(volume(), 7.25), layer, nn.LeakyReLU(0.5))
    expected = torch.where(layer.bias > 0, layer.bias, layer.bias / 2)
    torch.testing.assert_close(result, expected.view(1, -1, 1, 1, 1).expand(SHAPE).contiguous(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [UnetResBlock, UnetBasicBlock])
@pytest.mark.parametrize("channels", [1, 4])  # with four the residual block has no convolution in its shortcut
@pytest.mark.parametrize("norm_name", ["instance", ("instance", {"affine": True}), "batch"])
def test_blocks_are_monais(kind: type[nn.Module], channels: int, norm_name: str) -> None:
    torch.manual_seed(0)
    theirs = kind(3, channels, 4, 3, 1, norm_name)
    ours = optimize_for_cpu(copy.deepcopy(theirs))
    assert type(ours) is (ResBlock if kind is UnetResBlock else BasicBlock)
    scan = torch.randn(2, channels, 9, 10, 11).contiguous(memory_format=torch.channels_last_3d)
    results = []
    for block in (theirs.double(), ours.to(memory_format=torch.channels_last_3d)):  # type: ignore[call-overload]
        one = scan.to(next(block.parameters()).dtype).requires_grad_()
        result = block(one)
        result.square().mean().backward()
        assert one.grad is not None
        results.append([result, one.grad, *(weight.grad for weight in block.parameters() if weight.grad is not None)])
    assert len(results[0]) == len(results[1])
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(second.double(), first, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("why", ["layout", "activation", "no kernels", "small"])
def test_what_the_kernels_dont_know_is_left_to_torch(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features = volume() if why != "layout" else volume().contiguous()
    activation = ACTIVATION if why != "activation" else nn.ReLU()
    if why == "no kernels":
        monkeypatch.setattr(fused_norm, "can_run_kernels", lambda: False)
    if why == "small":
        monkeypatch.setattr(fused_norm, "LEAST", features.numel() + 1)
    monkeypatch.setattr(fused_norm, "_kernels", lambda: pytest.fail("a kernel was asked for"))
    result = norm_act(features.clone(), norm(False), activation, features, norm(False))
    expected = activation(2 * F.instance_norm(features.double()))
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-4)

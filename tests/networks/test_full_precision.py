"""The layers that autocast doesn't round."""

import pytest
import torch
import torch.nn.functional as F
from monai.networks.blocks import UnetOutBlock, UnetrBasicBlock
from torch import Tensor, nn

from networks import build_network
from networks.layers import optimize_for_cpu
from networks.layers.full_precision import OutBlock, ScanResBlock, in_parts, normalised_kernels

TINY = {"out_channels": 2, "img_size": 16, "feature_size": 2, "hidden_size": 8, "mlp_dim": 8, "num_heads": 2}


class Fast(nn.Sequential):
    """A network that gets all layers of ours."""

    fast_layers = True


def monais_block(features: int, norm: str, res_block: bool = True) -> UnetrBasicBlock:
    return UnetrBasicBlock(3, 1, features, 3, 1, norm, res_block)


def our_block(features: int, norm: str, res_block: bool = True) -> UnetrBasicBlock:
    block = optimize_for_cpu(Fast(monais_block(features, norm, res_block)))[0]
    assert isinstance(block, UnetrBasicBlock)
    assert isinstance(block.layer, ScanResBlock) == res_block
    return block


def in_bfloat16(network: nn.Module, *inputs: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        result: Tensor = network(*inputs)
    return result


def test_logits_are_not_rounded() -> None:
    """1 + 2⁻⁹ is 1 in bfloat16, and so is 257 256."""
    out = OutBlock(3, 1, 2)
    out.conv.conv.weight.data.fill_(1)
    out.conv.conv.bias.data.copy_(torch.tensor([256.0, 2.0**-9]))
    voxel = torch.ones(1, 1, 1, 1, 1)
    assert in_bfloat16(out, voxel).flatten().tolist() == [257, 1 + 2.0**-9]
    theirs = UnetOutBlock(3, 1, 2)
    theirs.load_state_dict(out.state_dict())
    assert in_bfloat16(theirs, voxel).flatten().tolist() == [256, 1]


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_difference_that_bfloat16_rounds_away_passes_along_the_residual_connection(norm: str) -> None:
    """Of voxels 1 and 1 + 2⁻⁹ the norm makes -1 and 1, but for its ε. Rounded they would be equal, and give 0."""
    scan = torch.ones(1, 1, 2, 2, 2)
    scan[..., 1] += 2.0**-9
    results = []
    for block in (our_block(2, norm), monais_block(2, norm)):
        for name, parameter in block.named_parameters():
            parameter.data.fill_(100 if "conv3" in name else 1 if "norm3.weight" in name else 0)
        results.append(in_bfloat16(block, scan)[..., 1].float())
    torch.testing.assert_close(results[0], torch.ones_like(results[0]), rtol=0.01, atol=0)
    torch.testing.assert_close(results[1], torch.zeros_like(results[1]))


@pytest.mark.parametrize("channels", [1, 3])
def test_kernels_normalise_what_they_convolve(channels: int) -> None:
    torch.manual_seed(0)
    eps = 0.1  # large enough to be seen
    volumes = [torch.randn(2, channels, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 2]
    volumes = [volumes[0].clone().requires_grad_() for _ in range(2)]
    weights = [torch.ones(4, channels, 1, 1, 1, dtype=torch.float64).cumsum(0).requires_grad_() for _ in range(2)]
    centred, kernels = normalised_kernels(volumes[0], weights[0], eps)
    result = torch.cat([F.conv3d(one, kernel) for one, kernel in zip(centred.split(1), kernels, strict=True)])
    expected = F.instance_norm(F.conv3d(volumes[1], weights[1]), eps=eps)
    torch.testing.assert_close(result, expected)
    for one in (result, expected):
        (one * torch.arange(one.numel(), dtype=torch.float64).view(one.shape).cos()).sum().backward()
    torch.testing.assert_close(volumes[0].grad, volumes[1].grad)
    torch.testing.assert_close(weights[0].grad, weights[1].grad)


def test_numbers_and_remainders_are_convolved_to_what_the_numbers_were() -> None:
    torch.manual_seed(0)
    volume, kernels = torch.randn(1, 2, 3, 4, 5), torch.randn(1, 4, 2, 1, 1, 1)
    expected = F.conv3d(volume, kernels[0])
    parts, their_kernels = in_parts(volume, kernels, torch.bfloat16)
    assert parts.dtype == their_kernels.dtype == torch.bfloat16
    torch.testing.assert_close(F.conv3d(parts.float(), their_kernels[0].float()), expected, rtol=0, atol=2.0**-13)
    rounded = F.conv3d(volume.bfloat16().float(), kernels[0].bfloat16().float())
    assert (rounded - expected).abs().max() > 2.0**-9


@pytest.mark.parametrize("res_block", [True, False])
@pytest.mark.parametrize("features", [1, 4])
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_in_float32_the_block_is_monais(norm: str, features: int, res_block: bool) -> None:
    """One feature is as many as there are channels, so that the residual connection has no layer."""
    torch.manual_seed(0)
    ours = our_block(features, norm, res_block)
    torch.manual_seed(0)
    theirs = monais_block(features, norm, res_block)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)  # by the same random numbers
    scans = [torch.randn(2, 1, 6, 5, 4, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2)]
    results = [block(scan) for block, scan in zip((ours, theirs), scans, strict=True)]
    torch.testing.assert_close(results[0], results[1])
    for result in results:
        (result * torch.arange(result.numel()).view(result.shape).cos()).sum().backward()
    torch.testing.assert_close(scans[0].grad, scans[1].grad, rtol=1e-4, atol=1e-5)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-4)


def test_logits_of_the_network_are_float32_in_training_too() -> None:
    network = optimize_for_cpu(build_network("unetr", **TINY, deep_supervision=True))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = network(torch.rand(2, 1, 16, 16, 16))
    assert [logits.dtype for logits in outputs] == [torch.float32] * 4
    sum(logits.square().mean() for logits in outputs).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_network_converted_as_a_whole_computes_in_its_format(dtype: torch.dtype) -> None:
    network = optimize_for_cpu(build_network("unetr", **TINY)).to(dtype)
    assert network(torch.rand(1, 1, 16, 16, 16, dtype=dtype)).dtype == dtype

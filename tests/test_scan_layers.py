"""The layers that read the scan, under autocast: numbers that bfloat16's 8 bits can't tell apart."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from networks.scan_layers import ScanConv3d, ScanLinear
from networks.unetr import UNETR

STEP = 2.0**-9  # bfloat16 rounds 1 + STEP to 1
autocast = partial(torch.autocast, "cpu", torch.bfloat16)


def difference(layer: type[nn.Conv3d] | type[nn.Linear], weights: list[float], voxels: list[float]) -> float:
    """What a layer makes of two voxels side by side, under autocast."""
    one = layer(1, 1, (1, 1, 2), bias=False) if issubclass(layer, nn.Conv3d) else layer(2, 1, bias=False)
    with torch.no_grad(), autocast():
        one.weight.copy_(torch.tensor(weights).view_as(one.weight))
        return float(one(torch.tensor(voxels).view(1, 1, 1, 1, 2)))


@pytest.mark.parametrize("layer", [ScanConv3d, ScanLinear])
@pytest.mark.parametrize(
    ("weights", "voxels"), [([1.0, -1.0], [1 + STEP, 1.0]), ([1 + STEP, -1.0], [1.0, 1.0])], ids=["voxels", "weights"]
)
def test_close_numbers_are_told_apart(
    layer: type[nn.Conv3d] | type[nn.Linear], weights: list[float], voxels: list[float]
) -> None:
    assert difference(layer.__mro__[1], weights, voxels) == 0  # torch's
    assert difference(layer, weights, voxels) == STEP


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_results_and_gradients_are_those_of_float32_rounded(channels: int, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    plain = nn.Conv3d(channels, 3, 3, padding=1, bias=False)
    layer = ScanConv3d(channels, 3, 3, padding=1, bias=False)
    layer.load_state_dict(plain.state_dict())
    scans = [(torch.rand(2, channels, 4, 5, 6).to(memory_format=layout)).requires_grad_() for _ in range(2)]
    scans[1].data.copy_(scans[0].data)
    expected: Tensor = plain(scans[0])
    torch.testing.assert_close(layer(scans[1]), expected, rtol=0, atol=0)  # without autocast it is torch's
    with autocast():
        result: Tensor = layer(scans[1])
    assert result.dtype == torch.bfloat16
    # the result is rounded, and the product of both remainders left out
    torch.testing.assert_close(result.float(), expected, rtol=2.0**-8, atol=2.0**-16)
    factor = torch.randn(expected.shape).bfloat16()
    (expected * factor.float()).sum().backward()
    (result * factor).sum().backward()
    for ours, theirs in ((layer.weight, plain.weight), (scans[1], scans[0])):
        assert ours.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=2.0**-6, atol=2.0**-6)


@pytest.mark.parametrize("pos_embed", ["perceptron", "conv"])
def test_each_path_through_the_network_begins_with_them(pos_embed: str) -> None:
    network = UNETR(1, 2, 16, feature_size=4, hidden_size=12, mlp_dim=8, num_heads=2, pos_embed=pos_embed).eval()
    results: dict[str, Tensor] = {}
    for name in ("vit.patch_embedding", "encoder1.layer.conv1", "encoder1.layer.conv3"):
        module = network.get_submodule(name)
        module.register_forward_hook(lambda _, __, result, name=name: results.update({name: result.float()}))
    scan = torch.rand(1, 1, 16, 16, 16)
    seen = []
    for volume in (scan, scan.bfloat16().float()):
        with torch.no_grad(), autocast():
            network(volume)
        seen.append(dict(results))
    assert len(results) == 3
    for name in results:
        assert not torch.equal(seen[0][name], seen[1][name]), name


@pytest.mark.parametrize(("res_block", "feature_size"), [(False, 4), (True, 1)])
def test_where_no_second_convolution_reads_the_scan(res_block: bool, feature_size: int) -> None:
    network = UNETR(1, 2, 16, feature_size, hidden_size=12, mlp_dim=8, num_heads=2, res_block=res_block)
    assert isinstance(network.encoder1.layer.conv1.conv, ScanConv3d)
    assert not hasattr(network.encoder1.layer, "conv3")
    with autocast():
        assert network(torch.rand(2, 1, 16, 16, 16)).shape == (2, 2, 16, 16, 16)

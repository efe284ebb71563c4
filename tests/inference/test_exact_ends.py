"""The layers that torch keeps exact beside another engine, and what lies between them."""

from typing import Any

import pytest
import torch

from networks import NETWORKS, build_network
from networks.layers import optimize_for_cpu
from networks.precision import Precision
from tests.inference.conftest import CPU, member
from utils.inference.exact_ends import BetweenEnds, find_exact_ends
from utils.inference.openvino import compile_network


@pytest.mark.parametrize(
    "changes",
    [{}, {"in_channels": 2}, {"res_block": False}, {"deep_supervision": True}, {"in_channels": 2, "feature_size": 4}],
    ids=str,
)
def test_the_parts_give_the_whole_networks_logits(changes: dict[str, Any]) -> None:
    network = optimize_for_cpu(member(**changes)[0])
    ends = find_exact_ends(network)
    assert ends is not None
    window = torch.randn(1, changes.get("in_channels", 1), 16, 16, 32, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        expected = network(window)
        found = ends.logits(BetweenEnds(network, ends)(*ends.inputs(window)))
        again = network(window)
    # features and residual are rounded to 8 bits
    assert (found - expected).square().mean().sqrt() < 0.01 * expected.square().mean().sqrt()
    assert torch.equal(again, expected)  # it was left as it was


def test_the_residual_reads_the_scan_without_rounding() -> None:
    """HU 100.0 to 100.3 of a window of 425 HU are one number in bfloat16, but not before the mean is subtracted."""
    network = optimize_for_cpu(member(feature_size=4)[0])
    step = torch.tensor([0.0, 0.1, 0.2, 0.3], dtype=torch.float64) / 425
    scan = (275 / 425 + step).float().repeat(16 * 16 * 8).view(1, 1, 16, 16, 32)
    assert len(scan.bfloat16().unique()) == 1
    ends = find_exact_ends(network)
    assert ends is not None
    with torch.inference_mode():
        residual = ends.inputs(scan)[1]
        weight = network.encoder1.layer.conv3.conv.weight.double().flatten()  # type: ignore[union-attr, operator]
    assert (residual.shape, residual.dtype) == ((1, 16, 16, 32, 4), torch.bfloat16)
    variance = step.square().mean() - step.mean() ** 2
    expected = (step - step.mean())[:, None] * weight / (weight**2 * variance + 1e-5).sqrt()  # instance norm
    torch.testing.assert_close(residual[0, 0, 0, :4].double(), expected, atol=0, rtol=0.01)


def test_openvinos_logits_are_not_rounded(cache: Any) -> None:
    network, description = member()
    window = torch.randn(1, 1, 16, 16, 32, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        logits = compile_network(network, description, Precision(CPU, torch.bfloat16), print)(window)
    assert (logits != logits.bfloat16()).float().mean() > 0.9


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "unetr"])
def test_other_networks_have_no_exact_layers(name: str) -> None:
    assert find_exact_ends(optimize_for_cpu(build_network(name, img_size=(64, 64, 64)))) is None

"""The number format for each kind of device."""

import pytest
import torch

from networks import precision
from networks.layers import optimize_for_cpu
from networks.precision import Precision, choose_precision
from networks.unetr import UNETR, UNETRConfig

CONFIG = UNETRConfig(img_size=(96, 96, 96))


@pytest.mark.parametrize(("supported", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_cpus_use_bfloat16_only_where_they_multiply_it(
    monkeypatch: pytest.MonkeyPatch, supported: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(precision, "_cpu_multiplies_bfloat16", lambda: supported)
    assert choose_precision(torch.device("cpu"), amp=True, config=CONFIG).dtype == expected
    assert choose_precision(torch.device("cpu"), amp=False, config=CONFIG).dtype == torch.float32


def test_a_window_whose_gradients_are_unsound_in_bfloat16_has_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window of 16 voxels is one patch along x, of which the first convolutions make two voxels."""
    monkeypatch.setattr(precision, "_cpu_multiplies_bfloat16", lambda: True)

    def dtype_for(img_size: tuple[int, int, int]) -> torch.dtype:
        return choose_precision(torch.device("cpu"), amp=True, config=UNETRConfig(img_size=img_size)).dtype

    formats = [dtype_for((depth, 32, 32)) for depth in (16, 32, 48)]
    assert formats == [torch.float32, torch.bfloat16, torch.bfloat16]
    assert dtype_for((32, 16, 16)) == torch.bfloat16


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)])
def test_gpus_before_ampere_use_float16(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_precision(torch.device("cuda", 0), amp=True, config=CONFIG).dtype == expected
    assert choose_precision(torch.device("cuda", 0), amp=False, config=CONFIG).dtype == torch.float32


def test_autocast_computes_in_the_format_and_float32_is_left_alone() -> None:
    linear = torch.nn.Linear(4, 4)
    for dtype in (torch.bfloat16, torch.float32):
        with precision.Precision(torch.device("cpu"), dtype).autocast():
            assert linear(torch.zeros(1, 4)).dtype == dtype


def test_scaling_is_for_float16_alone() -> None:
    assert not precision.Precision(torch.device("cpu"), torch.float32).scaler().is_enabled()
    assert not precision.Precision(torch.device("cpu"), torch.bfloat16).scaler().is_enabled()
    assert precision.Precision(torch.device("cpu"), torch.float16).scaler().is_enabled()


def test_weights_converted_once_give_what_autocast_gives() -> None:
    config = UNETRConfig(
        out_channels=2, img_size=(16, 16, 16), feature_size=4, hidden_size=12, mlp_dim=8, num_heads=2, pos_embed="conv"
    )
    network = optimize_for_cpu(UNETR(config)).eval()
    bfloat16 = Precision(torch.device("cpu"), torch.bfloat16)
    volume = torch.randn(2, 1, 16, 16, 16)
    with torch.inference_mode(), bfloat16.autocast():
        expected = network(volume)
    bfloat16.convert_weights(network)
    with torch.inference_mode(), bfloat16.autocast():
        torch.testing.assert_close(network(volume), expected, rtol=0, atol=0)
    formats = {name: parameter.dtype for name, parameter in network.named_parameters()}
    assert formats["vit.patch_embedding.patch_embeddings.weight"] == torch.bfloat16
    assert formats["vit.blocks.3.attn.qkv.weight"] == torch.bfloat16
    assert formats["decoder3.transp_conv.conv.weight"] == torch.bfloat16
    assert formats["vit.norm.weight"] == formats["out.conv.conv.weight"] == torch.float32


def test_weights_of_a_float32_network_stay() -> None:
    network = torch.nn.Linear(2, 2)
    Precision(torch.device("cpu"), torch.float32).convert_weights(network)
    assert network.weight.dtype == torch.float32

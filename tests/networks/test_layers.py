"""``optimize_for_cpu``: which layers are swapped, and that the network stays the same."""

import copy

import pytest
import torch
from monai.networks.blocks import UnetOutBlock, UnetrBasicBlock, UnetrUpBlock
from monai.networks.blocks.dynunet_block import UnetResBlock
from torch import Tensor, nn

from networks import build_network
from networks.layers import optimize_for_cpu
from networks.layers.cpu_kernels import Conv3d, Linear, MatrixAttention
from networks.layers.full_precision import OutBlock, ScanResBlock
from networks.layers.fused_norm import ResBlock
from networks.layers.instance_norm import InstanceNorm3d
from networks.layers.layout import UpBlock
from networks.unetr import UNETR
from networks.vit import SelfAttention
from tests.networks.test_unetr import small

NORMS = pytest.mark.parametrize("norm_name", ["instance", "batch"])


def plain_and_optimized(norm_name: str, conv_stem: bool = False) -> tuple[UNETR, UNETR]:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "out_channels": 3, "feature_size": 4, "hidden_size": 24, "mlp_dim": 32}
    plain = small(norm_name=norm_name, conv_stem=conv_stem, **sizes).eval()
    return plain, optimize_for_cpu(copy.deepcopy(plain))


def volume(batch: int) -> Tensor:
    return torch.randn(batch, 1, 32, 32, 32, generator=torch.Generator().manual_seed(1))


@NORMS
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("conv_stem", [False, True])
def test_logits_in_float32_are_those_of_the_plain_network(batch: int, norm_name: str, conv_stem: bool) -> None:
    plain, optimized = plain_and_optimized(norm_name, conv_stem)
    with torch.inference_mode():
        torch.testing.assert_close(optimized(volume(batch)), plain(volume(batch)), rtol=1e-5, atol=1e-5)


@NORMS
@pytest.mark.parametrize("conv_stem", [False, True])
def test_logits_in_bfloat16_are_nearer_to_those_in_float32(norm_name: str, conv_stem: bool) -> None:
    """Soft tissue near the upper end of the window, where bfloat16 has steps of 2⁻⁸ for deviations of 2⁻⁶."""
    plain, optimized = plain_and_optimized(norm_name, conv_stem)
    scan = 1 + 2**-6 * volume(2)
    with torch.inference_mode():
        exact = plain(scan)
        with torch.autocast("cpu", torch.bfloat16):
            errors = [(network(scan).float() - exact).square().mean().sqrt() for network in (optimized, plain)]
    assert 0 < errors[0] < errors[1] / 2


@NORMS
def test_parameters_keep_names_order_and_values(norm_name: str) -> None:
    plain, optimized = plain_and_optimized(norm_name)
    assert [name for name, _ in optimized.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert list(optimized.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(optimized.state_dict(), plain.state_dict(), rtol=0, atol=0)
    parameters = list(plain.parameters())
    assert optimize_for_cpu(plain) is plain  # in place, so that an optimizer of before still holds its parameters
    assert all(ours is before for ours, before in zip(plain.parameters(), parameters, strict=True))


def test_every_layer_of_unetr_that_has_a_faster_one_is_swapped() -> None:
    plain, optimized = plain_and_optimized("instance")

    def count(network: nn.Module, kind: type[nn.Module]) -> int:
        return sum(type(module) is kind for module in network.modules())

    for before, after, number in (
        (nn.Linear, Linear, 12 * 4 + 1),  # of 12 transformer blocks, and of the patches
        (SelfAttention, MatrixAttention, 12),
        (UnetrUpBlock, UpBlock, 4),
        (UnetOutBlock, OutBlock, 1),
    ):
        assert (count(plain, before), count(plain, after)) == (number, 0)
        assert (count(optimized, before), count(optimized, after)) == (0, number)
    assert count(optimized, ScanResBlock) == 1
    assert count(optimized, Conv3d) == 3  # of the output, and of the scan's residual block the two that read the scan
    # of residual blocks: 1 of the scan, 3 of skip paths and 4 of the decoder, with 2 norms, or 3 where channels change
    assert count(optimized, InstanceNorm3d) == count(plain, nn.InstanceNorm3d) == 3 + 3 * 2 + 4 * 3
    assert count(optimized, nn.InstanceNorm3d) == 0


class Other(nn.Module):
    """A network that doesn't set ``fast_layers``."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.scan = UnetrBasicBlock(3, 1, 2, 3, 1, "instance", True)
        self.up = UnetrUpBlock(3, 2, 2, 3, upsample_kernel_size=2, norm_name="instance", res_block=True)
        self.out = UnetOutBlock(3, 2, 2)


def test_other_networks_get_instance_norm_and_blocks_alone() -> None:
    plain, optimized = Other(), optimize_for_cpu(Other())
    swapped = {
        (type(before), type(after))
        for before, after in zip(plain.modules(), optimized.modules(), strict=True)
        if type(before) is not type(after)
    }
    assert swapped == {(nn.InstanceNorm3d, InstanceNorm3d), (UnetResBlock, ResBlock)}


@pytest.mark.parametrize("name", ["swin_unetr", "segresnet", "dynunet"])
def test_of_networks_to_compare_with_the_layers_but_norms_stay(name: str) -> None:
    with torch.device("meta"):
        network = optimize_for_cpu(build_network(name, img_size=(64, 32, 32)))
    assert not [module for module in network.modules() if isinstance(module, Linear | Conv3d | OutBlock | UpBlock)]
    assert not [module for module in network.modules() if type(module) is nn.InstanceNorm3d]


@NORMS
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pos_embed": "conv", "patch_size": 8, "res_block": False},
        {"conv_stem": True},
        {"conv_stem": True, "halve_by_spacing": True, "spacing": (1.0, 1.0, 4.0)},
    ],
)
def test_the_plain_network_becomes_torchscript(norm_name: str, options: dict[str, object]) -> None:
    network = small(norm_name=norm_name, img_size=16, **options).eval()
    windows = torch.randn(3, 1, 16, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(torch.jit.script(network)(windows), network(windows), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_of_the_plain_network_with_one_window_fits_several() -> None:
    network, windows = small(img_size=32).eval(), torch.randn(3, 1, 32, 32, 32)
    with torch.enable_grad():  # as where nobody thinks of it
        traced = torch.jit.trace(network, windows[:1], check_trace=False)
        torch.testing.assert_close(traced(windows), network(windows), rtol=1e-4, atol=1e-5)

"""What the benchmarks compare with."""

import pytest
import torch

from benchmarks import markdown
from benchmarks.network import peers_network
from networks.unetr import UNETR
from tests.conftest import TINY
from utils.args import network_options, parse_train
from utils.errors import InputError

OPTIONS = network_options(vars(parse_train(TINY)))


def test_the_peer_of_the_reference_network_has_the_size_that_the_paper_tells() -> None:
    """92.58 million parameters, as the paper has it, and what MONAI keeps of its blocks without reading it."""
    with torch.device("meta"):
        network = peers_network()
    read = [tensor for name, tensor in network.named_parameters() if "cross_attn" not in name]
    assert sum(tensor.numel() for tensor in read) == pytest.approx(92.58e6, rel=0.01)


@pytest.mark.parametrize("deep_supervision", [False, True])
def test_with_our_weights_the_peer_gives_our_logits(deep_supervision: bool) -> None:
    options = {**OPTIONS, "deep_supervision": deep_supervision, "drop_path_rate": 0.2}
    torch.manual_seed(0)
    ours = UNETR(**options).eval()
    window = torch.randn(1, 1, 16, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(
            peers_network(options, ours.state_dict()).eval()(window), ours(window), atol=1e-5, rtol=1e-4
        )


def test_a_network_that_the_peer_can_not_be_is_refused() -> None:
    with pytest.raises(InputError, match="patches of 16 voxels alone"):
        peers_network({**OPTIONS, "patch_size": 8})


def test_a_table_is_one_that_markdown_reads() -> None:
    assert markdown.table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"

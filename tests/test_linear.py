"""Linear layers that are computed as convolutions give what torch's give."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.linear import Linear

CONVOLUTIONS: list[tuple[int, ...]] = []


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one thread torch leaves both to the same library."""
    CONVOLUTIONS.clear()
    torches = F.conv2d

    def counted(volume: Tensor, *rest: Tensor) -> Tensor:
        CONVOLUTIONS.append(tuple(volume.shape))
        return torches(volume, *rest)

    monkeypatch.setattr(F, "conv2d", counted)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
def test_results_and_gradients_are_torchs(batch: int, bias: bool) -> None:
    torch.manual_seed(0)
    theirs = nn.Linear(5, 7, bias=bias)
    ours = Linear(5, 7, bias=bias)
    ours.load_state_dict(theirs.state_dict())
    tokens = [torch.randn(batch, 4, 5, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2)]
    factor = torch.randn(batch, 4, 7)
    for layer, input in ((ours, tokens[0]), (theirs, tokens[1])):
        (layer(input) * factor).sum().backward()
    torch.testing.assert_close(ours(tokens[0]), theirs(tokens[1]))
    torch.testing.assert_close(tokens[0].grad, tokens[1].grad)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)
    if torch.backends.mkl.is_available():
        assert CONVOLUTIONS == [(batch, 5, 4, 1)] * 2


def test_tokens_stay_as_they_lie_in_memory() -> None:
    """Otherwise the next layer norm would have to copy them."""
    assert Linear(5, 7)(torch.randn(2, 4, 5)).is_contiguous()


def test_a_linear_layer_where_convolutions_gain_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Linear(5, 7)
    tokens = torch.randn(2, 4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        layer(tokens)
    layer.double()(tokens.double())
    layer.float()
    traced = torch.jit.trace(layer, tokens, check_trace=False)
    program = torch.export.export(layer, (tokens,))
    assert not [node for node in program.graph.nodes if "conv" in node.name]
    assert "conv" not in str(traced.graph)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    layer(tokens)
    assert CONVOLUTIONS == []

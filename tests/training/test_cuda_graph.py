"""Training steps that a GPU is given as a whole."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from networks.precision import Precision
from networks.unetr import UNETR
from utils.distributed.process import Process
from utils.distributed.rendezvous import RankInfo
from utils.system.errors import InputError
from utils.training import cuda_graph

CPU = Precision(torch.device("cpu"), torch.float32)
GPU = torch.device("cuda", 0)


class Doubled(nn.Module):
    """Twice its input, and how often it has been asked in training."""

    asked: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("asked", torch.tensor(0))

    def forward(self, image: Tensor) -> Tensor:
        if self.training:
            self.asked += 1
        return self.factor * image


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """What torch's recording would launch, on a CPU: the shape of each batch, whose result is 100."""
    replayed: list[torch.Size] = []

    def make_graphed_callables(module: nn.Module, sample: tuple[Tensor, ...], allow_unused_input: bool) -> nn.Module:
        assert not torch.is_autocast_cache_enabled()
        plain: Callable[..., Any] = module.forward
        for _ in range(3):
            plain(*sample)

        def replay(image: Tensor) -> Tensor:
            if not module.training:
                return plain(image)  # type: ignore[no-any-return]
            replayed.append(image.shape)
            return torch.full_like(image, 100)

        module.forward = replay  # type: ignore[method-assign]
        return module

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make_graphed_callables)
    return replayed


def test_only_training_on_batches_of_the_recorded_shape_is_replayed(replays: list[torch.Size]) -> None:
    network = Doubled()
    recorded = cuda_graph.record(network, (2, 1, 4, 4, 4), CPU)
    whole, rest = torch.ones(2, 1, 4, 4, 4), torch.ones(1, 1, 4, 4, 4)
    assert recorded(whole).unique().item() == 100
    assert recorded(rest).unique().item() == 2  # the smaller last batch, which would fit by broadcasting
    assert recorded.eval()(whole).unique().item() == 2
    assert network.eval()(whole).unique().item() == 2  # as it is validated
    assert recorded.train()(whole).unique().item() == 100
    assert network.training
    assert replays == [torch.Size((2, 1, 4, 4, 4))] * 2


def test_recording_leaves_running_statistics_as_they_were(replays: list[torch.Size]) -> None:
    network = Doubled()
    cuda_graph.record(network, (1, 1, 4, 4, 4), CPU)
    assert network.asked.item() == 0


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RuntimeError("operation not permitted"),
            r"can't be computed, or not be recorded .*not permitted.*with --nocuda_graph trains",
        ),
        (torch.OutOfMemoryError("out of memory"), r"^cpu: has no room for a step with 6 crops\. Give a smaller"),
    ],
)
def test_what_can_not_be_recorded_is_told(error: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fail)
    with pytest.raises(InputError, match=message):
        cuda_graph.record(Doubled(), (6, 1, 4, 4, 4), CPU)


def test_what_is_recorded() -> None:
    alone = Process(GPU)
    assert cuda_graph.can_record(alone, 1, "unetr", False, False)
    assert not cuda_graph.can_record(alone, 2, "unetr", False, False)  # gradients of two batches add up
    assert not cuda_graph.can_record(alone, 1, "swin_unetr", False, False)
    assert not cuda_graph.can_record(alone, 1, "unetr", False, True)  # --compile and the like
    assert not cuda_graph.can_record(Process(GPU, RankInfo(0, 2)), 1, "unetr", False, False)
    assert not cuda_graph.can_record(Process(CPU.device), 1, "unetr", False, False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm_name", ["instance", "batch"])
def test_a_recorded_step_has_the_gradients_of_one_that_is_not(norm_name: str, dtype: torch.dtype) -> None:
    """Also when weights have changed since, with dropout drawn by the seed of each step."""
    torch.manual_seed(0)
    network = UNETR(
        1, 3, 32, feature_size=4, hidden_size=24, mlp_dim=48, num_heads=2, norm_name=norm_name,
        dropout_rate=0.1, drop_path_rate=0.2, deep_supervision=True,
    )  # fmt: skip
    plain = Process(GPU).place(network).train()
    image = torch.rand(2, 1, 32, 32, 32, device=GPU)
    precision = Precision(GPU, dtype)
    recorded = cuda_graph.record(plain, image.shape, precision)

    def gradients(way: nn.Module, seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        plain.zero_grad(set_to_none=True)
        with precision.autocast():
            torch.stack([logits.float().square().mean() for logits in way(image)]).sum().backward()
        return [parameter.grad.clone() for parameter in plain.parameters() if parameter.grad is not None]

    for seed in (1, 2):
        torch.testing.assert_close(gradients(recorded, seed), gradients(plain, seed), rtol=0.05, atol=1e-4)
        with torch.no_grad():
            for parameter in plain.parameters():
                parameter.mul_(1.1)

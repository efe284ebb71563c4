"""Training steps that a GPU is given as a whole."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from networks import build_network
from networks.layers import optimize_for_cpu
from networks.precision import Precision
from tests.conftest import TINY, Run
from tests.networks.test_unetr import small
from tests.training.test_training import error_of
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
            r"can't be computed, or not be recorded .*not permitted.*with `nocuda_graph` trains",
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


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, None),
        ({"process": Process(CPU.device)}, "cpu is no GPU"),
        ({"process": Process(GPU, RankInfo(0, 2))}, "several processes would have to exchange gradients"),
        ({"accumulate": 2}, "several batches make a step (`accumulate`)"),
        ({"compiled": True}, "its blocks are compiled (`compile`)"),
        ({"recomputed": True}, "its blocks are recomputed (`activation_checkpointing`)"),
        ({"name": "segresnet"}, "segresnet doesn't declare that it can be (“cuda_graph” in its class)"),
        ({"name": "swin_unetr"}, "swin_unetr doesn't declare that it can be"),
    ],
)
def test_what_can_not_be_recorded_has_a_reason(changed: dict[str, Any], reason: str | None) -> None:
    plain = {"name": "unetr", "process": Process(GPU), "accumulate": 1, "compiled": False, "recomputed": False}
    settings = {**plain, **changed}
    with torch.device("meta"):
        network = build_network(settings.pop("name"))
    found = cuda_graph.obstacle(network, **settings)
    assert found is None if reason is None else str(found).startswith(reason)


def test_a_run_that_asks_for_it_where_it_can_not_be_is_one_line(
    run_main: Run, phantoms: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [f"--data_dir={phantoms}", "--workers=0", "--device=cpu", "--max_epochs=1", *TINY]
    message = error_of(run_main, [*argv, "--cuda_graph"], capsys)
    assert message == "error: --cuda_graph: cpu is no GPU. Leave it out.\n"
    message = error_of(run_main, [f"--data_dir={phantoms}", "--model_name=segresnet", "--cuda_graph"], capsys)
    assert message.startswith(
        "error: --cuda_graph: segresnet can't be recorded as a CUDA graph, since its class declares"
    )
    assert message.count("\n") == 1
    message = error_of(run_main, [*argv, "--cuda_graph", "--nocuda_graph"], capsys)
    assert "argument --nocuda_graph: not allowed with argument --cuda_graph" in message


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm_name", ["instance", "batch"])
def test_a_recorded_step_has_the_gradients_of_one_that_is_not(norm_name: str, dtype: torch.dtype) -> None:
    """Also when weights have changed since, with dropout drawn by the seed of each step."""
    torch.manual_seed(0)
    network = small(
        out_channels=3, img_size=32, feature_size=4, hidden_size=24, mlp_dim=48, norm_name=norm_name,
        dropout_rate=0.1, drop_path_rate=0.2, deep_supervision=True,
    )  # fmt: skip
    plain = Process(GPU).place(optimize_for_cpu(network)).train()
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

"""Learning rates, steps and clipped gradients worked out by hand."""

import math
from typing import Any

import pytest
import torch

from networks.precision import Precision
from optimizers import build_optimizer, build_scheduler, parameter_groups
from optimizers.lr_scheduler import constant, cosine_anneal, warmup_cosine, warmup_poly
from trainer import Learner
from utils.system.errors import InputError
from utils.training.losses import build_loss


def test_warm_up_rises_in_equal_steps_from_above_zero_to_one() -> None:
    assert [warmup_cosine(step, 100, 4) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_cosine_is_half_way_down_in_the_middle_and_zero_after_the_end() -> None:
    assert warmup_cosine(55, 100, 10) == pytest.approx(0.5)
    assert warmup_cosine(10 + 30, 100, 10) == pytest.approx(0.5 * (1 + math.cos(math.pi / 3)))  # 0.75
    assert warmup_cosine(100, 100, 10) == pytest.approx(0.0)


def test_poly_falls_from_one_to_zero_as_nnunets_does() -> None:
    assert [warmup_poly(step, 100, 4) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert warmup_poly(55, 100, 10) == pytest.approx((1 - 45 / 90) ** 0.9)  # nnU-Net: (1 - step / steps)^0.9
    assert warmup_poly(100, 100, 10) == 0


def test_betas_are_adams_alone() -> None:
    """Gradients 1 and 0: with betas (0, 0.5) the second step doesn't move, with (0.5, 0.5) it does."""
    moved = []
    for first in (0.0, 0.5):
        weight = torch.nn.Parameter(torch.tensor([1.0]))
        optimizer = build_optimizer("adam", [{"params": [weight]}], 0.1, 0.0, 0.9, (first, 0.5))
        for gradient in (1.0, 0.0):
            before = weight.item()
            weight.grad = torch.tensor([gradient])
            optimizer.step()
        moved.append(before - weight.item())
    # averages of gradients 0.25 / 0.75 and of squares 0.25 / 0.75, corrected for their start
    assert moved == pytest.approx([0.0, 0.1 * (0.25 / 0.75) / math.sqrt(0.25 / 0.75)], abs=1e-6)
    assert "betas" not in build_optimizer("sgd", [{"params": [weight]}], 0.1, 0.0, 0.9, (0.5, 0.5)).defaults


@pytest.mark.parametrize("warmup_epochs", [0, 1, 3, 50])
def test_first_and_all_later_rates_are_above_zero(warmup_epochs: int) -> None:
    optimizer = build_optimizer("adamw", [{"params": [torch.nn.Parameter(torch.zeros(1))]}], 1e-3, 0.0, 0.9)
    scheduler = build_scheduler("warmup_cosine", optimizer, epochs=3, warmup_epochs=warmup_epochs, steps_per_epoch=2)
    for _ in range(6):
        assert 0 < scheduler.get_last_lr()[0] <= 1e-3
        optimizer.step()
        scheduler.step()


def test_schedules_without_a_warm_up_start_at_the_highest_rate() -> None:
    assert cosine_anneal(0, 10, 5) == 1.0
    assert cosine_anneal(5, 10, 5) == pytest.approx(0.5)
    assert constant(9, 10, 5) == 1.0


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_every_optimizer_takes_a_step_downhill(name: str) -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = build_optimizer(name, [{"params": [weight]}], lr=0.1, weight_decay=0.0, momentum=0.9)
    (weight**2).sum().backward()
    optimizer.step()
    assert weight.item() < 1.0


def test_sgd_has_nesterov_momentum() -> None:
    """The gradients are 1 and 2: the velocity is 1, then 0.9 + 2; a step goes along gradient + 0.9 · velocity."""
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = build_optimizer("sgd", [{"params": [weight]}], lr=0.1, weight_decay=0.0, momentum=0.9)
    weight.grad = torch.tensor([1.0])
    optimizer.step()
    assert weight.item() == pytest.approx(1 - 0.1 * (1 + 0.9 * 1))  # 0.81; momentum without Nesterov: 0.9
    weight.grad = torch.tensor([2.0])
    optimizer.step()
    assert weight.item() == pytest.approx(0.81 - 0.1 * (2 + 0.9 * 2.9))


class WithVit(torch.nn.Module):
    parameter_groups = {"vit": ("vit",)}  # noqa: RUF012  (as in networks/unetr.py)


def test_a_vit_has_a_rate_and_a_decay_of_its_own() -> None:
    network = WithVit()
    for part in ("vit", "out", "vitamin"):
        layer = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.ones_(layer.weight)
        layer.weight.grad = torch.full_like(layer.weight, 2.0)
        network.add_module(part, layer)
    groups = parameter_groups(network, {"vit": {"lr": 0.1, "weight_decay": 1.0}})
    optimizer = build_optimizer("sgd", groups, lr=0.2, weight_decay=0.0, momentum=0.0)
    scheduler = build_scheduler("constant", optimizer, epochs=1, warmup_epochs=0, steps_per_epoch=2)
    assert scheduler.get_last_lr() == [0.1, 0.2]
    optimizer.step()
    weights = {name: parameter.item() for name, parameter in network.named_parameters()}
    # 1 - 0.1 · (2 + 1 · 1), and 1 - 0.2 · 2
    assert weights == pytest.approx({"vit.weight": 0.7, "out.weight": 0.6, "vitamin.weight": 0.6})


def test_a_vit_has_the_rate_and_decay_of_the_rest_by_default() -> None:
    network = WithVit()
    network.add_module("out", torch.nn.Linear(1, 1))
    assert len(parameter_groups(network)) == 1  # no ViT, no group
    network.add_module("vit", torch.nn.Linear(1, 1))
    groups = parameter_groups(network, {"vit": {"lr": None, "weight_decay": None}})
    optimizer = build_optimizer("adamw", groups, lr=0.2, weight_decay=0.3, momentum=0.0)
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.2, 0.3)] * 2


class OwnGroups(torch.nn.Module):
    """A network that makes its groups itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.stem.parameters()), "lr": 0.5}, {"params": list(self.head.parameters())}]


def test_a_network_may_make_its_groups_itself() -> None:
    optimizer = build_optimizer("sgd", parameter_groups(OwnGroups()), lr=0.1, weight_decay=0.0, momentum=0.0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.1]


def test_a_network_that_leaves_layers_out_of_its_groups_is_refused() -> None:
    network = OwnGroups()
    network.tail = torch.nn.Linear(1, 1)
    with pytest.raises(InputError, match=r"^OwnGroups: its parameter_groups\(\) leaves out tail.weight and "):
        parameter_groups(network)
    network.tail.requires_grad_(False)
    assert len(parameter_groups(network)) == 2


@pytest.mark.parametrize("scaled", [False, True])  # as with float16
@pytest.mark.parametrize(("max_norm", "expected"), [(1.0, [-0.6, -0.8]), (10.0, [-3.0, -4.0])])
def test_a_gradient_is_clipped_by_its_true_norm(max_norm: float, expected: list[float], scaled: bool) -> None:
    """The gradient (3, 4) has norm 5."""
    network = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.zeros_(network.weight)
    optimizer = build_optimizer("sgd", [{"params": network.parameters()}], lr=1.0, weight_decay=0.0, momentum=0.0)
    scheduler = build_scheduler("constant", optimizer, epochs=1, warmup_epochs=0, steps_per_epoch=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
    precision = Precision(torch.device("cpu"), torch.float32)
    loss_function = build_loss("dice", 0.0, 1e-6, deep_supervision=False)
    learner = Learner(network, network, loss_function, optimizer, scheduler, scaler, precision, clip_grad_norm=max_norm)
    loss = network(torch.tensor([[3.0, 4.0]])).sum()
    learner.add_gradients(loss, 1)
    assert network.weight.grad is not None
    assert network.weight.grad.tolist() == [[3072.0, 4096.0] if scaled else [3.0, 4.0]]
    learner.update()
    torch.testing.assert_close(network.weight.detach(), torch.tensor([expected]))

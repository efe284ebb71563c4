"""Learning rates worked out by hand."""

import math

import pytest
import torch
from torch.nn.functional import mse_loss

from networks.precision import Precision
from optimizers import build_optimizer, build_scheduler, parameter_groups
from optimizers.lr_scheduler import constant, cosine_anneal, warmup_cosine
from trainer import Learner


def test_warm_up_rises_in_equal_steps_from_above_zero_to_one() -> None:
    assert [warmup_cosine(step, 100, 4) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_cosine_is_half_way_down_in_the_middle_and_zero_after_the_end() -> None:
    assert warmup_cosine(55, 100, 10) == pytest.approx(0.5)
    assert warmup_cosine(10 + 30, 100, 10) == pytest.approx(0.5 * (1 + math.cos(math.pi / 3)))  # 0.75
    assert warmup_cosine(100, 100, 10) == pytest.approx(0.0)


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


def test_a_vit_has_a_rate_and_a_decay_of_its_own() -> None:
    network = torch.nn.Module()
    for part in ("vit", "out", "vitamin"):
        layer = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.ones_(layer.weight)
        layer.weight.grad = torch.full_like(layer.weight, 2.0)
        network.add_module(part, layer)
    groups = parameter_groups(network, vit_lr=0.1, vit_weight_decay=1.0)
    optimizer = build_optimizer("sgd", groups, lr=0.2, weight_decay=0.0, momentum=0.0)
    scheduler = build_scheduler("constant", optimizer, epochs=1, warmup_epochs=0, steps_per_epoch=2)
    assert scheduler.get_last_lr() == [0.1, 0.2]
    optimizer.step()
    weights = {name: parameter.item() for name, parameter in network.named_parameters()}
    # 1 - 0.1 · (2 + 1 · 1), and 1 - 0.2 · 2
    assert weights == pytest.approx({"vit.weight": 0.7, "out.weight": 0.6, "vitamin.weight": 0.6})


def test_a_vit_learns_as_the_rest_does_unless_it_is_told_otherwise() -> None:
    groups = parameter_groups(
        torch.nn.ModuleDict({"vit": torch.nn.Linear(1, 1), "out": torch.nn.Linear(1, 1)}), None, None
    )
    optimizer = build_optimizer("adamw", groups, lr=0.2, weight_decay=0.3, momentum=0.0)
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.2, 0.3)] * 2
    assert len(parameter_groups(torch.nn.ModuleDict({"out": torch.nn.Linear(1, 1)}), None, None)) == 1


def test_a_gradient_that_is_too_long_is_shortened_and_another_is_left() -> None:
    """The gradient (3, 4) has length 5."""
    for longest, expected in ((1.0, [-0.6, -0.8]), (10.0, [-3.0, -4.0])):
        network = torch.nn.Linear(2, 1, bias=False)
        torch.nn.init.zeros_(network.weight)
        optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
        scheduler = build_scheduler("constant", optimizer, epochs=1, warmup_epochs=0, steps_per_epoch=1)
        learner = Learner(
            network, network, mse_loss, optimizer, scheduler, torch.amp.GradScaler("cpu", enabled=False),
            Precision(torch.device("cpu"), torch.float32), clip_grad_norm=longest,
        )  # fmt: skip
        network.weight.grad = torch.tensor([[3.0, 4.0]])
        learner.update()
        torch.testing.assert_close(network.weight.detach(), torch.tensor([expected]))

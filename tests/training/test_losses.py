"""The loss against MONAI's in float64, and against a value worked out by hand."""

import math

import pytest
import torch
from monai.losses import DiceCELoss
from torch import Tensor

from utils.training import losses
from utils.training.losses import at_each_resolution, dice_ce

SHAPE = (2, 5, 6, 7, 8)


def example(memory_format: torch.memory_format, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(SHAPE, generator=generator)).to(dtype).contiguous(memory_format=memory_format)
    label = torch.randint(0, SHAPE[1] - 1, (SHAPE[0], 1, *SHAPE[2:]), generator=generator)  # the last class is nowhere
    return logits.requires_grad_(), label


@pytest.mark.parametrize("smooth", [(0.0, 1e-6), (1.0, 0.5)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("run", [50, 2**15])  # several runs of voxels with a rest, and one
def test_value_and_gradient_are_those_of_monai(
    run: int, memory_format: torch.memory_format, smooth: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "VOXELS", run)
    logits, label = example(memory_format)
    ours = dice_ce(logits, label.to(torch.uint8), *smooth)
    (3 * ours).backward()
    exact = logits.detach().double().requires_grad_()
    theirs = DiceCELoss(to_onehot_y=True, softmax=True, squared_pred=True, smooth_nr=smooth[0], smooth_dr=smooth[1])
    peer = theirs(exact, label)
    (3 * peer).backward()
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(peer.item(), abs=1e-6)
    assert logits.grad is not None
    assert exact.grad is not None
    assert logits.grad.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-6, atol=1e-8)


def test_logits_in_another_layout() -> None:
    logits, label = example(torch.contiguous_format)
    other = logits.detach().transpose(3, 4).contiguous().transpose(3, 4).requires_grad_()
    for one in (logits, other):
        dice_ce(one, label, 0.0, 1e-6).backward()
    assert logits.grad is not None
    assert other.grad is not None
    torch.testing.assert_close(other.grad, logits.grad)


def test_the_gradient_has_the_format_of_the_logits() -> None:
    logits, label = example(torch.channels_last_3d, torch.bfloat16)
    dice_ce(logits, label, 0.0, 1e-6).backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16


def test_two_even_voxels_of_two_classes() -> None:
    # p is 1/2 everywhere; each class: 1 - 2 · (1/2) / (1/2 + 1) = 1/3; cross-entropy: log 2
    logits = torch.zeros(1, 2, 2, 1, 1)
    label = torch.tensor([0, 1]).reshape(1, 1, 2, 1, 1)
    assert dice_ce(logits, label, 0.0, 0.0).item() == pytest.approx(1 / 3 + math.log(2))


@pytest.mark.parametrize("samples", [1, 2])  # which a GPU takes at once
def test_sums_over_the_voxels_of_each_class(samples: int) -> None:
    values = torch.tensor([[1.0, 2, 4, 8, 16], [32, 64, 128, 256, 512]], dtype=torch.float64)
    true = torch.tensor([[0, 2, 2, 0, 1], [1, 1, 1, 1, 1]])
    expected = torch.tensor([[9.0, 16, 6], [0, 992, 0]], dtype=torch.float64)
    assert torch.equal(losses._sums_by_class(values[:samples], true[:samples], 3), expected[:samples])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16])  # of scans with labels above 255
def test_each_resolution_counts_half_as_much_as_the_one_before(dtype: torch.dtype) -> None:
    values = {4: 7.0, 2: 4.0, 1: 14.0}  # by edge, what the loss is said to be there
    labels: list[Tensor] = []

    def loss(logits: Tensor, label: Tensor) -> Tensor:
        labels.append(label)
        return torch.tensor(values[logits.shape[-1]])

    label = torch.arange(64, dtype=dtype).view(1, 1, 4, 4, 4)
    logits = [torch.zeros(1, 2, *(edge,) * 3) for edge in values]
    assert at_each_resolution(loss)(logits, label).item() == pytest.approx((7 + 4 / 2 + 14 / 4) / 1.75)
    assert torch.equal(labels[0], label)
    # voxels 1 and 3 of each axis are nearest to the middles of two, and voxel 2 to that of four
    assert torch.equal(labels[1], label[..., 1::2, 1::2, 1::2])
    assert torch.equal(labels[2], label[..., 2:3, 2:3, 2:3])

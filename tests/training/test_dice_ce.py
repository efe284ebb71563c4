"""The default loss against MONAI's in float64, and against values worked out by hand."""

import math

import pytest
import torch
from monai.losses import DiceCELoss
from torch import Tensor

from tests.conftest import threads
from utils.system.openmp import can_run_kernels
from utils.training import dice_ce as module
from utils.training.dice_ce import dice_ce

KERNELS = ["compiled", "torch"] if can_run_kernels() else ["torch"]


@pytest.fixture(params=KERNELS)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which kernels compute the loss of any volume, however small."""
    monkeypatch.setattr(module, "LEAST", 0 if request.param == "compiled" else 2**40)
    return str(request.param)


SHAPE = (2, 5, 6, 7, 8)


def example(memory_format: torch.memory_format, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(SHAPE, generator=generator)).to(dtype).contiguous(memory_format=memory_format)
    label = torch.randint(0, SHAPE[1] - 1, (SHAPE[0], 1, *SHAPE[2:]), generator=generator)  # the last class is nowhere
    return logits.requires_grad_(), label


@pytest.mark.parametrize("smooth", [(0.0, 1e-6), (1.0, 0.5)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("chunk", [50, 2**15])  # several chunks with a shorter last one, and a single chunk
def test_value_and_gradient_are_those_of_monai(
    chunk: int,
    memory_format: torch.memory_format,
    smooth: tuple[float, float],
    monkeypatch: pytest.MonkeyPatch,
    kernels: str,
) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
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


def test_logits_in_another_layout(kernels: str) -> None:
    logits, label = example(torch.contiguous_format)
    other = logits.detach().transpose(3, 4).contiguous().transpose(3, 4).requires_grad_()
    for one in (logits, other):
        dice_ce(one, label, 0.0, 1e-6).backward()
    assert logits.grad is not None
    assert other.grad is not None
    torch.testing.assert_close(other.grad, logits.grad)


def test_the_gradient_has_the_format_of_the_logits(kernels: str) -> None:
    logits, label = example(torch.channels_last_3d, torch.bfloat16)
    dice_ce(logits, label, 0.0, 1e-6).backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16


def test_two_even_voxels_of_two_classes(kernels: str) -> None:
    # p is 1/2 everywhere; each class: 1 - 2 · (1/2) / (1/2 + 1) = 1/3; cross-entropy: log 2
    logits = torch.zeros(1, 2, 2, 1, 1)
    label = torch.tensor([0, 1]).reshape(1, 1, 2, 1, 1)
    assert dice_ce(logits, label, 0.0, 0.0).item() == pytest.approx(1 / 3 + math.log(2))


@pytest.mark.parametrize("samples", [1, 2])  # which a GPU takes at once
def test_sums_over_the_voxels_of_each_class(samples: int) -> None:
    values = torch.tensor([[1.0, 2, 4, 8, 16], [32, 64, 128, 256, 512]], dtype=torch.float64)
    true = torch.tensor([[0, 2, 2, 0, 1], [1, 1, 1, 1, 1]])
    expected = torch.tensor([[9.0, 16, 6], [0, 992, 0]], dtype=torch.float64)
    assert torch.equal(module._sums_by_class(values[:samples], true[:samples], 3), expected[:samples])


needs_kernels = pytest.mark.skipif(not can_run_kernels(), reason="numba isn't installed, or torch's OpenMP is unknown")
LARGE = (2, 3, 33, 34, 35)  # several chunks a sample, whose last ones are no multiple of anything


@needs_kernels
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_over_many_chunks(memory_format: torch.memory_format, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = (20 * torch.randn(LARGE)).to(dtype).contiguous(memory_format=memory_format).requires_grad_()
    label = torch.randint(0, 3, (2, 1, *LARGE[2:]))
    exact = logits.detach().double().requires_grad_()
    results: list[tuple[Tensor, Tensor]] = []
    for number in (1, 2):
        logits.grad = None
        with threads(number), pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "LEAST", 0)
            ours = dice_ce(logits, label, 0.0, 1e-6)
            ours.backward()
        assert logits.grad is not None
        results.append((ours.detach(), logits.grad))
    peer = DiceCELoss(to_onehot_y=True, softmax=True, squared_pred=True, smooth_nr=0.0, smooth_dr=1e-6)(exact, label)
    peer.backward()
    (ours, gradient), (ours_of_two, gradient_of_two) = results
    assert torch.equal(ours, ours_of_two)
    assert torch.equal(gradient, gradient_of_two)
    assert ours.item() == pytest.approx(peer.item(), rel=1e-6)
    assert exact.grad is not None
    rounding = 2.0**-8 if dtype == torch.bfloat16 else 2e-6
    torch.testing.assert_close(gradient.double(), exact.grad, rtol=rounding, atol=1e-10)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_makes_the_loss_none(kernels: str, bad: float) -> None:
    logits, label = example(torch.channels_last_3d)
    logits.data[1, 3, 2, 2, 2] = bad
    loss = dice_ce(logits, label, 0.0, 1e-6)
    assert math.isnan(loss.item())


def test_logits_far_apart(kernels: str) -> None:
    """Softmax of (0, 1000) is (0, 1), and of the true class 0 the cross-entropy is 1000."""
    logits = torch.tensor([0.0, 1000.0]).view(1, 2, 1, 1, 1).requires_grad_()
    loss = dice_ce(logits, torch.zeros(1, 1, 1, 1, 1), 0.0, 1e-6)
    loss.backward()
    # 1 - 0 / 1 of class 0, 1 - 0 / 1 of class 1, whose mean is 1
    assert loss.item() == pytest.approx(1001)
    assert logits.grad is not None
    assert logits.grad.flatten().tolist() == pytest.approx([-1, 1])


@pytest.mark.parametrize("label", [5.0, 300.0, -1.0])  # 300 and -1 are no bytes
def test_a_label_beyond_the_classes_is_an_error(kernels: str, label: float) -> None:
    logits, labels = example(torch.channels_last_3d)
    labels[1, 0, 3, 3, 3] = label
    with pytest.raises((IndexError, RuntimeError)):
        dice_ce(logits, labels, 0.0, 1e-6)

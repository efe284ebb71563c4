"""The loss that training minimises."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

VOXELS = 2**15  # that a CPU works on at a time, so that what is made of them stays in its cache
SUMS = 64  # for each class, so that threads of a GPU that are side by side don't wait for each other


def at_each_resolution(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[list[Tensor], Tensor], Tensor]:
    """A loss for logits at full, half, quarter … resolution, each against the label at that resolution.

    They count by 1, 1/2, 1/4 …, divided by the sum of these (Isensee et al. 2021, nnU-Net), so that the learning rate
    that suits one resolution suits all. The label's value at the middle of a coarser voxel stands for it. MONAI's
    ``DeepSupervisionLoss`` does the same, and waits for a GPU in every step.
    """

    def of_all(logits: list[Tensor], label: Tensor) -> Tensor:
        if label.dtype != torch.uint8:  # torch takes the nearest of bytes and of floats alone; float32 holds any label
            label = label.float()
        weights = [0.5**level for level in range(len(logits))]
        first, *coarser = logits
        losses = [loss(first, label)]
        losses += [loss(one, F.interpolate(label, one.shape[2:], mode="nearest-exact")) for one in coarser]
        total: Tensor = sum(weight * one for weight, one in zip(weights, losses, strict=True))  # type: ignore[assignment]
        return total / sum(weights)

    return of_all


def dice_ce(logits: Tensor, label: Tensor, smooth_nr: float, smooth_dr: float) -> Tensor:
    """Soft Dice loss plus cross-entropy, as MONAI's ``DiceCELoss`` with softmax and squared predictions has it.

    Dice is 1 - (2 Σ p y + smooth_nr) / (Σ p² + Σ y + smooth_dr) for each sample and class, over the sample's voxels,
    where p is the class's probability and y is 1 on its label (Milletari et al. 2016, V-Net); the mean over samples and
    classes is added to the mean cross-entropy over voxels. Value and gradient are worked out over one run of voxels
    after the other, from the logits alone: no one-hot label and no probabilities of a whole volume are made.

    Args:
        logits: (B, classes, D, H, W) in any format; the loss is computed in float32.
        label: (B, 1, D, H, W), whole numbers from 0 to classes - 1.

    Returns:
        A scalar in float32.
    """
    loss: Tensor = _DiceCE.apply(logits, label, smooth_nr, smooth_dr)
    return loss


class _DiceCE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, label: Tensor, smooth_nr: float, smooth_dr: float) -> Tensor:
        batch, classes = logits.shape[:2]
        voxels = label[0].numel()
        overlap = logits.new_zeros((batch, classes), dtype=torch.float64)  # Σ p y
        squares = torch.zeros_like(overlap)  # Σ p²
        sizes = torch.zeros_like(overlap)  # Σ y
        surprise = logits.new_zeros((), dtype=torch.float64)  # -Σ log p of the true class
        for samples, _, values, true in _runs(logits, label):
            log_p = F.log_softmax(values, 1)  # (b, classes, n)
            surprise -= log_p.gather(1, true[:, None]).sum()
            p = log_p.exp_()
            p_true = p.gather(1, true[:, None])[:, 0].double()  # (b, n)
            overlap[samples] += _sums_by_class(p_true, true, classes)
            sizes[samples] += _sums_by_class(torch.ones_like(p_true), true, classes)
            squares[samples] += p.square_().sum(2)
        above, below = 2 * overlap + smooth_nr, squares + sizes + smooth_dr
        ctx.save_for_backward(logits, label, above, below)
        return ((1 - above / below).mean() + surprise / (batch * voxels)).float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """d/dz of the loss, z being the logits: Σ_k (dL/dp_k) (dp_k/dz), with dp_k/dz_c = p_k (1[k = c] - p_c)."""
        logits, label, above, below = ctx.saved_tensors
        batch, classes = logits.shape[:2]
        # of the mean Dice loss by p: of_square · p, and on the class's label of_overlap more
        of_square = (2 * above / below.square() / (batch * classes)).float()  # (B, classes)
        of_overlap = (-2 / below / (batch * classes)).float()
        of_surprise = 1 / (batch * label[0].numel())
        known = logits.is_contiguous() or logits.is_contiguous(memory_format=torch.channels_last_3d)
        result = torch.empty_like(logits, memory_format=torch.preserve_format if known else torch.contiguous_format)
        for samples, place, values, true in _runs(logits, label):
            p = F.softmax(values, 1)  # (b, classes, n)
            by_p = p * of_square[samples, :, None]
            by_p.scatter_add_(1, true[:, None], of_overlap[samples].gather(1, true)[:, None])
            change = by_p.sub_((by_p * p).sum(1, keepdim=True)).add_(of_surprise).mul_(p)
            change.scatter_add_(1, true[:, None], torch.full_like(values[:, :1], -of_surprise))
            # a view in both of torch's layouts of a volume: (b, classes, D, H, W) -> (b, classes, D · H · W)
            result[samples].view(-1, classes, label[0].numel())[..., place] = change.mul_(gradients[0])
        return result, None, None, None


def _sums_by_class(values: Tensor, true: Tensor, classes: int) -> Tensor:
    """The sums of ``values`` (b, n) over each class's voxels: (b, classes)."""
    if len(true) == 1 and values.device.type == "cpu":  # faster there; a GPU it would wait for
        return torch.bincount(true[0], values[0], classes)[None]
    place = true * SUMS + torch.arange(true.shape[1], device=true.device) % SUMS
    sums = values.new_zeros((len(true), classes * SUMS)).scatter_add_(1, place, values)
    return sums.unflatten(1, (classes, SUMS)).sum(2)


def _runs(logits: Tensor, label: Tensor) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """For each run of voxels: its samples, its place, its logits (b, classes, n) in float32, its labels (b, n)."""
    batch, voxels = len(logits), label[0].numel()
    on_cpu = logits.device.type == "cpu"  # other devices have no such cache, and each call there costs
    samples_at_once, length = (1, VOXELS) if on_cpu else (batch, voxels)
    for sample in range(0, batch, samples_at_once):
        samples = slice(sample, sample + samples_at_once)
        values, true = logits[samples].flatten(2), label[samples].flatten(1)  # (b, classes, D · H · W), (b, D · H · W)
        for first in range(0, voxels, length):
            place = slice(first, first + length)
            yield samples, place, values[..., place].contiguous().float(), true[:, place].long()

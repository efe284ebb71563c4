"""The loss that training minimises."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from monai.losses import DeepSupervisionLoss
from torch import Tensor

VOXELS = 2**15  # that a CPU works on at a time, so that what is made of them stays in its cache


def at_each_resolution(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[list[Tensor], Tensor], Tensor]:
    """A loss for logits at full, half, quarter … resolution, each against the label at that resolution.

    They count by 1, 1/2, 1/4 …, divided by the sum of these (Isensee et al. 2021, nnU-Net), so that the learning rate
    that suits one resolution suits all. The label's value at the middle of a coarser voxel stands for it.
    """
    weighted = DeepSupervisionLoss(loss, weight_mode="exp")  # type: ignore[arg-type]

    def of_all(logits: list[Tensor], label: Tensor) -> Tensor:
        if label.dtype != torch.uint8:  # torch takes the nearest of bytes and of floats alone; float32 holds any label
            label = label.float()
        total: Tensor = weighted(logits, label)
        return total / sum(weighted.get_weights(len(logits)))

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
        for sample, _, values, true in _runs(logits, label):
            log_p = F.log_softmax(values, 0)  # (classes, n)
            log_p_true = log_p.gather(0, true[None])[0]  # (n,)
            surprise -= log_p_true.sum()
            squares[sample] += log_p.exp().square_().sum(1)
            overlap[sample] += torch.bincount(true, log_p_true.exp(), classes)
            sizes[sample] += torch.bincount(true, minlength=classes)
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
        result = torch.empty_like(logits)
        for sample, place, values, true in _runs(logits, label):
            p = F.softmax(values, 0)  # (classes, n)
            by_p = p * of_square[sample][:, None]
            at_true = true[None]  # (1, n)
            by_p.scatter_add_(0, at_true, of_overlap[sample][at_true])
            change = by_p.sub_((by_p * p).sum(0)).add_(of_surprise).mul_(p)
            change.scatter_add_(0, at_true, torch.full_like(values[:1], -of_surprise))
            # a view in both of torch's layouts of a volume: (classes, D, H, W) -> (classes, D · H · W)
            result[sample].view(classes, -1)[:, place] = change.mul_(gradients[0])
        return result, None, None, None


def _runs(logits: Tensor, label: Tensor) -> Iterator[tuple[int, slice, Tensor, Tensor]]:
    """For each run of voxels: its sample, its place, its logits (classes, n) in float32, its labels (n,)."""
    voxels = label[0].numel()
    length = VOXELS if logits.device.type == "cpu" else voxels  # a GPU has no such cache, and each call there costs
    for sample in range(len(logits)):
        values, true = logits[sample].flatten(1), label[sample].flatten()  # (classes, D · H · W) and (D · H · W,)
        for first in range(0, voxels, length):
            place = slice(first, first + length)
            yield sample, place, values[:, place].contiguous().float(), true[place].long()

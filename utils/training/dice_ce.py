"""Soft Dice loss plus cross-entropy, in few passes over memory."""

import functools
import importlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.system.openmp import can_run_kernels

CHUNK = 2**15  # voxels that torch works on at a time on a CPU, so that they stay in its cache
PARTIAL_SUMS = 64  # per class, so that neighbouring threads of a GPU don't add to the same number
LEAST = 2**18  # logits; below, less than a millisecond is gained by kernels, and a launch needn't load them


def dice_ce(logits: Tensor, label: Tensor, smooth_nr: float, smooth_dr: float) -> Tensor:
    """Soft Dice loss plus cross-entropy, equal to MONAI's ``DiceCELoss`` with softmax and squared predictions.

    For each sample and class the Dice loss is 1 - (2 Σ p y + smooth_nr) / (Σ p² + Σ y + smooth_dr), summed over the
    sample's voxels, where p is the class's probability and y is 1 on its label (Milletari et al. 2016, V-Net). Its mean
    over samples and classes is added to the mean cross-entropy over voxels. Value and gradient are computed from the
    logits chunk by chunk: neither a one-hot label nor the probabilities of a whole volume are kept in memory.

    Args:
        logits: (B, classes, D, H, W) in any format; the loss is computed in float32.
        label: (B, 1, D, H, W), 0 … classes - 1, of any dtype.

    Returns:
        A scalar in float32.
    """
    loss: Tensor = _DiceCE.apply(logits, label, smooth_nr, smooth_dr)
    return loss


class _Sums(NamedTuple):
    """Sums over voxels in float64, of classes' probabilities p and of y, which is 1 on the class's label.

    Attributes:
        overlap, squares, sizes: Σ p y, Σ p² and Σ y of each sample and class, (B, classes).
        cross_entropy: -Σ log p of the true class over all samples, a scalar.
    """

    overlap: Tensor
    squares: Tensor
    sizes: Tensor
    cross_entropy: Tensor


class _DiceCE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, label: Tensor, smooth_nr: float, smooth_dr: float) -> Tensor:
        labels = _as_bytes(label) if _can_be_compiled(logits) else None
        sums = _sums(logits, label) if labels is None else _compiled_sums(logits, labels)
        numerator, denominator = 2 * sums.overlap + smooth_nr, sums.squares + sums.sizes + smooth_dr
        ctx.save_for_backward(logits, label, labels, numerator, denominator)
        return ((1 - numerator / denominator).mean() + sums.cross_entropy / label.numel()).float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """dL/dz_c = Σ_k (dL/dp_k) (dp_k/dz_c) for the logits z, with dp_k/dz_c = p_k (1[k = c] - p_c)."""
        logits, label, labels, numerator, denominator = ctx.saved_tensors
        # dL/dp of the mean Dice loss is by_square · p, plus by_overlap on the class's label
        by_square = (2 * numerator / denominator.square() / numerator.numel()).float()  # (B, classes)
        by_overlap = (-2 / denominator / numerator.numel()).float()
        if labels is None:
            result = _gradient(logits, label, by_square, by_overlap, gradients[0])
        else:
            result = _compiled_gradient(logits, labels, by_square, by_overlap, gradients[0])
        return result, None, None, None


def _sums(logits: Tensor, label: Tensor) -> _Sums:
    batch, classes = logits.shape[:2]
    overlap = logits.new_zeros((batch, classes), dtype=torch.float64)
    squares, sizes = torch.zeros_like(overlap), torch.zeros_like(overlap)
    cross_entropy = overlap.new_zeros(())
    for samples, _, values, true in _chunks(logits, label):
        log_p = F.log_softmax(values, 1)  # (b, classes, n)
        cross_entropy -= log_p.gather(1, true[:, None]).sum()
        p = log_p.exp_()
        p_true = p.gather(1, true[:, None])[:, 0].double()  # (b, n)
        overlap[samples] += _sums_by_class(p_true, true, classes)
        sizes[samples] += _sums_by_class(torch.ones_like(p_true), true, classes)
        squares[samples] += p.square_().sum(2)
    return _Sums(overlap, squares, sizes, cross_entropy)


def _gradient(logits: Tensor, label: Tensor, by_square: Tensor, by_overlap: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of the logits, from the factors (B, classes) and the gradient of the loss."""
    per_voxel = 1 / label.numel()  # a voxel's weight in the mean cross-entropy
    known = logits.is_contiguous() or logits.is_contiguous(memory_format=torch.channels_last_3d)
    result = torch.empty_like(logits, memory_format=torch.preserve_format if known else torch.contiguous_format)
    for samples, place, values, true in _chunks(logits, label):
        p = F.softmax(values, 1)  # (b, classes, n)
        by_p = p * by_square[samples, :, None]
        by_p.scatter_add_(1, true[:, None], by_overlap[samples].gather(1, true)[:, None])
        by_logits = by_p.sub_((by_p * p).sum(1, keepdim=True)).add_(per_voxel).mul_(p)
        by_logits.scatter_add_(1, true[:, None], torch.full_like(values[:, :1], -per_voxel))
        # (b, classes, D, H, W) -> (b, classes, D · H · W), a view in both memory formats
        result[samples].view(*values.shape[:2], label[0].numel())[..., place] = by_logits.mul_(gradient)
    return result


def _sums_by_class(values: Tensor, true: Tensor, classes: int) -> Tensor:
    """Sum ``values`` (b, n) over each class's voxels: (b, classes)."""
    if len(true) == 1 and values.device.type == "cpu":  # faster there, but would synchronise with a GPU
        return torch.bincount(true[0], values[0], classes)[None]
    place = true * PARTIAL_SUMS + torch.arange(true.shape[1], device=true.device) % PARTIAL_SUMS
    sums = values.new_zeros((len(true), classes * PARTIAL_SUMS)).scatter_add_(1, place, values)
    return sums.unflatten(1, (classes, PARTIAL_SUMS)).sum(2)


def _chunks(logits: Tensor, label: Tensor) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """By chunk of voxels: its samples, its place, its logits (b, classes, n) in float32, its labels (b, n)."""
    batch, voxels = len(logits), label[0].numel()
    on_cpu = logits.device.type == "cpu"  # a GPU is faster with all voxels in one call
    samples_at_once, length = (1, CHUNK) if on_cpu else (batch, voxels)
    for sample in range(0, batch, samples_at_once):
        samples = slice(sample, sample + samples_at_once)
        values, true = logits[samples].flatten(2), label[samples].flatten(1)  # (b, classes, D · H · W), (b, D · H · W)
        for first in range(0, voxels, length):
            place = slice(first, first + length)
            yield samples, place, values[..., place].contiguous().float(), true[:, place].long()


def _can_be_compiled(logits: Tensor) -> bool:
    """Whether the kernels can compute the loss of these logits, and faster than torch."""
    return (
        logits.device.type == "cpu"
        and logits.numel() >= LEAST
        and logits.dtype in (torch.float32, torch.bfloat16)
        and (logits.is_contiguous() or logits.is_contiguous(memory_format=torch.channels_last_3d))
        and logits.shape[1] in range(2, 257)  # a label is a byte there
        and can_run_kernels()
    )


def _as_bytes(label: Tensor) -> Tensor | None:
    """A label as uint8; None if bytes can't hold its numbers."""
    labels = label.to(torch.uint8)
    return labels.contiguous() if label.dtype == torch.uint8 or torch.equal(labels.to(label.dtype), label) else None


def _compiled_sums(logits: Tensor, labels: Tensor) -> _Sums:
    kernels = _kernels()
    batch, classes = logits.shape[:2]
    chunks = -(-labels[0].numel() // kernels.CHUNK)
    found = np.empty((batch, chunks, kernels.SUM_ROWS, classes))
    _run(kernels.sums, logits, labels, sums=found.ctypes.data)
    if found[:, :, kernels.OTHER, 1].max() >= classes:
        raise IndexError(f"the label has a class beyond the {classes} of the logits")
    overlap, squares, sizes, other = torch.from_numpy(found.sum(1)).unbind(1)
    return _Sums(overlap, squares, sizes, other[:, 0].sum())


def _compiled_gradient(
    logits: Tensor, labels: Tensor, by_square: Tensor, by_overlap: Tensor, gradient: Tensor
) -> Tensor:
    factors = torch.stack([by_square, by_overlap], 1)  # (B, 2, classes)
    result = torch.empty_like(logits)
    addresses = {"factors": factors.data_ptr(), "result": result.data_ptr()}
    _run(_kernels().gradients, logits, labels, per_voxel=1 / labels.numel(), gradient=gradient.item(), **addresses)
    return result


def _run(kernel: Any, logits: Tensor, labels: Tensor, **fields: float) -> None:
    """Run a kernel on logits, labels and other fields of its job."""
    kernels = _kernels()
    job = np.zeros(1, kernels.JOB)
    job["voxels"], job["classes"] = labels[0].numel(), logits.shape[1]
    job["chunks"] = len(logits) * -(-labels[0].numel() // kernels.CHUNK)
    job["logits"], job["labels"] = logits.data_ptr(), labels.data_ptr()
    # (B, classes, D, H, W) -> (B, classes, D · H · W), a view in both memory formats
    job["sample_stride"], job["class_stride"], job["voxel_stride"] = logits.flatten(2).stride()
    for name, value in fields.items():
        job[name] = value
    kernel.run(logits.dtype, job)


@functools.cache
def _kernels() -> ModuleType:
    """The kernels, once they are needed: numba takes half a second to import."""
    return importlib.import_module("utils.training.loss_kernels")

"""Kernels of :mod:`utils.training.dice_ce`, compiled by numba when first used, and kept on disk.

A chunk is some of a sample's voxels. Its logits are copied, so many voxels at a time, into a tile (classes, TILE) that
stays in the cache, whatever their layout in memory.
"""

from typing import Any

import numpy as np
from numba import carray, njit

from utils.system.compiled import (
    BFLOAT16,
    FLOAT32,
    OPTIONS,
    TAKEN,
    Kernel,
    as_pointer,
    from_bits,
    load,
    next_chunk,
    store,
)

CHUNK = 2**13  # voxels of a chunk, at most
TILE = 256  # voxels of a tile
LOGS = 16  # numbers whose product takes one logarithm; each is at most the number of classes
# rows of a chunk's sums over its voxels, by class: Σ p y, Σ p², Σ y; and -Σ log p of the true class, the largest label
OVERLAP, SQUARES, SIZES, OTHER = range(4)
SUM_ROWS = 4
# rows of a sample's factors, by class
BY_SQUARE, BY_OVERLAP = range(2)
FACTOR_ROWS = 2

JOB = np.dtype(
    [
        TAKEN,
        ("chunks", np.int64),  # of all samples
        ("voxels", np.int64),  # of a sample
        ("classes", np.int64),
        ("logits", np.int64),  # address
        ("result", np.int64),  # address; the same layout
        ("sample_stride", np.int64),  # of logits and result, in numbers
        ("class_stride", np.int64),
        ("voxel_stride", np.int64),
        ("labels", np.int64),  # address, uint8 (B, voxels)
        ("sums", np.int64),  # address, float64 (chunks, SUM_ROWS, classes)
        ("factors", np.int64),  # address, float32 (B, FACTOR_ROWS, classes)
        ("per_voxel", np.float32),  # a voxel's weight in the mean cross-entropy
        ("gradient", np.float32),  # of the loss
    ],
    align=True,
)
# sums may be reordered, so that they are taken in vectors; they are the same in every run
REORDERED = OPTIONS | {"fastmath": {"contract", "reassoc"}}


@njit(**OPTIONS)
def _exp(x: Any) -> Any:
    """The exponential of a float32 that isn't above 0, to 2 units in the last place.

    2ⁿ · eʳ with |r| at most ln 2 / 2, by the polynomial of Moshier's Cephes library (expf).
    """
    x = np.float32(-87) if x < np.float32(-87) else x  # NaN stays
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    y = np.float32(1.9875691500e-4)
    y = y * r + np.float32(1.3981999507e-3)
    y = y * r + np.float32(8.3334519073e-3)
    y = y * r + np.float32(4.1665795894e-2)
    y = y * r + np.float32(1.6666665459e-1)
    y = y * r + np.float32(5.0000001201e-1)
    return (y * r * r + r + np.float32(1)) * from_bits(np.int32((np.int32(n) + np.int32(127)) << np.int32(23)))


@njit(**OPTIONS)
def _place(job: Any, chunk: int) -> tuple[int, int, int]:
    """A chunk's sample, its first voxel and the voxel behind its last."""
    chunks = (job.voxels + CHUNK - 1) // CHUNK
    sample, number = chunk // chunks, chunk % chunks
    return sample, number * CHUNK, min((number + 1) * CHUNK, job.voxels)


@njit(**REORDERED)
def _exponentials(job: Any, first: int, count: int, kind: Any, tile: Any, largest: Any, totals: Any) -> None:
    """Fill a tile with the logits less each voxel's largest, and then with their exponentials; sum these over classes.

    Args:
        first: the place of the first voxel's first logit.
        count: how many voxels; the others of the tile keep what they had.
    """
    classes, logits, stride, class_stride = job.classes, job.logits, job.voxel_stride, job.class_stride
    largest[:] = np.float32(-np.inf)
    for one in range(classes):
        row, begin = tile[one], first + one * class_stride
        for voxel in range(count):
            row[voxel] = load(logits, begin + voxel * stride, kind)
        for voxel in range(TILE):
            largest[voxel] = max(largest[voxel], row[voxel])
    totals[:] = np.float32(0)
    for one in range(classes):
        row = tile[one]
        for voxel in range(TILE):
            row[voxel] = _exp(row[voxel] - largest[voxel])
            totals[voxel] += row[voxel]


@njit(**REORDERED)
def _sum_of_squares(row: Any, totals: Any, count: int) -> Any:
    total = np.float32(0)
    for voxel in range(count):
        p = row[voxel] / totals[voxel]
        total += p * p
    return total


@njit(**OPTIONS)
def _sums(pointer: Any, job: Any, kind: Any) -> None:
    """Each chunk's sums."""
    classes = job.classes
    tile, largest, totals = (
        np.zeros((classes, TILE), np.float32),
        np.empty(TILE, np.float32),
        np.empty(TILE, np.float32),
    )
    true = np.empty(TILE, np.int64)
    while True:
        chunk = next_chunk(pointer)
        if chunk >= job.chunks:
            return
        sample, first, end = _place(job, chunk)
        found = carray(as_pointer(job.sums + 8 * chunk * SUM_ROWS * classes, np.float64), (SUM_ROWS, classes))
        labels = carray(as_pointer(job.labels + sample * job.voxels, np.uint8), job.voxels)
        found[:] = 0.0
        for begin in range(first, end, TILE):
            count = min(TILE, end - begin)
            place = sample * job.sample_stride + begin * job.voxel_stride
            for voxel in range(count):
                true[voxel] = labels[begin + voxel]
                found[OTHER, 1] = max(found[OTHER, 1], true[voxel])
            if found[OTHER, 1] >= classes:
                break  # the caller sees it
            _exponentials(job, place, count, kind, tile, largest, totals)
            for one in range(classes):
                found[SQUARES, one] += _sum_of_squares(tile[one], totals, count)
            product, factors = 1.0, 0
            for voxel in range(count):
                label = true[voxel]
                found[OVERLAP, label] += tile[label, voxel] / totals[voxel]
                found[SIZES, label] += 1
                # log p = logit - largest - log of the total
                logit = load(job.logits, place + label * job.class_stride + voxel * job.voxel_stride, kind)
                found[OTHER, 0] -= logit - largest[voxel]
                product *= totals[voxel]
                factors += 1
                if factors == LOGS or voxel == count - 1:
                    found[OTHER, 0] += np.log(product)
                    product, factors = 1.0, 0


def _sums_in_bfloat16(pointer: Any) -> None:
    _sums(pointer, carray(pointer, 1)[0], BFLOAT16)


def _sums_in_float32(pointer: Any) -> None:
    _sums(pointer, carray(pointer, 1)[0], FLOAT32)


sums = Kernel(JOB, _sums_in_bfloat16, _sums_in_float32)


@njit(**OPTIONS)
def _gradients(pointer: Any, job: Any, kind: Any) -> None:
    """The gradient of the loss with respect to the logits, into ``result``.

    dL/dz_c = Σ_k (dL/dp_k) (dp_k/dz_c) for the logits z, with dp_k/dz_c = p_k (1[k = c] - p_c).
    """
    classes, per_voxel, gradient = job.classes, job.per_voxel, job.gradient
    result, stride, class_stride = job.result, job.voxel_stride, job.class_stride
    tile, largest, totals = (
        np.zeros((classes, TILE), np.float32),
        np.empty(TILE, np.float32),
        np.empty(TILE, np.float32),
    )
    # Σ_k (dL/dp_k) p_k of each voxel
    mean = np.empty(TILE, np.float32)
    while True:
        chunk = next_chunk(pointer)
        if chunk >= job.chunks:
            return
        sample, first, end = _place(job, chunk)
        factors = carray(
            as_pointer(job.factors + 4 * sample * FACTOR_ROWS * classes, np.float32), (FACTOR_ROWS, classes)
        )
        labels = carray(as_pointer(job.labels + sample * job.voxels, np.uint8), job.voxels)
        for begin in range(first, end, TILE):
            count = min(TILE, end - begin)
            place = sample * job.sample_stride + begin * stride
            _exponentials(job, place, count, kind, tile, largest, totals)
            mean[:] = np.float32(0)
            for one in range(classes):
                row, by_square = tile[one], factors[BY_SQUARE, one]
                for voxel in range(TILE):
                    row[voxel] /= totals[voxel]
                    mean[voxel] += row[voxel] * row[voxel] * by_square
            for voxel in range(count):
                label = labels[begin + voxel]
                mean[voxel] += tile[label, voxel] * factors[BY_OVERLAP, label]
            for one in range(classes):
                row, by_square, to = tile[one], factors[BY_SQUARE, one], place + one * class_stride
                for voxel in range(count):
                    p = row[voxel]
                    found = p * (p * by_square - mean[voxel] + per_voxel)
                    store(result, to + voxel * stride, found * gradient, kind)
            for voxel in range(count):
                label = np.int64(labels[begin + voxel])
                p, by_square = tile[label, voxel], factors[BY_SQUARE, label]
                found = p * (p * by_square + factors[BY_OVERLAP, label] - mean[voxel] + per_voxel) - per_voxel
                store(result, place + label * class_stride + voxel * stride, found * gradient, kind)


def _gradients_in_bfloat16(pointer: Any) -> None:
    _gradients(pointer, carray(pointer, 1)[0], BFLOAT16)


def _gradients_in_float32(pointer: Any) -> None:
    _gradients(pointer, carray(pointer, 1)[0], FLOAT32)


gradients = Kernel(JOB, _gradients_in_bfloat16, _gradients_in_float32)

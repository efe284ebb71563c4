"""Kernels of :mod:`networks.layers.fused_norm`, compiled by numba when first used, and kept on disk.

They see a volume (B, C, D, H, W) in ``channels_last_3d`` as rows of memory: (B · D · H · W, C). A chunk is some of a
sample's rows. So that a loop runs over more numbers than a voxel has channels, per-channel factors are repeated to
:data:`WIDTH` numbers, and a chunk is worked on by so many at a time.
"""

from typing import Any

import numpy as np
from numba import carray, njit

from utils.system.compiled import BFLOAT16, FLOAT32, OPTIONS, TAKEN, Kernel, load, next_chunk, store

WIDTH = 256  # numbers at a time, at least; longer rows gain nothing, and less of the table stays in the cache
CHUNK = 2**14  # numbers of a chunk, at most; they stay in the cache for a second look
# rows of a sample's table: factors of the forward pass, means, and factors of the gradients; what the shortcut has as
# well stands behind that of the features
SCALE, SCALE_OF_SHORTCUT, MEAN, MEAN_OF_SHORTCUT, SHIFT = range(5)
BY_GRADIENT, BY_GRADIENT_OF_SHORTCUT, BY_VALUE, BY_VALUE_OF_SHORTCUT, CONSTANT, CONSTANT_OF_SHORTCUT = range(5, 11)
TABLE_ROWS = 11
SUM_ROWS = 3  # of a chunk's sums

JOB = np.dtype(
    [
        TAKEN,
        ("chunks", np.int64),  # of all samples
        ("voxels", np.int64),  # of a sample
        ("channels", np.int64),
        ("voxels_of_chunk", np.int64),
        ("width", np.int64),  # numbers at a time: those of whole voxels
        # addresses of volumes; that of the shortcut is 0 if there is none
        ("features", np.int64),
        ("shortcut", np.int64),
        ("result", np.int64),
        ("gradient", np.int64),
        ("by_features", np.int64),
        ("by_shortcut", np.int64),
        # addresses in float32
        ("table", np.int64),  # (B, TABLE_ROWS, width)
        ("sums", np.int64),  # (chunks, SUM_ROWS, channels)
        ("slope", np.float32),
    ],
    align=True,
)


@njit(**OPTIONS)
def _place(job: Any, chunk: int) -> tuple[int, int, int, int]:
    """Where a chunk's sample has its table, the chunk its sums and its first number, and how many numbers it has."""
    chunks = (job.voxels + job.voxels_of_chunk - 1) // job.voxels_of_chunk
    sample, number = chunk // chunks, chunk % chunks
    first = number * job.voxels_of_chunk
    voxels = min(job.voxels_of_chunk, job.voxels - first)
    table = job.table + 4 * sample * TABLE_ROWS * job.width
    sums = job.sums + 4 * chunk * SUM_ROWS * job.channels
    return table, sums, (sample * job.voxels + first) * job.channels, voxels * job.channels


@njit(**OPTIONS)
def _fill(row: int, length: int, values: int, channels: int) -> None:
    """Repeat values of channels until they fill a row."""
    for begin in range(0, length, channels):
        for channel in range(channels):
            store(row, begin + channel, load(values, channel, FLOAT32), FLOAT32)


@njit(**OPTIONS)
def _clear(row: int, length: int) -> None:
    for place in range(length):
        store(row, place, np.float32(0), FLOAT32)


@njit(**OPTIONS)
def _sum_by_channel(row: int, length: int, channels: int, divisor: float, sums: int) -> None:
    """Sum a row over its voxels and divide."""
    for channel in range(channels):
        total = np.float32(0)
        for place in range(channel, length, channels):
            total += load(row, place, FLOAT32)
        store(sums, channel, total / np.float32(divisor), FLOAT32)


@njit(**OPTIONS)
def _moments(pointer: Any, job: Any, kind: Any) -> None:
    """Rows of each chunk's sums: the channels' means in ``features``, and sums of squared distances from them."""
    # locals, because a store could change the job for all that the compiler knows
    features, width, channels = job.features, job.width, job.channels
    rows = np.empty((2, width), np.float32)
    sums, means = rows[0].ctypes.data, rows[1].ctypes.data
    while True:
        chunk = next_chunk(pointer)
        if chunk >= job.chunks:
            return
        _, found, first, count = _place(job, chunk)
        end = first + count
        _clear(sums, width)
        for begin in range(first, end, width):
            for place in range(min(width, end - begin)):
                total = load(sums, place, FLOAT32) + load(features, begin + place, kind)
                store(sums, place, total, FLOAT32)
        _sum_by_channel(sums, width, channels, count // channels, found)
        _fill(means, width, found, channels)
        _clear(sums, width)
        for begin in range(first, end, width):
            for place in range(min(width, end - begin)):
                distance = load(features, begin + place, kind) - load(means, place, FLOAT32)
                store(sums, place, load(sums, place, FLOAT32) + distance * distance, FLOAT32)
        _sum_by_channel(sums, width, channels, 1, found + 4 * channels)


def _moments_in_bfloat16(pointer: Any) -> None:
    _moments(pointer, carray(pointer, 1)[0], BFLOAT16)


def _moments_in_float32(pointer: Any) -> None:
    _moments(pointer, carray(pointer, 1)[0], FLOAT32)


moments = Kernel(JOB, _moments_in_bfloat16, _moments_in_float32)


@njit(**OPTIONS)
def _factor(table: int, row: int, width: int, place: int) -> Any:
    return load(table, row * width + place, FLOAT32)


@njit(**OPTIONS)
def _normalised(value: Any, other: Any, has_other: bool, table: int, width: int, place: int) -> Any:
    """The sum before the activation, of a number of the features and one of the shortcut, if there is one."""
    z = (value - _factor(table, MEAN, width, place)) * _factor(table, SCALE, width, place)
    z += _factor(table, SHIFT, width, place)
    if has_other:
        distance = other - _factor(table, MEAN_OF_SHORTCUT, width, place)
        z += distance * _factor(table, SCALE_OF_SHORTCUT, width, place)
    return z


@njit(**OPTIONS)
def _activate(pointer: Any, job: Any, kind: Any) -> None:
    """``result``: leaky ReLU of (features - MEAN) · SCALE + SHIFT, plus (shortcut - MEAN) · SCALE of the shortcut."""
    features, result, width, slope = job.features, job.result, job.width, job.slope
    shortcut, has_shortcut = job.shortcut or job.features, job.shortcut != 0
    while True:
        chunk = next_chunk(pointer)
        if chunk >= job.chunks:
            return
        table, _, first, count = _place(job, chunk)
        end = first + count
        for begin in range(first, end, width):
            for place in range(min(width, end - begin)):
                value, other = load(features, begin + place, kind), load(shortcut, begin + place, kind)
                z = _normalised(value, other, has_shortcut, table, width, place)
                store(result, begin + place, z if z > 0 else z * slope, kind)


def _activate_in_bfloat16(pointer: Any) -> None:
    _activate(pointer, carray(pointer, 1)[0], BFLOAT16)


def _activate_in_float32(pointer: Any) -> None:
    _activate(pointer, carray(pointer, 1)[0], FLOAT32)


activate = Kernel(JOB, _activate_in_bfloat16, _activate_in_float32)


@njit(**OPTIONS)
def _sum_gradients(pointer: Any, job: Any, kind: Any) -> None:
    """Rows of each chunk's sums: Σ g, Σ g · (features - MEAN), Σ g · (shortcut - MEAN of the shortcut).

    Here g is the gradient of the sum before the activation.
    """
    features, gradient, width, slope, channels = job.features, job.gradient, job.width, job.slope, job.channels
    shortcut, has_shortcut = job.shortcut or job.features, job.shortcut != 0
    rows = np.empty((SUM_ROWS, width), np.float32)
    total, by_features, by_shortcut = rows[0].ctypes.data, rows[1].ctypes.data, rows[2].ctypes.data
    while True:
        chunk = next_chunk(pointer)
        if chunk >= job.chunks:
            return
        table, found, first, count = _place(job, chunk)
        end = first + count
        _clear(total, SUM_ROWS * width)
        for begin in range(first, end, width):
            for place in range(min(width, end - begin)):
                value, other = load(features, begin + place, kind), load(shortcut, begin + place, kind)
                g = load(gradient, begin + place, kind)
                z = _normalised(value, other, has_shortcut, table, width, place)
                g = g if z > 0 else g * slope
                store(total, place, load(total, place, FLOAT32) + g, FLOAT32)
                by_value = g * (value - _factor(table, MEAN, width, place))
                store(by_features, place, load(by_features, place, FLOAT32) + by_value, FLOAT32)
                if has_shortcut:
                    by_other = g * (other - _factor(table, MEAN_OF_SHORTCUT, width, place))
                    store(by_shortcut, place, load(by_shortcut, place, FLOAT32) + by_other, FLOAT32)
        for row in range(SUM_ROWS):
            _sum_by_channel(total + 4 * row * width, width, channels, 1, found + 4 * row * channels)


def _sum_gradients_in_bfloat16(pointer: Any) -> None:
    _sum_gradients(pointer, carray(pointer, 1)[0], BFLOAT16)


def _sum_gradients_in_float32(pointer: Any) -> None:
    _sum_gradients(pointer, carray(pointer, 1)[0], FLOAT32)


sum_gradients = Kernel(JOB, _sum_gradients_in_bfloat16, _sum_gradients_in_float32)


@njit(**OPTIONS)
def _gradients(pointer: Any, job: Any, kind: Any) -> None:
    """``by_features``: g · BY_GRADIENT + (features - MEAN) · BY_VALUE + CONSTANT, and ``by_shortcut`` likewise."""
    features, gradient, width, slope = job.features, job.gradient, job.width, job.slope
    by_features, by_shortcut = job.by_features, job.by_shortcut
    shortcut, has_shortcut = job.shortcut or job.features, job.shortcut != 0
    while True:
        chunk = next_chunk(pointer)
        if chunk >= job.chunks:
            return
        table, _, first, count = _place(job, chunk)
        end = first + count
        for begin in range(first, end, width):
            for place in range(min(width, end - begin)):
                value, other = load(features, begin + place, kind), load(shortcut, begin + place, kind)
                g = load(gradient, begin + place, kind)
                z = _normalised(value, other, has_shortcut, table, width, place)
                g = g if z > 0 else g * slope
                found = g * _factor(table, BY_GRADIENT, width, place) + _factor(table, CONSTANT, width, place)
                distance = value - _factor(table, MEAN, width, place)
                found += distance * _factor(table, BY_VALUE, width, place)
                store(by_features, begin + place, found, kind)
                if has_shortcut:
                    found = g * _factor(table, BY_GRADIENT_OF_SHORTCUT, width, place)
                    found += _factor(table, CONSTANT_OF_SHORTCUT, width, place)
                    distance = other - _factor(table, MEAN_OF_SHORTCUT, width, place)
                    found += distance * _factor(table, BY_VALUE_OF_SHORTCUT, width, place)
                    store(by_shortcut, begin + place, found, kind)


def _gradients_in_bfloat16(pointer: Any) -> None:
    _gradients(pointer, carray(pointer, 1)[0], BFLOAT16)


def _gradients_in_float32(pointer: Any) -> None:
    _gradients(pointer, carray(pointer, 1)[0], FLOAT32)


gradients = Kernel(JOB, _gradients_in_bfloat16, _gradients_in_float32)

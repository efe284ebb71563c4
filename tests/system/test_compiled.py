"""What kernels are made of: loading and storing of both number formats, and threads that share chunks."""

from typing import Any

import numpy as np
import pytest
import torch

from utils.system.openmp import can_run_kernels

if not can_run_kernels():
    pytest.skip("numba isn't installed, or torch's OpenMP is unknown", allow_module_level=True)

from numba import carray

from utils.system.compiled import BFLOAT16, FLOAT32, TAKEN, Kernel, load, next_chunk, store

JOB = np.dtype([TAKEN, ("chunks", np.int64), ("source", np.int64), ("target", np.int64)], align=True)


def _round(pointer: Any) -> None:
    """Copy float32 to bfloat16."""
    job = carray(pointer, 1)[0]
    while True:
        chunk = next_chunk(pointer)
        if chunk >= job.chunks:
            return
        store(job.target, chunk, load(job.source, chunk, FLOAT32), BFLOAT16)


def _widen(pointer: Any) -> None:
    """Copy bfloat16 to float32."""
    job = carray(pointer, 1)[0]
    while True:
        chunk = next_chunk(pointer)
        if chunk >= job.chunks:
            return
        store(job.target, chunk, load(job.source, chunk, BFLOAT16), FLOAT32)


def run(kernel: Kernel, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    job = np.zeros(1, JOB)
    job["chunks"], job["source"], job["target"] = source.numel(), source.data_ptr(), target.data_ptr()
    kernel.run(source.dtype, job)
    return target


def test_a_kernel_that_can_not_be_kept_is_compiled_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])
    values = torch.tensor([1.0, 2.5])
    assert run(Kernel(JOB, _widen, _round), values, torch.empty(2, dtype=torch.bfloat16)).tolist() == [1, 2.5]


def test_rounding_is_torchs() -> None:
    bits = torch.randint(-(2**31), 2**31, (100_000,), dtype=torch.int64).to(torch.int32)
    edges = torch.tensor(
        [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1 + 2**-8, 1 + 3 * 2**-8, 3.4e38, 1e-40]
    )
    values = torch.cat([bits.view(torch.float32), edges])
    kernel = Kernel(JOB, _widen, _round)
    rounded = run(kernel, values, torch.empty(len(values), dtype=torch.bfloat16))
    expected = values.to(torch.bfloat16)
    assert torch.equal(rounded.isnan(), expected.isnan())
    known = ~expected.isnan()
    assert torch.equal(rounded[known].view(torch.int16), expected[known].view(torch.int16))
    # and 1 + 2⁻⁸ is halfway between two numbers, of which 1 is even; 1 + 3 · 2⁻⁸ is below an even one
    assert rounded[-4:-2].tolist() == [1, 1 + 2**-6]
    assert torch.equal(run(kernel, rounded, torch.empty(len(values)))[known], rounded.float()[known])

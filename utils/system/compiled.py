"""What numba lacks for kernels that work on torch's tensors: bfloat16, memory by address, chunks that threads share.

A kernel gets a pointer to a job, a record whose first field counts the chunks that are taken. Each thread takes chunks
until none is left. No result may depend on which thread took a chunk.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import cfunc, extending, from_dtype, types

from utils.system.openmp import in_torchs_threads

TAKEN = ("taken", np.int64)  # the first field of every job
FLOAT32 = types.float32
BFLOAT16 = types.uint16  # as numba sees it
_INT32 = ir.IntType(32)
intrinsic: Any = extending.intrinsic  # whose type doesn't know that the compiler gives the first argument


# a product and a sum may become one operation; nothing else that changes results
OPTIONS: dict[str, Any] = {"error_model": "numpy", "fastmath": {"contract"}}


class Kernel:
    """A kernel for each number format; each is compiled when it is first run.

    numba keeps it beside the source or in the user's cache. It compiles anew if the file of the kernel changes, but not
    if this one does. What it keeps it finds again by the function's name and line, so each format has a function of its
    own, and none is made by another function.

    Args:
        job: the fields of its job, with :data:`TAKEN` first.
        in_bfloat16, in_float32: functions of a pointer to a job.
    """

    def __init__(self, job: np.dtype, in_bfloat16: Callable[[Any], None], in_float32: Callable[[Any], None]) -> None:
        self._signature = types.void(types.CPointer(from_dtype(job)))
        self._functions = {torch.bfloat16: in_bfloat16, torch.float32: in_float32}
        self._compiled: dict[torch.dtype, Any] = {}

    def run(self, dtype: torch.dtype, job: np.ndarray) -> None:
        """Run the kernel of a format in torch's threads on a job, an array of one record."""
        if dtype not in self._compiled:
            self._compiled[dtype] = self._compile(self._functions[dtype])
        job["taken"] = 0
        in_torchs_threads(self._compiled[dtype].address, job.ctypes.data)

    def _compile(self, function: Callable[[Any], None]) -> Any:
        try:
            return cfunc(self._signature, cache=True, **OPTIONS)(function)
        except (OSError, RuntimeError):  # no folder can be written, or the disk is full
            return cfunc(self._signature, **OPTIONS)(function)


@intrinsic
def next_chunk(_: Any, job: Any) -> Any:
    """The number of a chunk that no other thread has: chunks are counted up in a job's first field."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        counter = builder.bitcast(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", counter, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(job), generate


@intrinsic
def as_pointer(_: Any, address: Any, kind: Any) -> Any:
    """An address as a pointer to numbers of a kind, from which ``numba.carray`` makes an array."""
    pointer = types.CPointer(kind.dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(pointer))

    return pointer(types.int64, kind), generate


@intrinsic
def load(_: Any, address: Any, index: Any, kind: Any) -> Any:
    """The number at an index behind an address, in float32. ``kind`` says how it is stored."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        stored = builder.load(_place(builder, context, arguments[0], arguments[1], kind))
        if kind.dtype == FLOAT32:
            return stored
        # a bfloat16 is the upper half of a float32
        return builder.bitcast(builder.shl(builder.zext(stored, _INT32), _INT32(16)), ir.FloatType())

    return types.float32(types.int64, types.int64, kind), generate


@intrinsic
def store(_: Any, address: Any, index: Any, value: Any, kind: Any) -> Any:
    """Store a float32 at an index behind an address, rounded to the nearest number of its kind, and to even."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = arguments[2]
        if kind.dtype == BFLOAT16:
            bits = builder.bitcast(value, _INT32)
            odd = builder.and_(builder.lshr(bits, _INT32(16)), _INT32(1))
            rounded = builder.lshr(builder.add(bits, builder.add(odd, _INT32(0x7FFF))), _INT32(16))
            is_number = builder.fcmp_ordered("ord", value, value)
            value = builder.trunc(builder.select(is_number, rounded, _INT32(0x7FC0)), ir.IntType(16))
        builder.store(value, _place(builder, context, arguments[0], arguments[1], kind))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32, kind), generate


@intrinsic
def from_bits(_: Any, bits: Any) -> Any:
    """The float32 with these 32 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


def _place(builder: Any, context: Any, address: Any, index: Any, kind: Any) -> Any:
    pointer = builder.inttoptr(address, context.get_value_type(types.CPointer(kind.dtype)))
    return builder.gep(pointer, [index])

"""loops.py: what et.py uses of Triton, on the CPU: each block of a launch, one after the other, in
numpy.

A pointer is an array and offsets into it. Nothing is faster than it need be to test a kernel's
logic; what a GPU adds (memory spaces, rounding of dots, races between blocks) is not seen here.
"""
from __future__ import annotations

import itertools
from typing import Any, Callable, Tuple

import numpy

constexpr = Any
float32 = numpy.float32

_block: Tuple[int, ...] = ()


class Pointer:
    def __init__(self, array: Any, offset: Any = 0):
        self.array, self.offset = array, offset

    def __add__(self, more: Any) -> Pointer:
        return Pointer(self.array, self.offset + more)


class _Kernel:
    def __init__(self, body: Callable[..., None]):
        self.body = body

    def __getitem__(self, grid: Tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **constants: Any) -> None:
            global _block
            given = [
                Pointer(each.numpy().reshape(-1)) if hasattr(each, "numpy") else each
                for each in arguments
            ]
            for _block in itertools.product(*(range(extent) for extent in grid)):
                self.body(*given, **constants)

        return launch


def jit(body: Callable[..., None]) -> _Kernel:
    return _Kernel(body)


def program_id(axis: int) -> int:
    return _block[axis]


def load(pointer: Pointer, mask: Any = True, other: Any = 0) -> Any:
    """Where the mask is false nothing is read."""
    offset, mask = numpy.broadcast_arrays(pointer.offset, mask)
    values = numpy.full(offset.shape, other, dtype=pointer.array.dtype)
    values[mask] = pointer.array[offset[mask]]
    return values if values.shape else values[()]


def store(pointer: Pointer, values: Any, mask: Any = True) -> None:
    offset, mask, values = numpy.broadcast_arrays(pointer.offset, mask, values)
    pointer.array[offset[mask]] = values[mask]


def arange(first: int, end: int) -> Any:
    return numpy.arange(first, end)


def zeros(shape: Tuple[int, ...], dtype: Any) -> Any:
    return numpy.zeros(shape, dtype=dtype)


def dot(a: Any, b: Any, allow_tf32: bool = True) -> Any:
    return a @ b


def maximum(a: Any, b: Any) -> Any:
    return numpy.maximum(a, numpy.float32(b))


def sum(values: Any, axis: int) -> Any:  # pylint: disable=redefined-builtin
    return values.sum(axis=axis)

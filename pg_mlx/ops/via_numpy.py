"""Leaving MLX's graph for NumPy, on the CPU backend.

Inputs are evaluated first, because NumPy needs values. This costs nothing on the CPU, which never runs ahead of Python.
Gradients are those of the same function in MLX's own operations.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import mlx.core as mx
import numpy as np

from . import device

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

T = TypeVar("T")

LARGE_VALUES = 1 << 13
"""From this many values on it pays to leave MLX's graph for an elementwise function."""

CHUNK_VALUES = 1 << 16
"""Values that a thread computes at a time, so that each operation finds them in its cache."""


def via_numpy(compute: Callable[..., mx.array], plain: Callable[..., mx.array], *inputs: mx.array) -> mx.array:
    """compute(*inputs), with the gradients of `plain`; plain(*inputs) where nothing can be evaluated (mx.compile)."""
    if not device.evaluate(*inputs):
        return plain(*inputs)
    function: Any = mx.custom_function(compute)
    function.vjp(lambda primals, cotangent, _: _gradients(plain, primals, cotangent))
    return function(*inputs)


def _gradients(plain: Callable[..., mx.array], primals: Any, cotangent: mx.array) -> Any:
    several = isinstance(primals, (list, tuple))
    gradients = mx.vjp(plain, list(primals) if several else [primals], [cotangent])[1]
    return tuple(gradients) if several else gradients[0]


def numpy(array: mx.array) -> np.ndarray:
    """The same memory, not a copy of it. Evaluates the array."""
    mx.eval(array)
    return np.array(array, copy=False)


def in_threads(work: Callable[[T], None], pieces: Iterable[T]) -> None:
    """work(piece) for every piece, shared among all cores."""
    if device.cores() == 1:
        for piece in pieces:
            work(piece)
    else:
        for _ in _pool().map(work, pieces):
            pass


@functools.cache
def _pool() -> ThreadPoolExecutor:
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(device.cores(), thread_name_prefix="pg_mlx-numpy")

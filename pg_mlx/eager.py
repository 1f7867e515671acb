"""Leaving MLX's graph for NumPy, on the CPU backend.

NumPy needs its input now, so the graph up to it is evaluated; gradients flow as through MLX's own operations. Nothing
is lost by that: on the CPU no step is begun ahead of the last one, since nothing runs beside Python.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import mlx.core as mx
import numpy as np

from .backend import cores, settle

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

T = TypeVar("T")


def eagerly(compute: Callable[..., mx.array], plain: Callable[..., mx.array], *inputs: mx.array) -> mx.array:
    """compute(*inputs), with plain's gradients; plain itself where nothing can be evaluated, as in mx.compile."""
    if not settle(*inputs):
        return plain(*inputs)
    function: Any = mx.custom_function(compute)
    function.vjp(lambda primals, cotangent, _: _gradients(plain, primals, cotangent))
    return function(*inputs)


def _gradients(plain: Callable[..., mx.array], primals: Any, cotangent: mx.array) -> Any:
    several = isinstance(primals, (list, tuple))
    gradients = mx.vjp(plain, list(primals) if several else [primals], [cotangent])[1]
    return tuple(gradients) if several else gradients[0]


def numpy(array: mx.array) -> np.ndarray:
    """The same memory, not a copy of it."""
    mx.eval(array)
    return np.array(array, copy=False)


def in_threads(work: Callable[[T], None], pieces: Iterable[T]) -> None:
    if cores() == 1:
        for piece in pieces:
            work(piece)
    else:
        for _ in _pool().map(work, pieces):
            pass


@functools.cache
def _pool() -> ThreadPoolExecutor:
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(cores(), thread_name_prefix="pg_mlx-host")

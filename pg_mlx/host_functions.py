"""GELU and attention on MLX's CPU backend, whose exp and tanh take one value after the other.

NumPy's take several at a time, and the cores share them. One core, 4.4 M values (benchmarks/cpu_products.py): GELU 98
ms in MLX, 13 here. A tower of 448 pixels would spend half of its time on the exp of its attention.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import mlx.core as mx
import numpy as np

from .eager import eagerly, in_threads, numpy

LARGE = 1 << 13
"""Values from which on it pays to leave MLX's graph."""

_CHUNK = 1 << 16
"""Values that a thread treats at a time, so that each operation finds them in its cache."""

LINEAR = 1.5957691216057308  # 2 sqrt(2 / pi)
CUBIC = 0.044715 * LINEAR
Attend = Callable[[mx.array, mx.array, mx.array, mx.array | None], mx.array]


def gelu(plain: Callable[..., mx.array], gate: mx.array, up: mx.array | None = None) -> mx.array:
    """gelu(gate), times `up` if there is one: float32 [..., width]. plain: the same in operations of MLX, for few
    values, other dtypes and gradients."""
    inputs = (gate,) if up is None else (gate, up)
    if gate.size < LARGE or gate.dtype != mx.float32:
        return plain(*inputs)

    def compute(*inputs: mx.array) -> mx.array:
        width = gate.shape[-1]
        result = mx.zeros(gate.shape)
        rows = [numpy(array).reshape(-1, width) for array in (result, *inputs)]

        def some(first: int) -> None:
            out, z, *factor = (array[first : first + step] for array in rows)
            with np.errstate(over="ignore"):  # exp(large) is inf, and z / inf is what it should be
                np.multiply(z, z, out=out)
                out *= -CUBIC
                out -= LINEAR
                out *= z
                np.exp(out, out=out)
                out += 1
                np.divide(z, out, out=out)
            if factor:
                out *= factor[0]

        step = max(1, _CHUNK // width)
        in_threads(some, range(0, len(rows[0]), step))
        return result

    return eagerly(compute, plain, *inputs)


def attend(
    plain: Attend,
    query: mx.array,
    key: mx.array,
    value: mx.array,
    mask: mx.array | None,
    scale: float,
    softcap: float | None = None,
) -> mx.array:
    """Attention of query [B, heads, T, head_dim] to key and value [B, kv_heads, L, head_dim], as plain(query, key,
    value, mask) gives it in operations of MLX; mask bool [B, 1, T or 1, L]. softcap: scores become
    softcap * tanh(score / softcap), before the mask."""
    batch, heads, length, head_dim = query.shape
    kv_heads, keys = key.shape[1:3]
    if batch * heads * length * keys < LARGE or query.dtype != mx.float32:
        return plain(query, key, value, mask)

    def compute(query: mx.array, key: mx.array, value: mx.array) -> mx.array:
        # Query heads that share a key head become more rows of one product: [B, kv_heads, group * T, head_dim].
        grouped = (query * (scale / (softcap or 1))).reshape(batch, kv_heads, -1, head_dim)
        scores = grouped @ key.swapaxes(-1, -2)
        values = numpy(scores).reshape(batch, heads, length, keys)  # the same memory
        seen = None if mask is None else np.broadcast_to(numpy(mask), (batch, 1, length, keys))

        def some(piece: tuple[int, int, int]) -> None:
            row, head, first = piece
            part = values[row, head, first : first + step]
            if softcap is not None:
                np.tanh(part, out=part)
                part *= softcap
            if seen is not None:
                np.copyto(part, np.finfo(np.float32).min, where=~seen[row, 0, first : first + step])
            part -= part.max(axis=-1, keepdims=True)
            np.exp(part, out=part)
            part /= part.sum(axis=-1, keepdims=True)

        step = max(1, _CHUNK // keys)
        in_threads(some, product(range(batch), range(heads), range(0, length, step)))
        return (scores @ value).reshape(batch, heads, length, head_dim)

    return eagerly(compute, lambda query, key, value: plain(query, key, value, mask), query, key, value)

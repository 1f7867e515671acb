"""Attention with an optional softcap: MLX's kernel on a GPU; on the CPU blocks of queries, and NumPy's exp and tanh.

MLX's CPU backend computes one exp after the other. A tower of 448 pixels would spend half of its time on the exps of
its attention: 16.8 M scores take 353 ms in MLX and 152 here, on one core (benchmarks/cpu_products.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import mlx.core as mx
import numpy as np

from . import device
from .blocks import in_blocks
from .via_numpy import CHUNK_VALUES, LARGE_VALUES, in_threads, numpy, via_numpy

VECTORS = 8
"""On a GPU, up to so many rows of queries that share a head of keys are multiplied one by one. Metal has kernels for a
vector times a matrix; two rows it would fill up to 64."""

Attend = Callable[[mx.array, mx.array, mx.array, mx.array | None], mx.array]
"""(query, key, value, mask) -> the result of `attention`."""


def attention(
    query: mx.array,
    key: mx.array,
    value: mx.array,
    mask: mx.array | None,
    *,
    scale: float,
    softcap: float | None = None,
) -> mx.array:
    """softmax(query @ key.T * scale) @ value: query [B, heads, T, head_dim], key and value [B, kv_heads, L, head_dim]
    -> [B, heads, T, head_dim] in query's dtype.

    mask: bool [B or 1, 1, T or 1, L], True where a query sees a key; None for everywhere. softcap: scores become
    softcap * tanh(score / softcap), before the mask. Keys and values are never repeated for the query heads that share
    them.
    """
    attend: Attend = partial(_kernel, scale=scale)
    if softcap is not None:
        attend = partial(capped, scale=scale, softcap=softcap)
    if device.gpu_ops():
        return attend(query, key, value, mask)
    by_numpy = partial(_via_numpy, attend, scale=scale, softcap=softcap)

    def some(queries: slice) -> mx.array:
        own = mask is not None and mask.shape[2] > 1
        return by_numpy(query[:, :, queries], key, value, mask[:, :, queries] if mask is not None and own else mask)

    batch, heads, length, _ = query.shape
    return in_blocks(some, length, batch * heads * key.shape[2], axis=2)


def _kernel(query: mx.array, key: mx.array, value: mx.array, mask: mx.array | None, scale: float) -> mx.array:
    return mx.fast.scaled_dot_product_attention(query, key, value, scale=scale, mask=mask)


def capped(
    query: mx.array, key: mx.array, value: mx.array, mask: mx.array | None, scale: float, softcap: float
) -> mx.array:
    """As `attention`, in several operations of MLX, which has no kernel for capped scores."""
    batch, heads, length, head_dim = query.shape
    # Query heads that share a key head become more rows of one product: [B, kv_heads, group * T, head_dim].
    grouped = query.reshape(batch, key.shape[1], -1, head_dim)
    if device.gpu_ops() and grouped.shape[2] <= VECTORS:  # [B, kv_heads, group * T, 1, head_dim]; keys are not repeated
        grouped, key, value = grouped[:, :, :, None], key[:, :, None], value[:, :, None]
    scores = cap_scores(grouped @ key.swapaxes(-1, -2), softcap, scale)
    if mask is not None:  # after the cap, or -inf would become -cap
        shape = scores.shape
        scores = scores.reshape(batch, heads, length, -1)
        scores = mx.where(mask, scores, mx.finfo(scores.dtype).min).reshape(shape)
    return (mx.softmax(scores, axis=-1, precise=True) @ value).reshape(query.shape)


@device.fused
def cap_scores(x: mx.array, cap: float, scale: float) -> mx.array:
    """x [...] -> cap * tanh(x * scale / cap) [...], computed in float32 and rounded once to x's dtype."""
    return (cap * mx.tanh(x.astype(mx.float32) * (scale / cap))).astype(x.dtype)


def _via_numpy(
    plain: Attend,
    query: mx.array,
    key: mx.array,
    value: mx.array,
    mask: mx.array | None,
    scale: float,
    softcap: float | None = None,
) -> mx.array:
    """As `attention`, for many float32 scores. plain: the same in MLX's operations, for all else and for gradients."""
    batch, heads, length, head_dim = query.shape
    kv_heads, keys = key.shape[1:3]
    if batch * heads * length * keys < LARGE_VALUES or query.dtype != mx.float32:
        return plain(query, key, value, mask)

    def compute(query: mx.array, key: mx.array, value: mx.array) -> mx.array:
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

        step = max(1, CHUNK_VALUES // keys)
        in_threads(some, product(range(batch), range(heads), range(0, length, step)))
        return (scores @ value).reshape(batch, heads, length, head_dim)

    return via_numpy(compute, lambda query, key, value: plain(query, key, value, mask), query, key, value)

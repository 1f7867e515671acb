"""Long prefixes in blocks, where MLX's CPU backend would hold all of an intermediate result at a time.

On a GPU attention is one kernel and activations have 16 bits; on the CPU every operation writes its result to memory,
in float32. At 896 pixels the scores of one layer of the vision tower take 1.07 GB, those of the decoder 0.54 GB, and so
do gate and up of its MLP, of which some is there twice. Blocks change results by rounding only. They are
evaluated one after the other, since MLX reserves memory for operations ahead of doing them.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from .backend import on_gpu, settle

VALUES = 32 << 20
"""Of an intermediate result that are computed at a time: 128 MiB in float32. A picture of 224 pixels stays in one
piece."""

Attend = Callable[[mx.array, mx.array, mx.array, mx.array | None], mx.array]


def attend_in_blocks(
    attend: Attend, query: mx.array, key: mx.array, value: mx.array, mask: mx.array | None
) -> mx.array:
    """attend(query, key, value, mask) -> [B, heads, T, head_dim], for some of the queries at a time.

    query [B, heads, T, head_dim], key and value [B, kv_heads, L, head_dim], mask bool [B, 1, T or 1, L].
    """
    batch, heads, length, _ = query.shape

    def some(rows: slice) -> mx.array:
        own = mask is not None and mask.shape[2] > 1
        return attend(query[:, :, rows], key, value, mask[:, :, rows] if mask is not None and own else mask)

    return _in_blocks(some, length, batch * heads * key.shape[2], axis=2)


def rows_in_blocks(function: Callable[[mx.array], mx.array], x: mx.array, width: int) -> mx.array:
    """function(x) [B, T, D], which makes results in between that are `width` wide, for some of the rows of
    x [B, T, C] at a time: it treats each row alone."""
    return _in_blocks(lambda rows: function(x[:, rows]), x.shape[1], x.shape[0] * width, axis=1)


def _in_blocks(function: Callable[[slice], mx.array], length: int, width: int, axis: int) -> mx.array:
    """The results for all of slice(0, length), joined along `axis`; each one costs `width` values in between."""
    step = max(1, VALUES // width)
    if on_gpu() or length <= step:
        return function(slice(None))
    done = []
    for first in range(0, length, step):
        done.append(function(slice(first, first + step)))
        settle(done[-1])
    return mx.concatenate(done, axis=axis)

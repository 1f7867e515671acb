"""Long prefixes in blocks, where MLX's CPU backend would hold a whole intermediate result at once.

On a GPU attention is one kernel and activations have 16 bits. On the CPU every operation writes its result to memory,
in float32. At 896 pixels the scores of one layer of the vision tower take 1.07 GB, those of the decoder 0.54 GB. Gate
and up of the decoder's MLP take 0.54 GB too, and parts of them exist twice. Blocks change results by rounding only.
They are evaluated one after the other, since MLX reserves memory for operations before it runs them. While gradients
are traced nothing may be evaluated, so there are no blocks.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from . import device

VALUES = 32 << 20
"""Values of an intermediate result that are computed at once: 128 MiB in float32. A picture of 224 pixels stays in one
piece."""


def tokens_in_blocks(function: Callable[[mx.array], mx.array], x: mx.array, width: int) -> mx.array:
    """function(x) for x [B, T, D], some tokens at a time. The function treats each token alone, and its intermediate
    results are [B, T, width]."""
    return in_blocks(lambda tokens: function(x[:, tokens]), x.shape[1], x.shape[0] * width, axis=1)


def in_blocks(function: Callable[[slice], mx.array], length: int, width: int, axis: int) -> mx.array:
    """function(slice) for slices that cover 0..length-1, joined along `axis`. Each index needs `width` values of
    intermediate results."""
    step = max(1, VALUES // width)
    if device.gpu_ops() or length <= step or device.traces_gradients():
        return function(slice(None))
    done = []
    for first in range(0, length, step):
        done.append(function(slice(first, first + step)))
        device.evaluate(done[-1])
    return mx.concatenate(done, axis=axis)

"""The residual stream of the decoder and its norms: each norm and each sum is rounded once.

Both references compute a norm in float32 and round once. MLX's kernel, given bfloat16, rounds three times. So the
addition before a norm, one kernel anyway, writes its sum twice: as the stream keeps it, and in float32 for the norm.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from .ops import device


class RMSNorm(nn.Module):
    """x / rms(x) * weight, in float32 with one rounding to x's dtype, as both references do it.

    `weight` is float32: Gemma's stored w plus one, added at load. In bfloat16 MLX's kernel would round
    three times (1 + w, x / rms, their product), which costs a measurable share of the greedy tokens.
    """

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = mx.ones((width,))
        self.eps = eps

    def __call__(self, x: mx.array, dtype: mx.Dtype | None = None) -> mx.array:
        """x [..., D] -> the same shape in `dtype`, x's own if not given."""
        return mx.fast.rms_norm(x.astype(mx.float32), self.weight, self.eps).astype(dtype or x.dtype)

    def add_to(self, x: mx.array, y: mx.array) -> Residual:
        """x plus the norm of y, both [..., D] in the same dtype.

        y / rms(y) is rounded, the weighted sum once more. The references round as often: the norm, and the sum.
        """
        return Residual(*add_weighted(x, mx.fast.rms_norm(y, None, self.eps), self.weight))


class Residual(NamedTuple):
    """The residual stream: hidden states [B, T, D] between two halves of a layer, and their copy in float32.

    Only the next norm reads the copy. One kernel adds and writes both; a norm that has to make the copy itself takes
    one kernel more.
    """

    hidden: mx.array
    wide: mx.array

    @classmethod
    def of(cls, hidden: mx.array) -> Residual:
        """Hidden states [B, T, D] with their copy."""
        return cls(hidden, hidden.astype(mx.float32))

    @classmethod
    def of_sum(cls, x: mx.array, y: mx.array) -> Residual:
        """x + y, both [B, T, D] in the same dtype."""
        return cls(*add(x, y))

    @property
    def dtype(self) -> mx.Dtype:
        """The dtype of activations, which `hidden` has."""
        return self.hidden.dtype


@device.fused
def add(x: mx.array, y: mx.array) -> tuple[mx.array, mx.array]:
    """x + y [...] in x's dtype, and the same in float32."""
    hidden = x + y
    return hidden, hidden.astype(mx.float32)


@device.fused
def add_weighted(x: mx.array, y: mx.array, weight: mx.array) -> tuple[mx.array, mx.array]:
    """x + y * weight in x's dtype, and the same in float32: x and y [..., D], weight float32 [D]."""
    hidden = (x.astype(mx.float32) + y.astype(mx.float32) * weight).astype(x.dtype)
    return hidden, hidden.astype(mx.float32)

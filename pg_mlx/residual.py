"""The residual stream and the decoder's norms: each norm and each sum is rounded once.

Both references compute a norm in float32 and round once. MLX's kernel, given bfloat16, rounds three times. So the
addition before a norm, one kernel anyway, writes its sum twice: as the stream keeps it, and in float32 for the norm.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from .ops import device, metal_kernels


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


class Residual(NamedTuple):
    """The residual stream between two halves of a layer: a sum that is not added yet, so that the addition and the norm
    that follows it can be one kernel.

    x and y [B, T, D] in the dtype of activations: the stream, and what is added to it (None: nothing). post: the norm
    of y that Gemma 2 adds in y's place.
    """

    x: mx.array
    y: mx.array | None = None
    post: RMSNorm | None = None

    @property
    def hidden(self) -> mx.array:
        """The stream [B, T, D] after the addition."""
        return self._added()[0]

    @property
    def dtype(self) -> mx.Dtype:
        """The dtype of activations."""
        return self.x.dtype

    @property
    def arrays(self) -> list[mx.array]:
        """What has to be evaluated before the sum can be."""
        return [self.x] if self.y is None else [self.x, self.y]

    def then(self, norm: RMSNorm) -> tuple[mx.array, mx.array]:
        """The stream after the addition, and its norm, both [B, T, D]."""
        if self.y is not None and metal_kernels.wanted("add_norm"):
            post = None if self.post is None else self.post.weight
            return metal_kernels.add_norm(self.x, self.y, norm.weight, norm.eps, post)
        hidden, wide = self._added()
        return hidden, norm(wide, hidden.dtype)

    def _added(self) -> tuple[mx.array, mx.array]:
        """The sum in the dtype of activations, and in float32 for the next norm, which would need a kernel to cast."""
        if self.y is None:
            return self.x, self.x.astype(mx.float32)
        if self.post is None:
            return add(self.x, self.y)
        # y / rms(y) is rounded, the weighted sum once more. The references round as often: the norm, and the sum.
        return add_weighted(self.x, mx.fast.rms_norm(self.y, None, self.post.eps), self.post.weight)


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


@device.fused
def add_biased(x: mx.array, y: mx.array, bias: mx.array) -> tuple[mx.array, mx.array]:
    """x + (y + bias) in x's dtype, and the same in float32: x and y [..., C], bias [C]."""
    hidden = (x.astype(mx.float32) + (y.astype(mx.float32) + bias.astype(mx.float32))).astype(x.dtype)
    return hidden, hidden.astype(mx.float32)

"""Affine packing fitted to the weights: scale and bias with the least squared error, and codes for what is stored.

mx.quantize spreads the codes from the smallest to the largest weight of a group. And it computes the codes before scale
and bias are rounded to 16 bits. Here the codes are chosen for the rounded ones, which alone is worth a fifth of the
error at 8 bits. And a group is tried in several narrower ranges; within each, codes and least squares take turns.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx

from .codes import pack_codes
from .modes import Quantization

_NARROW = tuple(1 - 0.04 * step for step in range(16))
_RANGES = {2: _NARROW, 3: _NARROW, 4: _NARROW[:10], 5: _NARROW[:4]}
"""Shares of a group's range that are tried, by bits. With more bits a narrower range only loses."""
_OTHER_RANGES = (1.02, 1.0)
"""Rounding scale and bias to bfloat16 moves the ends of 255 steps by up to three quarters of a step. The wider range
keeps weights from falling beyond, those too that GPTQ has moved."""
_ROUNDS = 3
"""How often codes are chosen and scale and bias are fitted to them."""


class Grid(NamedTuple):
    """The values that a code can stand for: code * scale + bias, both rounded as they are stored, in float32."""

    scale: mx.array
    bias: mx.array
    levels: int
    """The largest code."""

    def codes(self, values: mx.array) -> mx.array:
        """The nearest codes, as whole float32 numbers. values: broadcastable with scale and bias."""
        return mx.clip(mx.round((values - self.bias) / self.scale), 0, self.levels)

    def values(self, codes: mx.array) -> mx.array:
        """What codes stand for, in float32."""
        return codes * self.scale + self.bias

    def stored(self, dtype: mx.Dtype) -> Grid:
        """The grid as it is stored. A scale of 0 (all values are equal) becomes 1, so that all codes are 0."""
        scale, bias = (array.astype(dtype).astype(mx.float32) for array in (self.scale, self.bias))
        return Grid(mx.where(scale == 0, 1.0, scale), bias, self.levels)

    def where(self, chosen: mx.array, other: Grid) -> Grid:
        """This grid where `chosen`, else the other one."""
        return Grid(mx.where(chosen, self.scale, other.scale), mx.where(chosen, self.bias, other.bias), self.levels)


def fit(values: mx.array, bits: int, dtype: mx.Dtype, axis: int, weights: mx.array | None = None) -> Grid:
    """The grid with the least squared error for float32 values whose groups lie along `axis`.

    dtype: in which scale and bias will be stored. weights: of the squared errors, broadcastable with the values.
    Scale and bias have size 1 at `axis`.
    """
    levels = 2**bits - 1
    low, high = values.min(axis=axis, keepdims=True), values.max(axis=axis, keepdims=True)
    middle, half = (low + high) / 2, (high - low) / 2
    weights = mx.ones_like(values) if weights is None else mx.broadcast_to(weights / weights.mean(), values.shape)
    weighted = weights * values
    total, total_values = weights.sum(axis=axis, keepdims=True), weighted.sum(axis=axis, keepdims=True)

    def sums(codes: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        of_codes = weights * codes
        return tuple(x.sum(axis=axis, keepdims=True) for x in (of_codes, of_codes * codes, of_codes * values))  # type: ignore[return-value]

    best = least = None
    for share in _RANGES.get(bits, _OTHER_RANGES):
        grid = Grid(2 * share * half / levels, middle - share * half, levels).stored(mx.float32)
        for _ in range(_ROUNDS):
            first, second, mixed = sums(grid.codes(values))
            determinant = total * second - first * first
            sound = determinant > 1e-6 * total * total
            divisor = mx.where(sound, determinant, 1)
            scale = mx.where(sound, (total * mixed - first * total_values) / divisor, grid.scale)
            bias = mx.where(sound, (total_values * second - first * mixed) / divisor, grid.bias)
            grid = Grid(scale, bias, levels).stored(mx.float32)
        grid = grid.stored(dtype)
        error = (weights * mx.square(values - grid.values(grid.codes(values)))).sum(axis=axis, keepdims=True)
        if best is None or least is None:
            best, least = grid, error
        else:
            best = grid.where(error < least, best)
            least = mx.minimum(error, least)
    assert best is not None
    return best


def pack_fitted(weight: mx.array, quantization: Quantization, dtype: mx.Dtype) -> dict[str, mx.array]:
    """As Quantization.pack, for affine modes: weight float [outputs, columns] -> weight, scales and biases, the latter
    two in `dtype`."""
    groups = weight.astype(mx.float32).reshape(weight.shape[0], -1, quantization.group_size)
    grid = fit(groups, quantization.bits, dtype, axis=-1)
    codes = grid.codes(groups).astype(mx.uint8).reshape(weight.shape)
    return {
        "weight": pack_codes(codes, quantization.bits),
        "scales": grid.scale[..., 0].astype(dtype),
        "biases": grid.bias[..., 0].astype(dtype),
    }

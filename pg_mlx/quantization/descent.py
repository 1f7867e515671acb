"""Coordinate descent on the outputs of a matrix that is packed: codes, scales and biases are chosen again, given the
rest.

GPTQ fits a group's scale and bias before it knows the errors of the columns after it, and never looks back. Here one
group after the other gets the scale and bias that are best for its codes, then one column after the other the best
codes for them, all others as they are. Each step lowers the error e H e^T of an output or changes nothing. (For codes
alone: Behdin et al. 2023, arXiv 2309.01885.)
"""

from __future__ import annotations

import mlx.core as mx

from .affine import Grid

SWEEPS = 2
"""How often every group gets its turn. They take a tenth off the error, and four more no more than a twentieth."""


class Descent:
    """Some outputs of a matrix. All arrays are float32 with columns first."""

    def __init__(
        self,
        target: mx.array,
        hessian: mx.array,
        size: int,
        codes: list[mx.array],
        grids: list[Grid],
        dtype: mx.Dtype,
    ):
        """target: [columns, outputs], what the packed weights are to be like. hessian: H, damped, [columns, columns].
        size: columns of a group. codes: uint8 [size, outputs] of each group; with `grids`, changed in place. dtype: of
        the stored scales."""
        self._hessian, self._size, self._dtype = hessian, size, dtype
        self._codes, self._grids = codes, grids
        values = mx.concatenate([grid.values(own) for grid, own in zip(grids, codes, strict=True)])
        self.slope = hessian @ (values - target)
        """H e, half the slope of the error, [columns, outputs]."""

    def improve(self, index: int) -> list[mx.array]:
        """Choose a group again. Returns what is to be evaluated before the next one."""
        own = slice(index * self._size, (index + 1) * self._size)
        codes, old = self._codes[index].astype(mx.float32), self._grids[index]
        square, before = self._hessian[own, own], old.values(codes)
        grid = _refit(codes, old, square, self.slope[own], self._dtype)
        values = grid.values(codes)
        codes, moved = _descend(values, grid, square, self.slope[own] + square @ (values - before))
        self._codes[index], self._grids[index] = codes.astype(mx.uint8), grid
        self.slope = mx.addmm(self.slope, self._hessian[:, own], values + moved - before)
        return [self.slope, self._codes[index], grid.scale, grid.bias]


def _refit(codes: mx.array, grid: Grid, square: mx.array, slope: mx.array, dtype: mx.Dtype) -> Grid:
    """The best scale and bias for codes [size, outputs], where that is better than what there is.

    square: H of the group's columns, [size, size]. slope: H e at them, [size, outputs].
    """
    spread = square @ codes
    ones, both, twos = square.sum(), spread.sum(axis=0, keepdims=True), (codes * spread).sum(axis=0, keepdims=True)
    by_scale, by_bias = (codes * slope).sum(axis=0, keepdims=True), slope.sum(axis=0, keepdims=True)
    determinant = twos * ones - both * both
    sound = determinant > 1e-6 * twos * ones
    divisor = mx.where(sound, determinant, 1)
    scale = grid.scale - (ones * by_scale - both * by_bias) / divisor
    bias = grid.bias - (twos * by_bias - both * by_scale) / divisor
    moved = Grid(scale, bias, grid.levels).stored(dtype)
    change = moved.values(codes) - grid.values(codes)
    better = (change * (2 * slope + square @ change)).sum(axis=0, keepdims=True) < 0
    return moved.where(sound & better, grid)


def _descend(values: mx.array, grid: Grid, square: mx.array, slope: mx.array) -> tuple[mx.array, mx.array]:
    """The best code of each column [n, outputs], given those before it and the old ones after it; and by how much the
    values move. One half after the other: the first's moves change the slope at the second."""
    if len(values) == 1:
        codes = grid.codes(values - slope / square[0, 0])
        return codes, grid.values(codes) - values
    half = len(values) // 2
    codes, moved = _descend(values[:half], grid, square[:half, :half], slope[:half])
    slope = slope[half:] + square[half:, :half] @ moved
    more_codes, more_moved = _descend(values[half:], grid, square[half:, half:], slope)
    return mx.concatenate([codes, more_codes]), mx.concatenate([moved, more_moved])

"""GPTQ: codes that keep a matrix's outputs for given inputs, not its weights (Frantar et al. 2022, arXiv 2210.17323).

With H for the sum of x x^T over the inputs x, the error of an output is e H e^T. Columns are rounded from the first
to the last, and each one's error is made good by the columns after it, as far as they can. A group's scale and bias are
fitted when its first column is reached, to the weights as they then are. A column counts there half by the size of its
inputs and half like all others, which keeps pictures unlike the user's from doing harm. Then everything is chosen once
more with all errors known (see descent.py). The result is plain affine packing.

Before that, `correct` moves the weights. Its inputs are no longer those of the float model, because what comes before
is packed already. The moved weights bring the outputs for today's inputs as near as possible to those of the float
model for its own inputs.

Every output is rounded alone. On the CPU the cores share the outputs, on a GPU it is one piece.
"""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import Any, NamedTuple

import mlx.core as mx

from ..errors import PgMlxError
from .affine import Grid, fit
from .codes import pack_codes
from .descent import SWEEPS, Descent
from .modes import Quantization

MAX_COLUMNS = 9216
"""Wider matrices are treated in blocks of columns, each alone: H has the square of its columns."""

VALUES = 16 << 20
"""Values of a matrix that are packed at a time. There are about seven copies of them."""

_LEAST_OUTPUTS = 64
"""Fewer outputs are not worth a core of their own."""


class Moments(NamedTuple):
    """Sums over input rows, float32 [columns, columns] each, for some columns of a matrix."""

    hessian: mx.array
    """x^T x, for the inputs x that the packed path has."""
    shift: mx.array
    """(f - x)^T x, for the inputs f that the float path has at the same places."""

    def padded(self, columns: int) -> Moments:
        """The same for a matrix with more columns, whose inputs are all zero."""
        missing = columns - len(self.hessian)
        return self if not missing else Moments(*(mx.pad(array, [(0, missing)] * 2) for array in self))


def column_blocks(columns: int, group_size: int = 128) -> list[slice]:
    """The columns of a matrix in blocks of at most MAX_COLUMNS, of whole groups and about one size."""
    count = -(-columns // MAX_COLUMNS)
    step = -(-columns // (count * group_size)) * group_size
    return [slice(first, min(first + step, columns)) for first in range(0, columns, step)]


def damp(hessian: mx.array, damping: float) -> mx.array:
    """H with `damping` times the mean of its diagonal added to the diagonal, float32 [columns, columns].

    Inputs that are always zero count as the mean of the others. Raises PgMlxError if H holds numbers that are not
    finite.
    """
    diagonal = mx.diagonal(hessian)
    live = diagonal > 0
    mean = diagonal.sum() / mx.maximum(live.sum(), 1)
    mean = mx.where(mean > 0, mean, 1)
    if not mx.isfinite(mean).item():
        raise PgMlxError("the inputs of a matrix are not finite numbers; try other pictures")
    return hessian + mx.diag(mx.where(live, damping * mean, (1 + damping) * mean))


def inverse_factor(damped: mx.array) -> mx.array:
    """The upper triangular U with U^T U = H^-1 for a damped H, float32 [columns, columns]."""
    # The Cholesky factor of the matrix read backwards, read backwards, is upper triangular: H = V V^T, U = V^-1.
    backwards = mx.linalg.cholesky(damped[::-1, ::-1], stream=mx.cpu)
    return mx.linalg.tri_inv(mx.contiguous(backwards[::-1, ::-1]), upper=True, stream=mx.cpu)


def correct(weight: mx.array, moments: Moments, factor: mx.array) -> mx.array:
    """The weight float32 [outputs, columns] for inputs that have moved: W + W shift H^-1, H damped."""
    return weight + ((weight @ moments.shift) @ factor.T) @ factor


def gptq(
    weight: mx.array,
    damped: mx.array,
    factor: mx.array,
    quantization: Quantization,
    dtype: mx.Dtype,
    cores: int = 1,
) -> dict[str, mx.array]:
    """weight float32 [outputs, columns] -> weight uint32, scales and biases.

    damped: H, float32 [columns, columns]; factor: what `inverse_factor` makes of it. dtype: of scales and biases. The
    columns must be whole groups. cores: of the CPU, which share the outputs; 1 on a GPU.
    """
    step = max(1, VALUES // weight.shape[1])
    done = [
        _gptq(weight[first : first + step], damped, factor, quantization, dtype, cores)
        for first in range(0, weight.shape[0], step)
    ]
    return {part: mx.concatenate([arrays[part] for arrays in done]) for part in done[0]}


def _gptq(
    weight: mx.array,
    damped: mx.array,
    factor: mx.array,
    quantization: Quantization,
    dtype: mx.Dtype,
    cores: int,
) -> dict[str, mx.array]:
    """The same for some outputs."""
    outputs, columns = weight.shape
    size, bits = quantization.group_size, quantization.bits
    importance = mx.diagonal(damped)[:, None]
    importance = importance + importance.mean()  # half its own, half the mean
    parts = max(1, min(cores, outputs // _LEAST_OUTPUTS))
    bounds = list(pairwise(outputs * part // parts for part in range(parts + 1)))
    streams: list[Any] = [mx.default_stream(mx.default_device()), *map(_stream, range(len(bounds) - 1))]
    targets = [mx.contiguous(weight[first:last].T) for first, last in bounds]  # columns first: [columns, outputs]
    rest = list(targets)
    mx.eval(rest, factor, importance, damped)
    codes: list[list[mx.array]] = [[] for _ in bounds]
    grids: list[list[Grid]] = [[] for _ in bounds]
    for first in range(0, columns, size):
        own, after = slice(first, first + size), slice(first + size, columns)
        for part, stream in enumerate(streams):
            with mx.stream(stream):
                grid = fit(rest[part][:size], bits, dtype, axis=0, weights=importance[own])
                chosen, error = _round(rest[part][:size], factor[own, own], grid)
                rest[part] = rest[part][size:]
                if after.start < columns:
                    rest[part] = mx.addmm(rest[part], factor[own, after].T, error, alpha=-1)
                codes[part].append(chosen.astype(mx.uint8))
                grids[part].append(grid)
        mx.eval(rest, [part[-1] for part in codes], [(part[-1].scale, part[-1].bias) for part in grids])
    del rest
    _descend(targets, damped, size, codes, grids, dtype, streams)
    together = mx.concatenate([mx.concatenate(part) for part in codes], axis=1).T
    scales = mx.concatenate([mx.concatenate([grid.scale for grid in part]) for part in grids], axis=1).T
    biases = mx.concatenate([mx.concatenate([grid.bias for grid in part]) for part in grids], axis=1).T
    packed = {
        "weight": pack_codes(mx.contiguous(together), bits),
        "scales": mx.contiguous(scales.astype(dtype)),
        "biases": mx.contiguous(biases.astype(dtype)),
    }
    mx.eval(packed)
    return packed


def _descend(
    targets: list[mx.array],
    damped: mx.array,
    size: int,
    codes: list[list[mx.array]],
    grids: list[list[Grid]],
    dtype: mx.Dtype,
    streams: list[Any],
) -> None:
    """Choose the codes and grids of each part again, in place, each part on its stream. `targets` becomes empty."""
    descents = []
    for part, stream in enumerate(streams):
        with mx.stream(stream):
            descents.append(Descent(targets[part], damped, size, codes[part], grids[part], dtype))
    targets.clear()
    mx.eval([descent.slope for descent in descents])
    for _ in range(SWEEPS):
        for index in range(len(codes[0])):
            changed = []
            for descent, stream in zip(descents, streams, strict=True):
                with mx.stream(stream):
                    changed.append(descent.improve(index))
            mx.eval(changed)


@functools.cache
def _stream(number: int) -> Any:
    """A stream of the CPU beside the default one. It is kept: each has a thread, which MLX does not end."""
    return mx.new_thread_local_stream(mx.cpu)


def _round(columns: mx.array, factor: mx.array, grid: Grid) -> tuple[mx.array, mx.array]:
    """Columns float32 [n, outputs] of one group -> their codes and their errors over the factor's diagonal, both
    [n, outputs]. One half after the other: the first's errors move the second."""
    if len(columns) == 1:
        codes = grid.codes(columns)
        return codes, (columns - grid.values(codes)) / factor[0, 0]
    half = len(columns) // 2
    codes, errors = _round(columns[:half], factor[:half, :half], grid)
    moved = columns[half:] - factor[:half, half:].T @ errors
    more_codes, more_errors = _round(moved, factor[half:, half:], grid)
    return mx.concatenate([codes, more_codes]), mx.concatenate([errors, more_errors])

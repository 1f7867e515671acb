"""Matrix products of MLX's CPU backend, by other means where those are several times faster.

MLX multiplies one row by a float matrix with sgemm, which packs the whole matrix first, and unpacks quantized weights
one value after the other, on one core. NumPy reaches the BLAS call made for one row, and unpacks by looking codes up.

CPU time of one core, 33.5 M weights (benchmarks/cpu_products.py): one row by float32 32 ms in MLX, 8.5 here; unpacking
4 bits 246 ms in MLX, 50 here; one row by 4 bits 33 ms, which cannot be helped but by more cores. 3, 5 and 6 bits are
MLX's to unpack, which takes memory of 16 to 28 bytes a weight, so it is given few at a time; that is faster, too.
"""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import Any

import mlx.core as mx
import numpy as np

from .backend import cores
from .eager import eagerly, in_threads, numpy
from .quantization import Quantization

TILE = 8 << 20
"""Weights that are unpacked at once: 32 MiB in float32."""

MATVEC_ROWS = 3
"""Up to this many rows one product each is faster than sgemm for all."""

LARGE = 1 << 20
"""Weights from which on it pays to leave MLX's graph, or to split a product over cores."""

_CHUNK = 1 << 17
"""Weights that are unpacked at once by a thread, so that scaling finds them in its cache, or by MLX."""


def multiply(x: mx.array, weight: mx.array) -> mx.array:
    """x [..., columns] @ weight.T for float32 weight [rows, columns]."""

    def plain(x: mx.array, weight: mx.array) -> mx.array:
        return x @ weight.T

    rows = x.size // x.shape[-1]
    if rows > MATVEC_ROWS or weight.size < LARGE or not x.dtype == weight.dtype == mx.float32:
        return plain(x, weight)

    def by_rows(x: mx.array, weight: mx.array) -> mx.array:
        matrix = numpy(weight)
        y = np.stack([matrix @ row for row in numpy(x).reshape(rows, -1)])
        return mx.array(y).reshape(*x.shape[:-1], -1)

    return eagerly(by_rows, plain, x, weight)


def multiply_packed(
    x: mx.array, q: Quantization, weight: mx.array, scales: mx.array, biases: mx.array | None
) -> mx.array:
    """x [..., columns] by the packed weight as it is, its rows split over the cores."""
    rows = weight.shape[0]
    parts = min(cores(), max(1, rows * x.shape[-1] // (LARGE // 2)))
    bounds = [rows * part // parts for part in range(parts + 1)]

    if parts == 1:
        return q.multiply(x, weight, scales, biases)
    done = []
    for index, (first, last) in enumerate(pairwise(bounds)):
        some = slice(first, last)
        chosen = weight[some], scales[some], None if biases is None else biases[some]
        done.append(q.multiply(x, *chosen, stream=_stream(index)))
    return mx.concatenate(done, -1)


def multiply_unpacked(
    x: mx.array, q: Quantization, weight: mx.array, scales: mx.array, biases: mx.array | None
) -> mx.array:
    """x [..., columns] by the unpacked weight, of which no more than TILE values exist at a time."""
    rows, columns = weight.shape[0], x.shape[-1]

    def plain(x: mx.array) -> mx.array:
        floats = mx.dequantize(weight, scales, biases, q.group_size, q.bits, q.mode, dtype=x.dtype)
        return x @ floats.T

    def tiled(x: mx.array) -> mx.array:
        step, done = min(rows, max(1, TILE // columns)), []
        tile = mx.zeros((step, columns))  # one for all: fresh memory costs more than what is done with it
        values, read = numpy(tile), _Reader(q, weight, scales, biases)
        for first in range(0, rows, step):
            last = min(first + step, rows)
            read(first, values[: last - first])
            done.append(x @ tile[: last - first].astype(x.dtype).T)
            mx.eval(done[-1])  # before the tile is overwritten
        return mx.concatenate(done, -1) if len(done) > 1 else done[0]

    return eagerly(tiled, plain, x)


def has_table(q: Quantization) -> bool:
    """Codes of 3, 5 and 6 bits reach over the bounds of 16-bit words; MLX unpacks them."""
    return 16 % q.bits == 0


def scratch_bytes(q: Quantization) -> int:
    """What unpacking holds beside the tile: a table for all matrices packed alike, or what MLX makes on the way, which
    has an integer for each bit."""
    return 4 * (1 << 16) * 16 // q.bits if has_table(q) else _CHUNK * 4 * (q.bits + 1)


def unpack(q: Quantization, weight: mx.array, scales: mx.array, biases: mx.array | None, columns: int) -> mx.array:
    """Packed arrays to float32 [rows, columns], as mx.dequantize does but for one rounding. Evaluates them."""
    result = mx.zeros((weight.shape[0], columns))
    _Reader(q, weight, scales, biases)(0, numpy(result))
    return result


class _Reader:
    """A packed matrix, rows of which can be unpacked into an array of NumPy's."""

    def __init__(self, q: Quantization, weight: mx.array, scales: mx.array, biases: mx.array | None):
        self._packed = q, weight, scales, biases
        self._table = None
        if not has_table(q):
            return
        self._table, scale_table = _tables(q)
        self._group_size = q.group_size
        self._codes = numpy(weight).view(np.uint16)
        self._scales = numpy(scales.astype(mx.float32)) if scale_table is None else scale_table[numpy(scales)]
        self._biases = None if biases is None else numpy(biases.astype(mx.float32))

    def __call__(self, first: int, values: np.ndarray) -> None:
        """Fill float32 values [n, columns] with the rows from `first` on."""
        step = max(1, _CHUNK // values.shape[1])
        if self._table is None:
            for start in range(0, len(values), step):
                some = values[start : start + step]
                some[:] = self._by_mlx(slice(first + start, first + start + len(some)))
            return
        table = self._table

        def fill(start: int) -> None:
            some = values[start : start + step]
            rows = slice(first + start, first + start + len(some))
            np.take(table, self._codes[rows], out=some.view(table.dtype), mode="clip")
            groups = some.reshape(len(some), -1, self._group_size)
            groups *= self._scales[rows, :, None]
            if self._biases is not None:
                groups += self._biases[rows, :, None]

        in_threads(fill, range(0, len(values), step))

    def _by_mlx(self, rows: slice) -> np.ndarray:
        q, weight, scales, biases = self._packed
        chosen = weight[rows], scales[rows], None if biases is None else biases[rows]
        return numpy(mx.dequantize(*chosen, q.group_size, q.bits, q.mode, dtype=mx.float32))


@functools.cache
def _tables(q: Quantization) -> tuple[np.ndarray, np.ndarray | None]:
    """What every 16-bit piece of a packed row stands for, unscaled, as one item of all its float32 values; and of each
    one-byte scale its float, if the mode has those. MLX is asked, so its formats are not told again."""
    words = q.group_size * q.bits // 32
    packed = mx.array(np.arange(1 << 16, dtype=np.uint16).view(np.uint32).reshape(-1, words))
    if q.mode == "affine":
        scales, biases = mx.ones((len(packed), 1)), mx.zeros((len(packed), 1))
        values, factors = mx.dequantize(packed, scales, biases, q.group_size, q.bits), None
    else:

        def floats(weight: mx.array, scales: mx.array) -> mx.array:
            return mx.dequantize(weight, scales, None, q.group_size, q.bits, q.mode, dtype=mx.float32)

        codes = mx.arange(256, dtype=mx.uint8)[:, None]
        by_scale = numpy(floats(mx.broadcast_to(packed[-1:] * 0 + _ONES[q.bits], (256, words)), codes))[:, 0]
        one = int(np.flatnonzero(by_scale == 1)[0])
        values, factors = floats(packed, mx.full((len(packed), 1), one, dtype=mx.uint8)), by_scale
    per_piece = 16 // q.bits
    table = np.ascontiguousarray(numpy(values)).reshape(1 << 16, per_piece)
    return table.view(np.dtype((np.void, 4 * per_piece))).reshape(-1), factors


_ONES = {4: 0x22222222, 8: 0x38383838}
"""Words of which each code is the number one, in e2m1 and e4m3."""


@functools.cache
def _stream(index: int) -> Any:
    return mx.new_thread_local_stream(mx.cpu)

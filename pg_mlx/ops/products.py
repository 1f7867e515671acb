"""Products of activations and weights, float or packed.

On a GPU they are MLX's. Its CPU backend multiplies one input row by a float matrix with sgemm, which packs the whole
matrix first. It unpacks quantized weights one value after the other, on one core. NumPy reaches the BLAS call made for
one row, and here codes are unpacked by table.

CPU time of one core, 33.5 M weights (benchmarks/cpu_products.py): one row by float32 32 ms in MLX, 8.5 here; unpacking
4 bits 246 ms in MLX, 50 here; one row by 4 bits 33 ms, which only more cores can shorten. MLX unpacks 3, 5 and 6 bits;
it needs 16 to 28 bytes of memory for each weight, so it gets few at a time, which is also faster.
"""

from __future__ import annotations

import functools
import math
import os
from itertools import pairwise
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import InputError
from ..quantization import Packed, Quantization
from . import device
from .via_numpy import in_threads, numpy, via_numpy

TILE = 8 << 20
"""Weights that exist unpacked at the same time: 32 MiB in float32."""

MATVEC_ROWS = 3
"""Up to this many input rows, one product for each is faster than sgemm for all."""

LARGE_WEIGHT = 1 << 20
"""From this many weights on it pays to leave MLX's graph, or to split a product over cores."""

CHUNK_WEIGHTS = 1 << 17
"""Weights that a thread (or MLX) unpacks at once, so that they are still in its cache when they are scaled."""

UNPACK_ROWS = {"cpu": 3, "cpu, 3, 5 or 6 bits": 19, "metal": 512, "cuda": None}
"""From this many input rows on, a packed weight is unpacked for a float product; None: never.

cpu, measured (benchmarks/cpu_products.py; one core, 33.5 M weights, ms of CPU time): the packed product takes 33 for
each row, since it reads the weight again for each; unpacking takes 50, or 600 for bits that only MLX can unpack (6);
the float product takes 25 to 32 for 3 to 8 rows, 230 for 276.
metal, not measured by us: others report that MLX's packed product is 25% slower than float on an M2, perhaps 10% on an
M3. Compared with the memory traffic of unpacking, the two are level at 220 to 550 rows. So 224 pixels stay packed.
cuda, not measured: always MLX's packed product.
"""


def multiply(x: mx.array, weight: mx.array | Packed) -> mx.array:
    """x [..., columns] -> x @ weight.T [..., outputs], in the promoted dtype of x and the weight (or its scales, if it
    is packed)."""
    if not isinstance(weight, Packed):
        return x @ weight.T if device.gpu_ops() else multiply_floats(x, weight)
    unpacked = unpacks(weight.quantization, x.size // x.shape[-1])
    if device.traces_gradients():
        return multiply_unpacked_twice(x, weight) if unpacked else weight.matmul(x)
    if device.gpu_ops():
        return x @ weight.dequantize(x.dtype).T if unpacked else weight.matmul(x)
    return multiply_unpacked(x, weight) if unpacked else multiply_packed(x, weight)


def multiply_add(x: mx.array, weight: mx.array | Packed, bias: mx.array) -> tuple[mx.array, mx.array | None]:
    """x @ weight.T with the bias [outputs] added, and None; or without it, and the bias, where one kernel cannot do
    both."""
    if isinstance(weight, Packed):
        traced = device.traces_gradients()  # an unpacked weight would be kept until the backward pass
        if traced or not device.gpu_ops() or not unpacks(weight.quantization, x.size // x.shape[-1]):
            return multiply(x, weight), bias
        weight = weight.dequantize(x.dtype)
    return mx.addmm(bias, x, weight.T), None


def unpacks(quantization: Quantization, rows: int) -> bool:
    """Whether to unpack a weight for a product with `rows` input rows (B * T). The environment variable
    PG_MLX_UNPACK_ROWS, read once, overrides the table: a number of rows, or 0 for never. Raises InputError if it is
    neither."""
    backend: str = device.backend()
    if backend == "cpu" and not has_table(quantization):
        backend = "cpu, 3, 5 or 6 bits"
    least = wanted_unpack_rows() or UNPACK_ROWS[backend]
    return least is not None and rows >= least


@functools.cache
def wanted_unpack_rows() -> float | None:
    """The number in PG_MLX_UNPACK_ROWS, infinity for 0, None if it is not set. Cached, since every product of a packed
    matrix asks for it. Raises InputError."""
    text = os.environ.get("PG_MLX_UNPACK_ROWS", "")
    if text and not text.isdecimal():
        raise InputError(f"PG_MLX_UNPACK_ROWS is {text!r}, not a number of rows")
    return (int(text) or math.inf) if text else None


def multiply_floats(x: mx.array, weight: mx.array) -> mx.array:
    """x [..., columns] -> x @ weight.T [..., outputs], for a float weight [outputs, columns]."""

    def plain(x: mx.array, weight: mx.array) -> mx.array:
        return x @ weight.T

    rows = x.size // x.shape[-1]
    if rows > MATVEC_ROWS or weight.size < LARGE_WEIGHT or not x.dtype == weight.dtype == mx.float32:
        return plain(x, weight)

    def by_rows(x: mx.array, weight: mx.array) -> mx.array:
        matrix = numpy(weight)
        y = np.stack([matrix @ row for row in numpy(x).reshape(rows, -1)])
        return mx.array(y).reshape(*x.shape[:-1], -1)

    return via_numpy(by_rows, plain, x, weight)


def multiply_packed(x: mx.array, packed: Packed) -> mx.array:
    """x [..., columns] -> x @ weight.T [..., outputs], by the packed weight as it is; the cores share its outputs."""
    outputs = packed.num_outputs
    parts = min(device.cores(), max(1, outputs * x.shape[-1] // (LARGE_WEIGHT // 2)))
    if parts == 1:
        return packed.matmul(x)
    bounds = [outputs * part // parts for part in range(parts + 1)]
    done = [
        packed.outputs(slice(first, last)).matmul(x, stream=_stream(index))
        for index, (first, last) in enumerate(pairwise(bounds))
    ]
    return mx.concatenate(done, -1)


def multiply_unpacked(x: mx.array, packed: Packed) -> mx.array:
    """x [..., columns] -> x @ weight.T [..., outputs], by the unpacked weight; at most TILE values of it exist at a
    time."""
    outputs, columns = packed.num_outputs, x.shape[-1]

    def plain(x: mx.array) -> mx.array:
        return x @ packed.dequantize(x.dtype).T

    def tiled(x: mx.array) -> mx.array:
        step, done = min(outputs, max(1, TILE // columns)), []
        tile = mx.zeros((step, columns))  # one for all: fresh memory costs more than what is done with it
        values, read = numpy(tile), _Reader(packed)
        for first in range(0, outputs, step):
            last = min(first + step, outputs)
            read(first, values[: last - first])
            done.append(x @ tile[: last - first].astype(x.dtype).T)
            mx.eval(done[-1])  # before the tile is overwritten
        return mx.concatenate(done, -1) if len(done) > 1 else done[0]

    return via_numpy(tiled, plain, x)


def multiply_unpacked_twice(x: mx.array, packed: Packed) -> mx.array:
    """x [..., columns] -> x @ weight.T [..., outputs], with a gradient of x that unpacks the weight again. MLX would
    keep the unpacked weights of all layers from the forward to the backward pass."""

    def backward(_: mx.array, cotangent: mx.array, __: mx.array) -> mx.array:
        weight = mx.depends([packed.weight], [cotangent])[0]  # so that it is not unpacked any earlier
        return (cotangent @ packed._replace(weight=weight).dequantize(cotangent.dtype)).astype(x.dtype)

    def forward(x: mx.array) -> mx.array:
        weight = mx.depends([packed.weight], [x])[0]
        return x @ packed._replace(weight=weight).dequantize(x.dtype).T

    function: Any = mx.custom_function(forward)
    function.vjp(backward)
    return function(x)


def has_table(q: Quantization) -> bool:
    """Whether codes are unpacked by table. Codes of 3, 5 and 6 bits cross 16-bit words, so MLX unpacks them."""
    return 16 % q.bits == 0


def scratch_bytes(q: Quantization) -> int:
    """Bytes that unpacking holds beside the tile: a table for all matrices packed alike, or MLX's intermediate result,
    which has an integer for each bit."""
    return 4 * (1 << 16) * 16 // q.bits if has_table(q) else CHUNK_WEIGHTS * 4 * (q.bits + 1)


def unpack(packed: Packed) -> mx.array:
    """float32 [outputs, columns], equal to mx.dequantize's up to one rounding. Evaluates the arrays."""
    result = mx.zeros((packed.num_outputs, packed.num_columns))
    _Reader(packed)(0, numpy(result))
    return result


class _Reader:
    """A packed matrix that unpacks some of its outputs into an array of NumPy's."""

    def __init__(self, packed: Packed):
        q = packed.quantization
        self._packed, self._table = packed, None
        if not has_table(q):
            return
        self._table, scale_table = _tables(q)
        scales, biases = packed.scales, packed.biases
        self._group_size = q.group_size
        self._codes = numpy(packed.weight).view(np.uint16)
        self._scales = numpy(scales.astype(mx.float32)) if scale_table is None else scale_table[numpy(scales)]
        self._biases = None if biases is None else numpy(biases.astype(mx.float32))

    def __call__(self, first: int, values: np.ndarray) -> None:
        """Fill float32 values [n, columns] with the outputs from `first` on."""
        step = max(1, CHUNK_WEIGHTS // values.shape[1])
        if self._table is None:
            for start in range(0, len(values), step):
                some = values[start : start + step]
                chosen = self._packed.outputs(slice(first + start, first + start + len(some)))
                some[:] = numpy(chosen.dequantize(mx.float32))
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


@functools.cache
def _tables(q: Quantization) -> tuple[np.ndarray, np.ndarray | None]:
    """For each 16-bit piece of packed weights its unscaled float32 values, as one item; and the float of each one-byte
    scale, if the mode has those. MLX makes both tables, so its formats are not written down again."""
    words = q.group_size * q.bits // 32
    codes = mx.array(np.arange(1 << 16, dtype=np.uint16).view(np.uint32).reshape(-1, words))
    if q.mode == "affine":
        ones, zeros = mx.ones((len(codes), 1)), mx.zeros((len(codes), 1))
        values, factors = Packed(q, codes, ones, zeros).dequantize(mx.float32), None
    else:
        every_scale = mx.arange(256, dtype=mx.uint8)[:, None]
        ones = mx.full((256, words), _ONES[q.bits], dtype=mx.uint32)
        factors = numpy(Packed(q, ones, every_scale, None).dequantize(mx.float32))[:, 0]
        one = int(np.flatnonzero(factors == 1)[0])
        scales = mx.full((len(codes), 1), one, dtype=mx.uint8)
        values = Packed(q, codes, scales, None).dequantize(mx.float32)
    per_piece = 16 // q.bits
    table = np.ascontiguousarray(numpy(values)).reshape(1 << 16, per_piece)
    return table.view(np.dtype((np.void, 4 * per_piece))).reshape(-1), factors


_ONES = {4: 0x22222222, 8: 0x38383838}
"""Words of which each code is the number one, in e2m1 and e4m3."""


@functools.cache
def _stream(index: int) -> Any:
    return mx.new_thread_local_stream(mx.cpu)

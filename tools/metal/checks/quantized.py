"""Products with packed matrices against NumPy, and unpacking against the codes bit by bit."""

from __future__ import annotations

import math

import numpy as np

from ..bits import Array
from ..grid import Size
from ..library import Library
from .base import Result, Run, compare, floats, some

BOUND = 1e-2


def unpack(packed: list[Array], bits: int) -> Array:
    """Words, scales and biases of packed rows -> float32 [rows, columns].

    The code of a column is `bits` bits, lowest first, in a stream of little-endian words.
    """
    words, scales, biases = packed
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=-1, bitorder="little")
    codes = stream.reshape(len(words), -1, bits) @ (1 << np.arange(bits))
    groups = codes.reshape(len(words), scales.shape[-1], -1).astype(np.float32)
    return (groups * floats(scales)[..., None] + floats(biases)[..., None]).reshape(len(words), -1)


def product(run: Run, library: Library) -> Result:
    """Some outputs of all rows, or of some."""
    operation, (dispatch,) = run.route.operation, run.route.dispatches
    x, out = operation.inputs[0], operation.outputs[0]
    bits = operation.arguments[1]
    k, n, m = x.shape[-1], out.shape[-1], math.prod(x.shape[:-1])
    tiles = "qmm" in dispatch.kernel
    rows, columns = (32, 32) if tiles else (m, 8)
    chosen = [(i, j) for j in some(-(-m // rows), run.rng, 2) for i in some(-(-n // columns), run.rng, 3)]
    activations = run.buffers[0][x.offset :][: m * k].reshape(m, k)
    for j in {j for _, j in chosen}:
        part = activations[j * rows : (j + 1) * rows]
        run.put(part, run.normal(part.shape))
    for i in {i for i, _ in chosen}:
        _fill(run, slice(i * columns, min((i + 1) * columns, n)), k)
    groups: list[Size] = []
    for i, j in chosen:
        if tiles:
            groups += [(i, j, part) for part in range(dispatch.groups[2])]
        else:
            groups += [(at, i, 0) for at in range(dispatch.groups[0])]
    faults = run.start(library, dispatch, sorted(set(groups)))
    made = run.results[1].reshape(-1, m, n) if run.route.scratch else run.results[0].reshape(1, m, n)
    got, wanted = [], []
    for i, j in chosen:
        ys, xs = slice(j * rows, min((j + 1) * rows, m)), slice(i * columns, min((i + 1) * columns, n))
        weight = unpack([run.input(number)[xs] for number in (1, 2, 3)], bits)
        wanted.append((floats(activations[ys]).astype(np.float64) @ weight.T).ravel())
        got.append(floats(np.array(made[:, ys, xs])).sum(axis=0).ravel())
    return compare(np.concatenate(got), np.concatenate(wanted), BOUND, faults)


def dequantize(run: Run, library: Library) -> Result:
    """Some threadgroups, each of which makes a stretch of the result."""
    operation, (dispatch,) = run.route.operation, run.route.dispatches
    bits, out = operation.arguments[1], operation.outputs[0]
    rows, columns = math.prod(out.shape[:-1]), out.shape[-1]
    stretch = dispatch.threadgroup[0] * (out.size // dispatch.threads[0])
    chosen = some(dispatch.groups[0], run.rng, 3)
    spans = [(at * stretch, min((at + 1) * stretch, out.size)) for at in chosen]
    needed = sorted({row for first, last in spans for row in range(first // columns, (last - 1) // columns + 1)})
    words = [run.input(number).reshape(rows, -1) for number in range(3)]
    for row in needed:
        _fill_rows(run, [part[row : row + 1] for part in words])
    faults = run.start(library, dispatch, [(at, 0, 0) for at in chosen])
    weight = dict(zip(needed, unpack([part[needed] for part in words], bits), strict=True))
    got, wanted = [], []
    for first, last in spans:
        got.append(floats(np.array(run.results[0][first:last])))
        lines = range(first // columns, (last - 1) // columns + 1)
        whole = np.concatenate([weight[row] for row in lines])
        wanted.append(whole[first - lines[0] * columns :][: last - first])
    return compare(np.concatenate(got), np.concatenate(wanted), 2**-7 if out.dtype == "bfloat16" else 1e-6, faults)


def _fill(run: Run, rows: slice, k: int) -> None:
    _fill_rows(run, [run.input(number)[rows] for number in (1, 2, 3)], k)


def _fill_rows(run: Run, parts: list[Array], k: int = 1) -> None:
    words, scales, biases = parts
    words[...] = run.rng.integers(0, 1 << 32, words.shape, np.uint32)
    run.put(scales, run.normal(scales.shape, 0.01 / math.sqrt(k)))
    run.put(biases, run.normal(biases.shape, 0.1 / math.sqrt(k)))

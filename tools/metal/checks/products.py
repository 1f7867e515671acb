"""Products of float matrices: tiles of the result against NumPy's."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..bits import Array
from ..grid import Fault, Size
from ..library import Library
from ..routes.base import Dispatch
from ..routes.products import Product, product
from .base import Result, Run, compare, floats, some

BOUND = {"bfloat16": 1e-2, "float32": 2e-5}
"""A bfloat16 result is rounded once, by 0.4 % of itself at most."""


def check(run: Run, library: Library) -> Result:
    """Some tiles of the first, the last and another product of the batch."""
    p, _, _ = product(run.route.operation)
    first, *others = run.route.dispatches
    rows, columns = _tile(p, first)
    xs, ys, zs = (some(count, run.rng, 2) for count in (-(-p.n // columns), -(-p.m // rows), p.count))
    chosen: list[Size] = sorted(
        {(xs[0], ys[0], zs[-1]), (xs[-1], ys[-1], zs[0]), (xs[0], ys[-1], zs[0]), (xs[-1], ys[0], zs[0])}
    )
    scale = 1 / np.sqrt(p.k)
    filled: set[tuple[str, int, int]] = set()
    pieces: list[tuple[Array, int, slice, slice]] = []
    result = run.results[0].reshape(p.count, p.m, p.n)
    for x, y, z in chosen:
        a, b = _matrix(run, p, 0, z), _matrix(run, p, 1, z)
        down, across = slice(y * rows, min((y + 1) * rows, p.m)), slice(x * columns, min((x + 1) * columns, p.n))
        for name, part, number, key in (("a", a[down], 0, y), ("b", b[:, across], 1, x)):
            if (name, key, z if _steps(p, number) else 0) not in filled:
                run.put(part, run.normal(part.shape, 1 if number == 0 else scale))
                filled.add((name, key, z if _steps(p, number) else 0))
        pieces.append((result[z, down, across], z, down, across))
    if p.bias is not None:
        bias = run.input(2)
        run.put(bias[..., :1, :] if bias.strides[-2] == 0 else bias, run.normal((1, p.n)))
    faults = _start(run, library, first, others, chosen, p, rows, columns)
    got, wanted = [], []
    for piece, z, down, across in pieces:
        exact = floats(_matrix(run, p, 0, z)[down]).astype(np.float64) @ floats(_matrix(run, p, 1, z)[:, across])
        if p.bias is not None:
            exact = exact + floats(run.input(2).reshape(-1, p.n)[:1, across])
        got.append(np.array(piece).ravel())
        wanted.append(exact.ravel())
    return compare(np.concatenate(got), np.concatenate(wanted), BOUND[p.dtype], faults)


def _start(
    run: Run, library: Library, first: Dispatch, others: list[Dispatch], chosen: list[Size], p: Product, rows: int,
    columns: int,
) -> list[Fault]:  # fmt: skip
    split = bool(others)
    if split:
        parts = range(first.groups[2])
        groups = [(x, y, part) for x, y, _ in chosen for part in parts]
    elif first.kernel.startswith("gemv_wide"):
        groups = [(at, x, z) for x, _, z in chosen for at in range(first.groups[0])]
    elif first.kernel.startswith("gemv"):
        groups = [(x + y, 0, z) for x, y, z in chosen]
    else:
        groups = chosen
    faults = run.start(library, first, sorted(set(groups)))
    for dispatch in others:
        width, height, _ = dispatch.threadgroup
        over = {
            (gx, gy, 0)
            for x, y, _ in chosen
            for gx in range(x * columns // width, (min((x + 1) * columns, p.n) - 1) // width + 1)
            for gy in range(y * rows // height, (min((y + 1) * rows, p.m) - 1) // height + 1)
        }
        faults += run.start(library, dispatch, sorted(over))
    return faults


def _tile(p: Product, first: Dispatch) -> tuple[int, int]:
    """Rows and columns of the result that a threadgroup makes."""
    groups = first.groups
    if first.kernel.startswith("gemv_wide"):
        return p.m, 4
    if first.kernel.startswith("gemv"):
        lanes = dict(part for part in _numbers(first.kernel))
        each = (
            lanes["bn"] * lanes["sn"] * lanes["tn"]
            if "gemv_t" in first.kernel
            else lanes["bm"] * lanes["sm"] * lanes["tm"]
        )
        return (1, each) if p.n != 1 else (each, 1)
    sizes = dict(_numbers(first.kernel))
    assert groups[0] == -(-p.n // sizes["bn"])
    return sizes["bm"], sizes["bn"]


def _numbers(kernel: str) -> list[tuple[str, int]]:
    """The settings in a kernel's name: "bm64" and so on."""
    parts = [part for part in kernel.split("_") if len(part) > 2 and part[:2].isalpha() and part[2:].isdigit()]
    return [(part[:2], int(part[2:])) for part in parts]


def _steps(p: Product, number: int) -> bool:
    return any(p.a_step if number == 0 else p.b_step)


def _matrix(run: Run, p: Product, number: int, z: int) -> Array:
    """Matrix z of the batch: a [M, K] or b [K, N], as the kernel's arguments say where it is."""
    layout, buffer = run.route.operation.inputs[number], run.buffers[number]
    steps, transposed, lead = ((p.a_step, p.a_t, p.a_lead), (p.b_step, p.b_t, p.b_lead))[number]
    index: tuple[Any, ...] = np.unravel_index(z, p.batch) if np.prod(p.batch) == p.count else (z,)
    offset = layout.offset + sum(int(i) * step for i, step in zip(index, steps, strict=True))
    shape = ((p.m, p.k), (p.k, p.n))[number]
    item = buffer.itemsize
    strides = (item, lead * item) if transposed else (lead * item, item)
    return np.lib.stride_tricks.as_strided(buffer[offset:], shape, strides)

"""Products with packed matrices, and unpacking them (mlx/backend/metal/quantized.cpp; names are those of 0.32.4)."""

from __future__ import annotations

import math
from dataclasses import replace

from ..chips import Chip
from ..layout import Layout
from ..trace import Operation
from .base import Input, Output, Route, Slot, ceil_div, dispatch, ints, type_string

NAX = "NAX product of a packed matrix (tensor operations cannot be run here)"


def vector_limit(k: int, n: int, chip: Chip) -> int:
    """From so many rows on, the product is made by tiles (get_qmv_batch_limit)."""
    size = 0 if k <= 2048 and n <= 2048 else 1 if k <= 4096 and n <= 4096 else 2
    if chip.generation >= 17 and chip.size != "d":
        return (33, 25, 13)[size]
    if chip.generation >= 15 and chip.size != "d":
        return (13, 15, 13)[size]
    return (32, 18, 12)[size] if chip.size == "d" else (14, 10, 6)[size]


def route(operation: Operation, chip: Chip) -> Route:
    """The kernels of x [..., K] @ w [N, K].T, w packed."""
    x = operation.inputs[0]
    group, bits = operation.arguments[:2]
    flat = x.strides[-2:] == (x.shape[-1], 1) if len(x.shape) > 1 else True
    copied = not flat or not x.row_contiguous
    if copied:
        operation = replace(operation, inputs=(Layout.new(x.shape, x.dtype), *operation.inputs[1:]))
    k, n = x.shape[-1], operation.outputs[0].shape[-1]
    m = math.prod(x.shape[:-1])
    tag = f"{type_string(x.dtype)}_gs_{group}_b_{bits}"
    slots: dict[int, Slot] = {i: Input(j) for i, j in enumerate((1, 2, 3, 0))}
    slots |= {4: Output(), 5: ints([k]), 6: ints([n])}
    if m >= vector_limit(k, n, chip):
        found = _tiles(operation, tag, slots, m, n, k, group, chip)
    elif m >= 2 and chip.generation >= 15:
        vectors = ceil_div(m, ceil_div(m, 5))
        groups = (ceil_div(m, vectors), ceil_div(n, 8), 1)
        name = f"affine_qmv_wide_{tag}_nv_{vectors}_kl_8_batch_0"
        found = Route(operation, (dispatch(name, {**slots, 7: ints([m])}, groups=groups, threadgroup=(32, 2, 1)),))
    else:
        packs = {3: 8, 5: 8, 6: 4}.get(bits, 32 // bits)
        fast = k % (packs * (1 if bits == 2 else 2) * 32) == 0
        partial = int(fast and n % 8 != 0)
        name = f"affine_qmv_{'fast_' if fast else ''}{tag}_batch_0_pr_{partial}_hgs_0_r_4"
        found = Route(operation, (dispatch(name, slots, groups=(m, ceil_div(n, 8), 1), threadgroup=(32, 2, 1)),))
    return replace(found, copies=int(copied))


def _tiles(
    operation: Operation, tag: str, slots: dict[int, Slot], m: int, n: int, k: int, group: int, chip: Chip
) -> Route:
    tn, tm = ceil_div(n, 32), ceil_div(m, 32)
    parts = min(max(1, 512 // (tn * tm)), k // max(group, 32))
    while parts > 1 and k % (parts * max(group, 32)) != 0:
        parts -= 1
    aligned = f"alN_{str(n % 32 == 0).lower()}"
    if parts > 1:
        more: dict[int, Slot] = {4: Output(1), 7: ints([m]), 8: ints([k // parts]), 9: ints([m * n])}
        start = dispatch(
            f"affine_qmm_t_splitk_{tag}_{aligned}", slots | more, groups=(tn, tm, parts), threadgroup=(32, 2, 2)
        )
        return Route(operation, (start,), (Layout.new((parts, m, n), "float32"),))
    if chip.nax and k % 64 == 0:
        return Route(operation, missing=NAX)
    name = f"affine_qmm_t_{tag}_{aligned}_batch_0"
    start = dispatch(name, {**slots, 7: ints([m])}, groups=(tn, tm, 1), threadgroup=(32, 2, 2))
    return Route(operation, (start,))


def dequantize(operation: Operation, chip: Chip) -> Route:
    """The kernel that makes floats of a packed matrix."""
    weight, out = operation.inputs[0], operation.outputs[0]
    group, bits = operation.arguments[:2]
    packs = {3: 8, 5: 8, 6: 4}.get(bits, 8 // bits)
    threads = out.size // packs
    slots: dict[int, Slot] = {0: Input(0), 1: Input(1), 2: Input(2), 3: Output()}
    if not weight.row_contiguous:
        return Route(operation, missing="a packed matrix that is not in one piece: not in any pass of ours")
    name = f"affine_dequantize_{type_string(out.dtype)}_gs_{group}_b_{bits}"
    return Route(operation, (dispatch(name, slots, threads=(threads, 1, 1), threadgroup=(min(1024, threads), 1, 1)),))

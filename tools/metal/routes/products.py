"""Products of float matrices: Matmul and AddMM (mlx/backend/metal/matmul.cpp of 0.32.2; 0.32.4 decides alike)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..chips import Chip
from ..layout import Ints, Layout, collapse
from ..trace import Operation
from .base import Input, Output, Route, Slot, block, ceil_div, dispatch, ints, longs, values


@dataclass(frozen=True)
class Product:
    """out [batch, M, N] = a [batch, M, K] @ b [batch, K, N], plus bias. lead: elements from one row of the stored
    matrix to the next; b is stored [N, K] where b_t says so. batch and its strides: as MLX has collapsed them."""

    m: int
    n: int
    k: int
    a_t: bool
    b_t: bool
    a_lead: int
    b_lead: int
    batch: Ints
    a_step: Ints
    b_step: Ints
    bias_step: Ints
    count: int
    bias: Layout | None
    dtype: str


def product(operation: Operation) -> tuple[Product, Operation, int]:
    """The product as MLX multiplies it, the operation with the inputs that its kernel sees, and how many of them MLX
    copies first."""
    a, b, *rest = operation.inputs
    m, n, k = a.shape[-2], b.shape[-1], a.shape[-1]
    a_t, a_lead, new_a = _stored(a, m == 1)
    b_t, b_lead, new_b = _stored(b, n == 1)
    copies = (new_a is not a) + (new_b is not b)
    operation = replace(operation, inputs=(new_a, new_b, *rest))
    a, b = new_a, new_b
    bias = rest[0] if rest else None
    steps = [x.strides[:-2] for x in (a, b, *rest)]
    batch, (a_step, b_step, *bias_steps) = collapse(a.shape[:-2], steps)
    count = math.prod(a.shape[:-2])
    bias_step = bias_steps[0] if bias else (0,)
    joins = bias is None or bias_step[-1] == m * bias.strides[-2]
    if count > 1 and not a_t and len(batch) == 1 and a_lead == k and a_step[-1] == m * k and b_step[-1] == 0 and joins:
        m, count, batch, a_step, b_step, bias_step = m * batch[-1], 1, (1,), (0,), (0,), (0,)
    dtype = operation.outputs[0].dtype
    made = Product(m, n, k, a_t, b_t, a_lead, b_lead, batch, a_step, b_step, bias_step, count, bias, dtype)
    return made, operation, copies


def route(operation: Operation, chip: Chip) -> Route:
    """The kernels of a product."""
    product_, operation, copies = product(operation)
    found = _wide(operation, product_, chip) or _vector(operation, product_)
    found = found or _split(operation, product_, chip) or _tiles(operation, product_, chip)
    return replace(found, copies=copies)


def _stored(x: Layout, is_vector: bool) -> tuple[bool, int, Layout]:
    """Whether it is stored transposed, its leading dimension, and the layout, new if MLX copies it first."""
    row, column = x.strides[-2:]
    if column == 1 and (not is_vector or row == x.shape[-1]):
        return False, row, x
    if row == 1 and (not is_vector or column == x.shape[-2]):
        return True, column, x
    return False, x.shape[-1], Layout.new(x.shape, x.dtype)


def _wide(operation: Operation, p: Product, chip: Chip) -> Route | None:
    """gemv_wide: M3 and later, two to fifteen rows; each pass over the matrix serves five."""
    steps = [*p.a_step, *p.b_step, p.a_lead, p.b_lead]
    a, b = operation.inputs[:2]
    passes = ceil_div(p.m, 5)
    fits = p.m > 1 and p.n > 1 and p.k % 4 == 0 and p.dtype == "bfloat16" and passes <= 3
    aligned = all(step % 4 == 0 for step in (*steps, a.offset, b.offset))
    if chip.generation < 15 or p.a_t or not p.b_t or not fits or not aligned:
        return None
    lanes = 32 if passes == 1 or p.n <= 64 else 16
    vectors = ceil_div(p.m, passes)
    slots: dict[int, Slot] = {0: Input(1), 1: Input(0), 3: Output(), 4: ints([p.k]), 5: ints([p.n]), 6: ints([p.m])}
    slots |= {7: ints([p.b_lead]), 8: ints([p.a_lead]), 11: ints([len(p.batch)]), 12: ints(p.batch)}
    slots |= {13: longs(p.a_step), 14: longs(p.b_step)}
    if p.bias is not None:
        slots |= {2: Input(2), 9: values("f", 1), 10: values("f", 1), 15: longs(p.bias_step)}
        slots |= {16: ints([p.bias.strides[-2]]), 17: ints([p.bias.strides[-1]])}
    start = dispatch(
        f"gemv_wide_{p.dtype}_nv{vectors}_kl{lanes}",
        slots,
        groups=(1 if p.n >= 65536 else passes, ceil_div(p.n, 4), p.count),
        threadgroup=(32, lanes // 8, 1),
        constants={0: len(p.batch) != 1, 1: p.bias is not None},
    )
    return Route(operation, (start,))


def _vector(operation: Operation, p: Product) -> Route | None:
    """gemv, or gemv_t for a matrix whose columns are summed: one row (or one column) of a result."""
    if min(p.m, p.n) != 1:
        return None
    by_b = p.n != 1
    transposed = not p.b_t if by_b else p.a_t
    length, lead = (p.n, p.b_lead) if by_b else (p.m, p.a_lead)
    matrix_step, vector_step = (p.b_step, p.a_step) if by_b else (p.a_step, p.b_step)
    tm = tn = 4
    bm = bn = sm = 1
    sn = 32
    if transposed:
        sm, sn = (4, 8) if p.k >= 8192 and length >= 2048 else (8, 4)
        bn = 16 if length >= 2048 else 4 if length >= 512 else 2
        tn = 1 if length < tn else tn
        each = bn * sn * tn
    else:
        bm = 8 if length >= 4096 else 4
        if p.k <= 64:
            bm, sm, sn = 1, 8, 4
        elif p.k >= 16 * length:
            bm, bn = 1, 8
        tm = 1 if length < tm else tm
        each = bm * sm * tm
    axpby = p.bias is not None
    kind = "gemv_t" if transposed else "gemv"
    name = f"{kind}_{p.dtype}_bm{bm}_bn{bn}_sm{sm}_sn{sn}_tm{tm}_tn{tn}_nc{int(len(p.batch) != 1)}_axpby{int(axpby)}"
    slots: dict[int, Slot] = {0: Input(1 if by_b else 0), 1: Input(0 if by_b else 1), 3: Output(), 4: ints([p.k])}
    slots |= {5: ints([length]), 6: ints([lead]), 9: ints([len(p.batch)]), 10: ints(p.batch)}
    slots |= {11: longs(vector_step), 12: longs(matrix_step)}
    groups = (ceil_div(length, each), 1, p.count)
    if p.bias is not None:
        slots |= {2: Input(2), 7: values("f", 1), 8: values("f", 1), 13: longs(p.bias_step)}
        slots[14] = ints([p.bias.strides[-1]])
    return Route(operation, (dispatch(name, slots, groups=groups, threadgroup=(32, bn, bm)),))


def _split(operation: Operation, p: Product, chip: Chip) -> Route | None:
    """Few results of many products each: parts of K are summed apart, then together."""
    limit = 2048 if chip.size in "sd" else 1024
    tiles = ceil_div(p.m, 16) * ceil_div(p.n, 16)
    if chip.nax or p.count != 1 or tiles > limit or p.k // 16 < 8 or p.k < max(p.m, p.n):
        if not (chip.nax and p.count == 1 and _nax_splits(p)):
            return None
        return Route(operation, missing="NAX split-K product (tensor operations cannot be run here)")
    bm, bn, bk = (16 if p.m < 40 else 32), (16 if p.n < 40 else 32), 16
    wanted = p.k // 16 // (ceil_div(p.m, 32) * ceil_div(p.n, 32))
    parts = min(max(2, 1 << max(0, (wanted - 1).bit_length())), 32)
    iterations = p.k // bk // parts
    aligned = [("t" if yes else "n") for yes in (p.m % bm == 0 and p.n % bn == 0, p.k % bk == 0)]
    order = f"{'t' if p.a_t else 'n'}{'t' if p.b_t else 'n'}"
    name = f"steel_gemm_splitk_{order}_{p.dtype}_float32_bm{bm}_bn{bn}_bk{bk}_wm2_wn2"
    name += f"_MN_{aligned[0]}aligned_K_{aligned[1]}aligned"
    tn, tm = ceil_div(p.n, bn), ceil_div(p.m, bm)
    sizes = ints([p.m, p.n, p.k, p.a_lead, p.b_lead, p.n, tn, tm, parts, p.m * p.n, iterations * bk, 0, iterations])
    first = dispatch(
        name,
        {0: Input(0), 1: Input(1), 2: Output(1), 3: sizes},
        groups=(tn, tm, parts),
        threadgroup=(32, 2, 2),
    )
    slots: dict[int, Slot] = {0: Output(1), 1: Output(), 2: ints([parts]), 3: ints([p.m * p.n]), 4: ints([p.n])}
    if p.bias is not None:
        row, column = p.bias.strides[-2:]
        slots |= {5: Input(2), 6: ints([row]), 7: ints([column]), 8: values("f", 1), 9: values("f", 1)}
    second = dispatch(
        f"steel_gemm_splitk_accum_{p.dtype}_float32{'_axbpy' if p.bias is not None else ''}",
        slots,
        threads=(p.n, p.m, 1),
        threadgroup=block(p.n, p.m, 1),
    )
    return Route(operation, (first, second), (Layout.new((parts, p.m, p.n), "float32"),))


def _nax_splits(p: Product) -> bool:
    largest = max(p.m, p.n)
    return p.k >= 3 * largest or (largest <= 1024 and p.k > 2 * largest)


def _tile_sizes(p: Product, chip: Chip) -> tuple[int, int, int, int, int]:
    """bm, bn, bk, wm, wn: rows, columns and depth of a tile, and its simdgroups (GEMM_TPARAM_MACRO)."""
    straight = not p.a_t and p.b_t
    half = p.dtype != "float32"
    narrow, wide, default = (64, 32, 32, 2, 2), (64, 64, 16, 1, 2), (64, 64, 16, 2, 2)
    if chip.size == "g":
        return narrow if straight else wide if half else default
    if chip.size == "s":
        return default
    if p.count * p.m * p.n >= 1 << 20:
        if not half:
            return default
        return wide if 2 * max(p.m, p.n) > p.k else narrow if straight else (32, 64, 16, 1, 2)
    if half:
        return narrow if straight else wide
    return (32, 64, 16, 1, 2) if straight else narrow


def _tiles(operation: Operation, p: Product, chip: Chip) -> Route:
    if chip.nax:
        return Route(operation, missing="NAX product (tensor operations cannot be run here)")
    bm, bn, bk, wm, wn = _tile_sizes(p, chip)
    tn, tm = ceil_div(p.n, bn), ceil_div(p.m, bm)
    batched = len(p.batch) > 1
    order = f"{'t' if p.a_t else 'n'}{'t' if p.b_t else 'n'}"
    steps = (p.a_step[-1], p.b_step[-1], p.m * p.n)
    sizes = (p.m, p.n, p.k, p.a_lead, p.b_lead, p.n, tn, tm, *steps, 0, p.k // bk, len(p.batch))
    slots: dict[int, Slot] = {0: Input(0), 1: Input(1), 3: Output(), 4: values("8i3q3i4x", *sizes)}
    if batched:
        slots |= {6: ints(p.batch), 7: longs((*p.a_step, *p.b_step, *(p.bias_step if p.bias else ())))}
    if p.bias is not None:
        row, column = p.bias.strides[-2:]
        slots |= {2: Input(2), 5: values("2iq2f", row, column, p.bias_step[-1], 1.0, 1.0)}
    constants = {10: batched, 100: p.bias is not None, 110: False, 200: p.m % bm == 0, 201: p.n % bn == 0}
    start = dispatch(
        f"steel_gemm_fused_{order}_{p.dtype}_{p.dtype}_bm{bm}_bn{bn}_bk{bk}_wm{wm}_wn{wn}",
        slots,
        groups=(tn, tm, p.count),
        threadgroup=(32, wn, wm),
        constants={**constants, 202: p.k % bk == 0},
    )
    return Route(operation, (start,))

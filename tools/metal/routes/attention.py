"""scaled_dot_product_attention where it is a kernel of its own (scaled_dot_product_attention.cpp of 0.32.4)."""

from __future__ import annotations

from dataclasses import replace

from ..chips import Chip
from ..layout import Layout
from ..trace import Operation
from .base import Input, Output, Route, Slot, ceil_div, dispatch, ints, type_string, values


def route(operation: Operation, chip: Chip) -> Route:
    """Few queries go to vector kernels, many to tiles."""
    query, key, value, *masks = operation.inputs
    wanted = (*query.shape[:-1], key.shape[2])
    mask = masks[0].broadcast(wanted) if masks else None
    if query.shape[2] > 8:
        return _tiles(replace(operation, inputs=(query, key, value, *([mask] if mask else []))), chip)
    copies = int(not _query_stays(query))
    if copies:
        query = Layout.new(query.shape, query.dtype)
    laid = [_keys(x) for x in (key, value)]
    copies += sum(new is not old for new, old in zip(laid, (key, value), strict=True))
    key, value = laid
    one = min(query.shape[:2]) == 1
    if mask and not (mask.row_contiguous or one or mask.strides[0] == mask.strides[1] * mask.shape[1]):
        mask, copies = Layout.new(mask.shape, mask.dtype), copies + 1
    operation = replace(operation, inputs=(query, key, value, *([mask] if mask else [])))
    keys, heads, kv_heads = key.shape[2], query.shape[1], key.shape[1]
    two = (chip.size in "sd" and keys >= 1024) or (kv_heads < heads and keys >= 4096)
    found = _two_passes(operation, chip) if two else _one_pass(operation)
    return replace(found, copies=copies)


def _query_stays(x: Layout) -> bool:
    if x.row_contiguous:
        return True
    if 1 not in x.shape[:2]:
        return False
    axis = 1 if x.shape[0] == 1 else 0
    return x.strides[3] == 1 and x.strides[2] == x.shape[3] * x.shape[axis] and x.strides[axis] == x.shape[3]


def _keys(x: Layout) -> Layout:
    stays = x.strides[-1] == 1 and (1 in x.shape[:2] or x.strides[0] == x.strides[1] * x.shape[1])
    return x if stays else Layout.new(x.shape, x.dtype)


def _steps(x: Layout) -> tuple[int, int]:
    """From one head to the next, and from one key to the next."""
    return (x.strides[0] if x.shape[1] == 1 else x.strides[1]), x.strides[2]


def _mask_slots(mask: Layout | None, first: int) -> dict[int, Slot]:
    if mask is None:
        return {}
    batch, heads, queries, keys = mask.shape
    head = mask.strides[1] if heads > 1 else mask.strides[0] if batch > 1 else 0
    steps = (mask.strides[3] if keys > 1 else 0, mask.strides[2] if queries > 1 else 0, head)
    return {first: Input(3), **{first + 2 + i: ints([step]) for i, step in enumerate(steps)}}


def _one_pass(operation: Operation) -> Route:
    query, key, value, *masks = operation.inputs
    tag = f"{type_string(query.dtype)}_{query.shape[-1]}_{value.shape[-1]}"
    batch, heads, queries, _ = query.shape
    slots: dict[int, Slot] = {0: Input(0), 1: Input(1), 2: Input(2), 3: Output(), 4: ints([heads // key.shape[1]])}
    slots |= {5: ints([key.shape[2]]), 6: values("Q", _steps(key)[0]), 7: values("Q", _steps(key)[1])}
    slots |= {8: values("Q", _steps(value)[0]), 9: values("Q", _steps(value)[1]), 10: values("f", _scale(operation))}
    slots |= _mask_slots(masks[0] if masks else None, 11)
    start = dispatch(
        f"sdpa_vector_{tag}",
        slots,
        groups=(batch * heads, queries, 1),
        threadgroup=(1024, 1, 1),
        constants={20: bool(masks), 21: not query.row_contiguous, 22: False, 23: bool(masks), 24: False, 25: False},
    )
    return Route(operation, (start,))


def _scale(operation: Operation) -> float:
    return float(next(value for value in operation.arguments if isinstance(value, float)))


def _blocks(simdgroups: int, keys: int, chip: Chip) -> int:
    if chip.size == "s":
        if keys <= 1024 or simdgroups <= 4:
            return 64
        return next((count for limit, count in ((8192, 128), (32768, 256), (65536, 512)) if keys <= limit), 1024)
    if chip.size == "d":
        if simdgroups <= 2 and keys > 8192:
            return 256
        return 128 if simdgroups < 6 or keys < 16384 else 512 if keys < 65536 else 1024
    return 64 if simdgroups >= 4 else 32


def _two_passes(operation: Operation, chip: Chip, variant: str = "") -> Route:
    query, key, value, *masks = operation.inputs
    batch, heads, queries, width = query.shape
    group, keys = heads // key.shape[1], key.shape[2]
    blocks = _blocks(group * queries, keys, chip)
    tag = f"{type_string(query.dtype)}_{width}_{value.shape[-1]}"
    slots: dict[int, Slot] = {0: Input(0), 1: Input(1), 2: Input(2), 3: Output(1), 4: Output(2), 5: Output(3)}
    slots |= {7: ints([keys]), 8: values("Q", _steps(key)[0]), 9: values("Q", _steps(key)[1])}
    slots |= {10: values("Q", _steps(value)[0]), 11: values("Q", _steps(value)[1]), 12: values("f", _scale(operation))}
    slots |= _mask_slots(masks[0] if masks else None, 13)
    constants = {20: bool(masks), 21: not query.row_contiguous, 22: False, 23: bool(masks), 24: False, 25: False}
    first = dispatch(
        f"sdpa_vector_2pass_1_{tag}{variant}",
        slots,
        groups=(key.shape[1], batch, blocks),
        threadgroup=(32, group, queries),
        constants={**constants, 26: blocks},
    )
    second = dispatch(
        f"sdpa_vector_2pass_2_{type_string(query.dtype)}_{value.shape[-1]}",
        {0: Output(1), 1: Output(2), 2: Output(3), 3: Output(), 4: ints([blocks])},
        groups=(batch * heads, queries, 1),
        threadgroup=(1024, 1, 1),
    )
    rows = (batch, heads, queries, blocks)
    scratch = (Layout.new((*rows, width), query.dtype), Layout.new(rows, "float32"), Layout.new(rows, "float32"))
    return Route(operation, (first, second), scratch)


def _tiles(operation: Operation, chip: Chip) -> Route:
    query, key, value, *masks = operation.inputs
    batch, heads, queries, width = query.shape
    keys = key.shape[2]
    padded = width == 72 and queries >= 512 and not masks
    if chip.nax and (width in (64, 96, 128, 256) or padded):
        return Route(operation, missing="NAX attention (tensor operations cannot be run here)")
    bq, bk = 32, 32 if width < 128 else 16
    out = Layout.new((batch, queries, heads, width), query.dtype).transposed((0, 2, 1, 3))
    sizes = (batch, heads, width, queries, keys, heads // key.shape[1], _scale(operation))
    tiles = (ceil_div(queries, bq), ceil_div(keys, bk), queries // bq, keys // bk, queries % bq, keys % bk)
    steps = [step for x in (query, key, value, out) for step in x.strides[:3]]
    parameters = values("6if7i12q", *sizes, *tiles, keys - queries, *steps)
    slots: dict[int, Slot] = {0: Input(0), 1: Input(1), 2: Input(2), 3: Output(), 4: parameters}
    if masks:
        slots |= {5: values("3q", *masks[0].strides[:3]), 6: Input(3)}
    mask = "bool_" if masks else query.dtype
    start = dispatch(
        f"steel_attention_{query.dtype}_bq{bq}_bk{bk}_bd{width}_bv{value.shape[-1]}_wm4_wn1_mask{mask}",
        slots,
        groups=(tiles[0], heads, batch),
        threadgroup=(32, 4, 1),
        constants={200: queries % bq == 0, 201: keys % bk == 0, 300: bool(masks), 301: False, 302: False, 303: False},
    )
    return Route(replace(operation, outputs=(out,)), (start,))

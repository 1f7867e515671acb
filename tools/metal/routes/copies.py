"""Copies: casts, gathering what a reshape cannot view, and writing into a part of an array (copy.cpp, gpu/slicing.cpp,
common/slicing.cpp)."""

from __future__ import annotations

import math

from ..chips import Chip
from ..layout import ITEM_BYTES, Layout, collapse
from ..trace import Operation
from .base import Dispatch, Input, Output, Route, Slot, block, ceil_div, dispatch, ints, longs, type_name


def cast(operation: Operation, chip: Chip) -> Route:
    """AsType: element by element where the input has no gaps, else along its strides."""
    x, out = operation.inputs[0], operation.outputs[0]
    if x.contiguous:
        each = 1 if x.size < 1 << 16 else max(1, 8 // ITEM_BYTES[out.dtype])
        threads = ceil_div(x.size, each)
        name = f"v{'n' if each > 1 else ''}_copy{type_name(x.dtype)}{type_name(out.dtype)}"
        slots: dict[int, Slot] = {0: Input(0), 1: Output(), 2: ints([x.size])}
        start = dispatch(name, slots, threads=(threads, 1, 1), threadgroup=(min(1024, threads), 1, 1))
        return Route(operation, (start,))
    return Route(operation, (gather(x, out.dtype),))


def reshape(operation: Operation, chip: Chip) -> Route:
    """A reshape that no strides can express: a copy without gaps."""
    return Route(operation, (gather(operation.inputs[0], operation.outputs[0].dtype),))


def gather(x: Layout, to: str) -> Dispatch:
    """The copy of an array along its strides into one without gaps."""
    shape, (steps, _) = collapse(x.shape, [x.strides, Layout.new(x.shape, x.dtype).strides])
    return _general("g", shape, steps, None, f"_copy{type_name(x.dtype)}{type_name(to)}", Input(0))


def slice_update(operation: Operation, chip: Chip) -> Route:
    """The second input is written into a part of the first, in place: output 0 is the whole buffer."""
    whole, part = operation.inputs
    start, _, steps = operation.arguments[-3:]
    target = whole.sliced(start, part.shape, steps)
    shape, (source, strides) = collapse(part.shape, [part.strides, target.strides])
    name = f"_copy{type_name(part.dtype)}{type_name(whole.dtype)}"
    return Route(operation, (_general("gg", shape, source, strides, name, Input(1), target.offset),))


def _general(
    kind: str,
    shape: tuple[int, ...],
    steps: tuple[int, ...],
    out_steps: tuple[int, ...] | None,
    suffix: str,
    source: Input,
    offset: int = 0,
) -> Dispatch:
    count = len(shape)
    each = 1 if count <= 3 else 2
    name = f"{kind}{count if count <= 3 else 'n2'}{suffix}"
    slots: dict[int, Slot] = {0: source, 1: Output(0, offset), 3: longs(steps)}
    if count > 3:
        slots |= {2: ints(shape), 5: ints([count])}
    if out_steps is not None:
        slots[4] = longs(out_steps)
    first, second = shape[-1], shape[-2] if count > 1 else 1
    rest = math.prod(shape) // (first * second)
    threads = (ceil_div(first, each) if count > 3 else first, second, rest)
    return dispatch(name, slots, threads=threads, threadgroup=block(*threads))

"""Norms, softmax, rope and argmax: kernels that take one row each, or one element (normalization.cpp, softmax.cpp,
rope.cpp, primitives.cpp)."""

from __future__ import annotations

import math
from dataclasses import replace

from ..chips import Chip
from ..layout import Layout
from ..trace import Operation
from .base import Input, Output, Route, Slot, block, ceil_div, dispatch, ints, longs, values

LOOPED = 4096
"""A longer row is walked in a loop."""


def _threads(width: int, each: int, looped: int = LOOPED) -> int:
    """Threads of the threadgroup that takes a row: so many that each reads `each` values once, in whole simdgroups."""
    return 1024 if width > looped else 32 * ceil_div(ceil_div(width, each), 32)


def _dense(x: Layout) -> tuple[Layout, int]:
    """The input as a norm reads it, and whether MLX copies it first."""
    stays = x.contiguous and x.strides[-1] == 1
    if stays and len(x.shape) > 1:
        stays = x.strides[-2] in (0, x.shape[-1]) or x.shape[-2] == 1
    return (x, 0) if stays else (Layout.new(x.shape, x.dtype), 1)


def rms_norm(operation: Operation, chip: Chip) -> Route:
    """x / rms(x) * weight; without a weight MLX passes the number one."""
    x, copies = _dense(operation.inputs[0])
    width = x.shape[-1]
    size = _threads(width, 4)
    has_weight = len(operation.inputs) > 1
    one = values("f", 1) if x.dtype == "float32" else values("H", 0x3F80)
    name = f"rms{'_looped' if width > LOOPED else ''}{x.dtype}"
    slots: dict[int, Slot] = {0: Input(0), 1: Input(1) if has_weight else one, 2: Output()}
    slots |= {3: values("f", operation.arguments[-1]), 4: values("I", width), 5: values("I", int(has_weight))}
    start = dispatch(name, slots, threads=(x.size // width * size, 1, 1), threadgroup=(size, 1, 1))
    return Route(replace(operation, inputs=(x, *operation.inputs[1:])), (start,), copies=copies)


def layer_norm(operation: Operation, chip: Chip) -> Route:
    """(x - mean) / deviation * weight + bias."""
    x, copies = _dense(operation.inputs[0])
    width = x.shape[-1]
    looped = 6656
    size = _threads(width, 8, looped)
    name = f"layer_norm{'_looped' if width > looped else ''}{x.dtype}"
    slots: dict[int, Slot] = {0: Input(0), 1: Input(1), 2: Input(2), 3: Output()}
    slots |= {4: values("f", operation.arguments[-1]), 5: values("I", width), 6: values("I", 1), 7: values("I", 1)}
    start = dispatch(name, slots, threads=(x.size // width * size, 1, 1), threadgroup=(size, 1, 1))
    return Route(replace(operation, inputs=(x, *operation.inputs[1:])), (start,), copies=copies)


def softmax(operation: Operation, chip: Chip) -> Route:
    """Over the last axis; 16-bit numbers precisely, in float32."""
    x = operation.inputs[0]
    copies = int(not (x.contiguous and x.strides[-1] == 1))
    if copies:
        x = Layout.new(x.shape, x.dtype)
    width = x.shape[-1]
    size = _threads(width, 4)
    precise = "precise_" if x.dtype != "float32" and operation.arguments[0] else ""
    name = f"{'looped' if width > LOOPED else 'block'}_softmax_{precise}{x.dtype}"
    slots: dict[int, Slot] = {0: Input(0), 1: Output(), 2: ints([width])}
    start = dispatch(name, slots, threads=(x.size // width * size, 1, 1), threadgroup=(size, 1, 1))
    return Route(replace(operation, inputs=(x,)), (start,), copies=copies)


def rope(operation: Operation, chip: Chip) -> Route:
    """Rotation by positions: of all rows alike, or each row of the first axis by an offset of its own."""
    x, *offsets = operation.inputs
    settings = [value for value in operation.arguments if value is not None and not isinstance(value, bool)]
    dims, base, scale = int(settings[0]), float(settings[1]), float(settings[2])
    if len(x.shape) == 3:
        x = x.expanded([1])
    batch, heads, length, width = x.shape
    if dims != width:
        return Route(operation, missing="rope of a part of a head: not in any pass of ours")
    out = Layout.new(x.shape, x.dtype)
    steps = (length * width, *out.strides[2:])
    copies, transposed = 0, False
    if not x.row_contiguous:
        if heads == 1 or batch == 1:  # three axes that matter, so strides can say it
            steps = (x.strides[0] if heads == 1 and batch > 1 else x.strides[1], *x.strides[2:])
        elif x.strides[:3] == (length * heads * width, width, heads * width):
            transposed, steps = True, x.strides[1:]
        else:
            x, copies = Layout.new(x.shape, x.dtype), 1
    offset = offsets[0] if offsets else None
    count = offset.size if offset is not None else 1
    fixed = 0 if offsets else int(settings[3])
    single = x.row_contiguous and length == 1 and count == 1
    slots: dict[int, Slot] = {0: Input(0), 1: Output(), 2: Input(1) if offsets else ints([fixed])}
    slots |= {3: values("f", scale), 4: longs(steps), 10: values("f", math.log2(base))}
    constants = {1: True, 2: False, 3: transposed}
    operation = replace(operation, inputs=(x, *offsets), outputs=(out,))
    if single:
        slots[4] = longs([out.strides[1]])
        threads = (dims // 2, batch * heads, 1)
        name = f"rope_single_{x.dtype}"
    else:
        stride = offset.strides[0] if offset is not None and offset.shape else 0
        slots |= {5: longs((length * width, *out.strides[2:])), 6: longs([stride]), 7: ints([heads])}
        threads = (dims // 2, length, batch * ceil_div(heads, 4))
        name = f"rope_{x.dtype}"
    start = dispatch(name, slots, threads=threads, threadgroup=block(*threads), constants=constants)
    return Route(operation, (start,), copies=copies)


def argmax(operation: Operation, chip: Chip) -> Route:
    """The index of the largest value of the last axis."""
    x = operation.inputs[0]
    width, rows = x.shape[-1], x.size // x.shape[-1]
    size = 32 * ceil_div(min(ceil_div(width, 4), 1024), 32)
    outer = x.shape[:-1]
    slots: dict[int, Slot] = {0: Input(0), 1: Output(), 2: ints(outer), 3: longs(x.strides[:-1])}
    slots |= {4: longs([1] * len(outer)), 5: values("Q", len(outer)), 6: longs([x.strides[-1]]), 7: values("Q", width)}
    start = dispatch(f"argmax_{x.dtype}", slots, threads=(size, rows, 1), threadgroup=(size, 1, 1))
    return Route(operation, (start,))

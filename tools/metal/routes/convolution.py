"""Convolutions of pictures (conv.cpp): those of the mask decoder are all products of patches, "implicit GEMM"."""

from __future__ import annotations

from typing import Any

from ..chips import Chip
from ..trace import Operation
from .base import Input, Output, Route, ceil_div, dispatch, ints, values


def route(operation: Operation, chip: Chip) -> Route:
    """x [N, H, W, C] and kernels [O, h, w, C] -> [N, H', W', O], with steps of `strides` and zeros around x."""
    x, weight, out = *operation.inputs, operation.outputs[0]
    batch, height, width, channels = x.shape
    outputs, tall, wide, _ = weight.shape
    strides, padding = settings(operation)
    if not (x.row_contiguous and weight.row_contiguous):
        return Route(operation, missing="a convolution of an array with gaps: not in any pass of ours")
    large = batch * height * width >= 4096 and channels + outputs >= 256
    if (tall, wide) == (3, 3) and strides == (1, 1) and channels % 32 == outputs % 32 == 0 and large:
        return Route(operation, missing="a Winograd convolution: no pass of ours is large enough")
    if not ((channels <= 4 or channels % 16 == 0) and (outputs <= 16 or outputs % 16 == 0)):
        return Route(operation, missing="a convolution with other numbers of channels: not in any pass of ours")
    rows = batch * out.shape[1] * out.shape[2]
    bm = 64 if rows >= 8192 and channels >= 64 else 32
    bn = 64 if bm == 64 or outputs >= 64 else 32
    wm = wn = 2
    if outputs <= 16:
        bn, wm, wn = 8, 4, 1
    depth = tall * wide * channels
    steps = tall * wide * ceil_div(channels, 16)
    if channels <= 4:
        steps = ceil_div(depth if channels <= 2 else tall * wide * 4, 16)
    few = str(channels) if channels <= 4 else "l"
    small = "s" if channels > 4 and tall <= 16 and wide <= 16 else "l"
    right, down = x.strides[2], x.strides[1]
    jumps = (right, down - (wide - 1) * right, 16 - (tall - 1) * down - (wide - 1) * right)
    tn, tm = ceil_div(outputs, bn), ceil_div(rows, bm)
    shapes = (height, width, tall, wide, *out.shape[1:3], *strides, *padding, 1, 1, 1, 1)
    layouts = (*x.strides, *weight.strides, *out.strides)
    start = dispatch(
        f"implicit_gemm_conv_2d_{out.dtype}_bm{bm}_bn{bn}_bk16_wm{wm}_wn{wn}_channel_{few}_filter_{small}",
        {
            0: Input(0),
            1: Input(1),
            2: Output(),
            3: values("3i14i4x12qi?3x", batch, channels, outputs, *shapes, *layouts, 1, False),
            4: ints([rows, outputs, depth, steps, *jumps, tn, tm, 0]),
        },
        groups=(tn, tm, 1),
        threadgroup=(32, wn, wm),
    )
    return Route(operation, (start,))


def settings(operation: Operation) -> tuple[tuple[int, int], tuple[int, int]]:
    """Strides and padding of a convolution."""
    pairs: list[Any] = [value for value in operation.arguments if isinstance(value, tuple)]
    return _pair(pairs[0]), _pair(pairs[1])


def _pair(value: Any) -> tuple[int, int]:
    return int(value[0]), int(value[-1])

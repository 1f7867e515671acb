"""Layouts follow MLX's views: compared with what NumPy sees of MLX's own arrays.

mx.reshape itself leaves out axes of size 1, by another operation, so only axes of more are joined here.
"""

from __future__ import annotations

from math import prod

from hypothesis import given
from hypothesis import strategies as st

from pg_mlx.ops.device import mx
from tools.metal.layout import Layout


@given(st.data())
def test_views_have_mlx_s_strides(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    array = mx.arange(prod(shape), dtype=mx.int32).reshape(shape)
    layout = Layout.new(shape, "int32")
    mx.eval(array)
    for _ in range(data.draw(st.integers(1, 4))):
        kind = data.draw(st.sampled_from(("transpose", "slice", "expand", "squeeze", "broadcast", "reshape")))
        axes = range(len(array.shape))
        if kind == "transpose":
            order = data.draw(st.permutations(axes))
            array, layout = array.transpose(order), layout.transposed(order)
        elif kind == "slice":
            start = tuple(data.draw(st.integers(0, size - 1)) for size in array.shape)
            array = array[tuple(slice(first, None) for first in start)]
            layout = layout.sliced(start, array.shape, (1,) * len(start))
        elif kind == "expand" and len(axes) < 5:
            axis = data.draw(st.integers(0, len(axes)))
            array, layout = mx.expand_dims(array, axis), layout.expanded([axis])
        elif kind == "squeeze" and 1 in array.shape and len(axes) > 1:
            axis = array.shape.index(1)
            array, layout = mx.squeeze(array, axis), layout.squeezed([axis])
        elif kind == "broadcast":
            wanted = tuple(3 if size == 1 else size for size in array.shape)
            array, layout = mx.broadcast_to(array, wanted), layout.broadcast(wanted)
        elif kind == "reshape" and len(axes) > 1 and min(array.shape[:2]) > 1:
            wanted = (prod(array.shape[:2]), *array.shape[2:])
            view = layout.reshaped(wanted)
            array = array.reshape(wanted)
            layout = view or Layout.new(wanted, "int32")
    mx.eval(array)
    seen = memoryview(array)
    steps = [(size, step * 4) for size, step in zip(layout.shape, layout.strides, strict=True) if size > 1]
    assert list(seen.shape) == list(layout.shape)
    assert [(size, step) for size, step in zip(seen.shape, seen.strides, strict=True) if size > 1] == steps

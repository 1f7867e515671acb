"""Counting in MLX's graphs: the kernels that computing an array starts, and the bytes that operations move. Nothing is
run, so any machine can count.

Kernels: one for each operation that is left after mx.compile has fused what it can. Bytes: what these operations read
and write. Views (reshape, transpose, slice and so on) count as neither, and a broadcast input is read once. Without a
GPU, MLX would build norms, rope, attention and dequantize from parts; they are counted as on a GPU. This module
knows MLX only, so other programs can be counted too.
"""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

VIEWS = {
    *("AsStrided", "Broadcast", "BroadcastAxes", "ExpandDims", "Flatten", "Reshape", "Slice", "Split", "Squeeze"),
    *("Transpose", "Unflatten", "View"),
}

SINGLE = [
    *((mx.fast, name) for name in ("rms_norm", "layer_norm", "rope", "scaled_dot_product_attention")),
    (mx, "dequantize"),
]
"""Functions that are one operation on a GPU."""

Shaped = tuple[str, tuple[int, ...], mx.Dtype]
"""Name, shape and dtype of an array in an exported graph."""


def kernels(*outputs: mx.array) -> Counter[str]:
    """The operations that computing these arrays takes, by name, views left out."""
    return Counter(name for name in _operations(*outputs) if name not in VIEWS)


def views(*outputs: mx.array) -> Counter[str]:
    """The views that `kernels` leaves out."""
    return Counter(name for name in _operations(*outputs) if name in VIEWS)


def _operations(*outputs: mx.array) -> list[str]:
    text = io.StringIO()
    mx.export_to_dot(text, *outputs)
    names = re.findall(r'\[label ="([^"]*)", shape=rectangle\]', text.getvalue())
    return ["Single" if name == "Depends" else name for name in names]


def moved_bytes(function: Callable[..., list[mx.array]], *arrays: mx.array) -> int:
    """Bytes that function(*arrays) reads and writes. mx.compile has no effect on the graph that is counted."""
    operations: list[dict[str, Any]] = []
    mx.export_function(operations.append, function, *arrays)
    sizes: dict[str, int] = {}
    return sum(_moved(operation, sizes) for operation in operations if operation["type"] == "primitive")


def _moved(operation: dict[str, Any], sizes: dict[str, int]) -> int:
    """Bytes that one operation moves. sizes: of views found so far; a view has at most the bytes of what it shows."""

    def size(array: Shaped) -> int:
        name, shape, dtype = array
        return sizes.get(name, math.prod(shape) * dtype.size)

    name, inputs, outputs = operation["name"], operation["inputs"], operation["outputs"]
    if name in VIEWS:
        sizes.update({output[0]: min(size(inputs[0]), size(output)) for output in outputs})
        return 0
    if name == "Gather":  # reads the rows that it writes
        return 2 * sum(map(size, outputs))
    if name in ("SliceUpdate", "Scatter"):  # in place: reads and writes the update alone
        return 2 * size(inputs[-1])
    if name == "Depends":  # a stand-in, whose first inputs are its outputs
        inputs = inputs[len(outputs) :]
    return sum(map(size, inputs)) + sum(map(size, outputs))


@contextmanager
def single_operations(*more: tuple[Any, str]) -> Iterator[None]:
    """Within, each function of SINGLE, and each one given as (owner, name), is one operation. Graphs built within
    cannot be run."""
    originals = [(owner, name, getattr(owner, name)) for owner, name in (*SINGLE, *more)]
    try:
        for owner, name, original in originals:
            setattr(owner, name, (_dequantize if name == "dequantize" else _single)(original))
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


def _single(function: Callable[..., Any]) -> Callable[..., Any]:
    """A stand-in for one operation: a node of the graph that has its inputs, and its outputs' shapes and dtypes."""

    def stand_in(*arguments: Any, **options: Any) -> Any:
        returned = function(*arguments, **options)
        outputs = returned if isinstance(returned, (list, tuple)) else [returned]
        inputs = [value for value in (*arguments, *options.values()) if isinstance(value, mx.array)]
        results = _operation(inputs, [(output.shape, output.dtype) for output in outputs])
        return results if isinstance(returned, (list, tuple)) else results[0]

    return stand_in


def _dequantize(function: Callable[..., Any]) -> Callable[..., Any]:
    """A stand-in for mx.dequantize: with biases it computes in their dtype, and a result in another one is cast."""
    one = _single(function)

    def stand_in(
        weight: mx.array, scales: mx.array, biases: mx.array | None = None, *given: Any, **options: Any
    ) -> Any:
        if biases is None:
            return one(weight, scales, biases, *given, **options)
        dtype = options.pop("dtype", None)
        result = one(weight, scales, biases, *given, **options)
        return result if dtype is None else result.astype(dtype)

    return stand_in


def one_kernel(
    kernel: Any, inputs: Sequence[Any], *, shapes: Sequence[Any], dtypes: Sequence[mx.Dtype], **grid: Any
) -> list[mx.array]:
    """A stand-in for `metal_kernels.launch`, which needs a Mac."""
    arrays = [value for value in inputs if isinstance(value, mx.array)]
    return _operation(arrays, list(zip(shapes, dtypes, strict=True)))


def _operation(inputs: list[mx.array], outputs: list[tuple[Any, mx.Dtype]]) -> list[mx.array]:
    """A node of the graph with these inputs, and outputs of these shapes and dtypes."""
    empty = [mx.zeros(shape, dtype) for shape, dtype in outputs]
    mx.eval(empty)  # or they would be operations of their own
    return mx.depends(empty, inputs)

"""What a decode step does: the kernels it starts and the bytes it moves, counted in its graph. Nothing is run, so any
machine will do.

Kernels: one for each operation that remains when mx.compile has fused what it can. Bytes: what those read and write.
Views (reshape, transpose, slice and so on) are neither. Off the GPU, MLX would build rms_norm, rope, attention and
dequantize from parts, and this program would not compile; all are counted as they are on one.
"""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pg_mlx  # noqa: F401 - before mlx.core

import mlx.core as mx  # isort: skip

from mlx.utils import tree_flatten

from pg_mlx import PaliGemma, backend, gemma
from pg_mlx.cache import KVCache

VIEWS = {
    *("AsStrided", "Broadcast", "BroadcastAxes", "ExpandDims", "Flatten", "Reshape", "Slice", "Split", "Squeeze"),
    *("Transpose", "Unflatten", "View"),
}

SINGLE = [
    *((mx.fast, name) for name in ("rms_norm", "rope", "scaled_dot_product_attention")),
    (mx, "dequantize"),
]
"""Functions that are one operation on a GPU."""

FUSED = [(gemma, name) for name in ("_add", "_add_weighted", "cap_logits", "cap_scores", "geglu")]
"""Functions that mx.compile makes one operation, as counting kernels shows. An exported graph has them in parts."""

Shaped = tuple[str, tuple[int, ...], mx.Dtype]
"""Name, shape and dtype of an array in an exported graph."""


def decode_kernels(model: PaliGemma, lengths: Sequence[int] = (5,)) -> Counter[str]:
    """The kernels of one step of rows with prompts of these lengths, by the names of their operations."""
    with graph_of_a_gpu():
        return kernels(*_step(model, lengths))


def kernels_per_layer(build: Callable[[int], PaliGemma], lengths: Sequence[int] = (5,)) -> Counter[str]:
    """The kernels that one more layer adds; `build` makes a model of a number of layers."""
    return decode_kernels(build(3), lengths) - decode_kernels(build(2), lengths)


def kernels(*outputs: mx.array) -> Counter[str]:
    """The operations that computing these arrays takes."""
    text = io.StringIO()
    mx.export_to_dot(text, *outputs)
    names = re.findall(r'\[label ="([^"]*)", shape=rectangle\]', text.getvalue())
    return Counter("Single" if name == "Depends" else name for name in names if name not in VIEWS)


def decode_bytes(model: PaliGemma, lengths: Sequence[int] = (5,)) -> int:
    """Bytes that one step reads and writes."""
    cache = _prefilled(model, lengths)
    operations: list[dict[str, Any]] = []

    def step(tokens: mx.array, *layers: mx.array) -> list[mx.array]:
        logits, after = model.step(tokens, KVCache(layers, cache.lengths))
        return [logits, *after.layers]

    with graph_of_a_gpu(*FUSED):
        mx.export_function(operations.append, step, _tokens(len(lengths)), *cache.layers)
    return sum(_moved(operation) for operation in operations if operation["type"] == "primitive")


def least_decode_bytes(model: PaliGemma, lengths: Sequence[int] = (5,)) -> int:
    """Bytes that no step can do without: the decoder's weights as they are stored, the head among them, and the keys
    and values in use."""
    weights = sum(array.nbytes for array in dict(tree_flatten(model.language_model.parameters())).values())
    text = model.config.text
    a_token = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * model.dtype.size
    return weights + a_token * sum(_prefilled(model, lengths).lengths)


def _moved(operation: dict[str, Any]) -> int:
    name, inputs, outputs = operation["name"], operation["inputs"], operation["outputs"]
    if name in VIEWS:
        return 0
    if name == "Gather":  # reads the rows that it writes
        return 2 * sum(map(_size, outputs))
    if name in ("SliceUpdate", "Scatter"):  # in place: reads and writes the update alone
        return 2 * _size(inputs[-1])
    if name == "Depends":  # a stand-in, whose first inputs are its outputs
        inputs = inputs[len(outputs) :]
    return sum(map(_size, inputs)) + sum(map(_size, outputs))


def _size(array: Shaped) -> int:
    _, shape, dtype = array
    return math.prod(shape) * dtype.size


def _step(model: PaliGemma, lengths: Sequence[int]) -> list[mx.array]:
    logits, cache = model.step(_tokens(len(lengths)), _prefilled(model, lengths))
    return [logits, *cache.layers]


def _tokens(count: int) -> mx.array:
    tokens = mx.ones((count,), dtype=mx.int32)
    mx.eval(tokens)
    return tokens


def _prefilled(model: PaliGemma, lengths: Sequence[int]) -> KVCache:
    """A cache as prefill would leave it. Its contents are of no interest."""
    text = model.config.text
    used = tuple(model.config.vision.num_patches + length for length in lengths)
    shape = (2, len(lengths), text.num_key_value_heads, max(used) + 1, text.head_dim)
    layers = tuple(mx.zeros(shape, model.dtype) for _ in range(text.num_hidden_layers))
    mx.eval(layers)
    return KVCache(layers, used)


@contextmanager
def graph_of_a_gpu(*single: tuple[Any, str]) -> Iterator[None]:
    """Within, graphs are built as on a GPU, and can only be looked at. Functions given as (where, name) are one
    operation as well."""
    on_gpu = backend.on_gpu
    originals = [(owner, name, getattr(owner, name)) for owner, name in (*SINGLE, *single)]
    try:
        backend.on_gpu = lambda: True
        for owner, name, original in originals:
            setattr(owner, name, _single(original))
        yield
    finally:
        backend.on_gpu = on_gpu
        for owner, name, original in originals:
            setattr(owner, name, original)


def _single(function: Callable[..., Any]) -> Callable[..., Any]:
    """A stand-in for one operation: a node of the graph that has its inputs, and its outputs' shapes and dtypes."""

    def stand_in(*arguments: Any, **options: Any) -> Any:
        returned = function(*arguments, **options)
        outputs = returned if isinstance(returned, (list, tuple)) else [returned]
        empty = [mx.zeros(output.shape, output.dtype) for output in outputs]
        mx.eval(empty)  # or they would be operations of their own
        inputs = [value for value in (*arguments, *options.values()) if isinstance(value, mx.array)]
        results = mx.depends(empty, inputs)
        return results if isinstance(returned, (list, tuple)) else results[0]

    return stand_in

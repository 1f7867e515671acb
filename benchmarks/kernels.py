"""How many kernels a decode step starts, counted in its graph. Nothing is run, so any machine will do.

    python benchmarks/kernels.py

The rule: one for each operation that remains when mx.compile has fused what it can, views (reshape, transpose, slice
and so on) left out. Off the GPU, MLX would build rms_norm, rope and attention from parts, and this
program would not compile; both are counted as they are on one.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pg_mlx  # noqa: F401 - before mlx.core
import mlx.core as mx  # isort: skip

from pg_mlx import PaliGemma, backend

VIEWS = {
    *("AsStrided", "Broadcast", "BroadcastAxes", "ExpandDims", "Flatten", "Reshape", "Slice", "Split", "Squeeze"),
    *("Transpose", "Unflatten", "View"),
}

FAST = ("rms_norm", "rope", "scaled_dot_product_attention")


def kernels(*outputs: mx.array) -> Counter[str]:
    """The operations that computing these arrays takes, by name."""
    text = io.StringIO()
    mx.export_to_dot(text, *outputs)
    names = re.findall(r'\[label ="([^"]*)", shape=rectangle\]', text.getvalue())
    return Counter("Fast" if name == "Depends" else name for name in names if name not in VIEWS)


@contextmanager
def graph_of_a_gpu() -> Iterator[None]:
    """Within, graphs are built as on a GPU; where there is none they cannot be evaluated."""
    if backend.on_gpu():
        yield
        return
    originals = {name: getattr(mx.fast, name) for name in FAST}
    on_gpu = backend.on_gpu
    try:
        backend.on_gpu = lambda: True
        for name, original in originals.items():
            setattr(mx.fast, name, _one_operation(original))
        yield
    finally:
        backend.on_gpu = on_gpu
        for name, original in originals.items():
            setattr(mx.fast, name, original)


def _one_operation(function: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """A stand-in for an operation of mx.fast: one node of the graph that has its inputs, and its shape and dtype."""

    def stand_in(*arguments: Any, **options: Any) -> mx.array:
        shape_and_dtype = function(*arguments, **options)
        result = mx.zeros(shape_and_dtype.shape, shape_and_dtype.dtype)
        mx.eval(result)
        inputs = [value for value in (*arguments, *options.values()) if isinstance(value, mx.array)]
        return mx.depends([result], inputs)[0]

    return stand_in


def decode_step(model: PaliGemma, lengths: Sequence[int] = (5,), appended: int = 1) -> Counter[str]:
    """The kernels of one step of rows with prompts of these lengths."""
    ids = mx.ones((len(lengths), max(lengths)), dtype=mx.int32)
    side = model.config.vision.image_size
    features = model.encode_image(mx.zeros((len(lengths), side, side, 3)))
    _, cache = model.prefill(features, ids, capacity=features.shape[1] + 20, prefix_lengths=list(lengths))
    mx.eval(cache.layers)
    with graph_of_a_gpu():
        tokens = mx.ones((len(lengths), appended), dtype=mx.int32)
        mx.eval(tokens)
        logits, cache = model.extend(tokens, cache)
        return kernels(logits, *cache.layers)


def per_layer(build: Callable[[int], PaliGemma], **step: Any) -> Counter[str]:
    """The kernels that one more layer adds; `build` makes a model of a number of layers."""
    return decode_step(build(3), **step) - decode_step(build(2), **step)

"""Parts about single operations: what kernels and command buffers cost, and whether two doubtful results are right."""

from __future__ import annotations

import time

import mlx.core as mx
import numpy as np

from ...ops.attention import cap_scores, capped
from ..experiments import Sizes, forced_attention, odd_width, rates
from ..kernels import relative_error
from .context import Context, Found, need_metal
from .timing import chained, compare, timed


def overheads(context: Context) -> Found:
    """What one more small kernel, one more command buffer, and waiting for the GPU take. Slopes of a chain of
    additions, each of which needs the one before it."""
    start = mx.zeros((2048,), context.dtype)
    mx.eval(start)
    long = context.shapes.chain
    pieces = max(2, long // 20)

    def chain(kernels: int, buffers: int = 1) -> float:
        began = time.perf_counter()
        x = start
        for index in range(1, kernels + 1):
            x = x + 1
            if buffers > 1 and index % (kernels // buffers) == 0:
                mx.async_eval(x)
        mx.eval(x)
        return time.perf_counter() - began

    budget = context.budget(10)
    times = compare(
        {"half": lambda: chain(long // 2), "whole": lambda: chain(long), "cut": lambda: chain(long, pieces)}, budget
    )
    wait = compare({"wait": timed(lambda: start + 1)}, context.budget(2))["wait"].seconds
    kernel = (times["whole"].seconds - times["half"].seconds) / (long - long // 2)
    boundary = (times["cut"].seconds - times["whole"].seconds) / pieces
    said = (
        f"One more small kernel takes {kernel * 1e6:.2f} µs, one more command buffer {boundary * 1e6:.1f} µs, and "
        f"waiting for one kernel {wait * 1e6:.0f} µs."
    )
    figures = {"kernel_s": kernel, "boundary_s": boundary, "wait_s": wait}
    return Found(said, figures | {name: timing.figures() for name, timing in times.items()})


def exact_float32(context: Context) -> Found:
    """Whether float32 products keep 23 bits of mantissa, or 10 as in TF32."""
    random = np.random.default_rng(0)
    a, b = (random.normal(size=(512, 512)).astype(np.float32) for _ in range(2))
    error = relative_error(mx.array(a) @ mx.array(b), (a.astype(np.float64) @ b).astype(np.float32))
    how = "all their bits" if error < 1e-5 else "the bits of TF32" if error < 2e-3 else "too few bits"
    return Found(f"float32 products keep {how}: the error is {error:.1e}.", {"error": error}, error < 2e-3)


def layer_norm(context: Context) -> Found:
    """MLX's LayerNorm at the tower's width, where its kernel writes outside its own array, many times over."""
    random = np.random.default_rng(0)
    values = random.normal(size=(1024, 1152)).astype(np.float32)
    x, weight, bias = mx.array(values), mx.ones((1152,)), mx.zeros((1152,))
    expected = (values - values.mean(-1, keepdims=True)) / np.sqrt(values.var(-1, keepdims=True) + 1e-6)
    first = mx.fast.layer_norm(x, weight, bias, 1e-6)
    error = relative_error(first, expected)
    runs = max(3, round(200 * context.pace))
    same = sum(bool(mx.array_equal(first, mx.fast.layer_norm(x, weight, bias, 1e-6)).item()) for _ in range(runs))
    said = f"The error is {error:.1e}, and {same} of {runs} repetitions are equal bit by bit."
    return Found(said, {"error": error, "repetitions": runs, "equal": same}, error < 1e-3 and same == runs)


def vectors(context: Context) -> Found:
    """Gemma 2's attention of a step: two query heads that share a head of keys as two vectors, or as two rows."""
    text = context.shapes.text["gemma2"]
    heads, kv_heads, width = (text[name] for name in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    scale, cap = width**-0.5, 50.0
    figures, said = {}, []
    for keys in context.shapes.keys:
        query, key, value = (
            mx.random.normal((1, count, length, width)).astype(context.dtype)
            for count, length in ((heads, 1), (kv_heads, keys), (kv_heads, keys))
        )
        grouped = query.reshape(1, kv_heads, -1, width)
        mx.eval(grouped, key, value)

        def as_rows(q: mx.array, k: mx.array = key, v: mx.array = value) -> mx.array:
            return mx.softmax(cap_scores(q @ k.swapaxes(-1, -2), cap, scale), axis=-1, precise=True) @ v

        def as_vectors(q: mx.array, k: mx.array = key, v: mx.array = value) -> mx.array:
            return capped(q, k, v, None, scale, cap)

        found = compare(
            {"rows": chained(as_rows, grouped, 26), "vectors": chained(as_vectors, query, 26)}, context.budget(3)
        )
        figures[str(keys)] = {name: timing.figures() for name, timing in found.items()}
        said.append(f"{found['vectors'].ratio:.2f} at {keys} keys")
    return Found(f"Vectors take this part of the time of rows: {', '.join(said)}.", figures)


def _sizes(context: Context) -> Sizes:
    """The shapes of an experiment of `bench`."""
    text, shapes = context.shapes.text["gemma"], context.shapes
    head = (text["num_attention_heads"], text["head_dim"])
    outputs, square = shapes.matrix[0] // 2, 2 * shapes.matrix[1]
    return Sizes(shapes.keys, shapes.matrix, outputs, head, square)


def one_kernel(context: Context) -> Found:
    """Attention over a whole prefix, forced into one kernel."""
    need_metal()
    return Found(*forced_attention(context.model("gemma"), _sizes(context)))


def width_2304(context: Context) -> Found:
    """Packed vectors of PaliGemma 2's width."""
    return Found(*odd_width(context.dtype, _sizes(context)))


def multiplying(context: Context) -> Found:
    """The rate of square products in three dtypes."""
    return Found(*rates(_sizes(context)))

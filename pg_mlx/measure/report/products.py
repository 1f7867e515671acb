"""Parts about matrix products: when to unpack, and whether the largest matrices of all models are read right."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from ...memory.size import format_size
from ...quantization import Packed, Quantization
from ..kernels import BOUNDS, relative_error
from .context import Context, Found, NotHereError
from .timing import compare, timed


def unpacking(context: Context) -> Found:
    """A product by packed weights as they are, or unpacked first, for several packings and numbers of rows."""
    outputs, columns = context.shapes.matrix
    packings = (4, 6, 8) if context.full else (4,)
    cases = len(packings) * len(context.shapes.unpack_rows)
    figures: dict[str, Any] = {}
    said = []
    for bits in packings:
        quantization = Quantization(bits, 64)
        arrays = quantization.pack(mx.random.normal((outputs, columns)).astype(context.dtype))
        packed = Packed(quantization, arrays["weight"], arrays["scales"], arrays["biases"])
        mx.eval(*arrays.values())
        found = {}
        for rows in context.shapes.unpack_rows:
            x = mx.random.normal((rows, columns)).astype(context.dtype)
            mx.eval(x)

            def as_stored(x: mx.array = x, packed: Packed = packed) -> mx.array:
                return packed.matmul(x)

            def unpacked(x: mx.array = x, packed: Packed = packed) -> mx.array:
                return x @ packed.dequantize(x.dtype).T

            budget = context.budget(36) / cases
            found[rows] = compare({"packed": timed(as_stored), "unpacked": timed(unpacked)}, budget)["unpacked"]
        least = from_rows({rows: timing.ratio for rows, timing in found.items()})
        figures[f"{bits}_bits"] = {
            "from_rows": least,
            "unpacked": {str(rows): timing.figures() for rows, timing in found.items()},
        }
        said.append(f"{bits} bits: {f'from {least} rows on' if least else 'never'}")
    return Found(f"Unpacking first is faster with {'; '.join(said)}.", figures)


def from_rows(ratios: dict[int, float]) -> int | None:
    """The least number of rows from which on unpacking is always faster; None if it is not at the largest."""
    least = None
    for rows in sorted(ratios, reverse=True):
        if ratios[rows] >= 1:
            break
        least = rows
    return least


def largest(context: Context) -> Found:
    """One vector times the largest matrices of all published models in 16 bits: slices of the result are compared with
    products of slices, and the bytes read in a second are counted."""
    limit = mx.device_info().get("max_recommended_working_set_size") or 8 << 30
    figures: dict[str, Any] = {}
    said, worst = [], 0.0
    for outputs, columns in context.shapes.largest:
        size = outputs * columns * context.dtype.size
        if size > int(limit) // 3:
            said.append(f"{format_size(size)}: left out, too large for this memory")
            continue
        step = max(1, outputs // 16)
        counts = [min(step, outputs - first) for first in range(0, outputs, step)]
        parts = [mx.random.normal((count, columns)).astype(context.dtype) for count in counts]
        mx.eval(parts)
        matrix, x = mx.concatenate(parts), mx.random.normal((1, columns)).astype(context.dtype)
        mx.eval(matrix, x)
        del parts
        y = x @ matrix.T
        errors = []
        for first in (0, outputs // 2, outputs - 64):
            part = mx.array(matrix[first : first + 64])
            errors.append(relative_error(y[:, first : first + 64], x.astype(mx.float32) @ part.astype(mx.float32).T))
        found = compare({"once": timed(lambda x=x, matrix=matrix: x @ matrix.T)}, context.budget(3))["once"]  # type: ignore[misc]
        worst = max(worst, *errors)
        speed = size / found.seconds
        figures[f"{outputs}x{columns}"] = {"bytes": size, "errors": errors, "bytes_per_second": speed}
        said.append(f"{format_size(size)}: {speed / 1e9:.0f} GB/s, error {max(errors):.1e}")
        del matrix, y
        mx.clear_cache()
    if not figures:
        raise NotHereError("the memory of this machine is too small for any of them")
    return Found(f"{'; '.join(said)}.", figures, worst <= BOUNDS[context.dtype])

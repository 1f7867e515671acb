"""Norms, softmax, rope, argmax and copies against their formulas in NumPy."""

from __future__ import annotations

import numpy as np

from ..bits import Array, rounded, to_bfloat16
from ..grid import Size
from ..layout import Layout, collapse, dense
from ..library import Library
from .base import Result, Run, compare, floats, some


def _rows(run: Run) -> tuple[list[int], Array, Array]:
    """Some rows, and all rows of input and output as the kernel counts them."""
    layout = run.route.operation.inputs[0]
    width = layout.shape[-1]
    chosen = some(layout.size // width, run.rng, 4)
    start = layout.offset
    return chosen, run.buffers[0][start : start + layout.size].reshape(-1, width), run.results[0].reshape(-1, width)


def rms_norm(run: Run, library: Library) -> Result:
    """x / rms(x) * weight."""
    chosen, x, out = _rows(run)
    for row in chosen:
        run.put(x[row], run.normal(x[row].shape, 30))
    weight: Array = np.ones(1, np.float32)
    if len(run.route.operation.inputs) > 1:
        run.put(run.input(1), run.rng.uniform(0.2, 8, (x.shape[-1],)))
        weight = floats(run.input(1))
    faults = run.start(library, run.route.dispatches[0], [(row, 0, 0) for row in chosen])
    values = floats(x[chosen]).astype(np.float64)
    eps = run.route.operation.arguments[-1]
    wanted: Array = values / np.sqrt((values**2).mean(axis=-1, keepdims=True) + eps) * weight
    exact = x.dtype == np.uint16
    return compare(
        out[chosen], rounded(wanted.astype(np.float32)) if exact else wanted, 4e-3 if exact else 1e-6, faults
    )


def layer_norm(run: Run, library: Library) -> Result:
    """(x - mean) / deviation * weight + bias."""
    chosen, x, out = _rows(run)
    for row in chosen:
        run.put(x[row], run.normal(x[row].shape, 3) + 1)
    run.put(run.input(1), run.normal((x.shape[-1],)))
    run.put(run.input(2), run.normal((x.shape[-1],)))
    faults = run.start(library, run.route.dispatches[0], [(row, 0, 0) for row in chosen])
    values = floats(x[chosen]).astype(np.float64)
    centred = values - values.mean(axis=-1, keepdims=True)
    eps = run.route.operation.arguments[-1]
    wanted = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps)
    return compare(out[chosen], wanted * floats(run.input(1)) + floats(run.input(2)), 1e-5, faults)


def softmax(run: Run, library: Library) -> Result:
    """exp(x) over its sum, with some scores masked."""
    chosen, x, out = _rows(run)
    for row in chosen:
        run.put(x[row], run.normal(x[row].shape, 5))
        run.put(x[row, -3:], np.full(3, -3e38, np.float32))
    faults = run.start(library, run.route.dispatches[0], [(row, 0, 0) for row in chosen])
    values = floats(x[chosen]).astype(np.float64)
    weights = np.exp(values - values.max(axis=-1, keepdims=True))
    return compare(out[chosen], weights / weights.sum(axis=-1, keepdims=True), 1e-2, faults)


def rope(run: Run, library: Library) -> Result:
    """Rotation of halves: by true positions, and by zero, which must change no bit."""
    operation, dispatch = run.route.operation, run.route.dispatches[0]
    x, out = run.input(0), run.output()
    batch, _, length, width = x.shape
    rows = some(batch, run.rng, 24)
    for b in rows:
        run.put(x[b], run.normal(x[b].shape))
    numbers = [value for value in operation.arguments if value is not None and not isinstance(value, bool)]
    base = float(numbers[1])
    offsets = np.zeros(batch, np.int64)
    if len(operation.inputs) > 1:
        given = run.input(1)
        given[...] = run.rng.integers(0, 4200, given.shape)
        given.reshape(-1)[-1:] = 0
        offsets = np.broadcast_to(given.reshape(-1), (batch,)).astype(np.int64)
    elif len(numbers) > 3:
        offsets += int(numbers[3])
    z = set()
    deep = dispatch.threadgroup[2]
    per_row = dispatch.threads[2] // batch
    for b in rows:
        z |= {at // deep for at in range(b * per_row, (b + 1) * per_row)}
    ys = some(dispatch.groups[1], run.rng, 3)
    groups: list[Size] | None = [(gx, gy, gz) for gx in range(dispatch.groups[0]) for gy in ys for gz in sorted(z)]
    if "single" in dispatch.kernel:
        groups, ys = None, [0]
    faults = run.start(library, dispatch, groups)
    high = dispatch.threadgroup[1] if "single" not in dispatch.kernel else 1
    tokens = sorted({t for y in ys for t in range(y * high, min((y + 1) * high, length))})
    angles = (offsets[rows, None, None, None] + np.array(tokens)[:, None]) * base ** (
        -np.arange(width // 2) / (width / 2)
    )
    values = floats(x[rows][:, :, tokens]).astype(np.float64)
    left, right = values[..., : width // 2], values[..., width // 2 :]
    cos, sin = np.cos(angles), np.sin(angles)
    wanted = np.concatenate([left * cos - right * sin, left * sin + right * cos], axis=-1)
    return compare(out[rows][:, :, tokens], wanted, 1e-2, faults)


def argmax(run: Run, library: Library) -> Result:
    """The first of equal largest values."""
    logits = run.input(0)
    run.put(logits, run.normal(logits.shape))
    width = logits.shape[-1]
    for row in logits.reshape(-1, width) if logits.flags.c_contiguous else logits:
        run.put(row[[width // 3, width // 2, width - 1]], np.zeros(()))
        row[[width // 3, width // 2, width - 1]] = row.dtype.type(9.5) if row.dtype != np.uint16 else 0x4118
    faults = run.start(library, run.route.dispatches[0])
    wanted = np.full(run.results[0].shape, width // 3)
    return compare(run.results[0].astype(np.float64), wanted, 0, faults)


def copy(run: Run, library: Library) -> Result:
    """A cast, or a copy along strides: bit for bit."""
    layout, dispatch, out = run.route.operation.inputs[0], run.route.dispatches[0], run.results[0]
    groups = _spread(dispatch.groups, run.rng)
    along = dispatch.kernel.startswith("g")
    shape, (steps, _) = (
        collapse(layout.shape, [layout.strides, dense(layout.shape)]) if along else ((layout.size,), [(1,), ()])
    )
    rows = shape[-2] if len(shape) > 1 else 1
    each = -(-shape[-1] // dispatch.threads[0])
    spans = [
        [
            slice(g * t * e, min((g + 1) * t * e, most))
            for g, t, e, most in zip(group, dispatch.threadgroup, (each, 1, 1), (shape[-1], rows, 1 << 62), strict=True)
        ]
        for group in groups
    ]
    numbers = []
    for x, y, z in spans:
        z = slice(z.start, min(z.stop, out.size // (shape[-1] * rows)))
        zs, ys, xs = np.ix_(*(np.arange(part.start, part.stop) for part in (z, y, x)))
        numbers.append(((zs * rows + ys) * shape[-1] + xs).ravel())
    written = np.unique(np.concatenate(numbers))
    places = layout.offset + sum(at * step for at, step in zip(np.unravel_index(written, shape), steps, strict=True))
    run.buffers[0][places] = 0
    values = run.normal(written.shape)
    run.buffers[0][places] = to_bfloat16(values) if run.buffers[0].dtype == np.uint16 else values
    faults = run.start(library, dispatch, groups)
    wanted = floats(run.buffers[0][places])
    return compare(out[written], rounded(wanted) if out.dtype == np.uint16 else wanted, 0, faults)


def slice_update(run: Run, library: Library) -> Result:
    """The part is written, and nothing else changes."""
    operation, dispatch = run.route.operation, run.route.dispatches[0]
    whole, part = operation.inputs
    run.put(run.input(1), run.normal(part.shape))
    before = np.array(run.results[0])
    faults = run.start(library, dispatch)
    start, _, steps = operation.arguments[-3:]
    target = Layout(whole.shape, whole.dtype, whole.strides, 0, whole.size).sliced(start, part.shape, steps)
    from .base import strided

    got = np.array(strided(run.results[0], target))
    after = np.array(run.results[0])
    strided(after, target)[...] = strided(before, target)
    same = np.array_equal(after, before)
    result = compare(got, floats(run.input(1)), 0, faults)
    return result if same else Result(float("inf"), 0, result.values, result.faults)


def _spread(groups: tuple[int, int, int], rng: np.random.Generator) -> list[tuple[int, int, int]]:
    x, y, z = (some(count, rng, 3) for count in groups)
    return [(a, b, c) for a in x for b in y for c in z]

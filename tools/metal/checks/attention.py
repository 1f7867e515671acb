"""Attention against softmax(q @ k.T * scale) @ v in NumPy."""

from __future__ import annotations

import numpy as np

from ..bits import Array
from ..grid import Size
from ..library import Library
from .base import Result, Run, compare, floats, some

BOUND = 1e-2


def check(run: Run, library: Library) -> Result:
    """Some heads of the first and the last row; of many queries the first and the last tile."""
    operation, first = run.route.operation, run.route.dispatches[0]
    query, key = operation.inputs[:2]
    batch, heads, queries, _ = query.shape
    group = heads // key.shape[1]
    tiled = queries > 8
    scale = float(next(value for value in operation.arguments if isinstance(value, float)))
    pairs = sorted({(b, h) for b in some(batch, run.rng, 2) for h in some(heads, run.rng, 2)})
    tiles = some(-(-queries // 32), run.rng, 2) if tiled else [0]
    two = len(run.route.dispatches) > 1
    if two:
        pairs = sorted({(b, h // group * group + i) for b, h in pairs for i in range(group)})
    for b, h in pairs:
        run.put(run.input(0)[b, h], run.normal(run.input(0)[b, h].shape, 2))
    for b, h in sorted({(b, h // group) for b, h in pairs}):
        for number in (1, 2):
            run.put(run.input(number)[b, h], run.normal(run.input(number)[b, h].shape))
    if len(operation.inputs) > 3:
        _mask(run)
    groups: list[Size] = [(b * heads + h, at, 0) for b, h in pairs for at in range(queries)]
    if tiled:
        groups = [(tile, h, b) for b, h in pairs for tile in tiles]
    if two:
        ones = sorted({(h // group, b) for b, h in pairs})
        faults = run.start(library, first, [(*one, block) for one in ones for block in range(first.groups[2])])
        faults += run.start(library, run.route.dispatches[1], groups)
    else:
        faults = run.start(library, first, groups)
    got, wanted = [], []
    for b, h in pairs:
        for tile in tiles:
            part = slice(tile * 32, min((tile + 1) * 32, queries)) if tiled else slice(None)
            got.append(np.array(run.output()[b, h, part]).ravel())
            wanted.append(_reference(run, b, h, h // group, part, scale).ravel())
    return compare(np.concatenate(got), np.concatenate(wanted), BOUND, faults)


def _mask(run: Run) -> None:
    """True for the first keys of each row: two thirds or more, so that every query sees some."""
    mask = run.input(3)
    keys = mask.shape[-1]
    for b in range(mask.shape[0]):
        for at in range(mask.shape[2]):
            mask[b, :, at] = np.arange(keys) < keys - (3 * b + 5 * (mask.shape[2] - 1 - at)) % (keys // 3)


def _reference(run: Run, b: int, h: int, kv: int, part: slice, scale: float) -> Array:
    query = floats(run.input(0)[b, h, part]).astype(np.float64)
    scores = query @ floats(run.input(1)[b, kv]).T * scale
    if len(run.route.operation.inputs) > 3:
        scores = np.where(run.input(3)[b, h, part], scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return (weights / weights.sum(axis=-1, keepdims=True)) @ floats(run.input(2)[b, kv])

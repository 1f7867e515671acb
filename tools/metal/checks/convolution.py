"""Convolutions against sums over patches in NumPy."""

from __future__ import annotations

import numpy as np

from ..grid import Size
from ..library import Library
from ..routes.convolution import settings
from .base import Result, Run, compare, some


def check(run: Run, library: Library) -> Result:
    """Some tiles: neighbouring pixels, row by row, and neighbouring outputs."""
    operation, (dispatch,) = run.route.operation, run.route.dispatches
    x, weight = run.input(0), run.input(1)
    outputs, tall, wide, channels = weight.shape
    run.put(x, run.normal(x.shape))
    run.put(weight, run.normal(weight.shape, 1 / np.sqrt(tall * wide * channels)))
    parts = {p[:2]: int(p[2:]) for p in dispatch.kernel.split("_") if p[:2] in ("bm", "bn")}
    groups: list[Size] = [
        (i, j, 0) for i in some(dispatch.groups[0], run.rng, 2) for j in some(dispatch.groups[1], run.rng, 3)
    ]
    faults = run.start(library, dispatch, groups)
    strides, padding = settings(operation)
    padded = np.pad(x, ((0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0))).astype(np.float64)
    out = run.output()
    pixels = out.reshape(-1, outputs)
    got, wanted = [], []
    for i, j, _ in groups:
        rows = np.arange(j * parts["bm"], min((j + 1) * parts["bm"], len(pixels)))
        columns = slice(i * parts["bn"], (i + 1) * parts["bn"])
        b, y, z = np.unravel_index(rows, out.shape[:3])
        patches = np.stack(
            [padded[b, y * strides[0] + down, z * strides[1] + right] for down in range(tall) for right in range(wide)],
            1,
        )
        matrix = weight[columns].reshape(-1, tall * wide * channels)
        wanted.append((patches.reshape(len(rows), -1) @ matrix.T).ravel())
        got.append(np.array(pixels[rows, columns]).ravel())
    return compare(np.concatenate(got), np.concatenate(wanted), 2e-5, faults)

"""Where an array's elements are in its buffer: shape, strides and offset, and how views change them.

MLX does not show strides to Python, so they are followed here by its rules (mlx/backend/common/common.cpp, utils.cpp,
slicing.cpp). tests/tools/test_metal_layout.py compares them with what NumPy sees of MLX's own arrays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

Ints = tuple[int, ...]

ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "int32": 4, "uint32": 4, "uint8": 1, "bool": 1, "int64": 8}


def dense(shape: Sequence[int]) -> Ints:
    """The strides of an array without gaps, last axis fastest."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


@dataclass(frozen=True)
class Layout:
    """An array in its buffer. Strides and offset count elements; room: elements of the whole buffer."""

    shape: Ints
    dtype: str
    strides: Ints
    offset: int = 0
    room: int = 0

    @classmethod
    def new(cls, shape: Sequence[int], dtype: str) -> Layout:
        """An array of its own, without gaps."""
        return cls(tuple(shape), dtype, dense(shape), 0, math.prod(shape))

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def row_contiguous(self) -> bool:
        """Whether its elements lie one after the other, last axis fastest."""
        return all(
            size == 1 or stride == wanted
            for size, stride, wanted in zip(self.shape, self.strides, dense(self.shape), strict=True)
        )

    @property
    def contiguous(self) -> bool:
        """Whether its elements lie in one piece, in any order, each once."""
        step = 1
        for stride, size in sorted((t, s) for t, s in zip(self.strides, self.shape, strict=True) if s != 1):
            if stride != step:
                return False
            step *= size
        return True

    def transposed(self, axes: Sequence[int]) -> Layout:
        """With its axes in another order."""
        return replace(self, shape=tuple(self.shape[a] for a in axes), strides=tuple(self.strides[a] for a in axes))

    def expanded(self, axes: Sequence[int]) -> Layout:
        """With axes of size 1 put in, in this order."""
        shape, strides = list(self.shape), list(self.strides)
        for axis in axes:
            shape.insert(axis, 1)
            strides.insert(axis, 1)
        return replace(self, shape=tuple(shape), strides=tuple(strides))

    def squeezed(self, axes: Sequence[int]) -> Layout:
        """Without these axes of size 1."""
        kept = [a for a in range(len(self.shape)) if a not in axes]
        return self.transposed(kept)

    def sliced(self, start: Sequence[int], shape: Sequence[int], steps: Sequence[int]) -> Layout:
        """From `start` on, every `steps`-th element of each axis; shape: of the result."""
        offset = self.offset + sum(a * b for a, b in zip(start, self.strides, strict=True))
        strides = tuple(a * b for a, b in zip(self.strides, steps, strict=True))
        return replace(self, shape=tuple(shape), strides=strides, offset=offset)

    def broadcast(self, shape: Sequence[int]) -> Layout:
        """Repeated along new axes and those of size 1, by strides of 0."""
        missing = len(shape) - len(self.shape)
        own = [1] * missing + list(self.shape)
        strides = [0] * missing + list(self.strides)
        strides = [t if s == w else 0 for t, s, w in zip(strides, own, shape, strict=True)]
        return replace(self, shape=tuple(shape), strides=tuple(strides))

    def reshaped(self, shape: Sequence[int]) -> Layout | None:
        """The same elements in another shape; None if MLX copies them for it."""
        if self.row_contiguous:
            return replace(self, shape=tuple(shape), strides=dense(shape))
        sizes, steps = collapse_one(self.shape, self.strides)
        left, strides, at = list(sizes), [], 0
        for size in shape:
            if at < len(left) and left[at] % size == 0:
                left[at] //= size
                strides.append(left[at] * steps[at])
                at += left[at] == 1
            elif size == 1 and strides:
                strides.append(strides[-1])
            else:
                return None
        return replace(self, shape=tuple(shape), strides=tuple(strides))


def collapse(shape: Sequence[int], strides: Sequence[Ints]) -> tuple[Ints, list[Ints]]:
    """Neighbouring axes that can be walked as one, in all arrays at once, become one; axes of size 1 vanish."""
    runs: list[list[int]] = []
    for axis in range(len(shape)):
        joins = runs and all(s[axis] * shape[axis] == s[axis - 1] for s in strides)
        if joins:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    runs = [kept for run in runs if (kept := [axis for axis in run if shape[axis] != 1])]
    sizes = tuple(math.prod(shape[axis] for axis in run) for run in runs)
    steps = [tuple(s[run[-1]] for run in runs) for s in strides]
    return (sizes, steps) if sizes else ((1,), [(0,) for _ in strides])


def collapse_one(shape: Sequence[int], strides: Ints) -> tuple[Ints, Ints]:
    """As `collapse` for one array, by MLX's other rule: an axis of size 1 is skipped, unless it is the first."""
    sizes, steps = [shape[0]], [strides[0]]
    for size, step in zip(shape[1:], strides[1:], strict=True):
        if size == 1:
            continue
        if step * size == steps[-1]:
            sizes[-1] *= size
            steps[-1] = step
        else:
            sizes.append(size)
            steps.append(step)
    return tuple(sizes), tuple(steps)

"""Running a route: arrays are made where its kernels read, the kernels run, and the result is compared.

Large operations run in part: some threadgroups of the true grid, with the true widths, strides and offsets; memory that
they do not need is not filled. What a result must not depend on is filled with NaN, and so is the result before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from .. import memory
from ..air import Constant
from ..bits import Array, from_bfloat16, to_bfloat16
from ..grid import Fault, Size
from ..kernel import Kernel
from ..layout import Layout
from ..library import Library
from ..routes.base import Dispatch, Input, Output, Route

NUMPY = {"bfloat16": np.uint16, "float32": np.float32, "bool": np.uint8, "uint32": np.uint32, "int32": np.int32}
FILLED = 1 << 24
"""A larger buffer is not filled with NaN first."""


@dataclass
class Run:
    """A route at work. buffers, results: whole buffers, in the kernels' memory, of inputs and outputs."""

    route: Route
    rng: np.random.Generator
    buffers: list[Array] = field(default_factory=list)
    results: list[Array] = field(default_factory=list)

    def __post_init__(self) -> None:
        operation = self.route.operation
        self.buffers = [_buffer(layout) for layout in operation.inputs]
        self.results = [_buffer(layout) for layout in (operation.outputs[0], *self.route.scratch)]
        for result in self.results:
            if result.nbytes <= FILLED * 4:
                result.view(np.uint8)[...] = 0xFF

    def input(self, number: int) -> Array:
        """An input as it is shaped and strided: a view of its buffer, bfloat16 as bits."""
        return strided(self.buffers[number], self.route.operation.inputs[number])

    def output(self, number: int = 0) -> Array:
        """The result, or a scratch array, likewise."""
        layouts = (self.route.operation.outputs[0], *self.route.scratch)
        return strided(self.results[number], layouts[number])

    def put(self, target: Array, values: Array) -> None:
        """Write float values into a view of a buffer, in its dtype."""
        target[...] = to_bfloat16(values) if target.dtype == np.uint16 else values

    def normal(self, shape: tuple[int, ...], scale: float = 1.0) -> Array:
        """Random float32 numbers; many of them repeat after a prime number of values."""
        count = int(np.prod(shape, dtype=np.int64))
        values = self.rng.standard_normal(min(count, 65521), dtype=np.float32) * np.float32(scale)
        return np.resize(values, count).reshape(shape)

    def start(self, library: Library, dispatch: Dispatch, groups: list[Size] | None = None) -> list[Fault]:
        """Run one of the route's kernels."""
        bound = {index: self._slot(slot) for index, slot in dispatch.slots}
        return kernel(library, dispatch.kernel, dispatch.constants)(
            bound, dispatch.threads, dispatch.threadgroup, groups
        )

    def _slot(self, slot: object) -> Array:
        match slot:
            case Input(number):
                return self.buffers[number][self.route.operation.inputs[number].offset :]
            case Output(number, offset):
                return self.results[number][offset:]
        return np.frombuffer(slot.data, np.uint8)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Result:
    """error: the largest difference over the largest value; bound: what it may be. faults: accesses outside of memory.
    values: how many were compared."""

    error: float
    bound: float
    values: int
    faults: tuple[Fault, ...] = ()

    @property
    def good(self) -> bool:
        """Whether the values are right; faults are apart."""
        return self.error <= self.bound and self.values > 0


Check = Callable[[Run, Library], Result]


def floats(x: Array) -> Array:
    """Values as float32, also of bfloat16 bits."""
    values: Array = from_bfloat16(x) if x.dtype == np.uint16 else np.asarray(x, np.float32)
    return values


def compare(got: Array, wanted: Array, bound: float, faults: list[Fault]) -> Result:
    """The result of a check. NaN is an infinite error."""
    got, wanted = floats(got).astype(np.float64), np.asarray(wanted, np.float64)
    largest = float(np.abs(wanted).max()) or 1.0
    error = float(np.abs(got - wanted).max()) / largest
    return Result(error if np.isfinite(error) else float("inf"), bound, got.size, tuple(faults))


def strided(buffer: Array, layout: Layout) -> Array:
    """A view of a buffer."""
    item = buffer.itemsize
    steps = [step * item for step in layout.strides]
    return np.lib.stride_tricks.as_strided(buffer[layout.offset :], layout.shape, steps)


def some(count: int, rng: np.random.Generator, wanted: int = 3) -> list[int]:
    """A few numbers below `count`: the first, the last, and others."""
    if count <= wanted:
        return list(range(count))
    return sorted({0, count - 1, *(int(n) for n in rng.integers(1, count - 1, wanted - 2))})


def _buffer(layout: Layout) -> Array:
    buffer = memory.empty((max(layout.room, 1),), NUMPY[layout.dtype])
    if layout.size < layout.room <= FILLED:
        buffer.view(np.uint8)[...] = 0xFF
    return buffer


@lru_cache(maxsize=256)
def kernel(library: Library, name: str, constants: tuple[tuple[int, Constant], ...]) -> Kernel:
    """A compiled kernel; the last ones are kept."""
    return Kernel(library, name, dict(constants))

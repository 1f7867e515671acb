"""What MLX holds while a test does something, beside what other tests have left in the process."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx

from pg_mlx.memory.residency import release


class Growth:
    """Bytes beside those that were there as the block of code began."""

    def __init__(self) -> None:
        self.before = mx.get_active_memory()
        mx.reset_peak_memory()

    @property
    def peak(self) -> int:
        """The most there have been so far."""
        return mx.get_peak_memory() - self.before

    @property
    def now(self) -> int:
        return mx.get_active_memory() - self.before


@contextmanager
def growth() -> Iterator[Growth]:
    """Measure within the block. What can be freed is freed first, and nothing by Python's collector meanwhile: it might
    free another test's arrays, which are part of `before`."""
    release()
    gc.disable()
    try:
        yield Growth()
    finally:
        gc.enable()

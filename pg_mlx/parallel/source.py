"""A checkpoint of which only some rows and columns are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

from ..checkpoint.tensors import Source


class Cut(NamedTuple):
    """Some outputs (axis 0) or columns (axis 1) of a module whose matrix has `columns` columns."""

    axis: int
    part: range
    columns: int


class PartSource(Source):
    """A Source whose matrices are parts of another one's. cut: which part of a module, None for all of it.

    A cut of columns must lie between groups of packed weights.
    """

    def __init__(self, source: Source, cut: Callable[[str], Cut | None]):
        self._source, self._cut = source, cut
        self.shapes = {name: self._shape(name) for name in source.shapes}

    def read(self, name: str) -> mx.array:
        """As Source.read: this part, and no other bytes if the source can do so."""
        found = self._stored(name)
        return self._source.read(name) if found is None else self._source.read_part(name, *found)

    def stored_bytes(self, name: str) -> int:
        """As Source.stored_bytes, of this part."""
        found, size = self._stored(name), self._source.stored_bytes(name)
        return size if found is None else size * len(found[1]) // self._source.shapes[name][found[0]]

    def _shape(self, name: str) -> tuple[int, ...]:
        found, shape = self._stored(name), self._source.shapes[name]
        if found is None:
            return shape
        return tuple(len(found[1]) if axis == found[0] else size for axis, size in enumerate(shape))

    def _stored(self, name: str) -> tuple[int, range] | None:
        """The axis along which a stored tensor is cut, and which part of that axis is read, counted as the tensor is
        stored: in packed words, or in groups. None if it is not cut."""
        module, _, _ = name.rpartition(".")
        cut = self._cut(module)
        if cut is None or cut.axis == 0:
            return None if cut is None else (0, cut.part)
        stored = self._source.shapes[name][1]
        start, stop = (bound * stored // cut.columns for bound in (cut.part.start, cut.part.stop))
        return 1, range(start, stop)

"""Arrays between two guard pages, as the buffers of a kernel: whoever leaves them crashes or changes their edges."""

from __future__ import annotations

import ctypes
import mmap
import weakref
from bisect import bisect_right

import numpy as np

from .bits import Array, DType

PAGE = mmap.PAGESIZE
ALIGNMENT = 16
EDGE = 0xA5
"""The value of all bytes between an array and its guard pages."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Memory:
    """Memory of one buffer between two pages that must not be touched. Pages that nobody writes take no room.

    The array ends within 16 bytes of the upper page, or with `at_start` it begins where the lower one ends: a small
    step outside is certain to be seen at one end only.
    """

    def __init__(self, shape: tuple[int, ...], dtype: DType, at_start: bool = False):
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        room = -(-max(size, 1) // ALIGNMENT) * ALIGNMENT
        inner = -(-room // PAGE) * PAGE
        self._map = mmap.mmap(-1, inner + 2 * PAGE)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        for guard in (base, base + PAGE + inner):
            if _libc.mprotect(guard, PAGE, 0):
                raise OSError(ctypes.get_errno(), "mprotect failed")
        first = PAGE if at_start else PAGE + inner - room
        whole = np.frombuffer(self._map, np.uint8)
        self._edges = (whole[PAGE:first], whole[first + size : PAGE + inner])
        for edge in self._edges:
            edge[:] = EDGE
        self.array: Array = whole[first : first + size].view(dtype).reshape(shape)
        self.start, self.stop = base + first, base + first + size
        _memories[self.start] = self

    @property
    def spoiled(self) -> int | None:
        """Where something was written beside the array, in bytes from its start; None if nowhere."""
        for edge, first in zip(self._edges, (-len(self._edges[0]), self.stop - self.start), strict=True):
            changed = np.flatnonzero(edge != EDGE)
            if len(changed):
                return int(changed[0]) + first
        return None


_memories: weakref.WeakValueDictionary[int, Memory] = weakref.WeakValueDictionary()


def place(array: Array, at_start: bool = False) -> Array:
    """A copy of the array between guard pages. Views of the copy know where they are."""
    result = empty(array.shape, array.dtype, at_start)
    result[...] = array
    return result


def empty(shape: tuple[int, ...], dtype: DType, at_start: bool = False) -> Array:
    """Zeros between guard pages, which take no room until they are written."""
    memory = Memory(shape, dtype, at_start)
    return _Owned(memory.array, memory)


class _Owned(np.ndarray):
    """An array, or a view of one, that keeps its Memory alive."""

    def __new__(cls, array: Array, memory: Memory) -> _Owned:
        own = array.view(cls)
        own.memory = memory
        return own

    def __array_finalize__(self, other: object) -> None:
        self.memory: Memory | None = getattr(other, "memory", None)


def owner(array: Array) -> Memory | None:
    """The Memory that holds the array's first element, or None if it is an ordinary array."""
    address = array.ctypes.data
    starts = sorted(_memories)
    index = bisect_right(starts, address) - 1
    memory = _memories.get(starts[index]) if index >= 0 else None
    return memory if memory is not None and address <= memory.stop else None

"""Keys and values of which every rank has its own part."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence

import mlx.core as mx

from ..cache import KVCache
from .link import Command, Link

_handles = itertools.count(1)


class SharedCache(KVCache):
    """Rank 0's part of a cache. What is done with it is done on the other ranks, too, which know it by a handle.

    It is a value like every KVCache, but appending uses it up (`take`): its pass is computed at once, while the caller
    still has the old cache, and with its arrays MLX would copy what could be written in place.
    """

    def __init__(self, link: Link, part: KVCache, handle: int | None = None):
        handle = next(_handles) if handle is None else handle
        for name, value in dict(_link=link, _part=part, handle=handle, lengths=part.lengths).items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "last_read", part.last_read)
        object.__setattr__(self, "_capacity", part.capacity)
        weakref.finalize(self, link.dropped.append, handle).atexit = False

    @staticmethod
    def new_handle() -> int:
        """A handle that no cache has yet."""
        return next(_handles)

    _link: Link
    _part: KVCache | None
    _capacity: int
    handle: int

    @property
    def layers(self) -> tuple[mx.array, ...]:
        """This rank's keys and values. Raises RuntimeError once a pass has used them up."""
        return self._held().layers

    @property
    def capacity(self) -> int:
        """Slots of each row, used or free."""
        return self._capacity

    def take(self) -> KVCache:
        """This rank's part, which this cache holds no longer."""
        part = self._held()
        object.__setattr__(self, "_part", None)
        return part

    def grown(self, capacity: int) -> KVCache:
        """As KVCache.grown."""
        if capacity <= self.capacity:
            return self
        made = SharedCache(self._link, self._held().grown(capacity))
        with self._link.command(Command.GROW, [self.handle, made.handle, capacity]):
            return made

    def select(self, rows: Sequence[int]) -> KVCache:
        """As KVCache.select."""
        made = SharedCache(self._link, self._held().select(rows))
        with self._link.command(Command.SELECT, [self.handle, made.handle, *rows]):
            return made

    def join(self, other: KVCache) -> KVCache:
        """As KVCache.join, of another cache of the same model."""
        assert isinstance(other, SharedCache)
        made = SharedCache(self._link, self._held().join(other._held()))
        with self._link.command(Command.JOIN, [self.handle, other.handle, made.handle]):
            return made

    def _held(self) -> KVCache:
        if self._part is None:
            raise RuntimeError("this cache was used up by the pass that appended to it")
        return self._part

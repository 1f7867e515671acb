"""Keys and values of all tokens that the decoder has read: one buffer for each layer, which rows enter and leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import mlx.core as mx
import numpy as np

from .errors import InputError


@dataclass(frozen=True)
class KVCache:
    """Keys and values of a batch: one array [2, B, kv_heads, capacity, head_dim] for each layer, keys first.

    Row b fills slots 0..lengths[b] - 1; the contents of the others have no meaning.

    It is a value: appending returns a new cache. MLX reuses the buffer of an array that nothing else holds. So new
    tokens are written in place, and nothing is copied, if two things are true when the new arrays are evaluated: the
    caller has dropped the old cache, and the pass that made the old cache has finished reading it. MLX holds the inputs
    of whatever is begun but not finished. A loop that begins a pass before the one before it is done waits for that
    one's `last_read` first (tests/generation/test_in_place.py).

    Rows join, leave and get more room by copying the whole cache once. This happens once or twice for each answer and
    moves at most about as much as one decode step reads; the prefill alone takes the time of dozens of steps
    (docs/decoding.md).
    """

    layers: tuple[mx.array, ...]
    lengths: tuple[int, ...]
    """Slots used by each row. Python knows them, so it can see that equally long rows need no mask."""
    last_read: tuple[mx.array, ...] = ()
    """The last hidden states of the pass that appended the newest tokens: once they are computed, that pass reads
    `layers` no more, though the output head may still be at work. Empty for a cache that no pass has appended to."""

    @property
    def keys(self) -> tuple[mx.array, ...]:
        """Views [B, kv_heads, capacity, head_dim], one for each layer."""
        return tuple(layer[0, :] for layer in self.layers)  # [0] alone would copy

    @property
    def values(self) -> tuple[mx.array, ...]:
        """Views [B, kv_heads, capacity, head_dim], one for each layer."""
        return tuple(layer[1, :] for layer in self.layers)

    @property
    def capacity(self) -> int:
        """Slots of each row, used or free."""
        return self.layers[0].shape[3]

    @property
    def length(self) -> int:
        """Slots used by the longest row."""
        return max(self.lengths)

    def grown(self, capacity: int) -> KVCache:
        """A cache with the same contents and at least `capacity` slots for each row."""
        if capacity <= self.capacity:
            return self
        room = [(0, 0), (0, 0), (0, 0), (0, capacity - self.capacity), (0, 0)]
        return KVCache(tuple(mx.pad(layer, room) for layer in self.layers), self.lengths)

    def select(self, rows: Sequence[int]) -> KVCache:
        """These rows only, in this order."""
        index = mx.array(list(rows), dtype=mx.int32)
        return KVCache(tuple(layer[:, index] for layer in self.layers), tuple(self.lengths[row] for row in rows))

    def join(self, other: KVCache) -> KVCache:
        """The rows of both, with the larger capacity of the two."""
        capacity = max(self.capacity, other.capacity)
        pairs = zip(self.grown(capacity).layers, other.grown(capacity).layers, strict=True)
        return KVCache(tuple(mx.concatenate(list(pair), axis=1) for pair in pairs), self.lengths + other.lengths)


class CacheUpdate:
    """Appends T = `count` tokens to each row: their positions, cache slots and mask, computed once for all layers.
    NumPy computes them, so that a GPU starts no kernels for what Python knows.

    Rows may append different numbers of tokens: `counts` says how many of a row's T tokens are real. The others are
    written after them, where no token sees them and the row's next token overwrites them.
    Raises InputError when there are too few free slots.
    """

    def __init__(self, cache: KVCache, count: int, counts: Sequence[int] | None = None):
        if cache.length + count > cache.capacity:
            raise InputError(f"the cache is full: its capacity of {cache.capacity} tokens is used up")
        self.count, self.lengths = count, cache.lengths
        self._shape = cache.layers[0].shape
        self.even = len(set(cache.lengths)) == 1
        self.stop = cache.length + count
        self.after = tuple(
            n + more for n, more in zip(cache.lengths, counts or [count] * len(cache.lengths), strict=True)
        )
        self._masks: dict[int | None, mx.array | None] = {}

    @cached_property
    def positions(self) -> np.ndarray:
        """Positions of the new tokens: int32 [B, T]."""
        # No arithmetic of NumPy's: between two passes of the CPU backend its first sum takes 0.2 ms.
        return np.array([range(length, length + self.count) for length in self.lengths], np.int32)

    def write(self, layer: mx.array, update: mx.array) -> mx.array:
        """A layer's buffer with update [B, T, 2 * kv_heads, head_dim], keys first, in each row's next slots."""
        if self.even:
            layer = layer[...]  # another handle on the same data: assignment leaves the given one as it was
            batch, count, _, head_dim = update.shape
            update = update.reshape(batch, count, 2, -1, head_dim).transpose(2, 0, 3, 1, 4)
            layer[:, :, :, self.stop - self.count : self.stop] = update
            return layer
        slots = layer.reshape(-1, layer.shape[-1])
        slots[self._slots] = update
        return slots.reshape(layer.shape)

    @cached_property
    def _slots(self) -> mx.array:
        """Where an update goes in a layer's flat buffer [2 * B * kv_heads * capacity, head_dim]: int32
        [B, T, 2 * kv_heads]."""
        _, batch, heads, capacity, _ = self._shape
        first = np.arange(0, 2 * batch * heads * capacity, capacity, dtype=np.int32).reshape(2, batch, heads)
        return mx.array(first.swapaxes(0, 1).reshape(batch, 1, -1) + self.positions[..., None])

    def visible(self, layer: mx.array, window: int | None) -> tuple[mx.array, mx.array]:
        """The keys and values that any new token may see, views [B, kv_heads, L, head_dim]: slots from `_start` on."""
        start = self._start(window)
        return layer[0, :, :, start : self.stop], layer[1, :, :, start : self.stop]

    def mask(self, window: int | None) -> mx.array | None:
        """Which visible slots each new token sees: bool [B or 1, 1, T, L]. None means all of them, as for one token
        a row and equally long rows, with or without a window."""
        if self.even and self.count == 1:
            return None
        if window not in self._masks:
            positions = (self.positions[:1] if self.even else self.positions)[:, None, :, None]
            slots = np.arange(self._start(window), self.stop, dtype=np.int32)
            allowed = slots <= positions
            if window is not None:
                allowed &= slots > positions - window
            self._masks[window] = mx.array(allowed)
        return self._masks[window]

    def causal_slots(self, window: int | None) -> range | None:
        """The visible slots, if a new token sees all of them up to its own; None if some rows or tokens see others."""
        if self.even and (self.count == 1 or window is None):
            return range(self._start(window), self.stop)
        return None

    def _start(self, window: int | None) -> int:
        return 0 if window is None else max(0, min(self.lengths) + 1 - window)

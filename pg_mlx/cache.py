"""The decoder's memory of what it has read: one key and one value buffer a layer, of fixed capacity."""

from __future__ import annotations

from dataclasses import dataclass, replace

import mlx.core as mx

from .errors import InputError


@dataclass(frozen=True)
class KVCache:
    """Keys and values of a batch, [B, kv_heads, capacity, head_dim] a layer; row b fills slots 0..length-1.

    It is a value: appending returns a new cache. MLX reuses the buffer of an array that nobody else
    holds, so as long as the caller drops the old cache, the new tokens are written in place and
    nothing is copied (a test watches the peak memory).
    """

    keys: tuple[mx.array, ...]
    values: tuple[mx.array, ...]
    length: int
    """Slots used by the longest row."""
    lengths: mx.array | None = None
    """int32 [B], slots used by each row; None if all rows are equally long (the fast case: no mask)."""

    @property
    def capacity(self) -> int:
        return self.keys[0].shape[2]

    @property
    def offset(self) -> int | mx.array:
        """Position of the next token: one number, or int32 [B]."""
        return self.length if self.lengths is None else self.lengths

    def append(self, keys: list[mx.array], values: list[mx.array]) -> KVCache:
        """The cache after one more token a row, given its keys and values as `write` returned them."""
        lengths = None if self.lengths is None else self.lengths + 1
        return replace(self, keys=tuple(keys), values=tuple(values), length=self.length + 1, lengths=lengths)

    def write(self, buffer: mx.array, update: mx.array) -> mx.array:
        """A layer's buffer with update [B, kv_heads, 1, head_dim] in each row's next slot."""
        buffer = mx.array(buffer)  # another handle on the same data: assignment leaves the given one as it was
        if self.lengths is None:
            buffer[:, :, self.length : self.length + 1] = update
        else:
            buffer[mx.arange(buffer.shape[0]), :, self.lengths] = update[:, :, 0]
        return buffer

    def require_room(self) -> None:
        """Raises InputError when every slot is used."""
        if self.length >= self.capacity:
            raise InputError(f"the cache is full: its capacity of {self.capacity} tokens is used up")

    def mask(self, window: int | None = None) -> mx.array | None:
        """Which of the slots 0..length the next token may see: bool [B, 1, 1, length + 1], None for all.

        With a window, equally long rows need no mask either, because `visible` cuts their slots.
        """
        if self.lengths is None:
            return None
        slots = mx.arange(self.length + 1)
        allowed = slots <= self.lengths[:, None]
        if window is not None:
            allowed = allowed & (slots > self.lengths[:, None] - window)
        return allowed[:, None, None]

    def visible(self, buffer: mx.array, window: int | None = None) -> mx.array:
        """A view of the slots up to and including the token just written (the last `window` if given)."""
        start = 0
        if window is not None and self.lengths is None:
            start = max(0, self.length + 1 - window)
        return buffer[:, :, start : self.length + 1]

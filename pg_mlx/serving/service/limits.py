"""How much a service takes on, and what an answer will cost before it is begun."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ...limits import MAX_PIXELS


@dataclass(frozen=True)
class Limits:
    """What a service refuses. Everything over one of these gets an answer that says so; nothing grows beyond them."""

    batch_size: int = 8
    """Answers that are computed at a time."""
    queue: int = 64
    """Requests that wait, those included whose pictures are being decoded."""
    waiting_bytes: int = 1 << 30
    """Pictures of all waiting requests, as they came."""
    pictures: int = 16
    """In one request."""
    picture_bytes: int = 64 << 20
    """Of one picture as it comes, a compressed file."""
    pixels: int = MAX_PIXELS
    """Of one picture as it comes; it takes three bytes each when it is decoded."""
    prompt_characters: int = 32_768
    prefix_tokens: int = 8192
    """Picture rows and prompt of one request; Gemma was trained on 8192 positions."""
    memory_bytes: int | None = None
    """What MLX may hold in all; None for no limit. Requests wait until there is room for their cache."""
    feature_bytes: int = 256 << 20
    """Of it for encoded pictures that may be asked about again."""
    spare_bytes: int = 512 << 20
    """Freed buffers that MLX keeps for the next ones."""
    decoders: int = 2
    """Threads that decode pictures."""


class CacheRoom:
    """Whether one more answer fits, counted from shapes: rows of a batch are as long as the longest one may become, and
    a batch does not get shorter before it is empty. Everything counts twice, since rows come and go by copying."""

    def __init__(self, token_bytes: int, room_bytes: int | None):
        """room_bytes: for caches, or None for no limit."""
        self._token_bytes, self._room_bytes = token_bytes, room_bytes
        self._slots = 0

    def needed(self, slots: Iterable[int]) -> int:
        """Bytes for new rows that may need so many slots, all at a time."""
        lengths = list(slots)
        return 2 * len(lengths) * max(lengths, default=0) * self._token_bytes

    def fits(self, running: int, slots: int) -> bool:
        """Beside so many running rows."""
        if self._room_bytes is None:
            return True
        longest = max(slots, self._slots if running else 0)
        return 2 * (running + 1) * longest * self._token_bytes <= self._room_bytes

    def enter(self, running: int, slots: int) -> None:
        self._slots = max(slots, self._slots if running else 0)

"""How much a service accepts, and how much memory an answer may need."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ...limits import MAX_PIXELS


@dataclass(frozen=True)
class Limits:
    """What a service accepts. A request over one of these limits is refused with an error that says so."""

    batch_size: int = 8
    """Answers computed at a time."""
    queue: int = 64
    """Requests that wait, those included whose pictures are being decoded."""
    waiting_bytes: int = 1 << 30
    """Bytes of the pictures of all waiting requests, compressed as they came."""
    pictures: int = 16
    """Pictures in one request."""
    picture_bytes: int = 64 << 20
    """Bytes of one picture, compressed as it comes."""
    pixels: int = MAX_PIXELS
    """Pixels of one picture; each takes three bytes when it is decoded."""
    prompt_characters: int = 32_768
    prefix_tokens: int = 8192
    """Image tokens and prompt tokens of one request; Gemma was trained on 8192 positions."""
    memory_bytes: int | None = None
    """Bytes that MLX may hold in all, and pictures while they are decoded; None for no limit. Requests wait until there
    is room for their pictures, and then for their cache."""
    feature_bytes: int = 256 << 20
    """Bytes of that for encoded pictures, which may be asked about again."""
    spare_bytes: int = 512 << 20
    """Bytes of freed buffers that MLX keeps for new arrays."""
    decoders: int = 2
    """Threads that decode pictures."""
    decode_s: float = 30.0
    """Seconds until the pictures of one request must be decoded."""
    stuck: int = 4
    """More threads that decode, in place of those whose request has ended before they were done with its pictures."""


class CacheRoom:
    """Whether one more answer fits in memory, computed from shapes. Each row of a batch counts as the longest one that
    the batch has had since it was empty. All counts twice, since the cache is copied when rows enter and leave."""

    def __init__(self, token_bytes: int, room_bytes: int | None):
        """token_bytes: keys and values of one token. room_bytes: for all caches; None for no limit."""
        self._token_bytes, self.room_bytes = token_bytes, room_bytes
        self._slots = 0

    def needed(self, slots: Iterable[int]) -> int:
        """Bytes for new rows that may need so many slots, in one batch."""
        lengths = list(slots)
        return 2 * len(lengths) * max(lengths, default=0) * self._token_bytes

    def fits(self, running: int, slots: int, scratch: int = 0) -> bool:
        """Whether one more row that may need so many slots, and so many bytes of scratch memory while its prefix is
        read or for pictures that are being decoded, fits beside so many running rows."""
        return self.room_bytes is None or self.used(running, slots) + scratch <= self.room_bytes

    def used(self, running: int, slots: int | None = None) -> int:
        """Bytes for so many running rows, and one more that may need so many slots."""
        longest = max(slots or 0, self._slots if running else 0)
        return 2 * (running + (slots is not None)) * longest * self._token_bytes

    def enter(self, running: int, slots: int) -> None:
        """One more row enters beside so many running ones, and may need so many slots."""
        self._slots = max(slots, self._slots if running else 0)

"""Passes through a decoder whose parts lie on several ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import mlx.core as mx

from ..cache import CacheUpdate, KVCache
from ..config import PaliGemmaConfig, TextConfig
from ..gemma import Gemma
from ..paligemma import PaliGemma
from .link import Command, Link
from .shared_cache import SharedCache

Read = Callable[[mx.array], tuple[mx.array, KVCache]]
"""Runs this rank's part of a pass: x [B, T, D] -> what leaves the part, and the cache. Called once."""


class Mode(Protocol):
    """A way to divide a pass: Pipeline or Tensor."""

    def make(self, link: Link, config: PaliGemmaConfig, *, dtype: mx.Dtype) -> PaliGemma:
        """Rank 0's model, with a LeadingDecoder. Its weights are placeholders."""
        ...

    def prepare(self, link: Link, decoder: Gemma) -> None:
        """Make a loaded decoder a part of the whole. On all ranks."""
        ...

    def lead(self, link: Link, x: mx.array, read: Read, tokens_back: int) -> tuple[mx.array, KVCache]:
        """Rank 0's side of a pass: x [B, T, D] -> hidden states [B, tokens_back, D], evaluated, and its part of the
        cache."""
        ...

    def follow(self, link: Link, shape: Sequence[int], dtype: mx.Dtype, read: Read, head: Head | None) -> KVCache:
        """Another rank's side of a pass whose x has this shape: returns its part of the cache. head: computes this
        rank's logits of the tokens that rank 0 has named; None if it has named none."""
        ...


Head = Callable[[mx.array], mx.array]
"""Hidden states [B, T, D] -> this rank's part of the logits, [rows, outputs]."""


class LeadingDecoder(Gemma):
    """Rank 0's decoder: it runs its part of a pass, and lets the other ranks run theirs."""

    def __init__(self, link: Link, mode: Mode, config: TextConfig, **options: Any):
        super().__init__(config, **options)
        self.link, self.mode = link, mode
        self.asked = list[int]()
        """The hidden states whose logits all ranks compute in this pass: two numbers each, row and token."""

    def prefill(self, x: mx.array, capacity: int, lengths: Sequence[int] | None = None) -> tuple[mx.array, KVCache]:
        """As Gemma.prefill. It is computed at once."""
        handle = SharedCache.new_handle()
        values = [handle, capacity, *x.shape, *_listed(lengths), *self.asked]
        mx.eval(x)  # the others do not wait for the vision tower
        with self.link.command(Command.PREFILL, values, tokens=x.shape[0] * x.shape[1]):
            read = super().prefill
            hidden, part = self.mode.lead(self.link, x, lambda x: read(x, capacity, lengths), 1)
        return hidden, SharedCache(self.link, part, handle)

    def extend(self, x: mx.array, cache: KVCache, counts: Sequence[int] | None = None) -> tuple[mx.array, KVCache]:
        """As Gemma.extend. It is computed at once, and the given cache can be used no more."""
        assert isinstance(cache, SharedCache)
        CacheUpdate(cache, x.shape[1], counts)  # raises InputError if the cache is full, before the others begin
        handle = SharedCache.new_handle()
        values = [cache.handle, handle, *x.shape, *_listed(counts), *self.asked]
        mx.eval(x)
        with self.link.command(Command.EXTEND, values, tokens=x.shape[0] * x.shape[1]):
            given, read = [cache.take()], super().extend
            hidden, part = self.mode.lead(self.link, x, lambda x: read(x, given.pop(), counts), x.shape[1])
        return hidden, SharedCache(self.link, part, handle)


def _listed(numbers: Sequence[int] | None) -> list[int]:
    """An optional list as integers of a command: its length first, 0 for None."""
    return [0] if numbers is None else [len(numbers), *numbers]


def read_list(values: list[int]) -> list[int] | None:
    """Take an optional list from the beginning of a command's integers, as `_listed` has put it there."""
    count = values.pop(0)
    numbers = [values.pop(0) for _ in range(count)]
    return numbers or None

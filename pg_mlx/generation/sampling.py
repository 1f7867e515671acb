"""Choosing the next token from its logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from ..errors import InputError

Sampler = Callable[[mx.array], mx.array]
"""float32 logits [B, V] -> token ids [B]."""

LoggingSampler = Callable[[mx.array], tuple[mx.array, mx.array | None]]
"""float32 logits [B, V] -> token ids [B] and their log-probabilities [B], float32, or None for those."""

MAX_TOKENS = 8192
"""The positions that Gemma was trained on."""


@dataclass(frozen=True)
class SamplingOptions:
    """temperature 0 is greedy, and the other options then have no effect. Raises InputError if out of range."""

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.max_tokens, int) or not 1 <= self.max_tokens <= MAX_TOKENS:
            raise InputError(f"max_tokens is {self.max_tokens}, but must be a whole number from 1 to {MAX_TOKENS}")
        if not math.isfinite(self.temperature) or self.temperature < 0:
            raise InputError(f"temperature is {self.temperature}, but must be a number from 0 up")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}, but must be above 0 and at most 1")
        if not isinstance(self.top_k, int) or self.top_k < 0:
            raise InputError(f"top_k is {self.top_k}, but must be a whole number from 0 up (0 switches it off)")
        if not 0 <= self.min_p <= 1:
            raise InputError(f"min_p is {self.min_p}, but must be from 0 to 1")
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise InputError(f"seed is {self.seed}, but must be from 0 to 2^64 - 1")

    def sampler(self, vocab_size: int) -> Sampler:
        """A sampler over the first `vocab_size` ids, those that have text: rows of the table beyond them
        (<image> and padding to a multiple of 64) were never trained and are never chosen."""
        if self.temperature == 0:
            return lambda logits: mx.argmax(logits[:, :vocab_size], axis=-1)

        from mlx_lm.sample_utils import make_sampler  # takes seconds to import, so only here

        if self.seed is not None:
            mx.random.seed(self.seed)
        top_k = self.top_k if self.top_k < vocab_size else 0
        sample = make_sampler(temp=self.temperature, top_p=self.top_p, min_p=self.min_p, top_k=top_k)

        def choose(logits: mx.array) -> mx.array:
            logits = logits[:, :vocab_size]
            return sample(logits - mx.logsumexp(logits, axis=-1, keepdims=True))

        return choose


def without_logprobs(sample: Sampler) -> LoggingSampler:
    return lambda logits: (sample(logits), None)


def with_logprobs(sample: Sampler, vocab_size: int) -> LoggingSampler:
    """Also tells how probable the model, before temperature and truncation, finds each chosen token."""

    def choose(logits: mx.array) -> tuple[mx.array, mx.array]:
        tokens = sample(logits)
        chosen = mx.take_along_axis(logits, tokens[:, None], axis=-1).squeeze(-1)
        return tokens, chosen - mx.logsumexp(logits[:, :vocab_size], axis=-1)

    return choose

"""Choosing the next token from its logits."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass

import mlx.core as mx

from ..errors import InputError

MIN_TEMPERATURE = 1e-9
"""Lower ones than this are as good as greedy, and would divide by zero in float32."""

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
        if not 0 <= self.temperature <= sys.float_info.max:
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
        return Sampler(self, vocab_size)


class Sampler:
    """float32 logits [B, V] -> token ids int [B], for one answer after the other token.

    It carries the state of its own random numbers, so what it draws depends on its seed and its logits alone, whatever
    else is computed beside it.
    """

    def __init__(self, options: SamplingOptions, vocab_size: int):
        self.greedy = options.temperature == 0
        self._options, self._vocab_size = options, vocab_size
        self._key = mx.random.key(int.from_bytes(os.urandom(8), "little") if options.seed is None else options.seed)

    def __call__(self, logits: mx.array) -> mx.array:
        logits = logits[:, : self._vocab_size]
        if self.greedy:
            return mx.argmax(logits, axis=-1)
        self._key, own = mx.random.split(self._key)
        logits = mx.where(
            _likely(logits, self._options), logits / max(self._options.temperature, MIN_TEMPERATURE), -mx.inf
        )
        return mx.argmax(logits + mx.random.gumbel(logits.shape, key=own), axis=-1)


def _likely(logits: mx.array, options: SamplingOptions) -> mx.array:
    """Which of logits [B, V] the options leave in the draw: bool [B, V], or [] if all. As in mlx_lm, they look at the
    probabilities before the temperature. Tokens as likely as the last one that is left are left too."""
    likely = mx.array(True)
    if options.min_p > 0:
        likely = logits >= logits.max(axis=-1, keepdims=True) + math.log(options.min_p)
    if options.top_p < 1 or 0 < options.top_k < logits.shape[-1]:
        ranked = -mx.sort(-logits, axis=-1)
        rank = mx.arange(logits.shape[-1])
        chosen = rank < min(options.top_k or logits.shape[-1], logits.shape[-1])
        if options.top_p < 1:  # the mass of those before must fall short of top_p
            mass = mx.softmax(ranked, axis=-1)
            chosen = chosen & ((mx.cumsum(mass, axis=-1) - mass < options.top_p) | (rank == 0))
        last = mx.where(chosen, ranked, mx.inf).min(axis=-1, keepdims=True)
        likely = likely & (logits >= last)
    return likely

"""Choosing the next token of every row of a batch from the logits."""

from __future__ import annotations

import math
import os
import sys
from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import mlx.core as mx

from ..errors import InputError
from ..linear import Ids

MIN_TEMPERATURE = 1e-9
"""A lower temperature is as good as greedy, and would divide by zero in float32."""

Allowed = list[int] | range | None
"""Ids of which the next token must be one, as a list or a range with a step of 1; None for all."""

MAX_TOKENS = 8192
"""The positions that Gemma was trained on."""


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are chosen; each option is described at GenerateOptions. Raises InputError for one out of range."""

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
        """A sampler over the first `vocab_size` ids, those that have text. The ids beyond them (<image>, and padding to
        a multiple of 64) were never trained and are never chosen."""
        return Sampler(self, vocab_size)


class Sampler:
    """Draws the next token of one answer, call after call: float32 logits [1, V] -> int [1].

    It carries the state of its own random numbers, so what it draws depends on its seed and its logits alone, whatever
    else is computed beside it.
    """

    def __init__(self, options: SamplingOptions, vocab_size: int):
        self.greedy = options.temperature == 0
        self._options, self._vocab_size = options, vocab_size
        self._key = mx.random.key(int.from_bytes(os.urandom(8), "little") if options.seed is None else options.seed)

    def __call__(self, logits: mx.array) -> mx.array:
        """The next token: an index into float32 logits [1, V], as int [1]. It may not be evaluated yet."""
        logits = logits[:, : self._vocab_size]
        if self.greedy:
            return mx.argmax(logits, axis=-1)
        self._key, own = mx.random.split(self._key)
        logits = mx.where(
            _likely(logits, self._options), logits / max(self._options.temperature, MIN_TEMPERATURE), -mx.inf
        )
        return mx.argmax(logits + mx.random.gumbel(logits.shape, key=own), axis=-1)


def _likely(logits: mx.array, options: SamplingOptions) -> mx.array:
    """Which tokens of logits [B, V] the options leave in the draw: bool [B, V], or bool [] if they leave all. As in
    mlx_lm, they look at the probabilities before the temperature. Ties with the last one left are left, too."""
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


@dataclass(frozen=True)
class NextTokens:
    """Sampled tokens, possibly not yet evaluated: one per row, or several for a row with several positions, stored
    consecutively."""

    tokens: mx.array
    """int [positions], of all rows."""
    counts: tuple[int, ...]
    """How many of them belong to each row."""
    logprobs: mx.array | None = None
    """float32 [positions], each token's log-probability before temperature and truncation, among the ids that were
    allowed; None if no row asked for it."""

    @property
    def arrays(self) -> list[mx.array]:
        """What has to be evaluated."""
        return [self.tokens] if self.logprobs is None else [self.tokens, self.logprobs]

    def select(self, rows: Sequence[int]) -> NextTokens:
        """The choices of some rows, in the order given."""
        stops = list(accumulate(self.counts))
        index = mx.array([place for row in rows for place in range(stops[row] - self.counts[row], stops[row])])
        counts = tuple(self.counts[row] for row in rows)
        return NextTokens(self.tokens[index], counts, None if self.logprobs is None else self.logprobs[index])

    def join(self, other: NextTokens) -> NextTokens:
        """The choices of these rows, and then those of others."""
        tokens, counts = mx.concatenate([self.tokens, other.tokens]), self.counts + other.counts
        if self.logprobs is None and other.logprobs is None:
            return NextTokens(tokens, counts)
        parts = (mx.zeros(c.tokens.shape) if c.logprobs is None else c.logprobs for c in (self, other))
        return NextTokens(tokens, counts, mx.concatenate(list(parts)))

    def read(self) -> list[list[tuple[int, float]]]:
        """Wait until they are computed. For each row its (token, log-probability) pairs; 0.0 if no row asked for it."""
        tokens: list[int] = self.tokens.tolist()  # type: ignore[assignment]
        logprobs: list[float] = [0.0] * len(tokens)
        if self.logprobs is not None:
            logprobs = self.logprobs.tolist()  # type: ignore[assignment]
        pairs = list(zip(tokens, logprobs, strict=True))
        return [pairs[stop - count : stop] for stop, count in zip(accumulate(self.counts), self.counts, strict=True)]


def needed(allowed: Sequence[Allowed], vocab: range) -> Ids:
    """The ids whose logits are needed, in order: the whole vocabulary, or all ids that any of the guides allows."""
    if any(ids is None for ids in allowed):
        return vocab
    spans = {ids for ids in allowed if isinstance(ids, range)}  # many rows have the same
    lists = [ids for ids in allowed if isinstance(ids, list)]
    if len(spans) == 1 and not lists:
        return spans.pop()
    ids = sorted({*chain(*spans, *lists)})
    adjacent = ids[-1] - ids[0] == len(ids) - 1
    return range(ids[0], ids[-1] + 1) if adjacent else ids


def bar(ids: Collection[int], vocab_size: int) -> mx.array | None:
    """float32 [vocab_size], to be added to logits so that these ids are never chosen; None if there are none."""
    if not ids:
        return None
    return mx.where((mx.arange(vocab_size)[:, None] == mx.array(sorted(ids))).any(axis=1), -mx.inf, 0.0)


def choose(
    samplers: Sequence[Sampler], logits: mx.array, asked: Sequence[Sequence[Allowed]], vocab: Ids, logprobs: bool
) -> NextTokens:
    """The next token at each position, from logits float32 [positions, len(vocab)] of the ids in vocab.

    samplers: one for each row. asked: for each row what is allowed at each of its positions, in the order of the
    logits. logprobs: whether log-probabilities are wanted, too.
    """
    counts = tuple(map(len, asked))
    places = [(sampler, allowed) for sampler, several in zip(samplers, asked, strict=True) for allowed in several]
    if all(sampler.greedy and (allowed is None or allowed == vocab) for sampler, allowed in places):
        tokens = mx.argmax(logits, axis=-1)
        return NextTokens(_ids(tokens, vocab), counts, _logprobs(tokens, logits) if logprobs else None)
    chosen, logged = [], []
    for place, (sampler, allowed) in enumerate(places):
        own = logits[place : place + 1]
        # The draw is among its own ids only, or it would depend on the neighbours' guides.
        ids = vocab if allowed is None else allowed
        if isinstance(ids, range):
            first = bisect_left(vocab, ids[0])
            own = own[:, first : first + len(ids)]
        else:
            own = own[:, mx.array([bisect_left(vocab, token) for token in ids])]
        tokens = sampler(own)
        chosen.append(_ids(tokens, ids))
        logged.append(_logprobs(tokens, own) if logprobs else tokens)
    return NextTokens(mx.concatenate(chosen), counts, mx.concatenate(logged) if logprobs else None)


def _ids(tokens: mx.array, ids: Ids) -> mx.array:
    """The ids at these indices, int [positions]."""
    if not isinstance(ids, range):
        return mx.array(ids)[tokens]
    return tokens + ids.start if ids.start else tokens


def _logprobs(tokens: mx.array, logits: mx.array) -> mx.array:
    """float32 [positions]: log-probabilities of tokens int [positions], indices into logits [positions, ids]."""
    chosen = mx.take_along_axis(logits, tokens[:, None], axis=-1).squeeze(-1)
    return chosen - mx.logsumexp(logits, axis=-1)

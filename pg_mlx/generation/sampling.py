"""Choosing the next token of every row of a batch from the logits."""

from __future__ import annotations

import contextlib
import math
import operator
import os
import sys
from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain

import mlx.core as mx

from ..errors import InputError
from ..linear import Ids
from .next_tokens import NextTokens
from .penalties import penalized

MIN_TEMPERATURE = 1e-9
"""A lower temperature is as good as greedy, and would divide by zero in float32."""

Allowed = list[int] | range | None
"""Ids of which the next token must be one, as a list or a range with a step of 1; None for all."""

MAX_TOKENS = 8192
"""The positions that Gemma was trained on."""

MAX_ALTERNATIVES = 20
"""As in OpenAI's API."""

MAX_STOPS, MAX_STOP_CHARACTERS = 16, 1000
"""How many stop strings an answer may have, and how long each may be."""


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are chosen; each option is described at GenerateOptions. Raises InputError for one out of range."""

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | Sequence[str] = ()
    repetition_penalty: float = 1.0
    repetition_context_size: int = 20
    no_repeat_ngram_size: int = 0

    def __post_init__(self) -> None:
        for name in ("max_tokens", "top_k", "seed", "repetition_context_size", "no_repeat_ngram_size"):
            with contextlib.suppress(TypeError):  # what is no whole number is refused below
                object.__setattr__(self, name, operator.index(getattr(self, name)))  # NumPy's numbers, too
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
        if not 0 < self.repetition_penalty <= sys.float_info.max:
            raise InputError(
                f"repetition_penalty is {self.repetition_penalty}, but must be above 0 (1 switches it off)"
            )
        for name in ("repetition_context_size", "no_repeat_ngram_size"):
            if not isinstance(value := getattr(self, name), int) or value < 0:
                raise InputError(f"{name} is {value}, but must be a whole number from 0 up")
        object.__setattr__(self, "stop", _stop_strings(self.stop))

    @property
    def looks_back(self) -> bool:
        """Whether earlier tokens change the choice of the next one also outside the model, as a penalty does."""
        return self.repetition_penalty != 1 or self.no_repeat_ngram_size > 0

    def sampler(self, vocab_size: int) -> Sampler:
        """A sampler over the first `vocab_size` ids, those that have text. The ids beyond them (<image>, and padding to
        a multiple of 64) were never trained and are never chosen."""
        return Sampler(self, vocab_size)


class Sampler:
    """Draws the next token of one answer, call after call: float32 logits [1, V] -> int [1].

    It has random numbers of its own, so what it draws depends only on its seed and its logits.
    """

    def __init__(self, options: SamplingOptions, vocab_size: int):
        self.greedy = options.temperature == 0
        self.looks_back = options.looks_back
        self._options, self._vocab_size = options, vocab_size
        self._key = mx.random.key(int.from_bytes(os.urandom(8), "little") if options.seed is None else options.seed)

    def penalized(self, logits: mx.array, ids: Ids, history: Sequence[int]) -> mx.array:
        """float32 logits [1, len(ids)] of these ids as the options against repetition change them. history: the prompt
        and the answer so far."""
        options = self._options
        return penalized(
            logits,
            ids,
            history,
            options.repetition_penalty,
            options.repetition_context_size,
            options.no_repeat_ngram_size,
        )

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
    """Which tokens of logits [B, V] may be drawn under these options: bool [B, V], or bool [] if all may. As in mlx_lm,
    the options apply to the probabilities before the temperature. Tokens as likely as the last one that is kept are
    kept, too."""
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


def alternatives(logprobs: bool | int | None) -> int | None:
    """What the option `logprobs` means: how many alternatives each log-probability comes with; None for no
    log-probabilities. Raises InputError for a number out of range."""
    if logprobs is None or logprobs is False:
        return None
    if not isinstance(logprobs, int) or not 0 <= logprobs <= MAX_ALTERNATIVES:
        raise InputError(f"logprobs is {logprobs!r}, but must be true, false or from 0 to {MAX_ALTERNATIVES}")
    return 0 if logprobs is True else logprobs


def _stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Raises InputError."""
    strings = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if not all(isinstance(string, str) and 0 < len(string) <= MAX_STOP_CHARACTERS for string in strings):
        raise InputError(f"stop must be one or several strings of 1 to {MAX_STOP_CHARACTERS} characters")
    if len(strings) > MAX_STOPS:
        raise InputError(f"stop has {len(strings)} strings, but there may be {MAX_STOPS}")
    return strings


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
    samplers: Sequence[Sampler],
    logits: mx.array,
    asked: Sequence[Sequence[Allowed]],
    vocab: Ids,
    alternatives: int | None = None,
    histories: Sequence[Sequence[Sequence[int]]] | None = None,
) -> NextTokens:
    """The next token at each position, from logits float32 [positions, len(vocab)] of the ids in vocab.

    samplers: one for each row. asked: for each row what is allowed at each of its positions, in the order of the
    logits. alternatives: how many likely tokens to report with each log-probability; None for no log-probabilities.
    histories: for each row the prompt and the answer before each of its positions, if a sampler looks back.
    """
    counts = tuple(map(len, asked))
    places = [(sampler, allowed) for sampler, several in zip(samplers, asked, strict=True) for allowed in several]
    if all(one.greedy and not one.looks_back and (allowed is None or allowed == vocab) for one, allowed in places):
        tokens = mx.argmax(logits, axis=-1)
        logged = _logged(tokens, logits, vocab, alternatives)
        return NextTokens(_ids(tokens, vocab), counts, *logged, (vocab[0],) * logits.shape[0], logits[:, 0])
    before = list(chain(*histories)) if histories else []
    chosen = []
    for place, (sampler, allowed) in enumerate(places):
        own = logits[place : place + 1]
        # The draw is among its own ids only, or it would depend on the neighbours' guides.
        ids = vocab if allowed is None else allowed
        if isinstance(ids, range):
            first = bisect_left(vocab, ids[0])
            own = own[:, first : first + len(ids)]
        else:
            own = own[:, mx.array([bisect_left(vocab, token) for token in ids])]
        tokens = sampler(sampler.penalized(own, ids, before[place]) if sampler.looks_back else own)
        logged = _logged(tokens, own, ids, alternatives)
        chosen.append(NextTokens(_ids(tokens, ids), (1,), *logged, (ids[0],), own[:, 0]))
    return NextTokens.concatenate(chosen, counts)


def _ids(tokens: mx.array, ids: Ids) -> mx.array:
    """The ids at these indices, of any shape."""
    if not isinstance(ids, range):
        return mx.array(ids)[tokens]
    return tokens + ids.start if ids.start else tokens


def _logged(
    tokens: mx.array, logits: mx.array, ids: Ids, alternatives: int | None
) -> tuple[mx.array | None, tuple[mx.array, mx.array] | None]:
    """What NextTokens has beside the tokens int [positions], which are indices into logits [positions, len(ids)]."""
    if alternatives is None:
        return None, None
    total = mx.logsumexp(logits, axis=-1, keepdims=True)
    logprobs = (mx.take_along_axis(logits, tokens[:, None], axis=-1) - total).squeeze(-1)
    count = min(alternatives, len(ids))
    if not count:
        return logprobs, None
    likely = mx.argpartition(-logits, kth=count - 1, axis=-1)[:, :count]
    values = mx.take_along_axis(logits, likely, axis=-1)
    order = mx.argsort(-values, axis=-1)
    likely, values = (mx.take_along_axis(array, order, axis=-1) for array in (likely, values))
    return logprobs, (_ids(likely, ids), values - total)

"""The next token of every row of a batch, from the logits of all."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import mlx.core as mx

from ..linear import Ids
from .rows import Allowed, Row


@dataclass(frozen=True)
class Choice:
    """What was chosen for each row and not yet looked at: one token, or several for a row that was asked more than
    once, next to each other."""

    tokens: mx.array
    """int [N]."""
    counts: tuple[int, ...]
    """How many of them are each row's."""
    logprobs: mx.array | None = None
    """float32 [N], each token's log-probability before temperature and truncation, among the ids that were allowed;
    None where no row asked for it."""

    @property
    def arrays(self) -> list[mx.array]:
        return [self.tokens] if self.logprobs is None else [self.tokens, self.logprobs]

    def select(self, rows: Sequence[int]) -> Choice:
        """That of some rows, in the order given."""
        stops = list(accumulate(self.counts))
        index = mx.array([place for row in rows for place in range(stops[row] - self.counts[row], stops[row])])
        counts = tuple(self.counts[row] for row in rows)
        return Choice(self.tokens[index], counts, None if self.logprobs is None else self.logprobs[index])

    def join(self, other: Choice) -> Choice:
        """That of these rows and then of others."""
        tokens, counts = mx.concatenate([self.tokens, other.tokens]), self.counts + other.counts
        if self.logprobs is None and other.logprobs is None:
            return Choice(tokens, counts)
        parts = (mx.zeros(c.tokens.shape) if c.logprobs is None else c.logprobs for c in (self, other))
        return Choice(tokens, counts, mx.concatenate(list(parts)))

    def read(self) -> list[list[tuple[int, float]]]:
        """Of each row its tokens and their log-probabilities (0.0 where nobody asked), when they are computed."""
        tokens: list[int] = self.tokens.tolist()  # type: ignore[assignment]
        logprobs: list[float] = [0.0] * len(tokens)
        if self.logprobs is not None:
            logprobs = self.logprobs.tolist()  # type: ignore[assignment]
        pairs = list(zip(tokens, logprobs, strict=True))
        return [pairs[stop - count : stop] for stop, count in zip(accumulate(self.counts), self.counts, strict=True)]


def needed(allowed: Sequence[Allowed], vocab: range) -> Ids:
    """The ids whose logits are needed, in order: the whole vocabulary, or what the guides allow between them."""
    if any(ids is None for ids in allowed):
        return vocab
    spans = {ids for ids in allowed if isinstance(ids, range)}  # many rows have the same
    lists = [ids for ids in allowed if isinstance(ids, list)]
    if len(spans) == 1 and not lists:
        return spans.pop()
    ids = sorted({*chain(*spans, *lists)})
    adjacent = ids[-1] - ids[0] == len(ids) - 1
    return range(ids[0], ids[-1] + 1) if adjacent else ids


def choose(rows: Sequence[Row], logits: mx.array, asked: Sequence[Sequence[Allowed]], vocab: Ids) -> Choice:
    """The tokens of each row, from logits float32 [N, len(vocab)] of the ids in vocab. asked: of each row what is
    allowed, as often as it is asked; N times in all."""
    wanted = any(row.request.logprobs for row in rows)
    counts = tuple(map(len, asked))
    places = [(row, allowed) for row, several in zip(rows, asked, strict=True) for allowed in several]
    if all(row.sample.greedy and (allowed is None or allowed == vocab) for row, allowed in places):
        tokens = mx.argmax(logits, axis=-1)
        return Choice(_ids(tokens, vocab), counts, _logprobs(tokens, logits) if wanted else None)
    chosen, logprobs = [], []
    for place, (row, allowed) in enumerate(places):
        own = logits[place : place + 1]
        # The draw is among its own ids only, or it would depend on the neighbours' guides.
        ids = vocab if allowed is None else allowed
        if isinstance(ids, range):
            first = bisect_left(vocab, ids[0])
            own = own[:, first : first + len(ids)]
        else:
            own = own[:, mx.array([bisect_left(vocab, token) for token in ids])]
        tokens = row.sample(own)
        chosen.append(_ids(tokens, ids))
        logprobs.append(_logprobs(tokens, own) if wanted else tokens)
    return Choice(mx.concatenate(chosen), counts, mx.concatenate(logprobs) if wanted else None)


def _ids(tokens: mx.array, ids: Ids) -> mx.array:
    """The ids at these indices."""
    if not isinstance(ids, range):
        return mx.array(ids)[tokens]
    return tokens + ids.start if ids.start else tokens


def _logprobs(tokens: mx.array, logits: mx.array) -> mx.array:
    """tokens int [N] are indices into logits [N, n]."""
    chosen = mx.take_along_axis(logits, tokens[:, None], axis=-1).squeeze(-1)
    return chosen - mx.logsumexp(logits, axis=-1)

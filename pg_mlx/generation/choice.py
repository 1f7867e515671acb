"""The next token of every row of a batch, from the logits of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from .rows import Allowed, Row


@dataclass(frozen=True)
class Choice:
    """What was chosen for each row and not yet looked at."""

    tokens: mx.array
    """int [B]."""
    logprobs: mx.array | None = None
    """float32 [B], each token's log-probability before temperature and truncation, among the ids that were allowed;
    None where no row asked for it."""

    @property
    def arrays(self) -> list[mx.array]:
        return [self.tokens] if self.logprobs is None else [self.tokens, self.logprobs]

    def select(self, rows: Sequence[int]) -> Choice:
        """That of some rows, in the order given."""
        index = mx.array(list(rows))
        return Choice(self.tokens[index], None if self.logprobs is None else self.logprobs[index])

    def join(self, other: Choice) -> Choice:
        """That of these rows and then of others."""
        tokens = mx.concatenate([self.tokens, other.tokens])
        if self.logprobs is None and other.logprobs is None:
            return Choice(tokens)
        parts = (mx.zeros(c.tokens.shape) if c.logprobs is None else c.logprobs for c in (self, other))
        return Choice(tokens, mx.concatenate(list(parts)))

    def read(self) -> list[tuple[int, float]]:
        """Token and log-probability of each row (0.0 where nobody asked), when they are computed."""
        tokens: list[int] = self.tokens.tolist()  # type: ignore[assignment]
        logprobs: list[float] = [0.0] * len(tokens)
        if self.logprobs is not None:
            logprobs = self.logprobs.tolist()  # type: ignore[assignment]
        return list(zip(tokens, logprobs, strict=True))


def span(allowed: Sequence[Allowed], vocab: range) -> range:
    """The ids whose logits are needed: the whole vocabulary, or what the guides of all rows lie within."""
    bounds = []
    for choice in allowed:
        if choice is None:
            return vocab
        ends = (choice[0], choice[-1]) if isinstance(choice, range) else choice  # a range may be long
        bounds += [min(ends), max(ends)]
    return range(min(bounds), max(bounds) + 1)


def choose(rows: Sequence[Row], logits: mx.array, allowed: Sequence[Allowed], vocab: range) -> Choice:
    """The next token of each row, from logits float32 [B, len(vocab)] of the ids in vocab."""
    wanted = any(row.request.logprobs for row in rows)
    if all(row.sample.greedy for row in rows) and all(choice is None for choice in allowed):
        return _with_logprobs(mx.argmax(logits, axis=-1), logits, wanted)
    joined: Choice | None = None
    for index, (row, choice) in enumerate(zip(rows, allowed, strict=True)):
        own = logits[index : index + 1]
        # The draw is among its own ids only, or it would depend on the neighbours' guides.
        ids = vocab if choice is None else choice
        if isinstance(ids, range):
            own = own[:, ids.start - vocab.start : ids.stop - vocab.start]
            one = _with_logprobs(row.sample(own), own, wanted)
            one = Choice(one.tokens + ids.start, one.logprobs)
        else:
            table = mx.array(ids)
            own = own[:, table - vocab.start]
            one = _with_logprobs(row.sample(own), own, wanted)
            one = Choice(table[one.tokens], one.logprobs)
        joined = one if joined is None else joined.join(one)
    assert joined is not None
    return joined


def _with_logprobs(tokens: mx.array, logits: mx.array, wanted: bool) -> Choice:
    """tokens int [B] are indices into logits [B, n]."""
    if not wanted:
        return Choice(tokens)
    chosen = mx.take_along_axis(logits, tokens[:, None], axis=-1).squeeze(-1)
    return Choice(tokens, chosen - mx.logsumexp(logits, axis=-1))

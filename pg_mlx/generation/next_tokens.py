"""Tokens that were chosen and are perhaps not computed yet, with what is reported about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import NamedTuple

import mlx.core as mx

from ..errors import PgMlxError
from ..ops.device import dtype_name


class Choice(NamedTuple):
    """A token that was chosen, and what is known about the choice."""

    token: int
    logprob: float = 0.0
    """0.0 if no row asked for it."""
    alternatives: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens with their log-probabilities, the likeliest first; for some rows more than they asked."""


@dataclass(frozen=True)
class NextTokens:
    """Sampled tokens, possibly not yet evaluated: one per row, or several for a row with several positions, stored
    consecutively."""

    tokens: mx.array
    """int [positions], of all rows."""
    counts: tuple[int, ...]
    """How many of them belong to each row."""
    logprobs: mx.array | None = None
    """float32 [positions], each token's log-probability before penalties, temperature and truncation, among the ids
    that were allowed; None if no row asked for it."""
    alternatives: tuple[mx.array, mx.array] | None = None
    """The ids int [positions, A] of the likeliest tokens and their log-probabilities float32 [positions, A], in falling
    order; an id of -1 fills up a line. None if no row asked for them."""
    first_ids: tuple[int, ...] = ()
    """The first id that each position could choose, which is what comes out where all logits are NaN."""
    first_logits: mx.array | None = None
    """float32 [positions], the logits of those ids. Not computed unless they are needed."""

    @classmethod
    def concatenate(cls, parts: Sequence[NextTokens], counts: tuple[int, ...]) -> NextTokens:
        """The positions of all parts as those of rows with so many each."""
        tokens = mx.concatenate([part.tokens for part in parts])
        firsts = [part.first_logits for part in parts if part.first_logits is not None]
        first = (tuple(chain(*(part.first_ids for part in parts))), mx.concatenate(firsts) if firsts else None)
        if all(part.logprobs is None for part in parts):
            return cls(tokens, counts, None, None, *first)
        logprobs = mx.concatenate(
            [mx.zeros(part.tokens.shape) if part.logprobs is None else part.logprobs for part in parts]
        )
        width = max(0 if part.alternatives is None else part.alternatives[0].shape[1] for part in parts)
        if not width:
            return cls(tokens, counts, logprobs, None, *first)
        ids, values = zip(*(part._padded(width) for part in parts), strict=True)
        return cls(tokens, counts, logprobs, (mx.concatenate(list(ids)), mx.concatenate(list(values))), *first)

    @property
    def arrays(self) -> list[mx.array]:
        """What has to be evaluated."""
        logprobs = [] if self.logprobs is None else [self.logprobs]
        return [self.tokens, *logprobs, *(self.alternatives or ())]

    def select(self, rows: Sequence[int]) -> NextTokens:
        """The choices of some rows, in the order given."""
        stops = list(accumulate(self.counts))
        places = [place for row in rows for place in range(stops[row] - self.counts[row], stops[row])]
        index = mx.array(places)
        counts = tuple(self.counts[row] for row in rows)
        logprobs = None if self.logprobs is None else self.logprobs[index]
        others = self.alternatives and (self.alternatives[0][index], self.alternatives[1][index])
        first_ids = tuple(self.first_ids[place] for place in places) if self.first_ids else ()
        first_logits = None if self.first_logits is None else self.first_logits[index]
        return NextTokens(self.tokens[index], counts, logprobs, others, first_ids, first_logits)

    def join(self, other: NextTokens) -> NextTokens:
        """The choices of these rows, and then those of others."""
        return NextTokens.concatenate([self, other], self.counts + other.counts)

    def read(self) -> list[list[Choice]]:
        """Wait until they are computed. For each row its choices."""
        tokens: list[int] = self.tokens.tolist()  # type: ignore[assignment]
        logprobs: list[float] = [0.0] * len(tokens)
        if self.logprobs is not None:
            logprobs = self.logprobs.tolist()  # type: ignore[assignment]
        choices = list(map(Choice, tokens, logprobs, self._read_alternatives()))
        return [choices[stop - count : stop] for stop, count in zip(accumulate(self.counts), self.counts, strict=True)]

    def has_nan(self, choices: Sequence[Sequence[Choice]]) -> bool:
        """Whether one of these choices, as `read` gives them, was made among numbers that are none (NaN). That costs
        nothing unless a choice is the first possible one: what a model without numbers chooses, and others seldom."""
        if self.first_logits is None:
            return False
        chosen = (choice.token for row in choices for choice in row)
        suspect = any(token == first for token, first in zip(chosen, self.first_ids, strict=True))
        return suspect and bool(mx.isnan(self.first_logits).any().item())

    def _read_alternatives(self) -> list[tuple[tuple[int, float], ...]]:
        if self.alternatives is None:
            return [()] * self.tokens.size
        ids: list[list[int]] = self.alternatives[0].tolist()  # type: ignore[assignment]
        values: list[list[float]] = self.alternatives[1].tolist()  # type: ignore[assignment]
        return [
            tuple(pair for pair in zip(*line, strict=True) if pair[0] >= 0) for line in zip(ids, values, strict=True)
        ]

    def _padded(self, width: int) -> tuple[mx.array, mx.array]:
        """The alternatives in lines of this width."""
        if self.alternatives is None:
            count = self.tokens.shape[0]
            return mx.full((count, width), -1, mx.int32), mx.zeros((count, width))
        ids, values = self.alternatives
        more = [(0, 0), (0, width - ids.shape[1])]
        return mx.pad(ids.astype(mx.int32), more, constant_values=-1), mx.pad(values, more)


def no_numbers(dtype: mx.Dtype) -> PgMlxError:
    """What is raised for choices among NaN. dtype: the model's."""
    return PgMlxError(
        "the model computes no numbers (NaN): its weights are damaged or have diverged in training, or are too "
        f"large for {dtype_name(dtype)}"
    )

"""Requests for an engine with a small random model: random guides, pictures and options, and the answer given alone."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from pg_mlx.generation import Engine, Picture, Request, Row, SamplingOptions

from .laws import fixed
from .models import VOCAB

EOS = 1
examples = settings(max_examples=25, deadline=None, derandomize=True)


@functools.cache
def picture(seed: int) -> Picture:
    return Picture(np.random.default_rng(seed).uniform(-1, 1, (28, 28, 3)).astype(np.float32))


@dataclass
class Script:
    """A guide that allows some ids at each turn, and after some of the tokens forces others to follow, in about half of
    the turns."""

    seed: int
    turn: int = 0
    forced: list[int] = field(default_factory=list)
    broken: bool = False

    def allowed(self) -> Sequence[int] | None:
        random = np.random.default_rng((self.seed, self.turn))
        if random.random() < 0.3:
            return None
        start = int(random.integers(0, 60))
        if random.random() < 0.3:
            return [EOS, start + 2]
        return range(start, start + 9) if random.random() < 0.5 else [EOS, start + 2, start + 7, 80]

    def advance(self, token_id: int) -> Sequence[int]:
        self.broken |= token_id == EOS
        allowed = self.allowed()
        self.broken |= allowed is not None and token_id not in allowed
        random = np.random.default_rng((self.seed, self.turn, token_id))
        follow = [] if self._calm else random.integers(1, VOCAB, int(random.choice([0, 0, 2, 5]))).tolist()
        self.turn += 1
        self.forced += follow
        return follow

    def allowed_after_next(self) -> Sequence[int] | None:
        return Script(self.seed, self.turn + 1).allowed() if self._calm else None

    @property
    def _calm(self) -> bool:
        """Whether nothing is forced after the next token."""
        return bool(np.random.default_rng((self.seed, self.turn)).integers(0, 2**16) % 2)


def engine_of(kind: str, batch_size: int, **options: object) -> Engine:
    return Engine(fixed(kind), eos_id=EOS, vocab_size=90, batch_size=batch_size, **options)


def finish(engine: Engine) -> None:
    while engine.busy:
        engine.step()


def alone(kind: str, request: Request) -> Row:
    engine = engine_of(kind, 1)
    row = engine.add(request)
    finish(engine)
    return row


@st.composite
def requests(draw: st.DrawFn, guides: bool = True) -> Request:
    options = SamplingOptions(
        max_tokens=draw(st.integers(1, 12)),
        temperature=draw(st.sampled_from([0.0, 0.0, 1.0, 3.0])),
        top_p=draw(st.sampled_from([1.0, 0.9])),
        top_k=draw(st.sampled_from([0, 7])),
        min_p=draw(st.sampled_from([0.0, 0.05])),
        seed=draw(st.integers(0, 9)),
        repetition_penalty=draw(st.sampled_from([1.0, 1.0, 1.5])),
        repetition_context_size=draw(st.sampled_from([0, 3])),
        no_repeat_ngram_size=draw(st.sampled_from([0, 0, 2])),
    )
    pictures = [picture(seed) for seed in draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))]
    ids = draw(st.lists(st.integers(2, 80), min_size=1, max_size=7))
    guide = Script(draw(st.integers(0, 999))) if guides and draw(st.booleans()) else None
    return Request(pictures, ids, options, guide, draw(st.sampled_from([False, True, 2, 5])))

"""A model that begins to compute NaN in the middle of an answer ends it with an error, not with silence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import pytest
from helpers.engine import engine_of, finish, picture

from pg_mlx.errors import PgMlxError
from pg_mlx.generation import Recovery, Request, SamplingOptions
from pg_mlx.generation import next_tokens as next_tokens_module
from pg_mlx.paligemma import PaliGemma

OPTIONS = {
    "greedy": SamplingOptions(max_tokens=8),
    "drawn": SamplingOptions(max_tokens=8, temperature=1, seed=1),
    "drawn among few": SamplingOptions(max_tokens=8, temperature=1, seed=1, top_p=0.5, top_k=7, min_p=0.1),
    "penalised": SamplingOptions(max_tokens=8, repetition_penalty=1.3, no_repeat_ngram_size=2),
}


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The model computes NaN in its third step. The list has the number of steps so far."""
    steps, real = [0], PaliGemma.extend

    def extend(self: PaliGemma, *given: Any, **more: Any) -> Any:
        logits, cache = real(self, *given, **more)
        steps[0] += 1
        return (logits * float("nan") if steps[0] == 3 else logits), cache

    monkeypatch.setattr(PaliGemma, "extend", extend)
    yield steps


@pytest.mark.parametrize("logprobs", [False, 2])
@pytest.mark.parametrize("how", OPTIONS)
def test_nan_in_a_later_step_is_an_error(how: str, logprobs: int, late: list[int]) -> None:
    engine = engine_of("gemma2", 1)
    engine._eos_id = 10**6  # no answer ends before
    row = engine.add(Request([picture(1)], [2, 5, 9], OPTIONS[how], logprobs=logprobs))
    with pytest.raises(PgMlxError, match="computes no numbers"):
        finish(engine)
    assert late[0] >= 3 and len(row.token_ids) == 3


@dataclass
class Among:
    """A guide that always allows the same ids, and forces nothing."""

    ids: range | list[int]

    def allowed(self) -> range | list[int]:
        return self.ids

    def advance(self, token_id: int) -> Sequence[int]:
        return ()

    def allowed_after_next(self) -> None:
        return None


@pytest.mark.parametrize("ids", [range(20, 30), [7, 30, 31, 60]], ids=["a range", "a list"])
def test_nan_behind_a_guide_is_an_error(ids: range | list[int], late: list[int]) -> None:
    engine = engine_of("gemma", 1)
    engine.add(Request([picture(1)], [2, 5, 9], OPTIONS["greedy"], guide=Among(ids)))
    with pytest.raises(PgMlxError, match="computes no numbers"):
        finish(engine)
    assert late[0] == 3


def test_only_the_row_at_fault_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of a batch is answered as ever."""
    options = SamplingOptions(max_tokens=6)
    sound = [Request([picture(seed)], [2, 5, 9], options) for seed in (1, 2)]
    wanted = []
    for request in sound:
        engine = engine_of("gemma2", 1)
        row = engine.add(request)
        finish(engine)
        wanted.append(row.token_ids)
    bad = Request([picture(3)], [2, 5, 9], options)
    real = PaliGemma.extend
    engine = Recovery(lambda: engine_of("gemma2", 3))
    rows = [engine.add(request) for request in (sound[0], bad, sound[1])]

    def extend(self: PaliGemma, ids: mx.array, cache: Any, *given: Any, **more: Any) -> Any:
        logits, after = real(self, ids, cache, *given, **more)
        running = engine._engine._rows
        broken = mx.array([float("nan") if row.request is bad else 1.0 for row in running])
        return logits * broken[:, None], after

    monkeypatch.setattr(PaliGemma, "extend", extend)
    errors = {}
    while engine.busy:
        for progress in engine.step():
            if progress.error is not None:
                errors[progress.row] = progress.error
    assert list(errors) == [rows[1]] and "computes no numbers" in str(errors[rows[1]])
    assert [rows[0].token_ids, rows[2].token_ids] == wanted


def test_it_costs_nothing_while_answers_are_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    """No further value is computed or read."""
    engine = engine_of("gemma2", 1)
    engine._eos_id = 10**6
    row = engine.add(Request([picture(1)], [2, 5, 9], SamplingOptions(max_tokens=6)))
    engine.step()  # whose prefix is looked at as a whole

    def isnan(array: mx.array) -> mx.array:
        raise AssertionError("it was computed")

    monkeypatch.setattr(next_tokens_module.mx, "isnan", isnan)
    finish(engine)
    assert len(row.token_ids) == 6 and 0 not in row.token_ids

"""The engine: whoever enters or leaves beside it, a row says what it says alone."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import pytest
from helpers.engine import EOS, Script, alone, engine_of, examples, finish, picture, requests
from helpers.laws import fixed, kinds
from helpers.models import VOCAB, note_widths
from hypothesis import given
from hypothesis import strategies as st

from pg_mlx import InputError
from pg_mlx.generation import FeatureCache, Picture, Request, Row, SamplingOptions
from pg_mlx.generation import engine as engine_module
from pg_mlx.generation import features as pictures_module

plans = st.lists(st.tuples(requests(), st.integers(0, 4), st.none() | st.integers(0, 6)), min_size=1, max_size=7)


@kinds
@examples
@given(plan=plans, batch_size=st.integers(1, 4))
def test_each_row_says_what_it_says_alone(
    kind: str, plan: list[tuple[Request, int, int | None]], batch_size: int
) -> None:
    """Requests arrive some steps after one another, and some are cancelled some steps after that."""
    engine = engine_of(kind, batch_size)
    rows: list[Row] = []
    seen: dict[Row, list[int]] = {}
    cancel: dict[Row, int] = {}

    def step() -> None:
        for row in rows:
            if cancel[row] == 0:
                row.cancel()
            cancel[row] -= 1
        for progress in engine.step():
            seen[progress.row] += progress.token_ids

    for request, pause, patience in plan:
        for _ in range(pause):
            step()
        rows.append(engine.add(request))
        seen[rows[-1]], cancel[rows[-1]] = [], -1 if patience is None else patience
    while engine.busy:
        step()

    for row, (request, _, _) in zip(rows, plan, strict=True):
        expected = alone(kind, request)
        assert seen[row] == row.token_ids
        if row.finish_reason == "cancelled":
            assert row.token_ids == expected.token_ids[: len(row.token_ids)]
        else:
            assert (row.token_ids, row.finish_reason) == (expected.token_ids, expected.finish_reason)
            assert_same_choices(row, expected)
            assert row.decoded == len(row.token_ids) + (row.finish_reason == "stop")
        assert max(row.token_ids, default=0) < VOCAB and EOS not in row.token_ids
        assert row.guide is None or not row.guide.broken


def assert_same_choices(row: Row, expected: Row) -> None:
    """Log-probabilities, and as many alternatives as were asked for; two that are equally likely may change places."""
    wanted = row.request.alternatives
    assert len(row.choices) == (0 if wanted is None else len(row.token_ids))
    for mine, other in zip(row.choices, expected.choices, strict=True):
        assert (mine is None) == (other is None)
        if mine and other:
            assert mine.logprob == pytest.approx(other.logprob, abs=1e-4)
            values = [[value for _, value in choice.alternatives[:wanted]] for choice in (mine, other)]
            assert values[0] == pytest.approx(values[1], abs=1e-4)


def test_answers_differ_and_end_in_every_way() -> None:
    """So that the test above compares something."""
    rows = []
    for seed in range(40):
        options = SamplingOptions(max_tokens=6, temperature=[0.0, 3.0][seed % 2], seed=seed)
        rows.append(
            alone("gemma2", Request([picture(seed)], [5, 6, 2 + seed], options, [None, Script(seed)][seed % 3 == 0]))
        )
    assert len({tuple(row.token_ids) for row in rows}) > 30
    assert {row.finish_reason for row in rows} == {"stop", "length"}
    assert any(row.guide and row.guide.forced for row in rows)


@kinds
def test_forced_tokens_are_what_choosing_them_would_have_given(kind: str) -> None:
    """A guide that forces tokens leads to the same answer as one that allows nothing else, token by token."""

    class Forcing:
        def allowed(self) -> None:
            return None

        def advance(self, token_id: int) -> list[int]:
            return [(token_id * 7) % 80 + 2, 33, 44]

        def allowed_after_next(self) -> None:
            return None

    class Allowing:
        following: tuple[int, ...] = ()

        def allowed(self) -> list[int] | None:
            return [self.following[0]] if self.following else None

        def advance(self, token_id: int) -> list[int]:
            self.following = self.following[1:] if self.following else ((token_id * 7) % 80 + 2, 33, 44)
            return []

        def allowed_after_next(self) -> None:
            return None

    rows = []
    for guide in (Forcing(), Allowing()):
        engine = engine_of(kind, 2)
        rows.append(engine.add(Request([picture(0)], [7, 8], SamplingOptions(max_tokens=18), guide)))
        engine.add(Request([picture(1)], [7, 8, 9], SamplingOptions(max_tokens=5)))
        finish(engine)
    assert rows[0].token_ids == rows[1].token_ids and len(rows[0].token_ids) >= 9


@kinds
def test_what_is_read_ahead_is_what_would_have_been_said(kind: str) -> None:
    """Whether the answer goes on or ends: asked in one pass with what comes then, or in a pass of its own. A list of
    three, of which two are the same, is not read ahead."""

    @dataclass
    class Ending:
        ahead: bool
        seed: int
        turn: int = 0

        def allowed(self) -> list[int] | None:
            if self.turn % 3 != 2:
                return None
            other = 2 + (self.seed * 13 + self.turn * 5) % 80
            return [EOS, other] if self.ahead else [EOS, other, other]

        def advance(self, token_id: int) -> list[int]:
            self.turn += 1
            return [20 + token_id % 50, 9, *[EOS] * (token_id % 3 == 1)] if self.turn % 3 == 0 else []

        def allowed_after_next(self) -> None:
            return None

    answers = {}
    for ahead in (True, False):
        rows, engine = [], engine_of(kind, 3)
        for seed in range(24):
            options = SamplingOptions(max_tokens=14 + seed % 5)
            rows.append(
                engine.add(Request([picture(seed)], [7, 8 + seed], options, Ending(ahead, seed), logprobs=True))
            )
        finish(engine)
        answers[ahead] = rows
    for one, other in zip(answers[True], answers[False], strict=True):
        assert (one.token_ids, one.finish_reason, one.decoded) == (other.token_ids, other.finish_reason, other.decoded)
        assert [logprob is None for logprob in one.logprobs] == [logprob is None for logprob in other.logprobs]
    lengths = {len(row.token_ids) for row in answers[True]}
    assert {row.finish_reason for row in answers[True]} == {"stop", "length"} and len(lengths) > 4


def test_the_cache_grows_when_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    request = Request([picture(0)], [5, 6], SamplingOptions(max_tokens=40, temperature=2.0, seed=3))
    expected = alone("gemma2", request)
    assert len(expected.token_ids) > 12
    monkeypatch.setattr(engine_module, "ROOM", 3)
    assert alone("gemma2", request).token_ids == expected.token_ids


def test_many_long_prefixes_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "PREFILL_TOKENS", 20)
    widths = note_widths(monkeypatch, "prefill")
    rows = [Request([picture(i)] * (1 + i % 2), [5] * (1 + i), SamplingOptions(max_tokens=4)) for i in range(6)]
    engine = engine_of("gemma", 6)
    running = [engine.add(request) for request in rows]
    finish(engine)
    assert sum(widths) == 6 and max(widths) == 2
    monkeypatch.undo()
    assert [row.token_ids for row in running] == [alone("gemma", request).token_ids for request in rows]


def test_finished_rows_are_not_computed_on(ops: str, monkeypatch: pytest.MonkeyPatch) -> None:
    widths = note_widths(monkeypatch, "extend")
    engine = engine_of("gemma", 3)
    for tokens in (2, 4, 4, 3):
        engine.add(Request([picture(0)], [5], SamplingOptions(max_tokens=tokens, temperature=9.0, seed=tokens)))
    finish(engine)
    # While two go on, the fourth is prefilled in the first one's place. With a GPU's operations the next step has begun
    # before Python knows who is finished.
    assert widths == ([3, 2, 3, 1] if ops == "cpu" else [3, 3, 3, 3])


def test_a_picture_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    widths = note_widths(monkeypatch, "encode_image")
    features = FeatureCache(fixed("gemma"))
    engine = engine_of("gemma", 8, features=features)
    for index in range(8):
        engine.add(Request([picture(index // 4)], [5 + index], SamplingOptions(max_tokens=2)))
    finish(engine)
    assert widths == [2]  # one pass for all of them
    equal = Picture(picture(1).pixels.copy())
    engine.add(Request([equal, picture(2), equal], [5], SamplingOptions(max_tokens=2)))
    finish(engine)
    assert widths == [2, 1]


def test_many_pictures_are_encoded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures_module, "PATCHES", 9)  # a picture has 4
    widths = note_widths(monkeypatch, "encode_image")
    together = FeatureCache(fixed("gemma")).features([picture(seed) for seed in range(5)])
    assert widths == [2, 2, 1]
    for seed, features in enumerate(together):
        alone = FeatureCache(fixed("gemma")).features([picture(seed)])[0]
        assert mx.allclose(features, alone, atol=1e-5).item()


def test_pictures_of_another_size_are_refused_before_they_are_queued() -> None:
    engine = engine_of("gemma", 2)
    for pictures in ([], [Picture(np.zeros((42, 42, 3), np.float32))], [picture(0), Picture(np.zeros((28, 28, 1)))]):
        with pytest.raises(InputError, match="28"):
            engine.add(Request(pictures, [5]))
    assert not engine.busy and engine.step() == []


def test_the_feature_cache_keeps_what_was_used_last_within_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    widths = note_widths(monkeypatch, "encode_image")
    one = FeatureCache(fixed("gemma")).features([picture(0)])[0]
    widths.clear()
    cache = FeatureCache(fixed("gemma"), 2 * one.nbytes)
    for seed in (0, 1, 0, 2, 0, 1):  # 1 is dropped for 2, then 2 for 1
        cache.features([picture(seed)])
        assert cache.held_bytes <= cache.limit_bytes
    assert widths == [1, 1, 1, 1]
    assert mx.array_equal(cache.features([picture(0)])[0], one).item() and cache.held_bytes == 2 * one.nbytes
    nothing = FeatureCache(fixed("gemma"), one.nbytes - 1)
    both = nothing.features([picture(0), picture(0)])
    assert mx.array_equal(both[0], both[1]).item() and nothing.held_bytes == 0


def test_a_request_asked_again_says_the_same_even_without_a_seed():
    options = SamplingOptions(max_tokens=12, temperature=3.0)
    one, other = (Request([picture(0)], [7, 8], options, Script(3)) for _ in range(2))
    assert alone("gemma2", one).token_ids == alone("gemma2", one).token_ids
    assert one.options.seed != other.options.seed

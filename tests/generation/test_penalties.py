"""Options against repetition: equal to the formulas of mlx_lm and transformers, for every row by itself."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from helpers.engine import EOS, alone, engine_of, examples, finish, picture
from helpers.models import one_line_error
from hypothesis import given
from hypothesis import strategies as st

import pg_mlx
from pg_mlx.demo import CHECKPOINT
from pg_mlx.generation import Engine, Request, SamplingOptions
from pg_mlx.generation import sampling as sampling_module
from pg_mlx.generation.penalties import penalized, repeating

SCENE = CHECKPOINT.parent / "scene.png"
V = 40

histories = st.lists(st.integers(0, V - 1), max_size=30)
some_logits = st.integers(0, 999).map(lambda seed: mx.random.normal((1, V), key=mx.random.key(seed)) * 3)


def transformers_repetition(logits: np.ndarray, history: list[int], penalty: float) -> np.ndarray:
    """RepetitionPenaltyLogitsProcessor: over all tokens, each once."""
    changed = logits.copy()
    for token in set(history):
        score = logits[0, token]
        changed[0, token] = score * penalty if score < 0 else score / penalty
    return changed


def transformers_banned(history: list[int], size: int) -> set[int]:
    """NoRepeatNGramLogitsProcessor: all n-grams of the history in a table by their first n - 1 tokens."""
    table: dict[tuple[int, ...], set[int]] = {}
    for ngram in zip(*[history[start:] for start in range(size)], strict=False):
        table.setdefault(tuple(ngram[:-1]), set()).add(ngram[-1])
    return table.get(tuple(history[len(history) + 1 - size :]), set()) if len(history) + 1 >= size else set()


@examples
@given(logits=some_logits, history=histories, penalty=st.floats(0.3, 4), context=st.integers(1, 40))
def test_the_repetition_penalty_is_mlx_lms(logits: mx.array, history: list[int], penalty: float, context: int) -> None:
    from mlx_lm.sample_utils import make_repetition_penalty

    theirs = make_repetition_penalty(penalty, context)(mx.array(history, mx.int32), logits + 0)
    ours = penalized(logits, range(V), history, penalty, context)
    assert np.allclose(np.array(ours), np.array(theirs), rtol=1e-6)


@examples
@given(logits=some_logits, history=histories, penalty=st.floats(0.3, 4))
def test_without_a_context_size_it_is_transformers(logits: mx.array, history: list[int], penalty: float) -> None:
    expected = transformers_repetition(np.array(logits), history, penalty)
    assert np.allclose(np.array(penalized(logits, range(V), history, penalty, 0)), expected, rtol=1e-6)


@examples
@given(logits=some_logits, history=st.lists(st.integers(0, 3), max_size=30), size=st.integers(1, 5))
def test_the_ban_is_transformers(logits: mx.array, history: list[int], size: int) -> None:
    banned = transformers_banned(history, size)
    assert repeating(history, size) == banned
    expected = np.array(logits)
    expected[0, list(banned)] = -np.inf
    before = np.array(logits)
    assert np.array_equal(np.array(penalized(logits, range(V), history, no_repeat_ngram_size=size)), expected)
    assert np.array_equal(np.array(logits), before), "the caller's logits were changed"


@examples
@given(
    logits=some_logits,
    history=histories,
    ids=st.sets(st.integers(0, V - 1), min_size=1).map(sorted) | st.just(range(7, 19)),
    size=st.integers(1, 3),
)
def test_among_some_ids_it_is_the_same(logits: mx.array, history: list[int], ids: Any, size: int) -> None:
    index = mx.array(list(ids))
    whole = np.array(penalized(logits, range(V), history, 1.7, 0))[:, list(ids)]
    allowed = [token not in repeating(history, size) for token in ids]
    if any(allowed):
        whole[0, [not one for one in allowed]] = -np.inf
    assert np.array_equal(np.array(penalized(logits[:, index], ids, history, 1.7, 0, size)), whole)
    assert np.isfinite(whole).any()


@pytest.mark.parametrize(
    "options",
    [
        dict(repetition_penalty=0), dict(repetition_penalty=-1.0), dict(repetition_penalty=float("nan")),
        dict(repetition_penalty=float("inf")), dict(repetition_context_size=-1), dict(repetition_context_size=1.5),
        dict(no_repeat_ngram_size=-1), dict(no_repeat_ngram_size=2.0),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_out_of_range_is_named(options: dict[str, Any]) -> None:
    with one_line_error(next(iter(options))):
        SamplingOptions(**options)


@examples
@given(data=st.data())
def test_every_choice_sees_the_prompt_and_the_answer_before_it(data: st.DataObject) -> None:
    """Through the engine, with neighbours and guides. The answer is the one that the formulas give."""
    from helpers.engine import requests

    seen: list[tuple[tuple[int, ...], mx.array, int]] = []
    real = sampling_module.Sampler.penalized

    def record(self: sampling_module.Sampler, logits: mx.array, ids: Any, history: Any) -> mx.array:
        seen.append((tuple(history), logits, len(ids)))
        return real(self, logits, ids, history)

    asked = data.draw(st.lists(requests(), min_size=1, max_size=4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling_module.Sampler, "penalized", record)
        engine = engine_of("gemma2", 3)
        rows = [engine.add(request) for request in asked]
        finish(engine)
    looking = [row for row in rows if row.request.options.looks_back]
    whole = [(*row.request.prompt_ids, *row.token_ids) for row in looking]
    for history, _, _ in seen:
        assert any(history[: len(one)] == one or one[: len(history)] == history for one in whole)
    assert bool(seen) == bool(looking)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_answer_says_an_ngram_twice(size: int) -> None:
    for seed in range(6):
        options = SamplingOptions(max_tokens=30, no_repeat_ngram_size=size, temperature=[0.0, 2.0][seed % 2], seed=seed)
        row = alone("gemma", Request([picture(seed)], [5, 6, 5, 6], options))
        tokens = [5, 6, 5, 6, *row.token_ids]
        ngrams = [tuple(tokens[at : at + size]) for at in range(len(tokens) - size + 1)]
        new = ngrams[max(0, 4 - size + 1) :]
        assert len(set(new)) == len(new) and not set(new) & set(ngrams[: len(ngrams) - len(new)])


def test_greedy_answers_are_those_of_the_formula() -> None:
    """Logits at each step from the model itself, given the prompt and the answer so far."""
    for penalty, context, size in ((1.8, 4, 0), (0.5, 0, 0), (1.3, 20, 2)):
        options = SamplingOptions(
            max_tokens=12, repetition_penalty=penalty, repetition_context_size=context, no_repeat_ngram_size=size
        )
        got = alone("gemma2", Request([picture(1)], [7, 8, 9], options)).token_ids
        known = [7, 8, 9]
        for token in [*got, None]:
            logits = np.array(next_logits(known[3:]))
            changed = transformers_repetition(logits, known[-context:], penalty)
            changed[0, list(transformers_banned(known, size)) if size else []] = -np.inf
            best = int(changed.argmax())
            assert best == (EOS if token is None else token) or (token is None and len(got) == 12)
            if token is None:
                break
            known.append(token)


def next_logits(answer: list[int]) -> mx.array:
    """float32 [1, 90] after the prompt 7 8 9 and this answer."""
    from helpers.laws import fixed

    model = fixed("gemma2")
    features = model.encode_image(mx.array(picture(1).pixels)[None])
    logits, cache = model.prefill(features, mx.array([[7, 8, 9]]), capacity=64)
    for token in answer:
        logits, cache = model.step(mx.array([token]), cache)
    return logits.reshape(1, -1)[:, :90]


def test_off_nothing_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("computed")

    monkeypatch.setattr(sampling_module.Sampler, "penalized", never)
    monkeypatch.setattr("pg_mlx.generation.rows.Row.histories", property(never))
    monkeypatch.setattr("pg_mlx.generation.answer.HeldBack", never)
    monkeypatch.setattr("pg_mlx.generation.stop.StopWatch.ends", never)
    monkeypatch.setattr(mx, "logsumexp", never)
    monkeypatch.setattr(mx, "argpartition", never)
    model, processor = pg_mlx.load(CHECKPOINT, dtype="float32")
    assert pg_mlx.generate(model, processor, "caption en", SCENE, max_tokens=5).token_ids


@pytest.mark.ops("gpu", reason="only a GPU's operations run ahead")
def test_a_pass_ahead_waits_for_the_tokens_it_must_know(monkeypatch: pytest.MonkeyPatch) -> None:
    advanced: list[bool] = []
    real = Engine._advance

    def advance(self: Engine, *arguments: object) -> None:
        advanced.append(self._next is not None and len(self._rows[0].token_ids) == len(advanced))
        real(self, *arguments)

    monkeypatch.setattr(Engine, "_advance", advance)
    alone("gemma", Request([picture(1)], [5, 6], SamplingOptions(max_tokens=5)))
    assert all(advanced), "each pass begins before its token is read"
    advanced.clear()
    alone("gemma", Request([picture(1)], [5, 6], SamplingOptions(max_tokens=5, repetition_penalty=1.1)))
    assert not any(advanced), "the penalty depends on the token"

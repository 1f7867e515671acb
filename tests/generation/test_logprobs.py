"""Log-probabilities of the chosen tokens and of their alternatives: equal to the model's logits."""

from __future__ import annotations

import json
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from helpers.engine import examples
from helpers.models import one_line_error
from hypothesis import given
from hypothesis import strategies as st

import pg_mlx
from pg_mlx.demo import CHECKPOINT
from pg_mlx.generation import SamplingOptions
from pg_mlx.generation.next_tokens import Choice, NextTokens
from pg_mlx.generation.sampling import alternatives, choose

SCENE = CHECKPOINT.parent / "scene.png"


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return pg_mlx.load(CHECKPOINT)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@examples
@given(
    seed=st.integers(0, 999),
    count=st.integers(0, 20),
    temperature=st.sampled_from([0.0, 2.0]),
    allowed=st.none() | st.just(range(3, 11)) | st.just([1, 5, 9]),
    penalty=st.sampled_from([1.0, 5.0]),
)
def test_they_are_those_of_the_logits(seed: int, count: int, temperature: float, allowed: Any, penalty: float) -> None:
    """Before temperature, truncation and penalties, among the allowed ids."""
    logits = mx.random.normal((2, 16), key=mx.random.key(seed)) * 4
    options = SamplingOptions(
        temperature=temperature, seed=seed, top_k=2, repetition_penalty=penalty, no_repeat_ngram_size=1
    )
    chosen = choose(
        [options.sampler(16)] * 2, logits, [[allowed], [None]], range(16), count, [[[3, 5, 9]], [[0, 1, 2]]]
    )
    for row, (choice,) in enumerate(chosen.read()):
        ids = list(range(16)) if allowed is None or row else list(allowed)
        expected = log_softmax(np.array(logits)[row, ids])
        assert choice.token in ids
        assert choice.logprob == pytest.approx(expected[ids.index(choice.token)], abs=1e-5)
        order = np.argsort(-expected)[:count]
        assert [token for token, _ in choice.alternatives] == [ids[place] for place in order]
        assert [value for _, value in choice.alternatives] == pytest.approx(expected[order], abs=1e-5)


@examples
@given(widths=st.lists(st.none() | st.integers(0, 4), min_size=1, max_size=5), data=st.data())
def test_rows_with_and_without_join_and_part(widths: list[int | None], data: st.DataObject) -> None:
    parts, expected = [], []
    for number, width in enumerate(widths):
        ids = list(range(number, number + (width or 0)))
        others = (mx.array([ids], mx.int32), mx.array([[-float(i) for i in ids]])) if width else None
        parts.append(NextTokens(mx.array([number]), (1,), None if width is None else mx.array([-0.5]), others))
        expected.append(Choice(number, 0.0 if width is None else -0.5, tuple((i, -float(i)) for i in ids)))
    joined = parts[0]
    for part in parts[1:]:
        joined = joined.join(part)
    assert joined.read() == [[choice] for choice in expected]
    rows = data.draw(st.lists(st.integers(0, len(widths) - 1), min_size=1, max_size=4))
    assert joined.select(rows).read() == [[expected[row]] for row in rows]


def test_an_answer_has_them_with_text_and_its_steps_too(loaded: tuple[Any, Any]) -> None:
    *steps, last = pg_mlx.stream_generate(*loaded, "caption en", SCENE, logprobs=3)
    generation = last.generation
    assert generation is not None and generation.logprobs is not None
    assert [step.token for step in steps] == generation.logprobs
    assert b"".join(token.bytes or b"" for token in generation.logprobs).decode() == generation.text
    for token, step in zip(generation.logprobs, steps, strict=True):
        assert token.token_id == step.token_id and token.logprob == step.logprob
        values = [other.logprob for other in token.alternatives]
        assert len(values) == 3 and values == sorted(values, reverse=True)
        assert token.alternatives[0].token_id == token.token_id  # greedy
    shown = json.loads(json.dumps(generation.to_json()))["logprobs"]
    assert [one["token"] for one in shown] == [token.text for token in generation.logprobs]
    assert set(shown[0]) == {"token", "logprob", "bytes", "top_logprobs"}
    assert set(shown[0]["top_logprobs"][0]) == {"token", "logprob", "bytes"} and len(shown[0]["top_logprobs"]) == 3


def test_eos_is_a_token_without_text(loaded: tuple[Any, Any]) -> None:
    generation = pg_mlx.generate(*loaded, "caption en", SCENE, logprobs=20)
    assert generation.logprobs
    others = [other for token in generation.logprobs for other in token.alternatives]
    (eos, *_) = [other for other in others if other.token_id == loaded[1].tokenizer.eos_id]
    assert (eos.text, eos.bytes) == ("<eos>", None) and eos.logprob and eos.logprob < 0


def test_forced_tokens_have_none_and_are_certain_in_json(loaded: tuple[Any, Any]) -> None:
    generation = pg_mlx.generate(*loaded, "detect red circle", SCENE, constrain=True, logprobs=2)
    forced = [token for token in generation.logprobs or () if token.logprob is None]
    assert forced and all(token.alternatives == () and token.to_json()["logprob"] == 0 for token in forced)


def test_without_being_asked_there_are_none(loaded: tuple[Any, Any]) -> None:
    generation = pg_mlx.generate(*loaded, "caption en", SCENE, max_tokens=2)
    assert generation.logprobs is None and "logprobs" not in generation.to_json()
    batch = pg_mlx.batch_generate(*loaded, ["ocr", "caption en"], SCENE, max_tokens=2, logprobs=True)
    assert all(one.logprobs and one.logprobs[0].alternatives == [] for one in batch)


def test_true_is_no_alternatives_and_false_is_off() -> None:
    assert [alternatives(value) for value in (None, False, True, 0, 1, 20)] == [None, None, 0, 0, 1, 20]
    for wrong in (-1, 21, 1.5, "3"):
        with one_line_error("logprobs"):
            alternatives(wrong)  # type: ignore[arg-type]

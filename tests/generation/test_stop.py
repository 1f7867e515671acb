"""Stop strings: the answer is cut before them, however they are spread over tokens, and nothing of them is streamed."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.engine import examples
from helpers.models import one_line_error
from hypothesis import given
from hypothesis import strategies as st

import pg_mlx
from pg_mlx.demo import CHECKPOINT
from pg_mlx.generation import Generation, SamplingOptions, Step
from pg_mlx.generation.stop import HeldBack, first_stop

SCENE, CLUTTER = CHECKPOINT.parent / "scene.png", CHECKPOINT.parent / "clutter.png"


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return pg_mlx.load(CHECKPOINT)


@pytest.fixture(scope="module")
def caption(loaded: tuple[Any, Any]) -> Generation:
    return pg_mlx.generate(*loaded, "caption en", SCENE, logprobs=True)


def whole(steps: list[Step]) -> Generation:
    """The Generation of these steps, which must be what they say."""
    generation = steps[-1].generation
    assert generation is not None
    assert "".join(step.text for step in steps) == generation.text
    assert [step.token_id for step in steps[:-1]] == generation.token_ids
    return generation


def test_every_piece_of_an_answer_stops_it(loaded: tuple[Any, Any], caption: Generation) -> None:
    """Also those that begin or end within a token, or span several."""
    text = caption.text
    for start in range(0, len(text), 5):
        for length in (1, 2, 7):
            stop = text[start : start + length]
            got = whole(list(pg_mlx.stream_generate(*loaded, "caption en", SCENE, stop=stop)))
            assert (got.text, got.finish_reason) == (text[: text.find(stop)], "stop"), stop
            assert got.token_ids == caption.token_ids[: len(got.token_ids)]
            assert len(loaded[1].tokenizer.decode(got.token_ids)) >= len(got.text)


def test_tokens_beyond_the_cut_are_not_computed(loaded: tuple[Any, Any], caption: Generation) -> None:
    got = pg_mlx.generate(*loaded, "caption en", SCENE, stop="circle")
    assert got.stats.decode_tokens < caption.stats.decode_tokens


def test_the_first_of_several_counts_and_what_only_begins_one_is_kept(
    loaded: tuple[Any, Any], caption: Generation
) -> None:
    text = caption.text
    two = [text[-4:] + "never", text[9:12], text[5:8]]
    assert pg_mlx.generate(*loaded, "caption en", SCENE, stop=two).text == text[: min(map(text.find, two[1:]))]
    got = whole(list(pg_mlx.stream_generate(*loaded, "caption en", SCENE, stop=[text[-4:] + "never", "nothing"])))
    assert (got.text, got.token_ids) == (text, caption.token_ids)


def test_logprobs_and_regions_are_those_of_the_text(loaded: tuple[Any, Any]) -> None:
    free = pg_mlx.generate(*loaded, "detect red circle ; blue star", SCENE, logprobs=1)
    assert len(free.regions) > 1 and free.logprobs
    for constrain in (False, True):
        asked = dict(stop=" ;", logprobs=1, constrain=constrain)
        got = whole(list(pg_mlx.stream_generate(*loaded, "detect red circle ; blue star", SCENE, **asked)))
        assert got.text == free.text.partition(" ;")[0] and got.finish_reason == "stop"
        assert [region.box for region in got.regions] == [free.regions[0].box] and got.malformed == []
        assert got.regions[0].label == free.regions[0].label and got.logprobs is not None
        assert [one.token_id for one in got.logprobs] == got.token_ids


def test_the_rows_of_a_batch_stop_by_themselves(loaded: tuple[Any, Any]) -> None:
    prompts = ["caption en", "ocr", "detect red circle", "caption en"]
    options = dict(stop=["circle", "a b"], repetition_penalty=1.05, no_repeat_ngram_size=4, logprobs=2)
    pictures = [SCENE, CLUTTER, SCENE, CLUTTER]
    batch = pg_mlx.batch_generate(*loaded, prompts, pictures, batch_size=3, **options)
    for prompt, image, got in zip(prompts, pictures, batch, strict=True):
        expected = pg_mlx.generate(*loaded, prompt, image, **options)
        assert (got.text, got.token_ids, got.finish_reason) == (
            (expected.text, expected.token_ids, expected.finish_reason)
        )


def test_a_stop_at_the_last_token_is_a_stop(loaded: tuple[Any, Any], caption: Generation) -> None:
    first = loaded[1].tokenizer.decode(caption.token_ids[:3])
    got = pg_mlx.generate(*loaded, "caption en", SCENE, max_tokens=3, stop=first[-2:])
    assert got.finish_reason == "stop" and got.text == first[: first.find(first[-2:])]


@examples
@given(
    pieces=st.lists(st.text("ab", max_size=3), max_size=12),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_what_is_held_back_is_what_may_belong_to_a_stop(pieces: list[str], stops: list[str]) -> None:
    held = HeldBack(stops)
    shown, given_ = "", ""
    for number, piece in enumerate(pieces):
        given_ += piece
        shown += "".join(step.text for step in held.push(Step(piece, number)))
        cut = first_stop(given_, stops)
        assert given_.startswith(shown) and (cut is None or shown == given_[:cut])
        for stop in stops:  # nothing that could become part of a stop string is shown
            begun = max(count for count in range(len(stop) + 1) if given_.endswith(stop[:count]))
            assert cut is not None or len(shown) <= len(given_) - begun
        if cut is not None:
            break
    shown += "".join(step.text for step in held.flush())
    cut = first_stop(given_, stops)
    assert shown == (given_ if cut is None else given_[:cut])


@pytest.mark.parametrize("stop", ["", ["a", ""], [1], ["x"] * 17, "x" * 1001], ids=lambda stop: str(stop)[:9])
def test_what_is_no_stop_is_refused(stop: Any) -> None:
    with one_line_error("stop"):
        SamplingOptions(stop=stop)


def test_none_and_one_string_are_meant_as_people_mean_them() -> None:
    assert SamplingOptions(stop="ab").stop == ("ab",) and SamplingOptions(stop=None).stop == ()

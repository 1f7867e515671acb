"""The loop around prefill and step: what it yields, when it stops, what it may choose."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from helpers.commands import CAT, tiny_checkpoint
from helpers.memory import growth

import pg_mlx
from pg_mlx import InputError, PaliGemma, Processor
from pg_mlx.generation import SamplingOptions


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[PaliGemma, Processor]:
    return pg_mlx.load(tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny"))


def test_steps_add_up_to_the_generation(loaded: tuple[PaliGemma, Processor]):
    options = dict(max_tokens=40, temperature=3.0, seed=5)
    *steps, last = pg_mlx.stream_generate(*loaded, "caption en", CAT, **options)
    assert last.token_id is None and last.generation is not None
    assert "".join(step.text for step in [*steps, last]) == last.generation.text
    assert [step.token_id for step in steps] == last.generation.token_ids
    again = pg_mlx.generate(*loaded, "caption en", CAT, **options)
    assert (again.text, again.token_ids) == (last.generation.text, last.generation.token_ids)


def test_greedy_tokens_are_the_argmax_of_teacher_forced_logits(loaded: tuple[PaliGemma, Processor]):
    model, processor = loaded
    answer = pg_mlx.generate(model, processor, "ocr", CAT, max_tokens=12)
    features = model.encode_image(mx.array(processor.pixels(CAT))[None])
    prefix = processor.prompt_ids("ocr")
    logits = model.logits(features, mx.array([prefix]), mx.array([answer.token_ids]))
    chosen = mx.argmax(logits[0, len(prefix) - 1 : -1, : processor.tokenizer.vocab_size], axis=-1)
    assert chosen.tolist() == answer.token_ids


def test_eos_ends_the_answer_and_is_not_part_of_it(
    loaded: tuple[PaliGemma, Processor], monkeypatch: pytest.MonkeyPatch
):
    model, processor = loaded
    free = pg_mlx.generate(model, processor, "ocr", CAT, max_tokens=6, temperature=5.0, seed=1)
    assert free.finish_reason == "length" and len(free.token_ids) == 6 and free.stats.decode_tokens == 6
    stop = free.token_ids[3]
    monkeypatch.setattr(processor.tokenizer, "eos_id", stop)
    stopped = pg_mlx.generate(model, processor, "ocr", CAT, max_tokens=6, temperature=5.0, seed=1)
    assert stopped.finish_reason == "stop"
    assert stopped.token_ids == free.token_ids[: free.token_ids.index(stop)]
    assert stopped.stats.decode_tokens == len(stopped.token_ids) + 1


def test_cancelling_ends_after_the_token_that_is_there(loaded: tuple[PaliGemma, Processor]):
    seen: list[int] = []
    steps = pg_mlx.stream_generate(*loaded, "ocr", CAT, max_tokens=50, cancelled=lambda: len(seen) == 3)
    for step in steps:
        seen += [] if step.token_id is None else [step.token_id]
    assert step.generation is not None and step.generation.finish_reason == "cancelled"
    assert step.generation.token_ids == seen and len(seen) == 3


@pytest.mark.parametrize("temperature", [0.0, 1.0, 50.0])
def test_ids_without_text_are_never_chosen(temperature: float):
    """Rows beyond the vocabulary may have the largest logits and are still out of reach."""
    sample = SamplingOptions(temperature=temperature, seed=0).sampler(vocab_size=5)
    logits = mx.array([[0.0, 1.0, 2.0, 3.0, 4.0, 100.0, 200.0]] * 64)
    chosen = np.array(sample(logits))
    assert chosen.max() < 5 and (temperature > 0 or (chosen == 4).all())


def test_several_pictures_stand_in_one_prompt(loaded: tuple[PaliGemma, Processor]):
    model, processor = loaded
    one = pg_mlx.generate(model, processor, "ocr", CAT, max_tokens=2)
    red = np.zeros((8, 8, 3), np.uint8)
    two = pg_mlx.generate(model, processor, "ocr", [CAT, red], max_tokens=2)
    images = model.config.vision.num_patches
    assert two.stats.prompt_tokens == one.stats.prompt_tokens + images
    pixels = mx.stack([mx.array(processor.pixels(image)) for image in (CAT, red)])
    features = model.encode_image(pixels).reshape(1, 2 * images, -1)
    logits, _ = model.prefill(features, mx.array([processor.prompt_ids("ocr")]), capacity=200)
    assert two.token_ids[0] == mx.argmax(logits[0, : processor.tokenizer.vocab_size]).item()


@pytest.mark.parametrize(
    "options",
    [
        dict(max_tokens=0),
        dict(max_tokens=-1),
        dict(max_tokens=10**9),
        dict(max_tokens=2.5),
        dict(temperature=float("nan")),
        dict(temperature=float("inf")),
        dict(temperature=-0.1),
        dict(top_p=0.0),
        dict(top_p=1.5),
        dict(top_k=-1),
        dict(min_p=-0.1),
        dict(seed=-1),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused_before_anything_runs(loaded: tuple[PaliGemma, Processor], options: dict):
    with pytest.raises(InputError) as caught:
        pg_mlx.stream_generate(*loaded, "ocr", CAT, **options)
    assert next(iter(options)) in str(caught.value)


def test_no_picture_is_refused(loaded: tuple[PaliGemma, Processor]):
    with pytest.raises(InputError):
        pg_mlx.generate(*loaded, "ocr", [])


def test_decoding_holds_the_cache_once(tmp_path: Path):
    """Writing in place: with a cache of 50 MB, forty steps must not raise the peak by another one."""
    model, processor = pg_mlx.load(tiny_checkpoint(tmp_path / "tiny"), dtype="float32")
    features = model.encode_image(mx.array(processor.pixels(CAT))[None])
    logits, cache = model.prefill(features, mx.array([processor.prompt_ids("ocr")]), capacity=25_000)
    mx.eval(logits, cache.keys, cache.values)
    held = sum(array.nbytes for array in (*cache.keys, *cache.values))
    assert held > 40e6
    with growth() as grown:
        for _ in range(40):
            logits, cache = model.step(mx.argmax(logits, axis=-1), cache)
            mx.eval(logits)
    print(f"cache {held / 1e6:.0f} MB, peak grew by {grown.peak / 1e6:.1f} MB")
    assert grown.peak < held / 10


def test_whole_numbers_may_be_numpys(loaded: tuple[PaliGemma, Processor]):
    three = np.int64(3)
    options = dict(max_tokens=three, top_k=three, seed=np.uint8(3), temperature=2.0)
    alone = pg_mlx.generate(*loaded, "ocr", CAT, **options)
    assert len(alone.token_ids) == 3
    assert pg_mlx.batch_generate(*loaded, ["ocr"], [CAT], batch_size=np.int32(1), **options)[0].text == alone.text
    for wrong in (np.float64(3), "3", 3.0):
        with pytest.raises(InputError, match="max_tokens"):
            SamplingOptions(max_tokens=wrong)


@pytest.mark.parametrize("prompt", [["ocr"], None, 5, b"ocr"])
def test_a_prompt_that_is_no_text_is_refused(loaded: tuple[PaliGemma, Processor], prompt: object):
    with pytest.raises(InputError, match="a prompt is text, not a"):
        pg_mlx.generate(*loaded, prompt, CAT)

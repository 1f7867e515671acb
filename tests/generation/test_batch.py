"""Many questions at once get the answers that each one gets alone."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from helpers.commands import CAT, tiny_checkpoint
from helpers.models import note_widths

import pg_mlx
from pg_mlx import InputError, PaliGemma, Processor
from pg_mlx.processor import images, load_image

RED, BLUE = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)
RED[..., 0] = BLUE[..., 2] = 255
PROMPTS = ["ocr", "caption en", "detect cat ; dog", "", "answer en what is it?", "ocr", "segment cat"]
IMAGES = [CAT, RED, [CAT, BLUE], BLUE, CAT, [RED, RED, CAT], RED]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[PaliGemma, Processor]:
    return pg_mlx.load(tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("options", [{}, dict(temperature=2.0, top_p=0.9, seed=4)], ids=["greedy", "sampled"])
def test_every_answer_is_the_one_it_gets_alone(
    loaded: tuple[PaliGemma, Processor], batch_size: int, options: dict
) -> None:
    together = pg_mlx.batch_generate(*loaded, PROMPTS, IMAGES, batch_size=batch_size, max_tokens=20, **options)
    assert len(together) == len(PROMPTS)
    for prompt, image, answer in zip(PROMPTS, IMAGES, together, strict=True):
        alone = pg_mlx.generate(*loaded, prompt, image, max_tokens=20, **options)
        assert (answer.text, answer.token_ids, answer.finish_reason) == (
            alone.text,
            alone.token_ids,
            alone.finish_reason,
        )
        assert answer.stats.prompt_tokens == alone.stats.prompt_tokens
        assert answer.stats.decode_tokens == alone.stats.decode_tokens
        assert 0 < answer.stats.prefill_s <= answer.stats.time_to_first_token_s


def test_one_picture_with_many_questions_is_read_and_encoded_once(
    loaded: tuple[PaliGemma, Processor], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = note_widths(monkeypatch, "encode_image")
    read = []
    monkeypatch.setattr(images, "load_image", lambda image, most=None: read.append(image) or load_image(image, most))
    answers = pg_mlx.batch_generate(*loaded, PROMPTS, CAT, batch_size=3, max_tokens=3)
    assert len(answers) == len(PROMPTS) and passes == [1] and read == [CAT]


def test_one_question_about_many_pictures_sees_a_batch_of_them(
    loaded: tuple[PaliGemma, Processor], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = note_widths(monkeypatch, "encode_image")
    answers = pg_mlx.batch_generate(*loaded, "ocr", [CAT, RED, BLUE], max_tokens=3)
    assert len(answers) == 3 and passes == [3]


def test_no_prompts_no_answers(loaded: tuple[PaliGemma, Processor]) -> None:
    assert pg_mlx.batch_generate(*loaded, [], []) == []


def test_answers_come_as_they_are_done_and_pictures_are_read_in_their_turn(
    loaded: tuple[PaliGemma, Processor],
) -> None:
    """The bad picture comes last, so everything before it is answered."""
    answers = []
    with pytest.raises(InputError, match="missing"):
        for index, answer in pg_mlx.stream_batch(*loaded, "ocr", [CAT, RED, "missing.png"], batch_size=1, max_tokens=2):
            answers.append((index, len(answer.token_ids)))
    assert answers == [(0, 2), (1, 2)]


@pytest.mark.parametrize("arguments", [(["ocr"], [CAT, CAT]), (["ocr", "ocr"], [CAT]), ("ocr", [[]])], ids=str)
def test_lists_that_do_not_match_are_refused(loaded: tuple[PaliGemma, Processor], arguments: tuple) -> None:
    with pytest.raises(InputError):
        pg_mlx.batch_generate(*loaded, *arguments)


@pytest.mark.parametrize("options", [dict(batch_size=0), dict(batch_size=1.5), dict(top_p=2.0)], ids=str)
def test_bad_options_are_refused_at_once(loaded: tuple[PaliGemma, Processor], options: dict) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        pg_mlx.stream_batch(*loaded, "ocr", "missing.png", **options)


def test_sixteen_bits_stay_close(tmp_path: Path) -> None:
    """In bfloat16 a product over several rows may round otherwise than over one: logits agree to a few roundings."""
    folder = tiny_checkpoint(tmp_path / "tiny")
    logits = {}
    for dtype in ("bfloat16", "float32"):
        model, processor = pg_mlx.load(folder, dtype=dtype)
        pixels = mx.stack([mx.array(processor.pixels(image)) for image in (CAT, RED, BLUE)])
        ids = mx.array([processor.prompt_ids("ocr")] * 3)
        features = model.encode_image(pixels)
        lengths = [ids.shape[1], ids.shape[1] - 1, ids.shape[1] - 2]
        first, cache = model.prefill(features, ids, capacity=200, prefix_lengths=lengths)
        together = [first, model.step(mx.array([9, 9, 9]), cache)[0]]
        apart = []
        for row, length in enumerate(lengths):
            alone = model.encode_image(pixels[row : row + 1])
            first, cache = model.prefill(alone, ids[row : row + 1, :length], capacity=200)
            apart.append(mx.stack([first[0], model.step(mx.array([9]), cache)[0][0]]))
        logits[dtype] = mx.stack(together, axis=1), mx.stack(apart)
    (batch, single), (_, exact) = logits["bfloat16"], logits["float32"]
    rounding = mx.abs(single - exact).max().item()  # what 16 bits cost anyway
    assert mx.abs(batch - single).max().item() <= 2 * rounding
    print(f"batch and single differ by {mx.abs(batch - single).max().item():.4f}, bfloat16 costs {rounding:.4f}")

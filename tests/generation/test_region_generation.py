"""Regions and scores in what a generation yields, with a real model whose tokens are dictated."""

from __future__ import annotations

from itertools import chain, repeat
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from helpers.commands import CAT, tiny_checkpoint
from helpers.regions import ARCHIVE, loc, seg
from PIL import Image

import pg_mlx
from pg_mlx import PaliGemma, Processor
from pg_mlx.generation import SamplingOptions

ANSWER = f"{loc(100, 200, 800, 900)}{seg(tuple(range(16)))} chat noir ; {loc(0, 0, 511, 1023)} 狼 ; {loc(7, 8, 9)}"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[PaliGemma, Processor]:
    return pg_mlx.load(tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny"), mask_decoder=ARCHIVE)


@pytest.fixture
def dictated(loaded: tuple[PaliGemma, Processor], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ids of ANSWER, which every generation now yields whatever the logits say."""
    tokenizer = loaded[1].tokenizer
    ids = [*tokenizer.encode(ANSWER), tokenizer.eos_id]

    class Dictating:
        greedy = looks_back = False

        def __init__(self):
            self.rest = chain(ids, repeat(tokenizer.eos_id))  # a step is planned before the last one is read

        def __call__(self, logits):
            return mx.array([next(self.rest)])

    monkeypatch.setattr(SamplingOptions, "sampler", lambda options, vocab_size: Dictating())
    return ids


def teacher_forced(model: PaliGemma, processor: Processor, ids: list[int]) -> np.ndarray:
    """log P of each id, given the picture, the prompt and those before it."""
    features = model.encode_image(mx.array(processor.pixels(CAT))[None])
    prefix = processor.prompt_ids("ocr")
    logits = model.logits(features, mx.array([prefix]), mx.array([ids]))[0, len(prefix) - 1 : -1]
    logits = np.array(logits, np.float64)[:, : processor.tokenizer.vocab_size]
    shifted = logits - logits.max(axis=1, keepdims=True)
    every = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return every[np.arange(len(ids)), ids]


def test_a_generation_has_the_regions_with_masks_and_scores(loaded, dictated: list[int]):
    model, processor = loaded
    *steps, last = pg_mlx.stream_generate(model, processor, "ocr", CAT, logprobs=True)
    answer = last.generation
    assert answer is not None and answer.text == ANSWER and answer.finish_reason == "stop"
    cat, dog = answer.regions
    size = Image.open(CAT).size
    assert (cat.label, dog.label) == ("chat noir", "狼") and cat.image_size == size
    assert cat.mask is not None and cat.mask.shape == size[::-1] and cat.mask.any() and dog.mask is None
    assert len(answer.malformed) == 1

    logprobs = teacher_forced(model, processor, dictated)
    assert [step.logprob for step in steps] == pytest.approx(logprobs[: len(steps)], abs=1e-4)
    # Which tokens are whose, counted in bytes: 狼 is three tokens of one byte each.
    starts = np.cumsum([0, *(len(processor.tokenizer.piece(i)) for i in dictated)])[:-1]
    for region, text in ((cat, ANSWER.partition(" ; ")[0]), (dog, ANSWER.split(" ; ")[1])):
        begin = len(ANSWER[: ANSWER.index(text)].encode())
        own = (starts >= begin) & (starts < begin + len(text.encode()))
        assert own.sum() >= 4 + 3
        assert region.score == pytest.approx(np.exp(logprobs[own].mean()), rel=1e-4)


def test_log_probabilities_are_only_computed_on_request_and_change_no_token(loaded):
    options = dict(max_tokens=12, temperature=2.0, top_k=40, seed=3)
    silent = list(pg_mlx.stream_generate(*loaded, "ocr", CAT, **options))
    telling = list(pg_mlx.stream_generate(*loaded, "ocr", CAT, logprobs=True, **options))
    assert [step.token_id for step in silent] == [step.token_id for step in telling]
    assert all(step.logprob is None for step in silent)
    ids = [step.token_id for step in telling[:-1] if step.token_id is not None]
    expected = teacher_forced(*loaded, ids)  # without temperature and truncation
    assert [step.logprob for step in telling[:-1]] == pytest.approx(expected, abs=1e-4)


def test_boxes_are_in_the_picture_as_it_stands_upright(loaded, dictated: list[int], tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    answer = pg_mlx.generate(*loaded, "ocr", tmp_path / "turned.jpg")
    assert answer.regions[1].image_size == (20, 40)
    assert answer.regions[1].box == pytest.approx((0, 0, 20, 511 / 1023 * 40))
    assert answer.regions[1].score is None

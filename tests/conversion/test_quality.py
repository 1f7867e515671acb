"""The quality card's figures, each against a plain computation."""

from __future__ import annotations

import json
import weakref
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from helpers.memory import growth
from helpers.models import Memory, config_json, load_packed, one_line_error, random_tensors
from helpers.paths import ROOT
from helpers.quality import MAX_TOKENS, SAMPLES, copy_of, loud_checkpoint, packed, padded, quality, tensors_of

from pg_mlx import PaliGemma, PgMlxError, Processor, generate, load_model
from pg_mlx.checkpoint.open import Checkpoint
from pg_mlx.conversion import metrics
from pg_mlx.conversion.layerwise import Streamed
from pg_mlx.conversion.quality import Quality, Sample, compare, default_samples
from pg_mlx.files.json import read_json


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return loud_checkpoint(tmp_path_factory.mktemp("quality"))


@pytest.fixture(scope="module")
def result(source: Path) -> Path:
    """Six bits: some answers change, some do not."""
    return packed(source, source.parent / "result", 6)


@pytest.fixture(scope="module")
def card(source: Path, result: Path) -> Quality:
    return quality(source, result)


# --- figures ------------------------------------------------------------------------------------------


def decoded(processor: Processor, model: PaliGemma, sample: Sample) -> list[int]:
    answer = generate(model, processor, sample.prompt, sample.image, max_tokens=MAX_TOKENS)
    return answer.token_ids + [processor.tokenizer.eos_id] * (answer.finish_reason == "stop")


def log_probabilities(processor: Processor, model: PaliGemma, sample: Sample, answer: list[int]) -> np.ndarray:
    """[len(answer), V], over the ids that have text, in float64."""
    prefix = processor.prompt_ids(sample.prompt)
    features = model.encode_image(mx.array(processor.pixels(sample.image))[None])
    logits = np.array(model.logits(features, mx.array([prefix]), mx.array([answer]))[0], dtype=np.float64)
    logits = logits[len(prefix) - 1 : -1, : processor.tokenizer.vocab_size]
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def test_nothing_lost(source: Path) -> None:
    card = quality(source, source)
    assert card.pictures == 4
    assert card.samples == len(SAMPLES)
    assert card.positions == len(SAMPLES) * MAX_TOKENS
    assert card.coordinates > 0
    assert card.kl_mean == card.kl_max == card.kl_first == card.feature_error == 0
    assert card.box_drift_mean == card.box_drift_max == 0
    assert card.top1_agreement == card.greedy_agreement == card.identical_answers == 1
    assert card.feature_cosine == pytest.approx(1, abs=1e-6)


def test_nothing_lost_in_bfloat16(source: Path) -> None:
    card = quality(source, source, dtype="bfloat16")
    assert card.kl_max == card.feature_error == 0
    assert card.dtype == "bfloat16"


def test_padding_loses_nothing(source: Path, tmp_path: Path) -> None:
    """A source 300 wide and a result 384 wide, which sum in another order."""
    card = quality(source, copy_of(source, tmp_path / "padded", *padded(source)))
    assert card.kl_max <= 1e-6
    assert card.feature_error <= 1e-5
    assert card.top1_agreement == card.greedy_agreement == 1


def test_fewer_bits_are_worse(source: Path, card: Quality, tmp_path: Path) -> None:
    worse = quality(source, packed(source, tmp_path / "two", 2))
    assert worse.kl_mean > 10 * card.kl_mean > 0
    assert worse.kl_max > card.kl_max
    assert worse.feature_error > 10 * card.feature_error > 0
    assert worse.feature_cosine < card.feature_cosine < 1
    assert worse.top1_agreement < card.top1_agreement < 1
    assert worse.greedy_agreement < card.greedy_agreement


@pytest.mark.parametrize("stops", [False, True], ids=["by length", "by eos"])
def test_figures_equal_plain_computations(
    source: Path, result: Path, stops: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full logits of the loaded models, in numpy; and really decoding with both."""
    monkeypatch.setattr(metrics, "ROWS", 500)
    monkeypatch.setattr(metrics, "POSITIONS", 7)
    processor = Processor.from_folder(result, 56)
    ours, theirs = load_packed(result, dtype="float32"), load_model(source, dtype="float32")
    if stops:  # random models hardly ever end an answer, so let it be a token of one on which both agree
        answers = [[decoded(processor, model, sample) for model in (ours, theirs)] for sample in SAMPLES]
        processor.tokenizer.eos_id = next(one for one, other in answers if one == other)[MAX_TOKENS // 2]
    card = quality(source, result, processor=processor)

    divergences, same_top, matched, lengths, drifts = [], [], [], [], []
    for sample in SAMPLES:
        answer, reference = decoded(processor, ours, sample), decoded(processor, theirs, sample)
        lengths.append(len(answer))
        same = [one == other for one, other in zip(answer, reference, strict=False)]
        matched.append([*same, False].index(False))
        p, q = (log_probabilities(processor, model, sample, answer) for model in (theirs, ours))
        divergences.append((np.exp(p) * (p - q)).sum(axis=-1))
        same_top += list(p.argmax(axis=-1) == q.argmax(axis=-1))
        locations = processor.tokenizer.location_ids
        apart = np.abs(p[:, locations].argmax(axis=-1) - q[:, locations].argmax(axis=-1)) / 1023
        for is_box, run in groupby(zip(answer, apart, strict=True), lambda pair: pair[0] in locations):  # noqa: B023
            if is_box:
                drifts += [share * sample.image.size[1 - n % 2] for n, (_, share) in enumerate(run)]

    assert any(same == length < MAX_TOKENS for same, length in zip(matched, lengths, strict=True)) == stops
    assert card.positions == sum(lengths)
    every = np.concatenate(divergences)
    assert card.kl_mean == pytest.approx(every.mean(), rel=1e-3)
    assert card.kl_max == pytest.approx(every.max(), rel=1e-3)
    assert card.kl_first == pytest.approx(np.mean([each[0] for each in divergences]), rel=1e-3)
    assert card.top1_agreement == pytest.approx(np.mean(same_top))
    assert 0 < card.greedy_agreement < 1
    assert card.greedy_agreement == pytest.approx(sum(matched) / sum(lengths))
    assert card.identical_answers == pytest.approx(np.mean(np.equal(matched, lengths)))
    assert card.coordinates == len(drifts) > 0
    assert card.box_drift_mean == pytest.approx(np.mean(drifts))
    assert card.box_drift_max == pytest.approx(max(drifts))
    assert card.box_drift_capped == pytest.approx(np.mean([min(drift, 10) for drift in drifts]))
    assert card.coordinates_within_pixel == pytest.approx(np.mean([drift <= 1 for drift in drifts]))
    sums = [(each - every.mean()).sum() for each in divergences]
    assert card.kl_error == pytest.approx(np.linalg.norm(sums) / every.size, rel=1e-2)


def test_feature_figures(source: Path, result: Path, card: Quality) -> None:
    processor = Processor.from_folder(result, 56)
    pixels = mx.array(np.stack([processor.pixels(s.image) for s in default_samples()[::4]]))
    a, b = (np.array(load_packed(f, dtype="float32").encode_image(pixels), np.float64) for f in (source, result))
    assert card.feature_error == pytest.approx(np.sqrt(((a - b) ** 2).sum() / (a**2).sum()), rel=1e-3)
    cosines = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    assert 1 - card.feature_cosine == pytest.approx(1 - cosines.mean(), rel=0.02)


def test_without_boxes_there_is_no_drift(source: Path, tmp_path: Path) -> None:
    """Location rows of zeros are never the most likely ones."""
    tensors = tensors_of(source)
    locations = Processor.from_folder(source, 56).tokenizer.location_ids
    tensors["language_model.model.embed_tokens.weight"][locations.start : locations.stop] = 0
    mute = copy_of(source, tmp_path / "mute", read_json(source / "config.json"), tensors)
    card = quality(mute, mute)
    assert (card.coordinates, card.box_drift_mean, card.box_drift_max) == (0, None, None)
    assert "no boxes" in card.to_markdown()
    assert Quality(**json.loads(json.dumps(asdict(card)))) == card


def test_ids_without_text_do_not_count(source: Path, tmp_path: Path) -> None:
    """A result that differs in the rows behind the vocabulary only."""
    tensors = tensors_of(source)
    used = Processor.from_folder(source, 56).tokenizer.vocab_size
    table = tensors["language_model.model.embed_tokens.weight"]
    assert used < table.shape[0]
    table[used:] = table[used:] + 100.0
    card = quality(source, copy_of(source, tmp_path / "beyond", read_json(source / "config.json"), tensors))
    assert card.kl_max == 0
    assert card.greedy_agreement == 1


def test_many_positions_are_compared_in_slices() -> None:
    raw = config_json("gemma", dict(vocab_size=32768))
    model = Streamed(Checkpoint.of(Memory(random_tensors(raw)), raw), "float32")
    reading = metrics.Reading(model, [], mx.random.normal((2048, 32)))
    other = metrics.Reading(model, [], reading.hidden + 0.1)
    mx.eval(reading.hidden, other.hidden)
    with growth() as grown:
        assert metrics.predict(reading, other, 32768).kl.shape == (2048,)
    assert grown.peak < 2048 * 32768 * 4 / 2  # half of one model's logits


# --- the card itself ----------------------------------------------------------------------------------


def test_card_as_json_and_markdown(card: Quality) -> None:
    assert Quality(**json.loads(json.dumps(asdict(card)))) == card
    text = card.to_markdown()
    assert f"{card.kl_mean:.4g} ± {card.kl_error:.1g} / {card.kl_max:.4g} nats" in text
    assert f"| same most likely token | {100 * card.top1_agreement:.1f}% |" in text
    assert f"| greedy tokens before the first difference | {100 * card.greedy_agreement:.1f}% |" in text
    assert f"| identical answers | {100 * card.identical_answers:.1f}% |" in text
    assert f"{100 * card.feature_error:.3f}%" in text
    assert f"{card.box_drift_mean:.2f} / {card.box_drift_max:.2f} pixels" in text
    assert f"{card.box_drift_capped:.2f} pixels with each capped at 10, " in text
    assert f"{100 * card.coordinates_within_pixel:.1f}% within one pixel" in text
    assert "72 tokens" in text and "4 pictures" in text and "float32" in text


def test_progress(source: Path) -> None:
    calls: list[tuple[int, int]] = []
    quality(source, source, progress=lambda done, total: calls.append((done, total)))
    totals = {total for _, total in calls}
    assert totals == {len(SAMPLES) + 2 * (4 + 2) + 1}
    assert [done for done, _ in calls] == list(range(1, totals.pop() + 1))


def test_the_result_is_freed_before_the_source_is_read(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models, alive = [], []

    def watched(*arguments: Any, **options: Any) -> PaliGemma:
        model = load_model(*arguments, **options)
        models.append(weakref.ref(model))
        return model

    monkeypatch.setattr("pg_mlx.conversion.quality.load_model", watched)
    quality(source, source, progress=lambda *_: alive.append(models[0]() is not None))
    assert alive == [True] * len(SAMPLES) + [False] * (len(alive) - len(SAMPLES))


def test_a_picture_of_several_questions_is_read_once(source: Path) -> None:
    cat = ROOT / "tests" / "cat.jpg"
    samples = [Sample(cat, "caption en"), Sample(str(cat), "ocr"), Sample(SAMPLES[0].image, "ocr")]
    card = quality(source, source, samples=samples, max_tokens=1)
    assert (card.pictures, card.samples, card.positions) == (2, 3, 3)


# --- what cannot be compared --------------------------------------------------------------------------


def test_refuses_what_cannot_be_compared(source: Path, result: Path, tmp_path: Path) -> None:
    with one_line_error("no samples"):
        quality(source, result, samples=[])
    with one_line_error("max_tokens"):
        quality(source, result, max_tokens=0)
    with one_line_error("no such picture", "nowhere.png"):
        quality(source, result, samples=[Sample("nowhere.png", "ocr")])
    raw = read_json(source / "config.json")
    larger = config_json("gemma2", dict(raw["text_config"]), dict(raw["vision_config"], image_size=84))
    with one_line_error("not the same model", "84", "56"):
        compare(Checkpoint.of(Memory(random_tensors(larger)), larger), result, samples=SAMPLES)
    smaller = config_json("gemma2", dict(raw["text_config"], vocab_size=64), dict(raw["vision_config"]))
    with one_line_error("pieces", "only 64 rows"):
        compare(Checkpoint.of(Memory(random_tensors(smaller)), smaller), result, samples=SAMPLES)
    (tmp_path / "bare").mkdir()
    with one_line_error("no config.json", "bare"):
        quality(source, tmp_path / "bare")


@pytest.mark.parametrize("broken", ["source", "result"])
def test_numbers_that_are_not_finite(source: Path, tmp_path: Path, broken: str) -> None:
    tensors = tensors_of(source)
    name = "language_model.model.layers.1.mlp.down_proj.weight"
    tensors[name] = tensors[name] * float("inf")
    bad = copy_of(source, tmp_path / "bad", read_json(source / "config.json"), tensors)
    with pytest.raises(PgMlxError, match=f"the {broken} computes numbers that are not finite"):
        quality(*((bad, source) if broken == "source" else (source, bad)))

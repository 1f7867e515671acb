"""Whose answers calibrate: the source's, or those of a packed result where the source does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.conversions import convert
from PIL import Image

from pg_mlx.checkpoint.load import load_model
from pg_mlx.checkpoint.open import open_local
from pg_mlx.conversion import answers, peak
from pg_mlx.conversion.pipeline import Conversion
from pg_mlx.conversion.quality import answer, prepare
from pg_mlx.conversion.samples import Sample
from pg_mlx.processor import Processor
from pg_mlx.quantization import uniform


@pytest.mark.parametrize("fits", [True, False])
def test_the_source_answers_if_it_fits(
    fits: bool, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "MAX_TOKENS", 6)
    packed = convert(source, tmp_path / "packed", q_bits=2).target
    samples = [Sample(Image.new("RGB", (56, 56), colour), "ocr") for colour in ("red", "green", "white")]
    processor = Processor.from_folder(packed, 56)
    pictures, _, texts = prepare(samples, processor)
    by_source, by_result = (
        answer(load_model(folder), processor, pictures, texts, 6, lambda: None) for folder in (source, packed)
    )
    assert by_source != by_result
    if not fits:
        monkeypatch.setattr(peak, "ROOM", 0)
    seen: list[tuple[int, int]] = []
    found = answers.answered(
        open_local(source), packed, [samples[:1], samples[1:]], processor, lambda *done: seen.append(done)
    )
    assert [len(texts) for _, texts in found] == [1, 2]
    wanted = [text.answer for text in (by_source if fits else by_result)]
    assert [text.answer for _, texts in found for text in texts] == wanted
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_source_that_answers_counts_in_the_peak(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Conversion(source, uniform(3, 64, None).by("gptq"))
    assert peak.source_bytes(job.checkpoint) > job.checkpoint.num_bytes
    monkeypatch.setattr(peak, "source_bytes", lambda checkpoint: 10**9)
    samples = [Sample(str(number), "ocr") for number in range(12)], [Sample("12", "ocr")]
    pixels = peak.pixel_bytes(job.checkpoint.config, 13)
    assert job.expected_peak(samples) == 10**9 + pixels > 10**9 > job.expected_peak()
    monkeypatch.undo()
    monkeypatch.setattr(peak, "ROOM", 0)
    assert peak.source_bytes(job.checkpoint) == 0 and job.expected_peak(samples) < 10**9

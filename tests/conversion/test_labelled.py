"""Conversions with labelled pictures: their prompts calibrate, and source and result are scored on the others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.commands import tiny_checkpoint
from helpers.conversions import sixteen_pictures
from helpers.models import one_line_error
from PIL import Image

import pg_mlx
from pg_mlx.checkpoint.open import open_local
from pg_mlx.cli import convert as command
from pg_mlx.conversion import answers, peak, task_scores
from pg_mlx.conversion.samples import MAX_QUESTIONS, AskedPictures, Sample, calibration_samples, default_samples
from pg_mlx.training.labelled import holds_labels, read_labelled


@pytest.fixture(scope="module", autouse=True)
def short_answers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "MAX_TOKENS", 3)
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen pictures, each with a text and a box."""
    folder = sixteen_pictures(tmp_path_factory.mktemp("labelled"))
    lines = list[str]()
    for number in range(16):
        box = "<loc0000><loc0000><loc0512><loc0512> cat"
        for prefix, suffix in (("ocr", f"word {number}"), ("detect cat", box)):
            lines.append(json.dumps({"image": f"{number:02}.png", "prefix": prefix, "suffix": suffix}))
    (folder / "annotations.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_labels_are_found(labelled: Path, tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "0.png")
    assert holds_labels(labelled) and holds_labels(labelled / "annotations.jsonl")
    assert not holds_labels(tmp_path) and not holds_labels(tmp_path / "nowhere")
    (tmp_path / "notes.json").write_text('{"by": "me"}')
    assert not holds_labels(tmp_path)


def test_each_picture_calibrates_with_its_own_prompts(labelled: Path) -> None:
    asked = read_labelled(labelled)
    calibrating, judging = calibration_samples(asked)
    assert [Path(sample.image).stem for sample in judging] == [n for n in ("03", "07", "11", "15") for _ in range(2)]
    assert [sample.prompt for sample in calibrating] == ["ocr", "detect cat"] * 12
    assert not {sample.image for sample in calibrating} & {sample.image for sample in judging}
    assert len(default_samples(asked)) == 32
    with one_line_error("calibration prompts are for pictures without questions of their own"):
        calibration_samples(asked, ["ocr"])


def test_questions_of_a_picture_are_bounded(tmp_path: Path) -> None:
    samples = [Sample(tmp_path / f"{n:02}.png", f"question {q}") for q in range(9) for n in range(16)]
    calibrating, judging = calibration_samples(AskedPictures(tmp_path, samples))
    assert (len(calibrating), len(judging)) == (12 * MAX_QUESTIONS, 4 * 4)
    assert calibrating[:2] == [samples[0], samples[16]]
    with one_line_error(f"{tmp_path} holds 15 different pictures; gptq needs 16 or more"):
        calibration_samples(AskedPictures(tmp_path, [s for s in samples if s.image.stem != "00"]))


def test_the_card_has_the_scores_of_source_and_result(source: Path, labelled: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--hf-path", source, "--mlx-path", out, "--q-bits", 3, "--q-method", "gptq", "--calibration", labelled]
    assert command.run([*map(str, options)], "convert") == 0
    quality = json.loads((out / "quality.json").read_text())
    assert (quality["pictures"], quality["samples"]) == (4, 8)
    asked = read_labelled(labelled)
    assert asked.scores is not None
    for name, folder in (("source", source), ("result", out)):
        model, processor = pg_mlx.load(folder)
        assert quality["scores"][name] == asked.scores(model, processor, calibration_samples(asked)[1])
        assert {"exact answers", "recall at IoU .5"} <= set(quality["scores"][name])
    card = (out / "README.md").read_text()
    assert "| Score | Source | This model |" in card and "| exact answers | " in card


def test_a_source_that_does_not_fit_is_not_scored(
    source: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peak, "ROOM", 0)
    found = task_scores.task_scores(
        open_local(source), source, lambda model, processor, samples: {"exact answers": 0.5}, []
    )
    assert found == {"result": {"exact answers": 0.5}}
    assert "too large for this machine" in "\n".join(task_scores.score_table(found))


def test_one_prompt_is_for_labels_without_one(source: Path, labelled: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for path in labelled.glob("*.png"):
        (texts / path.name).write_bytes(path.read_bytes())
        (texts / f"{path.stem}.txt").write_text(path.stem)
    asked = read_labelled(texts, "caption en")
    assert {sample.prompt for sample in asked.samples} == {"caption en"}
    base = ["--hf-path", source, "--mlx-path", tmp_path / "out", "--q-bits", 3, "--q-method", "gptq", "--calibration"]
    with one_line_error(
        "holds pictures with texts, which are the answers; --prefix (convert: --calibration-prompt) gives the prompt"
    ):
        command.run([*map(str, [*base, texts])], "convert")
    with one_line_error("is labelled and so has its own prompts"):
        command.run([*map(str, [*base, labelled, "--calibration-prompt", "a", "--calibration-prompt", "b"])], "convert")

"""The one maker of requests: what every way into the program gets from it, and how often it does each part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.commands import CAT, tiny_checkpoint
from helpers.service import service

import pg_mlx
from pg_mlx import InputError, PaliGemma, Processor
from pg_mlx.cli import main
from pg_mlx.generation import Picture, SamplingOptions, grammar, make_pictures, make_prompt, make_request
from pg_mlx.processor import images
from pg_mlx.serving.service.requests import Ask
from pg_mlx.threads import Shared

PROMPT = "detect cat ; dog"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def loaded(model: Path) -> tuple[PaliGemma, Processor]:
    return pg_mlx.load(model)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What load_image is called with, by whomever, and once more for each time that a picture is brought to RGB."""
    calls: list[Any] = []
    load_image, finish = images.load_image, images._finish
    monkeypatch.setattr(images, "load_image", lambda *given: calls.append("load") or load_image(*given))
    monkeypatch.setattr(images, "_finish", lambda *given: calls.append("RGB") or finish(*given))
    return calls


def by_stream(model: Path, loaded: tuple[PaliGemma, Processor]) -> None:
    pg_mlx.generate(*loaded, "ocr", CAT, max_tokens=1)


def by_batch(model: Path, loaded: tuple[PaliGemma, Processor]) -> None:
    pg_mlx.batch_generate(*loaded, ["ocr", "caption en"], CAT, max_tokens=1)


def by_command(model: Path, loaded: tuple[PaliGemma, Processor]) -> None:
    assert main(["generate", "--model", str(model), "--image", str(CAT), "--prompt", "", "--max-tokens", "1"]) == 0


def by_command_on_many_prompts(model: Path, loaded: tuple[PaliGemma, Processor]) -> None:
    flags = ["--prompt", "ocr", "--prompt", "caption en", "--max-tokens", "1"]
    assert main(["generate", "--model", str(model), "--image", str(CAT), *flags]) == 0


def by_service(model: Path, loaded: tuple[PaliGemma, Processor]) -> None:
    with service() as running:
        running.ask(Ask("ocr", [CAT], SamplingOptions(max_tokens=1)))


@pytest.mark.parametrize("door", [by_stream, by_batch, by_command, by_command_on_many_prompts, by_service])
def test_a_picture_is_read_and_brought_to_rgb_once(model: Path, loaded, reads: list, door) -> None:
    door(model, loaded)
    assert reads == ["load", "RGB"]


def test_a_prompt_is_tokenized_and_its_grammar_made_once_for_all_pictures(
    model: Path, loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[str] = []
    prompt_ids, compiled = Processor.prompt_ids, grammar.RegionGrammar.__init__
    monkeypatch.setattr(Processor, "prompt_ids", lambda *given: counted.append("ids") or prompt_ids(*given))
    monkeypatch.setattr(grammar.RegionGrammar, "__init__", lambda *given: counted.append("grammar") or compiled(*given))
    pictures = [np.full((8, 8, 3), shade, np.uint8) for shade in range(5)]
    together = pg_mlx.batch_generate(*loaded, PROMPT, pictures, constrain=True, max_tokens=9, temperature=3.0, seed=2)
    assert sorted(counted) == ["grammar", "ids"]
    for picture, answer in zip(pictures, together, strict=True):
        alone = pg_mlx.generate(*loaded, PROMPT, picture, constrain=True, max_tokens=9, temperature=3.0, seed=2)
        assert answer.token_ids == alone.token_ids
    counted.clear()
    for number in range(4):
        (tmp_path / f"{number}.jpg").write_bytes(CAT.read_bytes())
    flags = ["--image", str(tmp_path), "--prompt", PROMPT, "--constrain", "--max-tokens", "2"]
    assert main(["generate", "--model", str(model), *flags]) == 0
    assert sorted(counted) == ["grammar", "ids"]


def test_parts_that_are_made_already_are_taken_as_they_are(loaded) -> None:
    _, processor = loaded
    prompt, pictures = make_prompt(processor, PROMPT, constrain=True), make_pictures(processor, [CAT, CAT])
    whole = make_request(processor, PROMPT, [CAT, CAT], SamplingOptions(seed=1), constrain=True, logprobs=True)
    assert whole.prompt_ids == prompt.ids == processor.prompt_ids(PROMPT) and whole.logprobs and whole.ready_s > 0
    assert [one.digest for one in whole.pictures] == [one.digest for one in pictures]
    assert pictures[0].size == images.load_image(CAT).size
    np.testing.assert_array_equal(pictures[0].pixels, processor.pixels(CAT))
    for parts in ((prompt, pictures), (Shared(lambda: prompt), Shared(lambda: pictures)), (prompt, pictures[0])):
        made = make_request(processor, *parts, SamplingOptions())
        assert made.guide is prompt.guide and all(isinstance(one, Picture) for one in made.pictures)
        assert made.pictures[0] is pictures[0]


@pytest.mark.parametrize(
    ("prompt", "image", "options"),
    [
        ("ocr", [], {}),
        ("ocr", b"no picture", {}),
        ("\ud800", CAT, {}),
        ("ocr", CAT, dict(constrain=True)),
        (PROMPT, CAT, dict(max_regions=2)),
    ],
)
def test_what_cannot_be_a_request_is_refused(loaded, prompt: str, image: Any, options: dict) -> None:
    with pytest.raises(InputError):
        make_request(loaded[1], prompt, image, SamplingOptions(), **options)
    with pytest.raises(InputError):
        pg_mlx.stream_generate(*loaded, prompt, image, **options)


@pytest.mark.parametrize("function", [pg_mlx.generate, pg_mlx.stream_generate, pg_mlx.stream_batch])
def test_an_unknown_option_is_named(loaded, function) -> None:
    with pytest.raises(TypeError, match="temprature"):
        function(*loaded, "ocr", CAT, temprature=1.0)


def test_a_batch_can_be_cancelled(loaded) -> None:
    calls: list[None] = []
    pictures = [np.full((8, 8, 3), shade, np.uint8) for shade in range(6)]
    answers = pg_mlx.batch_generate(
        *loaded,
        "ocr",
        pictures,
        batch_size=2,
        temperature=9.0,
        seed=3,
        cancelled=lambda: calls.append(None) or len(calls) > 5,
    )
    assert [answer.finish_reason for answer in answers] == ["cancelled"] * 2  # the others had not begun
    assert all(0 < len(answer.token_ids) < 6 for answer in answers)

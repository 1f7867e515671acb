"""Whatever is answered before a failure is given before it, with the CPU's operations and with a GPU's."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import tiny_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import pg_mlx
from pg_mlx import InputError, PaliGemma, Processor
from pg_mlx.cli import main
from pg_mlx.generation import Engine, Generation, Request, SamplingOptions, Scheduler, Step, make_request
from pg_mlx.threads import Prefetch

Loaded = tuple[PaliGemma, Processor]
examples = settings(max_examples=12, deadline=None, derandomize=True)
OPTIONS = dict(temperature=2.0, seed=3, max_tokens=6)
BAD = b"no picture"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def loaded(model: Path) -> Loaded:
    return pg_mlx.load(model, dtype="float32")


@pytest.fixture(scope="module")
def alone(loaded: Loaded) -> list[Generation]:
    return [pg_mlx.generate(*loaded, "ocr", shade(number), **OPTIONS) for number in range(12)]


def shade(number: int) -> np.ndarray:
    return np.full((8, 8, 3), number * 20, np.uint8)


def images(good: Sequence[bool]) -> list:
    return [shade(number) if is_good else BAD for number, is_good in enumerate(good)]


orders = st.lists(st.sampled_from([True, True, True, False]), min_size=1, max_size=12)
sizes = st.sampled_from([1, 2, 3, 8])


@examples
@given(good=orders, batch_size=sizes)
def test_a_batch_gives_every_answer_before_the_bad_picture(
    loaded: Loaded, alone: list[Generation], good: list[bool], batch_size: int
) -> None:
    given_answers: dict[int, Generation] = {}
    answers = pg_mlx.stream_batch(*loaded, "ocr", images(good), batch_size=batch_size, **OPTIONS)
    first_bad = good.index(False) if False in good else None
    try:
        for index, generation in answers:
            assert index not in given_answers
            given_answers[index] = generation
        assert first_bad is None
    except InputError:
        assert first_bad is not None
    assert given_answers.keys() >= set(range(len(good) if first_bad is None else first_bad))
    for index, generation in given_answers.items():
        assert good[index] and generation.token_ids == alone[index].token_ids


@examples
@given(good=orders, batch_size=sizes)
def test_the_scheduler_gives_every_answer_once(
    loaded: Loaded, alone: list[Generation], good: list[bool], batch_size: int
) -> None:
    model, processor = loaded
    options = SamplingOptions(**OPTIONS)
    makers = [partial(make_request, processor, "ocr", image, options) for image in images(good)]
    ends: dict[int, Generation | Exception] = {}
    texts = dict.fromkeys(range(len(good)), "")
    for index, step in Scheduler(model, processor, Prefetch(makers), batch_size):
        assert index not in ends
        if isinstance(step, Exception):
            ends[index] = step
            continue
        texts[index] += step.text
        if step.generation:
            ends[index] = step.generation
    assert ends.keys() == set(range(len(good)))
    for index, end in ends.items():
        if good[index]:
            assert isinstance(end, Generation) and end.token_ids == alone[index].token_ids
            assert texts[index] == end.text
        else:
            assert isinstance(end, InputError)


def spoil(monkeypatch: pytest.MonkeyPatch, poisoned: Callable[[Request], bool], at: int) -> None:
    """Every pass fails that has a poisoned row with so many tokens."""
    advance, prefill = Engine._advance, Engine._prefill

    def check(rows: Sequence) -> None:
        if any(poisoned(row.request) and row.decoded >= at for row in rows):
            raise RuntimeError("no memory")

    def checked_advance(self: Engine, *arguments: object) -> None:
        check(self._rows)
        advance(self, *arguments)

    def checked_prefill(self: Engine, pairs: list) -> None:
        check([row for row, _ in pairs])
        prefill(self, pairs)

    monkeypatch.setattr(Engine, "_advance", checked_advance)
    monkeypatch.setattr(Engine, "_prefill", checked_prefill)


@pytest.mark.parametrize("at", [0, 1, 3])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_a_batch_gives_every_answer_before_the_pass_that_fails(
    loaded: Loaded, alone: list[Generation], monkeypatch: pytest.MonkeyPatch, batch_size: int, at: int
) -> None:
    poison = loaded[1].pixels(shade(5))
    spoil(monkeypatch, lambda request: np.array_equal(request.pictures[0].pixels, poison), at)
    given_answers = {}
    with pytest.raises(RuntimeError, match="no memory"):
        for index, generation in pg_mlx.stream_batch(
            *loaded, "ocr", images([True] * 9), batch_size=batch_size, **OPTIONS
        ):
            given_answers[index] = generation
    assert given_answers.keys() >= set(range(5)) and 5 not in given_answers
    assert all(alone[index].token_ids == one.token_ids for index, one in given_answers.items())


def test_a_stream_gives_every_token_before_the_pass_that_fails(
    loaded: Loaded, alone: list[Generation], ops: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, lambda request: True, 3)
    steps: list[Step] = []
    with pytest.raises(RuntimeError, match="no memory"):
        for step in pg_mlx.stream_generate(*loaded, "ocr", shade(1), **OPTIONS):
            steps.append(step)
    # A GPU's operations begin a pass before the token of the one before it is taken.
    known = 4 if ops == "gpu" else 3
    assert [step.token_id for step in steps] == alone[1].token_ids[:known]


@examples
@given(good=orders, batch_size=sizes)
def test_a_folder_gives_every_answer_in_order(
    model: Path, tmp_path_factory: pytest.TempPathFactory, good: list[bool], batch_size: int
) -> None:
    folder = tmp_path_factory.mktemp("pictures")
    for number, image in enumerate(images(good)):
        path = folder / f"p{number:02}.png"
        path.write_bytes(BAD) if image is BAD else Image.fromarray(image).save(path)
    lines, errors = command(model, folder, batch_size)
    assert [Path(line["image"]).name for line in lines] == [f"p{i:02}.png" for i, is_good in enumerate(good) if is_good]
    errors = [error for error in errors if "cut off" not in error]
    assert [name for name in (f"p{i:02}.png" for i in range(len(good))) if any(name in error for error in errors)] == [
        f"p{i:02}.png" for i, is_good in enumerate(good) if not is_good
    ]


@pytest.mark.parametrize("kind", ["json", "jsonl", "coco"])
def test_a_debugged_run_prints_what_was_answered_before_it_breaks_off(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    for number in (0, 1, 3):
        Image.fromarray(shade(number)).save(tmp_path / f"p{number}.png")
    (tmp_path / "p2.png").write_bytes(BAD)
    with pytest.raises(InputError, match="p2"):
        main(["generate", *flags(model, tmp_path), "--debug", "--format", kind])
    out = capsys.readouterr().out
    if kind == "coco":
        assert isinstance(json.loads(out), list)
    else:
        answers = json.loads(out) if kind == "json" else [json.loads(line) for line in out.splitlines()]
        assert [Path(answer["image"]).name for answer in answers] == ["p0.png", "p1.png"]


def flags(model: Path, folder: Path) -> list[str]:
    return ["--model", str(model), "--dtype", "float32", "--image", str(folder), "--prompt", "", "--max-tokens", "3"]


def command(model: Path, folder: Path, batch_size: int) -> tuple[list[dict], list[str]]:
    """What `generate` prints to stdout and stderr."""
    out, errors = io.TextIOWrapper(io.BytesIO()), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        main(["generate", *flags(model, folder), "--batch-size", str(batch_size), "--format", "jsonl"])
    return [json.loads(line) for line in out.buffer.getvalue().splitlines()], errors.getvalue().splitlines()

"""Many questions through one engine: what goes wrong with one is its own affair."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import mlx.core as mx
import numpy as np
import pytest
from helpers.commands import tiny_checkpoint
from helpers.models import note_widths

import pg_mlx
from pg_mlx import PaliGemma, Processor
from pg_mlx.generation import Answer, Engine, Generation, Picture, Request, SamplingOptions, Scheduler, Step
from pg_mlx.threads import Prefetch

TOKENS = (3, 7, 1, 5, 5, 2, 6, 4, 8, 3)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[PaliGemma, Processor]:
    return pg_mlx.load(tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny"))


def request(processor: Processor, number: int) -> Request:
    pixels = np.random.default_rng(number).uniform(-1, 1, (56, 56, 3)).astype(np.float32)
    options = SamplingOptions(TOKENS[number], temperature=2.0, seed=number)
    return Request([Picture(pixels)], processor.prompt_ids("ocr" * (1 + number % 2)), options)


def bad() -> Request:
    raise ValueError("no such picture")


def run(loaded: tuple[PaliGemma, Processor], batch_size: int, wrong: Sequence[int] = (), **options: object) -> tuple:
    """For each request the Generation or error, and the pieces of its text."""
    _, processor = loaded
    makers = [bad if number in wrong else partial(request, processor, number) for number in range(len(TOKENS))]
    ends: dict[int, Generation | Exception] = {}
    texts = [""] * len(TOKENS)
    order = []
    for index, step in Scheduler(*loaded, Prefetch(makers), batch_size, **options):
        if isinstance(step, Step):
            texts[index] += step.text
        if isinstance(step, Exception) or step.generation:
            assert index not in ends
            ends[index] = step if isinstance(step, Exception) else step.generation
            order.append(index)
    return ends, texts, order


@pytest.fixture(scope="module")
def alone(loaded: tuple[PaliGemma, Processor]) -> list[Generation]:
    ends, texts, order = run(loaded, 1)
    assert order == list(range(len(TOKENS))) and texts == [ends[index].text for index in range(len(TOKENS))]
    assert len(set(texts)) == len(TOKENS)
    return [ends[index] for index in range(len(TOKENS))]


def check(alone: list[Generation], ends: dict, texts: list[str], failed: Sequence[int]) -> None:
    assert set(ends) == set(range(len(TOKENS)))
    assert {index for index, end in ends.items() if isinstance(end, Exception)} == set(failed)
    for index, end in ends.items():
        if index not in failed:
            assert (end.token_ids, texts[index]) == (alone[index].token_ids, alone[index].text)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_a_bad_picture_fails_alone(loaded, alone, batch_size: int) -> None:
    ends, texts, _ = run(loaded, batch_size, wrong=(0, 4, 9))
    check(alone, ends, texts, [0, 4, 9])
    assert str(ends[4]) == "no such picture"


@pytest.mark.parametrize("method", ["prefill", "extend"])
def test_a_row_that_breaks_its_batch_fails_alone(loaded, alone, monkeypatch, method: str) -> None:
    """The fourth and the seventh request are too much for the model, whoever is beside them."""
    poison = [request(loaded[1], number).pictures[0].digest for number in (3, 6)]
    real_step = Engine.step

    def step(engine: Engine) -> list:
        rows = engine._waiting if method == "prefill" else [row for row in engine._rows if row.decoded == 2]
        if any(row.request.pictures[0].digest in poison for row in rows):
            raise RuntimeError("out of memory")
        return real_step(engine)

    monkeypatch.setattr(Engine, "step", step)
    ends, texts, _ = run(loaded, 4)
    check(alone, ends, texts, [3, 6])


def test_a_second_attempt_that_differs_fails_alone(loaded, alone, monkeypatch) -> None:
    """The batch breaks once, and then one request says something else than before."""
    real_step, broken = Engine.step, list[bool]()

    def step(engine: Engine) -> list:
        if not broken and len(engine._rows) > 1 and all(row.decoded >= 2 for row in engine._rows):
            broken.append(True)
            raise RuntimeError("out of memory")
        told = real_step(engine)
        for one in told if broken else ():
            if one.row.request.options.seed == 1 and one.token_ids:
                one.token_ids[0] += 1
        return told

    monkeypatch.setattr(Engine, "step", step)
    ends, texts, _ = run(loaded, 4)
    assert broken and "did not repeat" in str(ends[1])
    check(alone, ends, texts, [1])


def test_a_row_whose_answer_cannot_be_read_fails_alone(loaded, alone, monkeypatch) -> None:
    def push(answer: Answer, token_ids: Sequence[int]) -> Iterator[Step]:
        for step in real(answer, token_ids):
            if step.generation and answer.row.request.options.seed == 3:
                raise RuntimeError("no mask decoder")
            yield step

    real = Answer.push
    monkeypatch.setattr(Answer, "push", push)
    ends, texts, _ = run(loaded, 4)
    check(alone, ends, texts, [3])


@pytest.mark.parametrize("window", [4, 5])
def test_nobody_runs_ahead_of_the_window(loaded, alone, window: int) -> None:
    """The second answer is the longest of the first ones, and those behind it are short."""
    ends, texts, order = run(loaded, 4, window=window)
    check(alone, ends, texts, [])
    for place, index in enumerate(order):
        unfinished = min(set(range(len(TOKENS))) - set(order[:place]))
        assert index < unfinished + window


@pytest.mark.ops("gpu", reason="the CPU encodes nothing ahead")
def test_on_a_gpu_pictures_are_encoded_before_their_rows_enter(loaded, alone, monkeypatch) -> None:
    widths = note_widths(monkeypatch, "encode_image")
    prefills = note_widths(monkeypatch, "prefill")
    ends, texts, _ = run(loaded, 4)
    check(alone, ends, texts, [])
    assert widths == [4] + [1] * 6 and sum(prefills) == 10


@pytest.mark.parametrize("when", [0, 1, 6])
def test_cancelling_ends_what_runs_and_begins_nothing(loaded, alone, when: int) -> None:
    asked: list[int] = []

    def cancelled() -> bool:
        asked.append(1)
        return len(asked) > when

    ends, _, _ = run(loaded, 3, cancelled=cancelled)
    assert len(ends) < len(TOKENS)
    for index, end in ends.items():
        assert end.token_ids == alone[index].token_ids[: len(end.token_ids)]
        assert end.finish_reason == "cancelled" or end.token_ids == alone[index].token_ids
    assert when == 0 or any(end.finish_reason == "cancelled" for end in ends.values())


def test_waiting_for_a_picture_can_be_given_up(loaded) -> None:
    from threading import Event

    gate = Event()
    makers: list[Callable] = [gate.wait]
    assert list(Scheduler(*loaded, Prefetch(makers), 2, cancelled=lambda: True)) == []
    gate.set()


def test_warming_up_runs_what_full_batches_of_equal_and_unequal_rows_run(loaded, monkeypatch) -> None:
    widths = {name: note_widths(monkeypatch, name) for name in ("encode_image", "prefill", "extend")}
    seconds = pg_mlx.warm_up(loaded[0], batch_size=3, pictures=2)
    assert widths == {"encode_image": [2, 6, 6], "prefill": [1, 3, 3], "extend": [1, 1, 3, 3, 3, 3]}
    assert seconds > 0


def test_lazy_arrays_are_evaluated_before_other_threads_see_them(loaded) -> None:
    lazy = mx.zeros((8, 8, 3)) + 0.5
    (one,) = pg_mlx.batch_generate(*loaded, ["ocr"], [lazy], max_tokens=2)
    (other,) = pg_mlx.batch_generate(*loaded, ["ocr"], [np.full((8, 8, 3), 0.5, np.float32)], max_tokens=2)
    assert one.token_ids == other.token_ids

"""The service: whatever is asked at the same time, each answer is the one that is given alone."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import CAT
from helpers.pictures import png_header
from helpers.service import CAPTION, CHECKPOINT, MIXED, SCENE, WILD, Asked, alone, service

from pg_mlx.checkpoint.load import LoadOptions
from pg_mlx.generation import SamplingOptions
from pg_mlx.serving.service.requests import Answered, Ask, RegionFound, Text
from pg_mlx.serving.service.service import Service, ServingError


@pytest.fixture(scope="module")
def shared():
    with service(batch_size=3) as running:
        yield running


def test_each_of_many_askers_gets_the_answer_that_is_given_alone(shared: Service):
    def ask(number: int) -> None:
        prompt, images, options, logprobs = MIXED[number % len(MIXED)]
        sources = [image.read_bytes() if number % 2 else image for image in images]
        *events, done = shared.stream(Ask(prompt, sources, options, logprobs))
        expected = alone(prompt, images, options, logprobs)
        assert isinstance(done, Answered)
        given = done.generation
        assert (given.text, given.token_ids, given.finish_reason) == (
            expected.text,
            expected.token_ids,
            expected.finish_reason,
        )
        assert given.malformed == expected.malformed
        assert "".join(event.text for event in events if isinstance(event, Text)) == expected.text
        found = [event.region for event in events if isinstance(event, RegionFound)]
        assert len(found) == len(given.regions) == len(expected.regions)
        for streamed, region, other in zip(found, given.regions, expected.regions, strict=True):
            assert (streamed.label, streamed.box, streamed.codes) == (region.label, region.box, region.codes)
            assert (region.label, region.box, region.codes) == (other.label, other.box, other.codes)
            assert region.score == pytest.approx(other.score, rel=1e-4) if logprobs else region.score is None
            for mask in (streamed.mask, region.mask):
                assert (mask is None) == (other.mask is None) and np.array_equal(mask, other.mask)

    for prompt, images, options, logprobs in MIXED:
        alone(prompt, images, options, logprobs)
    assert any(alone(*mixed).regions for mixed in MIXED)
    before = shared.stats()["answered"]
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(ask, range(3 * len(MIXED))))
    stats = shared.stats()
    assert stats["answered"] - before == 3 * len(MIXED) and stats["running"] == stats["waiting"] == 0


def test_a_cancelled_request_ends_and_its_neighbours_go_on(shared: Service):
    wild, other = Asked(shared, Ask("ocr", [SCENE], WILD)), Asked(shared, CAPTION)
    wild.began()
    wild.cancel()
    assert wild.code() == "cancelled"
    done = other.last()
    assert isinstance(done, Answered) and done.generation.text == alone("caption en", (SCENE,), SamplingOptions()).text


def test_leaving_a_stream_cancels_it(shared: Service):
    stream = shared.stream(Ask("ocr", [SCENE], WILD))
    next(stream)
    before = shared.stats()["failed"].get("cancelled", 0)
    stream.close()
    shared.ask(CAPTION)
    assert shared.stats()["failed"]["cancelled"] == before + 1


@pytest.mark.ops("cpu", reason="the clock ends it, whatever computes")
def test_a_deadline_ends_what_waits_and_what_runs(shared: Service):
    assert Asked(shared, Ask("ocr", [SCENE], deadline_s=1e-9)).code() == "deadline"
    running = Asked(shared, Ask("ocr", [SCENE], WILD, deadline_s=5.0))
    running.began()
    assert running.code() == "deadline"


def test_draining_finishes_what_was_accepted_and_refuses_the_rest():
    with service(batch_size=1) as draining:
        accepted = [Asked(draining, CAPTION) for _ in range(3)]
        assert draining.drain()
        assert all(isinstance(asked.last(), Answered) for asked in accepted)
        with pytest.raises(ServingError) as refused:
            draining.submit(CAPTION, print)
        assert refused.value.code == "shutting_down" and draining.stats()["state"] == "shutting_down"


def test_closing_without_patience_fails_what_is_left():
    with service(batch_size=1) as closing:
        left = [Asked(closing, Ask("ocr", [SCENE], WILD))]
        left[0].began()  # or the second one, if its picture were decoded sooner, would overtake it
        left.append(Asked(closing, Ask("ocr", [SCENE], WILD)))
        assert not closing.drain(timeout=0)
    assert [asked.code() for asked in left] == ["shutting_down"] * 2


def test_models_come_and_go_between_requests():
    options = LoadOptions(dtype="float32")
    with service() as running:
        stages: list[tuple[str, int, int]] = []
        asked = Asked(running, CAPTION)
        again = running.load(CHECKPOINT, options, stage=lambda *stage: stages.append(stage))
        with pytest.raises(ServingError) as refused:
            running.submit(CAPTION, print)
        assert refused.value.code == "not_loaded"
        assert isinstance(asked.last(), Answered)
        assert again.result().image_size == 112 and running.model == again.result()
        assert list(dict.fromkeys(name for name, _, _ in stages)) == ["fetch", "weights", "warm-up"]
        assert all(done <= of for _, done, of in stages) and stages[-1] == ("warm-up", 1, 1)
        held = running.stats()["active_bytes"]
        running.unload().result()
        assert running.stats()["state"] == "empty" and held - running.stats()["active_bytes"] > 6e6
        with pytest.raises(ServingError, match="nothere") as bad:
            running.load(CHECKPOINT / "nothere").result()
        assert bad.value.code == "bad_model" and running.model is None
        running.load(CHECKPOINT, options).result()
        assert running.ask(CAPTION).generation.text


def test_pictures_that_are_none_are_refused(shared: Service, tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text").write_text("no picture")
    for image, code in [
        (b"", "bad_image"),
        (b"no picture", "bad_image"),
        (CAT.read_bytes()[:3000], "bad_image"),
        (tmp_path / "text", "bad_image"),
        (tmp_path / "nothere", "bad_image"),
        (tmp_path / "pipe", "bad_image"),
        (tmp_path, "bad_image"),
        (Path("/dev/zero"), "bad_image"),
        (Path("a\0b"), "bad_image"),
        (png_header(50_000, 50_000), "too_large"),
        (png_header(20_000, 10_000), "too_large"),
    ]:
        assert Asked(shared, Ask("ocr", [image])).code() == code, image
    assert Asked(shared, Ask("\ud800", [SCENE])).code() == "bad_request"
    assert shared.ask(CAPTION).generation.text

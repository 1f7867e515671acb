"""The service: whatever is asked at the same time, each answer is the one that is given alone."""

from __future__ import annotations

import os
import queue
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import CAT
from helpers.pictures import png_header
from helpers.service import CHECKPOINT, MIXED, SCENE, WILD, Asked, alone, loaded, service
from PIL import Image

from pg_mlx.checkpoint.load import LoadOptions
from pg_mlx.generation import Engine, SamplingOptions
from pg_mlx.generation.engine import PREFILL_TOKENS
from pg_mlx.memory.residency import model_scratch_bytes
from pg_mlx.serving.service.jobs import Job
from pg_mlx.serving.service.limits import CacheRoom, Limits
from pg_mlx.serving.service.requests import Answered, Ask, Failed, RegionFound, Text, prepare
from pg_mlx.serving.service.runner import Runner
from pg_mlx.serving.service.service import Service, ServingError

CAPTION = Ask("caption en", [SCENE])
WILD_START = replace(WILD, max_tokens=10)


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


def test_a_deadline_ends_what_waits_and_what_runs(shared: Service):
    assert Asked(shared, Ask("ocr", [SCENE], deadline_s=1e-9)).code() == "deadline"
    running = Asked(shared, Ask("ocr", [SCENE], WILD, deadline_s=5.0))
    running.began()
    assert running.code() == "deadline"


def test_a_full_queue_refuses_and_its_requests_can_be_cancelled():
    with service(batch_size=1, queue=2) as small:
        running = Asked(small, Ask("ocr", [SCENE], WILD))
        running.began()
        waiting = [Asked(small, CAPTION), Asked(small, CAPTION)]
        with pytest.raises(ServingError) as refused:
            small.submit(CAPTION, print)
        assert refused.value.code == "busy"
        waiting[0].cancel()
        assert waiting[0].code() == "cancelled"
        running.cancel()
        assert isinstance(waiting[1].last(), Answered)
        assert small.stats()["failed"] == {"busy": 1, "cancelled": 2}


def test_what_waits_is_bounded_in_bytes():
    with service(waiting_bytes=len(SCENE.read_bytes()) - 1) as small, pytest.raises(ServingError) as refused:
        small.submit(Ask("ocr", [SCENE.read_bytes()]), print)
    assert refused.value.code == "busy"


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
    with service() as running:
        stages: list[tuple[str, int, int]] = []
        asked = Asked(running, CAPTION)
        again = running.load(CHECKPOINT, stage=lambda *stage: stages.append(stage))
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
        running.load(CHECKPOINT).result()
        assert running.ask(CAPTION).generation.text


def test_a_request_that_breaks_the_model_fails_alone(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture):
    step, poison = Engine.step, loaded()[1].prompt_ids("caption fr")

    def failing(self: Engine) -> object:
        progress = step(self)
        if any(list(row.request.prompt_ids) == poison and row.decoded > 1 for row in self._rows):
            raise RuntimeError("secret")
        return progress

    monkeypatch.setattr(Engine, "step", failing)
    with service() as running:
        bad = Asked(running, Ask("caption fr", [SCENE], WILD))
        good = [Asked(running, Ask(*mixed)) for mixed in MIXED]
        assert bad.code() == "failed"
        for asked, mixed in zip(good, MIXED, strict=True):
            texts = []
            while not isinstance(event := asked.events.get(timeout=60), Answered):
                texts += [event.text] if isinstance(event, Text) else []
            assert "".join(texts) == event.generation.text == alone(*mixed).text
        assert running.stats()["state"] == "ready"
    assert "secret" in capfd.readouterr().err


def test_a_model_that_always_fails_is_given_up(monkeypatch: pytest.MonkeyPatch):
    told = []
    with service() as running:
        running._on_broken = lambda: told.append(True)
        monkeypatch.setattr(Engine, "step", lambda self: 1 / 0)
        asked = [Asked(running, CAPTION) for _ in range(3)]
        assert [one.code() for one in asked] == ["failed"] * 3
        with pytest.raises(ServingError):
            running.ask(CAPTION)
        assert told == [True] and running.stats()["state"] == "broken"


def test_a_listener_that_fails_harms_nobody(shared: Service, capfd: pytest.CaptureFixture):
    shared.submit(CAPTION, lambda event: 1 / 0)
    assert shared.ask(CAPTION).generation.text
    assert "listener" in capfd.readouterr().err


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


def test_requests_over_a_limit_are_refused(tmp_path: Path):
    with service(pictures=2, picture_bytes=5000, prompt_characters=20, prefix_tokens=70) as small:
        for question in (
            Ask("ocr", [CAT] * 3),
            Ask("ocr", [b" " * 5001]),
            Ask("o" * 21, [CAT]),
        ):
            with pytest.raises(ServingError) as refused:
                small.submit(question, print)
            assert refused.value.code == "too_large"
        (tmp_path / "large").write_bytes(b" " * 5001)
        assert Asked(small, Ask("ocr", [tmp_path / "large"])).code() == "too_large"
        small_picture = tmp_path / "small.png"
        Image.new("RGB", (9, 9)).save(small_picture)
        assert isinstance(Asked(small, Ask("ocr", [small_picture])).last(), Answered)
        assert Asked(small, Ask("ocr", [small_picture] * 2)).code() == "too_large"
        for question in (Ask("ocr", []), Ask("ocr", [CAT], deadline_s=0.0)):
            with pytest.raises(ServingError) as refused:
                small.submit(question, print)
            assert refused.value.code == "bad_request"


TOKEN_BYTES = 2 * 6 * 1 * 64 * 4
"""Keys and values of the demo: 6 layers, one head of 64 floats."""


def test_no_more_answers_run_than_memory_allows():
    options, features = SamplingOptions(max_tokens=40, temperature=9.0, seed=3), 64 << 20
    slots = 64 + len(loaded()[1].prompt_ids("ocr")) + 40 + 256
    scratch = model_scratch_bytes(loaded()[0], 8192 // 64, PREFILL_TOKENS, Limits().batch_size)
    with service() as unlimited:
        weights = unlimited.model.weight_bytes
    room = 5 * slots * TOKEN_BYTES  # for two rows and a half, which count twice
    with service(memory_bytes=weights + features + scratch + room, feature_bytes=features) as small:
        assert Asked(small, Ask("ocr", [SCENE], WILD)).code() == "out_of_memory"
        asked = [Asked(small, Ask("ocr", [SCENE], options)) for _ in range(4)]
        most = 0
        for one in asked:
            while not isinstance(one.events.get(timeout=60), Answered):
                most = max(most, small.stats()["running"])
        assert most == 2
    with Service(Limits(memory_bytes=weights)) as none, pytest.raises(ServingError) as refused:
        none.load(CHECKPOINT).result()
    assert refused.value.code == "out_of_memory"


def test_caches_are_never_larger_than_was_counted():
    limits = Limits(batch_size=4)
    runner = Runner(CHECKPOINT, LoadOptions(dtype="float32"), limits, lambda *_: None)
    jobs = [Job(Ask(*mixed), lambda event: None) for mixed in (*MIXED, *MIXED)]
    for job in jobs:
        job.prepared(prepare(job.question, runner.processor, limits))
    longest = used = 0
    while jobs or runner.running:
        if jobs and runner.admits(jobs[0]):
            longest = max(longest if runner.running else 0, runner._slots(jobs[0].request))
            runner.start(jobs.pop(0))
        running = len(runner.running)
        runner.step()
        if cache := runner._engine._engine._cache:
            held = sum(layer.nbytes for layer in cache.layers)
            assert held <= running * longest * TOKEN_BYTES
            used = max(used, held / (running * longest * TOKEN_BYTES))
    assert used > 0.5


def test_cache_room_counts_rows_by_the_longest_until_all_have_left():
    room = CacheRoom(token_bytes=10, room_bytes=2 * 3 * 100 * 10)
    assert room.fits(0, 300) and not room.fits(0, 301)
    room.enter(0, 200)
    assert not room.fits(1, 100)
    room.enter(0, 100)
    assert room.fits(1, 150) and room.fits(2, 100) and not room.fits(2, 101) and not room.fits(3, 1)


def test_what_was_known_before_a_failed_pass_is_sent_before_it(ops: str, monkeypatch: pytest.MonkeyPatch):
    """The pass fails in which the fourth token would be read; the answers beside it are whole."""
    advance, poison = Engine._advance, loaded()[1].prompt_ids("caption fr")

    def failing(self: Engine, *arguments: object) -> None:
        if any(list(row.request.prompt_ids) == poison and row.decoded >= 4 for row in self._rows):
            raise RuntimeError("no memory")
        advance(self, *arguments)

    expected = alone("caption fr", (SCENE,), WILD_START).token_ids
    others = [alone(*mixed).text for mixed in MIXED]
    monkeypatch.setattr(Engine, "_advance", failing)
    with Service() as running:
        running.load(CHECKPOINT, LoadOptions(dtype="float32")).result()
        bad, *good = [Asked(running, Ask(*asked)) for asked in (("caption fr", [SCENE], WILD), *MIXED)]
        no_picture = Asked(running, Ask("ocr", [b"no picture"]))
        text = ""
        while isinstance(event := bad.events.get(timeout=60), Text):
            text += event.text
        assert isinstance(event, Failed) and event.code == "failed"
        # A GPU's operations begin the pass before they look at the token of the one before.
        known = 5 if ops == "gpu" else 4
        assert text and loaded()[1].tokenizer.decode(expected[:known]).startswith(text)
        assert len(text) >= len(loaded()[1].tokenizer.decode(expected[:known])) - 1
        assert [one.last().generation.text for one in good] == others and no_picture.code() == "bad_image"


def test_a_listener_that_fails_once_still_gets_the_rest(shared: Service, capfd: pytest.CaptureFixture):
    events: queue.SimpleQueue[object] = queue.SimpleQueue()

    def listener(event: object) -> None:
        events.put(event)
        raise RuntimeError("the listener's own fault")

    shared.submit(CAPTION, listener)
    texts = []
    while not isinstance(event := events.get(timeout=60), Answered):
        texts.append(event.text)
    assert len(texts) > 1 and "".join(texts) == event.generation.text
    assert capfd.readouterr().err.count("a listener failed") >= len(texts)

"""A service takes no more than its limits allow: requests, bytes, memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.commands import CAT
from helpers.models import tiny
from helpers.service import CAPTION, CHECKPOINT, MIXED, SCENE, WILD, Asked, loaded, service
from PIL import Image

from pg_mlx.checkpoint.load import LoadOptions
from pg_mlx.generation import SamplingOptions
from pg_mlx.generation.engine import PREFILL_TOKENS
from pg_mlx.memory.residency import HeldPart, model_scratch_bytes
from pg_mlx.serving.service.jobs import Job
from pg_mlx.serving.service.limits import CacheRoom, Limits
from pg_mlx.serving.service.requests import Answered, Ask, prepare
from pg_mlx.serving.service.runner import Runner, _room
from pg_mlx.serving.service.service import Service, ServingError


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


def test_the_limit_holds_for_each_process_that_holds_a_part():
    """The room for caches is what the process with most weights leaves, and a token takes what it takes at most."""
    model, limits = tiny("gemma"), Limits(memory_bytes=1 << 30)
    own = HeldPart("rank 0", 1000, 10)
    alone = _room(model, limits, [own])
    for weights, token, less in ((500, 30, 0), (3000, 5, 2000)):
        room = _room(model, limits, [own, HeldPart("rank 1", weights, token)])
        assert room.room_bytes == alone.room_bytes - less
        assert room.needed([7]) == 2 * 7 * max(token, 10)


def test_cache_room_counts_rows_by_the_longest_until_all_have_left():
    room = CacheRoom(token_bytes=10, room_bytes=2 * 3 * 100 * 10)
    assert room.fits(0, 300) and not room.fits(0, 301)
    room.enter(0, 200)
    assert not room.fits(1, 100)
    room.enter(0, 100)
    assert room.fits(1, 150) and room.fits(2, 100) and not room.fits(2, 101) and not room.fits(3, 1)

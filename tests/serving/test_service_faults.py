"""What a service does when something takes too long, never ends, or breaks a thread."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.service import SCENE, Asked, service

from pg_mlx.demo import CHECKPOINT
from pg_mlx.generation import SamplingOptions
from pg_mlx.serving.error_codes import ServingError
from pg_mlx.serving.service import runner as runner_module
from pg_mlx.serving.service import service as service_module
from pg_mlx.serving.service.limits import Limits
from pg_mlx.serving.service.requests import Answered, Ask
from pg_mlx.serving.service.service import Service

pytestmark = pytest.mark.ops("cpu", reason="queues and threads, whatever computes")

SHORT = SamplingOptions(max_tokens=2)
QUICK = Ask("ocr", [SCENE], SHORT)


class Panic(BaseException):
    """As the panics of Rust code, which are no Exceptions."""


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Requests with the prompt "slow" are decoded until the event is set."""
    decoded, prepare = threading.Event(), service_module.prepare

    def waiting(question: Ask, *rest: object) -> object:
        if question.prompt == "slow":
            decoded.wait(60)
        return prepare(question, *rest)

    monkeypatch.setattr(service_module, "prepare", waiting)
    yield decoded
    decoded.set()


def until(true: object, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_deadline_counts_while_pictures_are_decoded(slow: threading.Event):
    with service(decoders=1, stuck=0) as running:
        began = time.monotonic()
        held = Asked(running, Ask("slow", [SCENE], deadline_s=0.5))
        queued = Asked(running, Ask("ocr", [SCENE], deadline_s=0.7))
        assert held.code() == queued.code() == "deadline"
        assert time.monotonic() - began < 1.7


def test_a_deadline_counts_while_the_model_reads_a_prefix(monkeypatch: pytest.MonkeyPatch):
    with service() as running:
        step, going_on = runner_module.Runner.step, threading.Event()
        monkeypatch.setattr(runner_module.Runner, "step", lambda self: (going_on.wait(20), step(self))[1])
        began = time.monotonic()
        assert Asked(running, Ask("ocr", [SCENE], deadline_s=0.5)).code() == "deadline"
        assert time.monotonic() - began < 1.5
        going_on.set()
        assert isinstance(Asked(running, QUICK).last(), Answered)
        assert running.stats()["failed"] == {"deadline": 1}


def test_decoders_that_are_stuck_are_replaced_up_to_a_bound(slow: threading.Event):
    with service(decoders=1, stuck=2) as running:
        for expected in (1, 2, 3):
            asked = Asked(running, Ask("slow", [SCENE]))
            until(lambda: running._decoders._queue.__len__() == 0)
            asked.cancel()
            assert asked.code() == "cancelled"
            until(lambda n=expected: running._decoders.stuck == n)
            if expected < 3:
                assert isinstance(Asked(running, QUICK).last(), Answered)
        with pytest.raises(ServingError, match="take too long") as refused:
            running.submit(QUICK, print)
        assert refused.value.code == "busy"
        slow.set()
        until(lambda: running._decoders.stuck == 0)
        assert isinstance(Asked(running, QUICK).last(), Answered)
        until(lambda: running._decoders._threads <= 1)


def test_pictures_that_take_too_long_to_decode_end_their_request(slow: threading.Event):
    with service(decode_s=0.3) as running:
        assert Asked(running, Ask("slow", [SCENE])).code() == "too_large"
        assert isinstance(Asked(running, QUICK).last(), Answered)


def test_a_cancelled_request_gives_its_pictures_back(slow: threading.Event):
    """At once if it waits for a decoder; when the decoder is done if it is being decoded, and until then it counts."""
    data = SCENE.read_bytes()
    with service(decoders=1, stuck=0, waiting_bytes=3 * len(data)) as running:
        first = Asked(running, Ask("slow", [data]))
        until(lambda: not running._decoders._queue)
        for _ in range(20):
            asked = Asked(running, Ask("ocr", [data, data]))
            asked.cancel()
            assert asked.code() == "cancelled"
        until(lambda: not running._decoders._queue)
        first.cancel()
        assert first.code() == "cancelled"
        assert running._decoders.held_bytes == len(data) and running.stats()["waiting"] == 0
        slow.set()
        until(lambda: running._decoders.held_bytes == 0)


def test_closing_does_not_wait_for_a_load_that_never_ends(monkeypatch: pytest.MonkeyPatch):
    going_on = threading.Event()

    def hang(*_: object, **__: object) -> object:
        going_on.wait(60)
        raise ServingError("failed", "nobody sees this")

    monkeypatch.setattr(runner_module, "load_with", hang)
    running = Service(Limits())
    loading = running.load(CHECKPOINT)
    until(lambda: running.stats()["state"] == "loading")
    began = time.monotonic()
    running.close()
    assert time.monotonic() - began < 2
    with pytest.raises(ServingError) as failed:
        loading.result(0)
    assert failed.value.code == "shutting_down"
    going_on.set()
    running._owner.join(20)
    assert not running._owner.is_alive()


def test_a_panic_while_loading_is_a_failure(monkeypatch: pytest.MonkeyPatch):
    def panic(*_: object, **__: object) -> object:
        raise Panic("no trie")

    monkeypatch.setattr(runner_module, "load_with", panic)
    with Service(Limits()) as running:
        with pytest.raises(ServingError, match="Panic"):
            running.load(CHECKPOINT).result(20)
        assert running.stats()["state"] == "empty"


def test_a_panic_in_a_decoder_fails_its_request_alone(monkeypatch: pytest.MonkeyPatch):
    def panic(*_: object, **__: object) -> object:
        raise Panic("no trie")

    with service(decoders=1) as running:
        with monkeypatch.context() as patched:
            patched.setattr(service_module, "prepare", panic)
            assert Asked(running, QUICK).code() == "failed"
        assert isinstance(Asked(running, QUICK).last(), Answered)


def test_a_panic_of_the_model_thread_answers_everybody(monkeypatch: pytest.MonkeyPatch):
    broken = threading.Event()
    running = Service(Limits(), on_broken=broken.set)
    running.load(CHECKPOINT).result()

    def panic(*_: object) -> object:
        raise Panic("gone")

    monkeypatch.setattr(runner_module.Runner, "step", panic)
    assert Asked(running, QUICK).code() == "failed"
    assert broken.wait(20) and running.stats()["state"] == "broken"
    with pytest.raises(ServingError):
        running.submit(QUICK, print)
    running.close()


def test_an_answer_may_be_as_long_as_memory_allows():
    with service(memory_bytes=100 << 20, feature_bytes=1 << 20) as running:
        long = SamplingOptions(max_tokens=8192)
        assert Asked(running, Ask("ocr", [SCENE], long)).code() == "out_of_memory"
        assert isinstance(Asked(running, Ask("ocr", [SCENE], long, shorten=True)).last(), Answered)


def test_a_tokenizer_that_panics_is_a_bad_model(tmp_path: Path):
    """The Rust library panics over this table; its panics are no Exceptions."""
    folder = tmp_path / "model"
    shutil.copytree(CHECKPOINT, folder)
    (folder / "tokenizer.model").unlink()
    described = json.loads((folder / "tokenizer.json").read_bytes())
    described["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "/////wAAAAAAAAAA"}
    (folder / "tokenizer.json").write_text(json.dumps(described))
    with Service(Limits()) as running:
        with pytest.raises(ServingError) as failed:
            running.load(folder).result(60)
        assert failed.value.code == "bad_model" and "tokenizer.json" in str(failed.value)
        running.load(CHECKPOINT).result(60)

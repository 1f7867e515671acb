"""A pass of the model or a listener that fails harms nobody else."""

from __future__ import annotations

import queue
from dataclasses import replace

import pytest
from helpers.service import CAPTION, CHECKPOINT, MIXED, SCENE, WILD, Asked, alone, loaded, service

from pg_mlx.checkpoint.load import LoadOptions
from pg_mlx.generation import Engine
from pg_mlx.serving.service.requests import Answered, Ask, Failed, Text
from pg_mlx.serving.service.service import Service, ServingError

WILD_START = replace(WILD, max_tokens=10)


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

"""stop, logprobs and the options against repetition, over HTTP and through a worker."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import httpx
import openai
import pytest
from helpers.server import CHAT, chat, data_uri, events, refused
from helpers.service import SCENE, loaded
from helpers.worker import Raw

import pg_mlx
from pg_mlx.generation import Generation

PATH = {"path": str(SCENE)}
PENALTIES = {"repetition_penalty": 1.4, "repetition_context_size": 8, "no_repeat_ngram_size": 2}


def alone(prompt: str, **options: Any) -> Generation:
    return pg_mlx.generate(*loaded(), prompt, SCENE, **options)


@pytest.fixture(scope="module")
def worker():
    with Raw() as raw:
        yield raw.greet()


def same(shown: list[dict[str, Any]], expected: Generation) -> None:
    """In other batches sums may round otherwise."""
    assert expected.logprobs is not None and [one["token"] for one in shown] == [t.text for t in expected.logprobs]
    for one, other in zip(shown, expected.to_json()["logprobs"], strict=True):
        assert one["bytes"] == other["bytes"] and one["logprob"] == pytest.approx(other["logprob"], abs=1e-3)
        for mine, theirs in zip(one["top_logprobs"], other["top_logprobs"], strict=True):
            assert mine["logprob"] == pytest.approx(theirs["logprob"], abs=1e-3)


def test_the_openai_client_gets_log_probabilities(ai: openai.OpenAI):
    done = ai.chat.completions.create(**chat("caption en", logprobs=True, top_logprobs=3))
    shown = done.choices[0].logprobs
    assert shown and shown.content and shown.refusal is None
    same([one.model_dump() for one in shown.content], alone("caption en", logprobs=3))
    assert "".join(one.token for one in shown.content) == done.choices[0].message.content
    without = ai.chat.completions.create(**chat("caption en", logprobs=True)).choices[0].logprobs
    assert without and without.content and without.content[0].top_logprobs == []
    assert ai.chat.completions.create(**chat("caption en", logprobs=False)).choices[0].logprobs is None


def test_they_are_streamed_with_their_text(ai: openai.OpenAI):
    chunks = list(ai.chat.completions.create(**chat("ocr", logprobs=True, top_logprobs=2, stream=True)))
    shown = [one for chunk in chunks if chunk.choices[0].logprobs for one in chunk.choices[0].logprobs.content]
    same([one.model_dump() for one in shown], alone("ocr", logprobs=2))


@pytest.mark.parametrize("stop", [" circle", [" star", "and", "never"]], ids=["one", "several"])
def test_the_openai_client_stops(ai: openai.OpenAI, stop: Any):
    expected = alone("caption en", stop=stop)
    done = ai.chat.completions.create(**chat("caption en", stop=stop)).choices[0]
    assert (done.message.content, done.finish_reason) == (expected.text, "stop")
    chunks = list(ai.chat.completions.create(**chat("caption en", stop=stop, stream=True, logprobs=True)))
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(texts) == expected.text and chunks[-1].choices[0].finish_reason == "stop"


def test_penalties_are_fields_of_their_own(client: httpx.Client, ai: openai.OpenAI):
    expected = alone("caption en", **PENALTIES)
    assert expected.text != alone("caption en").text
    done = ai.chat.completions.create(**chat("caption en"), extra_body=PENALTIES)
    assert done.choices[0].message.content == expected.text
    body = {"prompt": "caption en", "image": data_uri(SCENE), **PENALTIES}
    assert client.post("/v1/regions", json=body).json()["text"] == expected.text


def test_regions_stop_too(client: httpx.Client):
    expected = alone("caption en", stop=" star")
    for tokens in (256, -1):
        body = {"prompt": "caption en", "image": data_uri(SCENE), "stop": " star", "max_tokens": tokens}
        answer = client.post("/v1/regions", json=body).json()
        assert (answer["text"], answer["finish_reason"]) == (expected.text, "stop")


def test_nothing_is_as_good_as_absent(client: httpx.Client):
    body = chat("ocr", stop=None, logprobs=None, top_logprobs=None, repetition_penalty=None)
    assert client.post(CHAT, json=body).json()["choices"][0]["message"]["content"] == alone("ocr").text
    assert client.post(CHAT, json=chat("ocr", stop=[], top_logprobs=0)).status_code == 200


@pytest.mark.parametrize(
    "more",
    [
        {"stop": ""}, {"stop": ["a", ""]}, {"stop": ["a"] * 17}, {"stop": "x" * 1001}, {"stop": 1}, {"stop": [1]},
        {"logprobs": 3}, {"logprobs": True, "top_logprobs": 21}, {"logprobs": True, "top_logprobs": -1},
        {"top_logprobs": 2}, {"repetition_penalty": 0}, {"repetition_penalty": "1"}, {"no_repeat_ngram_size": -1},
        {"repetition_context_size": 1.5},
    ],
    ids=lambda more: json.dumps(more)[:40],
)  # fmt: skip
def test_what_is_out_of_range_is_named(client: httpx.Client, more: dict[str, Any]):
    response = client.post(CHAT, json=chat("ocr", **more))
    refused(response, 400, "bad_request")
    assert response.json()["error"]["param"].partition("[")[0] in more


def test_a_worker_takes_them(worker: Raw):
    expected = alone("caption en", logprobs=2, stop=[" star"], **PENALTIES)
    asked = worker.say("generate", prompt="caption en", images=[PATH], logprobs=2, stop=[" star"], **PENALTIES)
    texts = ""
    while (message := worker.next())["type"] == "text":
        texts += message["text"]
    assert message["id"] == asked and message["type"] == "done"
    assert message["text"] == texts == expected.text and message["token_ids"] == expected.token_ids
    same(message["logprobs"], expected)
    assert "logprobs" not in worker.ask("generate", prompt="ocr", images=[PATH], stream=False)
    just = worker.ask("generate", prompt="ocr", images=[PATH], stream=False, logprobs=True)
    assert just["logprobs"][0]["top_logprobs"] == []


@pytest.mark.parametrize(
    "more", [{"stop": ""}, {"logprobs": 21}, {"logprobs": "x"}, {"repetition_penalty": 0}], ids=str
)
def test_a_worker_refuses_what_is_out_of_range(worker: Raw, more: dict[str, Any]):
    assert worker.ask("generate", prompt="ocr", images=[PATH], **more)["code"] == "bad_request"


def test_a_client_gets_them():
    from pg_mlx.client import Client

    with Client(dtype="float32") as client:
        answer = client.generate("caption en", SCENE, logprobs=1, stop="circle")
        assert answer.logprobs is not None and len(answer.logprobs) == len(answer.token_ids)
        assert answer.text == alone("caption en", stop="circle").text
        assert client.generate("ocr", SCENE).logprobs is None
        assert {"logprobs", "text"} <= asdict(answer).keys()


def test_events_say_nothing_of_log_probabilities_unless_asked(client: httpx.Client):
    chunks = events(client.post(CHAT, json=chat("ocr", stream=True)).text)
    assert all(chunk["choices"][0]["logprobs"] is None for chunk in chunks if chunk != "[DONE]")


@pytest.mark.parametrize("top_k", [-1, 0])
def test_all_tokens_are_asked_for_as_other_servers_write_it(client: httpx.Client, top_k: int):
    options = dict(temperature=3.0, seed=5, max_tokens=6)
    answer = client.post(CHAT, json=chat("caption en", top_k=top_k, **options)).json()
    assert answer["choices"][0]["message"]["content"] == alone("caption en", **options).text
    refused(client.post(CHAT, json=chat("caption en", top_k=-2)), 400, "bad_request")

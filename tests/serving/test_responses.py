"""/v1/responses, with OpenAI's own client where it has a word."""

from __future__ import annotations

import json
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from helpers.server import chat, data_uri, refused
from helpers.service import SCENE, alone

from pg_mlx.generation import SamplingOptions
from tools.schemas import openapi

RESPONSES = "/v1/responses"


def asked(prompt: str, picture: str = data_uri(SCENE)) -> list[Any]:
    parts = [{"type": "input_text", "text": prompt}, {"type": "input_image", "image_url": picture}]
    return [{"role": "user", "content": parts}]


def test_the_openai_client_gets_the_answer_that_is_given_alone(ai: openai.OpenAI):
    expected = alone("caption en", (SCENE,), SamplingOptions())
    answer = ai.responses.create(model="demo", input=asked("caption en"), instructions="be brief", store=False)
    assert answer.output_text == expected.text and answer.status == "completed" and answer.error is None
    assert answer.usage.input_tokens == expected.stats.prompt_tokens
    assert answer.usage.output_tokens == expected.stats.decode_tokens
    cut = ai.responses.create(model="demo", input=asked("caption en"), max_output_tokens=2)
    assert cut.status == "incomplete" and cut.incomplete_details.reason == "max_output_tokens"
    assert expected.text.startswith(cut.output_text)


def test_the_openai_client_streams(ai: openai.OpenAI):
    whole = ai.responses.create(model="demo", input=asked("caption en")).output_text
    with ai.responses.stream(model="demo", input=asked("caption en")) as stream:
        events = list(stream)
        assert stream.get_final_response().output_text == whole
    assert [event.type for event in events[:4]] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert [event.type for event in events[-4:]] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) > 3 and "".join(event.delta for event in deltas) == whole
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_an_earlier_picture_and_all_kinds_of_items(client: httpx.Client):
    """As the AI SDK sends a conversation, whose default is this address."""
    said = [
        {"role": "system", "content": "be brief"},
        *asked("ocr"),
        {"role": "assistant", "content": [{"type": "output_text", "text": "35"}], "id": "msg_1"},
        {"type": "message", "role": "user", "content": "caption en"},
    ]
    answer = client.post(RESPONSES, json={"model": "demo", "input": said, "tool_choice": "auto", "tools": []}).json()
    assert answer["output"][0]["content"][0]["text"] == alone("caption en", (SCENE,), SamplingOptions()).text
    schema = openapi.document()
    reference = {"$ref": "#/components/schemas/ModelResponse", "components": schema["components"]}
    jsonschema.Draft202012Validator(reference).validate(answer)


def test_both_addresses_answer_alike(client: httpx.Client):
    for options in (
        {},
        {"temperature": 1.5, "seed": 7, "top_p": 0.9},
        {"max_tokens": 3},
        {"max_tokens": -1, "stop": [" star", "never"]},
        {"repetition_penalty": 1.4, "repetition_context_size": 8, "no_repeat_ngram_size": 2},
    ):
        there = client.post("/v1/chat/completions", json=chat("caption en", **options)).json()
        here = client.post(RESPONSES, json={"input": asked("caption en"), **options}).json()
        assert here["output"][0]["content"][0]["text"] == there["choices"][0]["message"]["content"]
        assert here["usage"]["total_tokens"] == there["usage"]["total_tokens"]


def test_an_answer_that_was_stopped_is_complete(client: httpx.Client):
    answer = client.post(RESPONSES, json={"input": asked("caption en"), "stop": " star"})
    expected = alone("caption en", (SCENE,), SamplingOptions(stop=" star"))
    assert answer.json()["output"][0]["content"][0]["text"] == expected.text and answer.json()["status"] == "completed"
    assert expected.text != alone("caption en", (SCENE,), SamplingOptions()).text
    assert "x-ignored-parameters" not in answer.headers


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"input": "hello"}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "x"}]}]}, None),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"text": {"format": {"type": "json_object"}}}, "text"),
        ({"max_output_tokens": 0}, None),
        ({"stop": ""}, "stop"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"include": "message.output_text.logprobs"}, None),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {}}}}, "text"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"background": True}, "background"),
    ],
)
def test_what_is_not_built_is_refused(client: httpx.Client, more: dict[str, Any], param: str | None):
    response = client.post(RESPONSES, json={"model": "demo", "input": asked("ocr"), **more})
    assert response.status_code == 400, response.text
    assert param is None or response.json()["error"]["param"] == param


LOGPROBS = "message.output_text.logprobs"


@pytest.mark.parametrize(
    "more", [{"top_logprobs": 2, "include": [LOGPROBS]}, {"top_logprobs": 2}, {"include": [LOGPROBS]}]
)
def test_log_probabilities(ai: openai.OpenAI, more: dict[str, Any]):
    many = more.get("top_logprobs", 0)
    there = ai.chat.completions.create(**chat("caption en", logprobs=True, top_logprobs=many)).choices[0].logprobs
    assert there and there.content
    expected = [(token.token, pytest.approx(token.logprob, abs=1e-3), many) for token in there.content]
    part = ai.responses.create(model="demo", input=asked("caption en"), **more).output[0].content[0]
    assert [(one.token, one.logprob, len(one.top_logprobs)) for one in part.logprobs] == expected
    events = list(ai.responses.create(model="demo", input=asked("caption en"), stream=True, **more))
    deltas = [one for event in events if event.type == "response.output_text.delta" for one in event.logprobs]
    assert [(one.token, one.logprob, len(one.top_logprobs)) for one in deltas] == expected
    whole = next(event for event in events if event.type == "response.output_text.done")
    assert [(one.token, one.logprob, len(one.top_logprobs)) for one in whole.logprobs] == expected


def test_without_asking_there_are_none(ai: openai.OpenAI):
    asking = dict(model="demo", input=asked("ocr"), include=["reasoning.encrypted_content"], text={"verbosity": "low"})
    assert ai.responses.create(**asking).output[0].content[0].logprobs == []


def test_what_changes_nothing_is_ignored_and_named(client: httpx.Client):
    answer = client.post(RESPONSES, json={"input": asked("ocr"), "keep_alive": 1, "store": True, "user": None})
    assert answer.status_code == 200 and answer.headers["x-ignored-parameters"] == "keep_alive, store"


def test_a_bad_picture_has_a_status_also_when_streaming(client: httpx.Client):
    picture = data_uri(b"no picture")
    refused(client.post(RESPONSES, json={"input": asked("ocr", picture), "stream": True}), 400, "bad_image")
    assert json.loads(client.get("/openapi.json").content)["paths"][RESPONSES]

"""What programs send that were written for OpenAI's API or another server of it: answers, or a refusal that helps."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest
from helpers.server import CHAT, chat, data_uri, refused, serving
from helpers.service import SCENE, alone

from pg_mlx.generation import SamplingOptions
from pg_mlx.serving.http.middleware import canonical
from pg_mlx.serving.service.service import Service

GREEDY = SamplingOptions()
URI = data_uri(SCENE)
PICTURE = {"type": "image_url", "image_url": {"url": URI}}
SYSTEM = {"role": "system", "content": "be brief"}
RESPONSES = "/v1/responses"


def said(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def response(model: str) -> dict[str, Any]:
    return {"model": model, "input": [user(text("ocr"), PICTURE)]}


@pytest.mark.parametrize(("path", "body"), [(CHAT, chat("ocr")), (RESPONSES, response("demo"))])
def test_a_request_for_another_model_gets_the_answer_of_this_one_and_hears_it(
    client: httpx.Client, path: str, body: dict[str, Any]
):
    own, other, none = (client.post(path, json={**body, "model": name}) for name in ("demo", "gpt-4o", None))
    assert own.status_code == other.status_code == none.status_code == 200
    assert [answer.json()["model"] for answer in (own, other, none)] == ["demo"] * 3
    assert other.headers["x-ignored-parameters"] == "model"
    assert "x-ignored-parameters" not in own.headers and "x-ignored-parameters" not in none.headers
    for part in ("choices", "output"):
        shown = [str(answer.json().get(part)).replace(answer.json()["id"], "") for answer in (own, other)]
        assert ("35" in shown[0]) == ("35" in shown[1])


def test_the_list_of_models_and_regions_are_exact(client: httpx.Client):
    """The first says what there is; the second is no other server's address, so nobody asks it by habit."""
    refused(client.get("/v1/models/gpt-4o"), 404, "model_not_found")
    body = {"model": "gpt-4o", "prompt": "ocr", "image": data_uri(SCENE)}
    refused(client.post("/v1/regions", json=body), 404, "model_not_found")


@pytest.mark.parametrize("prefix", ["", "/v1"])
@pytest.mark.parametrize("end", ["", "/"])
def test_addresses_without_v1_or_with_a_slash(client: httpx.Client, prefix: str, end: str):
    assert client.get(f"{prefix}/models{end}").json()["data"][0]["id"] == "demo"
    assert client.get(f"{prefix}/models/demo{end}").json()["id"] == "demo"
    assert said(client.post(f"{prefix}/chat/completions{end}", json=chat("ocr"))) == "35"
    assert client.post(f"{prefix}/responses{end}", json=response("demo")).status_code == 200
    assert client.post(f"{prefix}/regions{end}", json={"prompt": "ocr", "image": data_uri(SCENE)}).status_code == 200


def test_a_path_has_one_form():
    same = ("/", "/health", "/v1", "/v1/models/a/b", "/modelsx", "/v2/chat", "/metrics", "models", "*")
    assert [canonical(path) for path in same] == list(same)
    assert [canonical(path) for path in ("", "//", "/health/", "/models", "/chat")] == [
        "/", "/", "/health", "/v1/models", "/v1/chat",
    ]  # fmt: skip


def test_a_path_that_needs_a_key_needs_it_in_every_form(shared: Service):
    with serving(shared, api_key="secret") as locked:
        for path in ("/v1/models", "/models", "/models/", "/metrics/", "/v1/models/demo/"):
            refused(locked.get(path), 401, "invalid_api_key")
        assert locked.get("/health/").status_code == locked.get("/sample.png").status_code == 200


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings", "/api/chat", "/v1", "/v1/v1/models", "/chat"])
def test_an_address_that_is_not_there_names_those_that_are(client: httpx.Client, path: str):
    answer = client.post(path, json={"model": "demo", "prompt": "caption en"})
    refused(answer, 404, "not_found")
    assert "/v1/chat/completions" in answer.json()["error"]["message"]
    wrong = client.get(CHAT)
    refused(wrong, 405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST" and "POST" in wrong.json()["error"]["message"]


@pytest.mark.parametrize(
    "messages",
    [
        [user(PICTURE, text("ocr"))],
        [user(PICTURE), user(text("ocr"))],
        [user(text("ocr")), user(PICTURE)],
        [user(text("caption en"), PICTURE), {"role": "assistant", "content": "a star"}, user(text("ocr"))],
        [SYSTEM, {"role": "developer", "content": [text("x")]}, user(text("ocr"), PICTURE)],
        [user(text("ocr"), PICTURE), {"role": "assistant", "content": "The answer is"}],
        [{**user({"type": "input_text", "text": "ocr"}, {"type": "input_image", "image_url": URI}), "name": "a"}],
        [user(text("ocr"), {"type": "image_url", "image_url": {"url": URI, "detail": "high", "format": "image/png"}})],
        [user(text("ocr"), {**PICTURE, "cache_control": {"type": "ephemeral"}})],
    ],
)  # fmt: skip
def test_forms_of_a_conversation(client: httpx.Client, messages: list[Any]):
    assert said(client.post(CHAT, json={"messages": messages})) == alone("ocr", (SCENE,), GREEDY).text == "35"


def test_a_question_without_a_picture_is_refused_in_words_that_help(ai: openai.OpenAI):
    with pytest.raises(
        openai.BadRequestError, match="only answers questions about pictures: send one as a part"
    ) as error:
        ai.chat.completions.create(model="demo", messages=[{"role": "user", "content": "hello"}])
    assert error.value.code == "bad_request" and error.value.param == "messages"


@pytest.mark.parametrize("kind", ["image", "input_audio", "file", "video_url", 1])
def test_a_part_of_another_type_hears_which_there_are(client: httpx.Client, kind: Any):
    answer = client.post(CHAT, json={"messages": [user(text("ocr"), {"type": kind, "image": data_uri(SCENE)})]})
    refused(answer, 400, "bad_request")
    error = answer.json()["error"]
    assert error["param"] == "messages[0].content[1].type"
    assert "text, image_url, input_text, input_image" in error["message"]


@pytest.mark.parametrize(
    ("more", "instead"),
    [
        ({"n": 2}, "send 1"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, 'send {"type": "text"}'),
        ({"tools": [{"type": "function"}]}, "send []"),
        ({"frequency_penalty": 0.1}, "send 0"),
        ({"guided_json": {}}, "leave it out"),
    ],
)
def test_what_would_change_the_answer_is_refused_with_the_way_out(
    client: httpx.Client, more: dict[str, Any], instead: str
):
    answer = client.post(CHAT, json=chat("ocr", **more))
    refused(answer, 400, "unsupported_parameter")
    assert answer.json()["error"]["param"] in more
    assert answer.json()["error"]["message"].endswith(instead)

"""Requests that are written in unusual ways, but mean something, are answered."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from helpers.server import CHAT, chat, data_uri
from helpers.service import SCENE

pytestmark = pytest.mark.ops("cpu", reason="what is refused is not computed")


def test_null_is_as_good_as_absent_and_whole_numbers_may_be_written_with_a_point(client: httpx.Client):
    nulls = dict.fromkeys(("max_tokens", "seed", "stream", "stream_options", "model", "audio", "nonsense"))
    expected = client.post(CHAT, json=chat("ocr", max_tokens=3)).json()["choices"]
    for more in ({**nulls, "max_tokens": 3.0, "top_k": 0.0, "frequency_penalty": 0.0}, {**nulls, "max_tokens": 3}):
        assert client.post(CHAT, json=chat("ocr", **more)).json()["choices"] == expected


def test_fields_that_are_unknown_or_change_nothing_are_ignored_and_named(client: httpx.Client):
    plain = client.post(CHAT, json=chat("ocr"))
    assert "x-ignored-parameters" not in plain.headers
    more = {"keep_alive": "5m", "user": "me", "chat_template_kwargs": {}, "\u20ac": 1, "a\r\nb": 1, "n": 1}
    content = json.dumps(chat("ocr", **more))
    answer = client.post(CHAT, content=content, headers={"Content-Type": "application/json"})
    assert answer.json()["choices"] == plain.json()["choices"]
    assert answer.headers["x-ignored-parameters"] == "chat_template_kwargs, keep_alive, user"
    streamed = client.post(CHAT, json=chat("ocr", stream=True, stream_options={"other": 1}, keep_alive=1))
    assert streamed.headers["x-ignored-parameters"] == "keep_alive"


@pytest.mark.parametrize("tokens", [-1, 8193, 128_000, 10**15])
def test_an_answer_may_be_as_long_as_may_be(client: httpx.Client, tokens: int):
    expected = client.post(CHAT, json=chat("ocr")).json()["choices"]
    assert client.post(CHAT, json=chat("ocr", max_tokens=tokens)).json()["choices"] == expected


def test_data_uris_are_read_as_programs_write_them(client: httpx.Client):
    expected = client.post(CHAT, json=chat("ocr")).json()["choices"]
    head, _, data = data_uri(SCENE).partition(",")
    lines = "\r\n".join(data[at : at + 76] for at in range(0, len(data), 76))
    for written in (
        f"{head},{lines}\n",
        f"{head},{data.rstrip('=')}",
        f"{head},{data.translate(str.maketrans('+/', '-_'))}",
        f"{head},{quote(data, safe='')}",
        f" data:;base64, {data}\n",
        f"DATA:image/png;name=a.png;BASE64,{data}===",
    ):
        assert client.post(CHAT, json=chat("ocr", written)).json()["choices"] == expected, written[:60]


@pytest.mark.parametrize(
    "part",
    [{"type": "image_url", "image_url": data_uri(SCENE)}, {"type": "input_image", "image_url": data_uri(SCENE)}],
)
def test_a_picture_may_be_named_in_other_ways(client: httpx.Client, part: dict[str, Any]):
    body = chat("ocr")
    expected = client.post(CHAT, json=body).json()["choices"]
    body["messages"][0]["content"] = [{"type": "input_text", "text": "ocr"}, part]
    assert client.post(CHAT, json=body).json()["choices"] == expected

"""Constrained answers through every door of serving: those of batch_generate with constrain=True."""

from __future__ import annotations

import httpx
import openai
import pytest
from helpers.server import CHAT, chat, data_uri, events, refused
from helpers.service import SCENE, loaded

import pg_mlx
from pg_mlx.client import Answer, Client, ServingError
from pg_mlx.generation import Generation

REGIONS = "/v1/regions"
PROMPTS = ["detect red circle ; blue star", "segment red circle", "detect circle ; star"]
HOT = dict(max_tokens=60, temperature=3.0, seed=3)
"""So that free answers are no records."""
WRONG = {"caption en": "only 'detect cat", "": "only 'detect cat", "detect <loc0001>": "no region can have the label"}
"""Prompts, and what is said of them."""


@pytest.fixture(scope="module")
def answers() -> list[Generation]:
    """Constrained, each unlike the free one."""
    free = pg_mlx.batch_generate(*loaded(), PROMPTS, SCENE, **HOT)
    constrained = pg_mlx.batch_generate(*loaded(), PROMPTS, SCENE, constrain=True, **HOT)
    assert all(one.text != other.text for one, other in zip(free, constrained, strict=True))
    return constrained


@pytest.fixture(scope="module")
def first() -> str:
    """An answer that ends with its first region, and would have gone on."""
    whole, first = (
        pg_mlx.generate(*loaded(), PROMPTS[2], SCENE, constrain=True, max_regions=most) for most in (None, 1)
    )
    assert len(whole.regions) > 1 and first.regions == whole.regions[:1]
    return first.text


def test_the_worker_and_its_client_constrain(answers: list[Generation], first: str):
    with Client(dtype="float32") as worker:
        for prompt, expected in zip(PROMPTS, answers, strict=True):
            *_, answer = worker.stream(prompt, SCENE, constrain=True, **HOT)
            assert isinstance(answer, Answer)
            assert (answer.text, answer.token_ids) == (expected.text, expected.token_ids)
            assert [region["label"] for region in answer.regions] == [region.label for region in expected.regions]
        assert worker.generate(PROMPTS[2], SCENE, constrain=True, max_regions=1).text == first
        wrong = [(prompt, dict(constrain=True), words) for prompt, words in WRONG.items()]
        wrong += [("detect cat", dict(constrain="yes"), "constrain"), ("detect cat", dict(constrain=1), "constrain")]
        wrong += [
            ("detect cat", dict(max_regions=1), "max_regions"),
            ("detect cat", dict(max_regions=-1), "max_regions must be a whole number >= 0"),
        ]
        for prompt, options, words in wrong:
            with pytest.raises(ServingError, match=words) as error:
                worker.generate(prompt, SCENE, **options)
            assert error.value.code == "bad_request" and "\n" not in str(error.value)


def test_chat_constrains(client: httpx.Client, ai: openai.OpenAI, answers: list[Generation]):
    for prompt, expected in zip(PROMPTS, answers, strict=True):
        done = ai.chat.completions.create(**chat(prompt, **HOT), extra_body={"constrain": True})
        assert done.choices[0].message.content == expected.text
    streamed = events(client.post(CHAT, json=chat(PROMPTS[0], constrain=True, stream=True, **HOT)).text)
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in streamed) == answers[0].text


@pytest.mark.parametrize("form", [False, True])
def test_regions_are_constrained(client: httpx.Client, answers: list[Generation], first: str, form: bool):
    def ask(prompt: str, **fields: object) -> str:
        if form:
            told = {"prompt": prompt, **{name: str(value).lower() for name, value in fields.items()}}
            return client.post(REGIONS, data=told, files={"image": SCENE.read_bytes()}).json()["text"]
        return client.post(REGIONS, json={"prompt": prompt, "image": data_uri(SCENE), **fields}).json()["text"]

    for prompt, expected in zip(PROMPTS, answers, strict=True):
        assert ask(prompt, constrain=True, **HOT) == expected.text
    # Where more than their order decides which regions are kept, all of them are needed.
    assert ask(PROMPTS[2], constrain=True, max_regions=1) == first
    assert len(ask(PROMPTS[2], constrain=True, max_regions=1, scores=True)) > len(first)
    assert len(ask(PROMPTS[2], constrain=True, max_regions=1, dedup_iou=0.9)) > len(first)
    assert len(ask(PROMPTS[2], max_regions=1)) > len(first)


def test_over_http_what_cannot_be_constrained_is_a_bad_request(client: httpx.Client):
    for prompt, words in WRONG.items():
        asked = {"prompt": prompt, "image": data_uri(SCENE), "constrain": True}
        for response in (client.post(CHAT, json=chat(prompt, constrain=True)), client.post(REGIONS, json=asked)):
            refused(response, 400, "bad_request")
            assert words in response.json()["error"]["message"] and "\n" not in response.json()["error"]["message"]
    for value in ("yes", 1, []):
        asked = {"prompt": "detect cat", "image": data_uri(SCENE), "constrain": value}
        for response in (client.post(CHAT, json=chat("detect cat", constrain=value)), client.post(REGIONS, json=asked)):
            refused(response, 400, "bad_request")
            assert response.json()["error"]["param"] == "constrain"

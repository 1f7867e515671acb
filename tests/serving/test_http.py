"""pg-mlx serve, as its clients see it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from helpers.commands import CAT, ROOT
from helpers.server import CHAT, chat, data_uri, events, refused, serving
from helpers.service import SCENE, WILD, alone, service

from pg_mlx.errors import InputError
from pg_mlx.generation import SamplingOptions
from pg_mlx.regions.export import to_json
from pg_mlx.serving.http.server import listen_at
from pg_mlx.serving.service.service import Service

GREEDY = SamplingOptions()


def test_the_openai_client_gets_the_answer_that_is_given_alone(ai: openai.OpenAI):
    expected = alone("detect red circle", (SCENE,), GREEDY)
    done = ai.chat.completions.create(**chat("detect red circle"))
    assert done.choices[0].message.content == expected.text
    assert done.choices[0].finish_reason == expected.finish_reason == "stop"
    assert done.usage.prompt_tokens == expected.stats.prompt_tokens
    assert done.usage.completion_tokens == expected.stats.decode_tokens
    short = ai.chat.completions.create(**chat("detect red circle", max_tokens=2))
    assert short.choices[0].finish_reason == "length"


def test_the_openai_client_streams(ai: openai.OpenAI):
    expected = alone("segment red circle", (SCENE,), GREEDY)
    asked = chat("segment red circle", stream=True, stream_options={"include_usage": True})
    chunks = list(ai.chat.completions.create(**asked))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == expected.text
    assert len(chunks) > len(expected.token_ids) / 2
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == expected.stats.decode_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_the_openai_client_understands_refusals_and_lists_models(ai: openai.OpenAI):
    assert [model.id for model in ai.models.list()] == ["demo"] and ai.models.retrieve("demo").id == "demo"
    with pytest.raises(openai.NotFoundError):
        ai.models.retrieve("gpt-4o")
    with pytest.raises(openai.BadRequestError) as error:
        ai.chat.completions.create(**chat(n=2))
    assert error.value.param == "n"
    with pytest.raises(openai.BadRequestError):
        list(ai.chat.completions.create(**chat("caption en", data_uri(b"none"), stream=True)))


def test_sampling_is_repeatable_and_pictures_may_be_several(ai: openai.OpenAI):
    options = SamplingOptions(max_tokens=12, temperature=1.5, top_p=0.9, seed=2**64 - 4)
    expected = alone("ocr", (SCENE, CAT), options)
    more = dict(max_completion_tokens=12, max_tokens=3, temperature=1.5, top_p=0.9, seed=-4)
    done = ai.chat.completions.create(**chat("ocr", data_uri(SCENE), data_uri(CAT), **more))
    assert done.choices[0].message.content == expected.text


def test_the_last_user_message_counts_and_pictures_of_an_earlier_one(client: httpx.Client):
    first = chat("caption en")["messages"][0]
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        first,
        {"role": "assistant", "content": "a circle"},
        {"role": "user", "content": "detect red circle"},
    ]
    done = client.post(CHAT, json={"messages": messages, "user": "me", "stop": None, "presence_penalty": 0})
    expected = alone("detect red circle", (SCENE,), GREEDY)
    assert done.json()["choices"][0]["message"]["content"] == expected.text


def test_regions_come_with_the_stream_where_they_are_asked_for(client: httpx.Client):
    expected = [to_json(region) for region in alone("segment red circle", (SCENE,), GREEDY).regions]
    assert expected and expected[0]["mask"]
    asked = chat("segment red circle", regions=True)
    assert client.post(CHAT, json=asked).json()["choices"][0]["message"]["regions"] == expected
    deltas = [event["choices"][0]["delta"] for event in events(client.post(CHAT, json={**asked, "stream": True}).text)]
    assert [region for delta in deltas for region in delta.get("regions", ())] == expected


@pytest.mark.parametrize("form", [False, True])
def test_regions_as_json_and_as_a_form(client: httpx.Client, form: bool):
    asked = {"prompt": "segment red circle", "scores": True, "max_tokens": 64}
    if form:
        fields = {name: json.dumps(value) if name != "prompt" else value for name, value in asked.items()}
        response = client.post("/v1/regions", data=fields, files={"image": SCENE.read_bytes()})
    else:
        response = client.post("/v1/regions", json={**asked, "image": data_uri(SCENE)})
    expected = alone("segment red circle", (SCENE,), SamplingOptions(64), True)
    told = response.json()
    assert (told["text"], told["malformed"]) == (expected.text, [])
    assert (told["width"], told["height"]) == expected.regions[0].image_size
    for region, other in zip(told["regions"], map(to_json, expected.regions), strict=True):
        assert region.pop("score") == pytest.approx(other.pop("score"), rel=1e-4)
        assert region == other
    none = client.post("/v1/regions", json={**asked, "image": data_uri(SCENE), "min_score": 1.0})
    assert none.json()["regions"] == []


def test_health_metrics_and_errors_of_addresses(client: httpx.Client):
    assert client.get("/health").json() == {"status": "ready"}
    client.post(CHAT, json=chat())
    text = client.get("/metrics").text
    assert re.search(r'^pg_mlx_http_requests_total\{path="/v1/chat/completions",status="200"\} [1-9]', text, re.M)
    assert re.search(r"^pg_mlx_ready 1.0$", text, re.M) and re.search(
        r'^pg_mlx_tokens_total\{kind="prompt"\}', text, re.M
    )
    refused(client.get("/nothere"), 404, "not_found")
    refused(client.get(CHAT), 405, "method_not_allowed")
    assert "/nothere" not in client.get("/metrics").text


def test_a_client_that_hangs_up_is_not_answered_further(client: httpx.Client, shared: Service):
    def wait_for(**expected: int) -> None:
        for _ in range(1200):
            stats = shared.stats()
            found = {"running": stats["running"], "cancelled": stats["failed"].get("cancelled", 0)}
            if all(found[name] == value for name, value in expected.items()):
                return
            time.sleep(0.05)
        raise AssertionError(shared.stats())

    wild = chat("ocr", max_tokens=WILD.max_tokens, temperature=WILD.temperature, seed=WILD.seed)
    with client.stream("POST", CHAT, json={**wild, "stream": True}) as response:
        next(response.iter_bytes())
        wait_for(running=1)
        before = shared.stats()["failed"].get("cancelled", 0)  # a request of an earlier test may be counted late
    wait_for(running=0, cancelled=before + 1)
    body = json.dumps(wild).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    with socket.create_connection((client.base_url.host, client.base_url.port or 80)) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        wait_for(running=1, cancelled=before + 1)
    wait_for(running=0, cancelled=before + 2)


@pytest.mark.ops("cpu", reason="the queue and the clock decide, whatever computes")
def test_a_full_queue_and_a_late_answer_have_a_status_of_their_own():
    wild = chat("ocr", max_tokens=WILD.max_tokens, temperature=WILD.temperature, seed=WILD.seed)
    with (
        service(batch_size=1, queue=1) as small,
        serving(small, request_s=3.0) as client,
        ThreadPoolExecutor(6) as pool,
    ):
        responses = list(pool.map(lambda _: client.post(CHAT, json=wild), range(6)))
        busy = [response for response in responses if response.status_code == 429]
        late = [response for response in responses if response.status_code == 504]
        assert len(busy) >= 3 and len(busy) + len(late) == 6 and late
        refused(busy[0], 429, "busy")
        assert busy[0].headers["retry-after"] == "1"
        refused(late[0], 504, "deadline")
        streamed = client.post(CHAT, json={**wild, "stream": True})
        assert streamed.status_code == 200
        assert json.loads(streamed.text.strip().rpartition("data: ")[2])["error"]["code"] == "deadline"


def test_nothing_is_answered_before_a_model_is_loaded():
    with Service() as empty, serving(empty) as client:
        assert client.get("/health").status_code == 503
        refused(client.post(CHAT, json=chat()), 503, "not_loaded")


def test_a_unix_socket_accepts_clients_as_soon_as_it_is_there(tmp_path: Path):
    path = tmp_path / "socket"
    with listen_at(path), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(path))
        with pytest.raises(InputError, match="cannot listen"):
            listen_at(path)  # somebody else's, and alive


@pytest.mark.parametrize("uds", [False, True])
def test_the_command_answers_what_it_has_accepted_and_ends(tmp_path: Path, uds: bool):
    arguments = ["--uds", str(tmp_path / "socket")] if uds else ["--port", "0"]
    environment = {**os.environ, "PG_MLX_API_KEY": "s3cret-key"}
    command = [sys.executable, "-m", "pg_mlx", "serve", "--verbose", "--dtype", "float32", *arguments]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            head = process.stderr.readline() + process.stderr.readline()
            address = "http://localhost" if uds else re.search(r"http://\S+", head)[0]
            transport = httpx.HTTPTransport(uds=str(tmp_path / "socket")) if uds else None
            key = {"Authorization": "Bearer s3cret-key"}
            with httpx.Client(base_url=address, transport=transport, headers=key, timeout=60) as client:
                while client.get("/health").status_code == 503:
                    time.sleep(0.2)
                if uds:
                    assert (tmp_path / "socket").stat().st_mode & 0o777 == 0o600
                asked = chat("segment red circle", stream=True)
                with client.stream("POST", CHAT, json=asked) as response:
                    chunks = response.iter_text()
                    text = next(chunks)
                    process.send_signal(signal.SIGTERM)
                    text += "".join(chunks)
            assert events(text)[-1]["choices"][0]["finish_reason"] == "stop"
            assert process.wait(30) == 0
            log = process.stderr.read()
            assert f"POST {CHAT} 200" in log and "s3cret" not in head + log and "red circle" not in log
            assert not (tmp_path / "socket").exists()
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "a key is needed"),
        (["--allow-origin", "*"], "a key is needed"),
        (["--allow-origin", "example.com"], "not an origin"),
        (["--api-key", ""], "API key"),
        (["--allow-files", "/nothere"], "not a folder"),
        (["--allow-host", "http://a.example"], "not the name of a host"),
        (["--port", "70000"], "--port"),
        (["--max-body", "lots"], "--max-body"),
        (["--uds", "/nothere/socket"], "cannot listen"),
        (["--port", "0", "--model", "/nothere"], "/nothere"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture):
    from pg_mlx.cli import main

    assert main(["serve", *arguments]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("pg-mlx serve: error:") and words in line


def test_hosts_are_allowed_by_name():
    from pg_mlx.cli.serve import _hosts, parser

    args = parser("serve").parse_args(["--allow-host", "Host.docker.internal", "--allow-host", "fd00::1"])
    assert _hosts(args) == {"127.0.0.1", "host.docker.internal", "[fd00::1]"}


def test_a_port_in_use_is_one_line(capsys: pytest.CaptureFixture):
    from pg_mlx.cli import main

    with socket.create_server(("127.0.0.1", 0)) as other:
        assert main(["serve", "--port", str(other.getsockname()[1])]) == 2
    assert "choose another with --port" in capsys.readouterr().err.splitlines()[-1]

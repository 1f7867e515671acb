"""A server on a free port of this machine, in a thread, around the demo checkpoint."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from helpers.service import SCENE, service
from pg_mlx.serving.http.app import application
from pg_mlx.serving.http.server import Server, listen
from pg_mlx.serving.http.settings import Settings
from pg_mlx.serving.service.service import Service


@contextmanager
def serving(running: Service, **settings: Any) -> Iterator[httpx.Client]:
    """A client of a server with these settings. The service is the caller's."""
    listener = listen("127.0.0.1", 0)
    options = Settings("demo", **settings)
    server = Server(application(running, options), options, drain_s=0.1)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=60) as client:
            yield client
    finally:
        server.stop(0)
        thread.join()


@pytest.fixture(scope="module")
def shared() -> Iterator[Service]:
    """The demo, loaded."""
    with service() as running:
        yield running


@pytest.fixture(scope="module")
def client(shared: Service) -> Iterator[httpx.Client]:
    """Of a server with default settings."""
    with serving(shared) as client:
        yield client


@pytest.fixture(scope="module")
def ai(client: httpx.Client) -> Iterator[openai.OpenAI]:
    """OpenAI's own client of it."""
    with openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="any", max_retries=0) as ai:
        yield ai


def data_uri(picture: Path | bytes) -> str:
    data = picture if isinstance(picture, bytes) else picture.read_bytes()
    return "data:image/png;base64," + base64.b64encode(data).decode()


def chat(prompt: str = "caption en", *urls: str, **more: Any) -> dict[str, Any]:
    pictures = [{"type": "image_url", "image_url": {"url": url}} for url in urls or (data_uri(SCENE),)]
    content = [{"type": "text", "text": prompt}, *pictures]
    return {"model": "demo", "messages": [{"role": "user", "content": content}], **more}


CHAT = "/v1/chat/completions"


def refused(response: httpx.Response, status: int, code: str) -> None:
    """An error in OpenAI's form, and nothing of the inside of the server in it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["code"] == code
    assert "Traceback" not in response.text and ".py" not in response.text


def raw(client: httpx.Client, *pieces: bytes, pause: float = 0.0) -> bytes:
    """What the server answers to these bytes, until it closes the connection."""
    with socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=30) as connection:
        answer = b""
        try:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause)
            while more := connection.recv(1 << 16):
                answer += more
        except ConnectionError:
            pass
        return answer


def events(text: str) -> list[Any]:
    """Of a stream; the last is [DONE]."""
    lines = text.split("\n\n")
    assert lines.pop() == "" and lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]

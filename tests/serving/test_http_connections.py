"""Odd ways to send a request: in tiny chunks, in pieces, several at once, from half-closed sockets."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from helpers.server import CHAT, chat, raw, refused, serving
from helpers.service import WILD, service

from pg_mlx.serving.http.app import application
from pg_mlx.serving.http.connection import MOST_PIECES
from pg_mlx.serving.http.server import Server, listen_at
from pg_mlx.serving.http.settings import Settings
from pg_mlx.serving.service.service import Service

pytestmark = pytest.mark.ops("cpu", reason="it tries what is read, not what is computed")
HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED = (HEAD + "Transfer-Encoding: chunked\r\n\r\n").encode()
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
BODY = json.dumps(chat("ocr", max_tokens=1)).encode()


@pytest.fixture(scope="module")
def shared() -> Iterator[Service]:
    with service() as running:
        yield running


@pytest.fixture(scope="module")
def client(shared: Service) -> Iterator[httpx.Client]:
    with serving(shared, header_s=2.0, body_s=2.0) as client:
        yield client
        assert client.post(CHAT, json=chat()).status_code == 200  # whatever was tried


def chunks(body: bytes, size: int) -> bytes:
    pieces = (body[start : start + size] for start in range(0, len(body), size))
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def test_a_body_in_tiny_chunks_is_refused(client: httpx.Client):
    answer = raw(client, CHUNKED, chunks(b" " * 4 * MOST_PIECES, 1))
    assert answer.startswith(b"HTTP/1.1 400 ") or answer == b""  # reset before it was read


@pytest.mark.parametrize("size", [100, 1000, 65536])
def test_a_body_in_ordinary_chunks_is_answered(client: httpx.Client, size: int):
    padded = BODY + b" " * (MOST_PIECES * 100 + 100)
    last = b"Connection: close\r\n"
    assert raw(client, CHUNKED[:-2] + last + b"\r\n", chunks(padded, size)).startswith(b"HTTP/1.1 200 ")


def test_a_few_tiny_chunks_are_no_fault(client: httpx.Client):
    assert len(BODY) > MOST_PIECES  # so the rest is sent whole
    few = chunks(BODY[:2000], 1)[: -len(b"0\r\n\r\n")]
    head = CHUNKED[:-2] + b"Connection: close\r\n\r\n"
    assert raw(client, head, few, chunks(BODY[2000:], 1 << 20)).startswith(b"HTTP/1.1 200 ")


def test_others_are_answered_while_large_forms_are_read(client: httpx.Client):
    """32 MB in which every fourth byte might begin the end of a part."""
    head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
    body = head + b"\r\n--" * (4 << 20) + b"\r\n--b--\r\n"
    done = threading.Event()

    def post() -> None:
        with httpx.Client(base_url=client.base_url, timeout=60) as other:
            refused(
                other.post("/v1/regions", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"}),
                400,
                "bad_request",
            )
        done.set()

    sender = threading.Thread(target=post)
    sender.start()
    asked = 0
    while not done.is_set() and asked < 10_000:
        assert client.get("/health").status_code == 200
        asked += 1
    sender.join()
    assert done.is_set() and asked > 5


def test_expectations_are_met(client: httpx.Client):
    """curl waits for 100 before it sends a body of more than a kilobyte."""
    head = (HEAD + f"Content-Length: {len(BODY)}\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n").encode()
    with socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=30) as connection:
        connection.sendall(head)
        assert connection.recv(4096).startswith(b"HTTP/1.1 100 ")
        connection.sendall(BODY)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 ")


def test_requests_behind_each_other_are_answered_in_order(client: httpx.Client):
    whole = (HEAD + f"Content-Length: {len(BODY)}\r\n\r\n").encode() + BODY
    last = HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    answer = raw(client, HEALTH + whole + HEALTH * 50 + last)
    assert answer.count(b"HTTP/1.1 200 ") == 53
    assert answer.index(b"chat.completion") > answer.index(b'"ready"')


def test_a_client_that_closes_its_side_has_hung_up(client: httpx.Client, shared: Service):
    """Nothing tells one that only stops to write from one that is gone."""
    endless = json.dumps(chat("ocr", max_tokens=WILD.max_tokens, temperature=WILD.temperature, seed=WILD.seed)).encode()
    with socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=30) as connection:
        connection.sendall((HEAD + f"Content-Length: {len(endless)}\r\n\r\n").encode() + endless)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1 << 16) == b""
    while shared.stats()["running"] or shared.stats()["waiting"]:
        time.sleep(0.01)


def test_a_slow_body_gets_408_and_holds_up_nobody(client: httpx.Client):
    head = (HEAD + f"Content-Length: {len(BODY)}\r\n\r\n").encode()
    answers: list[bytes] = []
    slow = threading.Thread(
        target=lambda: answers.append(raw(client, head, *(BODY[i : i + 1] for i in range(20)), pause=0.05))
    )
    slow.start()
    while slow.is_alive():
        assert client.get("/health").status_code == 200
        time.sleep(0.05)
    assert answers[0].startswith(b"HTTP/1.1 408 ")


def test_a_unix_socket_has_the_same_limits(shared: Service, tmp_path: Path):
    path = tmp_path / "s"
    listener = listen_at(path)
    options = Settings("demo", hosts=None)
    server = Server(application(shared, options), options, drain_s=0.1)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
    thread.start()
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(30)
            connection.connect(str(path))
            connection.sendall(CHUNKED + chunks(b" " * (MOST_PIECES + 50), 1))
            assert connection.recv(4096).startswith(b"HTTP/1.1 400 ")
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost") as other:
            assert other.get("/health").status_code == 200
    finally:
        server.stop(0)
        thread.join()
        listener.close()

"""What takes a server's connections, memory or time without end is bounded."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import socket
import statistics
import subprocess
import sys
import time
from threading import Thread

import httpx
import pytest
import uvicorn
from helpers.server import CHAT, chat, raw, refused, serving
from uvicorn.protocols.http.h11_impl import RequestResponseCycle

from pg_mlx.serving.service.service import Service

pytestmark = pytest.mark.ops("cpu", reason="what is refused is not computed")


@pytest.fixture(scope="module")
def client(shared: Service):
    with serving(shared, header_s=1.0, body_s=1.0, body_bytes=2 << 20) as client:
        yield client
        assert client.post(CHAT, json=chat()).status_code == 200  # whatever was tried


def head(path: str, *lines: str) -> bytes:
    return "\r\n".join(
        [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *lines, "", ""]
    ).encode()


def status(answer: bytes) -> bytes:
    return answer.partition(b"\r\n")[0]


def test_connections_are_bounded(shared: Service):
    """Those that are being answered keep their place."""
    with serving(shared, connections=2) as client:
        address = client.base_url.host, client.base_url.port
        with contextlib.ExitStack() as stack:
            for _ in range(2):
                busy = stack.enter_context(socket.create_connection(address))
                busy.sendall(head(CHAT, "Content-Length: 100"))
            time.sleep(0.2)
            response = client.get("/health")
            refused(response, 503, "busy")
            assert response.headers["connection"] == "close" and response.headers["retry-after"] == "1"
        time.sleep(0.2)
        assert client.get("/health").status_code == 200


def test_connections_that_ask_nothing_make_room_the_oldest_first(shared: Service):
    with serving(shared, connections=3) as client:
        address = client.base_url.host, client.base_url.port
        with contextlib.ExitStack() as stack:
            kept = stack.enter_context(httpx.Client(base_url=client.base_url))
            assert kept.get("/health").status_code == 200
            halves = [stack.enter_context(socket.create_connection(address)) for _ in range(40)]
            for half in halves:
                half.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
            time.sleep(0.2)
            began = time.monotonic()
            assert client.get("/health").status_code == 200 and time.monotonic() - began < 1
            halves[0].settimeout(5)
            with contextlib.suppress(ConnectionError):
                assert halves[0].recv(1) == b""
            assert kept.get("/health").status_code == 200


def test_the_limit_of_open_files_is_raised_or_bounds_the_connections(capfd: pytest.CaptureFixture):
    code = """
import resource, sys
from pg_mlx.serving.http.connection import connections_that_fit
resource.setrlimit(resource.RLIMIT_NOFILE, (200, int(sys.argv[1])))
print(connections_that_fit(256), resource.getrlimit(resource.RLIMIT_NOFILE)[0])"""
    for hard, fit, soft, lines in (1000, 256, 368, 0), (200, 88, 200, 1):
        done = subprocess.run([sys.executable, "-c", code, str(hard)], capture_output=True, text=True, check=True)
        assert done.stdout.split() == [str(fit), str(soft)] and len(done.stderr.splitlines()) == lines


def test_a_small_answer_on_a_kept_connection_is_not_delayed(client: httpx.Client):
    times = []
    for _ in range(30):
        began = time.perf_counter()
        assert client.get("/health").status_code == 200
        times.append(time.perf_counter() - began)
    assert statistics.median(times) < 0.02  # 44 ms without TCP_NODELAY


def test_two_lengths_of_a_body_are_refused(client: httpx.Client):
    both = raw(client, head(CHAT, "Content-Length: 3", "Transfer-Encoding: chunked") + b"0\r\n\r\n")
    assert status(both).startswith(b"HTTP/1.1 400") and b"connection: close" in both.lower()


def test_what_is_left_when_the_server_ends_gets_an_error_in_json(shared: Service):
    answers: list[bytes] = []
    with serving(shared) as client:
        asking = Thread(target=lambda: answers.append(raw(client, head(CHAT, "Content-Length: 100"), b"{")))
        asking.start()
        time.sleep(0.5)
    asking.join(20)
    assert status(answers[0]).startswith(b"HTTP/1.1 503") and b'"code":"shutting_down"' in answers[0]


def test_uvicorn_still_has_what_the_server_changes_in_it():
    """The server changes a class of uvicorn's that is not public: pyproject.toml bounds its version, and this says what
    to look at before the bound is raised."""
    from uvicorn.protocols.http.h11_impl import H11Protocol
    from uvicorn.server import ServerState

    for method in ("connection_made", "data_received", "send_400_response", "connection_lost"):
        assert callable(vars(H11Protocol).get(method)), method
        assert vars(H11Protocol)[method].__code__.co_argcount == 2, method
    config = uvicorn.Config(lambda *_: None, ws="none", lifespan="off", log_config=None)
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        connection = H11Protocol(config, ServerState(), {}, loop)
    for name in ("connections", "transport", "cycle", "conn", "app", "loop"):
        assert hasattr(connection, name), name
    assert "response_complete" in inspect.getsource(RequestResponseCycle.__init__)


def test_slow_heads_and_slow_bodies_are_cut_off(client: httpx.Client):
    began = time.monotonic()
    assert raw(client) == b""
    assert raw(client, b"POST / HTTP/1.1\r\n", *[b"X: y\r\n"] * 15, pause=0.1) == b""
    slow = raw(client, head(CHAT, "Content-Length: 100"), *[b"{"] * 8, pause=0.1)
    assert status(slow).startswith(b"HTTP/1.1 408") and b"connection: close" in slow.lower()
    idle = raw(client, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET /health", pause=0.2)
    assert idle.count(b"200 OK") == 1
    assert time.monotonic() - began < 30


def test_a_body_of_a_gigabyte_is_refused_declared_or_not(client: httpx.Client):
    declared = raw(client, head(CHAT, f"Content-Length: {1 << 30}", "Expect: 100-continue"))
    assert status(declared).startswith(b"HTTP/1.1 413") and b"100 Continue" not in declared
    refused(client.post(CHAT, content=iter([b" " * (1 << 20)] * 40)), 413, "too_large")
    chunk = b"%x\r\n%s\r\n" % (1 << 20, b" " * (1 << 20))
    endless = raw(client, head(CHAT, "Transfer-Encoding: chunked"), *[chunk] * 1024)
    assert not endless or status(endless).startswith(b"HTTP/1.1 413")


def test_large_bodies_are_bounded_together(shared: Service):
    with serving(shared, bodies_bytes=1000) as small:
        refused(small.post(CHAT, json=chat()), 429, "busy")


def test_a_body_of_many_small_values_is_refused_before_it_is_parsed(shared: Service):
    with serving(shared) as client:
        for body in (
            b'{"messages":[' + b"[]," * 10_000_000 + b"[]]}",
            b"[" * (30 << 20),
            b'{"user":[' + b"1," * 200_000 + b"1]}",
        ):
            began = time.monotonic()
            response = client.post(CHAT, content=body, headers={"Content-Type": "application/json"})
            refused(response, 413, "too_large")
            assert time.monotonic() - began < 3  # 5 s and more of parsing before; what is left is sending it

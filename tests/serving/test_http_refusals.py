"""What a stranger may try at the door of pg-mlx serve, and what becomes of it."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import re
import socket
import statistics
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import uvicorn
from helpers.pictures import png_header
from helpers.server import CHAT, chat, data_uri, raw, refused, serving
from helpers.service import SCENE, service
from uvicorn.protocols.http.h11_impl import RequestResponseCycle

from pg_mlx.serving.http import fetch
from pg_mlx.serving.http.errors import APIError
from pg_mlx.serving.service.service import Service

pytestmark = pytest.mark.ops("cpu", reason="what is refused is not computed")


@pytest.fixture(scope="module")
def shared():
    with service(pixels=1_000_000) as running:
        yield running


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


@pytest.mark.parametrize(
    ("picture", "code"),
    [
        (data_uri(png_header(50_000, 50_000)), (413, "too_large")),
        (data_uri(png_header(1001, 1000)), (413, "too_large")),
        (data_uri(png_header(100, 100)), (400, "bad_image")),
        (data_uri(b"no picture"), (400, "bad_image")),
        ("data:image/png;base64,%%%%", (400, "bad_image")),
        ("data:image/png,abc", (400, "bad_image")),
        ("ftp://example.com/a.png", (400, "bad_request")),
        ("https://example.com/a.png", (400, "not_allowed")),
        ("/etc/passwd", (400, "not_allowed")),
        ("file:///etc/passwd", (400, "not_allowed")),
    ],
)
def test_pictures_that_are_none_or_too_large(client: httpx.Client, picture: str, code: tuple[int, str]):
    refused(client.post(CHAT, json=chat("ocr", picture)), *code)


def test_files_are_read_from_the_folder_alone(shared: Service, tmp_path: Path):
    folder, outside = tmp_path / "open", tmp_path / "outside.png"
    folder.mkdir()
    for path in (folder / "a b.png", outside, tmp_path / "open-not.png"):
        path.write_bytes(SCENE.read_bytes())
    (folder / "link.png").symlink_to(outside)
    (folder / "circle").symlink_to(folder / "circle")
    with serving(shared, folders=(folder,)) as client:
        for name in ("a b.png", str(folder / "a b.png"), f"file://{folder}/a%20b.png", "../open/a b.png"):
            assert client.post(CHAT, json=chat("ocr", name)).status_code == 200, name
        answers = set()
        for name in (
            "../outside.png", str(outside), f"file://{outside}", "link.png", "../open-not.png", "circle", "nothere",
            "a\0b", "", ".", "file://elsewhere/a%20b.png", "..%2foutside.png", "/etc/passwd", "/dev/zero", "x" * 5000,
        ):  # fmt: skip
            response = client.post(CHAT, json=chat("ocr", name))
            refused(response, 400, "bad_image")
            answers.add(response.text)
        assert len(answers) == 1  # which tells nothing of what there is


def test_other_origins_and_other_names_are_refused(client: httpx.Client, shared: Service):
    for headers, code in [
        ({"Origin": "https://evil.example"}, "wrong_origin"),
        ({"Origin": "null"}, "wrong_origin"),
        ({"Origin": "http://localhost:1"}, "wrong_origin"),
        ({"Host": "evil.example"}, "wrong_host"),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, "wrong_host"),
        ({"Host": "localhost.evil.example:80"}, "wrong_host"),
    ]:
        refused(client.post(CHAT, json=chat(), headers=headers), 403, code)
        assert code != "wrong_host" or "--allow-host" in client.get("/v1/models", headers=headers).text
        refused(client.get("/v1/models", headers=headers), 403, code)
    own = str(client.base_url).rstrip("/")
    assert client.get("/v1/models", headers={"Origin": own}).status_code == 200
    refused(client.post(CHAT, content=json.dumps(chat()), headers={"Content-Type": "text/plain"}), 415, "bad_request")
    with serving(shared, origins=("https://good.example",)) as other:
        good = {"Origin": "https://good.example"}
        assert other.get("/v1/models", headers=good).headers["access-control-allow-origin"] == good["Origin"]
        asked = {**good, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
        assert other.options(CHAT, headers=asked).status_code == 200
        refused(other.get("/v1/models", headers={"Origin": "https://evil.example"}), 403, "wrong_origin")


def test_a_key_is_asked_for(shared: Service, capfd: pytest.CaptureFixture):
    with serving(shared, api_key="k3y", hosts=None, verbose=True) as client:
        for value in (None, "k3y", "Bearer", "Bearer k3", "Bearer k3yy", "Basic k3y", b"Bearer \xff"):
            headers = {} if value is None else {"Authorization": value}
            for response in (client.post(CHAT, json=chat(), headers=headers), client.get("/metrics", headers=headers)):
                refused(response, 401, "invalid_api_key")
            assert client.get("/health", headers=headers).status_code == 200
        good = {"Authorization": "Bearer k3y", "Host": "pg.example"}
        assert client.get("/v1/models", headers=good).status_code == 200
        assert client.post(CHAT, json=chat(), headers=good).status_code == 200
    assert "k3y" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"a": 1' + b"0" * 5000 + b"}", b'{"messages": NaN}',
        b'{"max_tokens": 1e999}', b'{"temperature": 1' + b"0" * 400 + b"}", b'{"top_k": -1' + b"0" * 400 + b"}",
        b'{"messages": [], "messages": []}', b'{"user": {"a": 1, "b": {"c": null, "c": 2}}}',
        b'{"messages": []}', b'{"messages": [{"role": "user", "content": "ocr"}]}', b'{"\\ud800": 1, "messages": [{}]}',
    ],
)  # fmt: skip
def test_bodies_that_are_none(client: httpx.Client, body: bytes):
    refused(client.post(CHAT, content=body, headers={"Content-Type": "application/json"}), 400, "bad_request")


@pytest.mark.parametrize(
    "more",
    [
        {"max_tokens": 0}, {"max_tokens": -2}, {"max_tokens": "9"}, {"max_tokens": 1e300}, {"max_tokens": True},
        {"max_tokens": 10**300}, {"top_k": -(10**300)}, {"top_k": 2**64}, {"seed": -(2**63) - 1}, {"top_p": 1e300},
        {"temperature": -1}, {"top_p": 0}, {"seed": 2**64}, {"stream": 1}, {"stream_options": {}},
        {"stop": [1]}, {"tools": [{}]},
        {"response_format": {"type": "json_object"}}, {"logprobs": 1}, {"guided_json": {"a": 1}}, {"model": 7},
    ],
)  # fmt: skip
def test_parameters_that_cannot_be_met(client: httpx.Client, more: dict[str, Any]):
    content = json.dumps(chat("ocr", **more))
    response = client.post(CHAT, content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 400 and response.json()["error"]["param"]


def spoiled(place: str, value: Any) -> dict[str, Any]:
    """A request with something else at this place; with nothing there if the value is None."""
    body: Any = chat("ocr", stream=True, stream_options={})
    *way, last = re.findall(r"\w+", place)
    inner = body
    for step in way:
        inner = inner[int(step) if step.isdigit() else step]
    if value is None:
        del inner[last]
    else:
        inner[int(last) if last.isdigit() else last] = value
    return body


LONG = "data:image/png;base64," + "QUFB" * 1000


@pytest.mark.parametrize(
    ("place", "value", "code"),
    [
        ("messages", {}, "bad_request"), ("messages[0]", [LONG], "bad_request"),
        ("messages[0].role", LONG, "bad_request"), ("messages[0].role", None, "bad_request"),
        ("messages[0].content", 5, "bad_request"), ("messages[0].content", [], "bad_request"),
        ("messages[0].content[0].type", LONG, "bad_request"), ("messages[0].content[1].type", 1, "bad_request"),
        ("messages[0].content[1].image_url", [LONG], "bad_request"),
        ("messages[0].content[1].image_url.url", [LONG], "bad_request"),
        ("stream_options.include_usage", "s3cret", "bad_request"),
        ("max_tokens", LONG, "bad_request"), ("tool_choice", LONG, "unsupported_parameter"),
    ],
)  # fmt: skip
def test_an_error_names_the_place_in_one_short_line_without_the_value(
    client: httpx.Client, place: str, value: Any, code: str
):
    response = client.post(CHAT, json=spoiled(place, value))
    refused(response, 400, code)
    error = response.json()["error"]
    assert error["param"] == place[:100] and place[:100] in error["message"]
    assert len(error["message"]) < 250 and "\n" not in error["message"] and "s3cret" not in error["message"]
    assert "QUFB" not in error["message"]


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


def test_forms_that_are_none(client: httpx.Client):
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    for body in (b"", b"--b\r\n", b"--b\r\nContent-Disposition: x\r\n\r\n\r\n--b--\r\n", b"\xff" * 1000):
        refused(client.post("/v1/regions", content=body, headers=kind), 400, "bad_request")
    bare = client.post("/v1/regions", content=b"", headers={"Content-Type": "multipart/form-data"})
    refused(bare, 400, "bad_request")
    for fields in ({}, {"prompt": "ocr", "max_tokens": "many"}, {"prompt": "ocr", "else": "1"}):
        response = client.post("/v1/regions", data=fields, files={"image": SCENE.read_bytes()})
        assert response.status_code == 400, response.text


# --- fetching -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%1", "fc00::1", "ff02::1", "::ffff:127.0.0.1",
        "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "fec0::1", "198.18.0.1", "240.0.0.1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str):
    assert not fetch.is_public(address)


def test_addresses_that_are_public():
    assert all(map(fetch.is_public, ("93.184.216.34", "2606:2800:220:1::1", "::ffff:93.184.216.34")))


def test_a_name_with_one_private_address_is_refused(monkeypatch: pytest.MonkeyPatch):
    def both(*_: Any, **__: Any) -> list[Any]:
        return [(2, 1, 6, "", ("93.184.216.34", 80)), (2, 1, 6, "", ("10.0.0.1", 80))]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    with pytest.raises(fetch._No):
        asyncio.run(fetch.resolve("two.example", 80))


def test_private_addresses_are_not_asked(shared: Service):
    asked: list[str] = []
    with pictures(asked) as address, serving(shared, urls=True) as client:
        port = address.rpartition(":")[2]
        for host in (
            "127.0.0.1",
            "localhost",
            "2130706433",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "0.0.0.0",
            "user@127.0.0.1",
        ):
            refused(client.post(CHAT, json=chat("ocr", f"http://{host}:{port}/picture")), 400, "bad_image")
    assert asked == []


AWAY = "http://127.0.0.2/private"


class Pictures(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        self.send_response({"/away": 302, "/none": 404}.get(self.path, 301 if "redirect" in self.path else 200))
        self.send_header("Location", AWAY if self.path == "/away" else self.path[1:].partition("/")[2] or "/found")
        if kind := {"/untyped": None, "/s3": "binary/octet-stream", "/page": "text/html"}.get(self.path, "image/png"):
            self.send_header("Content-Type", kind)
        if self.path == "/declared":
            self.send_header("Content-Length", str(10**9))
        self.end_headers()
        try:
            self.wfile.write(b"<html>" if self.path == "/page" else SCENE.read_bytes())
            while self.path == "/endless":
                self.wfile.write(b" " * 65536)
            while self.path == "/slow":
                self.wfile.write(b" ")
                time.sleep(0.05)
        except OSError:
            pass

    def log_message(self, *_: object) -> None:
        pass


class pictures:
    """A server of pictures on this machine."""

    def __init__(self, asked: list[str]):
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
        self._server.asked = asked  # type: ignore[attr-defined]
        self._server.daemon_threads = True

    def __enter__(self) -> str:
        Thread(target=lambda: self._server.serve_forever(0.05), daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_what_is_fetched_is_bounded_and_judged_by_its_content(shared: Service, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fetch, "is_public", lambda address: address == "127.0.0.1")  # or there would be nobody to ask
    asked: list[str] = []
    with pictures(asked) as address, serving(shared, urls=True) as client:
        expected = client.post(CHAT, json=chat("ocr")).json()["choices"]
        assert client.post(CHAT, json=chat("ocr", f"{address}/a%20b?c=d")).json()["choices"] == expected
        assert asked == ["/a%20b?c=d"]
        for path in ("/untyped", "/s3", "/redirect", "/redirect//redirect//redirect"):
            assert client.post(CHAT, json=chat("ocr", address + path)).json()["choices"] == expected, path
        for path in ("/away", "/none", "/page", "/redirect//redirect//redirect//redirect"):
            refused(client.post(CHAT, json=chat("ocr", address + path)), 400, "bad_image")
        assert asked.count("/found") == 2 and "/private" not in asked

    async def fetched(path: str) -> APIError:
        with pytest.raises(APIError) as error:
            await fetch.fetch(address + path, "here", 1 << 20, 0.5)
        return error.value

    with pictures(asked) as address:
        assert asyncio.run(fetched("/declared")).status == 413
        assert asyncio.run(fetched("/endless")).status == 413
        assert asyncio.run(fetched("/slow")).status == 504

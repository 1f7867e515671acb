"""Pictures that a server fetches: only from public addresses, and bounded."""

from __future__ import annotations

import asyncio
import socket
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from helpers.server import CHAT, chat, refused, serving
from helpers.service import SCENE

from pg_mlx.serving.http import fetch
from pg_mlx.serving.http.errors import APIError
from pg_mlx.serving.service.service import Service

pytestmark = pytest.mark.ops("cpu", reason="what is refused is not computed")

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

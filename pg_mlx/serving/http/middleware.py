"""Middleware. Guard, the outermost, sets write timeouts, adds security headers, counts requests, and answers 500
after an unexpected error. Access refuses requests by their head: wrong host name, other origin, no API key."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import sys
import time

import anyio
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import APIError
from .metrics import Metrics
from .settings import Settings

HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)
LINGER_S, LINGER_BYTES = 2.0, 64 << 20
"""How long, and how much, of a refused body is still read and dropped. Without it the connection of a client that
writes its whole body before it reads would be reset, and the client would not see the error."""


class Guard:
    """The outermost middleware. An unexpected error gives its own request a 500, and the log a line without secrets."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics):
        self._app, self._settings, self._metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application for one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        scope["path"] = canonical(scope["path"])
        exchange = _Exchange(scope, receive, send, self._settings.write_s)
        began = time.perf_counter()
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except asyncio.CancelledError:  # the server ends, and has waited long enough
            if exchange.status:
                raise
            late = APIError(503, "shutting_down", "the server ends", headers={"Connection": "close"})
            await late.response()(scope, exchange.receive, exchange.send)
        except Exception as error:
            if not isinstance(error, TimeoutError | OSError):  # those are the client's: too slow, or gone
                print(f"pg_mlx: a request failed: {type(error).__name__}", file=sys.stderr)
            if not exchange.status:
                failed = APIError(500, "failed", f"unexpected failure ({type(error).__name__})")
                await failed.response()(scope, exchange.receive, exchange.send)
            elif not exchange.complete:
                raise  # the server then closes the connection, by which the client sees that the answer is not whole
        finally:
            seconds = time.perf_counter() - began
            path = self._metrics.request(scope["path"], exchange.status, seconds)
            if self._settings.verbose:
                print(f"{scope['method'][:10]} {path} {exchange.status} {seconds:.3f} s", file=sys.stderr)


def canonical(path: str) -> str:
    """The path without a slash at its end, and with the /v1 that many clients leave out."""
    path = path.rstrip("/") or "/"
    first = path.partition("/")[2].split("/")[0]  # empty if the client left out the slash at the beginning
    return f"/v1{path}" if first in ("chat", "models", "regions", "responses") else path


class _Exchange:
    """One request and its response. seconds: until the client must have taken what is sent.

    status: of the response, 0 before it. complete: whether all of it was sent.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, seconds: float):
        self.status, self.complete = 0, False
        self._receive, self._send, self._seconds = receive, send, seconds
        self._read = not any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])

    async def receive(self) -> Message:
        """The next piece of the body."""
        message = await self._receive()
        self._read = message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Send a piece of the response. Raises TimeoutError."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            given = {name for name, _ in message["headers"]}
            message["headers"] += [header for header in HEADERS if header[0] not in given]
            if not self._read:  # otherwise the rest of the body could come in slowly for ever
                message["headers"].append((b"connection", b"close"))
        last = message["type"] == "http.response.body" and not message.get("more_body", False)
        with anyio.fail_after(self._seconds):
            if last and self.status != 408 and not self._read:
                await self._send({**message, "more_body": True})
                await self._drop_body()
                message = {"type": "http.response.body", "body": b""}
            await self._send(message)
        self.complete = last

    async def _drop_body(self) -> None:
        left = LINGER_BYTES
        with anyio.move_on_after(LINGER_S):
            while left > 0 and not self._read:
                left -= len((await self.receive()).get("body", b""))


OPEN = frozenset({"/", "/sample.png", "/health", "/openapi.json"})
"""Paths that need no key: they show nothing about the model or anybody's requests."""


class Access:
    """Refuses a request by its head, before its body is read."""

    def __init__(self, app: ASGIApp, settings: Settings):
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the refusal, or run the application."""
        refused = refusal(scope, self._settings) if scope["type"] == "http" else None
        await (refused.response() if refused else self._app)(scope, receive, send)


def refusal(scope: Scope, settings: Settings) -> APIError | None:
    """Why this request is not answered; None if it is."""
    headers = Headers(scope=scope)
    host = headers.get("host", "")
    if "content-length" in headers and "transfer-encoding" in headers:  # a proxy may count by the other one
        message = "Content-Length and Transfer-Encoding exclude each other"
        return APIError(400, "bad_request", message, headers={"Connection": "close"})
    if settings.hosts is not None and _without_port(host) not in settings.hosts:
        shown = _without_port(host)[:100]
        return APIError(403, "wrong_host", f"this server is not called {shown!r} (--allow-host NAME lets it be)")
    for origin in headers.getlist("origin"):
        if not _may_ask(origin, host, settings.origins):
            return APIError(403, "wrong_origin", "web pages of other origins may not ask (--allow-origin)")
    if settings.api_key is None or scope["path"] in OPEN:
        return None
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not _equal(key.strip(), settings.api_key):
        message = "the API key is missing or wrong: Authorization: Bearer KEY"
        return APIError(401, "invalid_api_key", message, headers={"WWW-Authenticate": "Bearer"})
    return None


def _without_port(host: str) -> str:
    return re.sub(r":[0-9]*\Z", "", host).lower()


def _may_ask(origin: str, host: str, allowed: tuple[str, ...]) -> bool:
    own = {f"http://{host}".lower(), f"https://{host}".lower()}  # https: behind a proxy that speaks it
    return origin.lower() in own or origin in allowed or "*" in allowed


def _equal(given: str, key: str) -> bool:
    """Compares in a time that does not depend on the key, not even on its length."""
    digests = (hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest() for text in (given, key))
    return hmac.compare_digest(*digests)

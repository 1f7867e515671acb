"""Who may ask: by the names in a request's head, and by a key."""

from __future__ import annotations

import hashlib
import hmac
import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from .errors import Refused
from .settings import Settings

OPEN = frozenset({"/", "/health", "/openapi.json"})
"""What is told without a key: nothing about the model or anybody's requests."""


class Access:
    """Refuses before anything of a request but its head is read."""

    def __init__(self, app: ASGIApp, settings: Settings):
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = objection(scope, self._settings) if scope["type"] == "http" else None
        await (refused.response() if refused else self._app)(scope, receive, send)


def objection(scope: Scope, settings: Settings) -> Refused | None:
    headers = Headers(scope=scope)
    host = headers.get("host", "")
    if settings.hosts is not None and _without_port(host) not in settings.hosts:
        return Refused(403, "wrong_host", "this server is not called by this name")
    for origin in headers.getlist("origin"):
        if not _may_ask(origin, host, settings.origins):
            return Refused(403, "wrong_origin", "web pages of other origins may not ask (--allow-origin)")
    if settings.api_key is None or scope["path"] in OPEN:
        return None
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not _equal(key.strip(), settings.api_key):
        message = "the API key is missing or wrong: Authorization: Bearer KEY"
        return Refused(401, "invalid_api_key", message, headers={"WWW-Authenticate": "Bearer"})
    return None


def _without_port(host: str) -> str:
    return re.sub(r":[0-9]*\Z", "", host).lower()


def _may_ask(origin: str, host: str, allowed: tuple[str, ...]) -> bool:
    own = {f"http://{host}".lower(), f"https://{host}".lower()}  # https: behind a proxy that speaks it
    return origin.lower() in own or origin in allowed or "*" in allowed


def _equal(given: str, key: str) -> bool:
    """In a time that tells nothing about the key, its length neither."""
    digests = (hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest() for text in (given, key))
    return hmac.compare_digest(*digests)

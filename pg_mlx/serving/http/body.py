"""Bodies of requests, within bounds of size, time and number of values."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio
from starlette.requests import Request
from starlette.types import Receive

from ..strict_json import BadJson, loads
from ..structs import Invalid, convert
from .errors import APIError, ClientGone, bad_request
from .settings import Settings

T = TypeVar("T")

VALUES = 200_000
"""How many values the JSON of a body may hold; a comma in a text counts as one. A value takes up to a hundred bytes
while it is read: 32 MB of "[],[],..." would take 800 MB and 5 seconds. A picture is one value."""


class Bodies:
    """Reads the bodies of all requests, and bounds what they hold together."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._held = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """The whole body. Raises APIError if it is too large (413), comes too slowly (408) or if too much is being read
        already (429), and ClientGone if it breaks off."""
        limit = self._settings.body_bytes
        declared = request.headers.get("content-length", "")
        if re.fullmatch(r"[0-9]{1,30}", declared) and int(declared) > limit:
            raise self._too_large()
        chunks, size = [], 0
        try:
            with anyio.fail_after(self._settings.body_s):
                async for chunk in _chunks(request.receive):
                    chunks.append(chunk)
                    size += len(chunk)
                    self._held += len(chunk)
                    if size > limit:
                        raise self._too_large()
                    if self._held > self._settings.bodies_bytes:
                        raise APIError(429, "busy", "too many large requests at a time; ask again later")
            yield b"".join(chunks)
        except TimeoutError:
            raise APIError(408, "too_slow", f"the body was not complete within {self._settings.body_s:g} s") from None
        finally:
            self._held -= size

    def _too_large(self) -> APIError:
        return APIError(413, "too_large", f"the body is larger than {self._settings.body_bytes} bytes")


async def _chunks(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        yield message.get("body", b"")
        more = message.get("more_body", False)


def parse(body: bytes) -> Any:
    """The value of a body of JSON, without the fields that are null. Raises APIError, before anything is parsed if it
    holds too many values (413)."""
    if sum(map(body.count, (b",", b"[", b"{"))) > VALUES:  # at least as many as there are values
        raise APIError(413, "too_large", f"the body holds more than {VALUES} values")
    try:
        return loads(body, nulls=False)
    except BadJson as bad:
        raise bad_request(f"the body is not JSON: {bad}") from None


def check(value: Any, kind: type[T]) -> T:
    """The request that a parsed body is. Raises APIError, which names the place."""
    if not isinstance(value, Mapping):
        raise bad_request("the body is no object")
    try:
        return convert(value, kind)
    except Invalid as invalid:
        code = "unsupported_parameter" if invalid.unknown else "bad_request"
        raise APIError(400, code, str(invalid), invalid.place or None) from None

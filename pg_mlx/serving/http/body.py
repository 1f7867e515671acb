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
    async def read(self, request: Request) -> AsyncIterator[Body]:
        """The whole body, which is counted until the end of the block. Raises APIError if it is too large (413), comes
        too slowly (408) or if too much is held already (429), and ClientGone if it breaks off."""
        limit = self._settings.body_bytes
        declared = request.headers.get("content-length", "")
        if re.fullmatch(r"[0-9]{1,30}", declared) and int(declared) > limit:
            raise self._too_large()
        body, chunks = Body(self), []
        try:
            with anyio.fail_after(self._settings.body_s):
                async for chunk in _chunks(request.receive):
                    chunks.append(chunk)
                    body.size += len(chunk)
                    self._held += len(chunk)
                    if body.size > limit:
                        raise self._too_large()
                    self._check()
            body.data = b"".join(chunks)
            del chunks
            yield body
        except TimeoutError:
            raise APIError(408, "too_slow", f"the body was not complete within {self._settings.body_s:g} s") from None
        finally:
            self._held -= body.size
            body.data = b""

    def take(self, body: Body, size: int) -> None:
        """A request holds more bytes. Raises APIError if that is too much, for it alone (413) or now (429)."""
        body.size += size
        self._held += size
        if body.size > self._settings.bodies_bytes:
            most = self._settings.bodies_bytes
            raise APIError(413, "too_large", f"the pictures of a request may have {most} bytes in all")
        self._check()

    def _check(self) -> None:
        if self._held > self._settings.bodies_bytes:
            raise APIError(429, "busy", "too many large requests at a time; ask again later")

    def _too_large(self) -> APIError:
        return APIError(413, "too_large", f"the body is larger than {self._settings.body_bytes} bytes")


class Body:
    """The body of one request."""

    def __init__(self, bodies: Bodies):
        self._bodies = bodies
        self.data = b""
        self.size = 0
        """Bytes that this request holds: its body, and the pictures that it names."""

    def take(self, size: int) -> None:
        """As Bodies.take, for this one."""
        self._bodies.take(self, size)


async def _chunks(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        yield message.get("body", b"")
        more = message.get("more_body", False)


def parse(body: bytes) -> Any:
    """The value of a body of JSON, without the fields that are null. Raises APIError. A body with too many values (413)
    is refused before anything is parsed."""
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

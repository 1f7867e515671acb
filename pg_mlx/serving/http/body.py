"""Bodies of requests, within bounds of size and time."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from starlette.requests import Request
from starlette.types import Receive

from .errors import APIError, ClientGone
from .settings import Settings


class Bodies:
    """All bodies that are being read or taken apart at a time."""

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

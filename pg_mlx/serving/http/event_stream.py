"""Answers as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ...generation import Generation
from ..service.requests import Answered, RegionFound, Text
from .errors import APIError, ClientGone
from .events import in_thread

Events = AsyncGenerator[Text | RegionFound | Answered, None]


class Form(Protocol):
    """One answer in the form of a protocol."""

    def whole(self, generation: Generation) -> Any:
        """The answer without streaming: a struct."""

    def begin(self) -> bytes:
        """The first event."""

    def more(self, event: Text | RegionFound) -> bytes:
        """The event for more text or a region; it may be empty."""

    def end(self, generation: Generation) -> bytes:
        """The last events."""

    def failed(self, error: dict[str, Any]) -> bytes:
        """The event for a failure after the first event."""


class EventStream(Response):
    """Server-sent events. A failure after the first one is sent as an event, as OpenAI does it."""

    media_type = "text/event-stream"

    def __init__(self, form: Form, first: Text | RegionFound | Answered, rest: Events, headers: Mapping[str, str]):
        """first: the first event. It was waited for, so that a failure before it gets a status of its own. rest: the
        events after it; closed at the end, also if the client hangs up."""
        super().__init__(headers=headers)
        self._form, self._first, self._rest = form, first, rest
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        async with aclosing(self._rest):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                await self._send_all(send)
            except APIError as refused:
                await _send(send, self._form.failed(refused.body()["error"]))
            except ClientGone:
                return
            await send({"type": "http.response.body", "body": b""})

    async def _send_all(self, send: Send) -> None:
        await _send(send, self._form.begin())
        event = self._first
        while not isinstance(event, Answered):
            masked = isinstance(event, RegionFound) and event.region.decoded is not None
            await _send(send, await in_thread(self._form.more, event) if masked else self._form.more(event))
            event = await anext(self._rest)
        await _send(send, self._form.end(event.generation))


async def _send(send: Send, chunk: bytes) -> None:
    if chunk:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})

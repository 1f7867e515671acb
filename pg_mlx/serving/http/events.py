"""From the service's threads to the server's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from starlette.types import Receive

from ..error_codes import ServingError
from ..service.requests import Answered, Ask, Event, Failed, RegionFound, Text
from ..service.service import Service
from .errors import APIError, ClientGone


async def ask(service: Service, question: Ask, receive: Receive) -> AsyncGenerator[Text | RegionFound | Answered, None]:
    """The events of an answer, of which Answered is the last. Closing the generator cancels the request, and so does a
    client that hangs up (ClientGone). Raises APIError for a failure, at the first step if it is refused at once.

    receive: of the request, whose body has been read.
    """
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[Event | ClientGone] = asyncio.Queue()

    def hear(event: Event) -> None:
        loop.call_soon_threadsafe(events.put_nowait, event)

    try:
        cancel = service.submit(question, hear)
    except ServingError as error:
        raise APIError.of(error) from None
    watcher = asyncio.create_task(_watch(receive, events))
    try:
        while True:
            event = await events.get()
            if isinstance(event, ClientGone):
                raise event
            if isinstance(event, Failed):
                raise APIError.of(event)
            yield event
            if isinstance(event, Answered):
                return
    finally:
        watcher.cancel()
        cancel()


async def _watch(receive: Receive, events: asyncio.Queue[Event | ClientGone]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    events.put_nowait(ClientGone())

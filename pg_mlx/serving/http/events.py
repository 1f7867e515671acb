"""Between the server's event loop and threads: the events of an answer, and work that would hold up the loop."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, Callable
from typing import TypeVar

import anyio.to_thread
from anyio.lowlevel import RunVar
from starlette.types import Receive

from ..error_codes import ServingError
from ..service.requests import Answered, Ask, Event, Failed, RegionFound, Text
from ..service.service import Service
from .errors import APIError, ClientGone

T = TypeVar("T")

THREADS = 2
"""How many pieces of work run in threads at a time: each may need three times the memory of what it works on."""

_limiter: RunVar[anyio.CapacityLimiter] = RunVar("pg_mlx_threads")


async def in_thread(work: Callable[..., T], *arguments: object) -> T:
    """What `work` returns, computed in a thread: for large JSON, and masks of large pictures. Cancelling does not stop
    the thread, but does not wait for it either."""
    try:
        limiter = _limiter.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(THREADS)
        _limiter.set(limiter)
    return await anyio.to_thread.run_sync(functools.partial(work, *arguments), abandon_on_cancel=True, limiter=limiter)


def ask(service: Service, question: Ask, receive: Receive) -> AsyncGenerator[Text | RegionFound | Answered, None]:
    """Submit a request, and return its events, the last of which is Answered. They must be iterated. Closing the
    generator cancels the request, and so does a client that hangs up (raises ClientGone). Raises APIError for a
    failure, at once if the service refuses.

    receive: of the HTTP request, whose body has been read. The question is not kept: the service holds, and counts, its
    pictures.
    """
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[Event | ClientGone] = asyncio.Queue()

    def listen(event: Event) -> None:
        loop.call_soon_threadsafe(events.put_nowait, event)

    try:
        cancel = service.submit(question, listen)
    except ServingError as error:
        raise APIError.of(error) from None
    return _events(events, cancel, receive)


async def _events(
    events: asyncio.Queue[Event | ClientGone], cancel: Callable[[], None], receive: Receive
) -> AsyncGenerator[Text | RegionFound | Answered, None]:
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
    """Report a client that hangs up."""
    while (await receive())["type"] != "http.disconnect":
        pass
    events.put_nowait(ClientGone())

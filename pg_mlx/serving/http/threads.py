"""Work that would hold up the event loop: large JSON, and masks of large pictures."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import anyio.to_thread
from anyio.lowlevel import RunVar

T = TypeVar("T")

THREADS = 2
"""At a time: each may need three times the memory of what it works on."""

_limiter: RunVar[anyio.CapacityLimiter] = RunVar("pg_mlx_threads")


async def in_thread(work: Callable[..., T], *arguments: object) -> T:
    try:
        limiter = _limiter.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(THREADS)
        _limiter.set(limiter)
    return await anyio.to_thread.run_sync(functools.partial(work, *arguments), limiter=limiter)

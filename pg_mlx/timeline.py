"""Optional tracing: named time spans by thread. It costs next to nothing until `record` is called."""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """What one thread did from `start` to `stop`, both in seconds of time.perf_counter()."""

    name: str
    thread: int
    start: float
    stop: float


_spans: list[Span] | None = None
_NOTHING = nullcontext()


def record(spans: list[Span] | None) -> None:
    """From now on each span is appended to this list by the thread that ends it. None stops recording."""
    global _spans
    _spans = spans


def timed(name: str) -> AbstractContextManager[None]:
    """A context manager whose block is one span of this name: `with timed("vision"): ...`."""
    return _NOTHING if _spans is None else _Open(name, _spans)


class _Open(AbstractContextManager[None]):
    def __init__(self, name: str, spans: list[Span]):
        self._name, self._spans = name, spans

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._spans.append(Span(self._name, threading.get_ident(), self._start, time.perf_counter()))

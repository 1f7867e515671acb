"""Who was busy with what, and when. Nothing is noted, and next to no time spent, until somebody calls `record`."""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """start and stop as time.perf_counter() tells them."""

    name: str
    thread: int
    start: float
    stop: float


_spans: list[Span] | None = None
_NOTHING = nullcontext()


def record(spans: list[Span] | None) -> None:
    """From now on spans are added to this list, by whichever thread ends them; None ends that."""
    global _spans
    _spans = spans


def timed(name: str) -> AbstractContextManager[None]:
    """with timed("vision"): ..."""
    return _NOTHING if _spans is None else _Open(name, _spans)


class _Open(AbstractContextManager[None]):
    def __init__(self, name: str, spans: list[Span]):
        self._name, self._spans = name, spans

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._spans.append(Span(self._name, threading.get_ident(), self._start, time.perf_counter()))
